package cache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store"
)

// A source is a store of n objects that counts what it is asked.
type source struct {
	ids     []block.ID
	objects map[block.ID][]byte

	mu   sync.Mutex
	gets map[block.ID]int
}

// newSource makes n objects of size random bytes, the same ones each time.
func newSource(n, size int) *source {
	s := &source{objects: make(map[block.ID][]byte), gets: make(map[block.ID]int)}
	for i := range n {
		var seed [32]byte
		binary.LittleEndian.PutUint64(seed[:], uint64(i))
		object := make([]byte, size)
		rand.NewChaCha8(seed).Read(object)
		id := block.Sum(object)
		s.ids = append(s.ids, id)
		s.objects[id] = object
	}
	return s
}

func (s *source) Get(_ context.Context, id block.ID) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets[id]++
	if object := s.objects[id]; object != nil {
		return object, nil
	}
	return nil, fmt.Errorf("object %v: %w", id, store.ErrNotFound)
}

// asked returns how many Gets the source saw, of all objects together.
func (s *source) asked() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.gets {
		n += k
	}
	return n
}

// open returns a cache that is closed when the test ends. It leaves no space
// free unless opts says so: tests must pass on a full disk, too.
func open(t testing.TB, dir string, src store.Reader, opts Options) *Cache {
	t.Helper()
	if opts.MinFree == 0 {
		opts.MinFree = -1
	}
	c, err := New(dir, src, &opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// get gets every object of src from c, and checks it.
func get(t testing.TB, c *Cache, src *source, ids ...block.ID) {
	t.Helper()
	for _, id := range ids {
		object, err := c.Get(t.Context(), id)
		if err != nil {
			t.Fatalf("Get(%v): %v", id, err)
		}
		if !bytes.Equal(object, src.objects[id]) {
			t.Fatalf("Get(%v) returned %d wrong bytes", id, len(object))
		}
	}
}

func flush(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// fill puts every object of src into dir.
func fill(t testing.TB, dir string, src *source) {
	t.Helper()
	c := open(t, dir, src, Options{QueueBytes: 1 << 40})
	get(t, c, src, src.ids...)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, id := range src.ids {
		if _, err := os.Stat(path(dir, id)); err != nil {
			t.Fatal(err)
		}
	}
	clear(src.gets)
}

// path is where the package comment says that an entry is.
func path(dir string, id block.ID) string {
	return filepath.Join(dir, "v1", id.String()[:2], id.String())
}

// held returns which of the IDs have an entry in dir.
func held(dir string, ids []block.ID) (found []block.ID) {
	for _, id := range ids {
		if _, err := os.Lstat(path(dir, id)); err == nil {
			found = append(found, id)
		}
	}
	return found
}

// A journal keeps log lines.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// lines returns the lines that contain all of words.
func (j *journal) lines(words ...string) (found []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
next:
	for line := range strings.Lines(j.buf.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// stopAt returns a hook that lets nobody past a step until release is called.
func stopAt(step string) (at func(string) error, release func()) {
	gate := make(chan struct{})
	at = func(s string) error {
		if s == step {
			<-gate
		}
		return nil
	}
	return at, sync.OnceFunc(func() { close(gate) })
}

func TestSecondReaderNeedsNoSource(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "cache")
	src := newSource(5, 10000)
	c := open(t, dir, src, Options{})
	get(t, c, src, src.ids...)
	flush(t, c)
	get(t, c, src, src.ids...)
	if n := src.asked(); n != 5 {
		t.Errorf("source was asked %d times for 5 objects", n)
	}
	want := Stats{Hits: 5, Misses: 5, Filled: 5, Bytes: 5 * 12288}
	<-c.swept
	c.sweepNow() // what was written while the first sweep ran is now counted once
	if diff := cmp.Diff(want, c.Stats()); diff != "" {
		t.Errorf("Stats (-want +got):\n%s", diff)
	}

	object, err := os.ReadFile(path(dir, src.ids[0]))
	if err != nil || !bytes.Equal(object, src.objects[src.ids[0]]) {
		t.Errorf("entry holds %d bytes, %v, want the object as it is", len(object), err)
	}
	fi, err := os.Stat(path(dir, src.ids[0]))
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode of the entry is %v, %v, want 0600", fi.Mode(), err)
	}

	later := open(t, dir, nil, Options{})
	get(t, later, src, src.ids...)
}

func TestObjectInQueueIsServed(t *testing.T) {
	at, release := stopAt("create")
	defer release()
	src := newSource(1, 5000)
	c := open(t, t.TempDir(), src, Options{at: at})
	get(t, c, src, src.ids[0], src.ids[0], src.ids[0])
	if n := src.asked(); n != 1 {
		t.Errorf("source was asked %d times, want once", n)
	}
	if s := c.Stats(); s.Queued != 5000 || s.Hits != 2 {
		t.Errorf("Stats = %+v, want 5000 bytes queued and 2 hits", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Flush behind a stopped disk = %v, want context.Canceled", err)
	}
	release()
	flush(t, c)
	if s := c.Stats(); s.Queued != 0 || s.Filled != 1 {
		t.Errorf("Stats = %+v, want nothing queued and one filled", s)
	}
}

func TestFullQueueDrops(t *testing.T) {
	at, release := stopAt("create")
	defer release()
	dir := t.TempDir()
	src := newSource(10, 5000)
	c := open(t, dir, src, Options{QueueBytes: 30000, at: at})
	get(t, c, src, src.ids...)
	if s := c.Stats(); s.Dropped != 4 || s.Queued != 30000 {
		t.Errorf("Stats = %+v, want 4 dropped and 30000 queued", s)
	}
	release()
	flush(t, c)
	if diff := cmp.Diff(src.ids[:6], held(dir, src.ids)); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	get(t, c, src, src.ids...)
	flush(t, c)
	if n := len(held(dir, src.ids)); n != 10 {
		t.Errorf("%d of 10 objects are kept when they are read again", n)
	}
}

func TestSmallQueueTakesAnyObject(t *testing.T) {
	dir := t.TempDir()
	src := newSource(1, 5000)
	c := open(t, dir, src, Options{QueueBytes: 1})
	get(t, c, src, src.ids...)
	flush(t, c)
	if len(held(dir, src.ids)) != 1 {
		t.Error("an object larger than the queue was not kept by an idle cache")
	}
}

func TestErrorsOfTheSource(t *testing.T) {
	src := newSource(0, 0)
	c := open(t, t.TempDir(), src, Options{})
	for range 2 {
		if _, err := c.Get(t.Context(), block.ID{1}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get of a missing object = %v, want ErrNotFound", err)
		}
	}
	if n := src.asked(); n != 2 {
		t.Errorf("source was asked %d times, want 2: absence is not kept", n)
	}
}

func TestImpossibleObjectsAreNotKept(t *testing.T) {
	for _, size := range []int{0, block.MaxObject + 1} {
		dir := t.TempDir()
		src := newSource(1, size)
		c := open(t, dir, src, Options{})
		get(t, c, src, src.ids...)
		flush(t, c)
		if len(held(dir, src.ids)) != 0 {
			t.Errorf("object of %d bytes is kept", size)
		}
		must(t, os.MkdirAll(filepath.Dir(path(dir, src.ids[0])), 0o700))
		must(t, os.WriteFile(path(dir, src.ids[0]), src.objects[src.ids[0]], 0o600))
		get(t, c, src, src.ids...)
		if n := src.asked(); n != 2 {
			t.Errorf("source was asked %d times, want 2: an entry of %d bytes is none", n, size)
		}
	}
}

// must fails the test for what should not fail.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var damages = map[string]func(t *testing.T, path string){
	"flipped bit": func(t *testing.T, path string) {
		b, err := os.ReadFile(path)
		must(t, err)
		b[len(b)/2] ^= 4
		must(t, os.WriteFile(path, b, 0o600))
	},
	"truncated": func(t *testing.T, path string) { must(t, os.Truncate(path, 4999)) },
	"empty":     func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) },
	"longer":    func(t *testing.T, path string) { must(t, os.Truncate(path, 5001)) },
	"too long":  func(t *testing.T, path string) { must(t, os.Truncate(path, block.MaxObject+1)) },
	"directory": func(t *testing.T, path string) {
		must(t, os.Remove(path))
		must(t, os.Mkdir(path, 0o700))
	},
	"other object": func(t *testing.T, path string) {
		must(t, os.WriteFile(path, newSource(9, 5000).objects[newSource(9, 5000).ids[8]], 0o600))
	},
}

func TestBadEntryIsFetchedAgain(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			src := newSource(2, 5000)
			fill(t, dir, src)
			damage(t, path(dir, src.ids[0]))
			var log journal
			c := open(t, dir, src, Options{Logger: log.logger()})
			get(t, c, src, src.ids...)
			flush(t, c)
			if n := src.asked(); n != 1 {
				t.Errorf("source was asked %d times, want once", n)
			}
			if s := c.Stats(); s.Bad != 1 || s.State != Working {
				t.Errorf("Stats = %+v, want one bad entry and a working cache", s)
			}
			if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], src.ids[0].String()) {
				t.Errorf("log = %q, want one line that names the entry", lines)
			}
			get(t, open(t, dir, nil, Options{}), src, src.ids...)
		})
	}
}

