package store_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"overmount/block"
	"overmount/internal/pulse"
	"overmount/store"
	"overmount/store/storetest"
)

// after answers like the store, some time later.
func after(d time.Duration) storetest.Fault {
	return func(ctx context.Context, _ block.ID, next func() ([]byte, error)) ([]byte, error) {
		select {
		case <-time.After(d):
			return next()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ranked returns a Reader of stores with the first hundred objects.
func ranked(t *testing.T, n int) (store.Reader, []*storetest.Faulty) {
	t.Helper()
	var rs store.Routes
	var fs []*storetest.Faulty
	for i := range n {
		f := seeded(t, 100)
		fs = append(fs, f)
		rs = append(rs, all("store-"+string(rune('a'+i)), f))
	}
	return store.Ranked(rs), fs
}

// trialsEnd waits for requests that outlive their read, for ten seconds at most.
func trialsEnd() { <-time.After(11 * time.Second) }

// trickle takes 6 s, in which something comes all the time.
func trickle(ctx context.Context, _ block.ID, next func() ([]byte, error)) ([]byte, error) {
	for range 20 {
		select {
		case <-time.After(300 * time.Millisecond):
			pulse.Beat(ctx)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return next()
}

// timed returns how long a Get of the i-th object takes, which must succeed.
func timed(t *testing.T, r store.Reader, i int) time.Duration {
	t.Helper()
	start := time.Now()
	wantObject(t, r, i)
	return time.Since(start)
}

func TestRankedIsLikeRoutes(t *testing.T) {
	busy := &store.BusyError{Err: errRefused, After: 7 * time.Second}
	kinds := []error{nil, store.ErrNotFound, store.ErrForbidden, block.ErrCorrupt, errRefused, busy}
	for _, a := range kinds {
		for _, b := range kinds {
			synctest.Test(t, func(t *testing.T) {
				var answers [2]string
				for i, wrap := range []func(store.Routes) store.Reader{func(rs store.Routes) store.Reader { return rs }, store.Ranked} {
					first, second := seeded(t, 1), seeded(t, 1)
					for f, err := range map[*storetest.Faulty]error{first: a, second: b} {
						if err != nil {
							f.Always(storetest.Fail(err))
						}
					}
					start := time.Now()
					id, _ := object(0)
					object, err := wrap(store.Routes{all("a", first), all("b", second)}).Get(t.Context(), id)
					var wish time.Duration
					if e, ok := errors.AsType[interface {
						error
						RetryAfter() time.Duration
					}](err); ok {
						wish = e.RetryAfter()
					}
					answers[i] = string(object[:min(len(object), 8)]) + strings.Join([]string{"", errorText(err), wish.String(), time.Since(start).String()}, " | ")
					for _, kind := range kinds[1:] {
						if errors.Is(err, kind) {
							answers[i] += " is " + kind.Error()
						}
					}
					if second.Total() > 0 != (a != nil) {
						t.Errorf("the first store answers %v, and the second was asked %d times", a, second.Total())
					}
				}
				if answers[0] != answers[1] {
					t.Errorf("stores answer %v and %v: Ranked says\n%s, Routes\n%s", a, b, answers[1], answers[0])
				}
			})
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRankedRoutes(t *testing.T) {
	id, _ := object(0)
	other := id[0] ^ 0xff
	f := seeded(t, 1)
	r := store.Ranked(store.Routes{{First: other, Last: other, Reader: f}, {Last: 0xff}, {First: 9, Last: 3, Reader: f}})
	if _, err := r.Get(t.Context(), id); !errors.Is(err, store.ErrNoRoute) || !strings.Contains(err.Error(), id.String()[:2]) {
		t.Errorf("Get = %v, want ErrNoRoute that names %s", err, id.String()[:2])
	}
	// Two routes to one store are one store.
	f.Always(storetest.NotFound())
	nested := store.Routes{all("nested", f)} // not comparable
	r = store.Ranked(store.Routes{all("a", f), all("b", f), all("c", store.Checked(f)), all("d", store.Checked(f)), all("e", nested), all("f", nested)})
	if _, err := r.Get(t.Context(), id); !errors.Is(err, store.ErrNotFound) || f.Total() != 4 {
		t.Errorf("Get = %v after %d requests, want ErrNotFound after 4", err, f.Total())
	}
}

// What the first store does, and how long reads take that the second, which needs
// 20 ms, could answer: those that find out, and those after them.
func TestRankedLeavesABadStoreAside(t *testing.T) {
	const d = 20 * time.Millisecond
	for _, c := range []struct {
		name          string
		fault         storetest.Fault
		first, after  time.Duration // at most
		asked, answer int           // of the first store, for the 50 reads after; least and most
	}{
		{"hangs", storetest.Hang(), 500*time.Millisecond + d, d, 1, 5},
		{"refuses", storetest.Fail(errRefused), d, d, 1, 5},
		{"has nothing", storetest.NotFound(), d, d, 1, 5},
		{"takes 5 s", after(5 * time.Second), 500*time.Millisecond + d, d, 1, 5},
		{"trickles", trickle, 500*time.Millisecond + d, d, 1, 5},
		{"takes 200 ms", after(200 * time.Millisecond), 200 * time.Millisecond, 200 * time.Millisecond, 50, 50},
	} {
		synctest.Test(t, func(t *testing.T) {
			defer trialsEnd()
			r, fs := ranked(t, 2)
			fs[0].Always(c.fault)
			fs[1].Always(after(d))
			for i := range 4 {
				if took := timed(t, r, i); took > c.first {
					t.Errorf("%s: read %d takes %v, want at most %v", c.name, i, took, c.first)
				}
			}
			before := fs[0].Total()
			for i := range 50 {
				if took := timed(t, r, i+4); took > c.after {
					t.Errorf("%s: read %d takes %v, want at most %v", c.name, i+4, took, c.after)
				}
			}
			if n := fs[0].Total() - before; n < c.asked && c.asked == 50 || n > c.answer {
				t.Errorf("%s: the 50 reads after that ask it %d times, want %d to %d", c.name, n, c.asked, c.answer)
			}
		})
	}
}

// Many reads that have all begun at a bad store, as at boot.
func TestRankedBurstToABadStore(t *testing.T) {
	for name, fault := range map[string]storetest.Fault{"hangs": storetest.Hang(), "trickles": trickle, "takes 9 s": after(9 * time.Second)} {
		synctest.Test(t, func(t *testing.T) {
			defer trialsEnd()
			r, fs := ranked(t, 2)
			fs[0].Always(fault)
			fs[1].Always(after(20 * time.Millisecond))
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					if took := timed(t, r, i); took > 1200*time.Millisecond {
						t.Errorf("%s: a read takes %v, want at most 1.2 s", name, took)
					}
				})
			}
			wg.Wait()
		})
	}
}

// A store that has recovered is asked first again, and no read has waited for
// that.
func TestRankedStoreComesBack(t *testing.T) {
	for name, fault := range map[string]storetest.Fault{"hung": storetest.Hang(), "refused": storetest.Fail(errRefused), "was slow": after(3 * time.Second)} {
		synctest.Test(t, func(t *testing.T) {
			defer trialsEnd()
			r, fs := ranked(t, 2)
			fs[0].Always(fault)
			fs[1].Always(after(20 * time.Millisecond))
			for i := range 100 {
				timed(t, r, i)
				<-time.After(time.Second)
			}
			asked := fs[0].Total()
			if asked < 8 || asked > 25 {
				t.Errorf("%s: asked %d times in 100 s, want a few", name, asked)
			}
			fs[0].Always(after(20 * time.Millisecond))
			for start := time.Now(); ; <-time.After(time.Second) {
				before := fs[1].Total()
				if took := timed(t, r, 0); took > 20*time.Millisecond {
					t.Errorf("%s: a read takes %v", name, took)
				}
				if fs[1].Total() == before {
					break // the first alone was asked
				}
				if time.Since(start) > 2*time.Minute {
					t.Fatalf("%s: it is not asked first again within two minutes", name)
				}
			}
		})
	}
}

// The tail of a store's requests is hedged, the rest is not.
func TestRankedHedgesTheTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, fs := ranked(t, 2)
		for i := range 64 {
			fs[0].Next(after(time.Duration(80-i) * time.Millisecond)) // 95 of 100 within 77 ms
			timed(t, r, i)
		}
		if fs[1].Total() != 0 {
			t.Errorf("the second store was asked %d times while the first was as always", fs[1].Total())
		}
		ended := make(chan struct{})
		fs[0].Next(func(ctx context.Context, _ block.ID, _ func() ([]byte, error)) ([]byte, error) {
			<-ctx.Done()
			close(ended)
			return nil, ctx.Err()
		})
		if took := timed(t, r, 0); took != 77*time.Millisecond || fs[1].Total() != 1 {
			t.Errorf("a request that hangs is answered after %v, with %d by the second store; want 77 ms, 1", took, fs[1].Total())
		}
		<-ended // the loser is cancelled
		fs[0].Next(after(90 * time.Millisecond))
		fs[1].Next(after(time.Second))
		if took := timed(t, r, 0); took != 90*time.Millisecond {
			t.Errorf("the slower of two answers counts: %v, want 90 ms", took)
		}
	})
}

// On a network where everything has become slow few requests are made twice.
func TestRankedHedgesWithinItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, fs := ranked(t, 2)
		for _, f := range fs {
			f.Always(after(3 * time.Second))
		}
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				<-time.After(time.Duration(i) * 300 * time.Millisecond) // as many as ten at once
				wantObject(t, r, i)
			})
		}
		wg.Wait()
		// Silence of more than a second looks like an outage: that costs one
		// request in 0.75 s.
		if n := fs[0].Total() + fs[1].Total(); n > 100+4+100/16+45 {
			t.Errorf("100 reads take %d requests", n)
		}
	})
}

