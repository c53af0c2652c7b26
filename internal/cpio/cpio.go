// Package cpio writes archives that the kernel unpacks as an initramfs: cpio in
// the format that cpio(1) calls newc, as
// Documentation/driver-api/early-userspace/buffer-format.rst defines it.
//
// An [Archive] is a set of paths. It is written in the order of the paths, in
// which each directory comes before what is in it, and nothing in the bytes
// depends on the order of adding, the umask, the clock or the host:
//
//	entry:   header, name, NUL, zeros up to a multiple of 4,
//	         content, zeros up to a multiple of 4
//	header:  "070701" and 13 numbers of 8 hex digits: ino, mode, uid, gid, nlink,
//	         mtime, size of the content, device of the file (major, minor),
//	         device of a node (major, minor), length of the name with its NUL, 0
//	archive: entries, an entry named TRAILER!!!, zeros up to a multiple of 512
//
// Inode numbers count from 1. Owner and group are root, and all times are those
// of the Archive. A file has one link, a directory two, as on a tmpfs that was
// just made.
//
// Limits: the content of a file has less than 4 GiB. A path has at most 4095
// bytes, and so has the target of a symlink: the kernel leaves out what is longer
// without a word (init/initramfs.c, do_header). A name in it has at most 255, as
// in a tmpfs.
package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	maxPath = 4095 // without the NUL
	maxName = 255
	maxSize = math.MaxUint32
	trailer = "TRAILER!!!"
	block   = 512
)

// Types of files, as in st_mode.
const (
	typeDir     = 0o040000
	typeRegular = 0o100000
	typeSymlink = 0o120000
	typeChar    = 0o020000
)

// permBits are those of a mode that are no type.
const permBits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// A Content opens the content of a file. It is called once each time that the
// archive is written.
type Content func() (io.ReadCloser, error)

// Bytes is content that is in memory.
func Bytes(data []byte) Content {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// An entry is what is at one path.
type entry struct {
	mode         uint32
	size         int64
	content      Content // nil if there is none
	target       string  // of a symlink
	major, minor uint32  // of a device
	implied      bool    // a directory that is there only for what is in it
}

// An Archive is a set of paths, to be written. The zero value is empty, with all
// times 0.
//
// Paths are relative, with / between names, and without . and .. in them
// ([fs.ValidPath]). Each file can be added once. Directories that were not added are
// there with mode 0755.
type Archive struct {
	// Mtime is the time of everything: whole seconds from 1970 to 2106.
	Mtime time.Time

	entries map[string]*entry
}

// File adds a regular file of size bytes.
func (a *Archive) File(name string, mode fs.FileMode, size int64, content Content) error {
	if size < 0 || size > maxSize {
		return fmt.Errorf("add %s: it has %d bytes, and a cpio archive holds less than 4 GiB of a file", name, size)
	}
	return a.add(name, &entry{mode: typeRegular | unixPerm(mode), size: size, content: content})
}

// Dir adds a directory. It may be there because of what is in it, or have been
// added with the same mode.
func (a *Archive) Dir(name string, mode fs.FileMode) error {
	dir := &entry{mode: typeDir | unixPerm(mode)}
	e := a.entries[name]
	switch {
	case e == nil || e.mode&^0o7777 != typeDir:
		return a.add(name, dir)
	case e.implied:
		a.entries[name] = dir
	case e.mode != dir.mode:
		return fmt.Errorf("add %s: the directory is there already, with mode %04o and not %04o", name, e.mode&0o7777, dir.mode&0o7777)
	}
	return nil
}

// Symlink adds a symlink.
func (a *Archive) Symlink(name, target string) error {
	if target == "" || len(target) > maxPath || strings.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("add %s: a symlink to %.80q, which is %d bytes: want 1 to %d without NUL", name, target, len(target), maxPath)
	}
	return a.add(name, &entry{mode: typeSymlink | 0o777, target: target, size: int64(len(target))})
}

// CharDevice adds a character device.
func (a *Archive) CharDevice(name string, mode fs.FileMode, major, minor uint32) error {
	return a.add(name, &entry{mode: typeChar | unixPerm(mode), major: major, minor: minor})
}

// Has reports whether something was added at a path.
func (a *Archive) Has(name string) bool { return a.entries[name] != nil }