// A file that was hashed before is hashed again when it is not the same file.
func TestDamageBehindTheBackIsFound(t *testing.T) {
	dir := t.TempDir()
	src := newSource(1, 5000)
	c := open(t, dir, src, Options{})
	get(t, c, src, src.ids...)
	flush(t, c)
	get(t, c, src, src.ids...)
	damages["flipped bit"](t, path(dir, src.ids[0]))
	must(t, os.Chtimes(path(dir, src.ids[0]), time.Time{}, time.Now().Add(-time.Hour)))
	get(t, c, src, src.ids...)
	if n := src.asked(); n != 2 {
		t.Errorf("source was asked %d times, want twice", n)
	}
}

func TestEntryIsHashedOnce(t *testing.T) {
	dir := t.TempDir()
	src := newSource(1, 5000)
	fill(t, dir, src)
	c := open(t, dir, src, Options{})
	get(t, c, src, src.ids...)
	// Now a change that leaves inode, mtime and length is not seen: nothing was
	// hashed. It is for the reader to call Forget.
	file := path(dir, src.ids[0])
	fi, err := os.Stat(file)
	must(t, err)
	damages["flipped bit"](t, file)
	must(t, os.Chtimes(file, time.Time{}, fi.ModTime()))
	object, err := c.Get(t.Context(), src.ids[0])
	if err != nil || bytes.Equal(object, src.objects[src.ids[0]]) {
		t.Fatalf("Get of a known file = right bytes, %v: the test damages nothing", err)
	}
	c.Forget(src.ids[0])
	get(t, c, src, src.ids...)
	if n := src.asked(); n != 1 {
		t.Errorf("source was asked %d times after Forget, want once", n)
	}
}

