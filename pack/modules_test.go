package pack

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/depmod"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
	"overmount/manifest"
)

// newModules writes modules of the kernel 6.1 and returns their directory, which
// is called 6.1.
func newModules(t *testing.T, modules map[string]kmodtest.Module) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "6.1")
	for name, m := range modules {
		kmodtest.Write(t, dir, name, m)
	}
	kmodtest.WriteOrder(t, dir)
	return dir
}

var someModules = map[string]kmodtest.Module{
	"kernel/a.ko": {
		Info:  []string{"vermagic=6.1 SMP", "alias=pci:*", "alias=", "softdep=pre: c", "weakdep=d", "firmware=a.fw", "firmware=two\nlines"},
		Needs: []string{"b"}, Signer: "us",
	},
	"kernel/b.ko.xz": {Info: []string{"vermagic=6.1 SMP"}, Exports: []string{"b"}},
}

func TestPrepareModulesNotes(t *testing.T) {
	dir := newModules(t, someModules)
	tree, err := PrepareModules(t.Context(), Dir(dir), ModulesOptions{Depmod: true})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]*manifest.Module{
		"kernel/a.ko": {
			Name: "a", Vermagic: "6.1 SMP", Signer: "us", Aliases: []string{"pci:*"}, Depends: []string{"b"},
			Softdeps: []string{"pre: c"}, Weakdeps: []string{"d"}, Firmware: []string{"a.fw"},
		},
		"kernel/b.ko.xz": {Name: "b", Vermagic: "6.1 SMP"},
	}
	if diff := cmp.Diff(want, tree.Modules); diff != "" {
		t.Errorf("Modules differs (-want +got):\n%s", diff)
	}
	if tree.Kver != "6.1" {
		t.Errorf("Kver = %q, want what the modules say, 6.1", tree.Kver)
	}
}

