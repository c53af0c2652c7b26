package cli

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"overmount/deb/debtest"
	"overmount/kmod/kmodtest"
)

// missing is packed modules that declare firmware, and packed firmware that has some of
// the files: through links to a file and a directory, and compressed.
func missing(t *testing.T) (modules, firmware string) {
	t.Helper()
	work := t.TempDir()
	dir, fw, objects := filepath.Join(work, "lib/modules/6.1.0-test"), filepath.Join(work, "fw"), "dir://"+filepath.Join(work, "objects")
	var order []string
	for name, declared := range map[string][]string{
		"kernel/drivers/net/ethernet/e100": {"e100/a.bin", "e100/b.bin", "there.bin", "link/packed.bin"},
		"kernel/drivers/gpu/drm/amdgpu":    {"amdgpu/?.bin", "nowhere.bin", "e100/a.bin"},
	} {
		kmodtest.WriteText(t, dir, name+".ko", "vermagic=6.1.0-test SMP\nfirmware="+strings.Join(declared, "\nfirmware="))
		order = append(order, name+".ko")
	}
	kmodtest.WriteOrder(t, dir, order...)
	if err := os.MkdirAll(filepath.Join(fw, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(fw, "real/there.bin"), []byte("firmware"))
	write(t, filepath.Join(fw, "real/packed.bin.zst"), kmodtest.Zstd(t, []byte("firmware")))
	for name, target := range map[string]string{"there.bin": "real/there.bin", "link": "real"} {
		if err := os.Symlink(target, filepath.Join(fw, name)); err != nil {
			t.Fatal(err)
		}
	}
	modules, firmware = filepath.Join(work, "m.fl"), filepath.Join(work, "fw.fl")
	mustRun(t, "overmount", "pack", "-m", modules, "-s", objects, "--kind", "modules", "--depmod", dir)
	mustRun(t, "overmount", "pack", "-m", firmware, "-s", objects, "--kind", "firmware", "--keep-compressed", fw)
	return modules, firmware
}

// contains reports lines that an output lacks, and such that it has and should not.
func contains(t *testing.T, what, out string, want, not []string) {
	t.Helper()
	for _, line := range want {
		if !strings.Contains("\n"+out, "\n"+line+"\n") {
			t.Errorf("%s: there is no line %q in\n%s", what, line, out)
		}
	}
	for _, word := range not {
		if strings.Contains(out, word) {
			t.Errorf("%s: there is %q in\n%s", what, word, out)
		}
	}
}

func TestVerifyTellsPackagesOfAlpine(t *testing.T) {
	modules, firmware := missing(t)
	r := newAlpine(t, "firmware")
	index := filepath.Join(t.TempDir(), "index")
	args := func(more ...string) []string {
		return append([]string{"verify", "--objects", "none", "--firmware", firmware}, append(more, modules)...)
	}
	want := []string{
		"info: firmware: kernel/drivers/net/ethernet: of 1 module, which lacks some of what it declares: 2 of 4 names: e100/a.bin, e100/b.bin",
		"info: firmware: kernel/drivers/net/ethernet/e100.ko: 2 of 4 declared firmware files are not there: e100/a.bin, e100/b.bin; there are link/packed.bin, there.bin",
		"info: firmware: linux-firmware-amdgpu 20250509-r0 would bring 1 missing file: amdgpu/?.bin (amdgpu)",
		"info: firmware: linux-firmware-e100 20250509-r0 would bring 2 missing files: e100/a.bin, e100/b.bin (amdgpu, e100)",
		"info: firmware: no package of the index has 1 missing file: nowhere.bin (amdgpu)",
	}
	for _, place := range []string{r.dir, r.url} {
		out := mustRun(t, "overmount", args("--apk-repo", place, "--apk-arch", "x86_64", "--apk-key", r.keys, "--firmware-index", index)...)
		contains(t, place, out, want, []string{"linux-firmware-other", "busybox"})
	}
	first := read(t, index)
	if want := "\ne100/b.bin.zst\tlinux-firmware-e100\t20250509-r0\t-> e100/a.bin.zst\n"; !bytes.Contains(first, []byte(want)) {
		t.Errorf("the index has no line %q:\n%s", want, first)
	}

	// What was written is as good as the repository.
	contains(t, "the index", mustRun(t, "overmount", args("--firmware-index", index)...), want, nil)
	if out := mustRun(t, "overmount", args()...); strings.Contains(out, "package") {
		t.Errorf("without an index, verify speaks of packages:\n%s", out)
	}
	if out := mustRun(t, "overmount", args("--json", "--firmware-index", index)...); !strings.Contains(out,
		`"names":["e100/a.bin","e100/b.bin"],"packages":[{"name":"linux-firmware-e100","version":"20250509-r0"}],"modules":["amdgpu","e100"]}`) {
		t.Errorf("as JSON, the package that would bring firmware is not in\n%s", out)
	}

	// Other packages; and the same again gives the same file.
	out := mustRun(t, "overmount", args("--apk-repo", r.dir, "--apk-arch", "x86_64", "--apk-key", r.keys, "--firmware-package", "*-e100", "--firmware-package", "busybox")...)
	contains(t, "one package", out, []string{want[3], "info: firmware: no package of the index has 2 missing files: amdgpu/?.bin, nowhere.bin (amdgpu)"}, nil)
	again := filepath.Join(t.TempDir(), "again")
	mustRun(t, "overmount", args("--apk-repo", r.dir, "--apk-arch", "x86_64", "--apk-key", r.keys, "--firmware-index", again)...)
	if !bytes.Equal(read(t, again), first) {
		t.Error("the same repository gave another index")
	}

	write(t, again, []byte("a\tb\tc\n"))
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"signed by another":  {args("--apk-repo", r.dir, "--apk-arch", "x86_64", "--apk-key", newAlpine(t, "x").keys, "--firmware-index", again), 1, "is not trusted"},
		"swapped packages":   {args("--apk-repo", swapped(t, r.dir, newAlpine(t, "other content").dir), "--apk-arch", "x86_64", "--apk-key", r.keys, "--firmware-index", again), 1, "is not trusted"},
		"no such package":    {args("--apk-repo", r.dir, "--apk-arch", "x86_64", "--apk-key", r.keys, "--firmware-package", "sof*"), 1, `no package of the index matches "sof*"`},
		"no index":           {args("--firmware-index", index+".not"), 1, "with --deb-repo, --deb-lists or --apk-repo it is written"},
		"something else":     {args("--firmware-index", again), 1, "it is no index of firmware"},
		"no firmware":        {[]string{"verify", "--firmware-index", index, modules}, exitUsage, "--firmware, which is not given"},
		"two places":         {args("--apk-repo", r.dir, "--deb-lists", "x"), exitUsage, "do not go together"},
		"packages of nobody": {args("--firmware-package", "x", "--firmware-index", index), exitUsage, "--firmware-package is for"},
		"empty":              {args("--firmware-index", ""), exitUsage, "--firmware-index is empty"},
		"key of nothing":     {args("--apk-key", "x"), exitUsage, "--apk-key is for --apk-repo"},
		"suite of nothing":   {args("--deb-suite", "x"), exitUsage, "--deb-suite, --deb-component, --deb-keyring and --deb-any-date are for --deb-repo"},
		"no suite":           {args("--deb-repo", "x"), exitUsage, "--deb-suite"},
		"a bad glob":         {args("--deb-lists", "x", "--firmware-package", "[x"), exitUsage, "[x"},
	} {
		if out := run(t, "overmount", c.args...); out.code != c.code || !strings.Contains(out.stderr, c.want) {
			t.Errorf("%s: exit code %d, %q, want %d and %q", name, out.code, out.stderr, c.code, c.want)
		}
	}
	if got := string(read(t, again)); got != "a\tb\tc\n" {
		t.Errorf("what failed wrote an index:\n%s", got)
	}
}