func TestMemoryOfHashedFilesIsBounded(t *testing.T) {
	c := open(t, t.TempDir(), nil, Options{})
	for i := range maxVerified + 100 {
		var id block.ID
		binary.LittleEndian.PutUint64(id[:], uint64(i))
		c.setVerified(id, stamp{})
	}
	if n := len(c.verified); n != maxVerified {
		t.Errorf("%d files are remembered, want %d", n, maxVerified)
	}
}

func TestForgetWhileQueued(t *testing.T) {
	for _, step := range []string{"create", "rename", "renamed"} {
		t.Run(step, func(t *testing.T) {
			reached := make(chan struct{}, 10)
			gate := make(chan struct{})
			at := func(s string) error {
				if s == step {
					reached <- struct{}{}
					<-gate
				}
				return nil
			}
			dir := t.TempDir()
			src := newSource(maxWriters+1, 5000)
			c := open(t, dir, src, Options{at: at})
			get(t, c, src, src.ids...)
			for range maxWriters {
				<-reached // and so the last object has no writer yet
			}
			for _, id := range src.ids {
				c.Forget(id)
			}
			if _, ok := c.waiting(src.ids[0]); ok {
				t.Error("a forgotten object is served from the queue")
			}
			close(gate)
			must(t, c.Close())
			if found := held(dir, src.ids); len(found) != 0 {
				t.Errorf("%d forgotten objects were kept", len(found))
			}
			if s := c.Stats(); s.Queued != 0 {
				t.Errorf("Stats = %+v, want nothing queued", s)
			}
		})
	}
}

