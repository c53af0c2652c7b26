package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"overmount/manifest"
)

var (
	errRead    = errors.New("the kernel is reading it")
	errUnknown = errors.New("the kernel does not know the file")
)

// Store puts content of a regular file into the kernel's page cache, so that
// reading it makes no request. The caller has checked that plain is what the file
// holds from off on; it must begin at the border of a page, and end at one or at
// the end of the file.
//
// The kernel takes content only for a file that it has looked up. For one that it
// has not, Store looks it up itself, under the name where the mount was made; that
// is one request for each part of the path, none of which waits for a store.
//
// Store may wait: the pages that the kernel has asked for are locked until their
// READ is answered. It fails at once for those it knows to be asked for, as it does
// for a file that cannot be looked up, and after the end of the mount. Then nothing
// is lost: who reads the file asks for it. It must not be called by what a READ
// waits for. Concurrent use is safe.
func (s *Server) Store(ino manifest.Ino, off int64, plain []byte) error {
	if err := s.store(ino, off, plain); err != nil {
		return fmt.Errorf("store %d bytes of %s at %d in the page cache: %w", len(plain), s.f.m.Path(ino), off, err)
	}
	return nil
}

func (s *Server) store(ino manifest.Ino, off int64, plain []byte) error {
	ino = s.f.m.FirstName(ino)
	attr, end, page := s.f.m.Attr(ino), off+int64(len(plain)), int64(os.Getpagesize())
	switch {
	case !attr.IsRegular():
		return errors.New("it is not a regular file")
	case off < 0 || off%page != 0 || end > attr.Size || end%page != 0 && end != attr.Size:
		return fmt.Errorf("want whole pages of the %d bytes that it has", attr.Size)
	case len(plain) == 0:
		return nil
	case s.f.reads.overlap(ino, off, len(plain)):
		return errRead
	}
	err := s.notify(ino, off, plain)
	if err != errUnknown {
		return err
	}
	if err := s.introduce(ino); err != nil {
		return err
	}
	return s.notify(ino, off, plain)
}

// notify is the request NOTIFY_STORE, which goes from us to the kernel.
func (s *Server) notify(ino manifest.Ino, off int64, plain []byte) error {
	switch st := s.kernel.InodeNotifyStoreCache(uint64(ino), off, plain); st {
	case fuse.OK:
		return nil
	case fuse.ENOENT:
		return errUnknown
	default:
		return unix.Errno(st)
	}
}

// introduce makes the kernel look a file up. It takes the path into the mount that
// anyone would take; what is mounted over it may hang.
func (s *Server) introduce(ino manifest.Ino) error {
	name := filepath.Join(s.at.dir, filepath.FromSlash(s.f.m.Path(ino)))
	return within(context.Background(), "look it up", func() error {
		var st unix.Statx_t
		return statx(name, unix.AT_STATX_DONT_SYNC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, &st)
	})
}

// reads are the READs that are not answered yet. Its zero value is none.
type reads struct {
	mu  sync.Mutex
	all []*span
}

// A span is a part of a file.
type span struct {
	ino      manifest.Ino
	from, to int64
}

// begin notes a READ, until the function that it returns is called.
func (r *reads) begin(ino manifest.Ino, off int64, n int) (end func()) {
	s := &span{ino, off, off + int64(n)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, s)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		i := slices.Index(r.all, s)
		r.all = slices.Delete(r.all, i, i+1)
	}
}

func (r *reads) overlap(ino manifest.Ino, off int64, n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.all, func(s *span) bool { return s.ino == ino && s.from < off+int64(n) && off < s.to })
}
