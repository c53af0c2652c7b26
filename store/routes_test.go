package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"overmount/block"
	"overmount/store"
	"overmount/store/storetest"
)

func TestRoutesByRange(t *testing.T) {
	low, high := new(store.Mem), new(store.Mem)
	rs := store.Routes{
		{First: 0x00, Last: 0x7f, Name: "low", Reader: low, Writer: low},
		{First: 0x80, Last: 0xff, Name: "high", Reader: high, Writer: high},
		{First: 0xff, Last: 0x00, Name: "none", Reader: seeded(t, 0)},
	}
	want := map[*store.Mem]int{}
	for i := range 32 {
		id, bytes := object(i)
		if id[0] < 0x80 {
			want[low]++
		} else {
			want[high]++
		}
		if stored, err := rs.Put(t.Context(), id, bytes); !stored || err != nil {
			t.Fatalf("Put = %v, %v", stored, err)
		}
		wantObject(t, rs, i)
	}
	if low.Len() != want[low] || high.Len() != want[high] || low.Len() == 0 || high.Len() == 0 {
		t.Errorf("stores hold %d and %d objects, want %d and %d", low.Len(), high.Len(), want[low], want[high])
	}
}

// Each way in which one replica may fail leads to the other.
func TestRoutesFallBack(t *testing.T) {
	for name, fault := range map[string]storetest.Fault{
		"not found":      storetest.NotFound(),
		"refused":        storetest.Fail(errRefused),
		"forbidden":      storetest.Fail(store.ErrForbidden),
		"wrong bytes":    storetest.WrongBytes(),
		"short object":   storetest.Truncated(),
		"own time limit": storetest.Fail(context.DeadlineExceeded),
	} {
		bad, good := seeded(t, 1), seeded(t, 1)
		bad.Always(fault)
		rs := store.Routes{all("bad", store.Checked(bad)), all("good", store.Checked(good))}
		wantObject(t, rs, 0)
		if id, _ := object(0); bad.Requests(id) != 1 || good.Requests(id) != 1 {
			t.Errorf("%s: %d and %d requests, want one each", name, bad.Requests(id), good.Requests(id))
		}
	}
}

func TestRoutesOrder(t *testing.T) {
	first, second := seeded(t, 1), seeded(t, 1)
	wantObject(t, store.Routes{all("first", first), all("second", second)}, 0)
	if first.Total() != 1 || second.Total() != 0 {
		t.Errorf("%d and %d requests, want 1 and 0", first.Total(), second.Total())
	}
}

// What the error of several stores is, and whether it may pass.
func TestRoutesErrors(t *testing.T) {
	busy := func(d time.Duration) error { return &store.BusyError{Err: errRefused, After: d} }
	kinds := []error{store.ErrNotFound, store.ErrForbidden, block.ErrCorrupt, errRefused}
	for _, c := range []struct {
		name      string
		errs      []error
		is        []error // of kinds
		temporary bool
	}{
		{"both say no", []error{store.ErrNotFound, store.ErrNotFound}, []error{store.ErrNotFound}, false},
		{"no and refused", []error{store.ErrNotFound, errRefused}, []error{errRefused}, true},
		{"refused and no", []error{errRefused, store.ErrNotFound}, []error{errRefused}, true},
		{"refused and corrupt", []error{errRefused, block.ErrCorrupt}, []error{errRefused}, true},
		{"no and corrupt", []error{store.ErrNotFound, block.ErrCorrupt}, []error{block.ErrCorrupt}, false},
		{"no and forbidden", []error{store.ErrNotFound, store.ErrForbidden}, []error{store.ErrForbidden}, false},
		{"three", []error{store.ErrForbidden, busy(time.Second), store.ErrNotFound}, []error{errRefused}, true},
		{"one", []error{store.ErrNotFound}, []error{store.ErrNotFound}, false},
	} {
		var rs store.Routes
		for i, err := range c.errs {
			f := seeded(t, 0)
			f.Always(storetest.Fail(err))
			rs = append(rs, all("store-"+string(rune('a'+i)), f))
		}
		// Nested once more: a route may lead to routes.
		for _, r := range []store.Reader{rs, store.Routes{all("outer", rs)}} {
			id, _ := object(0)
			_, err := r.Get(t.Context(), id)
			if got := store.Temporary(err); got != c.temporary {
				t.Errorf("%s: Temporary(%v) = %v, want %v", c.name, err, got, c.temporary)
			}
			for _, kind := range kinds {
				want := false
				for _, is := range c.is {
					want = want || is == kind
				}
				if got := errors.Is(err, kind); got != want {
					t.Errorf("%s: errors.Is(%v, %v) = %v, want %v", c.name, err, kind, got, want)
				}
			}
			for i, e := range c.errs {
				if want := "store-" + string(rune('a'+i)) + ": " + e.Error(); !strings.Contains(err.Error(), want) {
					t.Errorf("%s: error %q does not say %q", c.name, err, want)
				}
			}
		}
	}
}

