package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"overmount/block"
)

// A Route says that a store is meant for the objects whose ID begins with a byte
// from First to Last, both included. As in the manifest, a route whose First is
// above its Last is for none.
type Route struct {
	First, Last byte
	Name        string // stands before the store's errors; no password in here
	Reader      Reader // nil: not for reading
	Writer      Writer // nil: not for writing
}

func (r Route) covers(id block.ID) bool { return r.First <= id[0] && id[0] <= r.Last }

// wrap puts the store's name before its error.
func (r Route) wrap(err error) error {
	if r.Name == "" {
		return err
	}
	return fmt.Errorf("%s: %w", r.Name, err)
}

// Routes is several stores as one. Ranges may overlap: the stores of one byte are
// replicas of each other. Concurrent use is safe.
type Routes []Route

var (
	_ Reader    = Routes(nil)
	_ Writer    = Routes(nil)
	_ Syncer    = Routes(nil)
	_ Learner   = Routes(nil)
	_ Forgetter = Routes(nil)
)

// Get asks the stores that cover the ID, in their order, until one gives the
// object. Any error leads to the next store: that one replica has lost or
// spoiled an object says nothing about the others.
//
// When all have failed, the error names each store with its reason, and is of
// the kind that tells most about what to do: temporary if any of them is, else a
// definite one that is not ErrNotFound, and ErrNotFound only if every store said
// so. Get returns ErrNoRoute if no store covers the ID.
func (rs Routes) Get(ctx context.Context, id block.ID) ([]byte, error) {
	var failed routeErrors
	for _, r := range rs {
		if r.Reader == nil || !r.covers(id) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		object, err := r.Reader.Get(ctx, id)
		if err == nil {
			return object, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failed = append(failed, r.wrap(err))
	}
	if len(failed) == 0 {
		return nil, noReader(id)
	}
	return nil, joinRoutes(failed)
}

func noReader(id block.ID) error {
	return fmt.Errorf("%w: none is for reading objects that begin with %02x", ErrNoRoute, id[0])
}

// joinRoutes returns the error of stores that have all failed, at least one.
func joinRoutes(failed []error) error {
	if len(failed) == 1 {
		return failed[0]
	}
	return routeErrors(failed)
}

// Put writes to every store that covers the ID, to all at once. The first error
// ends it, and then some of the stores may have the object. It reports whether
// any store had to write. Put returns ErrNoRoute if no store covers the ID.
func (rs Routes) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	var wrote atomic.Bool
	var asked bool
	g, gctx := errgroup.WithContext(ctx)
	for _, r := range rs {
		if r.Writer == nil || !r.covers(id) {
			continue
		}
		asked = true
		g.Go(func() error {
			stored, err := r.Writer.Put(gctx, id, object)
			if err != nil {
				return r.wrap(err)
			}
			if stored {
				wrote.Store(true)
			}
			return nil
		})
	}
	err = g.Wait()
	switch {
	case !asked:
		return false, fmt.Errorf("%w: none is for writing objects that begin with %02x", ErrNoRoute, id[0])
	case err != nil && ctx.Err() != nil:
		return false, ctx.Err()
	case err != nil:
		return false, err
	}
	return wrote.Load(), nil
}

// Learn lets every store that can list what it has do so, and reports whether all
// of them did, in whole. One that cannot be listed is asked for each object
// instead, so that only ctx's error is returned.
func (rs Routes) Learn(ctx context.Context, most int) (complete bool, err error) {
	complete = true
	for _, r := range rs {
		l, ok := r.Writer.(Learner)
		if !ok {
			continue
		}
		all, err := l.Learn(ctx, most)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		complete = complete && all && err == nil
	}
	return complete, nil
}

// Sync syncs every store that needs it, also after one has failed.
func (rs Routes) Sync(ctx context.Context) error {
	var errs []error
	for _, r := range rs {
		if r.Writer == nil {
			continue
		}
		if err := syncWriter(ctx, r.Writer); err != nil {
			errs = append(errs, r.wrap(err))
		}
	}
	return errors.Join(errs...)
}

// Forget tells every store that covers the ID.
func (rs Routes) Forget(id block.ID) {
	for _, r := range rs {
		if r.Reader != nil && r.covers(id) {
			forget(r.Reader, id)
		}
	}
}

// routeErrors are the errors of two or more stores that were asked for one
// object. It shows all of them, and is, for errors.Is, only those that decide.
type routeErrors []error

func (es routeErrors) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "all %d stores failed: ", len(es))
	for i, err := range es {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

// Unwrap returns the temporary errors; if there are none, those which say more
// than ErrNotFound; if there are none, all.
func (es routeErrors) Unwrap() []error {
	notFound := func(err error) bool { return errors.Is(err, ErrNotFound) }
	if es.temporary() {
		return slices.DeleteFunc(slices.Clone(es), func(err error) bool { return !Temporary(err) })
	}
	if some := slices.DeleteFunc(slices.Clone(es), notFound); len(some) > 0 {
		return some
	}
	return es
}

func (es routeErrors) temporary() bool { return slices.ContainsFunc(es, Temporary) }

// RetryAfter returns the shortest wish, 0 if one of the stores that may recover
// has none.
func (es routeErrors) RetryAfter() time.Duration {
	wish := time.Duration(-1)
	for _, err := range es {
		if after := retryAfter(err); Temporary(err) && (wish < 0 || after < wish) {
			wish = after
		}
	}
	return max(wish, 0)
}
