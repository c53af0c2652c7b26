package cli

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"overmount/apk/apktest"
	"overmount/deb/debtest"
	"overmount/internal/testenv"
	"overmount/kmod/kmodtest"
)

// alpine is a repository in the true format: a meta package that brings others, one
// that stands alone, and the public key in a directory of keys.
type alpine struct {
	dir, keys string
	url       string
}

func newAlpine(t *testing.T, firmware string) *alpine {
	t.Helper()
	work := t.TempDir()
	r := &alpine{dir: filepath.Join(work, "main"), keys: filepath.Join(work, "keys")}
	s := apktest.NewSigner(t, "builder-1.rsa.pub", crypto.SHA256)
	der, err := x509.MarshalPKIXPublicKey(&s.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(r.keys, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(r.keys, s.Name), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	meta := apktest.Package{Name: "linux-firmware", Origin: "linux-firmware", Signer: s}
	var packages []apktest.Package
	for _, name := range []string{"amdgpu", "e100", "other"} {
		p := apktest.Package{Name: "linux-firmware-" + name, Origin: "linux-firmware", Signer: s, Version: "20250509-r0", Files: []apktest.Entry{
			{Name: "lib/"}, {Name: "lib/firmware/"}, {Name: "lib/firmware/" + name + "/"},
			{Name: "lib/firmware/" + name + "/a.bin.zst", Content: kmodtest.Zstd(t, []byte(firmware+" of "+name+"\n"))},
			{Name: "lib/firmware/" + name + "/b.bin.zst", Symlink: "a.bin.zst"},
		}}
		meta.Depends = append(meta.Depends, p.Name+"=20250509-r0")
		packages = append(packages, p)
	}
	meta.Version = "20250509-r0"
	packages = append(packages, meta, apktest.Package{Name: "busybox", Signer: s, Files: []apktest.Entry{{Name: "bin/"}, {Name: "bin/busybox", Content: []byte("x")}}})
	apktest.Repository(t, r.dir, s, packages...)
	server := httptest.NewServer(http.FileServer(http.Dir(work)))
	t.Cleanup(server.Close)
	r.url = server.URL + "/main"
	return r
}

func TestPackAlpine(t *testing.T) {
	r := newAlpine(t, "firmware")
	work := t.TempDir()
	meta, lock, objects := filepath.Join(work, "fw.fl"), filepath.Join(work, "fw.lock"), "dir://"+filepath.Join(work, "objects")
	args := func(place string, more ...string) []string {
		return append([]string{"pack", "-m", meta, "-s", objects, "--kind", "firmware", "--lock", lock, "--apk-repo", place, "--apk-arch", "x86_64", "--apk-key", r.keys}, more...)
	}
	if out := mustRun(t, "overmount", args(r.dir, "--dry-run", "linux-firmware")...); !strings.Contains(out, "4 packages") || !strings.Contains(out, "linux-firmware-e100") || strings.Contains(out, "busybox") {
		t.Errorf("--dry-run says %q, want the meta package and the three that it brings", out)
	}
	if _, err := os.Stat(lock); err == nil {
		t.Error("--dry-run wrote a lock file")
	}
	mustRun(t, "overmount", args(r.dir, "linux-firmware")...)
	for name, want := range map[string]string{"amdgpu/a.bin": "firmware of amdgpu\n", "e100/a.bin": "firmware of e100\n"} {
		if got := mustRun(t, "overmount", "flist", "cat", meta, name); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	if out := mustRun(t, "overmount", "flist", "ls", meta, "e100"); strings.Contains(out, ".zst") || !strings.Contains(out, "b.bin -> a.bin") {
		t.Errorf("e100 has %s, want the plain name, and a symlink to it", out)
	}
	first := read(t, meta)

	// The same over HTTP, by globs, gives the same bytes, and keeps to the lock.
	locked := read(t, lock)
	if n := bytes.Count(locked, []byte("\n")); n != 5 {
		t.Errorf("the lock file has %d lines, want a head and 4 packages:\n%s", n, locked)
	}
	mustRun(t, "overmount", args(r.url, "linux-firmware*")...)
	if !bytes.Equal(read(t, meta), first) || !bytes.Equal(read(t, lock), locked) {
		t.Error("packing the same again gave another manifest or lock file")
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"fewer packages": {args(r.dir, "linux-firmware-*", "!*other"), "linux-firmware-other 20250509-r0 is missing"},
		"more packages":  {args(r.dir, "linux-firmware*", "busybox"), "busybox 1.0-r0 is not in it"},
		"other bytes":    {args(newAlpine(t, "spoiled").dir, "linux-firmware"), "is not trusted"},
		"no such":        {args(r.dir, "linux-firmware-none*"), "none"},
	} {
		if out := run(t, "overmount", c.args...); out.code != 1 || !strings.Contains(out.stderr, c.want) {
			t.Errorf("%s: exit code %d, %q, want 1 and %q", name, out.code, out.stderr, c.want)
		}
	}
	if !bytes.Equal(read(t, meta), first) || !bytes.Equal(read(t, lock), locked) {
		t.Error("what failed changed the manifest or the lock file")
	}

	// Single packages, and compressed ones as they are.
	mustRun(t, "overmount", "pack", "-m", meta, "-s", objects, "--kind", "firmware", "--keep-compressed", "--apk-key", filepath.Join(r.keys, "builder-1.rsa.pub"),
		"--apk", filepath.Join(r.dir, "x86_64/linux-firmware-e100-20250509-r0.apk"), filepath.Join(r.dir, "x86_64/linux-firmware-other-20250509-r0.apk"))
	if out := mustRun(t, "overmount", "flist", "tree", meta); !strings.Contains(out, "a.bin.zst") || !strings.Contains(out, "other") {
		t.Errorf("the tree is %s", out)
	}
}

// TestPackageKeys holds whose keys count: those given, or the host's, or none.
func TestPackageKeys(t *testing.T) {
	r := newAlpine(t, "firmware")
	for name, c := range map[string]struct {
		given []string
		host  string
		want  string // in the error
	}{
		"given":      {[]string{filepath.Join(r.keys, "builder-1.rsa.pub")}, "", ""},
		"directory":  {[]string{r.keys}, "", ""},
		"the host's": {nil, r.keys, ""},
		"none":       {nil, filepath.Join(r.keys, "nowhere"), "no key says whom to trust: give Alpine's with --apk-key, which are in its package alpine-keys"},
		"missing":    {[]string{filepath.Join(r.keys, "nowhere")}, r.keys, "keys of Alpine: stat "},
		"no key":     {[]string{t.TempDir()}, r.keys, "there is no key in it"},
	} {
		keys, err := (&packageFlags{apkKeys: c.given}).keys(c.host)
		if c.want == "" && (err != nil || len(keys) != 1) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: keys() = %v, %v, want the error %q", name, keys, err, c.want)
		}
	}
	if _, err := os.Stat(apkKeysDir); err == nil {
		return // then those are trusted
	}
	out := run(t, "overmount", "pack", "-m", filepath.Join(t.TempDir(), "x.fl"), "-s", "dir:///nowhere", "--apk-repo", r.dir, "linux-firmware")
	if out.code != 1 || !strings.Contains(out.stderr, "no key says whom to trust") {
		t.Errorf("without a key: exit code %d, %q", out.code, out.stderr)
	}
}

// TestPackAlpineKernel packs a kernel's package, which has no index files: its
// scripts would make them.
func TestPackAlpineKernel(t *testing.T) {
	work := t.TempDir()
	s := apktest.NewSigner(t, "builder-1.rsa.pub", crypto.SHA1)
	key := filepath.Join(work, s.Name)
	write(t, key, s.Public(t))
	const dir = "lib/modules/6.12.1-0-lts/"
	p := apktest.Package{Name: "linux-lts", Version: "6.12.1-r0", Depends: []string{"initramfs-generator"}, Signer: s, Files: []apktest.Entry{
		{Name: "boot/"}, {Name: "boot/vmlinuz-lts", Content: []byte("kernel")}, {Name: "lib/"}, {Name: "lib/modules/"}, {Name: dir}, {Name: dir + "kernel/"},
		{Name: dir + "modules.builtin"}, {Name: dir + "modules.builtin.modinfo"}, {Name: dir + "modules.order", Content: []byte("kernel/a.ko\nkernel/b.ko\n")},
	}}
	for name, text := range map[string]string{"a": "export a_do\nalias=pci:a", "b": "need a_do\nalias=pci:b"} {
		m, err := kmodtest.Parse("vermagic=6.12.1-0-lts SMP\n" + text)
		if err != nil {
			t.Fatal(err)
		}
		p.Files = append(p.Files, apktest.Entry{Name: dir + "kernel/" + name + ".ko.zst", Content: kmodtest.Zstd(t, m.Bytes())})
	}
	repo := filepath.Join(work, "main")
	apktest.Repository(t, repo, s, p)
	for name, source := range map[string][]string{
		"file":       {"--apk", filepath.Join(repo, "x86_64", p.File())},
		"repository": {"--apk-repo", repo, "--apk-arch", "x86_64", "linux-lts"},
	} {
		meta := filepath.Join(work, name+".fl")
		mustRun(t, "overmount", append([]string{"pack", "-m", meta, "-s", "dir://" + filepath.Join(work, "objects"), "--kind", "modules", "--apk-key", key}, source...)...)
		if out := mustRun(t, "overmount", "modules", "resolve", "-m", meta, "pci:b"); !strings.Contains(out, "b.ko") || !strings.Contains(out, "a.ko") {
			t.Errorf("%s: pci:b needs %q, want both modules", name, out)
		}
		mustRun(t, "overmount", "verify", meta)
	}
}

// TestLeftOut has two packages that differ where no module and no firmware is.
func TestLeftOut(t *testing.T) {
	work := t.TempDir()
	put := func(name, firmware string) string {
		p := debtest.Package{Name: name, Files: []debtest.Entry{{Name: "./"}, {Name: "./boot/"}, {Name: "./boot/config", Content: name},
			{Name: "./lib/"}, {Name: "./lib/firmware/"}, {Name: "./lib/firmware/" + firmware, Content: name}}}
		file := filepath.Join(work, p.File())
		write(t, file, p.Bytes(t))
		return file
	}
	args := []string{"pack", "-m", filepath.Join(work, "x.fl"), "-s", "dir://" + filepath.Join(work, "objects"), "--deb", put("one", "1.bin"), put("two", "2.bin"), "--kind"}
	mustRun(t, "overmount", append(args, "firmware")...)
	out := run(t, "overmount", append(args, "tree")...)
	if out.code != 1 || strings.Count(out.stderr, "different files") != 1 || !strings.Contains(out.stderr, "boot/config: one_1.0_all and two_1.0_all have it") {
		t.Errorf("with all files: exit code %d, %q, want a conflict", out.code, out.stderr)
	}
}

// TestLockFirst holds that what an index says is compared with the lock before any
// package is fetched.
func TestLockFirst(t *testing.T) {
	r := newAlpine(t, "firmware")
	work := t.TempDir()
	var fetched atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, ".apk") {
			fetched.Add(1)
		}
		http.FileServer(http.Dir(r.dir)).ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	lock := filepath.Join(work, "fw.lock")
	pack := func(more ...string) ran {
		return run(t, "overmount", append([]string{"pack", "-m", filepath.Join(work, "fw.fl"), "-s", "dir://" + filepath.Join(work, "objects"), "--kind", "firmware",
			"--lock", lock, "--apk-repo", server.URL, "--apk-arch", "x86_64", "--apk-key", r.keys}, more...)...)
	}
	if out := pack("linux-firmware-e100"); out.code != 0 || fetched.Load() != 1 {
		t.Fatalf("pack: exit code %d, %q, %d packages fetched, want 1", out.code, out.stderr, fetched.Load())
	}
	out := pack("linux-firmware")
	if out.code != 1 || !strings.Contains(out.stderr, "linux-firmware-other 20250509-r0 is not in it") || fetched.Load() != 1 {
		t.Errorf("other packages: exit code %d, %q, %d fetched, want 1, the reason, and none more", out.code, out.stderr, fetched.Load()-1)
	}
	if out := pack("--lock", filepath.Join(work, "nowhere/fw.lock"), "linux-firmware-e100"); out.code != 1 || !strings.Contains(out.stderr, "lock file") || fetched.Load() != 1 {
		t.Errorf("a lock file that cannot be written: exit code %d, %q, %d fetched, want 1 and none more", out.code, out.stderr, fetched.Load()-1)
	}
	// --dry-run says the same, after the list.
	out = pack("--dry-run", "linux-firmware-e100", "busybox")
	if out.code != 1 || !strings.Contains(out.stderr, "busybox 1.0-r0 is not in it") || !strings.Contains(out.stdout, "2 packages") {
		t.Errorf("--dry-run of other packages: exit code %d, %q, %q, want 1, the list and the reason", out.code, out.stderr, out.stdout)
	}
	out = pack("--dry-run", "--json", "linux-firmware-e100")
	if want := `{"name":"linux-firmware-e100","version":"20250509-r0","size":`; out.code != 0 || !strings.HasPrefix(out.stdout, want) || !strings.Contains(out.stdout, `"packages":1`) || fetched.Load() != 1 {
		t.Errorf("--dry-run --json: exit code %d, %q, %q, want 0 and a line that begins with %s", out.code, out.stderr, out.stdout, want)
	}
}

// TestPackageSources holds what is told of sources that cannot be what was meant, and that
// nothing is packed of them.
func TestPackageSources(t *testing.T) {
	r := newAlpine(t, "firmware")
	work := t.TempDir()
	put := func(name, path, content string) string {
		p := debtest.Package{Name: name, Files: []debtest.Entry{{Name: "./" + path, Content: content}}}
		file := filepath.Join(work, p.File())
		write(t, file, p.Bytes(t))
		return file
	}
	lib, usr, packed := put("lib", "lib/firmware/a.bin", "1"), put("usr", "usr/lib/firmware/a.bin", "2"), put("packed", "lib/firmware/a.bin.xz", string(kmodtest.XZ(t, []byte("3"))))
	meta := filepath.Join(work, "fw.fl")
	alpine := []string{"--apk-key", r.keys, "--apk-arch", "x86_64", "--apk-repo", r.dir}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"empty lock":           {append(alpine, "linux-firmware", "--lock", ""), 2, "--lock is empty"},
		"empty lists":          {[]string{"--deb-lists", "", "--deb", lib}, 2, "--deb-lists is empty"},
		"empty repository":     {[]string{"--apk-repo", "", "x"}, 2, "--apk-repo is empty"},
		"other scheme":         {[]string{"--apk-key", r.keys, "--apk-repo", "ftp://user:secret@host/x", "x"}, 1, "repository ftp://…: want a directory, http://HOST/PATH"},
		"no lists":             {[]string{"--deb-lists", filepath.Join(work, "nowhere"), "--deb", lib}, 1, "no such file"},
		"lock that is none":    {append(alpine, "linux-firmware", "--lock", work), 1, "lock file: "},
		"the meta package":     {[]string{"--apk-key", r.keys, "--apk", filepath.Join(r.dir, "x86_64/linux-firmware-20250509-r0.apk")}, 1, "there is no firmware in it"},
		"an empty directory":   {[]string{t.TempDir()}, 1, "there is no firmware in it: it is empty"},
		"modules of no tree":   {[]string{"--for-modules", filepath.Join(work, "none.fl"), "--deb", filepath.Join(work, "none.deb")}, 1, "none.fl"},
		"lib and usr/lib":      {[]string{"--deb", lib, usr}, 1, "a.bin: in lib_1.0_all it is lib/firmware/a.bin, in usr_1.0_all it is usr/lib/firmware/a.bin"},
		"plain and compressed": {[]string{"--deb", lib, packed}, 1, "a.bin: in lib_1.0_all it is lib/firmware/a.bin, in packed_1.0_all it is lib/firmware/a.bin.xz"},
	} {
		out := run(t, "overmount", append([]string{"pack", "-m", meta, "-s", "dir://" + filepath.Join(work, "objects"), "--kind", "firmware"}, c.args...)...)
		if out.code != c.code || !strings.Contains(out.stderr, c.want) || strings.Contains(out.stderr, "secret") || out.stdout != "" {
			t.Errorf("%s: exit code %d, %q, %q, want %d and %q", name, out.code, out.stdout, out.stderr, c.code, c.want)
		}
	}
	if _, err := os.Stat(meta); err == nil {
		t.Error("a manifest was written")
	}
	for at, code := range map[string]int{work: exitUsage, filepath.Join(work, "nowhere/fw.fl"): 1} {
		out := run(t, "overmount", "pack", "-m", at, "-s", "dir://"+filepath.Join(work, "objects"), "--kind", "firmware", "--deb", filepath.Join(work, "none.deb"))
		if out.code != code || !strings.Contains(out.stderr, at) {
			t.Errorf("a manifest at %s: exit code %d, %q, want %d, and that place before the package that is not there", at, out.code, out.stderr, code)
		}
	}
	out := run(t, "overmount", append([]string{"pack", "--dry-run", "--lock", filepath.Join(work, "none.lock"), "busybox"}, alpine...)...)
	if out.code != 0 || !strings.Contains(out.stdout, "\n1 package, ") || !strings.Contains(out.stderr, "there is no lock file") {
		t.Errorf("--dry-run without a lock file: exit code %d, %q, %q, want one package, and that there is none", out.code, out.stdout, out.stderr)
	}
}

