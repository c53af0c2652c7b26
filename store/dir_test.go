package store_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"overmount/block"
	"overmount/internal/atomicfile"
	"overmount/store"
	"overmount/store/storetest"
)

func place(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func files(t *testing.T, root string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(root, path)
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestDir(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		d := store.NewDir(filepath.Join(t.TempDir(), "not", "yet"))
		return storetest.Subject{Reader: d, Writer: d}
	})
}

// A file in a directory is seeded without Put, and read through Checked.
func TestDirLayouts(t *testing.T) {
	for _, layout := range []store.Layout{store.Sharded, store.Flat} {
		t.Run(layout.String(), func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Subject {
				root := t.TempDir()
				return storetest.Subject{
					Reader: store.Checked(store.NewDir(root)),
					Seed: func(t *testing.T, id block.ID, object []byte) {
						place(t, filepath.Join(root, layout.Key(id)), object)
					},
					Checks: true,
				}
			})
		})
	}
}

func TestDirReadersCreateNothing(t *testing.T) {
	root := filepath.Join(t.TempDir(), "missing")
	d := store.NewDir(root)
	id, _ := object(0)
	_, err := d.Get(t.Context(), id)
	if !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "no such directory") {
		t.Errorf("Get from a missing directory = %v, want ErrNotFound that says so", err)
	}
	if err := d.Sync(t.Context()); err != nil {
		t.Errorf("Sync of a missing directory = %v", err)
	}
	if _, err := os.Lstat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Get and Sync, Lstat(root) = %v, want fs.ErrNotExist", err)
	}
}

func TestDirPutWritesWhatOthersRead(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	id, want := object(0)
	if _, err := store.NewDir(root).Put(t.Context(), id, want); err != nil {
		t.Fatal(err)
	}
	name := id.String()
	if got := files(t, root); len(got) != 1 || got[0] != filepath.Join(name[:2], name) {
		t.Fatalf("after Put the store holds %q, want one sharded object", got)
	}
	if got, err := os.ReadFile(filepath.Join(root, name[:2], name)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadFile = %d bytes, %v, want the object", len(got), err)
	}
	for path, want := range map[string]fs.FileMode{root: fs.ModeDir | 0o755, filepath.Join(root, name[:2]): fs.ModeDir | 0o755, filepath.Join(root, name[:2], name): 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("mode of %s = %v, %v, want %v (umask 022)", path, info.Mode(), err, want)
		}
	}
}

// What a power cut before Sync may leave.
func TestDirPutReplacesWhatACrashLeft(t *testing.T) {
	id, want := object(0)
	for name, left := range map[string][]byte{"empty": {}, "short": want[:10], "zeros": make([]byte, len(want)), "longer": append(bytes.Clone(want), 0)} {
		root := t.TempDir()
		d := store.NewDir(root)
		place(t, filepath.Join(root, store.Sharded.Key(id)), left)
		place(t, filepath.Join(root, store.Flat.Key(id)), want) // is not read while the other is there
		place(t, filepath.Join(root, store.Sharded.Key(id)[:3], ".overmount-tmp-1-a"), []byte("stale"))
		if stored, err := d.Put(t.Context(), id, want); !stored || err != nil {
			t.Errorf("%s: Put = %v, %v, want it stored", name, stored, err)
		}
		wantObject(t, d, 0)
		if stored, err := d.Put(t.Context(), id, want); stored || err != nil {
			t.Errorf("%s: second Put = %v, %v, want it not stored", name, stored, err)
		}
	}
}

func TestDirPutWritesNothingIfTheObjectIsThere(t *testing.T) {
	id, want := object(0)
	for _, layout := range []store.Layout{store.Sharded, store.Flat} {
		root := t.TempDir()
		path := filepath.Join(root, layout.Key(id))
		place(t, path, want)
		before, _ := os.Stat(path)
		if stored, err := store.NewDir(root).Put(t.Context(), id, want); stored || err != nil {
			t.Errorf("%v: Put = %v, %v, want it not stored", layout, stored, err)
		}
		if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) || len(files(t, root)) != 1 {
			t.Errorf("%v: Put of what was there left %q, %v, want the one file untouched", layout, files(t, root), err)
		}
	}
}

