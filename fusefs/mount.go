package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long one system call that may touch a mount, ours or a dead
// one, is waited for.
const patience = 20 * time.Second

// errNoAnswer says that patience is over.
var errNoAnswer = fmt.Errorf("no answer within %v", patience)

// within runs f, and stops waiting for it after a while or when the context
// ends. A system call that hangs cannot be stopped: then its goroutine stays.
func within(ctx context.Context, what string, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errNoAnswer)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}

// CheckDir returns dir as an absolute path without symlinks, if a file system
// can be mounted there. It waits a limited time for what is there now.
func CheckDir(ctx context.Context, dir string) (string, error) {
	resolved := make(chan string, 1)
	err := within(ctx, "look at the directory", func() error {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		if abs, err = filepath.EvalSymlinks(abs); err != nil {
			return err
		}
		info, err := os.Stat(abs)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return errors.New("it is not a directory")
		}
		resolved <- abs
		return nil
	})
	switch {
	case err == nil:
		return <-resolved, nil
	case errors.Is(err, unix.ENOTCONN):
		return "", fmt.Errorf("a FUSE mount without its program is there: take it away first, with \"overmount umount\" (%w)", err)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("there is no such directory: create it first (%w)", err)
	}
	return "", err
}

// mountFD mounts a FUSE file system, and returns the connection to the kernel.
func mountFD(ctx context.Context, dir string, o Options) (int, error) {
	if os.Geteuid() == 0 {
		return mountRoot(dir, o)
	}
	return mountHelper(ctx, dir, o)
}

func mountRoot(dir string, o Options) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w: is the kernel's module fuse loaded?", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=%d,default_permissions,max_read=%d", fd, unix.S_IFDIR, os.Getegid(), maxRead)
	if o.AllowOther {
		data += ",allow_other"
	}
	err = unix.Mount(o.FSName, dir, "fuse."+o.Subtype, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, data)
	if err != nil {
		closeFD(fd)
		return -1, os.NewSyscallError("mount", err)
	}
	return fd, nil
}

// helperName is the program that mounts for users without the right to. It is
// part of libfuse.
const helperName = "fusermount3"

// mountHelper has fusermount3 mount, which sends the connection through a socket
// whose number it finds in _FUSE_COMMFD.
func mountHelper(ctx context.Context, dir string, o Options) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	defer closeFD(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount socket")
	defer theirs.Close()
	options := []string{
		"ro", "nosuid", "nodev", "noatime", "default_permissions", fmt.Sprintf("max_read=%d", maxRead),
		"fsname=" + escapeOption(o.FSName), "subtype=" + escapeOption(o.Subtype),
	}
	if o.AllowOther {
		options = append(options, "allow_other")
	}
	cmd := exec.CommandContext(ctx, helperName, "-o", strings.Join(options, ","), "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	if err := runHelper(cmd); err != nil {
		return -1, err
	}
	return receiveFD(pair[0])
}

func runHelper(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err != nil && stderr.Len() > 0 {
		return fmt.Errorf("%s: %s (%w)", helperName, bytes.TrimSpace(stderr.Bytes()), err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", helperName, err)
	}
	return nil
}

// escapeOption keeps a comma in a value from starting another option.
func escapeOption(s string) string { return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s) }

func receiveFD(socket int) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return -1, fmt.Errorf("receive the connection from %s: %w", helperName, err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("%s sent no connection", helperName)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("%s sent no connection", helperName)
	}
	return fds[0], nil
}

func closeFD(fd int) { unix.Close(fd) }

// conn tells whether the kernel has let go of a connection. It holds the
// connection open, as any copy of the descriptor does.
type conn struct{ *os.File }

func watchConn(fd int) (conn, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return conn{}, os.NewSyscallError("dup /dev/fuse", err)
	}
	return conn{os.NewFile(uintptr(dup), "/dev/fuse")}, nil
}

