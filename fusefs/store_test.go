package fusefs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

// readCounter counts READs.
type readCounter struct{ begun, ended atomic.Int64 }

func (c *readCounter) Read(manifest.Ino, int64, int) func(error) {
	c.begun.Add(1)
	return func(error) { c.ended.Add(1) }
}

// storeAll stores a whole file, block by block.
func storeAll(tb testing.TB, m *mounted, ino manifest.Ino) error {
	tb.Helper()
	for i := range m.t.Manifest().Blocks(ino) {
		plain, err := m.t.Prefetch(tb.Context(), ino, i)
		if err != nil {
			tb.Fatal(err)
		}
		if err := m.Store(ino, int64(i)*block.Size, plain); err != nil {
			return err
		}
	}
	return nil
}

// Files that nobody has looked at are stored and then read: from the page cache,
// with no request, and with the right bytes up to the last.
func TestReadingWhatWasStoredMakesNoRequest(t *testing.T) {
	var files []treetest.File
	for i, size := range []int{0, 1, 4095, 4096, 4097, block.Size - 1, block.Size, block.Size + 1, 5*block.Size/2 + 77} {
		files = append(files, treetest.File{Path: fmt.Sprintf("kernel/drivers/net/%d.ko", size), Data: treetest.Random(uint64(i), size)})
	}
	files = append(files, treetest.File{Path: "kernel/zlink.ko", LinkTo: "kernel/drivers/net/4097.ko"})
	testenv.PageCache(t, func() error { return readStored(t, files) })
}

// readStored stores files, the last of which is a second name of another, reads them,
// and fails if that made requests.
func readStored(t *testing.T, files []treetest.File) error {
	t.Helper()
	var reads readCounter
	m := mountTree(t, Options{Watcher: &reads, Debug: true}, files...)
	for _, f := range files {
		if err := storeAll(t, m, find(t, m, f.Path)); err != nil {
			t.Errorf("Store(%s) = %v", f.Path, err)
		}
	}
	requests := m.src.Total()
	m.log.take()
	seen := walk(t, m.dir)
	for _, f := range files[:len(files)-1] {
		if got, want := seen[f.Path].SHA256, fmt.Sprintf("%x", sha256.Sum256(f.Data)); got != want {
			t.Errorf("SHA-256 of %s = %s, want %s", f.Path, got, want)
		}
	}
	log := m.log.take()
	if !strings.Contains(log, "READDIRPLUS n") {
		t.Errorf("the log of requests has no READDIRPLUS:\n%.1000s", log)
	}
	n, got := reads.begun.Load(), m.src.Total()-requests
	if n != 0 || got != 0 || strings.Contains(log, ": READ n") {
		return fmt.Errorf("reading what was stored made %d READs, and %d requests to the store, want none:\n%s", n, got, around(log, ": READ n"))
	}
	return nil
}

// around returns a part of a text: that with some words, or else the beginning.
func around(text, words string) string {
	const most = 1000
	at := max(strings.Index(text, words), 0)
	return text[max(at-most, 0):min(at+most, len(text))]
}

