package sysroot

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"overmount/internal/decompress"
	"overmount/internal/opendir"
	"overmount/manifest"
)

// A FirmwareTree is a directory of firmware; see [Firmware]. Its Open, Stat and
// ReadDir follow symlinks inside it, Lstat, ReadLink and Xattrs do not follow the
// last one. Concurrent use is safe if it is for the tree below.
type FirmwareTree struct {
	Findings []Finding // by path

	src   fs.FS
	nodes map[string]*node
	lists map[string][]fs.DirEntry
}

var (
	_ fs.ReadDirFS  = (*FirmwareTree)(nil)
	_ fs.StatFS     = (*FirmwareTree)(nil)
	_ fs.ReadLinkFS = (*FirmwareTree)(nil)
)

// A node is a file of the result.
type node struct {
	*item
	path string
	size int64 // of the plain form
}

func (t *FirmwareTree) finish() *FirmwareTree {
	for _, name := range slices.Sorted(maps.Keys(t.nodes)) {
		if name != "." {
			dir := path.Dir(name)
			t.lists[dir] = append(t.lists[dir], fs.FileInfoToDirEntry(nodeInfo{t.nodes[name].info, t.nodes[name]}))
		}
	}
	slices.SortStableFunc(t.Findings, func(a, b Finding) int { return strings.Compare(a.Path, b.Path) })
	return t
}

// find returns the node at a path.
func (t *FirmwareTree) find(op, name string, follow bool) (*node, error) {
	fail := func(err error) (*node, error) { return nil, &fs.PathError{Op: op, Path: name, Err: err} }
	if !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	links, at, rest := 0, ".", name
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if !t.nodes[at].info.IsDir() {
			return fail(syscall.ENOTDIR)
		}
		if part == ".." && at == "." {
			return fail(fs.ErrNotExist)
		}
		next := path.Join(at, part)
		n := t.nodes[next]
		if n == nil {
			return fail(fs.ErrNotExist)
		}
		if n.info.Mode()&fs.ModeSymlink == 0 || rest == "" && !follow {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return fail(syscall.ELOOP)
		}
		if path.IsAbs(n.target) {
			return fail(fs.ErrNotExist)
		}
		rest = strings.TrimSuffix(n.target+"/"+rest, "/")
	}
	return t.nodes[at], nil
}

// Open opens a file, as it is shown, or a directory.
func (t *FirmwareTree) Open(name string) (fs.File, error) {
	n, err := t.find("open", name, true)
	if err != nil {
		return nil, err
	}
	if n.info.IsDir() {
		return opendir.New(n.path, nodeInfo{n.info, n}, t.lists[n.path]), nil
	}
	f, err := openPlain(t.src, n.content, n.format)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if n.format == decompress.None {
		return &openFile{f.File, n}, nil
	}
	return &openFile{&exactFile{plainFile: f, left: n.size}, n}, nil
}

// Stat implements fs.StatFS.
func (t *FirmwareTree) Stat(name string) (fs.FileInfo, error) { return t.stat("stat", name, true) }

// Lstat implements fs.ReadLinkFS.
func (t *FirmwareTree) Lstat(name string) (fs.FileInfo, error) { return t.stat("lstat", name, false) }

func (t *FirmwareTree) stat(op, name string, follow bool) (fs.FileInfo, error) {
	n, err := t.find(op, name, follow)
	if err != nil {
		return nil, err
	}
	return nodeInfo{n.info, n}, nil
}

// ReadLink implements fs.ReadLinkFS.
func (t *FirmwareTree) ReadLink(name string) (string, error) {
	n, err := t.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	if n.target == "" {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return n.target, nil
}

// ReadDir implements fs.ReadDirFS.
func (t *FirmwareTree) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !n.info.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	return slices.Clone(t.lists[n.path]), nil
}

// Xattrs returns the extended attributes of a file, sorted by name.
func (t *FirmwareTree) Xattrs(name string) ([]manifest.Xattr, error) {
	n, err := t.find("listxattr", name, false)
	if err != nil {
		return nil, err
	}
	return xattrs(t.src, n.content)
}

// A nodeInfo is what the tree below says, with the name and size of the result.
type nodeInfo struct {
	fs.FileInfo
	n *node
}

func (i nodeInfo) Name() string { return path.Base(i.n.path) }
func (i nodeInfo) Size() int64  { return i.n.size }

// An openFile says of an open file what it is now.
type openFile struct {
	fs.File
	n *node
}

func (f *openFile) Stat() (fs.FileInfo, error) {
	info, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	if f.n.format == decompress.None && info.Size() != f.n.size {
		return info, nil // it has changed, and who reads it wants to know
	}
	return nodeInfo{info, f.n}, nil
}

// An exactFile fails unless its plain form has the length that it should have.
type exactFile struct {
	*plainFile
	left int64
}

func (f *exactFile) Read(p []byte) (int, error) {
	n, err := f.plainFile.Read(p)
	f.left -= int64(n)
	if f.left < 0 || err == io.EOF && f.left > 0 {
		return 0, fmt.Errorf("its plain form has not the length that its header states: it is damaged, or made in a way that the kernel does not read, either")
	}
	return n, err
}

// dirInfo is a directory that is not there, but whose other name may be.
type dirInfo string

func (i dirInfo) Name() string     { return path.Base(string(i)) }
func (dirInfo) Size() int64        { return 0 }
func (dirInfo) Mode() fs.FileMode  { return fs.ModeDir | 0o755 }
func (dirInfo) ModTime() time.Time { return time.Time{} }
func (dirInfo) IsDir() bool        { return true }
func (dirInfo) Sys() any           { return nil }
