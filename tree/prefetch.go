package tree

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
)

// Prefetch returns block i of a regular file, for readers to come. The block is
// what ReadAt would read, whole; it is shared and must not be modified.
//
// On-demand reads go first: Prefetch waits until its requests and the blocks that
// readers wait for are together fewer than Options.MaxRequests. A block that a
// reader has asked for meanwhile costs no request of its own. A reader who wants a
// block that waits here does not wait with it, but fetches it at once; one who
// wants a block that is being fetched here shares the request, and makes his own
// if that one fails, or outlives it if ctx ends.
//
// Prefetch makes one try at the stores. Its errors are ReadAt's, and an error for
// a block that the file does not have.
func (t *Tree) Prefetch(ctx context.Context, ino manifest.Ino, i int) ([]byte, error) {
	blocks := t.m.Blocks(ino)
	if i < 0 || i >= len(blocks) {
		return nil, fmt.Errorf("prefetch %s: it has %d blocks, and no number %d", t.m.Path(ino), len(blocks), i)
	}
	ref := blocks[i]
	plain, err := t.ahead(ctx, ref)
	if err == nil {
		err = t.fits(ino, i, plain)
	}
	if err != nil {
		return nil, t.blockError(ino, ref, err)
	}
	return plain, nil
}

func (t *Tree) ahead(ctx context.Context, ref block.Ref) ([]byte, error) {
	if plain := t.kept.get(ref); plain != nil {
		return plain, nil
	}
	if err := t.lanes.enter(ctx); err != nil {
		return nil, err
	}
	defer t.lanes.leave()
	return t.share(store.TryOnce(ctx), ref, func(ctx context.Context, ref block.Ref) ([]byte, error) {
		plain, err := t.fetch(ctx, ref)
		if store.Temporary(err) {
			err = &onceError{err}
		}
		return plain, err
	})
}

// A onceError is a failure that a reader would have tried again after.
type onceError struct{ error }

func (e *onceError) Unwrap() error { return e.error }

// Hold keeps a block that came by another way than ReadAt, until it is read or too
// many others came after it. The caller has checked that plain is what ref names,
// and does not modify it.
func (t *Tree) Hold(ref block.Ref, plain []byte) { t.held.put(ref, plain) }

// lanes are the requests under way. Its zero value with a limit is ready.
type lanes struct {
	mu      sync.Mutex
	limit   int
	readers int             // blocks that readers wait for
	ahead   int             // requests of Prefetch
	queue   []chan struct{} // those that wait to enter
}

func (l *lanes) readerComes() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers++
}

func (l *lanes) readerGoes() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers--
	l.admit()
}

// enter waits for a free lane. Its only error is the context's.
func (l *lanes) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	turn := make(chan struct{})
	l.mu.Lock()
	l.queue = append(l.queue, turn)
	l.admit()
	l.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue, turn); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	} else { // it was let in at the same moment
		l.ahead--
		l.admit()
	}
	return ctx.Err()
}

func (l *lanes) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead--
	l.admit()
}

// admit lets in those that may. l.mu is held.
func (l *lanes) admit() {
	for len(l.queue) > 0 && l.readers+l.ahead < l.limit {
		close(l.queue[0])
		l.queue = slices.Delete(l.queue, 0, 1)
		l.ahead++
	}
}

// A shelf holds blocks until they are taken. When they are more than limit bytes,
// the oldest go.
type shelf struct {
	mu     sync.Mutex
	limit  int64
	size   int64
	order  list.List // of keptBlock, the oldest first
	places map[block.Ref]*list.Element
}

func (s *shelf) put(ref block.Ref, plain []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(plain) == 0 || s.places[ref] != nil {
		return
	}
	if s.places == nil {
		s.places = make(map[block.Ref]*list.Element)
	}
	s.places[ref] = s.order.PushBack(keptBlock{ref, plain})
	s.size += int64(len(plain))
	for s.size > s.limit {
		s.remove(s.order.Front())
	}
}

// take returns nil for a block that is not there.
func (s *shelf) take(ref block.Ref) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.places[ref]
	if e == nil {
		return nil
	}
	return s.remove(e)
}

func (s *shelf) remove(e *list.Element) []byte {
	k := s.order.Remove(e).(keptBlock)
	delete(s.places, k.ref)
	s.size -= int64(len(k.plain))
	return k.plain
}
