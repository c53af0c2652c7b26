package depmod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/kmod/kmodtest"
)

func contextCanceled(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}

// TestPlaceAndOrderDoNotMatter makes the same tree on two file systems, with
// directories and files in opposite order.
func TestPlaceAndOrderDoNotMatter(t *testing.T) {
	var names []string
	for i := range 60 {
		names = append(names, fmt.Sprintf("kernel/%d/%c/mod-%d.ko", i%3, 'a'+i%5, i%40))
	}
	fill := func(dir string) *Result {
		for _, name := range names {
			kmodtest.Write(t, dir, name, kmodtest.Module{
				Info:    []string{"alias=same-for-all", "alias=of-" + name},
				Exports: []string{"same", "of_" + filepath.Base(name)}, Needs: []string{"of_mod-3.ko", "of_mod-9.ko"},
			})
		}
		kmodtest.Write(t, dir, "kernel/0/z/mod-3.ko", kmodtest.Module{Exports: []string{"of_mod-3.ko"}})
		return build(t, dir)
	}
	// Module 3 must not need itself.
	names = slices.DeleteFunc(names, func(name string) bool {
		return strings.HasSuffix(name, "mod-3.ko") || strings.HasSuffix(name, "mod-9.ko")
	})
	first := fill(t.TempDir())
	slices.Reverse(names)
	second := fill(tmpfs(t, "16m"))
	if diff := cmp.Diff(first.Files, second.Files); diff != "" {
		t.Errorf("files (-one +other):\n%s", diff)
	}
	if diff := cmp.Diff(first.Warnings, second.Warnings); diff != "" || len(first.Warnings) == 0 {
		t.Errorf("warnings (-one +other), of %d:\n%s", len(first.Warnings), diff)
	}
}

func TestModules(t *testing.T) {
	dir, r := smallTree(t)
	if len(r.Modules) != 3 {
		t.Fatalf("found %d modules, want 3", len(r.Modules))
	}
	byName := map[string]*Module{}
	for _, m := range r.Modules {
		byName[m.Name] = m
	}
	a, b, c := byName["a"], byName["b"], byName["c"]
	if !slices.Equal(a.Depends, []*Module{b}) || !slices.Equal(a.Closure, []*Module{b}) || !slices.Equal(a.Via(), []string{"b"}) {
		t.Errorf("a depends on %v, in all %v, by %v, want b", a.Depends, a.Closure, a.Via())
	}
	if got := c.Info.Get("alias"); got != "c-alias" {
		t.Errorf("alias of c = %q, want c-alias", got)
	}
	info, err := os.Stat(filepath.Join(dir, c.Path))
	if err != nil || c.Size != info.Size() || !c.Mtime.Equal(info.ModTime()) {
		t.Errorf("c has %d bytes of %v, want %d of %v", c.Size, c.Mtime, info.Size(), info.ModTime())
	}
}

// TestSymlinks compares with depmod: symlinks are followed, but not in circles.
func TestSymlinks(t *testing.T) {
	each(t, func(t *testing.T, j judge) {
		root := t.TempDir()
		dir := filepath.Join(root, "lib/modules", kver)
		for _, name := range inputs {
			write(t, filepath.Join(dir, name), nil)
		}
		kmodtest.Write(t, dir, "kernel/a.ko", kmodtest.Module{Exports: []string{"a"}})
		kmodtest.Write(t, root, "elsewhere/b.ko", kmodtest.Module{Needs: []string{"a"}})
		write(t, filepath.Join(root, "elsewhere/c.bin"), kmodtest.Module{Needs: []string{"a"}}.Bytes())
		link(t, filepath.Join(root, "elsewhere"), filepath.Join(dir, "extra"))
		link(t, filepath.Join(root, "elsewhere/c.bin"), filepath.Join(dir, "c.ko"))
		link(t, "/", filepath.Join(dir, "build"))
		link(t, "/", filepath.Join(dir, "kernel/source"))
		r := judged(t, j, root, &Options{})
		if len(r.Modules) != 3 {
			t.Errorf("found %d modules, want 3", len(r.Modules))
		}
		link(t, "..", filepath.Join(dir, "kernel/loop"))
		link(t, ".", filepath.Join(dir, "loop"))
		again := build(t, dir)
		if len(again.Modules) != 3 || !cmp.Equal(again.file("modules.alias"), r.file("modules.alias")) {
			t.Errorf("with circles: found %d modules, want 3", len(again.Modules))
		}
	})
}

