package fusefs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What a request can fail with, but for what keeps content from being read.
var (
	errNoNode   = errors.New("no such node")
	errNotDir   = errors.New("not a directory")
	errIsDir    = errors.New("is a directory")
	errNotLink  = errors.New("not a symlink")
	errNoXattr  = errors.New("no such attribute")
	errTooSmall = errors.New("the buffer is too small")
	errDying    = errors.New("the caller is being killed, or the mount is gone")
)

// errnos is the only way from an error to what a caller sees. There is no ENOENT
// in it: a name that the manifest does not have is not an error but an entry
// without a node, which the kernel keeps.
var errnos = []struct {
	err   error
	errno unix.Errno
}{
	{errNoNode, unix.ESTALE},
	{errNotDir, unix.ENOTDIR},
	{errIsDir, unix.EISDIR},
	{errNotLink, unix.EINVAL},
	{errNoXattr, unix.ENODATA},
	{errTooSmall, unix.ERANGE},
	{errDying, unix.EINTR},
}

// status answers with the errno of err; everything unknown is EIO.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return fuse.Status(e.errno)
		}
	}
	return fuse.EIO
}
