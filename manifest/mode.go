package manifest

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// bits are the same thing in Linux's and in Go's terms.
type bits struct {
	unix uint32
	mode fs.FileMode
}

var typeBits = []bits{
	{unix.S_IFDIR, fs.ModeDir},
	{unix.S_IFLNK, fs.ModeSymlink},
	{unix.S_IFIFO, fs.ModeNamedPipe},
	{unix.S_IFSOCK, fs.ModeSocket},
	{unix.S_IFBLK, fs.ModeDevice},
	{unix.S_IFCHR, fs.ModeDevice | fs.ModeCharDevice},
}

var specialBits = []bits{
	{unix.S_ISUID, fs.ModeSetuid},
	{unix.S_ISGID, fs.ModeSetgid},
	{unix.S_ISVTX, fs.ModeSticky},
}

// FileMode converts a Linux st_mode to Go's terms.
func FileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for _, b := range specialBits {
		if mode&b.unix != 0 {
			m |= b.mode
		}
	}
	for _, b := range typeBits {
		if mode&unix.S_IFMT == b.unix {
			m |= b.mode
		}
	}
	return m
}

// UnixMode converts a mode in Go's terms to a Linux st_mode. A type that Linux
// does not have becomes a mode without type bits.
func UnixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for _, b := range specialBits {
		if m&b.mode != 0 {
			mode |= b.unix
		}
	}
	if m.IsRegular() {
		return mode | unix.S_IFREG
	}
	for _, b := range typeBits {
		if m.Type() == b.mode {
			mode |= b.unix
		}
	}
	return mode
}
