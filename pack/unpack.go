package pack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/tree"
)

// UnpackOptions change how a tree is unpacked.
type UnpackOptions struct {
	// Owners gives files the owner and group of the manifest, and those
	// extended attributes that only root may set. It needs root.
	Owners bool
	// Files is how many files are written at a time; 0 means 16.
	Files int
	// Progress, if set, is told of the state of work whenever a file is done.
	// It is called from several goroutines.
	Progress func(Summary)
}

// Unpack writes a tree to the directory dir, which is made if it is not there:
// modes, times, symlinks, hard links, extended attributes of users, and, as
// root, devices. What root alone may make is left out for others; skipped counts
// it.
//
// Nothing that exists is overwritten: a file that is in the way is an error, a
// directory is used. No symlink below dir is followed. A file that could not be
// written whole is removed.
func Unpack(ctx context.Context, t *tree.Tree, dir string, opts *UnpackOptions) (s Summary, skipped int64, err error) {
	if opts == nil {
		opts = &UnpackOptions{}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s, 0, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return s, 0, err
	}
	defer root.Close()
	u := &unpacker{t: t, m: t.Manifest(), root: root, opts: opts, asRoot: os.Geteuid() == 0}
	u.measure()
	for _, step := range []func(context.Context) error{u.dirs, u.files, u.links, u.finishDirs} {
		if err := step(ctx); err != nil {
			return u.summary(), u.skipped.Load(), err
		}
	}
	return u.summary(), u.skipped.Load(), nil
}

type unpacker struct {
	t      *tree.Tree
	m      *manifest.Manifest
	root   *os.Root
	opts   *UnpackOptions
	asRoot bool

	total                Summary
	doneFiles, doneBytes atomic.Int64
	skipped              atomic.Int64
}

func (u *unpacker) measure() {
	for _, ino := range u.m.Walk(manifest.Root) {
		a := u.m.Attr(ino)
		if !a.IsRegular() || u.m.FirstName(ino) != ino {
			u.total.Others++
			continue
		}
		u.total.Files++
		u.total.Bytes += a.Size
	}
}

func (u *unpacker) summary() Summary {
	s := u.total
	s.DoneFile, s.DoneByte = u.doneFiles.Load(), u.doneBytes.Load()
	return s
}

// dirs makes the directories, for now open to the writer alone.
func (u *unpacker) dirs(ctx context.Context) error {
	for name, ino := range u.m.Walk(manifest.Root) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if name == "." || !u.m.Attr(ino).IsDir() {
			continue
		}
		if err := u.root.Mkdir(name, 0o700); err != nil && !u.isDir(name) {
			return fmt.Errorf("unpack %s: %w", name, pathless(err))
		}
	}
	return nil
}

func (u *unpacker) isDir(name string) bool {
	info, err := u.root.Lstat(name)
	return err == nil && info.IsDir()
}

