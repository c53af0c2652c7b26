package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The limits allow more than the disk has.
func TestFullDiskEvicts(t *testing.T) {
	dir := tmpfs(t, 2<<20, 0)
	src := newSource(60, 64<<10)
	var log journal
	c := open(t, dir, src, Options{Logger: log.logger()})
	for range 2 {
		for _, id := range src.ids {
			get(t, c, src, id)
			flush(t, c)
		}
	}
	s := c.Stats()
	if s.State != Working || s.Evicted == 0 || s.Dropped != 0 || len(log.lines()) != 0 {
		t.Errorf("Stats = %+v, log = %q, want a working cache that evicted and dropped nothing", s, log.lines())
	}
	if entries, temps := checkDir(t, dir); entries < 20 || temps != 0 {
		t.Errorf("%d entries and %d temporary files, want most of 2 MiB used and no rest", entries, temps)
	}
}

func TestFloorIsKept(t *testing.T) {
	const size, floor = 4 << 20, 1 << 20
	dir := tmpfs(t, size, 0)
	src := newSource(60, 64<<10)
	c := open(t, dir, src, Options{MinFree: floor})
	for _, id := range src.ids {
		get(t, c, src, id)
		flush(t, c)
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		if free := int64(st.Bavail) * st.Frsize; free < floor {
			t.Fatalf("%d bytes are free, want %d at least", free, floor)
		}
	}
	if s := c.Stats(); s.Filled != 60 || s.Evicted == 0 {
		t.Errorf("Stats = %+v, want 60 filled, some evicted", s)
	}
}

func TestDefaultFloor(t *testing.T) {
	c, err := New(tmpfs(t, 20<<20, 0), nil, nil)
	must(t, err)
	defer c.Close()
	free, floor, err := c.space(c.root.Load())
	if err != nil || floor != 1<<20 || free > 20<<20 || free < 19<<20 {
		t.Errorf("space of a tmpfs of 20 MiB = %d free, %d floor, %v, want a floor of a twentieth", free, floor, err)
	}
}

// Somebody else fills the disk, and later frees it. While it is full the cache
// serves what it has.
func TestDiskFilledByOthers(t *testing.T) {
	dir := tmpfs(t, 2<<20, 0)
	ballast := filepath.Join(dir, "ballast")
	synctest.Test(t, func(t *testing.T) {
		src := newSource(3, 64<<10)
		var log journal
		c := open(t, dir, src, Options{Logger: log.logger()})
		get(t, c, src, src.ids[0])
		flush(t, c)
		c.Pin(src.ids[0])
		if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("filling the disk: %v, want ENOSPC", err)
		}
		get(t, c, src, src.ids...)
		flush(t, c)
		get(t, c, src, src.ids...)
		if s := c.Stats(); s.State != ReadOnly || s.Hits != 2 || s.Filled != 1 {
			t.Errorf("Stats = %+v, want read-only with 2 hits", s)
		}
		time.Sleep(time.Hour)
		if lines := log.lines(); len(lines) != 1 || len(log.lines("WARN", "no space left")) != 1 {
			t.Errorf("log after an hour = %q, want one warning with the reason", lines)
		}
		must(t, os.Remove(ballast))
		time.Sleep(maxPause)
		synctest.Wait()
		get(t, c, src, src.ids...)
		flush(t, c)
		if s := c.Stats(); s.State != Working || s.Filled < 3 {
			t.Errorf("Stats = %+v, want it back in service", s)
		}
		if lines := log.lines("INFO", "back in service"); len(lines) != 1 {
			t.Errorf("log = %q, want a line that it is back", log.lines())
		}
		must(t, c.Close())
	})
}

func TestReadOnlyDisk(t *testing.T) {
	dir := tmpfs(t, 2<<20, 0)
	src := newSource(3, 5000)
	synctest.Test(t, func(t *testing.T) {
		var log journal
		c := open(t, dir, src, Options{Logger: log.logger()})
		get(t, c, src, src.ids[0])
		flush(t, c)
		<-c.swept
		for i := range 2 { // the second time it is back as soon as the first
			must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			c.Forget(src.ids[0])
			get(t, c, src, src.ids...)
			flush(t, c)
			if s := c.Stats(); s.State != ReadOnly || s.Hits == 0 || len(log.lines("WARN")) != i+1 {
				t.Errorf("Stats = %+v, log = %q, want read-only with hits and %d warnings", s, log.lines(), i+1)
			}
			must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
			time.Sleep(minPause)
			synctest.Wait()
			get(t, c, src, src.ids...)
			flush(t, c)
			if diff := cmp.Diff(src.ids, held(dir, src.ids)); c.State() != Working || diff != "" {
				t.Errorf("State = %v, entries (-want +got):\n%s", c.State(), diff)
			}
			c.Forget(src.ids[1])
			get(t, c, src, src.ids[1])
			flush(t, c)
		}
		must(t, c.Close())
	})
}

