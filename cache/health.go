package cache

import (
	"fmt"
	"time"

	"overmount/block"
)

// The pauses before a bad disk is tried again.
const (
	minPause = 30 * time.Second
	maxPause = 10 * time.Minute
)

// A State says how much a Cache does at present.
type State uint8

const (
	Working     State = iota
	ReadOnly          // serves its entries, writes nothing
	PassThrough       // does not touch the disk
)

func (s State) String() string {
	switch s {
	case Working:
		return "working"
	case ReadOnly:
		return "read-only"
	case PassThrough:
		return "pass-through"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// State returns how much the cache does at present.
func (c *Cache) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// trip takes the cache out of service, as far as to says, drops what waits to be
// written, and sees to it that the disk is tried again.
func (c *Cache) trip(to State, reason error) {
	c.mu.Lock()
	if c.state >= to {
		c.mu.Unlock()
		return
	}
	if c.state == Working && !c.closed {
		c.background.Go(c.tryAgain)
	}
	c.state = to
	for _, it := range c.fifo {
		c.dropped.Add(1)
		c.release(it)
	}
	c.fifo = nil
	c.mu.Unlock()
	c.log.Warn("cache out of service", "state", to, "error", reason)
}

// tryAgain waits, probes, and ends when the cache is back in service. The pause
// goes on growing until an entry was written: a disk that passes the probe and
// fails soon after must not fill the log.
func (c *Cache) tryAgain() {
	for {
		c.mu.Lock()
		pause := c.pause
		c.pause = min(2*pause, maxPause)
		c.mu.Unlock()
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-c.stop:
			timer.Stop()
			return
		}
		if err := c.probe(); err != nil {
			c.log.Debug("cache still out of service", "error", err)
			continue
		}
		c.mu.Lock()
		c.state = Working
		c.mu.Unlock()
		c.log.Info("cache back in service")
		c.sweepSoon()
		return
	}
}

// probe writes an entry and reads it back. If the directory was removed it is
// made again first.
func (c *Cache) probe() error {
	if old := c.root.Load(); unlinked(old) {
		root, err := openDir(c.dir)
		if err != nil {
			return err
		}
		c.root.Store(root)
		old.Close()
	}
	object := make([]byte, min(block.MaxObject, c.opts.MaxBytes/2))
	id := block.Sum(object)
	if err := c.save(&item{id: id, object: object}); err != nil {
		return err
	}
	if _, err := c.read(id); err != nil {
		return err
	}
	return c.remove(id)
}