// files writes all files that are not further names of others.
func (u *unpacker) files(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(u.workers())
	for name, ino := range u.m.Walk(manifest.Root) {
		if gctx.Err() != nil {
			break
		}
		if u.m.Attr(ino).IsDir() || u.m.FirstName(ino) != ino {
			continue
		}
		g.Go(func() error {
			if err := u.file(gctx, name, ino); err != nil {
				return fmt.Errorf("unpack %s: %w", name, pathless(err))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func (u *unpacker) workers() int {
	if u.opts.Files > 0 {
		return u.opts.Files
	}
	return max(16, runtime.GOMAXPROCS(0))
}

func (u *unpacker) file(ctx context.Context, name string, ino manifest.Ino) error {
	switch a := u.m.Attr(ino); a.Type() {
	case unix.S_IFREG:
		return u.regular(ctx, name, ino)
	case unix.S_IFLNK:
		if err := u.root.Symlink(u.m.Target(ino), name); err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if !u.asRoot {
			u.skipped.Add(1)
			return nil
		}
		fallthrough
	default:
		err := u.at(name, func(dir int, base string) error {
			return unix.Mknodat(dir, base, a.Type()|0o600, int(a.Rdev))
		})
		if err != nil {
			return err
		}
	}
	return u.finish(name, ino)
}

func (u *unpacker) regular(ctx context.Context, name string, ino manifest.Ino) (err error) {
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			u.root.Remove(name)
		}
	}()
	if err := u.copyTo(ctx, f, ino); err != nil {
		return err
	}
	if err := u.finish(name, ino); err != nil {
		return err
	}
	u.doneFiles.Add(1)
	if u.opts.Progress != nil {
		u.opts.Progress(u.summary())
	}
	return nil
}

func (u *unpacker) copyTo(ctx context.Context, f *os.File, ino manifest.Ino) error {
	size := u.m.Attr(ino).Size
	buf := plainBufs.Get().(*[]byte)
	defer plainBufs.Put(buf)
	for off := int64(0); off < size; {
		n, err := u.t.ReadAt(ctx, ino, (*buf)[:min(size-off, block.Size)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if _, err := f.Write((*buf)[:n]); err != nil {
			return err
		}
		off += int64(n)
		u.doneBytes.Add(int64(n))
	}
	return nil
}

// links makes the further names of files.
func (u *unpacker) links(ctx context.Context) error {
	for name, ino := range u.m.Walk(manifest.Root) {
		if err := ctx.Err(); err != nil {
			return err
		}
		first := u.m.FirstName(ino)
		if first == ino {
			continue
		}
		err := u.root.Link(u.m.Path(first), name)
		if errors.Is(err, fs.ErrNotExist) && !u.asRoot {
			u.skipped.Add(1) // the first name is a device that was left out
			continue
		}
		if err != nil {
			return fmt.Errorf("unpack %s as a link to %s: %w", name, u.m.Path(first), pathless(err))
		}
	}
	return nil
}

// finishDirs gives directories their modes and times, the deepest first, since
// making a file in one changes its time.
func (u *unpacker) finishDirs(context.Context) error {
	type dir struct {
		name string
		ino  manifest.Ino
	}
	var dirs []dir
	for name, ino := range u.m.Walk(manifest.Root) {
		if u.m.Attr(ino).IsDir() {
			dirs = append(dirs, dir{name, ino})
		}
	}
	for _, dir := range slices.Backward(dirs) {
		if err := u.finish(dir.name, dir.ino); err != nil {
			return fmt.Errorf("unpack %s: %w", dir.name, pathless(err))
		}
	}
	return nil
}

// finish gives a file its owner, extended attributes, mode and time. The owner
// comes first: changing it clears set-uid bits and capabilities. The mode comes
// after the attributes, which users may set only on files that they may write.
func (u *unpacker) finish(name string, ino manifest.Ino) error {
	a := u.m.Attr(ino)
	return u.at(name, func(dir int, base string) error {
		if u.opts.Owners {
			if err := unix.Fchownat(dir, base, int(a.UID), int(a.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return fmt.Errorf("set owner %d:%d: %w", a.UID, a.GID, err)
			}
		}
		if err := u.setXattrs(dir, base, ino); err != nil {
			return err
		}
		if a.Type() != unix.S_IFLNK {
			if err := unix.Fchmodat(dir, base, a.Mode&0o7777, 0); err != nil {
				return fmt.Errorf("set mode %#o: %w", a.Mode&0o7777, err)
			}
		}
		mtime, err := unix.TimeToTimespec(a.ModTime())
		if err != nil {
			return fmt.Errorf("set time %d: %w", a.Mtime, err)
		}
		if err := unix.UtimesNanoAt(dir, base, []unix.Timespec{mtime, mtime}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set time: %w", err)
		}
		return nil
	})
}

// setXattrs sets the extended attributes of users; with Owners, all.
func (u *unpacker) setXattrs(dir int, base string, ino manifest.Ino) error {
	for _, x := range u.m.Xattrs(ino) {
		if !u.opts.Owners && !isUserXattr(x.Name) {
			u.skipped.Add(1)
			continue
		}
		// There is no call that takes a directory and a name before Linux 6.13;
		// the directory's entry in /proc stands for it.
		file := fmt.Sprintf("/proc/self/fd/%d/%s", dir, base)
		if err := unix.Lsetxattr(file, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("set extended attribute %s: %w", x.Name, err)
		}
	}
	return nil
}

func isUserXattr(name string) bool { return len(name) > 5 && name[:5] == "user." }

// at calls do with an open directory and a name in it, so that no symlink on
// the way can lead out.
func (u *unpacker) at(name string, do func(dir int, base string) error) error {
	d, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	return do(int(d.Fd()), path.Base(name))
}
