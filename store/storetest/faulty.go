package storetest

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"overmount/block"
	"overmount/store"
)

// A Fault is what a [Faulty] does with one request. next makes the real request;
// what it returns for a Put is the object put.
type Fault func(ctx context.Context, id block.ID, next func() ([]byte, error)) ([]byte, error)

// Fail answers err without asking the store.
func Fail(err error) Fault {
	return func(context.Context, block.ID, func() ([]byte, error)) ([]byte, error) { return nil, err }
}

// NotFound answers store.ErrNotFound without asking the store.
func NotFound() Fault { return Fail(store.ErrNotFound) }

// WrongBytes answers as many bytes as the object has, one of them flipped.
func WrongBytes() Fault {
	return change(func(object []byte) []byte {
		wrong := bytes.Clone(object)
		wrong[len(wrong)/2] ^= 1
		return wrong
	})
}

// Truncated answers the first half of the object.
func Truncated() Fault { return change(func(object []byte) []byte { return object[:len(object)/2] }) }

func change(f func([]byte) []byte) Fault {
	return func(_ context.Context, _ block.ID, next func() ([]byte, error)) ([]byte, error) {
		object, err := next()
		if err != nil {
			return nil, err
		}
		return f(object), nil
	}
}

// Hang answers when the context ends, with its error.
func Hang() Fault {
	return func(ctx context.Context, _ block.ID, _ func() ([]byte, error)) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
}

// Through holds requests at a gate, then makes them.
func Through(g *Gate) Fault {
	return func(ctx context.Context, id block.ID, next func() ([]byte, error)) ([]byte, error) {
		if err := g.wait(ctx, id); err != nil {
			return nil, err
		}
		return next()
	}
}

// A Gate holds requests until it is opened or their context ends.
type Gate struct {
	arrived chan block.ID
	opened  chan struct{}
	once    sync.Once
}

// NewGate returns a closed gate.
func NewGate() *Gate { return &Gate{arrived: make(chan block.ID), opened: make(chan struct{})} }

// Arrived gives the ID of each request that comes to the closed gate. A request
// waits there whether anyone receives or not.
func (g *Gate) Arrived() <-chan block.ID { return g.arrived }

// Open lets all requests pass, now and from now on.
func (g *Gate) Open() { g.once.Do(func() { close(g.opened) }) }

func (g *Gate) wait(ctx context.Context, id block.ID) error {
	select {
	case g.arrived <- id:
	case <-g.opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-g.opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A Faulty is a store around a store. It fails as told, counts requests, and sees
// how many run at a time. Concurrent use is safe.
type Faulty struct {
	inner store.Reader

	mu            sync.Mutex
	always        Fault
	next          []Fault
	counts        map[block.ID]int
	forgotten     map[block.ID]int
	running, most int
}

var (
	_ store.Reader    = (*Faulty)(nil)
	_ store.Writer    = (*Faulty)(nil)
	_ store.Syncer    = (*Faulty)(nil)
	_ store.Forgetter = (*Faulty)(nil)
)

// NewFaulty returns a store around inner, which works until told otherwise. Put
// works if inner is a Writer.
func NewFaulty(inner store.Reader) *Faulty {
	return &Faulty{inner: inner, counts: make(map[block.ID]int), forgotten: make(map[block.ID]int)}
}

// Always does fault with every request from now on; nil makes the store work.
func (f *Faulty) Always(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.always = fault
}

// Next does one fault with each of the next requests, before what Always says; a
// nil in the list lets its request work.
func (f *Faulty) Next(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = append(f.next, faults...)
}

// Requests returns how often id was asked for or put.
func (f *Faulty) Requests(id block.ID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[id]
}

// Total returns the number of all requests.
func (f *Faulty) Total() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.counts {
		n += c
	}
	return n
}

// Forgotten returns how often Forget was called for id.
func (f *Faulty) Forgotten(id block.ID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.forgotten[id]
}

// MaxConcurrent returns how many requests ran at the same time at most.
func (f *Faulty) MaxConcurrent() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most
}

// Get implements store.Reader.
func (f *Faulty) Get(ctx context.Context, id block.ID) ([]byte, error) {
	return f.do(ctx, id, func() ([]byte, error) { return f.inner.Get(ctx, id) })
}

// Put implements store.Writer.
func (f *Faulty) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	_, err = f.do(ctx, id, func() ([]byte, error) {
		w, ok := f.inner.(store.Writer)
		if !ok {
			return nil, errors.New("the store in the Faulty is no Writer")
		}
		stored, err = w.Put(ctx, id, object)
		return object, err
	})
	return stored && err == nil, err
}

// Sync implements store.Syncer.
func (f *Faulty) Sync(ctx context.Context) error {
	if s, ok := f.inner.(store.Syncer); ok {
		return s.Sync(ctx)
	}
	return ctx.Err()
}

// Forget implements store.Forgetter.
func (f *Faulty) Forget(id block.ID) {
	f.mu.Lock()
	f.forgotten[id]++
	f.mu.Unlock()
	if inner, ok := f.inner.(store.Forgetter); ok {
		inner.Forget(id)
	}
}

func (f *Faulty) do(ctx context.Context, id block.ID, next func() ([]byte, error)) ([]byte, error) {
	fault := f.begin(id)
	defer f.end()
	if fault == nil {
		return next()
	}
	return fault(ctx, id, next)
}

func (f *Faulty) begin(id block.ID) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[id]++
	f.running++
	f.most = max(f.most, f.running)
	if len(f.next) == 0 {
		return f.always
	}
	fault := f.next[0]
	f.next = f.next[1:]
	return fault
}

func (f *Faulty) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running--
}
