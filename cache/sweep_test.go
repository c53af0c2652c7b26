package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
)

// age makes each entry an hour younger than the one before.
func age(t *testing.T, dir string, ids []block.ID) {
	t.Helper()
	for i, id := range ids {
		used := time.Now().Add(-time.Duration(len(ids)-i) * time.Hour)
		must(t, os.Chtimes(path(dir, id), used, used))
	}
}

func TestOldestGoFirst(t *testing.T) {
	dir := t.TempDir()
	src := newSource(20, 4000)
	fill(t, dir, src)
	age(t, dir, src.ids)
	// Twenty entries of 4 KiB where ten may be: nine stay.
	c := open(t, dir, src, Options{MaxBytes: 10 * 4096})
	<-c.swept
	if diff := cmp.Diff(src.ids[11:], held(dir, src.ids)); diff != "" {
		t.Errorf("entries left (-want +got):\n%s", diff)
	}
	if s := c.Stats(); s.Evicted != 11 || s.Bytes != 9*4096 {
		t.Errorf("Stats = %+v, want 11 evicted and 9 pages left", s)
	}
}

func TestReadingKeeps(t *testing.T) {
	dir := t.TempDir()
	src := newSource(20, 4000)
	fill(t, dir, src)
	age(t, dir, src.ids)
	used := []block.ID{src.ids[0], src.ids[5]}
	reader := open(t, dir, nil, Options{})
	get(t, reader, src, used...)
	must(t, reader.Close())
	c := open(t, dir, src, Options{MaxBytes: 10 * 4096})
	<-c.swept
	if diff := cmp.Diff(slices.Concat(used, src.ids[13:]), held(dir, src.ids)); diff != "" {
		t.Errorf("entries left (-want +got):\n%s", diff)
	}
}

func TestPinsStay(t *testing.T) {
	dir := t.TempDir()
	src := newSource(20, 4000)
	fill(t, dir, src)
	age(t, dir, src.ids)
	at, release := stopAt("scan")
	c := open(t, dir, src, Options{MaxBytes: 10 * 4096, at: at})
	c.Pin(src.ids[0], src.ids[1], src.ids[2], src.ids[2])
	c.Unpin(src.ids[1], src.ids[2])
	before := time.Now()
	release()
	<-c.swept
	pinned := []block.ID{src.ids[0], src.ids[2]}
	if diff := cmp.Diff(slices.Concat(pinned, src.ids[13:]), held(dir, src.ids)); diff != "" {
		t.Errorf("entries left (-want +got):\n%s", diff)
	}
	// Others see that they are in use.
	if got := atime(t, path(dir, src.ids[0])); got.Before(before.Add(-time.Second)) {
		t.Errorf("time of use of a pinned entry is %v, want now", got)
	}
}

func TestPinsOverTheLimit(t *testing.T) {
	dir := t.TempDir()
	src := newSource(12, 4000)
	var log journal
	c := open(t, dir, src, Options{MaxBytes: 10 * 4096, Logger: log.logger()})
	<-c.swept
	c.Pin(src.ids...)
	for _, id := range src.ids {
		get(t, c, src, id)
		flush(t, c)
	}
	if diff := cmp.Diff(src.ids[:10], held(dir, src.ids)); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if s := c.State(); s != ReadOnly || len(log.lines("no room")) != 1 {
		t.Errorf("State = %v, log = %q, want read-only and one line", s, log.lines())
	}
	get(t, c, src, src.ids[0])
	if s := c.Stats(); s.Hits != 1 {
		t.Errorf("Stats = %+v, want one hit: what is there is served", s)
	}
	must(t, c.Close())

	// Nothing is wrong until something has to be written.
	at, release := stopAt("scan")
	later := open(t, dir, nil, Options{MaxBytes: 5 * 4096, at: at})
	later.Pin(src.ids...)
	release()
	<-later.swept
	if s := later.State(); s != Working {
		t.Errorf("State = %v after a count of pinned entries over the limit, want working", s)
	}
}

func TestSizeIsBoundedWhileFilling(t *testing.T) {
	dir := t.TempDir()
	src := newSource(300, 4000)
	const limit = 64 * 4096
	c := open(t, dir, src, Options{MaxBytes: limit, QueueBytes: 1 << 30})
	<-c.swept
	for range 3 {
		get(t, c, src, src.ids...)
	}
	flush(t, c)
	if n := len(held(dir, src.ids)); n*4096 > limit+maxWriters*4096 || n < 32 {
		t.Errorf("%d entries are kept, want up to 64", n)
	}
	if s := c.Stats(); s.State != Working || s.Evicted == 0 {
		t.Errorf("Stats = %+v, want a working cache that evicted", s)
	}
}

