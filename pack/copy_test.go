package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

// toCopy returns a manifest of n objects, one of them used by three files, and
// the store that has them.
func toCopy(t *testing.T, n int) (*manifest.Manifest, *store.Mem) {
	t.Helper()
	var files []treetest.File
	for i := range n {
		files = append(files, treetest.File{Path: fmt.Sprintf("f%03d", i), Data: treetest.Random(uint64(i), 1000)})
	}
	files = append(files, treetest.File{Path: "again", Data: files[0].Data}, treetest.File{Path: "link", LinkTo: "f000"}, treetest.File{Path: "empty"})
	return treetest.Build(t, block.Zstd, files...)
}

// wantCopied checks that to has all objects.
func wantCopied(t *testing.T, m *manifest.Manifest, from, to store.Reader) {
	t.Helper()
	for _, ref := range m.AllBlocks() {
		want, err := from.Get(t.Context(), ref.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := to.Get(t.Context(), ref.ID); err != nil || !bytes.Equal(got, want) {
			t.Errorf("after Copy, Get(%v) = %d bytes, %v, want the object", ref.ID, len(got), err)
		}
	}
}

func TestCopy(t *testing.T) {
	m, mem := toCopy(t, 50)
	from := storetest.NewFaulty(mem)
	to := store.NewDir(filepath.Join(t.TempDir(), "to"))
	var last CopySummary
	sum, err := Copy(t.Context(), m, from, to, &CopyOptions{Progress: func(s CopySummary) { last = s }})
	if err != nil || sum.Objects != 50 || sum.Done != 50 || sum.NewObjects != 50 || sum.NewBytes < 50*1000 {
		t.Errorf("Copy = %+v, %v, want 50 objects of 50", sum, err)
	}
	if last != sum {
		t.Errorf("Progress was last told %+v, want the summary %+v", last, sum)
	}
	if from.Total() != 50 {
		t.Errorf("the source was asked %d times, want once for each object", from.Total())
	}
	wantCopied(t, m, mem, to)

	// What is there is not read again.
	sum, err = Copy(t.Context(), m, from, to, nil)
	if want := (CopySummary{Objects: 50, Done: 50}); err != nil || sum != want || from.Total() != 50 {
		t.Errorf("second Copy = %+v, %v, after %d requests, want %+v and none more", sum, err, from.Total()-50, want)
	}
}

// A store that cannot be asked is written again, and says so.
func TestCopyToAStoreThatIsNoProber(t *testing.T) {
	m, mem := toCopy(t, 10)
	to := storetest.NewFaulty(&store.Mem{})
	for _, want := range []int64{10, 0} {
		if sum, err := Copy(t.Context(), m, mem, to, nil); err != nil || sum.NewObjects != want || sum.Done != 10 {
			t.Errorf("Copy = %+v, %v, want %d new objects", sum, err, want)
		}
	}
	wantCopied(t, m, mem, to)
	from := storetest.NewFaulty(mem)
	sum, err := Copy(t.Context(), m, from, to, &CopyOptions{Skip: func(id block.ID) bool { return id[0] >= 0x10 }})
	if err != nil || sum.Done != 10 || from.Total() >= 10 {
		t.Errorf("Copy with Skip = %+v, %v, after %d requests, want fewer than 10", sum, err, from.Total())
	}
}

// What the manifest carries needs no source.
func TestCopyOfWhatTheManifestCarries(t *testing.T) {
	m, mem := treetest.Build(t, block.Snappy,
		treetest.File{Path: "index", Data: []byte("text"), Inline: true}, treetest.File{Path: "file", Data: []byte("other")})
	to := &store.Mem{}
	if sum, err := Copy(t.Context(), m, mem, to, nil); err != nil || sum.NewObjects != 2 || to.Len() != 2 {
		t.Errorf("Copy = %+v, %v, want both objects", sum, err)
	}
}

// Lost and wrong objects keep nothing from being copied but themselves, and wrong
// bytes do not get a name.
func TestCopyFromAStoreWithGaps(t *testing.T) {
	m, mem := toCopy(t, 30)
	from := storetest.NewFaulty(mem)
	from.Next(nil, storetest.NotFound(), storetest.WrongBytes(), storetest.Truncated())
	to := &store.Mem{}
	sum, err := Copy(t.Context(), m, from, to, &CopyOptions{Parallel: 1})
	if !errors.Is(err, store.ErrNotFound) || !strings.HasPrefix(err.Error(), "3 of 30 objects could not be copied, the first: read object ") {
		t.Errorf("Copy = %v, want that it names three", err)
	}
	if sum.Done != 27 || to.Len() != 27 {
		t.Errorf("Copy = %+v, and %d objects are there, want 27", sum, to.Len())
	}
	if sum, err := Copy(t.Context(), m, from, to, nil); err != nil || sum.NewObjects != 3 {
		t.Errorf("Copy from the mended store = %+v, %v, want the three", sum, err)
	}
	wantCopied(t, m, mem, to)
}

func TestCopyThatFails(t *testing.T) {
	down, full := errors.New("connection refused"), errors.New("disk full")
	for name, c := range map[string]struct {
		from, to storetest.Fault
		want     error
	}{
		"the source is down":   {from: storetest.Fail(down), want: down},
		"the source refuses":   {from: storetest.Fail(store.ErrForbidden), want: store.ErrForbidden},
		"the target is full":   {to: storetest.Fail(full), want: full},
		"the target refuses":   {to: storetest.Fail(store.ErrForbidden), want: store.ErrForbidden},
		"the target is absent": {to: storetest.NotFound(), want: store.ErrNotFound},
	} {
		m, mem := toCopy(t, 100)
		from, to := storetest.NewFaulty(mem), storetest.NewFaulty(&store.Mem{})
		from.Always(c.from)
		to.Always(c.to)
		sum, err := Copy(t.Context(), m, from, to, &CopyOptions{Parallel: 4})
		if !errors.Is(err, c.want) || sum.Done != 0 {
			t.Errorf("%s: Copy = %+v, %v, want %v", name, sum, err, c.want)
		}
		if from.Total() > 10 {
			t.Errorf("%s: %d requests after the first failure", name, from.Total())
		}
	}
}

func TestCopyThatDoesNotLast(t *testing.T) {
	m, mem := toCopy(t, 3)
	if _, err := Copy(t.Context(), m, mem, unsynced{&store.Mem{}}, nil); !errors.Is(err, errDisk) {
		t.Errorf("Copy = %v, want the error of Sync", err)
	}
}

// A Copy that is interrupted leaves whole objects, and goes on when it is
// repeated.
func TestCopyInterrupted(t *testing.T) {
	m, mem := toCopy(t, 60)
	to := store.NewDir(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	from := storetest.NewFaulty(mem)
	var begun atomic.Int64
	from.Always(func(ctx context.Context, _ block.ID, next func() ([]byte, error)) ([]byte, error) {
		if begun.Add(1) > 20 {
			cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return next()
	})
	sum, err := Copy(ctx, m, from, to, &CopyOptions{Parallel: 4})
	if !errors.Is(err, context.Canceled) || sum.Done > 20 {
		t.Fatalf("Copy = %+v, %v, want context.Canceled", sum, err)
	}
	rest := storetest.NewFaulty(mem)
	again, err := Copy(t.Context(), m, rest, to, nil)
	if err != nil || again.Done != 60 || again.NewObjects+sum.NewObjects < 60 || rest.Total() > 60-int(sum.NewObjects) {
		t.Errorf("after %+v, Copy = %+v, %v, with %d requests, want the rest", sum, again, err, rest.Total())
	}
	wantCopied(t, m, mem, to)
}
