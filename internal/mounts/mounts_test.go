package mounts

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
)

func TestTop(t *testing.T) {
	testenv.Root(t, "mounting")
	dir := t.TempDir()
	if m, err := Top(dir); m != nil || err != nil {
		t.Errorf("Top of a directory = %v, %v, want nothing", m, err)
	}
	for _, source := range []string{"first", "second"} {
		if err := unix.Mount(source, dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		if m, err := Top(dir); err != nil || m == nil || m.Source != source {
			t.Errorf("Top = %v, %v, want %s", m, err, source)
		}
	}
}

func TestTopOfMoved(t *testing.T) {
	below := &mountinfo.Info{ID: 90, Parent: 20, Source: "below"}
	moved := &mountinfo.Info{ID: 70, Parent: 90, Source: "moved"}
	if got := top([]*mountinfo.Info{moved, below}); got != moved {
		t.Errorf("top = %v, want the mount whose parent is the other", got)
	}
}

func TestPlace(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if got, err := Place(filepath.Join(dir, "link", "x")); got != filepath.Join(dir, "x") || err != nil {
		t.Errorf("Place = %q, %v, want the parent resolved", got, err)
	}
	if got, err := Place(filepath.Join(dir, "link")); got != filepath.Join(dir, "link") || err != nil {
		t.Errorf("Place = %q, %v, want the last name as it is", got, err)
	}
	if got, err := Place("/"); got != "/" || err != nil {
		t.Errorf("Place(/) = %q, %v", got, err)
	}
}

func TestRootType(t *testing.T) {
	if got, err := RootType(); got == "" || err != nil {
		t.Errorf("RootType = %q, %v, want a type", got, err)
	}
}
