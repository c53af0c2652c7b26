// Package storetest tests stores, and gives other packages' tests stores that
// fail.
//
//	Run         the suite that every store passes
//	Faulty      a store around a store, which fails on demand and counts
//	HTTPServer  a web server over a store, which fails on demand and counts
//	ZDBServer   a 0-db in memory, which fails on demand and counts
//
// Nothing in here sleeps: a test waits for a request with a [Gate] and for an
// outage with [HTTPServer.Stop] or [ZDBServer.Stop].
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"overmount/block"
	"overmount/store"
)

// Object returns n bytes that depend on seed alone, and their ID. They are no
// sealed block: a store does not care.
func Object(seed uint64, n int) (block.ID, []byte) {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	object := make([]byte, n)
	rand.NewChaCha8(key).Read(object)
	return block.Sum(object), object
}

// A Subject is a store under test, empty at first.
type Subject struct {
	Reader store.Reader

	// Writer writes what Reader reads. A store without one needs a Seed.
	Writer store.Writer

	// Seed puts bytes into the store behind its back. Nil: Writer does it.
	Seed func(t *testing.T, id block.ID, object []byte)

	// Checks says that Reader compares objects with their IDs.
	Checks bool

	// Stall makes every later request to the source hang until its context
	// ends. One value arrives for each such request. Nil: a request to this
	// store cannot hang.
	Stall func(t *testing.T) (arrived <-chan struct{})
}

func (s Subject) seed(t *testing.T, id block.ID, object []byte) {
	t.Helper()
	if s.Seed != nil {
		s.Seed(t, id, object)
		return
	}
	if _, err := s.Writer.Put(t.Context(), id, object); err != nil {
		t.Fatalf("Put(%v) to seed the store = %v", id, err)
	}
}

func (s Subject) want(t *testing.T, id block.ID, want []byte) {
	t.Helper()
	got, err := s.Reader.Get(t.Context(), id)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("Get(%v) = %d bytes, %v, want the %d bytes that were put", id, len(got), err, len(want))
	}
}

// Run runs the suite. open returns a new, empty store each time.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, c := range []struct {
		name   string
		writes bool
		test   func(t *testing.T, s Subject)
	}{
		{"Sizes", false, testSizes},
		{"NotFound", false, testNotFound},
		{"ConcurrentGets", false, testConcurrentGets},
		{"GetCancelledBefore", false, testGetCancelledBefore},
		{"GetCancelledMidway", false, testGetCancelledMidway},
		{"WrongBytes", false, testWrongBytes},
		{"PutTwice", true, testPutTwice},
		{"PutKeepsNoReference", true, testPutKeepsNoReference},
		{"PutImpossibleSizes", true, testPutImpossibleSizes},
		{"ConcurrentPutsOfOneObject", true, testConcurrentPuts},
		{"PutCancelledBefore", true, testPutCancelledBefore},
		{"PutCancelledMidway", true, testPutCancelledMidway},
		{"Sync", true, testSync},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			if c.writes && s.Writer == nil {
				t.Skip("the store is read-only")
			}
			c.test(t, s)
		})
	}
}

func testSizes(t *testing.T, s Subject) {
	type object struct {
		id    block.ID
		bytes []byte
	}
	var all []object
	for _, n := range []int{1, 16, 17, 4095, 4096, 4097, block.Size, block.MaxObject} {
		id, bytes := Object(uint64(n), n)
		s.seed(t, id, bytes)
		all = append(all, object{id, bytes})
	}
	for _, o := range all {
		s.want(t, o.id, o.bytes)
	}
}

func testNotFound(t *testing.T, s Subject) {
	missing, _ := Object(1, 100)
	check := func(when string) {
		t.Helper()
		got, err := s.Reader.Get(t.Context(), missing)
		if got != nil || !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get of a missing object %s = %d bytes, %v, want ErrNotFound", when, len(got), err)
		}
		if errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Get of a missing object %s = %v, which is fs.ErrNotExist: a lost block would look like a missing file", when, err)
		}
		if store.Temporary(err) {
			t.Errorf("Temporary(%v) = true for a missing object, want false", err)
		}
	}
	check("in an empty store")
	id, object := Object(2, 100)
	s.seed(t, id, object)
	check("beside another one")
	s.want(t, id, object)
	check("after a successful Get")
}

func testConcurrentGets(t *testing.T, s Subject) {
	const objects, readers = 4, 8
	var ids [objects]block.ID
	var want [objects][]byte
	for i := range objects {
		ids[i], want[i] = Object(uint64(i), 10_000)
		s.seed(t, ids[i], want[i])
	}
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() { s.want(t, ids[i%objects], want[i%objects]) })
	}
	wg.Wait()
}

