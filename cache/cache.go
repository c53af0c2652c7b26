// Package cache keeps sealed objects on a local disk or tmpfs.
//
// A [Cache] is a store.Reader around a store.Reader. An object that it has is
// read from the disk; any other comes from the source, goes to the caller at
// once, and is written behind the caller's back:
//
//	c, err := cache.New("/var/cache/overmount", source, nil)
//	object, err := c.Get(ctx, id)
//	defer c.Close()
//
// The disk can make a Cache useless, but never wrong, and never the reason why
// a Get fails: whatever is wrong with it, the source is asked.
//
// # What is on the disk
//
//	<dir>/v1/ab/<64 hex digits>   one object, as sealed; ab are its first digits
//	<dir>/v1/ab/.tmp-<random>     one on its way there
//	<dir>/v1/lock                 held with flock(2) by who counts and evicts
//
// An entry is written to a temporary file, made to last with fsync, and renamed.
// A program killed on the way leaves a temporary file, which is never served and
// is removed an hour later. After a power cut the newest entries may be missing.
//
// Any number of processes of one user may share a directory; nothing but files
// and that lock stands between them, and the lock is never taken to read or to
// write an entry. An entry that vanishes is a miss; one that is being read
// stays readable.
//
// The directory and all above it must belong to root or to the user, and must
// not be open to writing by others, save with the sticky bit, as /tmp is. The
// v1 in it must belong to the user and be writable by no one else. New refuses
// anything less: it will not work in a /tmp/cache that somebody laid out for it.
// What is in use is the directory that New opened, wherever it is moved or
// mounted later, so that a cache in /run survives the change of roots at boot.
//
// # What is checked
//
// The source must give checked objects (store.Checked): what it gives is not
// hashed again. BLAKE2b is the slowest stage of all, at 0.6 GB/s. A file that
// this process did not write itself is hashed the first time that it is read,
// and again when its inode, time or length has changed. What rots after that
// does not open: its reader calls [Cache.Forget] and asks again. An entry found
// to be bad is removed, with one line in the log, and fetched again.
//
// # What is bounded
//
// Entries are evicted when they exceed Options.MaxBytes, or when the file system
// has less than Options.MinFree left: those that were not used for the longest
// time first, down to nine tenths. Use is recorded in the file's atime, set
// explicitly and at most every five minutes, so that all processes see it, on
// file systems mounted noatime too. Each process counts the files when it opens
// the cache, behind the back of its readers, and every ten minutes; in between
// it knows only of its own. So several writers together can exceed MaxBytes
// by an eighth each for a while, and one by a few objects. MinFree is asked of
// the file system for each entry.
//
// Objects waiting to be written take up to Options.QueueBytes of memory, and
// are served from there. When the queue is full an object is not kept, and
// counted as dropped: slow disks delay no one.
//
// # When the disk fails
//
// A full disk first makes the cache evict. If that does not help, or writing
// fails in another way, or takes over thirty seconds, the cache serves what it
// has and writes nothing ([ReadOnly]). If reading fails, or takes over five
// seconds, it does nothing at all ([PassThrough]). Either is one warning. The
// disk is tried again after thirty seconds, then at growing intervals up to
// ten minutes, and an info line says that it is back.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/store"
)

const (
	readPatience  = 5 * time.Second
	writePatience = 30 * time.Second
	closePatience = 30 * time.Second

	// yieldEvery is after how many hits a reader lets other goroutines run. A
	// reader and the goroutine that reads for it hand one time slice to and
	// fro. With Go 1.26 and GOMAXPROCS=1 a loop of hits kept all others,
	// the writers among them, from running for up to half a minute.
	yieldEvery = 64
)