// Two slow stores from which something comes all the time are not in an outage.
func TestRankedDoesNotDoubleASlowNetwork(t *testing.T) {
	for _, stores := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			r, fs := ranked(t, stores)
			for _, f := range fs {
				f.Always(trickle)
			}
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() { wantObject(t, r, i) })
			}
			wg.Wait()
			sum := 0
			for _, f := range fs {
				sum += f.Total()
			}
			if most := 100 + (stores-1)*(4+100/16); sum > most {
				t.Errorf("100 reads from %d stores take %d requests, want at most %d", stores, sum, most)
			}
		})
	}
}

// A store that says when to ask again is asked last until then, and not hedged to.
func TestRankedKeepsRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, fs := ranked(t, 2)
		fs[0].Next(storetest.Fail(&store.BusyError{Err: errRefused, After: 20 * time.Second}))
		start := time.Now()
		timed(t, r, 0)
		fs[1].Always(after(2 * time.Second))
		for time.Since(start) < 18*time.Second {
			timed(t, r, 1)
		}
		if n := fs[0].Total(); n != 1 {
			t.Errorf("a busy store was asked %d times, want once", n)
		}
		fs[1].Always(storetest.NotFound())
		timed(t, r, 2)
		if n := fs[0].Total(); n != 2 {
			t.Errorf("for an object that no other store has it was asked %d times, want one more", n)
		}
		id, _ := object(3)
		_, err := r.Get(t.Context(), id) // not again in the same second
		if n := fs[0].Total(); n != 2 || !store.Temporary(err) || !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "left alone for another 2s") {
			t.Errorf("it was asked %d times, and Get = %v, want 2 and an error that tells when", n, err)
		}
		wantObject(t, store.Retry(r, nil), 3)
		if d := time.Since(start); d < 20*time.Second || d > 20200*time.Millisecond {
			t.Errorf("the object came after %v, want when it may be asked again", d)
		}
		fs[1].Always(nil)
		before := fs[1].Total()
		timed(t, r, 4)
		if fs[1].Total() != before {
			t.Error("after that time it is not asked first")
		}
	})
}