// What the kernel drops, it asks for again.
func TestReadingWhatWasNotStoredIsCounted(t *testing.T) {
	testenv.PageCache(t, func() error {
		var reads readCounter
		m := mountTree(t, Options{Watcher: &reads}, treetest.File{Path: "a.ko", Data: treetest.Random(1, 2*block.Size)})
		plain, err := m.t.Prefetch(t.Context(), find(t, m, "a.ko"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Store(find(t, m, "a.ko"), 0, plain); err != nil {
			t.Fatal(err)
		}
		if _, stderr, err := run(t, "cat", m.path("a.ko")); err != nil {
			t.Fatalf("cat: %v: %s", err, stderr)
		}
		if begun, ended := reads.begun.Load(), reads.ended.Load(); begun == 0 || begun != ended {
			t.Errorf("reading a file of which half was stored made %d READs, %d of them ended; want some, all ended", begun, ended)
		}
		if got := m.src.Total(); got != 2 {
			return fmt.Errorf("the store was asked %d times, want once for each block", got)
		}
		return nil
	})
}

func TestStoreRefuses(t *testing.T) {
	m := mountTree(t, Options{}, treetest.File{Path: "d/a", Data: treetest.Random(1, 10_000)})
	a, d := find(t, m, "d/a"), find(t, m, "d")
	for _, test := range []struct {
		ino  manifest.Ino
		off  int64
		n    int
		want bool
	}{
		{a, 0, 10_000, true}, {a, 0, 4096, true}, {a, 8192, 10_000 - 8192, true}, {a, 4096, 0, true},
		{a, 0, 10_001, false}, {a, 0, 12_288, false}, {a, 0, 9_999, false}, {a, 1, 4096, false},
		{a, 12_288, 4096, false}, {a, -4096, 4096, false}, {d, 0, 4096, false},
	} {
		if err := m.Store(test.ino, test.off, make([]byte, test.n)); (err == nil) != test.want {
			t.Errorf("Store(%d, %d, %d bytes) = %v, want success %v", test.ino, test.off, test.n, err, test.want)
		}
	}
	if err := m.Unmount(); err != nil {
		t.Fatal(err)
	}
	m.wait(t)
	if err := m.Store(a, 0, make([]byte, 4096)); err == nil {
		t.Error("Store after the end of the mount succeeds, want an error")
	}
}

// The pages of a READ under way are locked: whoever stored them would wait for the
// READ, which may be for ever.
func TestStoreDoesNotWaitForARead(t *testing.T) {
	data := treetest.Random(1, 3*block.Size)
	m := mountTree(t, Options{}, treetest.File{Path: "a", Data: data}, treetest.File{Path: "b", Data: data[:100]})
	gate := storetest.NewGate()
	m.src.Always(storetest.Through(gate))
	cmd, _, out := shell(t, `exec head -c 1 "$0"`, m.path("a"))
	<-gate.Arrived()
	if err := m.Store(find(t, m, "a"), 0, data[:block.Size]); !errors.Is(err, errRead) {
		t.Errorf("Store of what is being read = %v, want %v", err, errRead)
	}
	if err := m.Store(find(t, m, "b"), 0, data[:100]); err != nil {
		t.Errorf("Store of another file = %v", err)
	}
	gate.Open()
	if got := readLine(t, out); len(got) > 1 {
		t.Errorf("head printed %q", got)
	}
	cmd.Wait()
}

// Many read and many store the same files at once: all bytes are right, and nobody
// waits for ever. A READ may wait for one that stores, never the reverse.
func TestStoreAmongReaders(t *testing.T) {
	var files []treetest.File
	for i := range 12 {
		data := treetest.Random(uint64(i), (i%4)*block.Size+i*1000+1)
		files = append(files, treetest.File{Path: fmt.Sprintf("%x", sha256.Sum256(data)), Data: data})
	}
	m := mountTree(t, Options{}, files...)
	var wg sync.WaitGroup
	for round := range 4 {
		wg.Go(func() {
			for i := range files {
				ino := find(t, m, files[(i+3*round)%len(files)].Path)
				for b := range m.t.Manifest().Blocks(ino) {
					if plain, err := m.t.Prefetch(t.Context(), ino, b); err != nil {
						t.Error(err)
					} else if err := m.Store(ino, int64(b)*block.Size, plain); err != nil && !errors.Is(err, errRead) {
						t.Error(err)
					}
				}
			}
		})
	}
	paths := make([]string, len(files))
	for i, f := range files {
		paths[i] = m.path(f.Path)
	}
	if _, stderr, err := runHelperProgram(t, "parallel", paths...); err != nil {
		t.Errorf("parallel: %v: %s", err, stderr)
	}
	wg.Wait()
}

// A block that fails is not stored, and a Store is never of what was not checked:
// both are the caller's, so this is of tree.Prefetch with a mount around it.
func TestNothingBadIsStored(t *testing.T) {
	m := mountTree(t, Options{}, treetest.File{Path: "a", Data: treetest.Random(1, 5000)})
	m.src.Next(storetest.WrongBytes(), storetest.WrongBytes(), storetest.Fail(store.ErrNotFound))
	for range 2 {
		if _, err := m.t.Prefetch(t.Context(), find(t, m, "a"), 0); err == nil {
			t.Error("Prefetch of a block that is not there = nil, want an error")
		}
	}
	stdout, stderr, err := run(t, "cat", m.path("a"))
	if err != nil || !bytes.Equal([]byte(stdout), treetest.Random(1, 5000)) {
		t.Errorf("cat after failed prefetch = %d bytes, %v: %s", len(stdout), err, stderr)
	}
}

func find(tb testing.TB, m *mounted, name string) manifest.Ino {
	tb.Helper()
	ino, err := m.t.Manifest().Find(name)
	if err != nil {
		tb.Fatal(err)
	}
	return ino
}

// Storing looks files up, which makes a mount busy for moments at a time. That keeps
// nobody from unmounting it.
func TestUnmountAmongStores(t *testing.T) {
	var files []treetest.File
	for i := range 500 {
		files = append(files, treetest.File{Path: fmt.Sprintf("d%d/f%d", i%50, i), Data: []byte("x")})
	}
	m := mountTree(t, Options{}, files...)
	inos := make([]manifest.Ino, len(files))
	for i := range files {
		inos[i] = find(t, m, files[i].Path)
	}
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for w := range 4 {
		wg.Go(func() {
			for i := w; ; i += 4 {
				if err := m.Store(inos[i%len(inos)], 0, []byte("x")); err != nil {
					return // the mount is gone
				}
				if i == w {
					started <- struct{}{}
				}
				if i > 1_000_000 {
					t.Error("the mount is still there")
					return
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	if err := Unmount(m.dir, false); err != nil {
		t.Error(err)
		unmountNow(m.dir)
	}
	m.wait(t)
	wg.Wait()
}

func unmountNow(dir string) { unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) }
