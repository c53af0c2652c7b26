package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"overmount/fusefs"
	"overmount/internal/mounts"
	"overmount/internal/overlay"
)

func (a *app) umountCommand() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:   "umount [-z] TARGET",
		Short: "Unmount a flist",
		Long: `Umount takes the topmost flist off the directory TARGET. The program that serves
it ends by itself. What "mount --writable" or "--keep-lower" put there goes as a whole,
with all changes. Also what a program that was killed has left is taken away. It refuses
to unmount anything that is not served by FUSE.

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
	err = fusefs.Unmount(dir, lazy)
	if errors.Is(err, fusefs.ErrBusy) {
		return fmt.Errorf("umount %s: it is in use: end what uses it, which \"fuser -vm %s\" shows, or unmount with --lazy", target, dir)
	}
	if err != nil {
		return fmt.Errorf("umount %s: %w", target, err)
	}
	return nil
}

// mountPoint finds target among the mounts. It does not touch what is mounted
// there, which may be dead or hang.
func mountPoint(target string) (string, error) {
	place, err := mounts.Place(target)
	if err != nil {
		return "", err
	}
	top, err := mounts.Top(place)
	if err != nil {
		return "", err
	}
	if top == nil { // the name may be a symlink to the place
		resolved, err := filepath.EvalSymlinks(place)
		if err != nil {
			return "", fmt.Errorf("nothing is mounted there: %w", err)
		}
		if top, err = mounts.Top(resolved); err != nil {
			return "", err
		}
	}
	switch {
	case top == nil:
		return "", errors.New("nothing is mounted there")
	case !strings.HasPrefix(top.FSType, "fuse") && !overlay.Ours(top.FSType, top.Source):
		return "", fmt.Errorf("what is mounted there is %s, not a flist", top.FSType)
	}
	return top.Mountpoint, nil
}