// TestLockOfTwo has a package of two architectures in a lock file.
func TestLockOfTwo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	amd64, arm64 := lockedPackage{"a", "1", strings.Repeat("a", 64), 1}, lockedPackage{"a", "1", strings.Repeat("b", 64), 2}
	if err := writeLock(file, []lockedPackage{amd64, arm64}); err != nil {
		t.Fatal(err)
	}
	if err := checkLock(file, []lockedPackage{arm64, amd64}); err != nil {
		t.Errorf("checkLock of what was written = %v", err)
	}
	arm64.Size++
	if err := checkLock(file, []lockedPackage{arm64, amd64}); err == nil || !strings.Contains(err.Error(), "a 1 has other bytes") {
		t.Errorf("checkLock of another = %v, want that it has other bytes", err)
	}
}

func TestPackDebian(t *testing.T) {
	work := t.TempDir()
	module := func(text string) string {
		m, err := kmodtest.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(m.Bytes())
	}
	const dir = "./usr/lib/modules/6.1.0-test/"
	parents := []debtest.Entry{{Name: "./"}, {Name: "./usr/"}, {Name: "./usr/lib/"}, {Name: "./usr/lib/modules/"}, {Name: dir}, {Name: dir + "kernel/"}}
	kernel := debtest.Package{Name: "linux-image-6.1.0-test", Version: "6.1.5-1", Arch: "amd64", Suffix: ".xz", Files: append(parents,
		debtest.Entry{Name: dir + "kernel/a.ko", Content: module("vermagic=6.1.0-test SMP\nexport a_do\nalias=pci:a")},
		debtest.Entry{Name: dir + "kernel/b.ko", Content: module("vermagic=6.1.0-test SMP\nneed a_do\nalias=pci:b")},
		debtest.Entry{Name: dir + "modules.builtin"}, debtest.Entry{Name: dir + "modules.builtin.modinfo"},
		debtest.Entry{Name: dir + "modules.order", Content: "kernel/a.ko\nkernel/b.ko\n"},
	)}
	file := filepath.Join(work, kernel.File())
	write(t, file, kernel.Bytes(t))
	meta, objects := filepath.Join(work, "m.fl"), "dir://"+filepath.Join(work, "objects")
	mustRun(t, "overmount", "pack", "-m", meta, "-s", objects, "--kind", "modules", "--deb", file)
	if got := mustRun(t, "overmount", "flist", "cat", meta, "modules.dep"); got != "kernel/a.ko:\nkernel/b.ko: kernel/a.ko\n" {
		t.Errorf("modules.dep holds %q", got)
	}
	mustRun(t, "overmount", "verify", meta)
	if out := mustRun(t, "overmount", "modules", "resolve", "-m", meta, "pci:b"); !strings.Contains(out, "b.ko") {
		t.Errorf("pci:b is %q", out)
	}

	// Two packages with one file: neither wins, unless it says that it replaces the
	// other.
	put := func(name, fields, content string) string {
		p := debtest.Package{Name: name, Fields: fields, Files: []debtest.Entry{{Name: "./"}, {Name: "./lib/"}, {Name: "./lib/firmware/"}, {Name: "./lib/firmware/x.bin", Content: content}}}
		to := filepath.Join(work, p.File())
		write(t, to, p.Bytes(t))
		return to
	}
	one, two := put("one", "", "1"), put("two", "", "2")
	fw := filepath.Join(work, "fw.fl")
	pack := []string{"pack", "-m", fw, "-s", objects, "--kind", "firmware", "--deb", one}
	if out := run(t, "overmount", append(pack, two)...); out.code != 1 || !strings.Contains(out.stderr, "x.bin") || !strings.Contains(out.stderr, "one") || !strings.Contains(out.stderr, "two") {
		t.Errorf("a conflict: exit code %d, %q, want 1, the path and both owners", out.code, out.stderr)
	}
	mustRun(t, "overmount", append(pack, put("two", "Replaces: one\n", "2"))...)
	if got := mustRun(t, "overmount", "flist", "cat", fw, "x.bin"); got != "2" {
		t.Errorf("x.bin holds %q, want that of the package that replaces the other", got)
	}
	// apt's lists have a package, and say of another that it is not the one.
	known := filepath.Join(work, "lists")
	if err := os.Mkdir(known, 0o755); err != nil {
		t.Fatal(err)
	}
	unsigned := func(text []byte) []byte { return text } // apt has checked it
	for name, data := range (debtest.Repository{Suite: "bookworm", Arch: "amd64", Sign: unsigned, Packages: []debtest.Package{kernel}}).Files(t) {
		write(t, filepath.Join(known, "example.org_debian_"+strings.ReplaceAll(name, "/", "_")), data)
	}
	lists := []string{"pack", "-m", meta, "-s", objects, "--kind", "modules", "--deb-lists", known, "--deb-arch", "amd64", "--deb"}
	mustRun(t, "overmount", append(lists, file)...)
	if out := run(t, "overmount", append(lists, one)...); out.code != 1 || !strings.Contains(out.stderr, "no index has a package of that name") {
		t.Errorf("a package that is not in the lists: exit code %d, %q", out.code, out.stderr)
	}
	kernel.Fields = "Source: other\n"
	write(t, file, kernel.Bytes(t))
	if out := run(t, "overmount", append(lists, file)...); out.code != 1 || !strings.Contains(out.stderr, "is expected: it is damaged, or another one") && !strings.Contains(out.stderr, "are expected: it is damaged, or another one") {
		t.Errorf("another package than in the lists: exit code %d, %q", out.code, out.stderr)
	}
	spoiled := read(t, file)
	spoiled[bytes.Index(spoiled, []byte("data.tar.xz"))+60+40] ^= 1 // behind the header of the member
	write(t, file, spoiled)
	if out := run(t, "overmount", "pack", "-m", meta+".2", "-s", objects, "--kind", "modules", "--deb", file); out.code != 1 || !strings.Contains(out.stderr, kernel.File()) {
		t.Errorf("a damaged package: exit code %d, %q", out.code, out.stderr)
	}
	if _, err := os.Stat(meta + ".2"); err == nil {
		t.Error("a damaged package became a manifest")
	}
}

func TestPackageFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--deb", "a.deb", "--apk", "a.apk"}, {"--lock", "x", "src"}, {"--dry-run", "src"}, {"--apk-repo", "r"}, {}, {"a", "b"}, {"--keep-compressed", "src"},
		{"--deb", "a.deb", "--apk-key", "k"}, {"--deb", "a.deb", "--deb-keyring", "k"}, {"--deb", "a.deb", "--deb-any-date"}, {"--deb", "a.deb", "--deb-component", "main"}, {"--deb-repo", "r", "--deb-suite", "s"},
		{"--apk", "a.apk", "--deb-lists", "l"},
	} {
		if out := run(t, "overmount", append([]string{"pack", "-m", "x.fl", "-s", "dir:///nowhere"}, args...)...); out.code != exitUsage {
			t.Errorf("pack %q: exit code %d, %q, want %d", args, out.code, out.stderr, exitUsage)
		}
	}
}

func TestLock(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	sum := strings.Repeat("ab", 32)
	list := []lockedPackage{{"b", "2", sum, 20}, {"a", "1:0-1", sum, 10}}
	if err := checkLock(file, list); err != nil {
		t.Errorf("checkLock without a file: %v", err)
	}
	if err := writeLock(file, list); err != nil {
		t.Fatal(err)
	}
	if err := checkLock(file, list); err != nil {
		t.Errorf("checkLock of the same: %v", err)
	}
	for want, other := range map[string][]lockedPackage{
		"a 1:0-1 is missing":  list[:1],
		"c 1 is not in it":    append(list[:2:2], lockedPackage{"c", "1", sum, 1}),
		"it has version 2":    {list[1], {"b", "3", sum, 20}},
		"has other bytes":     {list[1], {"b", "2", strings.Repeat("cd", 32), 20}},
		"b 2 has other bytes": {list[1], {"b", "2", sum, 21}},
	} {
		if err := checkLock(file, other); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("checkLock of %v: %v, want %q", other, err, want)
		}
	}
	for i, text := range []string{"a 1 x 10\n", "a 1 " + sum + "\n", "a 1 " + sum + " -1\n", "a 1 " + strings.ToUpper(sum) + " 1\n"} {
		write(t, file, []byte(text))
		if _, err := readLock(file); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%d: readLock of %q: %v, want an error with the line", i, text, err)
		}
	}
}