func TestContext(t *testing.T) {
	dir := t.TempDir()
	src := newSource(1, 5000)
	fill(t, dir, src)
	reading := make(chan struct{})
	gate := make(chan struct{})
	defer close(gate)
	c := open(t, dir, src, Options{at: func(s string) error {
		if s == "read" {
			close(reading)
			<-gate
		}
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reading
		cancel()
	}()
	for range 2 { // the first Get is in the disk's hands, the second comes too late
		if _, err := c.Get(ctx, src.ids[0]); !errors.Is(err, context.Canceled) {
			t.Errorf("Get = %v, want context.Canceled", err)
		}
	}
	if n := src.asked(); n != 0 {
		t.Errorf("source was asked %d times for a reader who left", n)
	}
	if s := c.State(); s != Working {
		t.Errorf("State = %v after a reader left, want working", s)
	}
}

func TestCloseWritesWhatWaits(t *testing.T) {
	dir := t.TempDir()
	src := newSource(20, 5000)
	c := open(t, dir, src, Options{})
	get(t, c, src, src.ids...)
	for range 2 {
		must(t, c.Close())
	}
	if n := len(held(dir, src.ids)); n != 20 {
		t.Errorf("%d of 20 objects were kept", n)
	}
	select {
	case <-c.swept:
	default:
		t.Error("Close did not wait for the first count of the files")
	}
	get(t, c, src, src.ids...)
	if n := src.asked(); n != 40 {
		t.Errorf("source was asked %d times, want 40: a closed cache only asks it", n)
	}
	c.Forget(src.ids[0])
	if s := c.State(); s != Working {
		t.Errorf("State = %v after use of a closed cache, want working", s)
	}
}

// A cache in /run goes on when /run is moved to another root.
func TestCacheFollowsItsDirectory(t *testing.T) {
	parent := t.TempDir()
	dir, moved := filepath.Join(parent, "before"), filepath.Join(parent, "after")
	src := newSource(2, 5000)
	c := open(t, dir, src, Options{})
	get(t, c, src, src.ids[0])
	flush(t, c)
	must(t, os.Rename(dir, moved))
	get(t, c, src, src.ids...)
	flush(t, c)
	if n := len(held(moved, src.ids)); n != 2 || src.asked() != 2 {
		t.Errorf("%d entries in the moved directory after %d requests, want 2 and 2", n, src.asked())
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the cache made its old directory again: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	asRoot := func(t *testing.T) {
		if os.Geteuid() != 0 {
			testenv.Need(t, "only root can make files of other users")
		}
	}
	const other = 4242
	cases := map[string]struct {
		prepare func(t *testing.T, dir string) // dir does not exist yet
		want    string                         // in the error; empty: New must work
	}{
		"nothing there": {func(t *testing.T, dir string) {}, ""},
		"directory is ours": {func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o755))
		}, ""},
		"link is ours": {func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir+"2", 0o755))
			must(t, os.Symlink(dir+"2", dir))
		}, ""},
		"sticky": {func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o755))
			must(t, os.Chmod(dir, 0o777|fs.ModeSticky))
		}, ""},
		"file": {func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir, nil, 0o600))
		}, "not a directory"},
		"world-writable": {func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o755))
			must(t, os.Chmod(dir, 0o777))
		}, "writable by everyone"},
		"group-writable": {func(t *testing.T, dir string) {
			asRoot(t)
			must(t, os.Mkdir(dir, 0o755))
			must(t, os.Chown(dir, -1, other))
			must(t, os.Chmod(dir, 0o775))
		}, "writable by group 4242"},
		"of another user": {func(t *testing.T, dir string) {
			asRoot(t)
			must(t, os.Mkdir(dir, 0o755))
			must(t, os.Chown(dir, other, -1))
		}, "belongs to user 4242"},
		"link of another user": {func(t *testing.T, dir string) {
			asRoot(t)
			must(t, os.Mkdir(dir+"2", 0o755))
			must(t, os.Symlink(dir+"2", dir))
			must(t, os.Lchown(dir, other, -1))
		}, "belongs to user 4242"},
		"link to another user's": {func(t *testing.T, dir string) {
			asRoot(t)
			must(t, os.MkdirAll(dir+"2/3", 0o755))
			must(t, os.Chown(dir+"2", other, -1))
			must(t, os.Symlink(dir+"2/3", dir))
		}, "belongs to user 4242"},
		"v1 of another user": {func(t *testing.T, dir string) {
			asRoot(t)
			must(t, os.MkdirAll(dir+"/v1", 0o755))
			must(t, os.Chown(dir+"/v1", other, -1))
		}, "must be a directory of user 0"},
		"v1 writable": {func(t *testing.T, dir string) {
			must(t, os.MkdirAll(dir+"/v1", 0o755))
			must(t, os.Chmod(dir+"/v1", 0o777|fs.ModeSticky))
		}, "nobody else may write"},
		"v1 is a link": {func(t *testing.T, dir string) {
			must(t, os.MkdirAll(dir+"/v2", 0o700))
			must(t, os.Symlink("v2", dir+"/v1"))
		}, "must be a directory"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cache")
			tc.prepare(t, dir)
			c, err := New(dir, newSource(0, 0), nil)
			if err == nil {
				c.Close()
			}
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("New: %v", err)
			case tc.want != "" && err == nil:
				t.Errorf("New succeeded, want %q", tc.want)
			case tc.want != "" && !(strings.Contains(err.Error(), tc.want) && strings.Contains(err.Error(), dir)):
				t.Errorf("New: %v, want %q and the directory's name", err, tc.want)
			}
		})
	}
	for _, o := range []Options{{MaxBytes: -1}, {QueueBytes: -1}} {
		if _, err := New(t.TempDir(), nil, &o); err == nil {
			t.Errorf("New with %+v succeeded", o)
		}
	}
}

