package apk_test

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"overmount/apk"
	"overmount/apk/apktest"
	"overmount/internal/testenv"
)

const (
	alpineKey = "alpine-devel@lists.alpinelinux.org-616ae350.rsa.pub"
	// baselayout is a package as Alpine has built and signed it.
	baselayout = "alpine-317/alpine-baselayout-3.2.0-r23.apk"
)

// genuine returns a directory with an index and a package of Alpine, which another
// Go module (Apache-2.0) has among its test data. The packages in it have licences
// of their own, so they are not copied here.
func genuine(t *testing.T) apk.Dir {
	t.Helper()
	const module, sum = "github.com/chainguard-dev/go-apk@v0.0.0-20240605175618-f3471089c263", "h1:QdAJbQBBxp66anqRHxjpjjexXrftaRE6vT6rT7DlU9k="
	cmd := exec.Command(testenv.Tool(t, "go"), "mod", "download", "-json", module)
	cmd.Dir = t.TempDir() // no module, so that none gets a requirement
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		testenv.Need(t, fmt.Sprintf("the Go module %s, which has genuine packages, cannot be had: %v: %s", module, err, out))
	}
	var got struct{ Dir, Sum string }
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Sum != sum {
		t.Fatalf("%s: checksum %s, want %s", module, got.Sum, sum)
	}
	return apk.Dir(filepath.Join(got.Dir, "pkg", "apk", "testdata"))
}

