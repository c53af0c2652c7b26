package cli

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"overmount/apk/apktest"
	"overmount/deb/debtest"
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
	if out := run(t, "overmount", "pack", "-m", meta, "-s", objects, "--apk-repo", r.dir, "linux-firmware"); apkKeysAreHere() != (out.code == 0) && !strings.Contains(out.stderr, "no key says whom to trust") {
		t.Errorf("without a key: exit code %d, %q", out.code, out.stderr)
	}
}

func apkKeysAreHere() bool {
	_, err := os.Stat(apkKeysDir)
	return err == nil
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
