// Package fusefs mounts a [tree.Tree] with FUSE.
//
//	s, err := fusefs.Mount(ctx, "/lib/modules/6.12.0", t, nil)
//	…
//	s.Wait() // until someone unmounts it
//
// The mount is read-only, and may lie over a directory that is not empty. When
// [Mount] returns, it has answered a request.
//
// # What the kernel keeps
//
// A manifest does not change, so the kernel may keep everything it learns for a
// year: attributes, names, names that are not there, directories, symlinks and
// content. OPEN and OPENDIR are answered once with ENOSYS, after which opening a
// file costs no request at all; so no READ has a handle, and a node's number is
// its Ino in the manifest, of a hard-linked file that of its first name. The page
// cache is the only copy of plain content.
//
// # Waiting
//
// Only READ waits for the store. LOOKUP, GETATTR, READDIR, READLINK and the rest
// are answered from the manifest in memory.
//
// A READ ends when the block is there, when it failed, or when
// Options.ReadTimeout is over. It also ends when its caller is about to die: the
// kernel sends INTERRUPT for every signal, and most signals are only a program's
// timer or its runtime at work, so an INTERRUPT is believed only if the caller's
// status in /proc shows a signal that kills it. Otherwise the caller would see
// EINTR from a file, which no program expects.
//
// # Storing ahead
//
// [Server.Store] puts content into the page cache that nobody has read yet. A read
// of it is then as fast as of any file in memory: it makes no request.
//
// # Errors
//
// A name that the manifest does not have is ENOENT. Whatever keeps content from
// being read is EIO: a lost block never looks like a missing file, nor like
// zeros. The reason is logged, once a minute for each block. The kernel does not
// keep failed pages, so the next read asks again.
package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"overmount/manifest"
	"overmount/tree"
)

// Options are what a mount can be told beyond what it needs.
type Options struct {
	// FSName is shown as the mounted device; empty means overmount.
	FSName string
	// Subtype makes the type fuse.Subtype; empty means overmount.
	Subtype string
	// AllowOther lets users in who did not mount it. Root's mounts always do;
	// for others /etc/fuse.conf must say user_allow_other.
	AllowOther bool
	// ReadTimeout is how long a READ waits for its blocks before it fails with
	// EIO; 0 means 90 s. It covers everything below, also what retries there.
	ReadTimeout time.Duration
	// Watcher is told of every READ. Nil means nobody.
	Watcher Watcher
	// Logger gets the reasons of failed reads, and warnings. Nil means nowhere.
	Logger *slog.Logger
	// Debug logs every request at slog.LevelDebug.
	Debug bool
}

// A Watcher is told what the kernel asks for. What is in the page cache already,
// the kernel does not ask for.
type Watcher interface {
	// Read is called when a READ begins, of up to n bytes from off on, and the
	// function that it returns when it ended. Both are in the way of the caller,
	// and must not wait. The node is never a later name of a hard-linked file.
	Read(ino manifest.Ino, off int64, n int) (done func(error))
}

func (o *Options) filled() Options {
	var f Options
	if o != nil {
		f = *o
	}
	if f.FSName == "" {
		f.FSName = "overmount"
	}
	if f.Subtype == "" {
		f.Subtype = "overmount"
	}
	if f.ReadTimeout <= 0 {
		f.ReadTimeout = 90 * time.Second
	}
	if f.Logger == nil {
		f.Logger = slog.New(slog.DiscardHandler)
	}
	f.AllowOther = f.AllowOther || os.Geteuid() == 0
	return f
}

// maxRead is the size of the largest READ, in bytes, and the read-ahead. Larger
// ones gained nothing; the kernel's 128 KiB lost a third of the speed.
const maxRead = 1 << 20

// ErrBusy says that a mount is in use: a process has a file open in it, or its
// working directory there, or something else is mounted below it.
var ErrBusy = errors.New("it is in use")

// A Server is a mount and what serves it.
type Server struct {
	at     mountPoint
	done   chan struct{}
	f      *rawFS
	kernel *fuse.Server
}

