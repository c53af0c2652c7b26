package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"overmount/block"
	"overmount/internal/atomicfile"
)

var (
	_ Lister    = (*Dir)(nil)
	_ Prober    = (*Dir)(nil)
	_ Deleter   = (*Dir)(nil)
	_ FileStore = (*Dir)(nil)
)

// List goes through the objects by their names, those of the layout Sharded first.
// A directory that does not exist has none.
func (d *Dir) List(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		top, err := os.ReadDir(d.root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield(Entry{}, err)
			return
		}
		for _, shard := range top {
			if !shard.IsDir() || len(shard.Name()) != 2 {
				continue
			}
			if !d.listDir(ctx, Sharded, shard.Name(), yield) {
				return
			}
		}
		d.listDir(ctx, Flat, ".", yield)
	}
}

// listDir yields the objects in one directory of a layout. It reports whether to
// go on.
func (d *Dir) listDir(ctx context.Context, l Layout, dir string, yield func(Entry, error) bool) bool {
	files, err := os.ReadDir(filepath.Join(d.root, dir))
	if err == nil {
		err = ctx.Err()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		yield(Entry{}, err)
		return false
	}
	for _, f := range files {
		id, err := block.ParseID(f.Name())
		if err != nil || !f.Type().IsRegular() || filepath.Join(dir, f.Name()) != filepath.FromSlash(l.Key(id)) {
			continue
		}
		info, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was deleted meanwhile
		}
		if err != nil {
			yield(Entry{}, err)
			return false
		}
		if !yield(Entry{ID: id, Layout: l, Size: info.Size(), Modified: info.ModTime()}, nil) {
			return false
		}
	}
	return true
}

// Has reports whether a file that can be an object has one of the names.
func (d *Dir) Has(ctx context.Context, id block.ID) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	for _, l := range []Layout{Sharded, Flat} {
		info, err := os.Stat(d.path(l, id))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, fs.ErrPermission):
			return false, fmt.Errorf("%w: %w", ErrForbidden, err)
		case err != nil:
			return false, err
		case info.Mode().IsRegular() && CheckSize(info.Size()) == nil:
			return true, nil
		}
	}
	return false, nil
}

// Delete removes both names of an object.
func (d *Dir) Delete(ctx context.Context, id block.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, l := range []Layout{Sharded, Flat} {
		if err := os.Remove(d.path(l, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// PutFile writes a file, which lasts when PutFile returns.
func (d *Dir) PutFile(ctx context.Context, name string, body io.ReaderAt, size int64, _ *FileOptions) error {
	path, err := d.file(ctx, name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer f.Abort()
	n, err := io.Copy(f, io.NewSectionReader(body, 0, size))
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("write %s: the content ended after %d of %d bytes", path, n, size)
	}
	return f.Commit()
}

// GetFile reads a file.
func (d *Dir) GetFile(ctx context.Context, name string, most int64) ([]byte, error) {
	path, err := d.file(ctx, name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no file %s", ErrNotFound, path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		return nil, fmt.Errorf("%s is over the limit of %d bytes", path, most)
	}
	return data, err
}

// file returns the path of a file that is no object.
func (d *Dir) file(ctx context.Context, name string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if name == "." || !fs.ValidPath(name) || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("file %q in %s: want a path like a/b, without empty parts and dots", name, d.root)
	}
	return filepath.Join(d.root, filepath.FromSlash(name)), nil
}
