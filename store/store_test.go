package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"overmount/block"
	"overmount/store"
	"overmount/store/storetest"
)

var errRefused = errors.New("connection refused")

// object returns the i-th test object.
func object(i int) (block.ID, []byte) { return storetest.Object(uint64(i), 1000) }

// seeded returns a Faulty around a Mem with the first n objects.
func seeded(t *testing.T, n int) *storetest.Faulty {
	t.Helper()
	m := new(store.Mem)
	for i := range n {
		id, bytes := object(i)
		if _, err := m.Put(t.Context(), id, bytes); err != nil {
			t.Fatal(err)
		}
	}
	return storetest.NewFaulty(m)
}

// all is a route for every object.
func all(name string, r store.Reader) store.Route {
	return store.Route{First: 0x00, Last: 0xff, Name: name, Reader: r}
}

func wantObject(t *testing.T, r store.Reader, i int) {
	t.Helper()
	id, want := object(i)
	if got, err := r.Get(t.Context(), id); err != nil || !bytes.Equal(got, want) {
		t.Errorf("Get of object %d = %d bytes, %v, want it", i, len(got), err)
	}
}

// stall makes a Faulty hang, and tells of the requests that do.
func stall(f *storetest.Faulty) func(t *testing.T) <-chan struct{} {
	return func(t *testing.T) <-chan struct{} {
		arrived := make(chan struct{}, 16)
		f.Always(func(ctx context.Context, _ block.ID, _ func() ([]byte, error)) ([]byte, error) {
			arrived <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		})
		return arrived
	}
}

func TestMem(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Subject {
		m := new(store.Mem)
		return storetest.Subject{Reader: m, Writer: m}
	})
}

func TestWrappersPassTheSuite(t *testing.T) {
	for name, wrap := range map[string]func(f *storetest.Faulty) storetest.Subject{
		"Checked": func(f *storetest.Faulty) storetest.Subject {
			return storetest.Subject{Reader: store.Checked(f), Writer: f, Checks: true}
		},
		"Limit": func(f *storetest.Faulty) storetest.Subject {
			l := store.NewLimit(2)
			return storetest.Subject{Reader: l.Reader(f), Writer: l.Writer(f)}
		},
		"Once": func(f *storetest.Faulty) storetest.Subject {
			return storetest.Subject{Reader: store.Once(f), Writer: f}
		},
		"Retry": func(f *storetest.Faulty) storetest.Subject {
			return storetest.Subject{Reader: store.Retry(f, nil), Writer: store.RetryWriter(f, nil)}
		},
		"Routes": func(f *storetest.Faulty) storetest.Subject {
			rs := store.Routes{
				{First: 0x00, Last: 0x7f, Name: "low", Reader: f, Writer: f},
				{First: 0x80, Last: 0xff, Name: "high", Reader: f, Writer: f},
			}
			return storetest.Subject{Reader: rs, Writer: rs}
		},
		"AllTogether": func(f *storetest.Faulty) storetest.Subject {
			l := store.NewLimit(4)
			r := store.Once(store.Retry(store.Routes{all("only", store.Checked(l.Reader(f)))}, nil))
			return storetest.Subject{Reader: r, Writer: l.Writer(f), Checks: true}
		},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(*testing.T) storetest.Subject {
				f := storetest.NewFaulty(new(store.Mem))
				s := wrap(f)
				s.Stall = stall(f)
				return s
			})
		})
	}
}

func TestWrappersPassForgetOn(t *testing.T) {
	for name, wrap := range map[string]func(store.Reader) store.Reader{
		"Checked": store.Checked,
		"Once":    store.Once,
		"Retry":   func(r store.Reader) store.Reader { return store.Retry(r, nil) },
		"Limit":   func(r store.Reader) store.Reader { return store.NewLimit(1).Reader(r) },
		"Routes":  func(r store.Reader) store.Reader { return store.Routes{all("", r)} },
	} {
		f := seeded(t, 0)
		id, _ := object(0)
		wrap(f).(store.Forgetter).Forget(id)
		if got := f.Forgotten(id); got != 1 {
			t.Errorf("%s: Forget reached the wrapped store %d times, want 1", name, got)
		}
		wrap(new(store.Mem)).(store.Forgetter).Forget(id) // no Forgetter: nothing happens
	}
}