func alpineKeys(t *testing.T) apk.Keys {
	t.Helper()
	keys, err := apk.LoadKeys("testdata")
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestGenuineIndex(t *testing.T) {
	repo, err := apk.Open(t.Context(), genuine(t), alpineKeys(t), "alpine-317")
	if err != nil {
		t.Fatal(err)
	}
	x := repo.Index
	if len(x.Packages) != 5004 || x.Description != "v3.17.3-216-g54a39ace82a" {
		t.Errorf("the index %q has %d packages, want 5004", x.Description, len(x.Packages))
	}
	all, err := x.Select("linux-firmware*")
	if err != nil {
		t.Fatal(err)
	}
	var size, installed int64
	for _, p := range all.Packages {
		size, installed = size+p.Size, installed+p.Installed
	}
	if len(all.Packages) != 96 || len(all.Added) != 0 || size>>20 != 461 || installed>>20 != 982 {
		t.Errorf("linux-firmware*: %d packages, %d added, %d MiB, %d MiB installed, want 96, 0, 461, 982", len(all.Packages), len(all.Added), size>>20, installed>>20)
	}
	// The meta package brings all but the empty one.
	meta, err := x.Select("linux-firmware")
	if err != nil {
		t.Fatal(err)
	}
	missing := slices.DeleteFunc(slices.Clone(all.Packages), func(p *apk.Package) bool { return slices.Contains(meta.Packages, p) })
	if len(missing) != 1 || missing[0].Name != "linux-firmware-none" || len(meta.Added) != 94 {
		t.Errorf("linux-firmware brings %d packages, without %v, want 94, without linux-firmware-none", len(meta.Added), missing)
	}
	// Here the patterns and the dependencies of the packages overlap.
	const q = "linux-firmware-qca linux-firmware-qcom linux-firmware-qed linux-firmware-qlogic linux-lts"
	some, err := x.Select("linux-firmware-q*", "linux-lts")
	if err != nil {
		t.Fatal(err)
	}
	if got := names(some.Packages); got != "linux-firmware-ath10k "+q || names(some.Added) != "linux-firmware-ath10k" || !slices.Contains(some.Left, "initramfs-generator") {
		t.Errorf("selected %s, added %s, left %s", got, names(some.Added), some.Left)
	}
	some, err = x.Select("linux-firmware-*", "!linux-firmware-[0-9a-pr-z]*", "linux-lts")
	if err != nil {
		t.Fatal(err)
	}
	if got := names(some.Packages); got != q || len(some.Added) > 0 || !slices.Contains(some.Left, "linux-firmware-ath10k") {
		t.Errorf("without ath10k, on which qcom depends: selected %s, added %s, left %s", got, names(some.Added), some.Left)
	}
}

func names(packages []*apk.Package) string {
	var list []string
	for _, p := range packages {
		list = append(list, p.Name)
	}
	return strings.Join(list, " ")
}

func TestGenuinePackage(t *testing.T) {
	tree, err := apk.UnpackFiles(t.Context(), genuine(t), []string{baselayout}, alpineKeys(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	p := tree.Packages[0]
	if p.Name != "alpine-baselayout" || p.Version != "3.2.0-r23" || p.Size != 11012 || p.Files != 83 {
		t.Errorf("package %s: %d bytes, %d files, want alpine-baselayout-3.2.0-r23, 11012, 83", &p.Package, p.Size, p.Files)
	}
	if target, err := tree.ReadLink("var/run"); target != "/run" || err != nil {
		t.Errorf("ReadLink(var/run) = %q, %v, want /run", target, err)
	}
	if info, err := tree.Stat("tmp"); err != nil || info.Mode().String() != "dtrwxrwxrwx" {
		t.Errorf("Stat(tmp) = %v, %v, want a sticky directory", info, err)
	}
}

// TestGenuineRefused changes one thing of what is right.
func TestGenuineRefused(t *testing.T) {
	dir, keys := genuine(t), alpineKeys(t)
	file := read(t, dir, baselayout)
	const control, data = 666, 666 + 1563 // where the members begin
	impostor := apktest.NewSigner(t, alpineKey, crypto.SHA1)
	for name, test := range map[string]struct {
		file []byte
		want string
	}{
		"no signature":         {file[control:], "not signed"},
		"re-signed":            {slices.Concat(impostor.Member(t, file[control:data]), file[control:]), "signature with the key " + alpineKey + " is wrong"},
		"damaged signature":    {flip(file, 300), "the first member: damaged"},
		"damaged control":      {flip(file, control+700), "behind the signature: damaged"},
		"damaged data":         {flip(file, data+4000), "the data member: the tar archive is damaged"},
		"cut in the signature": {file[:300], "the first member: truncated"},
		"cut in the control":   {file[:control+300], "behind the signature: truncated"},
		"cut before the data":  {file[:data], "ends before the data member"},
		"cut in the data":      {file[:data+5000], "data member: truncated"},
		"cut by a byte":        {file[:len(file)-1], "data member: truncated"},
		"a byte more":          {append(slices.Clone(file), 0), "follows the data member"},
		"a member more":        {append(slices.Clone(file), file[data:]...), "follows the data member"},
		"data of another":      {slices.Concat(file[:data], read(t, dir, "replaces/replaces-0.0.1-r0.apk")[data-1900:]), "data member"},
		"nothing":              {nil, "empty"},
		"of the next version":  {[]byte("ADBd\x01\x02\x03\x04"), "apk 3"},
		"no archive":           {[]byte("<html>404"), "<html>40"},
	} {
		_, err := apk.UnpackFiles(t.Context(), mem{"p.apk": test.file}, []string{"p.apk"}, keys, nil)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "p.apk") {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
	}
	index := read(t, dir, "alpine-317/APKINDEX.tar.gz")
	for name, test := range map[string]struct {
		file []byte
		want string
	}{
		"not signed": {index[666:], "not signed"},
		"damaged":    {flip(index, 100_000), "the index member: damaged"},
		"re-signed":  {append(impostor.Member(t, index[666:]), index[666:]...), "signature with the key " + alpineKey + " is wrong (crypto/rsa: verification error): it was damaged, or signed by somebody else"},
		"cut":        {index[:len(index)-100], "the index member: truncated"},
		"appended":   {append(slices.Clone(index), index[666:]...), "follow the index member"},
		"a byte":     {append(slices.Clone(index), 0), "1 bytes follow the index member"},
	} {
		_, err := apk.ReadIndex(bytes.NewReader(test.file), keys)
		if !errors.Is(err, apk.ErrUntrusted) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("index, %s: %v, want an ErrUntrusted with %q", name, err, test.want)
		}
	}
	// 3.16 was signed with a key that is not given.
	_, err := apk.ReadIndex(bytes.NewReader(read(t, dir, "alpine-316/APKINDEX.tar.gz")), keys)
	if !errors.Is(err, apk.ErrUntrusted) || !strings.Contains(err.Error(), "alpine-keys") || !strings.Contains(err.Error(), "6165ee59") {
		t.Errorf("an index that another key signed: %v, want an ErrUntrusted that names the key and says where to get it", err)
	}
	_, err = apk.UnpackFiles(t.Context(), dir, []string{"hello-0.1.0-r0.apk"}, keys, nil)
	if !errors.Is(err, apk.ErrUntrusted) || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("a package without a signature: %v, want ErrUntrusted", err)
	}
	// That repository has, under the name of one package, another.
	repo, err := apk.Open(t.Context(), dir, keys, "alpine-317")
	if err != nil {
		t.Fatal(err)
	}
	sel, err := repo.Index.Select("alpine-baselayout")
	if err != nil {
		t.Fatal(err)
	}
	_, err = repo.Unpack(t.Context(), sel.Packages[:1], nil)
	if !errors.Is(err, apk.ErrUntrusted) || !strings.Contains(err.Error(), "it says that it is alpine-baselayout-3.2.0-r23") {
		t.Errorf("the package that has the place of another: %v, want an ErrUntrusted that says what it is", err)
	}
}

func read(t *testing.T, dir apk.Dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(string(dir), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func flip(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 0x40
	return b
}