// On a file system that records no use, Get does, but not each time.
func TestUseIsRecordedNowAndThen(t *testing.T) {
	dir := tmpfs(t, 1<<20, unix.MS_NOATIME)
	src := newSource(1, 4000)
	fill(t, dir, src)
	file := path(dir, src.ids[0])
	c := open(t, dir, nil, Options{})
	for _, tc := range []struct {
		age     time.Duration
		updated bool
	}{
		{touchAfter - time.Minute, false},
		{touchAfter + time.Minute, true},
		{-touchAfter - time.Minute, true}, // a clock was wrong
	} {
		mtime := time.Now().Add(-24 * time.Hour)
		set := time.Now().Add(-tc.age)
		must(t, os.Chtimes(file, set, mtime))
		get(t, c, src, src.ids...)
		got := atime(t, file)
		if updated := !got.Equal(set); updated != tc.updated {
			t.Errorf("entry used %v ago: time of use updated = %v, want %v", tc.age, updated, tc.updated)
		}
		if d := time.Since(got); tc.updated && d.Abs() > time.Minute {
			t.Errorf("entry used %v ago: after Get, its use is %v ago", tc.age, d)
		}
		if fi, err := os.Stat(file); err != nil || !fi.ModTime().Equal(mtime) {
			t.Errorf("mtime is %v, %v, want it unchanged", fi.ModTime(), err)
		}
	}
}

func TestOldTemporaryFilesGo(t *testing.T) {
	dir := t.TempDir()
	src := newSource(1, 4000)
	fill(t, dir, src)
	shard := filepath.Dir(path(dir, src.ids[0]))
	hour := time.Now().Add(-staleTemp - time.Minute)
	for name, stays := range map[string]bool{
		".tmp-0123":                   false,
		".tmp-4567":                   true, // young, see below
		"README":                      true,
		block.ID{}.String():           true, // in the wrong place, unless the shard is 00
		src.ids[0].String() + "-save": true,
	} {
		file := filepath.Join(shard, name)
		must(t, os.WriteFile(file, []byte("x"), 0o600))
		if name != ".tmp-4567" {
			must(t, os.Chtimes(file, hour, hour))
		}
		defer func() {
			if _, err := os.Lstat(file); (err == nil) != stays {
				t.Errorf("after the sweep: Lstat(%s) = %v, want it to stay = %v", name, err, stays)
			}
		}()
	}
	c := open(t, dir, src, Options{})
	<-c.swept
	if s := c.Stats(); s.Bytes != 4096 {
		t.Errorf("Stats = %+v, want one entry of a page counted", s)
	}
}

// The count of a huge old cache keeps nobody waiting.
func TestNobodyWaitsForTheCount(t *testing.T) {
	dir := t.TempDir()
	old := newSource(1, 4000)
	fill(t, dir, old)
	n := 20000
	populate(t, dir, n)
	at, release := stopAt("scan")
	defer release()
	src := newSource(3, 5000)
	c := open(t, dir, src, Options{at: at})
	get(t, c, old, old.ids...)
	get(t, c, src, src.ids...)
	flush(t, c)
	get(t, c, src, src.ids...)
	select {
	case <-c.swept:
		t.Fatal("the count is done: the test shows nothing")
	default:
	}
	if s := c.Stats(); s.Hits != 4 || s.Filled != 3 {
		t.Errorf("Stats = %+v, want 4 hits and 3 filled while the count has not begun", s)
	}
	release()
	<-c.swept
	if got, want := c.Stats().Bytes, int64(n+1+2*3)*4096; got < want {
		t.Errorf("after the count Bytes = %d, want at least %d", got, want)
	}
}

// populate makes n entries of one byte.
func populate(t testing.TB, dir string, n int) {
	t.Helper()
	for i := range 256 {
		must(t, os.MkdirAll(filepath.Join(dir, "v1", fmt.Sprintf("%02x", i)), 0o700))
	}
	first := path(dir, block.ID{})
	must(t, os.WriteFile(first, []byte("x"), 0o600))
	for i := 1; i < n; i++ {
		// Links are made faster than files, but ext4 takes 65,000 of a file.
		if i%50000 == 0 {
			first = path(dir, numbered(i))
			must(t, os.WriteFile(first, []byte("x"), 0o600))
			continue
		}
		must(t, os.Link(first, path(dir, numbered(i))))
	}
}

func numbered(i int) block.ID { return block.ID{byte(i), byte(i >> 8), byte(i >> 16), 1} }

