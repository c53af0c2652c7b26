package pack

import (
	"bytes"
	"cmp"
	"io"
	"io/fs"
	"path"
	"slices"
	"time"

	"overmount/internal/pathfs"
	"overmount/manifest"
)

// A LayerFile is a regular file of mode 0644 that [Layer] puts into the root of a
// tree.
type LayerFile struct {
	Name  string
	Data  []byte
	Mtime time.Time
}

// Layer returns the tree src with files put over its root. Files of src that have
// their names are hidden; src itself stays as it is.
func Layer(src fs.FS, files []LayerFile) fs.FS {
	l := layered{FS: src, files: map[string]LayerFile{}}
	for _, f := range files {
		l.files[f.Name] = f
	}
	return l
}

type layered struct {
	fs.FS
	files map[string]LayerFile
}

var (
	_ fs.ReadDirFS  = layered{}
	_ fs.StatFS     = layered{}
	_ fs.ReadLinkFS = layered{}
	_ XattrFS       = layered{}
)

func (l layered) Open(name string) (fs.File, error) {
	if f, ok := l.files[name]; ok {
		return &layerFile{info: layerInfo{f}, Reader: bytes.NewReader(f.Data)}, nil
	}
	f, err := l.FS.Open(name)
	if err != nil || name != "." {
		return f, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	list, err := l.ReadDir(name)
	if err != nil {
		return nil, err
	}
	return pathfs.OpenDir(name, info, list), nil
}

func (l layered) Stat(name string) (fs.FileInfo, error) {
	if f, ok := l.files[name]; ok {
		return layerInfo{f}, nil
	}
	return fs.Stat(l.FS, name)
}

func (l layered) Lstat(name string) (fs.FileInfo, error) {
	if f, ok := l.files[name]; ok {
		return layerInfo{f}, nil
	}
	return fs.Lstat(l.FS, name)
}

func (l layered) ReadLink(name string) (string, error) {
	if _, ok := l.files[name]; ok {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return fs.ReadLink(l.FS, name)
}

func (l layered) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := fs.ReadDir(l.FS, name)
	if path.Clean(name) != "." {
		return list, err
	}
	list = slices.DeleteFunc(slices.Clone(list), func(d fs.DirEntry) bool {
		_, hidden := l.files[d.Name()]
		return hidden
	})
	for _, f := range l.files {
		list = append(list, fs.FileInfoToDirEntry(layerInfo{f}))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return list, err
}

func (l layered) Xattrs(name string) ([]manifest.Xattr, error) {
	below, ok := l.FS.(XattrFS)
	if _, hidden := l.files[name]; hidden || !ok {
		return nil, nil
	}
	return below.Xattrs(name)
}

type layerInfo struct{ f LayerFile }

func (i layerInfo) Name() string       { return i.f.Name }
func (i layerInfo) Size() int64        { return int64(len(i.f.Data)) }
func (i layerInfo) Mode() fs.FileMode  { return 0o644 }
func (i layerInfo) ModTime() time.Time { return i.f.Mtime }
func (i layerInfo) IsDir() bool        { return false }
func (i layerInfo) Sys() any           { return nil }

// A layerFile is an open LayerFile.
type layerFile struct {
	info layerInfo
	*bytes.Reader
}

var _ io.ReaderAt = (*layerFile)(nil)

func (f *layerFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *layerFile) Close() error               { return nil }
