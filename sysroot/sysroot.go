// Package sysroot finds what belongs to the kernel in the tree of a system or of
// packages: the modules of a kernel, and firmware.
//
// Such a tree has it in lib or in usr/lib, and in both if its packages are of
// different opinions; one of them may be a symlink to the other. They are taken for
// one directory.
//
// What the functions return is an fs.FS for package pack, which keeps owners,
// modes, times, hard links and extended attributes of the tree below it. Concurrent
// use is safe if it is for that.
package sysroot

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"overmount/archive"
	"overmount/manifest"
)

// A system is a tree with a place for everything, and with symlinks followed as in
// a chroot.
type system struct {
	src fs.FS
	at  string // what src is a tree of, below the root; "." for a whole system
}

// maxLinks is how many symlinks a path may lead through, as in Linux.
const maxLinks = 40

// lstat returns what is at a path of the system, which has no symlink in it but at
// its end perhaps.
func (s system) lstat(name string) (fs.FileInfo, error) {
	in, ok := s.inside(name)
	if !ok {
		return nil, fs.ErrNotExist
	}
	return fs.Lstat(s.src, in)
}

// inside returns the path in src of a path of the system.
func (s system) inside(name string) (string, bool) {
	if s.at == "." {
		return name, true
	}
	if name == s.at {
		return ".", true
	}
	return strings.CutPrefix(name, s.at+"/")
}

// other returns the path with lib in the place of usr/lib, and the other way
// round.
func other(name string) (string, bool) {
	if rest, ok := strings.CutPrefix(name, "usr/lib/"); ok {
		return "lib/" + rest, true
	}
	if strings.HasPrefix(name, "lib/") {
		return "usr/" + name, true
	}
	return "", false
}

// find returns the path at which a path ends up, and what is there. The last
// symlink is followed only if follow is set. What is not in lib is looked for in
// usr/lib, and the other way round.
func (s system) find(name string, follow bool) (string, fs.FileInfo, error) {
	links, at, rest := 0, ".", name
	var info fs.FileInfo
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			at, info = path.Dir(at), nil
			continue
		}
		next := path.Join(at, part)
		var err error
		if next, info, err = s.either(next); err != nil {
			return "", nil, err
		}
		if info.Mode()&fs.ModeSymlink == 0 || rest == "" && !follow {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", nil, syscall.ELOOP
		}
		target, err := s.readLink(next)
		if err != nil {
			return "", nil, err
		}
		if path.IsAbs(target) {
			at = "."
		}
		rest = strings.TrimSuffix(target+"/"+rest, "/")
	}
	if info == nil {
		var err error
		at, info, err = s.either(at)
		return at, info, err
	}
	return at, info, nil
}

// either returns what is at a path, or at the one that is the same directory.
func (s system) either(name string) (string, fs.FileInfo, error) {
	info, err := s.lstat(name)
	switch {
	case err == nil:
		return name, info, nil
	case name == "usr" || name == "lib" || name == "usr/lib":
		return name, dirInfo(name), nil // what is below may be in the other
	}
	if also, ok := other(name); ok && errors.Is(err, fs.ErrNotExist) {
		if info, err := s.lstat(also); err == nil {
			return also, info, nil
		}
	}
	return "", nil, err
}

// dirInfo is a directory that is not there, but whose other name may be.
type dirInfo string

func (i dirInfo) Name() string     { return path.Base(string(i)) }
func (dirInfo) Size() int64        { return 0 }
func (dirInfo) Mode() fs.FileMode  { return fs.ModeDir | 0o755 }
func (dirInfo) ModTime() time.Time { return time.Time{} }
func (dirInfo) IsDir() bool        { return true }
func (dirInfo) Sys() any           { return nil }

func (s system) readLink(name string) (string, error) {
	in, ok := s.inside(name)
	if !ok {
		return "", fs.ErrNotExist
	}
	return fs.ReadLink(s.src, in)
}

// real returns those of the two directories called name in lib and usr/lib that
// are there, and not by way of a symlink.
func (s system) real(name string) []string {
	var dirs []string
	for _, dir := range []string{path.Join("lib", name), path.Join("usr/lib", name)} {
		if s.isDir(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func (s system) isDir(name string) bool {
	for up := name; up != "."; up = path.Dir(up) {
		info, err := s.lstat(up)
		if err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// xattrs returns the extended attributes of a file of src, if src knows them.
func xattrs(src fs.FS, name string) ([]manifest.Xattr, error) {
	switch src := src.(type) {
	case interface {
		Xattrs(name string) ([]manifest.Xattr, error)
	}:
		return src.Xattrs(name)
	case interface {
		Xattrs(name string) ([]archive.Xattr, error)
	}:
		list, err := src.Xattrs(name)
		all := make([]manifest.Xattr, 0, len(list))
		for _, x := range list {
			all = append(all, manifest.Xattr{Name: x.Name, Value: x.Value})
		}
		return slices.Clip(all), err
	}
	return nil, nil
}