// Options are the limits of a Cache. Nil and zero values mean the defaults.
type Options struct {
	// MaxBytes is how much the entries may take, in bytes, each rounded up to
	// 4 KiB. The default is 4 GiB. Processes that share a directory should
	// agree; if not, the smallest limit rules.
	MaxBytes int64

	// MinFree is how many bytes the cache leaves free on its file system. The
	// default is a twentieth of the file system, at most 1 GiB. A negative
	// value means none. A file system that does not count its blocks, such as
	// ramfs, has no floor.
	MinFree int64

	// QueueBytes is how many bytes of objects may wait to be written. The
	// default is 32 MiB. An empty queue takes any object.
	QueueBytes int64

	// Logger gets a line when the cache goes out of service and back, and one
	// for each bad entry. The default is silence.
	Logger *slog.Logger

	// at, if not nil, is called before each step that touches the disk. Tests
	// stop there, or fail there.
	at func(step string) error
}

// A Cache keeps objects on a disk. All methods are safe for concurrent use.
type Cache struct {
	src  store.Reader
	dir  string // as the user gave it
	opts Options
	log  *slog.Logger
	root atomic.Pointer[os.Root] // of the version directory

	hits, misses, filled, dropped, evicted, bad atomic.Int64

	stop       chan struct{} // closed by Close: the background ends
	swept      chan struct{} // closed after the first sweep
	kick       chan struct{} // asks for a sweep before its time
	writing    sync.WaitGroup
	background sync.WaitGroup
	sweeping   sync.Mutex // held by who sweeps, in this process

	mu       sync.Mutex
	closed   bool
	state    State
	pause    time.Duration // before the disk is tried again
	pending  map[block.ID]*item
	fifo     []*item // those of pending that no writer has taken yet
	queued   int64   // bytes of pending
	writers  int
	counted  int64 // bytes of entries, as the last sweep saw them
	added    int64 // bytes of entries written since
	pins     map[block.ID]int
	verified map[block.ID]stamp
}

var (
	_ store.Reader    = (*Cache)(nil)
	_ store.Forgetter = (*Cache)(nil)
)

// New returns a cache of src in dir, which it makes if there is none. It does
// not look at the entries: a million of them do not delay it.
//
// New fails if dir cannot be made or opened, is not a directory, or is open to
// others, and for a negative limit. Trouble that comes later never surfaces as
// an error.
func New(dir string, src store.Reader, opts *Options) (*Cache, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.MaxBytes < 0 || o.QueueBytes < 0 {
		return nil, fmt.Errorf("cache %s: a negative limit", dir)
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 4 << 30
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 32 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	root, err := openDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", dir, err)
	}
	c := &Cache{
		src:      src,
		dir:      dir,
		opts:     o,
		log:      o.Logger.With("cache", dir),
		stop:     make(chan struct{}),
		swept:    make(chan struct{}),
		kick:     make(chan struct{}, 1),
		pause:    minPause,
		pending:  make(map[block.ID]*item),
		pins:     make(map[block.ID]int),
		verified: make(map[block.ID]stamp),
	}
	c.root.Store(root)
	c.background.Go(c.sweepNowAndThen)
	return c, nil
}

// Get returns an object from the cache, or else from the source, with the
// source's errors. It never waits for a write, and not over five seconds for a
// read; if ctx ends meanwhile it returns the context's error.
//
// Get does not join callers who ask for one object at the same time; see
// store.Once for that.
func (c *Cache) Get(ctx context.Context, id block.ID) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	object, ok := c.waiting(id)
	if !ok {
		object, ok = c.lookup(ctx, id)
	}
	if ok {
		if c.hits.Add(1)%yieldEvery == 0 {
			runtime.Gosched()
		}
		return object, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.misses.Add(1)
	object, err := c.src.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	c.enqueue(id, object)
	return object, nil
}

// lookup reads an entry from the disk. Whatever goes wrong is a miss.
func (c *Cache) lookup(ctx context.Context, id block.ID) ([]byte, bool) {
	if c.State() == PassThrough {
		return nil, false
	}
	var object []byte
	var err error
	if !c.patiently(ctx, func() { object, err = c.read(id) }) {
		return nil, false
	}
	switch {
	case err == nil:
		return object, true
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrClosed):
	case errors.Is(err, block.ErrCorrupt), errors.Is(err, unix.EIO):
		c.patiently(ctx, func() { c.discard(id, err) })
	default:
		c.trip(PassThrough, fmt.Errorf("read entry %v: %w", id, err))
	}
	return nil, false
}

