package manifest

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/block"
)

func TestModules(t *testing.T) {
	full := Module{
		Name: "e1000e", Vermagic: "6.1.0 SMP", Signer: "Debian",
		Aliases: []string{"pci:v00008086d*", "of:N*T*Cintel,x y"}, Depends: []string{"ptp", "pps_core"},
		Softdeps: []string{"pre: crc32c post: b"}, Weakdeps: []string{"a"}, Firmware: []string{"intel/e1000e.bin", "x-*.fw"},
	}
	bare := Module{Name: "b"}
	e1000e, b := file("e1000e.ko", 10), file("z/b.ko.xz", 600000)
	e1000e.Module, b.Module = &full, &bare
	path := filepath.Join(t.TempDir(), "m.fl")
	create(t, path, block.Zstd, nil, nil, []Entry{dir("."), file("a", 1), e1000e, dir("z"), b})
	m := mustOpen(t, path)

	got := map[string]Module{}
	for ino, mod := range m.Modules() {
		got[m.Path(ino)] = mod
	}
	want := map[string]Module{"e1000e.ko": full, "z/b.ko.xz": bare}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Modules differs (-want +got):\n%s", diff)
	}
	if ino, _ := m.Find("z/b.ko.xz"); true {
		if mod, ok := m.Module(ino); !ok || mod.Name != "b" {
			t.Errorf("Module(%d) = %v, %v, want b", ino, mod, ok)
		}
		if mod, ok := m.Module(ino - 1); ok {
			t.Errorf("Module of a directory = %v, want none", mod)
		}
	}
	if !m.HasModules() || mustOpen(t, plain(t)).HasModules() {
		t.Error("HasModules is wrong")
	}
}

// plain is a manifest without additions.
func plain(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "m.fl")
	create(t, path, block.Zstd, nil, nil, []Entry{dir(".")})
	return path
}

func TestModuleThatCannotBeNoted(t *testing.T) {
	for want, m := range map[string]Module{
		"needs a name":        {},
		"a line break":        {Name: "a\nb"},
		"empty or holds":      {Name: "a", Firmware: []string{"x\ny"}},
		"is empty":            {Name: "a", Aliases: []string{""}},
		"only a regular file": {Name: "dir"},
	} {
		e := file("a.ko", 1)
		if m.Name == "dir" {
			e = dir("a.ko")
		}
		e.Module = &m
		w, err := Create(t.Context(), filepath.Join(t.TempDir(), "m.fl"), block.Zstd, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		if err := w.Add(dir(".")); err != nil {
			t.Fatal(err)
		}
		if err := w.Add(e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Add(%q) = %v, want it to say %q", m, err, want)
		}
	}
}

func TestObjects(t *testing.T) {
	one, two := []byte("one object"), bytes.Repeat([]byte{7}, block.MaxObject)
	path := filepath.Join(t.TempDir(), "m.fl")
	create(t, path, block.Zstd, nil, nil, []Entry{dir(".")}, one, two, one)
	m := mustOpen(t, path)
	for _, want := range [][]byte{one, two} {
		if got, ok := m.Object(block.Sum(want)); !ok || !bytes.Equal(got, want) {
			t.Errorf("Object = %d bytes, %v, want %d bytes", len(got), ok, len(want))
		}
	}
	if got, ok := m.Object(block.Sum(nil)); ok {
		t.Errorf("Object of another = %q, want none", got)
	}
	if n, size := m.Objects(); n != 2 || size != int64(len(one)+len(two)) {
		t.Errorf("Objects = %d, %d, want 2, %d", n, size, len(one)+len(two))
	}
}

func TestObjectTooLong(t *testing.T) {
	w, err := Create(t.Context(), filepath.Join(t.TempDir(), "m.fl"), block.Zstd, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.AddObject(make([]byte, block.MaxObject+1)); err == nil || !strings.Contains(err.Error(), "over the limit") {
		t.Errorf("AddObject = %v, want it to name the limit", err)
	}
}
