package modload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"overmount/coldplug"
)

// Uevents are the events of the kernel about devices that are new.
type Uevents struct{ f *os.File }

// kernelGroup is the multicast group in which the kernel speaks itself; udev
// speaks in another.
const kernelGroup = 1

// room is how many bytes of events may wait, in the kernel.
const room = 8 << 20

// maxUevent is the length of the longest event, in bytes: the kernel's limit is
// UEVENT_BUFFER_SIZE, 2 KiB, and the path before it.
const maxUevent = 16 << 10

// ListenUevents begins to listen. To read what happened before, scan /sys after
// it.
func ListenUevents() (*Uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen for the kernel's events: %w", os.NewSyscallError("socket", err))
	}
	// More than the usual limit is for root only; without it events may get lost,
	// which Next reports.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen for the kernel's events: %w", os.NewSyscallError("bind", err))
	}
	return &Uevents{os.NewFile(uintptr(fd), "uevents")}, nil
}

// Close ends Next, also one that waits.
func (u *Uevents) Close() error { return u.f.Close() }

// ErrLost says that there were more events than room for them.
var ErrLost = errors.New("events of the kernel got lost")

// Next waits for a device that is new and has a modalias. It returns ErrLost if
// some were missed, and goes on after that.
func (u *Uevents) Next(ctx context.Context) (coldplug.Device, error) {
	stop := context.AfterFunc(ctx, func() { u.f.Close() })
	defer stop()
	buf := make([]byte, maxUevent)
	for {
		n, err := u.receive(buf)
		switch {
		case ctx.Err() != nil:
			return coldplug.Device{}, ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			return coldplug.Device{}, ErrLost
		case err != nil:
			return coldplug.Device{}, err
		}
		if d, ok := ParseUevent(buf[:n]); ok {
			return d, nil
		}
	}
}

// receive reads one event of the kernel, 0 bytes for one of somebody else.
func (u *Uevents) receive(buf []byte) (n int, err error) {
	raw, err := u.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var from unix.Sockaddr
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		n, from, recvErr = unix.Recvfrom(int(fd), buf, 0)
		return recvErr != unix.EAGAIN
	})
	if err = errors.Join(err, recvErr); err != nil {
		return 0, err
	}
	if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
		return 0, nil // any process may send to the group; the kernel is 0
	}
	return n, nil
}

// ParseUevent reads an event as the kernel sends it: ACTION@PATH, then NAME=VALUE,
// each with a NUL behind it. It reports false for all but a new device with a
// modalias. lib/kobject_uevent.c of Linux.
func ParseUevent(msg []byte) (coldplug.Device, bool) {
	head, rest, ok := bytes.Cut(msg, []byte{0})
	if !ok || !bytes.HasPrefix(head, []byte("add@/")) {
		return coldplug.Device{}, false
	}
	var d coldplug.Device
	for field := range bytes.SplitSeq(rest, []byte{0}) {
		if alias, ok := strings.CutPrefix(string(field), "MODALIAS="); ok {
			d.Modalias = alias
		}
	}
	d.Path = string(head[len("add@/"):])
	return d, d.Modalias != "" && d.Path != ""
}