func testGetCancelledBefore(t *testing.T, s Subject) {
	id, object := Object(1, 100)
	s.seed(t, id, object)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := s.Reader.Get(ctx, id); got != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("Get with a cancelled context = %d bytes, %v, want context.Canceled", len(got), err)
	}
	s.want(t, id, object)
}

func testGetCancelledMidway(t *testing.T, s Subject) {
	if s.Stall == nil {
		t.Skip("a request to this store cannot hang")
	}
	id, object := Object(1, 100)
	s.seed(t, id, object)
	cancelMidway(t, s, func(ctx context.Context) error {
		_, err := s.Reader.Get(ctx, id)
		return err
	})
}

func testPutCancelledMidway(t *testing.T, s Subject) {
	if s.Stall == nil {
		t.Skip("a request to this store cannot hang")
	}
	id, object := Object(1, 100)
	cancelMidway(t, s, func(ctx context.Context) error {
		_, err := s.Writer.Put(ctx, id, object)
		return err
	})
}

func cancelMidway(t *testing.T, s Subject, request func(context.Context) error) {
	t.Helper()
	arrived := s.Stall(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- request(ctx) }()
	select {
	case <-arrived:
	case err := <-ended:
		t.Fatalf("the request ended with %v before it reached the source", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("request cancelled midway = %v, want context.Canceled", err)
	}
}

func testWrongBytes(t *testing.T, s Subject) {
	if !s.Checks {
		t.Skip("the store does not compare objects with their IDs")
	}
	_, wrong := Object(2, 100)
	id, right := Object(1, 100)
	for name, bytes := range map[string][]byte{"another object": wrong, "a truncated one": right[:50], "a longer one": append(right, 0)} {
		s.seed(t, id, bytes)
		got, err := s.Reader.Get(t.Context(), id)
		if got != nil || !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("Get where the store has %s = %d bytes, %v, want block.ErrCorrupt", name, len(got), err)
		}
	}
}

func testPutTwice(t *testing.T, s Subject) {
	id, object := Object(1, 1000)
	for _, want := range []bool{true, false} {
		stored, err := s.Writer.Put(t.Context(), id, object)
		if stored != want || err != nil {
			t.Errorf("Put = %v, %v, want %v", stored, err, want)
		}
		s.want(t, id, object)
	}
}

func testPutKeepsNoReference(t *testing.T, s Subject) {
	id, object := Object(1, 1000)
	buf := bytes.Clone(object)
	if _, err := s.Writer.Put(t.Context(), id, buf); err != nil {
		t.Fatalf("Put = %v", err)
	}
	if !bytes.Equal(buf, object) {
		t.Error("Put modified the object")
	}
	clear(buf)
	s.want(t, id, object)
}

func testPutImpossibleSizes(t *testing.T, s Subject) {
	for _, n := range []int{0, block.MaxObject + 1} {
		id, object := Object(1, n)
		if stored, err := s.Writer.Put(t.Context(), id, object); stored || err == nil {
			t.Errorf("Put of %d bytes = %v, %v, want an error: nobody could read it", n, stored, err)
		}
	}
}

func testConcurrentPuts(t *testing.T, s Subject) {
	id, object := Object(1, 10_000)
	var wrote atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			stored, err := s.Writer.Put(t.Context(), id, object)
			if err != nil {
				t.Errorf("Put = %v", err)
			}
			if stored {
				wrote.Add(1)
			}
			s.want(t, id, object)
		})
	}
	wg.Wait()
	if wrote.Load() == 0 {
		t.Error("8 Puts of one object into an empty store all said that it was there before")
	}
}

func testPutCancelledBefore(t *testing.T, s Subject) {
	id, object := Object(1, 100)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if stored, err := s.Writer.Put(ctx, id, object); stored || !errors.Is(err, context.Canceled) {
		t.Errorf("Put with a cancelled context = %v, %v, want context.Canceled", stored, err)
	}
	if _, err := s.Reader.Get(t.Context(), id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get after a Put with a cancelled context = %v, want ErrNotFound", err)
	}
}

func testSync(t *testing.T, s Subject) {
	syncer, ok := s.Writer.(store.Syncer)
	if !ok {
		t.Skip("the store is no Syncer")
	}
	if err := syncer.Sync(t.Context()); err != nil {
		t.Errorf("Sync of an empty store = %v", err)
	}
	id, object := Object(1, 100)
	s.seed(t, id, object)
	if err := syncer.Sync(t.Context()); err != nil {
		t.Errorf("Sync = %v", err)
	}
	s.want(t, id, object)
}