// TestFiles compares with depmod: only some files, of which one lies elsewhere.
func TestFiles(t *testing.T) {
	each(t, func(t *testing.T, j judge) {
		root := t.TempDir()
		dir := filepath.Join(root, "lib/modules", kver)
		for _, name := range inputs {
			write(t, filepath.Join(dir, name), nil)
		}
		write(t, filepath.Join(dir, "modules.order"), []byte("kernel/b.ko\nkernel/a.ko\n"))
		other := filepath.Join(root, "other")
		kmodtest.Write(t, dir, "kernel/a.ko", kmodtest.Module{Exports: []string{"a"}})
		kmodtest.Write(t, dir, "kernel/b.ko", kmodtest.Module{Needs: []string{"a", "c"}})
		kmodtest.Write(t, dir, "kernel/not.ko", kmodtest.Module{})
		kmodtest.Write(t, other, "c.ko", kmodtest.Module{Exports: []string{"c"}})
		opts := &Options{Files: []string{"kernel/a.ko", "kernel/b.ko", other + "/c.ko"}, Externals: []External{{other, os.DirFS(other)}}}
		args := []string{kver, filepath.Join(dir, "kernel/a.ko"), filepath.Join(dir, "kernel/b.ko"), filepath.Join(other, "c.ko")}
		if out, err := j.command(t, root, args...).CombinedOutput(); err != nil {
			t.Fatalf("depmod: %v: %s", err, out)
		}
		opts.Layout = j.layout
		r, err := Build(t.Context(), os.DirFS(dir), opts)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, dir, r.Files)
	})
}

func TestFilesFail(t *testing.T) {
	dir, _ := smallTree(t)
	for _, files := range [][]string{
		{"kernel/none.ko"}, {"/elsewhere/a.ko"}, {"kernel"}, {"../a.ko"}, {"kernel/a.ko", "a.ko"},
	} {
		if _, err := Build(t.Context(), os.DirFS(dir), &Options{Files: files}); err == nil || !strings.Contains(err.Error(), files[0]) {
			t.Errorf("Build of %q: %v, want an error that names the file", files, err)
		}
	}
}

func TestUpToDate(t *testing.T) {
	at := time.Unix(1_700_000_000, 500_000_000)
	cases := []struct {
		name   string
		change func(t *testing.T, dir string)
		newer  string
	}{
		{"equal", func(*testing.T, string) {}, ""},
		{"newer in the same second", func(t *testing.T, dir string) { touch(t, dir, "kernel/a.ko", at.Add(time.Second/4)) }, ""},
		{"newer", func(t *testing.T, dir string) { touch(t, dir, "kernel/a.ko", at.Add(time.Second/2)) }, "kernel/a.ko"},
		{"newer than all", func(t *testing.T, dir string) { touch(t, dir, "modules.dep", at.Add(-time.Hour)) }, "kernel/a.ko"},
		{"not a module", func(t *testing.T, dir string) { touch(t, dir, "modules.alias", at.Add(time.Hour)) }, ""},
		{"missing", func(t *testing.T, dir string) { remove(t, dir, "modules.dep") }, "modules.dep"},
		{"module gone", func(t *testing.T, dir string) { remove(t, dir, "kernel/a.ko") }, ""},
		{"in build", func(t *testing.T, dir string) {
			kmodtest.Write(t, dir, "build/a.ko", kmodtest.Module{})
			touch(t, dir, "build/a.ko", at.Add(time.Hour))
		}, ""},
		{"through a symlink", func(t *testing.T, dir string) {
			other := t.TempDir()
			kmodtest.Write(t, other, "d.ko", kmodtest.Module{})
			touch(t, other, "d.ko", at.Add(time.Hour))
			link(t, other, filepath.Join(dir, "linked"))
		}, "linked/d.ko"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir, _ := smallTree(t)
			for _, name := range []string{"kernel/a.ko", "kernel/b.ko.xz", "kernel/c.ko.zst", "modules.dep"} {
				touch(t, dir, name, at)
			}
			c.change(t, dir)
			ok, newer, err := UpToDate(os.DirFS(dir))
			if ok != (c.newer == "") || newer != c.newer || err != nil {
				t.Errorf("UpToDate = %v, %q, %v, want newer %q", ok, newer, err, c.newer)
			}
		})
	}
}

func touch(t *testing.T, dir, name string, at time.Time) {
	t.Helper()
	if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func TestProgress(t *testing.T) {
	dir, _ := smallTree(t)
	var calls []int
	_, err := Build(t.Context(), os.DirFS(dir), &Options{Parallel: 1, Progress: func(done, all int) { calls = append(calls, done, all) }})
	if diff := cmp.Diff([]int{1, 3, 2, 3, 3, 3}, calls); diff != "" || err != nil {
		t.Errorf("Build: %v; progress (-want +got):\n%s", err, diff)
	}
}

// TestSymbolPrefix compares with depmod -P.
func TestSymbolPrefix(t *testing.T) {
	each(t, func(t *testing.T, j judge) {
		root := t.TempDir()
		dir := filepath.Join(root, "lib/modules", kver)
		for _, name := range inputs {
			write(t, filepath.Join(dir, name), nil)
		}
		kmodtest.Write(t, dir, "a.ko", kmodtest.Module{Exports: []string{"_a", "__two"}, Needs: []string{"b"}})
		kmodtest.Write(t, dir, "b.ko", kmodtest.Module{Exports: []string{"b"}})
		kmodtest.Write(t, dir, "c.ko", kmodtest.Module{Needs: []string{"a", "_b"}})
		kmodtest.Write(t, dir, "d.ko", kmodtest.Module{Needs: []string{"__two"}})
		r := judged(t, j, root, &Options{SymbolPrefix: '_'}, "-P", "_")
		if want := "c.ko: a.ko b.ko\n"; !strings.Contains(string(r.file("modules.dep")), want) {
			t.Errorf("modules.dep = %q, want it to have %q", r.file("modules.dep"), want)
		}
	})
}
