package cache

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
)

const (
	sweepEvery = 10 * time.Minute
	busyPause  = 10 * time.Second // while another process sweeps

	// staleTemp is the age at which a temporary file belongs to nobody.
	staleTemp = time.Hour
)

var (
	// errBusy says that another process counts or evicts just now.
	errBusy = errors.New("another process makes room")
	// errNoRoom says that eviction was not enough.
	errNoRoom  = errors.New("no room, even after eviction")
	errStopped = errors.New("the cache is being closed")
)

// sweepNowAndThen counts the files at once, and again at intervals and when this
// process has written much.
func (c *Cache) sweepNowAndThen() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	swept := sync.OnceFunc(func() { close(c.swept) })
	for {
		select {
		case <-timer.C:
		case <-c.kick:
		case <-c.stop:
			return
		}
		wait := sweepEvery
		if c.State() == Working {
			wait = c.sweepNow()
		}
		timer.Reset(wait)
		swept()
	}
}

// sweepNow sweeps, and returns when to do so again.
func (c *Cache) sweepNow() time.Duration {
	c.sweeping.Lock()
	defer c.sweeping.Unlock()
	switch err := c.sweep(0, false); {
	case errors.Is(err, errBusy):
		return busyPause
	case err == nil, errors.Is(err, errNoRoom), errors.Is(err, errStopped):
	default:
		c.trip(ReadOnly, err)
	}
	return sweepEvery
}

// sweepSoon asks for a sweep before its time.
func (c *Cache) sweepSoon() {
	select {
	case c.kick <- struct{}{}:
	default: // someone asked before
	}
}

// makeRoom sees to it that want more bytes are within the limits.
func (c *Cache) makeRoom(want int64) error {
	if need, err := c.lacking(want); err != nil || need == 0 {
		return err
	}
	c.sweeping.Lock()
	defer c.sweeping.Unlock()
	if need, err := c.lacking(want); err != nil || need == 0 {
		return err // another writer made room meanwhile
	}
	return c.sweep(want, false)
}

// makeRoomOnFullDisk evicts a tenth of the entries, at least want bytes: the
// limits allowed what the disk, or a quota, did not.
func (c *Cache) makeRoomOnFullDisk(want int64) error {
	before := c.evicted.Load()
	c.sweeping.Lock()
	defer c.sweeping.Unlock()
	if c.evicted.Load() != before {
		return nil // another writer made room meanwhile
	}
	return c.sweep(want, true)
}

// lacking returns how many bytes must go for want more to be within the limits,
// as far as this process knows.
func (c *Cache) lacking(want int64) (int64, error) {
	return c.excess(c.root.Load(), c.Stats().Bytes, want)
}

// excess returns how many of the used bytes must go for want more to fit in.
// If any must go, enough do to leave some air.
func (c *Cache) excess(root *os.Root, used, want int64) (int64, error) {
	var need int64
	if limit := c.opts.MaxBytes; used+want > limit {
		need = used + want - limit/10*9
	}
	free, floor, err := c.space(root)
	if free-want < floor {
		need = max(need, floor-free+want+used/10)
	}
	return need, err
}

// An entry is what eviction needs to know of a file: 48 bytes, for each file,
// while a sweep lasts.
type entry struct {
	id   block.ID
	used int64 // atime, in nanoseconds
	cost int64
}

// sweep counts the files, removes old temporary ones, and evicts what exceeds
// the limits with want more bytes. It costs a stat for each file. The caller
// holds c.sweeping. It returns errBusy if another process is at it, errNoRoom if
// it was not enough.
func (c *Cache) sweep(want int64, full bool) error {
	root := c.root.Load()
	lock, err := root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // and so unlock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return errBusy
	} else if err != nil {
		return fmt.Errorf("flock %s: %w", lock.Name(), err)
	}
	c.mu.Lock()
	before := c.added
	c.mu.Unlock()

	entries, err := c.scan(root)
	if err != nil {
		return err
	}
	var total int64
	for _, e := range entries {
		total += e.cost
	}
	need, err := c.excess(root, total, want)
	if err != nil {
		return err
	}
	if full {
		need = max(need, want+total/10)
	}
	removed, err := c.evict(entries, need)
	if err != nil {
		return err
	}

	// What was written while the scan ran may be counted twice, until the next.
	c.mu.Lock()
	c.counted = total - removed
	c.added -= before
	c.mu.Unlock()
	need, err = c.excess(root, total-removed, want)
	if err == nil && need > 0 {
		err = errNoRoom
	}
	return err
}

// scan lists the entries, in no order.
func (c *Cache) scan(root *os.Root) ([]entry, error) {
	var entries []entry
	for i := range 256 {
		if err := c.step("scan"); err != nil {
			return nil, err
		}
		shard, err := root.Open(fmt.Sprintf("%02x", i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries, err = c.scanShard(entries, root, shard, fmt.Sprintf("%02x", i))
		shard.Close()
		if err != nil {
			return nil, err
		}
	}
	return entries, nil
}

func (c *Cache) scanShard(entries []entry, root *os.Root, dir *os.File, shard string) ([]entry, error) {
	for {
		select {
		case <-c.stop:
			return nil, errStopped
		default:
		}
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue // it is gone
			}
			if strings.HasPrefix(name, tempPrefix) {
				if time.Since(time.Unix(st.Mtim.Unix())) > staleTemp {
					root.Remove(shard + "/" + name)
				}
				continue
			}
			id, err := block.ParseID(name)
			if err != nil || id.String() != name || name[:2] != shard || st.Mode&unix.S_IFMT != unix.S_IFREG {
				continue // not ours to judge
			}
			if c.pinned(id) {
				touch(root, entryName(id), time.Unix(st.Atim.Unix()))
			}
			entries = append(entries, entry{id, st.Atim.Nano(), cost(st.Size)})
		}
		if err == io.EOF {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// evict removes entries, those not used for the longest time first, until need
// bytes are free. It returns how many bytes it removed.
func (c *Cache) evict(entries []entry, need int64) (removed int64, err error) {
	if need <= 0 {
		return 0, nil
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.used, b.used) })
	for _, e := range entries {
		if removed >= need {
			break
		}
		if c.pinned(e.id) {
			continue
		}
		switch err := c.remove(e.id); {
		case err == nil:
			c.evicted.Add(1)
		case !errors.Is(err, fs.ErrNotExist):
			return removed, err
		}
		removed += e.cost
	}
	return removed, nil
}
