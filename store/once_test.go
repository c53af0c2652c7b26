package store_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"overmount/block"
	"overmount/store"
	"overmount/store/storetest"
)

func TestOnceSharesARequest(t *testing.T) {
	for name, c := range map[string]struct {
		objects int
		want    error
	}{"object": {1, nil}, "error": {0, store.ErrNotFound}} {
		synctest.Test(t, func(t *testing.T) {
			f := seeded(t, c.objects)
			gate := storetest.NewGate()
			f.Always(storetest.Through(gate))
			r := store.Once(f)
			id, _ := object(0)
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if _, err := r.Get(t.Context(), id); !errors.Is(err, c.want) {
						t.Errorf("%s: Get = %v, want %v", name, err, c.want)
					}
				})
			}
			synctest.Wait()
			gate.Open()
			wg.Wait()
			if got := f.Requests(id); got != 1 {
				t.Errorf("%s: 10 readers made %d requests, want 1", name, got)
			}
			r.Get(t.Context(), id)
			if got := f.Requests(id); got != 2 {
				t.Errorf("%s: a later reader made it %d requests, want 2: nothing is remembered", name, got)
			}
		})
	}
}

func TestOnceAsksForEachObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 3)
		gate := storetest.NewGate()
		f.Always(storetest.Through(gate))
		r := store.Once(f)
		for i := range 3 {
			go func() { wantObject(t, r, i) }()
		}
		synctest.Wait()
		if got := f.MaxConcurrent(); got != 3 {
			t.Errorf("%d requests at a time for 3 objects, want 3", got)
		}
		gate.Open()
		synctest.Wait()
	})
}

// The first caller's end must not take the request from the others.
func TestOnceSurvivesItsFirstCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 1)
		gate := storetest.NewGate()
		f.Always(storetest.Through(gate))
		r := store.Once(f)
		id, _ := object(0)
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() {
			_, err := r.Get(ctx, id)
			first <- err
		}()
		synctest.Wait()
		go wantObject(t, r, 0)
		synctest.Wait()
		cancel()
		if err := <-first; err != context.Canceled {
			t.Errorf("Get of the caller who left = %v, want context.Canceled", err)
		}
		gate.Open()
		synctest.Wait()
		if got := f.Requests(id); got != 1 {
			t.Errorf("%d requests, want 1", got)
		}
	})
}

// When all have left, the request ends, and a newcomer gets a fresh one even
// while the old one still dies.
func TestOnceCancelsWhenAllHaveLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 1)
		die := make(chan struct{})
		f.Next(func(ctx context.Context, _ block.ID, _ func() ([]byte, error)) ([]byte, error) {
			<-ctx.Done()
			<-die
			return nil, ctx.Err()
		})
		r := store.Once(f)
		id, _ := object(0)
		ctx, cancel := context.WithCancel(t.Context())
		for range 2 {
			go r.Get(ctx, id)
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		wantObject(t, r, 0)
		close(die)
		synctest.Wait() // the request that dies has seen its context end, or this would be a deadlock
		wantObject(t, r, 0)
		if got := f.Requests(id); got != 3 {
			t.Errorf("%d requests, want 3", got)
		}
	})
}

// Callers come and go at random; whoever stays gets the object.
func TestOnceUnderRace(t *testing.T) {
	f := seeded(t, 1)
	r := store.Once(f)
	id, _ := object(0)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 500 {
				if i%2 == 0 {
					wantObject(t, r, 0)
					continue
				}
				ctx, cancel := context.WithCancel(t.Context())
				go cancel()
				if _, err := r.Get(ctx, id); err != nil && err != context.Canceled {
					t.Errorf("Get = %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestOnceKeepsValues(t *testing.T) {
	type key struct{}
	var got any
	f := seeded(t, 1)
	f.Always(func(ctx context.Context, _ block.ID, next func() ([]byte, error)) ([]byte, error) {
		got = ctx.Value(key{})
		return next()
	})
	id, _ := object(0)
	store.Once(f).Get(context.WithValue(t.Context(), key{}, "v"), id)
	if got != "v" {
		t.Errorf("the request's context has the value %v, want that of the caller's", got)
	}
}

func TestOnceSurvivesASourceThatDoesNotReturn(t *testing.T) {
	for name, end := range map[string]func(){
		"panic: boom":            func() { panic("boom") },
		"ended without a result": runtime.Goexit,
	} {
		synctest.Test(t, func(t *testing.T) {
			f := seeded(t, 1)
			f.Next(func(context.Context, block.ID, func() ([]byte, error)) ([]byte, error) {
				end()
				return nil, nil
			})
			r := store.Once(f)
			id, _ := object(0)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() { r.Get(t.Context(), id) })
			}
			wg.Wait()
			f.Next(func(context.Context, block.ID, func() ([]byte, error)) ([]byte, error) {
				end()
				return nil, nil
			})
			if _, err := r.Get(t.Context(), id); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("Get = %v, want an error that says %q", err, name)
			}
			wantObject(t, r, 0)
		})
	}
}

func TestOnceForgetDetaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 1)
		old, fresh := storetest.NewGate(), storetest.NewGate()
		f.Next(storetest.Through(old), storetest.Through(fresh))
		r := store.Once(f)
		id, _ := object(0)
		go wantObject(t, r, 0)
		synctest.Wait()
		r.(store.Forgetter).Forget(id)
		go wantObject(t, r, 0)
		synctest.Wait()
		if got := f.Requests(id); got != 2 {
			t.Errorf("%d requests after Forget, want 2", got)
		}
		old.Open()
		synctest.Wait()
		go wantObject(t, r, 0) // joins the fresh request, which the old one's end has not detached
		synctest.Wait()
		fresh.Open()
		synctest.Wait()
		if got := f.Requests(id); got != 2 {
			t.Errorf("%d requests after the old one's end, want 2", got)
		}
	})
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 20)
		gate := storetest.NewGate()
		f.Always(storetest.Through(gate))
		l := store.NewLimit(3)
		r, w := l.Reader(f), l.Writer(f)
		for i := range 10 {
			go wantObject(t, r, i)
			go func() {
				id, bytes := object(10 + i)
				if _, err := w.Put(t.Context(), id, bytes); err != nil {
					t.Errorf("Put = %v", err)
				}
			}()
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		waiting := make(chan error, 1)
		go func() {
			id, _ := object(0)
			_, err := r.Get(ctx, id)
			waiting <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-waiting; err != context.Canceled {
			t.Errorf("Get while waiting for its turn = %v, want context.Canceled", err)
		}
		if got := f.Total(); got != 3 {
			t.Errorf("%d requests got through a closed limit of 3", got)
		}
		gate.Open()
		synctest.Wait()
		if got, most := f.Total(), f.MaxConcurrent(); got != 20 || most != 3 {
			t.Errorf("%d requests, %d at a time, want 20 and 3", got, most)
		}
	})
}
