// Package archive holds the files of packages, once they are unpacked, and shows
// them as one tree.
//
// A package comes as a stream, in an order of its own, and is trusted only when
// its last byte has been hashed. Who reads the tree wants it in the order of names,
// and to read some files twice. Between the two stands a [Spool]: one file without
// a name, which goes away with the process. It takes the plain content of all
// packages, from several goroutines at once:
//
//	s, err := archive.NewSpool(&archive.Options{Map: archive.Below("lib/firmware")})
//	p := s.Package("linux-firmware-amdgpu-20250509-r0")
//	err = p.AddTar(r)                // or p.Add for each file
//	// verify here what was read
//	tree, err := s.Tree([]*archive.Package{p, q}, nil)
//
// A [Tree] is an fs.FS as package pack wants it: with owners, modes, times, hard
// links, symlinks and extended attributes.
//
// What comes from a package is hostile. Refused are absolute names, "..", names
// that are not UTF-8 or are not written in the shortest way, a name that occurs
// twice, anything below what is not a directory, devices, pipes, hard links to what
// is not an earlier file of the same package, and more files or bytes than
// [Options] allow. Nothing is ever written at a path that a package names, so no
// name can lead out of the tree. Targets of symlinks are kept as they are: opening
// one stays inside the tree, as in a chroot.
//
// Costs: disk, the plain size of what is kept; memory, about 600 bytes for each
// file and 128 KiB for each package that is being unpacked. If Dir is on a tmpfs,
// the disk is memory, too.
package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"
)

// Limits of Linux, in bytes.
const (
	maxPath = 4095
	maxName = 255
)

// maxDepth bounds how many directories are above a file, and with that how many
// are implied.
const maxDepth = 128

// A File is what a package says of one file.
type File struct {
	// Name is the path as the package has it. "./" before it and "/" behind it
	// do not count. "." and "./" are the root of the tree.
	Name string

	// Mode has the type: a directory, a symlink or a regular file. A regular
	// file with a Link is a hard link.
	Mode    fs.FileMode
	UID     uint32
	GID     uint32
	Size    int64     // of a regular file, in bytes
	ModTime time.Time // zero is 1970

	// Link is the target of a symlink, as it is, or the Name of the earlier file
	// of the same package that a hard link is another name of.
	Link string

	Xattrs []Xattr // sorted by name
}

// An Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// hard reports whether the file is a further name of another.
func (f *File) hard() bool { return f.Mode.IsRegular() && f.Link != "" }

// Below returns a Map for [Options] that keeps what is below one of the
// directories, as if that were the root. Directories are paths as in fs.ValidPath.
func Below(dirs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, dir := range dirs {
			if name == dir {
				return ".", true
			}
			if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
				return rest, true
			}
		}
		return "", false
	}
}

// cleanName returns a name of a package as a path in the tree.
func cleanName(name string) (string, error) {
	clean := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if clean == "" && name == "./" {
		clean = "."
	}
	return clean, checkPath(clean)
}

func checkPath(name string) error {
	switch {
	case name == "":
		return errors.New("the name is empty")
	case path.IsAbs(name):
		return errors.New("the name is absolute, and would lead out of the tree")
	case hasDotDot(name):
		return errors.New("the name has \"..\" in it, which could lead out of the tree")
	case strings.IndexByte(name, 0) >= 0:
		return errors.New("the name has a NUL byte in it")
	case !fs.ValidPath(name):
		return errors.New("the name is not UTF-8, or has \"//\" or \"/./\" in it")
	case len(name) > maxPath:
		return fmt.Errorf("the path has %d bytes, over the limit of %d", len(name), maxPath)
	}
	if strings.Count(name, "/") > maxDepth {
		return fmt.Errorf("it is below over %d directories", maxDepth)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > maxName {
			return fmt.Errorf("the name %.40q… has %d bytes, over the limit of %d", part, len(part), maxName)
		}
	}
	return nil
}

func hasDotDot(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// Times that ext4 can hold, in seconds since 1970.
const (
	minTime = -1 << 31
	maxTime = 1 << 34
)

// check tells why a file cannot be in a tree.
func (f *File) check() error {
	if f.ModTime.IsZero() {
		f.ModTime = time.Unix(0, 0)
	}
	if t := f.ModTime.Unix(); t < minTime || t >= maxTime {
		return fmt.Errorf("its time of modification, %d s after 1970, is out of range", t)
	}
	switch f.Mode.Type() {
	case 0:
		if f.Size < 0 {
			return fmt.Errorf("its size is %d", f.Size)
		}
	case fs.ModeDir:
	case fs.ModeSymlink:
		if f.Link == "" || len(f.Link) > maxPath || strings.IndexByte(f.Link, 0) >= 0 {
			return fmt.Errorf("it is a symlink to %.80q, %d bytes: want 1 to %d without NUL", f.Link, len(f.Link), maxPath)
		}
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		return errors.New("it is a device, which does not belong in a package")
	case fs.ModeNamedPipe:
		return errors.New("it is a pipe, which does not belong in a package")
	default:
		return fmt.Errorf("it is no file, directory or symlink but %v", f.Mode.Type())
	}
	return nil
}
