package sysroot

import (
	"fmt"
	"io"
	"io/fs"
	"path"

	"overmount/internal/decompress"
	"overmount/internal/pathfs"
	"overmount/manifest"
)

// A FirmwareTree is a directory of firmware, as an fs.ReadDirFS, fs.StatFS and
// fs.ReadLinkFS; see [Firmware]. Its Open, Stat and ReadDir follow symlinks inside
// it, Lstat, ReadLink and Xattrs do not follow the last one. Concurrent use is safe
// if it is for the tree below.
type FirmwareTree struct {
	Findings []Finding // by path

	*pathfs.FS[*node]
	src fs.FS
}

// A node is a file of the result: what the tree below says, with the name and size
// that it has here.
type node struct {
	fs.FileInfo
	*item
	size int64 // of the plain form
}

func (n *node) Name() string   { return path.Base(n.to) }
func (n *node) Size() int64    { return n.size }
func (n *node) Target() string { return n.target }

// open opens a file as it is shown.
func (t *FirmwareTree) open(n *node) (fs.File, error) {
	f, err := openPlain(t.src, n.content, n.format)
	if err != nil {
		return nil, err
	}
	if n.format == decompress.None {
		return &openFile{f.File, n}, nil
	}
	return &openFile{&exactFile{plainFile: f, left: n.size, name: n.content}, n}, nil
}

// Xattrs returns the extended attributes of a file, sorted by name.
func (t *FirmwareTree) Xattrs(name string) ([]manifest.Xattr, error) {
	n, err := t.Find("listxattr", name, false)
	if err != nil {
		return nil, err
	}
	return xattrs(t.src, n.content)
}

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
	return &node{info, f.n.item, f.n.size}, nil
}

// An exactFile fails unless its plain form has the length that it should have.
type exactFile struct {
	*plainFile
	left int64
	name string // in the tree below
}

func (f *exactFile) Read(p []byte) (int, error) {
	n, err := f.plainFile.Read(p)
	f.left -= int64(n)
	switch {
	case err != nil && err != io.EOF:
		return n, fmt.Errorf("%s: %w", f.name, err)
	case f.left < 0 || err == io.EOF && f.left > 0:
		return 0, fmt.Errorf("%s: its plain form has not the length that its header states: it is damaged, or made in a way that the kernel does not read, either", f.name)
	}
	return n, err
}