func TestRoutesWithoutStore(t *testing.T) {
	id, bytes := object(0)
	other := id[0] ^ 0xff
	rs := store.Routes{{First: other, Last: other, Reader: seeded(t, 0), Writer: seeded(t, 0)}, {Last: 0xff}}
	digits := id.String()[:2]
	if _, err := rs.Get(t.Context(), id); !errors.Is(err, store.ErrNoRoute) || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), digits) {
		t.Errorf("Get = %v, want ErrNoRoute that names %s", err, digits)
	}
	if _, err := rs.Put(t.Context(), id, bytes); !errors.Is(err, store.ErrNoRoute) || !strings.Contains(err.Error(), digits) {
		t.Errorf("Put = %v, want ErrNoRoute that names %s", err, digits)
	}
}

func TestRoutesGetEndsWithItsContext(t *testing.T) {
	id, _ := object(0)
	first, second := seeded(t, 1), seeded(t, 1)
	for _, rs := range []store.Routes{{all("first", first)}, {all("first", first), all("second", second)}} {
		ctx, cancel := context.WithCancel(t.Context())
		first.Next(func(context.Context, block.ID, func() ([]byte, error)) ([]byte, error) {
			cancel()
			return nil, errRefused
		})
		if _, err := rs.Get(ctx, id); !errors.Is(err, context.Canceled) || second.Total() != 0 {
			t.Errorf("Get from %d stores = %v after %d requests to the second, want context.Canceled after none", len(rs), err, second.Total())
		}
	}
}

func TestRoutesPut(t *testing.T) {
	id, bytes := object(0)
	write := func(w store.Writer) store.Route { return store.Route{Last: 0xff, Name: "w", Writer: w} }

	t.Run("all at once", func(t *testing.T) {
		gate := storetest.NewGate()
		a, b := seeded(t, 0), seeded(t, 1) // b has it already
		a.Always(storetest.Through(gate))
		b.Always(storetest.Through(gate))
		go func() {
			<-gate.Arrived()
			<-gate.Arrived() // both, before either ends
			gate.Open()
		}()
		if stored, err := (store.Routes{write(a), write(b)}).Put(t.Context(), id, bytes); !stored || err != nil {
			t.Errorf("Put where one of two has it = %v, %v, want true", stored, err)
		}
		if stored, err := (store.Routes{write(a), write(b)}).Put(t.Context(), id, bytes); stored || err != nil {
			t.Errorf("Put where both have it = %v, %v, want false", stored, err)
		}
	})
	t.Run("first error ends it", func(t *testing.T) {
		a, b := seeded(t, 0), seeded(t, 0)
		a.Always(storetest.Hang())
		b.Always(storetest.Fail(errRefused))
		if stored, err := (store.Routes{write(a), write(b)}).Put(t.Context(), id, bytes); stored || !errors.Is(err, errRefused) {
			t.Errorf("Put where one store refuses = %v, %v, want its error", stored, err)
		}
	})
}

func TestRoutesSyncGoesOn(t *testing.T) {
	a, b := &syncs{err: errRefused}, &syncs{}
	err := store.Routes{{Name: "a", Writer: a}, {Reader: seeded(t, 0)}, {Name: "b", Writer: b}}.Sync(t.Context())
	if !errors.Is(err, errRefused) || !strings.HasPrefix(err.Error(), "a: ") || b.n != 1 {
		t.Errorf("Sync = %v, and %d calls of the second store, want the error of a and 1", err, b.n)
	}
}