// A lone store that wants to be left alone is.
func TestRankedLoneStoreIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, fs := ranked(t, 1)
		fs[0].Next(storetest.Fail(&store.BusyError{Err: errRefused, After: 20 * time.Second}))
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				<-time.After(time.Duration(i) * time.Millisecond)
				wantObject(t, store.Retry(r, nil), i)
				if d := time.Since(start); d < 20*time.Second || d > 20200*time.Millisecond {
					t.Errorf("the object came after %v, want 20 s, as asked", d)
				}
			})
		}
		wg.Wait()
		if n := fs[0].Total(); n != 51 {
			t.Errorf("it was asked %d times, want once before and 50 times after that", n)
		}
	})
}

// A lone store is not hedged, however slow it is, as long as something comes.
func TestRankedLoneStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, fs := ranked(t, 1)
		fs[0].Next(after(900 * time.Millisecond))
		timed(t, r, 0)
		if fs[0].Total() != 1 {
			t.Errorf("%d requests, want 1", fs[0].Total())
		}
	})
}

// dead is a store whose connections are dead from start to end: what is asked
// meanwhile is never answered.
func dead(end time.Time) storetest.Fault {
	return func(ctx context.Context, _ block.ID, next func() ([]byte, error)) ([]byte, error) {
		if time.Now().Before(end) {
			select {
			case <-time.After(15 * time.Second): // the limit of httpstore
				return nil, errRefused
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return next()
	}
}

// A dead network, then a live one, with one store and with more, one of which may
// do otherwise.
func TestRankedReadsGoOnAfterAnOutage(t *testing.T) {
	refuses := func(end time.Time) storetest.Fault {
		return func(ctx context.Context, _ block.ID, next func() ([]byte, error)) ([]byte, error) {
			if time.Now().Before(end) {
				return nil, errRefused
			}
			return next()
		}
	}
	never := func(time.Time) storetest.Fault { return storetest.Hang() }
	busy := func(time.Time) storetest.Fault {
		return storetest.Fail(&store.BusyError{Err: errRefused, After: time.Minute})
	}
	for name, faults := range map[string][]func(time.Time) storetest.Fault{
		"one":                          {dead},
		"two":                          {dead, dead},
		"one dead, one refuses":        {dead, refuses},
		"one refuses, one dead":        {refuses, dead},
		"one dead for ever":            {never, dead},
		"one refuses, the other never": {never, refuses},
		"one busy":                     {busy, dead},
		"all refuse":                   {refuses, refuses, refuses},
	} {
		for _, outage := range []time.Duration{time.Second, 3 * time.Second, 14900 * time.Millisecond, 16 * time.Second, 61 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				defer trialsEnd()
				r, fs := ranked(t, len(faults))
				end := time.Now().Add(outage)
				for i, f := range fs {
					f.Always(faults[i](end))
				}
				retried := store.Retry(r, nil)
				var wg sync.WaitGroup
				const readers = 20
				for i := range readers {
					wg.Go(func() {
						<-time.After(time.Duration(i) * outage / readers)
						wantObject(t, retried, i)
						if late := time.Since(end); late > 1800*time.Millisecond {
							t.Errorf("%s: after an outage of %v a read takes %v", name, outage, late)
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// In an outage there are few requests beside those of the readers, and over new
// connections.
func TestRankedAsksLittleInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, fs := ranked(t, 1)
		var mu sync.Mutex
		fresh, running, most := 0, 0, 0
		fs[0].Always(func(ctx context.Context, _ block.ID, _ func() ([]byte, error)) ([]byte, error) {
			mu.Lock()
			running++
			most = max(most, running)
			if pulse.Anew(ctx) {
				fresh++
			}
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			running--
			mu.Unlock()
			return nil, ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				id, _ := object(i)
				if _, err := r.Get(ctx, id); err != context.DeadlineExceeded {
					t.Errorf("Get = %v, want the caller's error", err)
				}
			})
		}
		wg.Wait()
		if fresh < 50 || fresh > 81 || fs[0].Total() != 30+fresh || most > 30+2 {
			t.Errorf("30 reads in an outage of a minute make %d requests, %d over new connections, %d at once; want 30 and 50 to 80, and 32", fs[0].Total(), fresh, most)
		}
	})
}

// The caller's end is the end of its requests.
func TestRankedEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, fs := ranked(t, 2)
		for _, f := range fs {
			f.Always(storetest.Hang())
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(5*time.Second, cancel)
		id, _ := object(0)
		start := time.Now()
		if _, err := r.Get(ctx, id); err != context.Canceled || time.Since(start) != 5*time.Second {
			t.Errorf("Get = %v after %v, want the context's error after 5 s", err, time.Since(start))
		}
		// synctest fails if a request goes on
	})
}

func TestRankedPanic(t *testing.T) {
	r, fs := ranked(t, 1)
	fs[0].Next(func(context.Context, block.ID, func() ([]byte, error)) ([]byte, error) { panic("out of tea") })
	id, _ := object(0)
	if _, err := r.Get(t.Context(), id); err == nil || !strings.Contains(err.Error(), "out of tea") {
		t.Errorf("Get = %v, want the panic", err)
	}
}

func BenchmarkRanked(b *testing.B) {
	m := new(store.Mem)
	id, bytes := object(0)
	if _, err := m.Put(b.Context(), id, bytes); err != nil {
		b.Fatal(err)
	}
	one := store.Routes{all("a", m)}
	two := store.Routes{all("a", m), all("b", new(store.Mem))}
	for name, r := range map[string]store.Reader{"routes": two, "one": store.Ranked(one), "two": store.Ranked(two)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Get(b.Context(), id); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
