package initramfs

import (
	"bytes"
	"io/fs"
	"path"
	"time"

	"overmount/kmod"
)

// A memFS is files in memory, by path. It opens them; it lists none.
type memFS map[string][]byte

// Open opens a file. It returns fs.ErrNotExist for what is not there, directories
// among it.
func (m memFS) Open(name string) (fs.File, error) {
	data, ok := m[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memFile{*bytes.NewReader(data), path.Base(name)}, nil
}

// order returns the lines of a modules.order that are of these files. The kernel's
// build writes .ko into it, however the modules are compressed later.
func (m memFS) order(all []byte) []byte {
	var kept []string
	for _, line := range kmod.ParseOrder(all) {
		if _, ok := m[line]; ok {
			kept = append(kept, line)
		}
	}
	return lines(kept)
}

type memFile struct {
	bytes.Reader
	name string
}

func (f *memFile) Close() error               { return nil }
func (f *memFile) Stat() (fs.FileInfo, error) { return memInfo{f}, nil }

type memInfo struct{ f *memFile }

func (i memInfo) Name() string       { return i.f.name }
func (i memInfo) Size() int64        { return i.f.Size() }
func (i memInfo) Mode() fs.FileMode  { return 0o644 }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return false }
func (i memInfo) Sys() any           { return nil }
