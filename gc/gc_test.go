package gc

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

var (
	old    = time.Unix(1700000000, 0)
	before = old.Add(time.Second)
)

// tree packs files with these contents.
func tree(t *testing.T, contents ...string) *manifest.Manifest {
	t.Helper()
	var files []treetest.File
	for i, c := range contents {
		files = append(files, treetest.File{Path: fmt.Sprint("f", i), Data: []byte(c)})
	}
	m, _ := treetest.Build(t, block.Zstd, files...)
	return m
}

// ids returns the objects of a manifest.
func ids(m *manifest.Manifest) (list []block.ID) {
	for _, ref := range m.AllBlocks() {
		list = append(list, ref.ID)
	}
	return list
}

// entries is a store's list.
type entries []store.Entry

func (es entries) List(ctx context.Context) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for _, e := range es {
			if err := ctx.Err(); err != nil {
				yield(store.Entry{}, err)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// aged returns entries of ten bytes for objects.
func aged(at time.Time, list ...block.ID) (es entries) {
	for _, id := range list {
		es = append(es, store.Entry{ID: id, Size: 10, Modified: at})
	}
	return es
}

func TestFind(t *testing.T) {
	one, two := tree(t, "a", "b"), tree(t, "b", "c")
	garbage := ids(tree(t, "d", "e", "f"))
	at := func(now time.Time, i int) entries { return aged(now, garbage[i]) }
	list := slices.Concat(
		aged(old, ids(one)...), aged(old, ids(two)[1]),
		at(old, 0),                // garbage
		at(before, 1),             // just too young
		at(old, 2), at(before, 2), // under two names, one of them young
	)
	r, err := Find(t.Context(), list, []*manifest.Manifest{one, two}, before)
	want := &Report{
		Objects: 6, Bytes: 70, NamedObjects: 3, NamedBytes: 30, YoungObjects: 2, YoungBytes: 30,
		Garbage: []Object{{garbage[0], 10, old}}, GarbageBytes: 10,
	}
	if diff := cmp.Diff(want, r); diff != "" || err != nil {
		t.Errorf("Find: %v, report differs (-want +got):\n%s", err, diff)
	}
}

// Times that a store does not tell, in every order of names.
func TestFindOfUnknownAge(t *testing.T) {
	keep := tree(t, "kept")
	gone := ids(tree(t, "gone"))[0]
	for name, es := range map[string]entries{
		"alone":  aged(time.Time{}, gone),
		"first":  append(aged(time.Time{}, gone), aged(old, gone)...),
		"second": append(aged(old, gone), aged(time.Time{}, gone)...),
		"middle": slices.Concat(aged(old, gone), aged(time.Time{}, gone), aged(old, gone)),
		"future": aged(before.Add(1000*time.Hour), gone),
	} {
		r, err := Find(t.Context(), append(es, aged(old, ids(keep)...)...), []*manifest.Manifest{keep}, before)
		if err != nil || len(r.Garbage) != 0 || r.YoungObjects != 1 {
			t.Errorf("%s: Find = %+v, %v, want it to be young", name, r, err)
		}
	}
}

func TestFindRefuses(t *testing.T) {
	m := tree(t, "a")
	if r, err := Find(t.Context(), aged(old, ids(m)...), nil, before); !errors.Is(err, ErrNoManifest) || r != nil {
		t.Errorf("Find without a manifest = %v, %v, want ErrNoManifest", r, err)
	}
	if r, err := Find(t.Context(), aged(old, ids(tree(t, "b"))...), []*manifest.Manifest{m}, before); !errors.Is(err, ErrStrangers) || r.Objects != 1 {
		t.Errorf("Find in another store = %v, %v, want ErrStrangers", r, err)
	}
	if r, err := Find(t.Context(), entries{}, []*manifest.Manifest{m}, before); err != nil || len(r.Garbage) != 0 {
		t.Errorf("Find in an empty store = %v, %v, want nothing", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := Find(ctx, aged(old, ids(m)...), []*manifest.Manifest{m}, before); !errors.Is(err, context.Canceled) || r != nil {
		t.Errorf("Find = %v, %v, want context.Canceled", r, err)
	}
}

// broken is a list that ends with an error, as one whose third page is refused.
type broken struct{ entries }

var errPage = errors.New("page 3: status 500")

func (b broken) List(ctx context.Context) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for e := range b.entries.List(ctx) {
			if !yield(e, nil) {
				return
			}
		}
		yield(store.Entry{}, errPage)
	}
}

func TestFindInAListThatBreaks(t *testing.T) {
	m := tree(t, "a")
	list := broken{append(aged(old, ids(m)...), aged(old, ids(tree(t, "b"))...)...)}
	if r, err := Find(t.Context(), list, []*manifest.Manifest{m}, before); !errors.Is(err, errPage) || r != nil {
		t.Errorf("Find = %v, %v, want the error of the list, and no report", r, err)
	}
}

// fill puts objects into a directory, with the time that makes them old.
func fill(t *testing.T, n int) (*store.Dir, string) {
	t.Helper()
	root := t.TempDir()
	d := store.NewDir(root)
	for i := range n {
		id, object := storetest.Object(uint64(i), 100)
		if _, err := d.Put(t.Context(), id, object); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(root, store.Sharded.Key(id)), old, old); err != nil {
			t.Fatal(err)
		}
	}
	return d, root
}

// list returns what a directory has.
func list(t *testing.T, d *store.Dir) (all []block.ID) {
	t.Helper()
	for e, err := range d.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.ID)
	}
	return all
}

