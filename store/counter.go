package store

import (
	"context"
	"sync"
	"sync/atomic"

	"overmount/block"
)

// A Counter is a Reader that counts what goes through it.
type Counter struct {
	r Reader

	requests, objects, bytes, failed atomic.Int64

	mu   sync.Mutex
	each map[block.ID]Counts // nil without CountEach
}

// Counts are what a Counter has seen.
type Counts struct {
	Requests int64 // calls of Get; before a Retry, each of its tries
	Objects  int64 // those that gave an object
	Bytes    int64 // of these
	Failed   int64 // the others
}

// Count returns r, counted.
func Count(r Reader) *Counter { return &Counter{r: r} }

// CountEach is Count, which also counts for each object by itself. That takes about
// 150 bytes for each that was asked for.
func CountEach(r Reader) *Counter { return &Counter{r: r, each: map[block.ID]Counts{}} }

var (
	_ Reader    = (*Counter)(nil)
	_ Forgetter = (*Counter)(nil)
)

// Get is that of the Reader.
func (c *Counter) Get(ctx context.Context, id block.ID) ([]byte, error) {
	c.requests.Add(1)
	c.add(id, Counts{Requests: 1})
	object, err := c.r.Get(ctx, id)
	if err != nil {
		c.failed.Add(1)
		c.add(id, Counts{Failed: 1})
		return nil, err
	}
	c.objects.Add(1)
	c.bytes.Add(int64(len(object)))
	c.add(id, Counts{Objects: 1, Bytes: int64(len(object))})
	return object, nil
}

// add counts for one object.
func (c *Counter) add(id block.ID, n Counts) {
	if c.each == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.each[id] = c.each[id].Plus(n)
}

// Plus returns the sums.
func (n Counts) Plus(other Counts) Counts {
	return Counts{
		Requests: n.Requests + other.Requests, Objects: n.Objects + other.Objects, Bytes: n.Bytes + other.Bytes, Failed: n.Failed + other.Failed,
	}
}

// Forget is that of the Reader, if it has one.
func (c *Counter) Forget(id block.ID) { forget(c.r, id) }

// Counts returns the counts so far.
func (c *Counter) Counts() Counts {
	return Counts{Requests: c.requests.Load(), Objects: c.objects.Load(), Bytes: c.bytes.Load(), Failed: c.failed.Load()}
}

// Of returns the counts of one object so far: none without [CountEach].
func (c *Counter) Of(id block.ID) Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.each[id]
}
