package store

import (
	"context"
	"fmt"

	"overmount/block"
)

// Check returns block.ErrCorrupt, with the length received, unless id is the
// object's ID.
func Check(id block.ID, object []byte) error {
	if block.Sum(object) != id {
		return fmt.Errorf("%w: the %d bytes received do not have its ID", block.ErrCorrupt, len(object))
	}
	return nil
}

// Checked returns a Reader that gives only objects which match their ID, and
// block.ErrCorrupt instead of others. It computes one BLAKE2b-256 per object, so
// it belongs around a source, and around each source only once. It forgets what
// r forgets.
func Checked(r Reader) Reader { return checked{r} }

type checked struct{ r Reader }

var (
	_ Reader    = checked{}
	_ Forgetter = checked{}
)

func (c checked) Get(ctx context.Context, id block.ID) ([]byte, error) {
	object, err := c.r.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := Check(id, object); err != nil {
		return nil, err
	}
	return object, nil
}

func (c checked) Forget(id block.ID) { forget(c.r, id) }

// forget passes Forget on to a Reader that may be a Forgetter.
func forget(r Reader, id block.ID) {
	if f, ok := r.(Forgetter); ok {
		f.Forget(id)
	}
}

// syncWriter passes Sync on to a Writer that may be a Syncer.
func syncWriter(ctx context.Context, w Writer) error {
	if s, ok := w.(Syncer); ok {
		return s.Sync(ctx)
	}
	return nil
}
