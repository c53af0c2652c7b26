package store

import (
	"context"

	"overmount/block"
)

// A Limit lets a number of requests through at a time; the others wait until one
// ends or their context does. What is wrapped with one Limit shares it.
type Limit struct{ slots chan struct{} }

// NewLimit returns a Limit of n requests, at least one.
func NewLimit(n int) Limit { return Limit{make(chan struct{}, max(n, 1))} }

// Reader returns r under the limit.
func (l Limit) Reader(r Reader) Reader { return limitReader{l, r} }

// Writer returns w under the limit. Sync is not limited.
func (l Limit) Writer(w Writer) Writer { return limitWriter{l, w} }

// do runs f when there is a free slot.
func (l Limit) do(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err // select would choose at random
	}
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

type limitReader struct {
	limit Limit
	r     Reader
}

func (l limitReader) Get(ctx context.Context, id block.ID) (object []byte, err error) {
	err = l.limit.do(ctx, func() error {
		object, err = l.r.Get(ctx, id)
		return err
	})
	return object, err
}

func (l limitReader) Forget(id block.ID) { forget(l.r, id) }

type limitWriter struct {
	limit Limit
	w     Writer
}

func (l limitWriter) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	err = l.limit.do(ctx, func() error {
		stored, err = l.w.Put(ctx, id, object)
		return err
	})
	return stored, err
}

func (l limitWriter) Sync(ctx context.Context) error { return syncWriter(ctx, l.w) }

var (
	_ Forgetter = limitReader{}
	_ Syncer    = limitWriter{}
)