// dead reports whether the mount is gone.
func (c conn) dead() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	fds := []unix.PollFd{{}}
	var pollErr error
	err = raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		_, pollErr = unix.Poll(fds, 0)
	})
	if pollErr != nil {
		return false // interrupted; it is asked again
	}
	return err != nil || fds[0].Revents&unix.POLLERR != 0
}

// A mountPoint is where a mount is, and which of those that lie there it is.
type mountPoint struct {
	dir          string
	id           uint64 // the kernel's number for the mount
	major, minor uint32 // of its device
}

// probe waits until the mount answers a request, and remembers its numbers. The
// request goes to this very process, which is safe: a goroutine in a system call
// keeps no other from running.
func (m *mountPoint) probe(ctx context.Context) error {
	answer := make(chan unix.Statx_t, 1)
	err := within(ctx, "wait for the mount's first answer", func() error {
		var st unix.Statx_t
		if err := statx(m.dir, unix.AT_STATX_FORCE_SYNC, &st); err != nil {
			return err
		}
		answer <- st
		return nil
	})
	if err != nil {
		return err
	}
	st := <-answer
	m.id, m.major, m.minor = st.Mnt_id, st.Dev_major, st.Dev_minor
	return nil
}

func statx(dir string, flags int, st *unix.Statx_t) error {
	for {
		err := unix.Statx(unix.AT_FDCWD, dir, flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, st)
		if err != unix.EINTR {
			return os.NewSyscallError("statx "+dir, err)
		}
	}
}

// setReadAhead tells the kernel how far to read ahead, in bytes; INIT can only
// ask for less than its 128 KiB.
func (m *mountPoint) setReadAhead(n int) error {
	name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", m.major, m.minor)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(f, n>>10)
	return errors.Join(err, f.Close())
}

// unmount takes the mount away if it is the topmost at its place: anything else
// there is not ours. Looking makes no request, so it cannot hang.
func (m *mountPoint) unmount(lazy bool) error {
	var st unix.Statx_t
	if err := statx(m.dir, unix.AT_STATX_DONT_SYNC, &st); err != nil {
		return err
	}
	if st.Mnt_id != m.id {
		return errors.New("something else is mounted over it, or it is not mounted there any more")
	}
	return Unmount(m.dir, lazy)
}

// Unmount takes the topmost mount at dir away, whoever serves it: as root by
// itself, for others with fusermount3. If it is in use, the error is [ErrBusy]
// and it stays; lazily, its name goes, and it is served until the last user is
// done.
//
// A mount is in use for a moment whenever anyone looks a file up in it, as
// [Server.Store] does, so Unmount tries for a fifth of a second.
func Unmount(dir string, lazy bool) error {
	for range 20 {
		if err := unmountOnce(dir, lazy); !errors.Is(err, ErrBusy) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return unmountOnce(dir, lazy)
}

func unmountOnce(dir string, lazy bool) error {
	if os.Geteuid() != 0 {
		return unmountHelper(dir, lazy)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(dir, flags)
	if err == unix.EBUSY {
		return fmt.Errorf("%w (%w): end what uses it, or unmount lazily", ErrBusy, err)
	}
	return os.NewSyscallError("umount", err)
}

func unmountHelper(dir string, lazy bool) error {
	args := []string{"-u", "--", dir}
	if lazy {
		args = append([]string{"-z"}, args...)
	}
	err := runHelper(exec.Command(helperName, args...))
	if err != nil && strings.Contains(err.Error(), "busy") {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return err
}

// kill takes away a mount that was just made and does not work, and waits until
// it is not served any more. Breaking the connection frees all who wait for it.
func (m *mountPoint) kill(done <-chan struct{}) error {
	return within(context.Background(), "take the mount away again", func() error {
		if os.Geteuid() != 0 {
			if err := unmountHelper(m.dir, true); err != nil {
				return err
			}
		} else if err := unix.Unmount(m.dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			return os.NewSyscallError("umount", err)
		}
		<-done
		return nil
	})
}