// TestPrepareModulesBuilds: what the layer holds is what depmod writes, and as old
// as the newest module.
func TestPrepareModulesBuilds(t *testing.T) {
	dir := newModules(t, someModules)
	newest := time.Unix(1700000000, 0)
	for name, at := range map[string]time.Time{"kernel/a.ko": newest, "kernel/b.ko.xz": newest.Add(-time.Hour)} {
		if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte("stale"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		layout       kmod.Layout
		limit, mtime time.Time
		files        int
	}{
		{kmod.Kmod34, time.Time{}, newest, 11},
		{kmod.Kmod30, newest.Add(-time.Minute), newest.Add(-time.Minute), 10},
	} {
		tree, err := PrepareModules(t.Context(), Dir(dir), ModulesOptions{Depmod: true, Layout: c.layout, Newest: c.limit})
		if err != nil {
			t.Fatal(err)
		}
		want, err := depmod.Build(t.Context(), os.DirFS(dir), &depmod.Options{Layout: c.layout})
		if err != nil {
			t.Fatal(err)
		}
		if len(want.Files) != c.files {
			t.Errorf("depmod makes %d files in layout %v, want %d", len(want.Files), c.layout, c.files)
		}
		for _, f := range want.Files {
			got, err := fs.ReadFile(tree.FS, f.Name)
			if err != nil || string(got) != string(f.Data) {
				t.Errorf("%s = %q, %v, want %q", f.Name, got, err, f.Data)
			}
			if info, err := fs.Stat(tree.FS, f.Name); err != nil || !info.ModTime().Equal(c.mtime) {
				t.Errorf("%s is of %v, want %v", f.Name, info.ModTime(), c.mtime)
			}
		}
		if got, err := os.ReadFile(filepath.Join(dir, "modules.dep")); string(got) != "stale" {
			t.Errorf("the source's modules.dep = %q, %v, want it untouched", got, err)
		}
	}
}

func TestPrepareModulesRefuses(t *testing.T) {
	indexed := func(t *testing.T, dir string) {
		r, err := depmod.Build(t.Context(), os.DirFS(dir), nil)
		if err == nil {
			err = r.Write(dir)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		change func(dir string) error
		want   []string
	}{
		{"sound", func(string) error { return nil }, nil},
		{"one missing", func(dir string) error { return os.Remove(filepath.Join(dir, "modules.alias.bin")) }, []string{"modules.alias.bin is missing"}},
		{
			"one of another tree", func(dir string) error {
				return os.WriteFile(filepath.Join(dir, "modules.dep"), []byte("kernel/a.ko:\n"), 0o644)
			}, []string{`modules.dep has in line 1 "kernel/a.ko:", where "kernel/b.ko.xz:" belongs`},
		},
		{
			"a newer module", func(dir string) error {
				at := time.Now().Add(time.Hour)
				return os.Chtimes(filepath.Join(dir, "kernel/a.ko"), at, at)
			}, []string{"modules.dep is older than kernel/a.ko, so that depmod -A would read all modules"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := newModules(t, someModules)
			indexed(t, dir)
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			_, err := PrepareModules(t.Context(), Dir(dir), ModulesOptions{})
			var got []string
			if wrong, ok := errors.AsType[*MetadataError](err); ok {
				got = wrong.Problems
			} else if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("problems differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPrepareModulesKver(t *testing.T) {
	mixed := map[string]kmodtest.Module{
		"a.ko": {Info: []string{"vermagic=6.1 SMP"}}, "b.ko": {Info: []string{"vermagic=6.1 SMP"}}, "c.ko": {Info: []string{"vermagic=5.10 SMP"}}, "d.ko": {},
	}
	silent := map[string]kmodtest.Module{"a.ko": {}}
	for _, c := range []struct {
		modules       map[string]kmodtest.Module
		given, name   string
		kver, warning string
		err           string
	}{
		{someModules, "", "6.1", "6.1", "", ""},
		{someModules, "6.1", "whatever", "6.1", "", ""},
		{someModules, "", "modules", "6.1", "", ""},
		{someModules, "", "6.2", "", "", "the modules are for the kernel 6.1, not for 6.2: give --kver 6.1 if that is meant"},
		{someModules, "6.2", "6.1", "", "", "for the kernel 6.1, not for 6.2"},
		{mixed, "", "x", "6.1", "c.ko: it is for the kernel 5.10, not for 6.1 (1 such modules)", ""},
		{mixed, "5.10", "x", "5.10", "it is for the kernel 6.1, not for 5.10 (2 such modules)", ""},
		{silent, "", "6.1", "6.1", "", ""},
		{silent, "", "x", "", "", `which kernel the modules are for is not known: they do not say it, and "x" is not a kernel version; give --kver`},
	} {
		tree, err := PrepareModules(t.Context(), Dir(newModules(t, c.modules)), ModulesOptions{Depmod: true, Kver: c.given, Name: c.name})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("PrepareModules(%q, %q) = %v, want it to say %q", c.given, c.name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("PrepareModules(%q, %q) = %v", c.given, c.name, err)
			continue
		}
		warned := slices.ContainsFunc(tree.Warnings, func(w string) bool { return strings.Contains(w, "it is for the kernel") })
		if tree.Kver != c.kver || warned != (c.warning != "") || !strings.Contains(strings.Join(tree.Warnings, "\n"), c.warning) {
			t.Errorf("PrepareModules(%q, %q) gives %q, warnings %q, want %q, %q", c.given, c.name, tree.Kver, tree.Warnings, c.kver, c.warning)
		}
	}
}

// TestPrepareModulesFollowsLinks: depmod follows symlinks, packing does not.
func TestPrepareModulesFollowsLinks(t *testing.T) {
	dir := newModules(t, someModules)
	if err := os.Mkdir(filepath.Join(dir, "updates"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../kernel/a.ko", filepath.Join(dir, "updates/linked.ko")); err != nil {
		t.Fatal(err)
	}
	tree, err := PrepareModules(t.Context(), Dir(dir), ModulesOptions{Depmod: true})
	if err != nil {
		t.Fatal(err)
	}
	dep, err := fs.ReadFile(tree.FS, "modules.dep")
	if err != nil || !strings.Contains(string(dep), "updates/linked.ko: kernel/b.ko.xz\n") {
		t.Errorf("modules.dep = %q, %v, want the linked module in it", dep, err)
	}
}

func TestIsModuleIndex(t *testing.T) {
	for name, want := range map[string]bool{
		"modules.dep": true, "modules.builtin.alias.bin": true, "kernel/modules.dep": false, "build": false, "modules": false, "xmodules.dep": false,
	} {
		if got := IsModuleIndex(name); got != want {
			t.Errorf("IsModuleIndex(%q) = %v, want %v", name, got, want)
		}
	}
}
