package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) umountCommand() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:   "umount [-z] TARGET",
		Short: "Unmount a flist",
		Long: `Umount takes the topmost flist off the directory TARGET. The program that serves
it ends by itself. It refuses to unmount anything that is not served by FUSE.

` + exitCodes,
		Example: "  overmount umount /lib/modules/6.1.0-56-amd64",
		Args:    args(1, 1, "TARGET, the directory that is mounted over"),
		RunE:    func(cmd *cobra.Command, args []string) error { return umount(args[0], lazy) },
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "z", false, "take it from its place also if it is in use; it is served until the last user is done")
	return cmd
}

func umount(target string, lazy bool) error {
	dir, err := mountPoint(target)
	if err != nil {
		return fmt.Errorf("umount %s: %w", target, err)
	}
	if os.Geteuid() != 0 {
		err = umountHelper(dir, lazy)
	} else {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		err = unix.Unmount(dir, flags)
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("umount %s: it is in use: end what uses it, which \"fuser -vm %s\" shows, or unmount with --lazy", target, dir)
	}
	if err != nil {
		return fmt.Errorf("umount %s: %w", target, err)
	}
	return nil
}

// mountPoint finds target among the mounts, without touching what is mounted
// there: it may be dead.
func mountPoint(target string) (string, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return "", err
	}
	// Symlinks on the way are followed, the last part is left alone.
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	paths := []string{filepath.Join(dir, filepath.Base(abs))}
	if resolved, err := filepath.EvalSymlinks(abs); err == nil {
		paths = append(paths, resolved)
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !slices.Contains(paths, m.Mountpoint), false
	})
	if err != nil {
		return "", err
	}
	if len(mounts) == 0 {
		return "", errors.New("nothing is mounted there")
	}
	top := mounts[len(mounts)-1]
	if !strings.HasPrefix(top.FSType, "fuse") {
		return "", fmt.Errorf("what is mounted there is %s, not a flist", top.FSType)
	}
	return top.Mountpoint, nil
}

// umountHelper unmounts for a user who is not root.
func umountHelper(dir string, lazy bool) error {
	args := []string{"-u", "--", dir}
	if lazy {
		args = append([]string{"-z"}, args...)
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if err != nil && len(out) > 0 {
		return errors.New(strings.TrimSpace(string(out)))
	}
	return err
}
