package treetest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Seen is what the kernel tells of a file.
type Seen struct {
	Path                   string // for the caller to fill
	Mode, UID, GID         uint32
	Ino, Nlink, Rdev       uint64
	Size, Mtime, Blocks    int64
	SHA256, Target, Xattrs string // of content, of a symlink, as name=value,name=value
}

// Look looks at a file, and does not follow a symlink. It reads the content of a
// regular file, so on a mount it must not run in the process that serves it.
func Look(name string) (Seen, error) {
	info, err := os.Lstat(name)
	if err != nil {
		return Seen{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	s := Seen{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Ino: st.Ino, Nlink: uint64(st.Nlink), Rdev: st.Rdev,
		Size: st.Size, Mtime: int64(st.Mtim.Sec), Blocks: st.Blocks, Xattrs: xattrs(name),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		s.Target, err = os.Readlink(name)
	case unix.S_IFREG:
		var data []byte
		data, err = os.ReadFile(name)
		s.SHA256 = fmt.Sprintf("%x", sha256.Sum256(data))
	}
	return s, err
}

func xattrs(name string) string {
	var all []string
	list := make([]byte, 4096)
	n, _ := unix.Llistxattr(name, list)
	for x := range strings.SplitSeq(string(list[:max(n, 0)]), "\x00") {
		value := make([]byte, 4096)
		if n, err := unix.Lgetxattr(name, x, value); x != "" && err == nil {
			all = append(all, fmt.Sprintf("%s=%s", x, value[:n]))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}