func TestDelete(t *testing.T) {
	d, root := fill(t, 40)
	kept, mem := treetest.Build(t, block.Zstd, treetest.File{Path: "a", Data: []byte("kept")})
	id := ids(kept)[0]
	object, err := mem.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Put(t.Context(), id, object); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "modules.fl"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	find := func() *Report {
		r, err := Find(t.Context(), d, []*manifest.Manifest{kept}, before)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}

	// Interrupted, it has deleted garbage alone, and the next time finds the rest.
	ctx, cancel := context.WithCancel(t.Context())
	told := 0
	n, bytes, err := Delete(ctx, d, find().Garbage, &DeleteOptions{Parallel: 2, Deleted: func(Object) {
		if told++; told == 10 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || n < 10 || n > 12 || bytes != int64(100*n) || told != n {
		t.Errorf("Delete = %d, %d, %v, told of %d; want about 10 and context.Canceled", n, bytes, err, told)
	}
	r := find()
	if len(r.Garbage) != 40-n || r.NamedObjects != 1 {
		t.Errorf("after %d of 40 are deleted, Find = %+v", n, r)
	}
	if n, bytes, err := Delete(t.Context(), d, r.Garbage, nil); err != nil || n != len(r.Garbage) || bytes != r.GarbageBytes {
		t.Errorf("Delete = %d, %d, %v, want %d, %d", n, bytes, err, len(r.Garbage), r.GarbageBytes)
	}
	if got := list(t, d); !slices.Equal(got, []block.ID{id}) {
		t.Errorf("the store has %v, want the kept object alone", got)
	}
	if _, err := os.Stat(filepath.Join(root, "modules.fl")); err != nil {
		t.Errorf("what is no object: %v", err)
	}
}

// refusing is a store that deletes only some.
type refusing struct {
	mu   sync.Mutex
	left int
}

var errRefused = fmt.Errorf("%w: status 403", store.ErrForbidden)

func (r *refusing) Delete(context.Context, block.ID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left == 0 {
		return errRefused
	}
	r.left--
	return nil
}

func TestDeleteThatFails(t *testing.T) {
	var garbage []Object
	for i := range 100 {
		garbage = append(garbage, Object{ID: block.ID{byte(i)}, Size: 3})
	}
	n, bytes, err := Delete(t.Context(), &refusing{left: 5}, garbage, nil)
	if !errors.Is(err, store.ErrForbidden) || n != 5 || bytes != 15 {
		t.Errorf("Delete = %d, %d, %v, want 5, 15 and the refusal", n, bytes, err)
	}
}
