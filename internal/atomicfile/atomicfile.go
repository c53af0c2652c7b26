// Package atomicfile puts a file at its name whole or not at all.
//
// The bytes go to a temporary file in the same directory. Commit makes them
// last (fsync), gives them their name (rename), and makes the name last (fsync
// of the directory). A reader of the name sees the old file or the new one. A
// program killed on the way leaves the old file, and a temporary file whose
// name [IsTemp] knows.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const tempMark = ".overmount-tmp-"

// IsTemp reports whether name, without a directory, is that of a temporary file
// of this package. It may belong to a program that still runs.
func IsTemp(name string) bool { return strings.HasPrefix(name, tempMark) }

// A File is a file on its way to its name. It is written as an os.File; one of
// Commit and Abort ends it.
type File struct {
	*os.File
	path string
	done bool
}

// Create starts a file that will appear at path with mode perm, less the umask.
// The directory must exist.
func Create(path string, perm fs.FileMode) (*File, error) {
	for range 100 {
		name := filepath.Join(filepath.Dir(path), fmt.Sprintf("%s%d-%x", tempMark, os.Getpid(), rand.Uint64()))
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		if os.IsExist(err) {
			continue
		}
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			pe.Path = path // the name that somebody knows
		}
		if err != nil {
			return nil, err
		}
		return &File{File: f, path: path}, nil
	}
	return nil, fmt.Errorf("create a temporary file for %s: every name is taken", path)
}

// Commit makes the file last and gives it its name. After an error nothing is
// at the name that was not there before.
func (f *File) Commit() error {
	if err := f.Sync(); err != nil {
		f.Abort()
		return err
	}
	if err := f.CommitUnsynced(); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(f.path))
}

// CommitUnsynced gives the file its name without waiting for the disk. After a
// power cut the name may be missing, or hold fewer bytes.
func (f *File) CommitUnsynced() error {
	if f.done {
		return fs.ErrClosed
	}
	if err := f.Close(); err != nil {
		f.Abort()
		return err
	}
	if err := os.Rename(f.Name(), f.path); err != nil {
		f.Abort()
		return err
	}
	f.done = true
	return nil
}

// Abort drops the file. After Commit it does nothing, so it can be deferred.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	f.Close()
	os.Remove(f.Name())
}

// Write puts data at path, and makes it last.
func Write(path string, data []byte, perm fs.FileMode) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}

// SyncDir makes the names in a directory last.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// SyncFS makes everything on the file system that holds dir last, at the price
// of one call instead of one for each file.
func SyncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", dir, err)
	}
	return nil
}
