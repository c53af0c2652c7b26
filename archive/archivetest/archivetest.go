// Package archivetest checks trees that came from strangers.
package archivetest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing"
)

// InRoot fails the test unless who writes a tree to a directory, file by file, can
// write nowhere else, and who reads it gets what it states: every name is a path as in
// fs.ValidPath and occurs once, what is above it are directories and no
// symlinks, it is a file, directory or symlink and nothing else, and a file has as many bytes
// as it says. It returns the symlinks, by path.
func InRoot(tb testing.TB, tree fs.FS) (links map[string]string) {
	tb.Helper()
	links = map[string]string{}
	seen := map[string]bool{}
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !fs.ValidPath(name) || seen[name] {
			return errors.New("it is no valid path, or there twice")
		}
		seen[name] = true
		if up, err := fs.Lstat(tree, path.Dir(name)); err != nil || !up.IsDir() {
			return fmt.Errorf("%q: what is above it is no directory: %v, %w", name, up, err)
		}
		switch d.Type() {
		case fs.ModeDir:
			return nil
		case fs.ModeSymlink:
			links[name], err = fs.ReadLink(tree, name)
			return err
		case 0:
			return exact(tree, name)
		}
		return fmt.Errorf("%q: it is of the type %v", name, d.Type())
	})
	if err != nil {
		tb.Errorf("a tree of a stranger: %v", err)
	}
	return links
}

func exact(tree fs.FS, name string) error {
	info, err := fs.Lstat(tree, name)
	if err != nil {
		return err
	}
	data, err := fs.ReadFile(tree, name)
	if err == nil && int64(len(data)) != info.Size() {
		err = fmt.Errorf("%q: it has %d bytes, and states %d", name, len(data), info.Size())
	}
	return err
}

// LeadsOut reports whether a symlink at a path, followed by its text alone, leaves
// the root on its way.
func LeadsOut(name, target string) bool {
	if path.IsAbs(target) {
		return true
	}
	at := path.Dir(name)
	for part := range strings.SplitSeq(target, "/") {
		if part == ".." && at == "." {
			return true
		}
		at = path.Join(at, part)
	}
	return false
}