// An image with a filled cache can be used from a medium that takes no writes.
func TestCacheOnReadOnlyMedium(t *testing.T) {
	dir := tmpfs(t, 2<<20, 0)
	src := newSource(3, 5000)
	fill(t, dir, src)
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	c := open(t, dir, nil, Options{})
	get(t, c, src, src.ids...)
	<-c.swept
	get(t, c, src, src.ids...)
	if s := c.State(); s != ReadOnly {
		t.Errorf("State = %v, want read-only", s)
	}
}

func TestDirectoryIsReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	src := newSource(2, 5000)
	synctest.Test(t, func(t *testing.T) {
		var log journal
		c := open(t, dir, src, Options{Logger: log.logger()})
		get(t, c, src, src.ids...)
		flush(t, c)
		<-c.swept // its lock would come into a directory that is being emptied
		must(t, os.RemoveAll(dir))
		must(t, os.WriteFile(dir, []byte("a file"), 0o600))
		get(t, c, src, src.ids...)
		flush(t, c)
		time.Sleep(minPause + time.Second)
		get(t, c, src, src.ids...)
		flush(t, c)
		if s := c.State(); s != ReadOnly || len(log.lines("WARN")) != 1 {
			t.Errorf("State = %v, log = %q, want read-only and one warning", s, log.lines())
		}
		must(t, os.Remove(dir))
		time.Sleep(3 * minPause)
		synctest.Wait()
		if s := c.Stats(); s.State != Working || s.Bytes != 0 {
			t.Errorf("Stats = %+v, want it working on an empty directory", s)
		}
		get(t, c, src, src.ids...)
		flush(t, c)
		if diff := cmp.Diff(src.ids, held(dir, src.ids)); c.State() != Working || diff != "" {
			t.Errorf("State = %v, entries of the new directory (-want +got):\n%s", c.State(), diff)
		}
		must(t, c.Close())
	})
}

// failAt returns a hook that fails at a step while err is set.
func failAt(step string) (at func(string) error, set func(error)) {
	var now atomic.Pointer[error]
	at = func(s string) error {
		if err := now.Load(); s == step && err != nil {
			return *err
		}
		return nil
	}
	return at, func(err error) {
		now.Store(&err)
		if err == nil {
			now.Store(nil)
		}
	}
}

// A bad sector costs an entry, not the cache.
func TestBadSector(t *testing.T) {
	dir := t.TempDir()
	src := newSource(2, 5000)
	fill(t, dir, src)
	at, set := failAt("read")
	c := open(t, dir, src, Options{at: at})
	set(unix.EIO)
	get(t, c, src, src.ids[0])
	set(nil)
	flush(t, c)
	get(t, c, src, src.ids...)
	if s := c.Stats(); s.Bad != 1 || s.State != Working || src.asked() != 1 {
		t.Errorf("Stats = %+v, source asked %d times, want one bad entry fetched again", s, src.asked())
	}
}

func TestUnreadableDisk(t *testing.T) {
	dir := t.TempDir()
	src := newSource(3, 5000)
	fill(t, dir, src)
	synctest.Test(t, func(t *testing.T) {
		var log journal
		at, set := failAt("read")
		c := open(t, dir, src, Options{at: at, Logger: log.logger()})
		set(unix.EACCES)
		get(t, c, src, src.ids...)
		c.Forget(src.ids[0])
		if s := c.Stats(); s.State != PassThrough || s.Hits != 0 || len(log.lines("WARN")) != 1 {
			t.Errorf("Stats = %+v, log = %q, want pass-through after one warning", s, log.lines())
		}
		if n := len(held(dir, src.ids)); n != 3 {
			t.Errorf("%d of 3 entries left, want all", n)
		}
		set(nil)
		time.Sleep(minPause)
		synctest.Wait()
		get(t, c, src, src.ids...)
		if s := c.Stats(); s.State != Working || s.Hits != 3 {
			t.Errorf("Stats = %+v, want it back with 3 hits", s)
		}
		must(t, c.Close())
	})
}

