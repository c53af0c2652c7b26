package store

import (
	"context"

	"overmount/block"
	"overmount/internal/flight"
)

// Once returns a Reader whose callers, when they want one object at the same
// time, share one request to r and its answer, also an error. Nothing is
// remembered after the answer.
//
// The request runs under a context of its own, which has the values of the first
// caller's. A caller whose context ends leaves with the context's error and
// disturbs nobody; when the last one has left, the request is cancelled, and who
// comes after that gets a new one. If r panics, the callers get an error with the
// stack.
//
// Forget also detaches a request under way: those who wait for it get its
// answer, those who come later do not.
func Once(r Reader) Reader { return &once{r: r} }

type once struct {
	r       Reader
	flights flight.Group[block.ID, []byte]
}

var (
	_ Reader    = (*once)(nil)
	_ Forgetter = (*once)(nil)
)

func (o *once) Get(ctx context.Context, id block.ID) ([]byte, error) {
	return o.flights.Do(ctx, id, func(ctx context.Context) ([]byte, error) { return o.r.Get(ctx, id) })
}

func (o *once) Forget(id block.ID) {
	o.flights.Forget(id)
	forget(o.r, id)
}
