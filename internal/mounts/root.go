package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A Root knows the root directory of PID 1, also when that has got another one: with
// switch_root the programs that PID 1 has left behind keep the old one, where what they
// mount is seen by nobody.
type Root struct{ proc *os.File }

// NewRoot returns a Root, or nil if the root directory of PID 1 is not ours, as in a
// container, or not for us to see: then it is no business of this process where PID 1
// goes. It keeps /proc open, which moves along with mounts; Close lets go of it.
func NewRoot() (*Root, error) {
	proc, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	r := &Root{proc}
	ours, err := r.isOurs()
	if errors.Is(err, fs.ErrPermission) {
		err = nil
	}
	if err != nil || !ours {
		return nil, errors.Join(err, proc.Close())
	}
	return r, nil
}

// isOurs reports whether PID 1 has our mounts and our root directory.
func (r *Root) isOurs() (bool, error) {
	fd := int(r.proc.Fd())
	var of [2]unix.Stat_t
	for i, name := range []string{"1/ns/mnt", "self/ns/mnt"} {
		if err := unix.Fstatat(fd, name, &of[i], 0); err != nil {
			return false, fmt.Errorf("/proc/%s: %w", name, err)
		}
	}
	if !same(of) {
		return false, nil
	}
	for i, name := range []string{"1/root", "self/root"} {
		if err := unix.Fstatat(fd, name, &of[i], 0); err != nil {
			return false, fmt.Errorf("/proc/%s: %w", name, err)
		}
	}
	return same(of), nil
}

func same(of [2]unix.Stat_t) bool { return of[0].Dev == of[1].Dev && of[0].Ino == of[1].Ino }

// Follow makes the root directory of PID 1 that of this process, and its working
// directory too, and reports whether it was another.
func (r *Root) Follow() (changed bool, err error) {
	if r == nil {
		return false, nil
	}
	ours, err := r.isOurs()
	if err != nil || ours {
		return false, err
	}
	fd, err := unix.Openat(int(r.proc.Fd()), "1/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("/proc/1/root: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Fchdir(fd); err != nil {
		return false, fmt.Errorf("go to the root directory of PID 1: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return false, fmt.Errorf("take the root directory of PID 1: %w", err)
	}
	return true, nil
}

// Close ends the use of a Root.
func (r *Root) Close() error {
	if r == nil {
		return nil
	}
	return r.proc.Close()
}
