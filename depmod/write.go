package depmod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"overmount/internal/atomicfile"
)

// mode is that of all index files, whatever the umask.
const mode = 0o644

// Write puts the index files into a directory, which must exist: all or none.
// Every file is written, and lasts, before the first gets its name; if one cannot
// get its name, those that did are put back as they were. The error names the
// file. A program killed on the way may leave temporary files
// ([atomicfile.IsTemp]), and new files beside old ones.
func (r *Result) Write(dir string) error {
	s := &swap{dir: dir}
	defer s.clean()
	if err := s.prepare(r.Files); err != nil {
		return err
	}
	for _, f := range s.files {
		if err := f.rename(); err != nil {
			return errors.Join(fmt.Errorf("write %s: %w", f.path, pathless(err)), s.undo())
		}
	}
	if err := atomicfile.SyncDir(dir); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", dir, pathless(err)), s.undo())
	}
	return nil
}

// A swap replaces several files.
type swap struct {
	dir   string
	files []*swapFile
}

type swapFile struct {
	path  string
	fresh *atomicfile.File
	old   string // a second name of the file that is replaced; "" if there was none
	moved bool
}

// prepare writes the new files beside the old ones, and waits for the disk.
func (s *swap) prepare(files []File) error {
	errs := make([]error, len(files))
	var wg sync.WaitGroup
	for i, f := range files {
		sf := &swapFile{path: filepath.Join(s.dir, f.Name)}
		s.files = append(s.files, sf)
		wg.Go(func() {
			if err := sf.write(f.Data); err != nil {
				errs[i] = fmt.Errorf("write %s: %w", sf.path, pathless(err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (f *swapFile) write(data []byte) error {
	var err error
	if f.fresh, err = atomicfile.Create(f.path, mode); err != nil {
		return err
	}
	if _, err := f.fresh.Write(data); err != nil {
		return err
	}
	if err := f.fresh.Chmod(mode); err != nil {
		return err
	}
	return f.fresh.Sync()
}

// rename gives a new file its name, and keeps the old one at another.
func (f *swapFile) rename() error {
	if err := f.keep(); err != nil {
		return fmt.Errorf("keep the old file: %w", pathless(err))
	}
	if err := f.fresh.CommitUnsynced(); err != nil {
		return err
	}
	f.moved = true
	return nil
}

// keep gives the old file a second name, or, where the file system has no hard
// links, makes a copy.
func (f *swapFile) keep() error {
	info, err := os.Lstat(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return unix.EISDIR
	}
	old := f.fresh.Name() + "-old"
	err = os.Link(f.path, old)
	if err != nil && info.Mode().IsRegular() {
		err = copyFile(f.path, old, info)
	}
	if err == nil {
		f.old = old
	}
	return err
}

// copyFile copies a file with its mode and time.
func copyFile(from, to string, info os.FileInfo) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(to, data, info.Mode().Perm()); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// undo puts back what was there before.
func (s *swap) undo() error {
	var errs []error
	for _, f := range s.files {
		var err error
		switch {
		case !f.moved:
		case f.old != "":
			err = os.Rename(f.old, f.path)
		default:
			err = os.Remove(f.path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("put the old %s back: %w", f.path, pathless(err)))
		}
	}
	return errors.Join(errs...)
}

// clean removes all temporary files.
func (s *swap) clean() {
	for _, f := range s.files {
		if f.fresh != nil {
			f.fresh.Abort()
		}
		if f.old != "" {
			os.Remove(f.old)
		}
	}
}
