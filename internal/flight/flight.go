// Package flight lets callers who want one thing at the same time share the work
// of getting it.
package flight

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// A Group shares work by key. Its zero value is ready. Nothing is remembered
// after the work is done. Concurrent use is safe.
type Group[K comparable, V any] struct {
	mu      sync.Mutex
	flights map[K]*flight[V] // those that a newcomer may join
}

// A flight is one piece of work. value and err are set before done is closed.
type flight[V any] struct {
	done    chan struct{}
	value   V
	err     error
	cancel  context.CancelFunc
	waiters int // guarded by Group.mu
}

// Do returns what work returns, also its error. Callers with one key share one
// call of work.
//
// The work runs under a context of its own, which has the values of the first
// caller's. A caller whose context ends leaves with the context's error and
// disturbs nobody; when the last one has left, the work is cancelled, and who
// comes after that starts it anew. If work panics, the callers get an error with
// the stack.
func (g *Group[K, V]) Do(ctx context.Context, key K, work func(context.Context) (V, error)) (V, error) {
	var none V
	if err := ctx.Err(); err != nil {
		return none, err
	}
	f := g.join(ctx, key, work)
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		g.leave(key, f)
		return none, ctx.Err()
	}
}

// Forget keeps newcomers off the work under way for key: those who wait for it
// get its result, those who come later do not.
func (g *Group[K, V]) Forget(key K) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.flights, key)
}

// join returns the flight for key, and starts it if there is none.
func (g *Group[K, V]) join(ctx context.Context, key K, work func(context.Context) (V, error)) *flight[V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.flights[key]
	if f == nil {
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight[V]{done: make(chan struct{}), cancel: cancel}
		if g.flights == nil {
			g.flights = make(map[K]*flight[V])
		}
		g.flights[key] = f
		go g.fly(ctx, key, f, work)
	}
	f.waiters++
	return f
}

// leave takes one waiter off a flight, and cancels a flight without waiters.
// That flight is detached under the same lock, so nobody can join it any more.
func (g *Group[K, V]) leave(key K, f *flight[V]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.waiters--
	if f.waiters == 0 {
		g.detach(key, f)
		f.cancel()
	}
}

// detach keeps newcomers off a flight. g.mu is held.
func (g *Group[K, V]) detach(key K, f *flight[V]) {
	if g.flights[key] == f {
		delete(g.flights, key)
	}
}

func (g *Group[K, V]) fly(ctx context.Context, key K, f *flight[V], work func(context.Context) (V, error)) {
	f.err = fmt.Errorf("the work for %v ended without a result", key)
	defer func() {
		if p := recover(); p != nil {
			f.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		g.mu.Lock()
		g.detach(key, f)
		g.mu.Unlock()
		close(f.done)
		f.cancel()
	}()
	f.value, f.err = work(ctx)
}
