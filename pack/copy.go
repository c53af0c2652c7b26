package pack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
)

// CopyOptions change how objects are copied. Nil and zero mean the defaults.
type CopyOptions struct {
	// Parallel is how many objects are on their way at a time; 0 means 16.
	Parallel int
	// Skip, if set, says that an object is there, and need not be asked for.
	Skip func(block.ID) bool
	// Progress, if set, is told of the state of work whenever an object is done.
	// It is called by one goroutine at a time.
	Progress func(CopySummary)
}

// A CopySummary tells what was copied, or how far the work is.
type CopySummary struct {
	Objects    int64 // different objects of the manifest
	Done       int64 // of Objects, with those that were there before
	NewObjects int64 // objects that were written
	NewBytes   int64 // their length
}

// Copy copies the objects of a manifest from one store to another, each once and
// as it is: sealed, under its ID, which its bytes are compared with. Objects that
// the manifest carries itself come from there. In the end they are made to last,
// if to is a store.Syncer.
//
// If to is a store.Prober, it is asked first, and what it has is not read. So a
// Copy that was interrupted goes on when it is repeated.
//
// An object that from says it does not have, or has wrong, does not keep Copy from
// copying the others; the error then says how many there were, and wraps the
// first reason. Any other error ends it.
func Copy(ctx context.Context, m *manifest.Manifest, from store.Reader, to store.Writer, o *CopyOptions) (CopySummary, error) {
	c := &copier{m: m, from: from, to: to}
	if o != nil {
		c.CopyOptions = *o
	}
	if c.Parallel <= 0 {
		c.Parallel = 16
	}
	ids := ObjectIDs(m)
	c.sum.Objects = int64(len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.Parallel)
	for _, id := range ids {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return c.object(gctx, id) })
	}
	if err := cmp.Or(g.Wait(), ctx.Err()); err != nil {
		return c.sum, err
	}
	if s, ok := to.(store.Syncer); ok {
		if err := s.Sync(ctx); err != nil {
			return c.sum, fmt.Errorf("make the objects last: %w", err)
		}
	}
	if c.lost > 0 {
		return c.sum, fmt.Errorf("%d of %d objects could not be copied, the first: %w", c.lost, c.sum.Objects, c.reason)
	}
	return c.sum, nil
}

// ObjectIDs returns the different objects of a manifest, sorted.
func ObjectIDs(m *manifest.Manifest) []block.ID {
	ids := make([]block.ID, 0, m.BlockCount())
	for _, ref := range m.AllBlocks() {
		ids = append(ids, ref.ID)
	}
	slices.SortFunc(ids, func(a, b block.ID) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(ids)
}

type copier struct {
	CopyOptions
	m    *manifest.Manifest
	from store.Reader
	to   store.Writer

	mu     sync.Mutex
	sum    CopySummary
	lost   int
	reason error // of the first that was lost
}

// object copies one object, unless it is there.
func (c *copier) object(ctx context.Context, id block.ID) error {
	there, err := c.there(ctx, id)
	if err != nil {
		return failed(ctx, id, "look for", err)
	}
	if there {
		c.done(0, false)
		return nil
	}
	data, err := c.read(ctx, id)
	if err != nil && ctx.Err() == nil && !store.Temporary(err) && !errors.Is(err, store.ErrForbidden) {
		c.lose(fmt.Errorf("read object %v: %w", id, err))
		return nil
	}
	if err != nil {
		return failed(ctx, id, "read", err)
	}
	stored, err := c.to.Put(ctx, id, data)
	if err != nil {
		return failed(ctx, id, "put", err)
	}
	c.done(len(data), stored)
	return nil
}

func failed(ctx context.Context, id block.ID, doing string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%s object %v: %w", doing, id, err)
}

func (c *copier) there(ctx context.Context, id block.ID) (bool, error) {
	if c.Skip != nil && c.Skip(id) {
		return true, nil
	}
	if p, ok := c.to.(store.Prober); ok {
		return p.Has(ctx, id)
	}
	return false, nil
}

// read gets an object that has its ID, whatever the source lets pass: what is
// written under a wrong name stays.
func (c *copier) read(ctx context.Context, id block.ID) ([]byte, error) {
	if data, ok := c.m.Object(id); ok {
		return data, nil
	}
	data, err := c.from.Get(ctx, id)
	if err == nil {
		err = store.Check(id, data)
	}
	return data, err
}

func (c *copier) done(bytes int, stored bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum.Done++
	if stored {
		c.sum.NewObjects++
		c.sum.NewBytes += int64(bytes)
	}
	if c.Progress != nil {
		c.Progress(c.sum)
	}
}

func (c *copier) lose(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost++; c.reason == nil {
		c.reason = reason
	}
}