// patiently runs f, which touches the disk, and reports whether it came back
// in time. Otherwise f goes on alone, and nothing that it sets may be read.
// A goroutine costs about a microsecond, and a disk may hang for ever.
func (c *Cache) patiently(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	timer := time.NewTimer(readPatience)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-ctx.Done():
	case <-timer.C:
		c.trip(PassThrough, fmt.Errorf("the disk did not answer within %v", readPatience))
	}
	return false
}

// discard removes a bad entry.
func (c *Cache) discard(id block.ID, reason error) {
	err := c.remove(id)
	switch {
	case err == nil:
		c.bad.Add(1)
		c.log.Warn("bad cache entry removed", "id", id, "error", reason)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrClosed):
	case errors.Is(reason, unix.EIO):
		c.trip(PassThrough, reason)
	default:
		c.trip(ReadOnly, fmt.Errorf("remove bad entry %v: %w", id, err))
	}
}

// Forget removes id from the cache, so that the next Get asks the source. It
// waits for the disk up to five seconds.
func (c *Cache) Forget(id block.ID) {
	c.mu.Lock()
	if it := c.pending[id]; it != nil {
		it.forgotten = true
		delete(c.pending, id)
	}
	out := c.state == PassThrough
	c.mu.Unlock()
	if out {
		return
	}
	c.patiently(context.Background(), func() {
		if err := c.remove(id); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrClosed) {
			c.trip(ReadOnly, fmt.Errorf("forget entry %v: %w", id, err))
		}
	})
}

// Pin keeps entries from being evicted by this process until [Cache.Unpin] was
// called as often. It fetches nothing; an ID may be pinned before it is there.
//
// Pins are not stored. Other processes do not see them, but this one refreshes
// the time of use of pinned entries whenever it counts the files, so that they
// are the last that others would evict. Pins may exceed MaxBytes; then nothing
// else is kept.
func (c *Cache) Pin(ids ...block.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		c.pins[id]++
	}
}

// Unpin undoes one Pin of each ID.
func (c *Cache) Unpin(ids ...block.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if c.pins[id]--; c.pins[id] <= 0 {
			delete(c.pins, id)
		}
	}
}

// pinned reports whether id is pinned.
func (c *Cache) pinned(id block.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pins[id] > 0
}

// Stats says what a Cache did since New, and what it holds.
type Stats struct {
	Hits    int64 // Gets answered from the disk or the queue
	Misses  int64 // Gets passed to the source
	Filled  int64 // objects written
	Dropped int64 // objects not written: queue full, disk full, disk bad
	Evicted int64 // entries removed to make room
	Bad     int64 // entries removed because they were damaged
	Bytes   int64 // what the entries take; own writes only, until the first count
	Queued  int64 // bytes of objects that wait to be written
	State   State
}

// Stats returns the present numbers.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{
		Hits:    c.hits.Load(),
		Misses:  c.misses.Load(),
		Filled:  c.filled.Load(),
		Dropped: c.dropped.Load(),
		Evicted: c.evicted.Load(),
		Bad:     c.bad.Load(),
		Bytes:   c.counted + c.added,
		Queued:  c.queued,
		State:   c.state,
	}
}

// Close writes what waits to be written and ends the background work. After it
// Get only asks the source.
//
// If anything was written, Close lets the first count of the files finish: runs
// too short for it would let the cache grow for ever. It waits for thirty
// seconds at most; its only error is that this was not enough.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()

	stop := sync.OnceFunc(func() { close(c.stop) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.writing.Wait()
		if c.filled.Load() > 0 {
			<-c.swept
		}
		stop()
		c.background.Wait()
	}()
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	var err error
	select {
	case <-done:
	case <-timer.C:
		stop()
		err = fmt.Errorf("close cache %s: not done after %v", c.dir, closePatience)
	}
	c.root.Load().Close()
	return err
}
