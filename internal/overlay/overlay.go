// Package overlay puts an overlayfs over a read-only mount: a layer in memory
// that takes changes, and below it, if wanted, what the directory held before.
//
//	stage, err := overlay.Prepare("/lib/modules/6.12.0", &overlay.Options{Writable: true})
//	… mount the read-only file system at stage.Lower(); on failure stage.Abort()
//	o, err := stage.Mount()
//	…
//	o.Unmount(false)
//
// # One mount to take away
//
// The layers are mounted in a directory of their own, which only root may enter.
// An overlayfs holds on to its layers by itself. So as soon as it is mounted, all
// that was mounted on the way is detached and the directory removed. What stays is
// one mount at the target. Whoever unmounts that, by whatever means, takes the
// layers away too, in the right order, because the kernel does it; a program that
// was killed leaves nothing else behind. The target changes in one step, from
// what it was to the whole overlay.
//
// # Options
//
// The layers below may come from outside. So overlayfs is told to follow none of
// the xattrs by which one layer points into another (redirect_dir=nofollow,
// metacopy=off), and to keep no file handles of FUSE, which would be meaningless
// (index=off, nfs_export=off, xino=off). Renaming a directory of a lower layer
// therefore fails with EXDEV, which mv turns into a copy; and files have another
// st_dev than directories, which tools that stay on one file system may mind.
package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RunDir is where layers are mounted on their way, unless Options say otherwise.
const RunDir = "/run/overmount"

// Options say what lies over the read-only mount, and what below.
type Options struct {
	// Writable adds a tmpfs that takes all changes. They are lost with the mount.
	Writable bool
	// UpperSize is the most that the tmpfs may hold, in bytes; 0 means half of the
	// memory, the kernel's own default.
	UpperSize int64
	// KeepLower shows what was in the target before, below the rest. What is
	// mounted further down in it is not shown.
	KeepLower bool
	// Name is shown as what is mounted, after a mark that [Ours] knows.
	Name string
	// RunDir is the directory for layers on their way; empty means /run/overmount.
	// It is made if it is not there. Its path has no colon, comma or backslash.
	RunDir string
}

// stagePrefix begins the name of a stage's directory.
const stagePrefix = "overlay-"

// A Stage is an overlay on its way: a directory with the layers. One of Mount and
// Abort ends it.
type Stage struct {
	dir    string
	lock   *os.File // dir, locked while the stage is in use
	target string
	opts   Options
}

// The layers are on a tmpfs of the stage, which is also where changes go.
func (s *Stage) layers() string           { return filepath.Join(s.dir, "layers") }
func (s *Stage) layer(name string) string { return filepath.Join(s.layers(), name) }

// Lower is the directory over which the read-only file system has to be mounted
// before Mount.
func (s *Stage) Lower() string { return s.layer("lower") }

// Prepare makes ready what goes under an overlay at target, an absolute path
// without symlinks. Only root may. After an error nothing is mounted.
func Prepare(target string, o *Options) (*Stage, error) {
	s := &Stage{target: target, opts: *o}
	if s.opts.RunDir == "" {
		s.opts.RunDir = RunDir
	}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("prepare the overlay at %s: %w", target, err)
	}
	return s, nil
}

func (s *Stage) prepare() error {
	if os.Geteuid() != 0 {
		return errors.New("only root can mount an overlay")
	}
	run, err := runDir(s.opts.RunDir)
	if err != nil {
		return err
	}
	sweep(run)
	if err := s.claim(run); err != nil {
		return err
	}
	if err := s.fill(); err != nil {
		return errors.Join(err, s.end())
	}
	return nil
}

