// Package gc finds the objects of a store that no manifest names any more, and
// deletes them.
//
//	r, err := gc.Find(ctx, s, keep, time.Now().Add(-7*24*time.Hour))
//	n, err := gc.Delete(ctx, s, r.Garbage, nil)
//
// A store does not know its manifests: who collects must name all of them. What
// only another manifest needs is lost.
//
// Packing puts objects first and the manifest last, so objects that are young may
// belong to a manifest that does not exist yet. Find therefore wants a time, and
// takes nothing that was written after it. Objects that were in the store before
// are not written again when a new tree needs them, and keep their time: nothing
// may be packed, published or copied to a store between Find and the end of Delete
// unless its manifest is among those to keep.
//
// Delete can be interrupted anywhere, and repeated: each object is garbage for
// itself.
package gc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
)

// ErrNoManifest says that nothing was given to keep.
var ErrNoManifest = errors.New("no manifest is given, so that every object would be garbage")

// ErrStrangers says that the store has objects, and the manifests name none of
// them.
var ErrStrangers = errors.New("the manifests name none of the objects in the store: these are other manifests, or it is another store")

// An Object is one that no manifest names.
type Object struct {
	ID       block.ID
	Size     int64     // in bytes, of all its names in the store together
	Modified time.Time // when the latest of its names was written, by the store's clock
}

// A Report is what a store has.
type Report struct {
	Objects, Bytes           int64    // all
	NamedObjects, NamedBytes int64    // what the manifests name
	YoungObjects, YoungBytes int64    // what they do not, but which is too young
	Garbage                  []Object // the rest, sorted by ID
	GarbageBytes             int64
}

// Find lists a store. Garbage is what none of the manifests names, and what was
// last written before the given time. An object whose time the store does not
// tell counts as young.
//
// Find returns ErrNoManifest, ErrStrangers with the report, the error of the list,
// or that of ctx. It needs about 100 bytes of memory for each object.
func Find(ctx context.Context, from store.Lister, keep []*manifest.Manifest, before time.Time) (*Report, error) {
	if len(keep) == 0 {
		return nil, ErrNoManifest
	}
	named := map[block.ID]bool{}
	for _, m := range keep {
		for _, ref := range m.AllBlocks() {
			named[ref.ID] = true
		}
	}
	objects := map[block.ID]Object{}
	for e, err := range from.List(ctx) {
		if err != nil {
			return nil, fmt.Errorf("list the objects: %w", err)
		}
		objects[e.ID] = merge(objects[e.ID], e)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := &Report{}
	for _, obj := range objects {
		r.add(obj, named[obj.ID], before)
	}
	slices.SortFunc(r.Garbage, func(a, b Object) int { return slices.Compare(a.ID[:], b.ID[:]) })
	if r.NamedObjects == 0 && r.Objects > 0 {
		return r, ErrStrangers
	}
	return r, nil
}

// merge adds a name to what is known of an object. A time that is not known for
// one name is not known for the object.
func merge(obj Object, e store.Entry) Object {
	first := obj.ID != e.ID
	obj.ID = e.ID
	obj.Size += e.Size
	switch {
	case first || e.Modified.IsZero():
		obj.Modified = e.Modified
	case !obj.Modified.IsZero() && e.Modified.After(obj.Modified):
		obj.Modified = e.Modified
	}
	return obj
}

func (r *Report) add(obj Object, named bool, before time.Time) {
	r.Objects++
	r.Bytes += obj.Size
	switch {
	case named:
		r.NamedObjects++
		r.NamedBytes += obj.Size
	case obj.Modified.IsZero() || !obj.Modified.Before(before):
		r.YoungObjects++
		r.YoungBytes += obj.Size
	default:
		r.Garbage = append(r.Garbage, obj)
		r.GarbageBytes += obj.Size
	}
}

// DeleteOptions change how garbage is deleted. Nil and zero mean the defaults.
type DeleteOptions struct {
	// Parallel is how many requests there are at a time; 0 means 16.
	Parallel int
	// Deleted, if set, is told of each object that is gone. It is called by one
	// goroutine at a time.
	Deleted func(Object)
}

// Delete deletes the objects, and returns how many are gone, with their length in
// bytes. The first error ends it, after what is under way.
func Delete(ctx context.Context, from store.Deleter, garbage []Object, o *DeleteOptions) (deleted int, bytes int64, err error) {
	if o == nil {
		o = &DeleteOptions{}
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cmp.Or(max(o.Parallel, 0), 16))
	for _, obj := range garbage {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := from.Delete(gctx, obj.ID); err != nil {
				if gctx.Err() != nil {
					return gctx.Err()
				}
				return fmt.Errorf("delete object %v: %w", obj.ID, err)
			}
			mu.Lock()
			defer mu.Unlock()
			deleted++
			bytes += obj.Size
			if o.Deleted != nil {
				o.Deleted(obj)
			}
			return nil
		})
	}
	err = cmp.Or(g.Wait(), ctx.Err())
	return deleted, bytes, err
}