func TestFirmwareForModules(t *testing.T) {
	work := t.TempDir()
	dir, fw, objects := filepath.Join(work, "lib/modules/6.1.0-test"), filepath.Join(work, "fw"), "dir://"+filepath.Join(work, "objects")
	kmodtest.WriteText(t, dir, "kernel/a.ko", "vermagic=6.1.0-test SMP\nfirmware=e100/*.bin\nfirmware=top.fw\nfirmware=rtl/link.bin\nfirmware=gone.bin\nfirmware=by/way/x.fw\nfirmware=out/x.fw")
	kmodtest.WriteOrder(t, dir, "kernel/a.ko")
	for _, name := range []string{"e100/one.bin", "e100/notes", "other/big.bin", "rtl/x.bin", "far/target.bin", "far/more.bin", "top.fw", "loose.fw", "real/x.fw", "real/beside.fw", "dir/in-it.fw", "dir/deep/no.fw"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(fw, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(fw, name), []byte(name))
	}
	if err := os.Mkdir(filepath.Join(fw, "by"), 0o755); err != nil {
		t.Fatal(err)
	}
	// A file behind a symlink to its directory, and a symlink to a directory beside it.
	for name, target := range map[string]string{"rtl/link.bin": "../far/target.bin", "by/way": "../real", "real/dirlink": "../dir", "out": "/nowhere"} {
		if err := os.Symlink(target, filepath.Join(fw, name)); err != nil {
			t.Fatal(err)
		}
	}
	modules, firmware := filepath.Join(work, "m.fl"), filepath.Join(work, "fw.fl")
	mustRun(t, "overmount", "pack", "-m", modules, "-s", objects, "--kind", "modules", "--depmod", dir)
	out := run(t, "overmount", "pack", "-m", firmware, "-s", objects, "--kind", "firmware", "--for-modules", modules, fw)
	if out.code != 0 || !strings.Contains(out.stderr, "leaves out 5 files, ") || !strings.Contains(out.stderr, "dir, far, loose.fw, other, out") {
		t.Errorf("pack: exit code %d, %q, want it to say what it leaves out", out.code, out.stderr)
	}
	got := mustRun(t, "overmount", "flist", "tree", firmware)
	for name, want := range map[string]bool{"one.bin": true, "notes": true, "x.bin": true, "link.bin": true, "target.bin": true, "top.fw": true, "more.bin": false, "big.bin": false, "other": false, "loose.fw": false,
		"way": true, "beside.fw": true, "dirlink": true, "in-it.fw": true, "no.fw": false} {
		if strings.Contains(got, name) != want {
			t.Errorf("%s is there: %v, want %v, in %s", name, !want, want, got)
		}
	}
	if out := run(t, "overmount", "pack", "-m", firmware, "-s", objects, "--kind", "firmware", "--for-modules", modules, filepath.Join(fw, "e100")); out.code != 0 || !strings.Contains(out.stderr, "leaves out 2 files") {
		t.Errorf("of a tree that has nothing of it: exit code %d, %q", out.code, out.stderr)
	}
	if out := run(t, "overmount", "pack", "-m", firmware, "-s", objects, "--kind", "firmware", "--for-modules", firmware, fw); out.code != 1 || !strings.Contains(out.stderr, "does not say which firmware") {
		t.Errorf("for what is no manifest of modules: exit code %d, %q", out.code, out.stderr)
	}
}