// runDir makes the directory for stages, and returns its absolute path.
func runDir(name string) (string, error) {
	run, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if strings.ContainsAny(run, `:,\`) { // which mean something in mount options
		return "", fmt.Errorf("the path of the directory %s has a colon, a comma or a backslash", run)
	}
	return run, os.MkdirAll(run, 0o755)
}

// claim makes the stage's directory and locks it. Between the two, someone who
// sweeps may take it away: then it tries again.
func (s *Stage) claim(run string) (err error) {
	for range 10 {
		if s.dir, err = os.MkdirTemp(run, stagePrefix); err != nil { // its mode is 0700
			return err
		}
		if s.lock, err = lockDir(s.dir); err != nil {
			continue
		}
		if _, err = os.Stat(s.dir); err == nil {
			return nil
		}
		s.lock.Close()
	}
	return err
}

// lockDir opens a directory and locks it, or fails if someone else has.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// sweep takes away the stages of programs that were killed. What it cannot take
// away does no harm.
func sweep(run string) {
	dirs, err := filepath.Glob(filepath.Join(run, stagePrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		if lock, err := lockDir(dir); err == nil {
			_ = (&Stage{dir: dir, lock: lock}).end()
		}
	}
}

// fill mounts what the stage has before the read-only file system comes.
func (s *Stage) fill() error {
	if err := os.Mkdir(s.layers(), 0o700); err != nil {
		return err
	}
	data := "mode=0700"
	if s.opts.UpperSize > 0 {
		data += fmt.Sprintf(",size=%d", s.opts.UpperSize)
	}
	if err := unix.Mount("overmount", s.layers(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return os.NewSyscallError("mount tmpfs", err)
	}
	// Nothing of this shall appear in other mount namespaces, and stay there.
	if err := unix.Mount("", s.layers(), "", unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("make the mount private", err)
	}
	for _, name := range []string{"lower", "old", "upper", "work"} {
		if err := os.Mkdir(s.layer(name), 0o700); err != nil {
			return err
		}
	}
	if !s.opts.KeepLower {
		return nil
	}
	if err := unix.Mount(s.target, s.layer("old"), "", unix.MS_BIND, ""); err != nil {
		return os.NewSyscallError("bind what is there now", err)
	}
	return nil
}

// Abort takes away all that the stage has mounted, the read-only file system
// included.
func (s *Stage) Abort() error { return s.end() }

// end detaches the stage's mounts, which are kept by the overlay if there is one,
// and removes its directory.
func (s *Stage) end() error {
	defer s.lock.Close()
	err := unix.Unmount(s.layers(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT { // which say that it was not mounted
		return os.NewSyscallError("umount "+s.layers(), err)
	}
	if err := os.Remove(s.layers()); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Remove(s.dir)
}

// Mount mounts the overlay at the target, over what is now mounted at Lower, and
// ends the stage. After an error nothing of it is mounted.
func (s *Stage) Mount() (*Overlay, error) {
	o, err := s.mount()
	if err = errors.Join(err, s.end()); err == nil {
		return o, nil
	}
	if o != nil {
		err = errors.Join(err, o.Unmount(true))
	}
	return nil, fmt.Errorf("mount the overlay at %s: %w", s.target, err)
}

func (s *Stage) mount() (*Overlay, error) {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOATIME)
	if !s.opts.Writable {
		flags |= unix.MS_RDONLY
	} else if err := s.likeLower(); err != nil {
		return nil, err
	}
	if err := unix.Mount(mark+s.opts.Name, s.target, "overlay", flags, s.options()); err != nil {
		return nil, mountError(err)
	}
	id, err := mountID(s.target)
	if err != nil {
		return nil, errors.Join(err, unix.Unmount(s.target, unix.MNT_DETACH))
	}
	return &Overlay{dir: s.target, id: id}, nil
}

// mountError says what to do about an error of mount(2).
func mountError(err error) error {
	if err == unix.ENODEV {
		return fmt.Errorf("this kernel has no overlayfs: load its module first, with \"modprobe overlay\"; an initramfs must carry it (mount: %w)", err)
	}
	return os.NewSyscallError("mount", err)
}

// likeLower gives the upper layer's root, which is the overlay's, the owner and
// mode of the layer below.
func (s *Stage) likeLower() error {
	var st unix.Stat_t
	if err := unix.Stat(s.Lower(), &st); err != nil {
		return fmt.Errorf("stat the mount that goes below: %w", err)
	}
	if err := os.Chown(s.layer("upper"), int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(s.layer("upper"), st.Mode&0o7777); err != nil {
		return os.NewSyscallError("chmod", err)
	}
	return nil
}

// options are what overlayfs is told: see the package comment.
func (s *Stage) options() string {
	options := "index=off,metacopy=off,nfs_export=off,redirect_dir=nofollow,xino=off,lowerdir=" + s.Lower()
	if s.opts.KeepLower {
		options += ":" + s.layer("old")
	}
	if s.opts.Writable {
		options += ",upperdir=" + s.layer("upper") + ",workdir=" + s.layer("work")
	}
	return options
}

// mark begins the source of our overlays in /proc/self/mountinfo.
const mark = "overmount:"

// Ours reports whether a mount of that type and source was made by this package.
func Ours(fsType, source string) bool {
	return fsType == "overlay" && strings.HasPrefix(source, mark)
}

// An Overlay is a mounted overlay.
type Overlay struct {
	dir string
	id  uint64 // the kernel's number for the mount
}

// Unmount takes the overlay and its layers away, if it is still the topmost mount
// at its place. If it is in use, the error is EBUSY and it stays; lazily, its name
// goes at once, and the rest when the last user is done.
func (o *Overlay) Unmount(lazy bool) error {
	id, err := mountID(o.dir)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", o.dir, err)
	}
	if id != o.id {
		return fmt.Errorf("unmount %s: something else is mounted over it, or it is not mounted there any more", o.dir)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(o.dir, flags); err != nil {
		return fmt.Errorf("unmount %s: %w", o.dir, err)
	}
	return nil
}

// mountID returns the number of the topmost mount at dir. It asks no file system.
func mountID(dir string) (uint64, error) {
	var st unix.Statx_t
	for {
		err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
		if err == nil {
			return st.Mnt_id, nil
		}
		if err != unix.EINTR {
			return 0, os.NewSyscallError("statx "+dir, err)
		}
	}
}
