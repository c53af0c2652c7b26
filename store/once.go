package store

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"overmount/block"
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
func Once(r Reader) Reader { return &once{r: r, flights: make(map[block.ID]*flight)} }

type once struct {
	r       Reader
	mu      sync.Mutex
	flights map[block.ID]*flight // requests that a newcomer may join
}

var (
	_ Reader    = (*once)(nil)
	_ Forgetter = (*once)(nil)
)

// A flight is one request. object and err are set before done is closed.
type flight struct {
	done    chan struct{}
	object  []byte
	err     error
	cancel  context.CancelFunc
	waiters int // guarded by once.mu
}

func (o *once) Get(ctx context.Context, id block.ID) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f := o.join(ctx, id)
	select {
	case <-f.done:
		return f.object, f.err
	case <-ctx.Done():
		o.leave(id, f)
		return nil, ctx.Err()
	}
}

// join returns the flight for id, and starts it if there is none.
func (o *once) join(ctx context.Context, id block.ID) *flight {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.flights[id]
	if f == nil {
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{done: make(chan struct{}), cancel: cancel}
		o.flights[id] = f
		go o.fly(ctx, id, f)
	}
	f.waiters++
	return f
}

// leave takes one waiter off a flight, and cancels a flight without waiters.
// That flight is detached under the same lock, so nobody can join it any more.
func (o *once) leave(id block.ID, f *flight) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f.waiters--
	if f.waiters == 0 {
		o.detach(id, f)
		f.cancel()
	}
}

// detach keeps newcomers off a flight. o.mu is held.
func (o *once) detach(id block.ID, f *flight) {
	if o.flights[id] == f {
		delete(o.flights, id)
	}
}

func (o *once) fly(ctx context.Context, id block.ID, f *flight) {
	f.err = fmt.Errorf("get object %v: the store's goroutine ended without an answer", id)
	defer func() {
		if p := recover(); p != nil {
			f.err = fmt.Errorf("get object %v: the store panicked: %v\n%s", id, p, debug.Stack())
		}
		o.mu.Lock()
		o.detach(id, f)
		o.mu.Unlock()
		close(f.done)
		f.cancel()
	}()
	f.object, f.err = o.r.Get(ctx, id)
}

func (o *once) Forget(id block.ID) {
	o.mu.Lock()
	delete(o.flights, id)
	o.mu.Unlock()
	forget(o.r, id)
}