// The disk is tried after 30 s, then at intervals that double up to 10 min.
func TestProbesGrowRare(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		src := newSource(1, 5000)
		start := time.Now()
		var tries []time.Duration
		c := open(t, dir, src, Options{at: func(step string) error {
			if step != "create" {
				return nil
			}
			tries = append(tries, time.Since(start))
			return unix.EROFS
		}})
		get(t, c, src, src.ids...)
		time.Sleep(45 * time.Minute)
		must(t, c.Close())
		want := []time.Duration{0, 30 * time.Second, 90 * time.Second, 210 * time.Second, 450 * time.Second,
			930 * time.Second, 1530 * time.Second, 2130 * time.Second}
		if diff := cmp.Diff(want, tries); diff != "" {
			t.Errorf("writes were tried at (-want +got):\n%s", diff)
		}
	})
}

// A disk that passes each probe and fails the next entry is not asked often.
func TestFlappingDisk(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		src := newSource(1, 5000)
		var log journal
		probing := false
		c := open(t, dir, src, Options{Logger: log.logger(), at: func(step string) error {
			if step == "create" {
				probing = !probing
				if probing {
					return unix.EIO
				}
			}
			return nil
		}})
		for start := time.Now(); time.Since(start) < 2*time.Hour; time.Sleep(time.Second) {
			get(t, c, src, src.ids...)
		}
		must(t, c.Close())
		if n := len(log.lines("WARN")); n < 5 || n > 20 {
			t.Errorf("%d warnings in two hours, want 5 to 20", n)
		}
	})
}

// A hung disk keeps a reader for five seconds, once.
func TestHungRead(t *testing.T) {
	dir := t.TempDir()
	src := newSource(4, 5000)
	fill(t, dir, src)
	synctest.Test(t, func(t *testing.T) {
		at, release := stopAt("read")
		var log journal
		c := open(t, dir, src, Options{at: at, Logger: log.logger()})
		for i, want := range []time.Duration{readPatience, 0, 0} {
			start := time.Now()
			get(t, c, src, src.ids[i])
			if d := time.Since(start); d != want {
				t.Errorf("Get number %d took %v, want %v", i, d, want)
			}
		}
		if s := c.State(); s != PassThrough || len(log.lines("did not answer")) != 1 {
			t.Errorf("State = %v, log = %q, want pass-through and one line", s, log.lines())
		}
		release()
		time.Sleep(minPause)
		synctest.Wait()
		get(t, c, src, src.ids...)
		if s := c.Stats(); s.State != Working || s.Hits != 4 {
			t.Errorf("Stats = %+v, want it back with 4 hits", s)
		}
		must(t, c.Close())
	})
}

// A disk that takes no writes delays nobody but Close, and that not for ever.
func TestHungWrite(t *testing.T) {
	dir := t.TempDir()
	src := newSource(20, 5000)
	synctest.Test(t, func(t *testing.T) {
		at, release := stopAt("sync")
		c := open(t, dir, src, Options{at: at})
		start := time.Now()
		get(t, c, src, src.ids...)
		if d := time.Since(start); d != 0 {
			t.Errorf("Gets took %v, want no time", d)
		}
		time.Sleep(writePatience)
		synctest.Wait()
		if s := c.Stats(); s.State != ReadOnly || s.Dropped != 20-maxWriters {
			t.Errorf("Stats = %+v, want read-only, and dropped what no writer had", s)
		}
		start = time.Now()
		if err := c.Close(); err == nil || time.Since(start) != closePatience {
			t.Errorf("Close = %v after %v, want an error after %v", err, time.Since(start), closePatience)
		}
		get(t, c, src, src.ids...)
		release()
		if err := c.Flush(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// A bad entry that cannot be removed is not served either.
func TestBadEntryStays(t *testing.T) {
	for _, tc := range []struct {
		name string
		want State
	}{
		{"wrong bytes", ReadOnly},
		{"unreadable", PassThrough},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := tmpfs(t, 1<<20, 0)
			src := newSource(1, 5000)
			fill(t, dir, src)
			at, set := failAt("read")
			if tc.want == PassThrough {
				set(unix.EIO)
			} else {
				damages["flipped bit"](t, path(dir, src.ids[0]))
			}
			var log journal
			c := open(t, dir, src, Options{at: at, Logger: log.logger()})
			<-c.swept
			must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			for range 3 {
				get(t, c, src, src.ids...)
			}
			if s := c.Stats(); s.State != tc.want || s.Hits != 0 || len(log.lines()) != 1 {
				t.Errorf("Stats = %+v, log = %q, want %v, no hits, one line", s, log.lines(), tc.want)
			}
		})
	}
}