// syncs is a Writer that counts and may fail.
type syncs struct {
	store.Mem
	n   int
	err error
}

func (s *syncs) Sync(context.Context) error { s.n++; return s.err }

func TestWrappersPassSyncOn(t *testing.T) {
	for name, wrap := range map[string]func(store.Writer) store.Writer{
		"Retry":  func(w store.Writer) store.Writer { return store.RetryWriter(w, nil) },
		"Limit":  func(w store.Writer) store.Writer { return store.NewLimit(1).Writer(w) },
		"Routes": func(w store.Writer) store.Writer { return store.Routes{{Last: 0xff, Writer: w}} },
	} {
		s := &syncs{err: errRefused}
		if err := wrap(s).(store.Syncer).Sync(t.Context()); s.n != 1 || !errors.Is(err, errRefused) {
			t.Errorf("%s: Sync = %v after %d calls of the wrapped store, want its error after 1", name, err, s.n)
		}
		if err := wrap(new(store.Mem)).(store.Syncer).Sync(t.Context()); err != nil {
			t.Errorf("%s: Sync around a store that is no Syncer = %v, want nil", name, err)
		}
	}
}

func TestChecked(t *testing.T) {
	id, _ := object(0)
	for name, c := range map[string]struct {
		fault storetest.Fault
		want  string
	}{
		"wrong bytes":  {storetest.WrongBytes(), "1000 bytes"},
		"short object": {storetest.Truncated(), "500 bytes"},
	} {
		f := seeded(t, 1)
		f.Next(c.fault)
		got, err := store.Checked(f).Get(t.Context(), id)
		if got != nil || !errors.Is(err, block.ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Get = %d bytes, %v, want block.ErrCorrupt with %q", name, len(got), err, c.want)
		}
		wantObject(t, store.Checked(f), 0)
	}
}

func TestTemporary(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{store.ErrNotFound, false},
		{store.ErrForbidden, false},
		{store.ErrNoRoute, false},
		{fmt.Errorf("GET x: %w", block.ErrCorrupt), false},
		{errRefused, true},
		{fs.ErrNotExist, true},
		{context.DeadlineExceeded, true},
		{&store.BusyError{Err: errRefused, After: time.Second}, true},
	} {
		if got := store.Temporary(c.err); got != c.want {
			t.Errorf("Temporary(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

func TestLayout(t *testing.T) {
	id, err := block.ParseID("8036726c87794aa106471b06ea41ee6c358a2bdae446e4acdef3d760657a6012")
	if err != nil {
		t.Fatal(err)
	}
	for name, prefix := range map[string]string{"sharded": "80/", "flat": "", "sharded2": "80/36/"} {
		l, err := store.ParseLayout(name)
		if err != nil || l.String() != name {
			t.Errorf("ParseLayout(%q) = %v, %v", name, l, err)
		}
		if got, want := l.Key(id), prefix+id.String(); got != want {
			t.Errorf("%v.Key = %q, want %q", l, got, want)
		}
	}
	if l, err := store.ParseLayout("deep"); err == nil {
		t.Errorf("ParseLayout(%q) = %v, want an error", "deep", l)
	}
}

func TestCheckSize(t *testing.T) {
	for n, ok := range map[int64]bool{-1: false, 0: false, 1: true, block.MaxObject: true, block.MaxObject + 1: false, 1 << 62: false} {
		if err := store.CheckSize(n); (err == nil) != ok || (err != nil && !errors.Is(err, block.ErrCorrupt)) {
			t.Errorf("CheckSize(%d) = %v, want ok %v or block.ErrCorrupt", n, err, ok)
		}
	}
}
