// Package pathfs shows files that are known by their paths, and are in no file
// system of the kernel, as an fs.FS.
package pathfs

import (
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
)

// maxLinks is how many symlinks a path may lead through, as in Linux.
const maxLinks = 40

// A Node is what is at a path. Its Name is the last part of that.
type Node interface {
	fs.FileInfo
	Target() string // of a symlink
}

// Options say what an [FS] does.
type Options[N Node] struct {
	// Chroot lets symlinks lead wherever they do after a chroot to the root of
	// the tree: absolute targets begin there, and ".." does not lead above it.
	// Without it, nothing is where such a symlink leads.
	Chroot bool

	// Open opens what is neither a directory nor a symlink.
	Open func(N) (fs.File, error)
}

// An FS is a tree of files. Its Open, Stat and ReadDir follow symlinks inside the
// tree, Lstat and ReadLink do not follow the last one. Concurrent use is safe if it
// is of the function Open.
type FS[N Node] struct {
	opts  Options[N]
	nodes map[string]N
	lists map[string][]fs.DirEntry // of directories, by path
}

var (
	_ fs.ReadDirFS  = (*FS[Node])(nil)
	_ fs.StatFS     = (*FS[Node])(nil)
	_ fs.ReadLinkFS = (*FS[Node])(nil)
)

// New returns the tree of nodes, by path. The root, ".", and whatever is above
// another node must be among them as directories. The map belongs to the FS
// afterwards.
func New[N Node](nodes map[string]N, o Options[N]) *FS[N] {
	f := &FS[N]{opts: o, nodes: nodes, lists: map[string][]fs.DirEntry{}}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		if name != "." {
			dir := path.Dir(name)
			f.lists[dir] = append(f.lists[dir], fs.FileInfoToDirEntry(nodes[name]))
		}
	}
	return f
}

// Find returns the node at a path, with symlinks in it followed, the last one only
// if follow is set. Errors are of the type *fs.PathError, with op in them.
func (f *FS[N]) Find(op, name string, follow bool) (N, error) {
	at, err := f.find(op, name, follow)
	return f.nodes[at], err
}

// find returns the path of what Find does.
func (f *FS[N]) find(op, name string, follow bool) (string, error) {
	fail := func(err error) (string, error) { return "", &fs.PathError{Op: op, Path: name, Err: err} }
	if !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	links, at, rest := 0, ".", name
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if !f.nodes[at].IsDir() {
			return fail(syscall.ENOTDIR)
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if at == "." && !f.opts.Chroot {
				return fail(fs.ErrNotExist)
			}
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		n, ok := f.nodes[next]
		if !ok {
			return fail(fs.ErrNotExist)
		}
		if n.Mode()&fs.ModeSymlink == 0 || rest == "" && !follow {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return fail(syscall.ELOOP)
		}
		target := n.Target()
		if path.IsAbs(target) {
			if !f.opts.Chroot {
				return fail(fs.ErrNotExist)
			}
			at = "."
		}
		// What the target ends in is a directory if more follows.
		rest = strings.TrimSuffix(target+"/"+rest, "/")
	}
	return at, nil
}

// Open opens a file or directory.
func (f *FS[N]) Open(name string) (fs.File, error) {
	at, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	n := f.nodes[at]
	if n.IsDir() {
		return OpenDir(at, n, f.lists[at]), nil
	}
	file, err := f.opts.Open(n)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return file, nil
}

// Stat implements fs.StatFS.
func (f *FS[N]) Stat(name string) (fs.FileInfo, error) { return f.info("stat", name, true) }

// Lstat implements fs.ReadLinkFS.
func (f *FS[N]) Lstat(name string) (fs.FileInfo, error) { return f.info("lstat", name, false) }

func (f *FS[N]) info(op, name string, follow bool) (fs.FileInfo, error) {
	n, err := f.Find(op, name, follow)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// ReadLink implements fs.ReadLinkFS.
func (f *FS[N]) ReadLink(name string) (string, error) {
	n, err := f.Find("readlink", name, false)
	if err == nil && n.Mode()&fs.ModeSymlink == 0 {
		err = &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	if err != nil {
		return "", err
	}
	return n.Target(), nil
}

// ReadDir implements fs.ReadDirFS.
func (f *FS[N]) ReadDir(name string) ([]fs.DirEntry, error) {
	at, err := f.find("readdir", name, true)
	if err == nil && !f.nodes[at].IsDir() {
		err = &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return nil, err
	}
	return slices.Clone(f.lists[at]), nil
}
