package pack

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/tree"
	"overmount/tree/treetest"
)

func TestLayer(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, []treetest.File{
		{Path: "kernel/a.ko", Mode: 0o600, Data: []byte("a")},
		{Path: "kernel/modules.dep", Mode: 0o600, Data: []byte("not in the root")},
		{Path: "modules.dep", Mode: 0o600, Data: []byte("old")},
	})
	at := time.Unix(1700000000, 0)
	l := Layer(Dir(dir), []LayerFile{{"modules.dep", []byte("new"), at}, {"modules.alias", nil, at}})
	if err := fstest.TestFS(l, "kernel/a.ko", "kernel/modules.dep", "modules.dep", "modules.alias"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{"modules.dep": "new", "modules.alias": "", "kernel/a.ko": "a", "kernel/modules.dep": "not in the root"} {
		if got, err := fs.ReadFile(l, name); err != nil || string(got) != want {
			t.Errorf("ReadFile(%s) = %q, %v, want %q", name, got, err, want)
		}
	}
	if info, err := fs.Stat(l, "modules.dep"); err != nil || !info.ModTime().Equal(at) || info.Mode() != 0o644 {
		t.Errorf("Stat(modules.dep) = %v, %v, want mode 0644 and the layer's time", info, err)
	}
	if err := os.Symlink("modules.dep", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if got, err := fs.ReadLink(l, "link"); err != nil || got != "modules.dep" {
		t.Errorf("ReadLink(link) = %q, %v, want modules.dep", got, err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "modules.dep")); err != nil || string(got) != "old" {
		t.Errorf("the source holds %q, %v, want it untouched", got, err)
	}
}

func TestInlineAndModules(t *testing.T) {
	dir := t.TempDir()
	big := treetest.Random(1, block.Size+10)
	write(t, dir, []treetest.File{
		{Path: "a-same-as-in", Data: big[:block.Size]}, // met first, so that the block is sealed as this file's
		{Path: "modules.in", Data: big},
		{Path: "x.ko", Data: []byte("x")},
	})
	mem := &store.Mem{}
	path := filepath.Join(t.TempDir(), "m.fl")
	note := &manifest.Module{Name: "x", Aliases: []string{"pci:*"}}
	_, err := Run(t.Context(), Dir(dir), mem, path, &Options{
		Inline:  func(name string) bool { return strings.HasPrefix(name, "modules.") },
		Modules: map[string]*manifest.Module{"x.ko": note},
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if mem.Len() != 3 {
		t.Errorf("the store holds %d objects, want all 3: other readers know no inline objects", mem.Len())
	}
	if n, _ := m.Objects(); n != 2 {
		t.Errorf("the manifest carries %d objects, want 2", n)
	}
	got, err := fs.ReadFile(tree.New(m, &store.Mem{}, nil).FS(t.Context()), "modules.in")
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("without a store modules.in = %d bytes, %v, want %d bytes", len(got), err, len(big))
	}
	ino, err := m.Find("x.ko")
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := m.Module(ino); !ok || got.Name != "x" || len(got.Aliases) != 1 {
		t.Errorf("Module(x.ko) = %v, %v, want what was noted", got, ok)
	}
}
