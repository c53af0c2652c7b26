package cache

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"overmount/block"
)

// maxWriters is how many entries are written at a time. File systems join the
// fsyncs of several files.
const maxWriters = 4

// An item is an object that waits to be written, or is being written.
type item struct {
	id        block.ID
	object    []byte
	forgotten bool          // under Cache.mu
	done      chan struct{} // closed when it was written or dropped
}

// waiting returns an object from the queue.
func (c *Cache) waiting(id block.ID) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.pending[id]
	if it == nil {
		return nil, false
	}
	return it.object, true
}

// enqueue takes an object to be written, or drops it. It does not wait.
func (c *Cache) enqueue(id block.ID, object []byte) {
	if len(object) == 0 || len(object) > block.MaxObject {
		return // read would refuse it
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.pending[id] != nil {
		return
	}
	size := int64(len(object))
	if c.state != Working || c.queued > 0 && c.queued+size > c.opts.QueueBytes {
		c.dropped.Add(1)
		return
	}
	it := &item{id: id, object: object, done: make(chan struct{})}
	c.pending[id] = it
	c.fifo = append(c.fifo, it)
	c.queued += size
	if c.writers < maxWriters {
		c.writers++
		c.writing.Go(c.drain)
	}
}

// drain writes what waits, and ends when nothing does.
func (c *Cache) drain() {
	for {
		it := c.next()
		if it == nil {
			return
		}
		c.finish(it, c.save(it))
	}
}

// next takes an item off the queue. If there is none the calling writer ends.
func (c *Cache) next() *item {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.fifo) > 0 {
		it := c.fifo[0]
		c.fifo[0] = nil
		c.fifo = c.fifo[1:]
		return it
	}
	c.fifo = nil
	c.writers--
	return nil
}

// release takes an item out of the books. The caller holds c.mu.
func (c *Cache) release(it *item) {
	if c.pending[it.id] == it {
		delete(c.pending, it.id)
	}
	c.queued -= int64(len(it.object))
	close(it.done)
}

// save writes an object to the disk, and makes room for it first.
func (c *Cache) save(it *item) error {
	size := cost(int64(len(it.object)))
	if err := c.makeRoom(size); err != nil {
		return err
	}
	err := c.write(it.id, it.object)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		if err := c.makeRoomOnFullDisk(size); err != nil {
			return err
		}
		err = c.write(it.id, it.object)
	}
	if err != nil {
		return fmt.Errorf("write entry %v: %w", it.id, err)
	}
	return nil
}

// finish says what became of an item. Who waits for the item finds the state
// that it led to.
func (c *Cache) finish(it *item, err error) {
	if err != nil && !errors.Is(err, errBusy) {
		c.trip(ReadOnly, err)
	}
	c.mu.Lock()
	if err == nil {
		c.filled.Add(1)
		c.added += cost(int64(len(it.object)))
		c.pause = minPause
	} else {
		c.dropped.Add(1)
	}
	recount := c.added > c.opts.MaxBytes/8
	forgotten := it.forgotten
	c.release(it)
	c.mu.Unlock()
	if err == nil && forgotten {
		c.remove(it.id)
	}
	if recount {
		c.sweepSoon()
	}
}

// Flush waits until every object that was taken before the call was written or
// dropped. Its only error is the context's.
func (c *Cache) Flush(ctx context.Context) error {
	c.mu.Lock()
	items := make([]*item, 0, len(c.pending))
	for _, it := range c.pending {
		items = append(items, it)
	}
	c.mu.Unlock()
	for _, it := range items {
		select {
		case <-it.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