// Nothing may be made through the link of an attacker, not even a directory.
func TestNewMakesNothingBeforeItTrusts(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Need(t, "only root can make files of other users")
	}
	dir := t.TempDir()
	must(t, os.Symlink(filepath.Join(dir, "victim"), filepath.Join(dir, "link")))
	must(t, os.Mkdir(filepath.Join(dir, "victim"), 0o755))
	must(t, os.Lchown(filepath.Join(dir, "link"), 4242, -1))
	if _, err := New(filepath.Join(dir, "link", "sub"), nil, nil); err == nil {
		t.Error("New succeeded behind another user's link")
	}
	if _, err := os.Lstat(filepath.Join(dir, "victim", "sub")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("New made a directory behind another user's link: %v", err)
	}
}

// tmpfs mounts a tmpfs of size bytes, or skips.
func tmpfs(t testing.TB, size int, flags uintptr) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("overmount-test", dir, "tmpfs", flags, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		testenv.Need(t, fmt.Sprintf("mount a tmpfs: %v", err))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("umount %s: %v", dir, err)
		}
	})
	return dir
}

func atime(t testing.TB, path string) time.Time {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	return time.Unix(fi.Sys().(*syscall.Stat_t).Atim.Unix())
}

// On one processor a loop of hits leaves time for others: see yieldEvery.
func TestReadersLetOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	dir := t.TempDir()
	src := newSource(1, 50000)
	fill(t, dir, src)
	c := open(t, dir, nil, Options{})
	<-c.swept
	for range 20 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 20 {
				os.Lstat(dir)
			}
		}()
		for n := 0; ; n++ {
			get(t, c, src, src.ids...)
			select {
			case <-done:
			default:
				if n < 50000 {
					continue
				}
				t.Fatalf("%d hits went before 20 system calls of another goroutine", n)
			}
			break
		}
	}
}