// Mount mounts t over the directory dir and serves it in the background. As root
// it needs nothing but /dev/fuse; for others it calls fusermount3. The context
// ends only the mounting; see Unmount and Wait for the end of the mount.
//
// After an error nothing is mounted and nothing runs, except where the kernel
// did not even answer the attempt to take the mount away, which the error says.
func Mount(ctx context.Context, dir string, t *tree.Tree, o *Options) (*Server, error) {
	s, err := mount(ctx, dir, newRawFS(t, o.filled()))
	if err != nil {
		return nil, fmt.Errorf("mount at %s: %w", dir, err)
	}
	return s, nil
}

func mount(ctx context.Context, dir string, f *rawFS) (*Server, error) {
	dir, err := CheckDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	fd, err := mountFD(ctx, dir, f.opts)
	if err != nil {
		return nil, err
	}
	s := &Server{at: mountPoint{dir: dir}, done: make(chan struct{}), f: f}
	if err := s.serve(fd, f); err != nil {
		return nil, errors.Join(err, s.at.kill(s.done))
	}
	if err := s.at.probe(ctx); err != nil {
		return nil, errors.Join(err, s.at.kill(s.done))
	}
	if err := s.at.setReadAhead(maxRead); err != nil {
		f.opts.Logger.Warn("cannot set the read-ahead: first reads will be slower", "mount", dir, "err", err)
	}
	return s, nil
}

// serve begins to serve the mount that fd belongs to.
func (s *Server) serve(fd int, f *rawFS) error {
	var err error
	if f.conn, err = watchConn(fd); err != nil {
		closeFD(fd)
		close(s.done)
		return err
	}
	// The library takes a connection that is mounted already by this name, and
	// does not touch the mount point itself, which could wait for ever.
	server, err := fuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", fd), f.mountOptions())
	if err != nil {
		f.conn.Close()
		close(s.done)
		return err
	}
	s.kernel = server
	go func() {
		defer close(s.done)
		defer f.conn.Close()
		server.Serve()
	}()
	return nil
}

func (f *rawFS) mountOptions() *fuse.MountOptions {
	level := slog.LevelWarn
	if f.opts.Debug {
		level = slog.LevelDebug
	}
	return &fuse.MountOptions{
		MaxBackground:            64,
		MaxWrite:                 maxRead,
		DisableXAttrs:            !f.hasXattrs,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		DisableSplice:            true, // of memory there is nothing to splice
		ExtraCapabilities:        fuse.CAP_NO_OPENDIR_SUPPORT,
		DisabledCapabilities:     fuse.CAP_PASSTHROUGH, // it would cost one level of overlayfs
		Debug:                    f.opts.Debug,
		Logger:                   slog.NewLogLogger(f.opts.Logger.Handler(), level),
		PanicHandler:             f.panicked,
	}
}

// panicked answers a request whose handler did not: its caller must not hang.
func (f *rawFS) panicked(p any) fuse.Status {
	f.opts.Logger.Error("panic while serving a request", "panic", p, "stack", string(debug.Stack()))
	return fuse.EIO
}

// Wait waits until the kernel has let go of the mount, whoever unmounted it, and
// no request is being served any more.
func (s *Server) Wait() { <-s.done }

// Done is closed when Wait would return.
func (s *Server) Done() <-chan struct{} { return s.done }

// Unmount takes the mount away. If it is in use, the error is [ErrBusy] and it
// stays. After success the kernel may still need it for a moment, or for as long
// as another mount namespace has a copy: see Wait. Unmounting what is already
// gone does nothing.
func (s *Server) Unmount() error { return s.unmount(false) }

// UnmountLazy takes the mount's name away at once. It goes on serving those who
// use it, until the last is done: see Wait.
func (s *Server) UnmountLazy() error { return s.unmount(true) }

func (s *Server) unmount(lazy bool) error {
	select {
	case <-s.done:
		return nil
	default:
	}
	if err := s.at.unmount(lazy); err != nil {
		return fmt.Errorf("unmount %s: %w", s.at.dir, err)
	}
	return nil
}