// debianKey makes a key with gpg, and returns its keyring and what signs with it.
func debianKey(t *testing.T) (keyring string, sign func([]byte) []byte) {
	t.Helper()
	gpg := testenv.Tool(t, "gpg")
	testenv.Tool(t, "gpgv")
	home, err := os.MkdirTemp("", "gpg") // the path of gpg-agent's socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	run := func(stdin []byte, args ...string) []byte {
		cmd := exec.Command(gpg, append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback"}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v", args, err)
		}
		return out
	}
	run(nil, "--quick-generate-key", "--passphrase", "", "test <test@example.org>", "ed25519", "sign", "never")
	keyring = filepath.Join(home, "keyring.gpg")
	run(nil, "--output", keyring, "--export")
	return keyring, func(text []byte) []byte { return run(text, "--clear-sign") }
}

func TestPackDebianRepository(t *testing.T) {
	keyring, sign := debianKey(t)
	other, _ := debianKey(t)
	work := t.TempDir()
	fw := func(name, version, content string) debtest.Package {
		return debtest.Package{Name: name, Version: version, Files: []debtest.Entry{
			{Name: "./"}, {Name: "./usr/"}, {Name: "./usr/lib/"}, {Name: "./usr/lib/firmware/"}, {Name: "./usr/lib/firmware/" + name + ".bin", Content: content},
		}}
	}
	r := debtest.Repository{Suite: "bookworm", Arch: "amd64", Sign: sign, Packages: []debtest.Package{
		fw("firmware-a", "1:2.0-1", "new"), fw("firmware-b", "1.0", "b"), fw("other", "1.0", "x"),
	}}
	for name, data := range r.Files(t) {
		to := filepath.Join(work, "debian", name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, to, data)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(work)))
	t.Cleanup(server.Close)
	meta, lock := filepath.Join(work, "fw.fl"), filepath.Join(work, "fw.lock")
	args := func(place, ring string, more ...string) []string {
		return append([]string{"pack", "-m", meta, "-s", "dir://" + filepath.Join(work, "objects"), "--kind", "firmware", "--lock", lock,
			"--deb-repo", place, "--deb-suite", "bookworm", "--deb-arch", "amd64", "--deb-keyring", ring}, more...)
	}
	if out := mustRun(t, "overmount", args(server.URL+"/debian", keyring, "--dry-run", "firmware-*")...); !strings.Contains(out, "2 packages") || !strings.Contains(out, "1:2.0-1") {
		t.Errorf("--dry-run says %q", out)
	}
	mustRun(t, "overmount", args(server.URL+"/debian", keyring, "firmware-*")...)
	first := read(t, meta)
	if got := mustRun(t, "overmount", "flist", "cat", meta, "firmware-a.bin"); got != "new" {
		t.Errorf("firmware-a.bin holds %q", got)
	}
	mustRun(t, "overmount", args(filepath.Join(work, "debian"), keyring, "firmware-*")...)
	if !bytes.Equal(read(t, meta), first) {
		t.Error("the same packages from a directory gave another manifest")
	}
	if out := run(t, "overmount", args(server.URL+"/debian", other, "firmware-*")...); out.code != 1 || !strings.Contains(out.stderr, "repository "+server.URL) {
		t.Errorf("signed by another key: exit code %d, %q", out.code, out.stderr)
	}
	mustRun(t, "overmount", args(server.URL+"/debian", keyring, "--deb-component", "main", "--dry-run", "firmware-*")...)
	if out := run(t, "overmount", args(server.URL+"/debian", keyring, "--deb-component", "contrib", "firmware-*")...); out.code != 1 || !strings.Contains(out.stderr, "in contrib: it has the architectures all amd64, and the components main") {
		t.Errorf("of another component: exit code %d, %q", out.code, out.stderr)
	}
	if out := mustRun(t, "overmount", "pack", "--dry-run", "--deb-repo", filepath.Join(work, "debian"), "--deb-suite", "bookworm", "--deb-arch", "amd64", "--deb-keyring", keyring,
		"firmware-*", "!*-b"); !strings.Contains(out, "firmware-a ") || strings.Contains(out, "firmware-b") || !strings.Contains(out, "\n1 package, ") {
		t.Errorf("without firmware-b: %q", out)
	}
	for want, globs := range map[string][]string{
		`"!firmware-c" takes nothing away`:               {"firmware-*", "!firmware-c"},
		`"!firmware-b" takes away from the names before`: {"!firmware-b", "firmware-*"},
		"no package is selected":                         {"firmware-*", "!firmware-*"},
	} {
		if out := run(t, "overmount", args(server.URL+"/debian", keyring, globs...)...); out.code != 1 || !strings.Contains(out.stderr, want) {
			t.Errorf("%s: exit code %d, %q, want 1 and %q", globs, out.code, out.stderr, want)
		}
	}
	// An old one, as a mirror that is no longer fed.
	r.Fields = "Date: Thu, 25 Dec 2014 00:00:00 UTC\nValid-Until: Thu, 01 Jan 2015 00:00:00 UTC\n"
	for name, data := range r.Files(t) {
		write(t, filepath.Join(work, "debian", name), data)
	}
	if out := run(t, "overmount", args(server.URL+"/debian", keyring, "firmware-*")...); out.code != 1 || !strings.Contains(out.stderr, "it was valid until Thu, 01 Jan 2015") || !strings.Contains(out.stderr, "--deb-any-date takes it") {
		t.Errorf("out of date: exit code %d, %q, want the date and what to do", out.code, out.stderr)
	}
	mustRun(t, "overmount", args(server.URL+"/debian", keyring, "--deb-any-date", "firmware-*")...)
	if out := run(t, "overmount", "pack", "-m", meta, "-s", "dir:///nowhere", "--deb-repo", "x", "firmware-*"); out.code != exitUsage {
		t.Errorf("without a suite: exit code %d, %q", out.code, out.stderr)
	}
}
