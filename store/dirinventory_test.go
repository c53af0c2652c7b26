package store_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/block"
	"overmount/store"
	"overmount/store/storetest"
)

// list returns the entries of a store, sorted by ID and layout.
func list(t *testing.T, l store.Lister) []store.Entry {
	t.Helper()
	var all []store.Entry
	for e, err := range l.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b store.Entry) int {
		return strings.Compare(a.ID.String()+a.Layout.String(), b.ID.String()+b.Layout.String())
	})
	return all
}

func TestDirList(t *testing.T) {
	root := t.TempDir()
	at := time.Unix(1700000000, 0)
	var want []store.Entry
	put := func(i int, l store.Layout, size int) {
		id, _ := object(i)
		name := filepath.Join(root, l.Key(id))
		place(t, name, make([]byte, size))
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
		want = append(want, store.Entry{ID: id, Layout: l, Size: int64(size), Modified: at})
	}
	put(0, store.Sharded, 1000)
	put(1, store.Sharded, 0) // what a crash left; Get refuses it
	put(2, store.Flat, block.MaxObject+1)
	put(3, store.Flat, 3)
	put(3, store.Sharded, 4)
	slices.SortFunc(want, func(a, b store.Entry) int {
		return strings.Compare(a.ID.String()+a.Layout.String(), b.ID.String()+b.Layout.String())
	})

	// What is no object of the store.
	id, _ := object(9)
	name := id.String()
	for _, other := range []string{
		"modules.fl", "manifests/modules.fl", "ab/readme", "zz/" + name,
		name[:2] + "/" + strings.ToUpper(name), name[:2] + "/" + name + ".tmp", name[:2] + "/" + name[:2] + "/" + name,
		store.Sharded2.Key(id), name[:2] + "/.overmount-tmp-1-a", ".overmount-tmp-1-b", "ab/" + strings.Repeat("cd", 32),
	} {
		place(t, filepath.Join(root, other), []byte("text"))
	}
	dir, _ := object(10)
	for _, l := range []store.Layout{store.Sharded, store.Flat} {
		if err := os.MkdirAll(filepath.Join(root, l.Key(dir)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	link, _ := object(11)
	if err := os.Symlink("nowhere", filepath.Join(root, store.Flat.Key(link))); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, list(t, store.NewDir(root))); diff != "" {
		t.Errorf("List differs (-want +got):\n%s", diff)
	}
}

func TestDirListEnds(t *testing.T) {
	root := t.TempDir()
	d := store.NewDir(root)
	for i := range 10 {
		id, bytes := object(i)
		if _, err := d.Put(t.Context(), id, bytes); err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	for range d.List(t.Context()) {
		if seen++; seen == 3 {
			break
		}
	}
	if seen != 3 {
		t.Errorf("List went on to %d entries after a break at 3", seen)
	}
	if got := list(t, store.NewDir(filepath.Join(root, "missing"))); len(got) != 0 {
		t.Errorf("List of a directory that does not exist = %v, want none", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	file := filepath.Join(root, "file")
	place(t, file, nil)
	for name, c := range map[string]struct {
		ctx  context.Context
		d    *store.Dir
		want error
	}{
		"cancelled": {ctx, d, context.Canceled},
		"a file":    {t.Context(), store.NewDir(file), nil},
	} {
		var errs []error
		for e, err := range c.d.List(c.ctx) {
			if err == nil {
				t.Errorf("%s: List yields %v, want an error", name, e)
			}
			errs = append(errs, err)
		}
		if len(errs) != 1 || c.want != nil && !errors.Is(errs[0], c.want) {
			t.Errorf("%s: List ends with %v, want one error", name, errs)
		}
	}
}

func TestDirHas(t *testing.T) {
	for _, l := range []store.Layout{store.Sharded, store.Flat} {
		root := t.TempDir()
		d := store.NewDir(root)
		id, bytes := object(0)
		name := filepath.Join(root, l.Key(id))
		for _, c := range []struct {
			what string
			left []byte
			want bool
		}{
			{"empty", nil, false},
			{"longer than any object", make([]byte, block.MaxObject+1), false},
			{"the object", bytes, true},
		} {
			place(t, name, c.left)
			if has, err := d.Has(t.Context(), id); has != c.want || err != nil {
				t.Errorf("%v: Has of a file that is %s = %v, %v, want %v", l, c.what, has, err, c.want)
			}
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		if has, err := d.Has(t.Context(), id); has || err != nil {
			t.Errorf("%v: Has of a directory = %v, %v, want false", l, has, err)
		}
	}
	id, _ := object(0)
	missing := filepath.Join(t.TempDir(), "missing")
	if has, err := store.NewDir(missing).Has(t.Context(), id); has || err != nil {
		t.Errorf("Has in a directory that does not exist = %v, %v, want false", has, err)
	}
	if _, err := os.Lstat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Has, Lstat(root) = %v, want fs.ErrNotExist", err)
	}
	// What cannot be looked at is not called missing.
	place(t, missing, nil)
	if has, err := store.NewDir(missing).Has(t.Context(), id); has || err == nil {
		t.Errorf("Has in a file = %v, %v, want an error", has, err)
	}
}

func TestDirDelete(t *testing.T) {
	root := t.TempDir()
	d := store.NewDir(root)
	id, bytes := object(0)
	other, _ := object(1)
	for _, l := range []store.Layout{store.Sharded, store.Flat} {
		place(t, filepath.Join(root, l.Key(id)), bytes)
		place(t, filepath.Join(root, l.Key(other)), bytes)
	}
	for range 2 { // the second time there is nothing
		if err := d.Delete(t.Context(), id); err != nil {
			t.Errorf("Delete = %v", err)
		}
		if _, err := d.Get(t.Context(), id); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get after Delete = %v, want ErrNotFound", err)
		}
	}
	if got := list(t, d); len(got) != 2 || got[0].ID != other || got[1].ID != other {
		t.Errorf("after Delete the store has %v, want both names of the other object", got)
	}
	if err := store.NewDir(filepath.Join(root, "missing")).Delete(t.Context(), id); err != nil {
		t.Errorf("Delete in a directory that does not exist = %v", err)
	}
}

func TestDirFiles(t *testing.T) {
	root := filepath.Join(t.TempDir(), "not", "yet")
	d := store.NewDir(root)
	for _, content := range []string{"first", "second and longer", ""} {
		body := strings.NewReader(content)
		if err := d.PutFile(t.Context(), "flists/modules.fl", body, int64(len(content)), nil); err != nil {
			t.Fatal(err)
		}
		got, err := d.GetFile(t.Context(), "flists/modules.fl", 100)
		if err != nil || string(got) != content {
			t.Errorf("GetFile = %q, %v, want %q", got, err, content)
		}
	}
	if got := files(t, root); !slices.Equal(got, []string{"flists/modules.fl"}) {
		t.Errorf("the store holds %q, want one file", got)
	}
	if err := d.PutFile(t.Context(), "a", strings.NewReader("abc"), 3, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := d.GetFile(t.Context(), "a", 3); err != nil || string(got) != "abc" {
		t.Errorf("GetFile of as many bytes as allowed = %q, %v, want abc", got, err)
	}
	if got, err := d.GetFile(t.Context(), "a", 2); err == nil || got != nil {
		t.Errorf("GetFile of more than allowed = %q, %v, want an error", got, err)
	}
	if _, err := d.GetFile(t.Context(), "b", 2); !errors.Is(err, store.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("GetFile of a missing file = %v, want ErrNotFound alone", err)
	}
}

// A body that ends early must not become a file, nor replace one.
func TestDirPutFileOfAShortBody(t *testing.T) {
	root := t.TempDir()
	d := store.NewDir(root)
	if err := d.PutFile(t.Context(), "a", strings.NewReader("whole"), 5, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.PutFile(t.Context(), "a", strings.NewReader("sho"), 5, nil); err == nil {
		t.Error("PutFile of a body that ends early = nil, want an error")
	}
	if got, err := os.ReadFile(filepath.Join(root, "a")); err != nil || string(got) != "whole" {
		t.Errorf("after it the file holds %q, %v, want it as it was", got, err)
	}
	if got := files(t, root); len(got) != 1 {
		t.Errorf("the store holds %q, want one file", got)
	}
}

func TestDirFileNames(t *testing.T) {
	d := store.NewDir(t.TempDir())
	for _, name := range []string{"", ".", "..", "/a", "a/", "a//b", "a/../b", "../a", "./a", "a\x00b"} {
		if err := d.PutFile(t.Context(), name, strings.NewReader(""), 0, nil); err == nil {
			t.Errorf("PutFile(%q) = nil, want an error", name)
		}
		if got, err := d.GetFile(t.Context(), name, 1); err == nil {
			t.Errorf("GetFile(%q) = %q, nil, want an error", name, got)
		}
	}
}

func TestDirInventoryCancelled(t *testing.T) {
	root := t.TempDir()
	d := store.NewDir(root)
	id, object := storetest.Object(1, 10)
	if _, err := d.Put(t.Context(), id, object); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, has := d.Has(ctx, id)
	_, get := d.GetFile(ctx, "a", 1)
	for name, err := range map[string]error{
		"Has": has, "GetFile": get, "Delete": d.Delete(ctx, id), "PutFile": d.PutFile(ctx, "a", bytes.NewReader(nil), 0, nil),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context = %v, want context.Canceled", name, err)
		}
	}
	if got := files(t, root); len(got) != 1 {
		t.Errorf("the store holds %q, want the object alone", got)
	}
}