// IsDir reports whether a directory was added at a path, if only for what is in
// it.
func (a *Archive) IsDir(name string) bool {
	e := a.entries[name]
	return e != nil && e.mode&^0o7777 == typeDir
}

// Len returns the number of entries.
func (a *Archive) Len() int { return len(a.entries) }

func unixPerm(m fs.FileMode) uint32 {
	perm := uint32(m.Perm())
	for bit, unix := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&permBits&bit != 0 {
			perm |= unix
		}
	}
	return perm
}

func checkName(name string) error {
	switch {
	case !fs.ValidPath(name) || name == "." || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%.80q is not a relative path, or has parts like . and ..: want a plain one", name)
	case name == trailer:
		return fmt.Errorf("a file named %s would end the archive", trailer)
	case len(name) > maxPath:
		return fmt.Errorf("the path %.80q... has %d bytes, and the kernel takes at most %d", name, len(name), maxPath)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > maxName {
			return fmt.Errorf("the name %.80q... has %d bytes, and a file system takes at most %d", part, len(part), maxName)
		}
	}
	return nil
}

func (a *Archive) add(name string, e *entry) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("add to a cpio archive: %w", err)
	}
	if a.Has(name) {
		return fmt.Errorf("add %s: something is at this path already", name)
	}
	if err := a.parents(name); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	a.put(name, e)
	return nil
}

func (a *Archive) put(name string, e *entry) {
	if a.entries == nil {
		a.entries = map[string]*entry{}
	}
	a.entries[name] = e
}

// parents adds the directories above a path.
func (a *Archive) parents(name string) error {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if !a.Has(dir) {
			a.put(dir, &entry{mode: typeDir | 0o755, implied: true})
		} else if !a.IsDir(dir) {
			return fmt.Errorf("%s is not a directory", dir)
		}
	}
	return nil
}

// ErrSize says that a file had not the size that it was added with.
var ErrSize = errors.New("its content has not the size that it had")

// Write writes the archive. Errors are those of w and of the content, the latter
// with the path; ErrSize for a file that has changed in the meantime.
func (a *Archive) Write(w io.Writer) error {
	sec := a.Mtime.Unix()
	if a.Mtime.IsZero() {
		sec = 0
	}
	if sec < 0 || sec > math.MaxUint32 {
		return fmt.Errorf("the time %v does not fit a cpio archive: want 1970 to 2106", a.Mtime.UTC())
	}
	names := make([]string, 0, len(a.entries))
	for name := range a.entries {
		names = append(names, name)
	}
	slices.Sort(names)
	out := &writer{w: w, mtime: uint32(sec)}
	for i, name := range names {
		if err := out.entry(uint32(i+1), name, a.entries[name]); err != nil {
			return err
		}
	}
	return out.end()
}

// A writer writes entries and knows how far it is.
type writer struct {
	w     io.Writer
	n     int64
	mtime uint32
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.n += int64(n)
	return n, err
}

// pad writes zeros up to a multiple of n, which is at most 512.
func (w *writer) pad(n int64) error {
	var zeros [block]byte
	if over := w.n % n; over != 0 {
		_, err := w.Write(zeros[:n-over])
		return err
	}
	return nil
}

func (w *writer) header(ino uint32, name string, e *entry, links, mtime uint32) error {
	_, err := fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		ino, e.mode, 0, 0, links, mtime, uint32(e.size), 0, 0, e.major, e.minor, len(name)+1, 0, name)
	if err != nil {
		return err
	}
	return w.pad(4)
}

func (w *writer) entry(ino uint32, name string, e *entry) error {
	links := uint32(1)
	if e.mode&^0o7777 == typeDir {
		links = 2
	}
	if err := w.header(ino, name, e, links, w.mtime); err != nil {
		return err
	}
	if err := w.content(name, e); err != nil {
		return err
	}
	return w.pad(4)
}

func (w *writer) content(name string, e *entry) error {
	if e.target != "" {
		_, err := io.WriteString(w, e.target)
		return err
	}
	if e.content == nil {
		return nil
	}
	r, err := e.content()
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, e.size+1))
	if err == nil && n != e.size {
		err = ErrSize
	}
	if err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	return nil
}

func (w *writer) end() error {
	if err := w.header(0, trailer, &entry{}, 1, 0); err != nil {
		return err
	}
	return w.pad(block)
}
