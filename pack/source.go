package pack

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
)

// An XattrFS is an fs.FS that knows extended attributes.
type XattrFS interface {
	// Xattrs returns the extended attributes of a file, sorted by name. It does
	// not follow symlinks.
	Xattrs(name string) ([]manifest.Xattr, error)
}

// Dir returns the tree in the directory root for packing: with owners, modes,
// hard links, devices and extended attributes. If root is a symlink, it is
// followed; symlinks below are not.
func Dir(root string) fs.FS {
	return dirFS{ReadLinkFS: os.DirFS(root).(fs.ReadLinkFS), root: root}
}

type dirFS struct {
	fs.ReadLinkFS
	root string
}

var (
	_ fs.ReadLinkFS = dirFS{}
	_ XattrFS       = dirFS{}
	_ Follower      = dirFS{}
)

// Open opens a file for reading. It neither follows a symlink nor waits for a
// pipe, in case one has taken the place of the file.
func (d dirFS) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	flags := os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	if name == "." {
		flags &^= unix.O_NOFOLLOW
	}
	return os.OpenFile(filepath.Join(d.root, name), flags, 0)
}

// ReadDir reads a directory. Unlike os.DirFS, it also lists what has a name that
// is not UTF-8, so that packing can refuse it.
func (d dirFS) ReadDir(name string) ([]fs.DirEntry, error) {
	return os.ReadDir(filepath.Join(d.root, name))
}

// Follow returns the same tree with symlinks followed, also those that lead out of
// it.
func (d dirFS) Follow() fs.FS { return os.DirFS(d.root) }

// A Follower is a tree whose Open does not follow symlinks, and which can be
// looked at with symlinks followed, as other programs do.
type Follower interface {
	Follow() fs.FS
}

// followed returns a tree with symlinks followed.
func followed(src fs.FS) fs.FS {
	if f, ok := src.(Follower); ok {
		return f.Follow()
	}
	return src
}

func (d dirFS) Xattrs(name string) ([]manifest.Xattr, error) {
	file := filepath.Join(d.root, name)
	list, err := readXattr(func(buf []byte) (int, error) { return unix.Llistxattr(file, buf) })
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var all []manifest.Xattr
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		value, err := readXattr(func(buf []byte) (int, error) { return unix.Lgetxattr(file, key, buf) })
		if err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", key, err)
		}
		all = append(all, manifest.Xattr{Name: key, Value: value})
	}
	slices.SortFunc(all, func(a, b manifest.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// readXattr calls one of the calls that first tell the length. File systems
// without extended attributes have none.
func readXattr(call func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := call(nil)
		if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		buf := make([]byte, n)
		n, err = call(buf)
		if errors.Is(err, unix.ERANGE) {
			continue // it grew in between
		}
		return buf[:max(n, 0)], err
	}
}

// walk lists the tree, in the order in which manifests want it.
func (p *packer) walk(ctx context.Context) error {
	links := map[inode]*entry{}
	return fs.WalkDir(p.src, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("read directory %s: %w", name, pathless(err))
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if name != "." {
			if err := manifest.CheckName(d.Name()); err != nil {
				return fmt.Errorf("pack %q: %w; rename it, or leave it out with an exclude pattern", name, err)
			}
		}
		e, err := p.entry(name, d, links)
		if err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
		p.count(e)
		return nil
	})
}

func (p *packer) count(e *entry) {
	p.entries = append(p.entries, e)
	if !e.Attr.IsRegular() || e.first != nil {
		p.others++
		return
	}
	p.files++
	p.bytes += e.Attr.Size
	p.blocks += int64(len(e.blocks))
}

// inode tells apart the inodes of a source.
type inode struct{ dev, ino uint64 }

func (p *packer) entry(name string, d fs.DirEntry, links map[inode]*entry) (*entry, error) {
	info, err := d.Info()
	if err != nil {
		return nil, pathless(err)
	}
	e := &entry{info: info}
	e.Path = name
	e.Attr = p.attr(info)
	if e.Attr.Type() == unix.S_IFLNK {
		if e.Target, err = fs.ReadLink(p.src, name); err != nil {
			return nil, pathless(err)
		}
	}
	if x, ok := p.src.(XattrFS); ok {
		if e.Xattrs, err = x.Xattrs(name); err != nil {
			return nil, pathless(err)
		}
	}
	if e.Attr.IsRegular() {
		e.blocks = make([]sealed, block.Count(e.Attr.Size))
	}
	if first := firstName(e, links); first != nil {
		e.LinkTo, e.first, e.blocks = first.Path, first, nil
	}
	return e, nil
}

// firstName returns the entry that is the same file under another name, nil if
// there is none so far.
func firstName(e *entry, links map[inode]*entry) *entry {
	st, ok := e.info.Sys().(*syscall.Stat_t)
	if !ok || e.Attr.IsDir() || st.Nlink < 2 {
		return nil
	}
	key := inode{uint64(st.Dev), st.Ino}
	if first := links[key]; first != nil {
		return first
	}
	links[key] = e
	return nil
}

// attr reads what a file's info says in Linux terms.
func (p *packer) attr(info fs.FileInfo) manifest.Attr {
	a := manifest.Attr{Mode: manifest.UnixMode(info.Mode()), Nlink: 1, Size: info.Size(), Mtime: info.ModTime().Unix()}
	switch sys := info.Sys().(type) {
	case *syscall.Stat_t:
		a.Mode, a.UID, a.GID, a.Rdev, a.Nlink = sys.Mode, sys.Uid, sys.Gid, sys.Rdev, uint32(sys.Nlink)
	case *tar.Header:
		a.UID, a.GID = uint32(sys.Uid), uint32(sys.Gid)
		a.Rdev = unix.Mkdev(uint32(sys.Devmajor), uint32(sys.Devminor))
	}
	if t := a.Type(); t != unix.S_IFCHR && t != unix.S_IFBLK {
		a.Rdev = 0
	}
	if !p.opts.Newest.IsZero() {
		a.Mtime = min(a.Mtime, p.opts.Newest.Unix())
	}
	return a
}

// unchanged compares an open file with what the walk saw.
func unchanged(f fs.File, seen fs.FileInfo) error {
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if now.Size() != seen.Size() || !now.ModTime().Equal(seen.ModTime()) || now.Mode() != seen.Mode() {
		return errChanged
	}
	a, ok1 := now.Sys().(*syscall.Stat_t)
	b, ok2 := seen.Sys().(*syscall.Stat_t)
	if ok1 && ok2 && (a.Ino != b.Ino || a.Dev != b.Dev || a.Ctim != b.Ctim) {
		return errChanged
	}
	return nil
}