// swapped is a repository whose packages are those of another one.
func swapped(t *testing.T, index, packages string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(packages)); err != nil {
		t.Fatal(err)
	}
	const name = "x86_64/APKINDEX.tar.gz"
	write(t, filepath.Join(dir, name), read(t, filepath.Join(index, name)))
	return dir
}

func TestVerifyTellsPackagesOfDebian(t *testing.T) {
	modules, firmware := missing(t)
	keyring, sign := debianKey(t)
	fw := func(name string, files ...debtest.Entry) debtest.Package {
		return debtest.Package{Name: name, Version: "2-1", Files: append([]debtest.Entry{{Name: "./lib/"}, {Name: "./lib/firmware/"}}, files...)}
	}
	packages := []debtest.Package{
		fw("firmware-a", debtest.Entry{Name: "./lib/firmware/e100/a.bin.xz", Content: "a"}, debtest.Entry{Name: "./lib/firmware/e100/b.bin.xz", Link: "a.bin.xz"}),
		fw("firmware-b", debtest.Entry{Name: "./lib/firmware/amdgpu", Link: "../../usr/lib/firmware/amd"}),
		fw("amd-tools", debtest.Entry{Name: "./usr/lib/firmware/amdgpu/x.bin", Content: "x"}, debtest.Entry{Name: "./usr/bin/nowhere.bin", Content: "x"}),
	}
	lines := map[string]string{
		"a":     "info: firmware: firmware-a%s would bring 2 missing files: e100/a.bin, e100/b.bin (amdgpu, e100)",
		"tools": "info: firmware: amd-tools%s would bring 1 missing file: amdgpu/?.bin (amdgpu)",
		"none":  "info: firmware: no package of the index has 1 missing file: nowhere.bin (amdgpu)",
		"none2": "info: firmware: no package of the index has 2 missing files: amdgpu/?.bin, nowhere.bin (amdgpu)",
	}
	place := func(contents bool) (dir string) {
		dir = t.TempDir()
		r := debtest.Repository{Suite: "bookworm", Arch: "amd64", Sign: sign, Suffix: ".gz", Packages: packages, Contents: contents}
		for name, data := range r.Files(t) {
			to := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, to, data)
			write(t, filepath.Join(dir, "example.org_"+strings.ReplaceAll(name, "/", "_")), data) // as apt's lists
		}
		return dir
	}
	with, without := place(true), place(false)
	server := httptest.NewServer(http.FileServer(http.Dir(with)))
	t.Cleanup(server.Close)
	verify := func(more ...string) ran {
		return run(t, "overmount", append([]string{"verify", "--objects", "none", "--firmware", firmware, "--deb-arch", "amd64", modules}, more...)...)
	}
	repo := func(place string, more ...string) ran {
		return verify(append([]string{"--deb-repo", place, "--deb-suite", "bookworm", "--deb-keyring", keyring}, more...)...)
	}
	named := []string{fmt.Sprintf(lines["a"], ""), fmt.Sprintf(lines["tools"], ""), lines["none"]}
	for name, out := range map[string]ran{"directory": repo(with), "server": repo(server.URL), "lists of apt": verify("--deb-lists", with)} {
		if contains(t, name, out.stdout, named, []string{"may bring"}); out.code != 0 || out.stderr != "" {
			t.Errorf("%s: exit code %d, %q, want 0", name, out.code, out.stderr)
		}
	}
	contains(t, "some packages", repo(with, "--firmware-package", "firmware-*").stdout, []string{named[0], lines["none2"]}, []string{"amd-tools"})
	if out := repo(with, "--firmware-package", "sof-*"); out.code != 1 || !strings.Contains(out.stderr, `no package with firmware matches "sof-*"`) {
		t.Errorf("no such package: exit code %d, %q", out.code, out.stderr)
	}

	// Without an index of files the packages are read, and then links are known.
	out := repo(without)
	contains(t, "packages", out.stdout, []string{fmt.Sprintf(lines["a"], " 2-1"), lines["none2"]}, []string{"amd-tools"})
	if out.code != 0 || !strings.Contains(out.stderr, "there is no index of the files in packages (Contents-ARCH): the packages firmware-* are read instead") {
		t.Errorf("packages: exit code %d, %q, want 0, and that packages are read", out.code, out.stderr)
	}
	contains(t, "all packages", repo(without, "--firmware-package", "*").stdout, []string{fmt.Sprintf(lines["a"], " 2-1"), fmt.Sprintf(lines["tools"], " 2-1"), lines["none"]}, nil)
	if out := verify("--deb-lists", without); out.code != 1 || !strings.Contains(out.stderr, "install apt-file") {
		t.Errorf("lists of apt without any of files: exit code %d, %q", out.code, out.stderr)
	}
	other, _ := debianKey(t)
	if out := verify("--deb-repo", with, "--deb-suite", "bookworm", "--deb-keyring", other); out.code != 1 || !strings.Contains(out.stderr, "repository "+with) {
		t.Errorf("signed by another key: exit code %d, %q", out.code, out.stderr)
	}
	if err := os.Remove(filepath.Join(with, "dists/bookworm/main/Contents-amd64.gz")); err != nil {
		t.Fatal(err)
	}
	out = repo(with)
	contains(t, "an index less", out.stdout, named, nil)
	if out.code != 0 || !strings.Contains(out.stderr, "it lists main/Contents-amd64") {
		t.Errorf("an index less: exit code %d, %q, want 0, and which is missing", out.code, out.stderr)
	}
}
