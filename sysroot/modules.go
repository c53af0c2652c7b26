package sysroot

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"overmount/manifest"
)

// Modules returns the directory lib/modules/KVER of a system or package, and KVER.
// kver says which, if there are several; empty is for the only one.
func Modules(src fs.FS, kver string) (sub fs.FS, found string, err error) {
	s := system{src, "."}
	var dirs, versions []string
	for _, dir := range s.real("modules") {
		list, err := fs.ReadDir(src, dir)
		if err != nil {
			return nil, "", fmt.Errorf("find modules: %w", err)
		}
		for _, d := range list {
			name := path.Join(dir, d.Name())
			if !d.IsDir() || !hasModules(src, name) || kver != "" && d.Name() != kver {
				continue
			}
			dirs = append(dirs, name)
			versions = append(versions, d.Name())
		}
	}
	switch {
	case len(dirs) == 1:
		return below{src, dirs[0]}, versions[0], nil
	case len(dirs) == 0 && kver != "":
		return nil, "", fmt.Errorf("there are no modules of the kernel %s in it: neither lib/modules/%[1]s nor usr/lib/modules/%[1]s has any", kver)
	case len(dirs) == 0:
		return nil, "", errors.New("there are no kernel modules in it: neither lib/modules nor usr/lib/modules has any")
	}
	slices.Sort(versions)
	if len(slices.Compact(versions)) == 1 {
		return nil, "", fmt.Errorf("the modules of the kernel %s are in two directories, %s: leave one of them out", versions[0], strings.Join(dirs, " and "))
	}
	return nil, "", fmt.Errorf("there are modules of several kernels in it, %s: say which one with --kver", strings.Join(versions, ", "))
}

// hasModules reports whether a directory is a kernel's, and not what a package of
// headers leaves there.
func hasModules(src fs.FS, dir string) bool {
	for _, name := range []string{"kernel", "modules.order", "updates", "extra"} {
		if _, err := fs.Lstat(src, path.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// A below is a directory of a tree. Unlike what fs.Sub returns it has all that
// package pack asks for.
type below struct {
	src fs.FS
	dir string
}

var (
	_ fs.ReadDirFS  = below{}
	_ fs.StatFS     = below{}
	_ fs.ReadLinkFS = below{}
)

func (b below) full(op, name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return path.Join(b.dir, name), nil
}

// in calls a function with the path in the tree.
func in[T any](b below, op, name string, call func(fs.FS, string) (T, error)) (T, error) {
	full, err := b.full(op, name)
	if err != nil {
		var none T
		return none, err
	}
	return call(b.src, full)
}

func (b below) Open(name string) (fs.File, error)          { return in(b, "open", name, fs.FS.Open) }
func (b below) Stat(name string) (fs.FileInfo, error)      { return in(b, "stat", name, fs.Stat) }
func (b below) Lstat(name string) (fs.FileInfo, error)     { return in(b, "lstat", name, fs.Lstat) }
func (b below) ReadLink(name string) (string, error)       { return in(b, "readlink", name, fs.ReadLink) }
func (b below) ReadDir(name string) ([]fs.DirEntry, error) { return in(b, "readdir", name, fs.ReadDir) }

// Xattrs returns the extended attributes of a file, sorted by name.
func (b below) Xattrs(name string) ([]manifest.Xattr, error) {
	return in(b, "listxattr", name, xattrs)
}

// Follow returns the directory with symlinks followed, also those that lead out of
// it, if the tree can do that.
func (b below) Follow() fs.FS {
	if f, ok := b.src.(interface{ Follow() fs.FS }); ok {
		return below{f.Follow(), b.dir}
	}
	return b
}
