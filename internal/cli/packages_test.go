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

func TestFirmwareForModules(t *testing.T) {
	work := t.TempDir()
	dir, fw, objects := filepath.Join(work, "lib/modules/6.1.0-test"), filepath.Join(work, "fw"), "dir://"+filepath.Join(work, "objects")
	m, err := kmodtest.Parse("vermagic=6.1.0-test SMP\nfirmware=e100/*.bin\nfirmware=top.fw\nfirmware=rtl/link.bin\nfirmware=gone.bin")
	if err != nil {
		t.Fatal(err)
	}
	kmodtest.Write(t, dir, "kernel/a.ko", m)
	for name, text := range map[string]string{"modules.builtin": "", "modules.builtin.modinfo": "", "modules.order": "kernel/a.ko\n"} {
		write(t, filepath.Join(dir, name), []byte(text))
	}
	for _, name := range []string{"e100/one.bin", "e100/notes", "other/big.bin", "rtl/x.bin", "far/target.bin", "far/more.bin", "top.fw", "loose.fw"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(fw, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(fw, name), []byte(name))
	}
	if err := os.Symlink("../far/target.bin", filepath.Join(fw, "rtl/link.bin")); err != nil {
		t.Fatal(err)
	}
	modules, firmware := filepath.Join(work, "m.fl"), filepath.Join(work, "fw.fl")
	mustRun(t, "overmount", "pack", "-m", modules, "-s", objects, "--kind", "modules", "--depmod", dir)
	out := run(t, "overmount", "pack", "-m", firmware, "-s", objects, "--kind", "firmware", "--for-modules", modules, fw)
	if out.code != 0 || !strings.Contains(out.stderr, "leaves out 3 files, ") || !strings.Contains(out.stderr, "far, loose.fw, other") {
		t.Errorf("pack: exit code %d, %q, want it to say what it leaves out", out.code, out.stderr)
	}
	got := mustRun(t, "overmount", "flist", "tree", firmware)
	for name, want := range map[string]bool{"one.bin": true, "notes": true, "x.bin": true, "link.bin": true, "target.bin": true, "top.fw": true, "more.bin": false, "big.bin": false, "other": false, "loose.fw": false} {
		if strings.Contains(got, name) != want {
			t.Errorf("%s is there: %v, want %v, in %s", name, !want, want, got)
		}
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
	if out := run(t, "overmount", "pack", "-m", meta, "-s", "dir:///nowhere", "--deb-repo", "x", "firmware-*"); out.code != exitUsage {
		t.Errorf("without a suite: exit code %d, %q", out.code, out.stderr)
	}
}
