package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"overmount/internal/mounts"
	"overmount/internal/overlay"
)

// ClearDead takes away, lazily, the FUSE mounts at dir whose program has ended,
// and the overlays over such; it returns how many. A program that was killed
// leaves its mount behind: all below it fails with ENOTCONN, and nothing can be
// mounted over it. It goes from the top down to the first mount that answers or is
// of another kind. As nothing there is asked without a limit, it fails for a mount
// that neither answers nor is dead, and leaves it.
func ClearDead(ctx context.Context, dir string) (int, error) {
	cleared, err := clearDead(ctx, dir)
	if err != nil {
		return cleared, fmt.Errorf("clear dead mounts at %s: %w", dir, err)
	}
	return cleared, nil
}

func clearDead(ctx context.Context, dir string) (cleared int, err error) {
	place := make(chan string, 1)
	err = within(ctx, "look at the directory's parents", func() error {
		p, err := mounts.Place(dir)
		place <- p
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	at := <-place
	for {
		top, err := mounts.Top(at)
		if err != nil || top == nil || !served(top) {
			return cleared, err
		}
		if dead, err := isDead(ctx, at); !dead || err != nil {
			return cleared, err
		}
		if err := Unmount(at, true); err != nil {
			return cleared, err
		}
		cleared++
	}
}

// served reports whether what answers for a mount is a program: it is FUSE, or an
// overlay of ours over it.
func served(m *mountinfo.Info) bool {
	return m.FSType == "fuse" || strings.HasPrefix(m.FSType, "fuse.") || overlay.Ours(m.FSType, m.Source)
}

// isDead asks the mount at dir for a name that nobody knows, since about any other
// the kernel answers from what it keeps.
func isDead(ctx context.Context, dir string) (bool, error) {
	name := filepath.Join(dir, fmt.Sprintf(".overmount-is-anyone-there-%x", rand.Uint64()))
	err := within(ctx, "wait for an answer of the mount", func() error {
		_, err := os.Lstat(name)
		return err
	})
	switch {
	case errors.Is(err, unix.ENOTCONN):
		return true, nil
	case errors.Is(err, errNoAnswer), ctx.Err() != nil:
		return false, err
	}
	return false, nil // whatever it says, it answers
}