func TestDirRefusesImpossibleFiles(t *testing.T) {
	root := t.TempDir()
	d := store.NewDir(root)
	id, want := object(0)
	path := filepath.Join(root, store.Sharded.Key(id))
	place(t, filepath.Join(root, store.Flat.Key(id)), want)

	for name, size := range map[string]int64{"empty": 0, "too long": block.MaxObject + 1, "sparse": 1 << 40} {
		place(t, path, nil)
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		got, err := d.Get(t.Context(), id)
		if got != nil || !errors.Is(err, block.ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Get = %d bytes, %v, want block.ErrCorrupt that names %s", name, len(got), err, path)
		}
		os.Remove(path)
	}

	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Get(t.Context(), id); got != nil || err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get where a directory has the name = %d bytes, %v, want another error than ErrNotFound", len(got), err)
	}
	if stored, err := d.Put(t.Context(), id, want); stored || err == nil {
		t.Errorf("Put where a directory has the name = %v, %v, want an error", stored, err)
	}
	if got := files(t, root); len(got) != 1 {
		t.Errorf("after a failed Put the store holds %q, want no temporary file", got)
	}
}

// Only "does not exist" leads to the flat name.
func TestDirReportsOtherErrors(t *testing.T) {
	root := t.TempDir()
	id, want := object(0)
	place(t, filepath.Join(root, id.String()[:2]), []byte("a file where a directory should be"))
	place(t, filepath.Join(root, store.Flat.Key(id)), want)
	d := store.NewDir(root)
	if got, err := d.Get(t.Context(), id); got != nil || err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get through a file = %d bytes, %v, want another error than ErrNotFound", len(got), err)
	}
	if stored, err := d.Put(t.Context(), id, append(want, 0)); stored || err == nil {
		t.Errorf("Put through a file = %v, %v, want an error", stored, err)
	}
}

func TestDirForbidden(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read and write everything")
	}
	root := t.TempDir()
	id, want := object(0)
	path := filepath.Join(root, store.Sharded.Key(id))
	place(t, path, want)
	os.Chmod(path, 0)
	if _, err := store.NewDir(root).Get(t.Context(), id); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("Get of a file without rights = %v, want ErrForbidden", err)
	}
	os.Chmod(filepath.Dir(path), 0o555)
	t.Cleanup(func() { os.Chmod(filepath.Dir(path), 0o755) })
	if _, err := store.NewDir(root).Put(t.Context(), id, want); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("Put into a directory without rights = %v, want ErrForbidden", err)
	}
}

func TestDirTemporaryNamesAreNoObjects(t *testing.T) {
	f, err := atomicfile.Create(filepath.Join(t.TempDir(), "x"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	if id, err := block.ParseID(filepath.Base(f.Name())); err == nil {
		t.Errorf("the temporary name %s is that of object %v", f.Name(), id)
	}
}

func BenchmarkDirGet(b *testing.B) {
	d := store.NewDir(b.TempDir())
	id, object := storetest.Object(1, 200<<10)
	if _, err := d.Put(context.Background(), id, object); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(object)))
	for b.Loop() {
		if _, err := d.Get(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDirPut(b *testing.B) {
	for name, again := range map[string]bool{"New": false, "Same": true} {
		b.Run(name, func(b *testing.B) {
			d := store.NewDir(b.TempDir())
			id, object := storetest.Object(1, 200<<10)
			b.SetBytes(int64(len(object)))
			for i := 0; b.Loop(); i++ {
				if !again { // another name, not another hash: that is not Put's
					id[2], id[3], id[4] = byte(i), byte(i>>8), byte(i>>16)
				}
				if _, err := d.Put(b.Context(), id, object); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
