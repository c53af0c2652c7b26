package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree"
	"overmount/tree/treetest"
)

// many returns a tree with n files of one block each, f00 and so on.
func many(tb testing.TB, n int, o *tree.Options) (*tree.Tree, []manifest.Ino, *storetest.Faulty) {
	tb.Helper()
	var files []treetest.File
	for i := range n {
		files = append(files, treetest.File{Path: fmt.Sprintf("f%02d", i), Data: treetest.Random(uint64(i), 1000+i)})
	}
	m, mem := treetest.Build(tb, block.Zstd, files...)
	src := storetest.NewFaulty(mem)
	t := tree.New(m, store.Retry(src, nil), o)
	inos := make([]manifest.Ino, n)
	for i := range inos {
		inos[i] = find(tb, t, files[i].Path)
	}
	return t, inos, src
}

func read(ctx context.Context, t *tree.Tree, ino manifest.Ino) ([]byte, error) {
	p := make([]byte, t.Manifest().Attr(ino).Size)
	_, err := t.ReadAt(ctx, ino, p, 0)
	return p, err
}

func TestPrefetch(t *testing.T) {
	tr, ino, src := one(t, nil)
	for i := range 3 {
		plain, err := tr.Prefetch(t.Context(), ino, i)
		if want := big[i*block.Size : min(len(big), (i+1)*block.Size)]; err != nil || !bytes.Equal(plain, want) {
			t.Errorf("Prefetch(%d) = %d bytes, %v, want block %d", i, len(plain), err, i)
		}
		tr.Hold(tr.Manifest().Blocks(ino)[i], plain)
	}
	if got, err := read(t.Context(), tr, ino); err != nil || !bytes.Equal(got, big) || src.Total() != 3 {
		t.Errorf("ReadAt of what is held: %v after %d requests, want none beyond the 3 of Prefetch", err, src.Total())
	}
	for _, i := range []int{-1, 3} {
		if _, err := tr.Prefetch(t.Context(), ino, i); err == nil {
			t.Errorf("Prefetch(%d) succeeds, want an error: the file has 3 blocks", i)
		}
	}
	src.Always(storetest.NotFound())
	fresh, inos, broken := many(t, 1, nil)
	broken.Always(storetest.NotFound())
	_, err := fresh.Prefetch(t.Context(), inos[0], 0)
	if be, ok := errors.AsType[*tree.BlockError](err); !ok || be.Path != "f00" || !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Prefetch of a lost block = %v, want a BlockError of f00 with ErrNotFound", err)
	}
}

// Prefetch has its limit, and what readers wait for counts: a reader never waits,
// and for each that comes Prefetch has one request less.
func TestPrefetchLeavesRoomForReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, inos, src := many(t, 20, &tree.Options{MaxRequests: 4, KeepBlocks: 20})
		gate := storetest.NewGate()
		src.Always(storetest.Through(gate))
		var wg sync.WaitGroup
		ahead := func(from, to int) {
			for _, ino := range inos[from:to] {
				wg.Go(func() {
					if _, err := tr.Prefetch(t.Context(), ino, 0); err != nil {
						t.Error(err)
					}
				})
				synctest.Wait() // they queue in order
			}
		}
		readers := func(from, to int) {
			for _, ino := range inos[from:to] {
				wg.Go(func() {
					if _, err := read(t.Context(), tr, ino); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
		}
		ahead(0, 6)
		if got := src.Total(); got != 4 {
			t.Errorf("%d requests of Prefetch alone, want its limit of 4", got)
		}
		readers(6, 16)
		if got := src.Total(); got != 14 {
			t.Errorf("%d requests with 10 readers, want 4 of Prefetch and one of each reader", got)
		}
		ahead(16, 20)
		if got := src.Total(); got != 14 {
			t.Errorf("%d requests while more readers wait than the limit, want no new one of Prefetch", got)
		}
		// A reader who wants what waits in the queue is not queued with it.
		readers(5, 6)
		if got := src.Requests(tr.Manifest().Blocks(inos[5])[0].ID); got != 1 {
			t.Errorf("a block that waits to be prefetched was requested %d times when a reader wanted it, want 1 at once", got)
		}
		gate.Open()
		wg.Wait()
		if got := src.Total(); got != 20 {
			t.Errorf("%d requests in all, want 20, one for each block", got)
		}
	})
}

// Prefetch tries once. A reader who shared its request tries on.
func TestPrefetchTriesOnceAndItsReadersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, inos, src := many(t, 1, nil)
		gate, down := storetest.NewGate(), errors.New("connection refused")
		src.Next(func(ctx context.Context, id block.ID, next func() ([]byte, error)) ([]byte, error) {
			storetest.Through(gate)(ctx, id, next)
			return nil, down
		}, storetest.Fail(down), storetest.Fail(down))
		prefetched := make(chan error)
		go func() {
			_, err := tr.Prefetch(t.Context(), inos[0], 0)
			prefetched <- err
		}()
		synctest.Wait()
		done := make(chan error)
		go func() {
			_, err := read(t.Context(), tr, inos[0])
			done <- err
		}()
		synctest.Wait()
		if src.Total() != 1 {
			t.Errorf("%d requests, want the reader to share the one of Prefetch", src.Total())
		}
		start := time.Now()
		gate.Open()
		if err := <-prefetched; !errors.Is(err, down) || time.Since(start) != 0 {
			t.Errorf("Prefetch = %v after %v, want the failure at once", err, time.Since(start))
		}
		if err := <-done; err != nil || src.Total() != 4 {
			t.Errorf("ReadAt = %v after %d requests, want success at the fourth", err, src.Total())
		}
	})
}

func TestCancelledPrefetchHurtsNoReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, inos, src := many(t, 3, &tree.Options{MaxRequests: 1})
		gate := storetest.NewGate()
		src.Always(storetest.Through(gate))
		ctx, cancel := context.WithCancel(t.Context())
		ends := make(chan error, 2)
		for _, ino := range inos[:2] { // one is fetched, the other waits
			go func() {
				_, err := tr.Prefetch(ctx, ino, 0)
				ends <- err
			}()
			synctest.Wait()
		}
		done := make(chan error)
		go func() {
			_, err := read(t.Context(), tr, inos[0])
			done <- err
		}()
		synctest.Wait()
		cancel()
		for range 2 {
			if err := <-ends; !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled Prefetch = %v, want context.Canceled", err)
			}
		}
		gate.Open()
		if err := <-done; err != nil || src.Total() != 1 {
			t.Errorf("ReadAt = %v after %d requests, want it to outlive Prefetch with the one request", err, src.Total())
		}
		// Nothing that was cancelled holds a place.
		if _, err := tr.Prefetch(t.Context(), inos[2], 0); err != nil {
			t.Errorf("Prefetch after that = %v", err)
		}
	})
}

func TestHoldIsBounded(t *testing.T) {
	tr, inos, src := many(t, 20, &tree.Options{HoldBytes: 5000})
	for _, ino := range inos {
		plain, err := tr.Prefetch(t.Context(), ino, 0)
		if err != nil {
			t.Fatal(err)
		}
		tr.Hold(tr.Manifest().Blocks(ino)[0], plain)
	}
	for i, ino := range slices.Backward(inos) {
		if _, err := read(t.Context(), tr, ino); err != nil {
			t.Fatal(err)
		}
		want := 1 // the last four, of 1016 to 1019 bytes, are held
		if i < 16 {
			want = 2
		}
		if got := src.Requests(tr.Manifest().Blocks(ino)[0].ID); got != want {
			t.Errorf("block %d was requested %d times, want %d", i, got, want)
		}
	}
}