func TestAnotherProcessSweeps(t *testing.T) {
	dir := t.TempDir()
	src := newSource(20, 4000)
	c := open(t, dir, src, Options{MaxBytes: 10 * 4096})
	<-c.swept
	lock, err := os.OpenFile(filepath.Join(dir, "v1", "lock"), os.O_RDWR, 0)
	must(t, err)
	defer lock.Close()
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))

	// It reads and writes, up to the limit, and drops what exceeds it.
	for _, id := range src.ids {
		get(t, c, src, id)
		flush(t, c)
	}
	if diff := cmp.Diff(src.ids[:10], held(dir, src.ids)); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if s := c.Stats(); s.State != Working || s.Dropped != 10 {
		t.Errorf("Stats = %+v, want a working cache that dropped 10", s)
	}
	must(t, lock.Close())
	get(t, c, src, src.ids[19])
	flush(t, c)
	if s := c.Stats(); s.Evicted == 0 || len(held(dir, src.ids[19:])) != 1 {
		t.Errorf("Stats = %+v, want room made for the last object", s)
	}
}

func TestTwoCachesInOneDirectory(t *testing.T) {
	dir := t.TempDir()
	src := newSource(200, 4000)
	const limit = 50 * 4096
	var wg sync.WaitGroup
	for i := range 2 {
		c := open(t, dir, src, Options{MaxBytes: limit})
		for j := range 2 {
			wg.Go(func() {
				for k := range 600 {
					id := src.ids[(k*(7+2*i)+j*91)%len(src.ids)]
					if object, err := c.Get(t.Context(), id); err != nil || block.Sum(object) != id {
						t.Errorf("Get(%v) = %d bytes, %v", id, len(object), err)
					}
					if k%50 == 0 {
						c.Forget(id)
					}
				}
			})
		}
	}
	wg.Wait()
	c := open(t, dir, src, Options{MaxBytes: limit})
	<-c.swept
	checkDir(t, dir)
}

// checkDir fails for an entry that is not what its name says.
func checkDir(t *testing.T, dir string) (entries, temps int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		id, idErr := block.ParseID(filepath.Base(p))
		switch {
		case idErr == nil:
			entries++
			if object, err := os.ReadFile(p); err == nil && block.Sum(object) != id {
				t.Errorf("entry %s holds %d other bytes", p, len(object))
			}
		case filepath.Base(p) != "lock" && !d.IsDir():
			temps++
		}
		return nil
	}))
	return entries, temps
}

// What others write becomes known: in time, or when this process has written an
// eighth of the limit, or once the other's sweep has ended.
func TestOthersAreCounted(t *testing.T) {
	const limit = 80 * 4096
	others, own := newSource(30, 4000), newSource(41, 4000)
	own.ids = own.ids[30:]
	start := func(t *testing.T) (dir string, c *Cache) {
		dir = t.TempDir()
		c = open(t, dir, own, Options{MaxBytes: limit})
		synctest.Wait()
		fill(t, dir, others)
		if got := c.Stats().Bytes; got != 0 {
			t.Fatalf("Bytes = %d, want what was there at first", got)
		}
		return dir, c
	}
	check := func(t *testing.T, c *Cache, n int64) {
		t.Helper()
		synctest.Wait()
		if got := c.Stats().Bytes; got != n*4096 {
			t.Errorf("Bytes = %d, want %d pages", got, n)
		}
		must(t, c.Close())
	}
	synctest.Test(t, func(t *testing.T) {
		_, c := start(t)
		time.Sleep(sweepEvery)
		check(t, c, 30)
	})
	synctest.Test(t, func(t *testing.T) {
		_, c := start(t)
		get(t, c, own, own.ids...)
		flush(t, c)
		check(t, c, 41)
	})
	synctest.Test(t, func(t *testing.T) {
		dir, c := start(t)
		lock, err := os.Open(filepath.Join(dir, "v1", "lock"))
		must(t, err)
		must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
		time.Sleep(sweepEvery)
		synctest.Wait()
		must(t, lock.Close())
		time.Sleep(busyPause)
		check(t, c, 30)
	})
}

func TestCloseEndsTheCount(t *testing.T) {
	dir := t.TempDir()
	populate(t, dir, 1000)
	gate := make(chan struct{})
	started := make(chan struct{}, 256)
	c := open(t, dir, nil, Options{at: func(step string) error {
		if step == "scan" {
			started <- struct{}{}
			<-gate
		}
		return nil
	}})
	<-started
	go func() {
		<-c.stop
		close(gate)
	}()
	must(t, c.Close())
	if n := len(started); n != 0 {
		t.Errorf("%d of 256 directories were read after Close", n)
	}
}
