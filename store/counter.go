package store

import (
	"context"
	"sync/atomic"

	"overmount/block"
)

// A Counter is a Reader that counts what goes through it.
type Counter struct {
	r Reader

	requests, objects, bytes, failed atomic.Int64
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

var (
	_ Reader    = (*Counter)(nil)
	_ Forgetter = (*Counter)(nil)
)

// Get is that of the Reader.
func (c *Counter) Get(ctx context.Context, id block.ID) ([]byte, error) {
	c.requests.Add(1)
	object, err := c.r.Get(ctx, id)
	if err != nil {
		c.failed.Add(1)
		return nil, err
	}
	c.objects.Add(1)
	c.bytes.Add(int64(len(object)))
	return object, nil
}

// Forget is that of the Reader, if it has one.
func (c *Counter) Forget(id block.ID) { forget(c.r, id) }

// Counts returns the counts so far.
func (c *Counter) Counts() Counts {
	return Counts{Requests: c.requests.Load(), Objects: c.objects.Load(), Bytes: c.bytes.Load(), Failed: c.failed.Load()}
}
