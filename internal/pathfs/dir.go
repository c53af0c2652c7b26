package pathfs

import (
	"io"
	"io/fs"
	"slices"
	"syscall"
)

// OpenDir returns an open directory. name is for errors; its entries are those of
// list, in that order. The list is not changed.
func OpenDir(name string, info fs.FileInfo, list []fs.DirEntry) fs.ReadDirFile {
	return &dir{name, info, list}
}

type dir struct {
	name string
	info fs.FileInfo
	left []fs.DirEntry // still to be read
}

func (d *dir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *dir) Close() error               { return nil }

func (d *dir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: syscall.EISDIR}
}

func (d *dir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		n = len(d.left)
	} else if len(d.left) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.left))
	list := slices.Clone(d.left[:n])
	d.left = d.left[n:]
	return list, nil
}
