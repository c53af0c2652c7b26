package coldplug

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/kmod/kmodtest"
	"overmount/manifest"
)

// manifestOf makes a manifest of entries, and opens it.
func manifestOf(t *testing.T, entries ...manifest.Entry) *manifest.Manifest {
	t.Helper()
	file := filepath.Join(t.TempDir(), "m.fl")
	w, err := manifest.Create(t.Context(), file, block.Zstd, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, e := range entries {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFromManifest(t *testing.T) {
	dir := manifest.Attr{Mode: unix.S_IFDIR | 0o755}
	link := manifest.Attr{Mode: unix.S_IFLNK | 0o777}
	file := manifest.Attr{Mode: unix.S_IFREG | 0o644, Size: 1000}
	blocks := []block.Ref{{ID: block.ID{1}, Key: block.Key{2}}}
	source := FromManifest(manifestOf(t,
		manifest.Entry{Path: ".", Attr: dir},
		manifest.Entry{Path: "extra", Attr: dir},
		manifest.Entry{Path: "extra/a.ko", Attr: file, Blocks: blocks, Module: &manifest.Module{Name: "a", Firmware: []string{"a.fw", "b*.fw"}}},
		manifest.Entry{Path: "kernel", Attr: dir},
		manifest.Entry{Path: "kernel/b.ko", Attr: file, Blocks: blocks},
		manifest.Entry{Path: "weak", Attr: dir},
		manifest.Entry{Path: "weak/a.ko", Attr: link, Target: "../extra/a.ko"},
		manifest.Entry{Path: "weak/away.ko", Attr: link, Target: "/extra/a.ko"},
		manifest.Entry{Path: "weak/loop.ko", Attr: link, Target: "loop.ko"},
	))
	declared := Facts{1000, []string{"a.fw", "b*.fw"}}
	for name, want := range map[string]Facts{"extra/a.ko": declared, "weak/a.ko": declared, "kernel/b.ko": {Size: 1000}} {
		got, err := source.Facts(name)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("Facts(%q) (-want +got), error %v:\n%s", name, err, diff)
		}
	}
	for name, missing := range map[string]bool{"nosuch.ko": true, "weak/away.ko": true, "weak/loop.ko": false, "extra": false} {
		if got, err := source.Facts(name); err == nil || errors.Is(err, fs.ErrNotExist) != missing {
			t.Errorf("Facts(%q) = %+v, %v, want an error, fs.ErrNotExist: %v", name, got, err, missing)
		}
	}
}

func TestFromFiles(t *testing.T) {
	dir := t.TempDir()
	m := kmodtest.Module{Info: []string{"firmware=a.fw", "license=GPL", "firmware=b.fw"}}
	kmodtest.Write(t, dir, "kernel/a.ko.zst", m)
	write(t, filepath.Join(dir, "kernel/b.ko"), "no module")
	info, err := os.Stat(filepath.Join(dir, "kernel/a.ko.zst"))
	if err != nil {
		t.Fatal(err)
	}
	source := FromFiles(os.DirFS(dir))
	got, err := source.Facts("kernel/a.ko.zst")
	if diff := cmp.Diff(Facts{info.Size(), []string{"a.fw", "b.fw"}}, got); diff != "" || err != nil {
		t.Errorf("Facts (-want +got), error %v:\n%s", err, diff)
	}
	if got, err := source.Facts("kernel/b.ko"); err == nil {
		t.Errorf("Facts of what is no module = %+v, want an error", got)
	}
	if got, err := source.Facts("kernel/c.ko"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Facts of what is not there = %+v, %v, want fs.ErrNotExist", got, err)
	}
}
