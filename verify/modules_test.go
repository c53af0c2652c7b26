package verify

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/depmod"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
	"overmount/store/storetest"
	"overmount/tree"
	"overmount/tree/treetest"
)

// newTree writes modules and their indexes, and returns the directory.
func newTree(t *testing.T, modules map[string]kmodtest.Module) string {
	t.Helper()
	dir := t.TempDir()
	for name, m := range modules {
		kmodtest.Write(t, dir, name, m)
	}
	var order []string
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		order = append(order, strings.TrimSuffix(name, strings.TrimPrefix(kmod.Suffix(name), ".ko")))
	}
	kmodtest.WriteOrder(t, dir, order...)
	r, err := depmod.Build(t.Context(), os.DirFS(dir), nil)
	if err == nil {
		err = r.Write(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// check returns the findings of a directory as lines, those of a severity or
// more.
func check(t *testing.T, dir string, least Severity, o *ModulesOptions) []string {
	t.Helper()
	all, err := Modules(t.Context(), os.DirFS(dir), o)
	if err != nil {
		t.Fatal(err)
	}
	return atLeast(all, least)
}

func atLeast(all []Finding, least Severity) []string {
	lines := []string{}
	for _, f := range all {
		if f.Severity >= least {
			lines = append(lines, f.String())
		}
	}
	return lines
}

func info(version string) []string { return []string{"vermagic=" + version + " SMP mod_unload"} }

func TestModulesOfASoundTree(t *testing.T) {
	dir := newTree(t, map[string]kmodtest.Module{
		"kernel/a.ko":    {Info: append(info("6.1.0"), "alias=pci:*", "softdep=pre: b"), Needs: []string{"b"}, Signer: "us"},
		"kernel/b.ko.xz": {Info: info("6.1.0"), Exports: []string{"b"}, Signer: "us"},
	})
	all, err := Modules(t.Context(), os.DirFS(dir), &ModulesOptions{Kver: "6.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"info: signature: all 2 modules are signed, by 1 signer; whether the kernel has their keys is not known here",
		"info: compression: 1 modules are compressed with xz: the kernel must be able to decompress them, or modprobe; give the kernel's configuration to check that",
	}
	if diff := cmp.Diff(want, atLeast(all, Info)); diff != "" {
		t.Errorf("Modules differs (-want +got):\n%s", diff)
	}
	if got := Worst(all); got != Info {
		t.Errorf("Worst = %v, want info", got)
	}
}

// TestIndexFaults damages each index file in turn: it must be named.
func TestIndexFaults(t *testing.T) {
	modules := map[string]kmodtest.Module{
		"kernel/a.ko": {Info: append(info("6.1.0"), "alias=pci:v*", "alias=usb:x"), Needs: []string{"b"}},
		"kernel/b.ko": {Info: info("6.1.0"), Exports: []string{"b"}},
	}
	pristine := newTree(t, modules)
	list, err := os.ReadDir(pristine)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, d := range list {
		name := d.Name()
		data, err := os.ReadFile(filepath.Join(pristine, name))
		if d.IsDir() || err != nil || name == "modules.order" || !strings.HasPrefix(name, "modules.") {
			continue
		}
		written := strings.Contains("modules.builtin modules.builtin.modinfo", name)
		for what, change := range map[string]func(path string) error{
			"missing": os.Remove,
			"cut":     func(path string) error { return os.Truncate(path, int64(len(data)/2)) },
			"flipped": func(path string) error { return os.WriteFile(path, flip(data), 0o644) },
			"longer":  func(path string) error { return os.WriteFile(path, append(bytes.Clone(data), "x\n"...), 0o644) },
		} {
			if written || len(data) == 0 && what != "longer" && what != "missing" {
				continue
			}
			files++
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
				t.Fatal(err)
			}
			if err := change(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			if got := check(t, dir, Error, nil); len(got) == 0 || !strings.Contains(strings.Join(got, "\n"), name) {
				t.Errorf("%s %s: errors %q, want one that names it", what, name, got)
			}
		}
	}
	if files < 30 {
		t.Errorf("%d faults were tried, want those of all index files", files)
	}
}

// flip turns one bit in the middle.
func flip(data []byte) []byte {
	data = bytes.Clone(data)
	if len(data) > 0 {
		data[len(data)/2] ^= 1
	}
	return data
}

func TestModulesFaults(t *testing.T) {
	for _, c := range []struct {
		name    string
		modules map[string]kmodtest.Module
		change  func(dir string) error
		opts    ModulesOptions
		want    string // line, or its beginning
	}{
		{
			name:    "a module of another kernel",
			modules: map[string]kmodtest.Module{"a.ko": {Info: info("6.1.0")}, "b.ko": {Info: info("5.10")}},
			opts:    ModulesOptions{Kver: "6.1.0"},
			want:    "error: vermagic: b.ko: 1 modules are for the kernel 5.10, not for 6.1.0: b.ko",
		}, {
			name:    "a module that does not say",
			modules: map[string]kmodtest.Module{"a.ko": {Info: info("6.1.0")}, "b.ko": {}},
			opts:    ModulesOptions{Kver: "6.1.0"},
			want:    "warning: vermagic: b.ko: 1 modules do not say which kernel they are for: b.ko",
		}, {
			name:    "one not signed",
			modules: map[string]kmodtest.Module{"a.ko": {Signer: "us"}, "b.ko": {}},
			want:    "warning: signature: 1 of 2 modules are not signed, and the others are: b.ko",
		}, {
			name:    "one not signed and the kernel minds",
			modules: map[string]kmodtest.Module{"a.ko": {Signer: "us"}, "b.ko": {}},
			opts:    ModulesOptions{Kernel: KernelConfig{"CONFIG_MODULE_SIG_FORCE": "y"}},
			want:    "error: signature: the kernel loads only signed modules (CONFIG_MODULE_SIG_FORCE), and 1 of 2 are not: b.ko",
		}, {
			name:    "compression that the kernel lacks",
			modules: map[string]kmodtest.Module{"a.ko.zst": {}},
			opts:    ModulesOptions{Kernel: KernelConfig{"CONFIG_MODULE_DECOMPRESS": "y", "CONFIG_MODULE_COMPRESS_XZ": "y"}},
			want:    "error: compression: 1 modules are compressed with zstd, and the kernel cannot decompress that (CONFIG_MODULE_DECOMPRESS, CONFIG_MODULE_COMPRESS_ZSTD): only a modprobe that can do it loads them: a.ko.zst",
		}, {
			name:    "compression and a kernel that undoes none",
			modules: map[string]kmodtest.Module{"a.ko.xz": {}},
			opts:    ModulesOptions{Kernel: KernelConfig{"CONFIG_MODULE_COMPRESS_XZ": "y"}},
			want:    "error: compression: 1 modules are compressed with xz",
		}, {
			name:    "a newer module",
			modules: map[string]kmodtest.Module{"a.ko": {}},
			change:  func(dir string) error { return later(filepath.Join(dir, "a.ko")) },
			want:    "warning: mtime: a.ko: it is newer than modules.dep, so that a depmod -A at boot would read every module",
		}, {
			name:    "a module that is none",
			modules: map[string]kmodtest.Module{"a.ko": {}, "b.ko": {}},
			change:  func(dir string) error { return os.WriteFile(filepath.Join(dir, "b.ko"), []byte("text"), 0o644) },
			want:    "error: module: read module b.ko: ",
		}, {
			name:    "a cycle",
			modules: map[string]kmodtest.Module{"a.ko": {Needs: []string{"b"}, Exports: []string{"a"}}, "b.ko": {Exports: []string{"b"}}},
			change: func(dir string) error {
				b := kmodtest.Module{Needs: []string{"a"}, Exports: []string{"b"}}
				return os.WriteFile(filepath.Join(dir, "b.ko"), b.Bytes(), 0o644)
			},
			want: "error: module: ",
		}, {
			name:    "no module",
			modules: map[string]kmodtest.Module{"a.ko": {}},
			change:  func(dir string) error { return os.Remove(filepath.Join(dir, "a.ko")) },
			want:    "error: module: there is no kernel module in the tree",
		}, {
			name:    "two of one name",
			modules: map[string]kmodtest.Module{"x/a.ko": {}, "y/a.ko": {}},
			want:    "warning: module: ",
		}, {
			name:    "an index outside of the manifest",
			modules: map[string]kmodtest.Module{"a.ko": {}},
			opts:    ModulesOptions{Inline: func(name string) bool { return name != "modules.dep" }},
			want:    "warning: inline: 1 index files are not in the manifest itself, so modprobe must wait for a store; pack with --kind modules: modules.dep",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := newTree(t, c.modules)
			if c.change != nil {
				if err := c.change(dir); err != nil {
					t.Fatal(err)
				}
			}
			for _, line := range check(t, dir, Warning, &c.opts) {
				if strings.HasPrefix(line, c.want) {
					return
				}
			}
			t.Errorf("findings %q, want one that begins with %q", check(t, dir, Info, &c.opts), c.want)
		})
	}
}

func later(path string) error {
	at := time.Now().Add(time.Hour)
	return os.Chtimes(path, at, at)
}

func TestCompressionThatTheKernelHas(t *testing.T) {
	dir := newTree(t, map[string]kmodtest.Module{"a.ko.zst": {}, "b.ko.xz": {}, "c.ko.gz": {}})
	kernel := KernelConfig{"CONFIG_MODULE_DECOMPRESS": "y", "CONFIG_MODULE_COMPRESS_XZ": "y", "CONFIG_MODULE_COMPRESS_ZSTD": "y", "CONFIG_MODULE_COMPRESS_GZIP": "y"}
	if got := check(t, dir, Warning, &ModulesOptions{Kernel: kernel}); len(got) > 0 {
		t.Errorf("findings %q, want none", got)
	}
}

func TestPackedFirmwareThatTheKernelCannotRead(t *testing.T) {
	dir := newTree(t, map[string]kmodtest.Module{"a.ko": {Info: []string{"firmware=a.fw", "firmware=b.fw"}}})
	shipped := fstest.MapFS{"a.fw.xz": {}, "b.fw.zst": {}}
	for _, c := range []struct {
		kernel KernelConfig
		want   int
	}{
		{nil, 0},
		{KernelConfig{"CONFIG_MODULES": "y"}, 2},
		{KernelConfig{"CONFIG_FW_LOADER_COMPRESS": "y"}, 1},
		{KernelConfig{"CONFIG_FW_LOADER_COMPRESS_XZ": "y", "CONFIG_FW_LOADER_COMPRESS_ZSTD": "y"}, 0},
	} {
		got := check(t, dir, Error, &ModulesOptions{Firmware: shipped, Kernel: c.kernel})
		if len(got) != c.want {
			t.Errorf("with %v: errors %q, want %d", c.kernel, got, c.want)
		}
	}
}

func TestReadKernelConfig(t *testing.T) {
	const text = "#\n# Linux\n#\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=\"text\"\n"
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write([]byte(text))
	z.Close()
	for name, data := range map[string]string{"plain": text, "gzip": zipped.String()} {
		got, err := ReadKernelConfig(strings.NewReader(data))
		want := KernelConfig{"CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_D": "text"}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: ReadKernelConfig differs, %v (-want +got):\n%s", name, err, diff)
		}
	}
	for _, bad := range []string{"", "hello", "\x1f\x8bno gzip"} {
		if got, err := ReadKernelConfig(strings.NewReader(bad)); err == nil {
			t.Errorf("ReadKernelConfig(%q) = %v, want an error", bad, got)
		}
	}
}

// TestStoreThatDoesNotAnswer: nothing is known about the tree then, which is no
// finding. A store that says it has lost an object is one.
func TestStoreThatDoesNotAnswer(t *testing.T) {
	dir := newTree(t, map[string]kmodtest.Module{"a.ko": {}, "b.ko": {}})
	var files []treetest.File
	for _, name := range []string{"a.ko", "b.ko"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, treetest.File{Path: name, Mode: unix.S_IFREG | 0o644, Data: append(data, name...)})
	}
	m, mem := treetest.Build(t, block.Zstd, files...)
	src := storetest.NewFaulty(mem)
	src.Always(storetest.Fail(errors.New("connection refused")))
	all, err := Modules(t.Context(), tree.New(m, src, nil).FS(t.Context()), nil)
	if err == nil || !strings.Contains(err.Error(), "connection refused") || all != nil {
		t.Errorf("Modules = %v, %v, want the store's error", all, err)
	}
	src.Always(storetest.NotFound())
	all, err = Modules(t.Context(), tree.New(m, src, nil).FS(t.Context()), nil)
	if got := atLeast(all, Error); err != nil || len(got) != 2 || !strings.Contains(strings.Join(got, "\n"), "a.ko: object not found") {
		t.Errorf("Modules = %q, %v, want the two modules that are lost", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if all, err := Modules(ctx, os.DirFS(dir), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Modules after a cancel = %v, %v, want context.Canceled", all, err)
	}
}

func TestSome(t *testing.T) {
	for want, names := range map[string][]string{
		"a": {"a"}, "a, b, c, d": {"a", "b", "c", "d"}, "a, b, c and 2 more": {"a", "b", "c", "d", "e"},
	} {
		if got := some(names); got != want {
			t.Errorf("some(%q) = %q, want %q", names, got, want)
		}
	}
}
