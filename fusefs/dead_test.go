package fusefs

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/mounts"
	"overmount/internal/overlay"
	"overmount/internal/testenv"
	"overmount/tree/treetest"
)

func TestClearDead(t *testing.T) {
	m := mountTree(t, Options{}, treetest.File{Path: "f", Mode: 0o644, Data: []byte("x")})
	killMount(t, m.dir)
	killMount(t, m.dir)
	if n, err := ClearDead(t.Context(), m.dir); n != 2 || err != nil {
		t.Errorf("ClearDead = %d, %v, want the 2 dead mounts", n, err)
	}
	if n, err := ClearDead(t.Context(), m.dir); n != 0 || err != nil {
		t.Errorf("ClearDead of a mount that answers = %d, %v, want it left alone", n, err)
	}
	if got, _, err := run(t, "cat", m.path("f")); got != "x" || err != nil {
		t.Errorf("cat f = %q, %v", got, err)
	}
}

func TestClearDeadOfNothing(t *testing.T) {
	testenv.Root(t, "mounting")
	dir := t.TempDir()
	for _, at := range []string{dir, filepath.Join(dir, "none"), filepath.Join(dir, "none/none")} {
		if n, err := ClearDead(t.Context(), at); n != 0 || err != nil {
			t.Errorf("ClearDead(%s) = %d, %v, want nothing", at, n, err)
		}
	}
	if err := unix.Mount("other", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if n, err := ClearDead(t.Context(), dir); n != 0 || err != nil {
		t.Errorf("ClearDead of a tmpfs = %d, %v, want nothing", n, err)
	}
	if m, err := mounts.Top(dir); m == nil || err != nil {
		t.Errorf("Top = %v, %v, want the tmpfs", m, err)
	}
}

// An overlay answers much by itself when what is below it has died.
func TestClearDeadBelowOverlay(t *testing.T) {
	testenv.FUSE(t)
	target := t.TempDir()
	s, err := overlay.Prepare(target, &overlay.Options{Writable: true, RunDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	man, mem := treetest.Build(t, block.Zstd, treetest.File{Path: "f", Mode: 0o644, Data: []byte("x")})
	m, err := Mount(t.Context(), s.Lower(), newTree(man, mem), nil)
	if err != nil {
		t.Fatal(err)
	}
	way := t.TempDir() // to what is below
	if err := unix.Mount(s.Lower(), way, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(way, unix.MNT_DETACH)
	if _, err := s.Mount(); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	if n, err := ClearDead(t.Context(), target); n != 0 || err != nil {
		t.Errorf("ClearDead of an overlay that works = %d, %v, want it left alone", n, err)
	}
	if err := unix.Unmount(way, unix.MNT_FORCE|unix.MNT_DETACH); err != nil { // which breaks the connection
		t.Fatal(err)
	}
	<-m.Done()
	if n, err := ClearDead(t.Context(), target); n != 1 || err != nil {
		t.Errorf("ClearDead of an overlay over a dead mount = %d, %v, want 1", n, err)
	}
}

// A mount that does not answer is not taken for a dead one, and does not hold up
// those who look.
func TestClearDeadDoesNotWait(t *testing.T) {
	testenv.FUSE(t)
	dir := t.TempDir()
	fd, err := mountRoot(dir, (&Options{}).filled())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
	defer closeFD(fd)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if n, err := ClearDead(ctx, dir); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ClearDead of a mount that hangs = %d, %v, want a deadline exceeded", n, err)
	}
	if m, err := mounts.Top(dir); m == nil || err != nil {
		t.Errorf("Top = %v, %v, want the mount left alone", m, err)
	}
}
