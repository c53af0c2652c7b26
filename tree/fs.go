package tree

import (
	"context"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"

	"overmount/block"
	"overmount/internal/pathfs"
	"overmount/manifest"
)

// maxLinks is how many symlinks one name may lead over, as in Linux.
const maxLinks = 40

// FS returns the tree as a file system. Reads wait under ctx, which is why it
// stands here and not in each call.
//
// It has ReadFile, Stat, Lstat, ReadLink and ReadDir. Open and Stat follow
// symlinks within the tree; one that is absolute, or leads above the root, leads
// to nothing here, and gives fs.ErrNotExist like any dangling one. Regular files
// are io.ReaderAt and io.Seeker. Devices, pipes and sockets can be opened, and
// read as empty. FileInfo.Sys is a *syscall.Stat_t.
func (t *Tree) FS(ctx context.Context) fs.FS { return treeFS{t, ctx} }

type treeFS struct {
	t   *Tree
	ctx context.Context
}

var (
	_ fs.ReadFileFS = treeFS{}
	_ fs.ReadDirFS  = treeFS{}
	_ fs.StatFS     = treeFS{}
	_ fs.ReadLinkFS = treeFS{}
)

// find returns the node of a name. Symlinks before the last part are always
// followed, the last part if follow says so.
func (f treeFS) find(op, name string, follow bool) (manifest.Ino, error) {
	if !fs.ValidPath(name) {
		return 0, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	ino, err := f.t.resolve(name, follow)
	if err != nil {
		return 0, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return ino, nil
}

func (t *Tree) resolve(name string, follow bool) (manifest.Ino, error) {
	m := t.m
	ino, links := manifest.Root, 0
	for name != "" {
		part, rest, _ := strings.Cut(name, "/")
		name = rest
		if !m.Attr(ino).IsDir() {
			return 0, fs.ErrNotExist
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if ino == manifest.Root {
				return 0, fs.ErrNotExist // it leads out of the tree
			}
			ino = m.Parent(ino)
			continue
		}
		next, ok := m.Lookup(ino, part)
		if !ok {
			return 0, fs.ErrNotExist
		}
		target := m.Target(next)
		if target == "" || name == "" && !follow {
			ino = next
			continue
		}
		if links++; links > maxLinks {
			return 0, syscall.ELOOP
		}
		if path.IsAbs(target) {
			return 0, fs.ErrNotExist
		}
		name = join(target, name)
	}
	return ino, nil
}

// join puts what is left of a name behind a symlink's target. Nothing is
// cleaned: in a/.. the a may be a symlink.
func join(target, rest string) string {
	if rest == "" {
		return target
	}
	return target + "/" + rest
}

// Open implements fs.FS.
func (f treeFS) Open(name string) (fs.File, error) {
	ino, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	info := f.t.info(ino, path.Base(name))
	if info.IsDir() {
		return pathfs.OpenDir(name, info, f.t.entries(f.t.m.Children(ino))), nil
	}
	return &file{info: info, name: name, ctx: f.ctx, t: f.t}, nil
}

// Stat implements fs.StatFS.
func (f treeFS) Stat(name string) (fs.FileInfo, error) {
	ino, err := f.find("stat", name, true)
	if err != nil {
		return nil, err
	}
	return f.t.info(ino, path.Base(name)), nil
}

// Lstat implements fs.ReadLinkFS.
func (f treeFS) Lstat(name string) (fs.FileInfo, error) {
	ino, err := f.find("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return f.t.info(ino, path.Base(name)), nil
}

// ReadLink implements fs.ReadLinkFS. The target is exactly as it was packed.
func (f treeFS) ReadLink(name string) (string, error) {
	ino, err := f.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	target := f.t.m.Target(ino)
	if target == "" {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return target, nil
}

// ReadDir implements fs.ReadDirFS.
func (f treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	ino, err := f.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !f.t.m.Attr(ino).IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	return f.t.entries(f.t.m.Children(ino)), nil
}

// ReadFile implements fs.ReadFileFS. It fetches some blocks at the same time.
func (f treeFS) ReadFile(name string) ([]byte, error) {
	opened, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	file, ok := opened.(*file)
	if !ok {
		return nil, &fs.PathError{Op: "read", Path: name, Err: syscall.EISDIR}
	}
	return file.all()
}

func (t *Tree) entries(inos []manifest.Ino) []fs.DirEntry {
	list := make([]fs.DirEntry, len(inos))
	for i, ino := range inos {
		list[i] = fs.FileInfoToDirEntry(t.info(ino, t.m.Name(ino)))
	}
	return list
}

// info is a fs.FileInfo.
type info struct {
	name string
	ino  manifest.Ino
	id   manifest.Ino // of the first of the node's names
	attr manifest.Attr
}

func (t *Tree) info(ino manifest.Ino, name string) info {
	return info{name: name, ino: ino, id: t.m.FirstName(ino), attr: t.m.Attr(ino)}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.attr.Size }
func (i info) Mode() fs.FileMode  { return i.attr.FileMode() }
func (i info) ModTime() time.Time { return i.attr.ModTime() }
func (i info) IsDir() bool        { return i.attr.IsDir() }

// Sys returns what stat(2) would.
func (i info) Sys() any {
	a := i.attr
	st := &syscall.Stat_t{
		Ino: uint64(i.id), Mode: a.Mode, Uid: a.UID, Gid: a.GID, Rdev: a.Rdev, Size: a.Size,
		Mtim: syscall.Timespec{Sec: a.Mtime}, Ctim: syscall.Timespec{Sec: a.Ctime}, Atim: syscall.Timespec{Sec: a.Mtime},
		Blocks: (a.Size + 511) / 512,
	}
	setNumbers(&st.Nlink, a.Nlink) // their types differ between architectures
	setNumbers(&st.Blksize, 4096)
	return st
}

func setNumbers[T uint32 | uint64 | int32 | int64](to *T, n uint32) { *to = T(n) }

// A file is anything open but a directory. ReadAt is safe for concurrent use;
// Read, Seek and Close are not.
type file struct {
	info
	name   string
	t      *Tree
	ctx    context.Context
	off    int64
	closed bool
}

var (
	_ io.ReaderAt = (*file)(nil)
	_ io.Seeker   = (*file)(nil)
)

func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }

func (f *file) Close() error {
	if f.closed {
		return f.fail("close", fs.ErrClosed)
	}
	f.closed = true
	return nil
}

func (f *file) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

func (f *file) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case f.closed:
		return 0, f.fail("read", fs.ErrClosed)
	case off < 0:
		return 0, f.fail("read", fs.ErrInvalid)
	case len(p) == 0:
		return 0, nil
	case !f.attr.IsRegular():
		return 0, io.EOF
	}
	n, err := f.t.ReadAt(f.ctx, f.ino, p, off)
	if err != nil && err != io.EOF {
		err = f.fail("read", err)
	}
	return n, err
}

func (f *file) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += f.off
	case io.SeekEnd:
		offset += f.attr.Size
	default:
		return 0, f.fail("seek", fs.ErrInvalid)
	}
	if offset < 0 {
		return 0, f.fail("seek", fs.ErrInvalid)
	}
	f.off = offset
	return offset, nil
}

// all reads the whole file. It allocates as it goes, since a hostile manifest
// may claim a size that no store can fill.
func (f *file) all() ([]byte, error) {
	const step = 4 * block.Size
	size := f.attr.Size
	if !f.attr.IsRegular() {
		size = 0
	}
	data := make([]byte, 0, min(step, size))
	for had := int64(0); had < size; had = int64(len(data)) {
		data = append(data, make([]byte, min(step, size-had))...)
		if _, err := f.ReadAt(data[had:], had); err != nil {
			return nil, err
		}
	}
	return data, nil
}
