package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"overmount/block"
	"overmount/internal/atomicfile"
)

// A Dir is a store in a directory. It writes the layout [Sharded] and also reads
// [Flat], which early versions of rfs wrote.
//
// An object appears at its name whole or not at all, but Put does not wait for
// the disk: after a power cut before Sync, files may be missing, empty or short.
// Get refuses the empty ones, [Checked] the short ones, and the next Put of the
// same object replaces them. Temporary files of a writer that was killed are
// never taken for objects.
//
// Concurrent use is safe, also by several processes.
type Dir struct{ root string }

var (
	_ Reader = (*Dir)(nil)
	_ Writer = (*Dir)(nil)
	_ Syncer = (*Dir)(nil)
)

// NewDir returns the store in the directory root. It touches nothing: the first
// Put makes the directory, and reading one that does not exist finds no object.
func NewDir(root string) *Dir { return &Dir{root} }

func (d *Dir) path(l Layout, id block.ID) string { return filepath.Join(d.root, l.Key(id)) }

// Get reads an object. It returns ErrNotFound if neither name is there,
// block.ErrCorrupt if the file is empty or longer than any object, and
// ErrForbidden if the file may not be read.
func (d *Dir) Get(ctx context.Context, id block.ID) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	object, err := readObject(d.path(Sharded, id))
	if errors.Is(err, fs.ErrNotExist) {
		object, err = readObject(d.path(Flat, id))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, d.notFound()
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	return object, err
}

// notFound says so when it is the whole store that is missing: a wrong path, or
// a disk that is not mounted.
func (d *Dir) notFound() error {
	if _, err := os.Stat(d.root); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s: there is no such directory", ErrNotFound, d.root)
	}
	return fmt.Errorf("%w in %s", ErrNotFound, d.root)
}

// readObject reads a file that may be an object. The error is fs.ErrNotExist
// only if the file does not exist.
func readObject(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: it is not a regular file", path)
	}
	if err := CheckSize(info.Size()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	object := make([]byte, info.Size())
	if n, err := io.ReadFull(f, object); err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("read %s: %w: it ended after %d of %d bytes", path, block.ErrCorrupt, n, len(object))
	} else if err != nil {
		return nil, err
	}
	return object, nil
}

// Put writes an object, unless the same bytes are there under either name. A
// file with other bytes, which a crash may leave, is replaced. It returns
// block.ErrCorrupt for a length that no object has.
func (d *Dir) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := CheckSize(int64(len(object))); err != nil {
		return false, err
	}
	path := d.path(Sharded, id)
	if holds(path, object) {
		return false, nil
	}
	// Get looks at the flat name only where the other is free.
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) && holds(d.path(Flat, id), object) {
		return false, nil
	}
	if err := write(path, object); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return false, fmt.Errorf("%w: %w", ErrForbidden, err)
		}
		return false, err
	}
	return true, nil
}

// holds reports whether the file at path is exactly want. Reading an object costs
// less than writing it again; most of the time the lengths differ or there is no
// file.
func holds(path string, want []byte) bool {
	if info, err := os.Stat(path); err != nil || info.Size() != int64(len(want)) {
		return false
	}
	have, err := readObject(path)
	return err == nil && bytes.Equal(have, want)
}

func write(path string, object []byte) error {
	f, err := atomicfile.Create(path, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err = atomicfile.Create(path, 0o644)
	}
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(object); err != nil {
		return err
	}
	return f.CommitUnsynced()
}

// Sync makes every object of the store last, with one call for the whole file
// system that holds it. A store that does not exist has nothing to make last.
func (d *Dir) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := atomicfile.SyncFS(d.root); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
