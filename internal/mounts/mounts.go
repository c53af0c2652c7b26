// Package mounts tells what is mounted where. It reads /proc/self/mountinfo and
// touches no mount: one may be dead, or hang.
package mounts

import (
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
)

// Top returns the topmost of the mounts at dir, nil if there is none. dir is
// absolute and without symlinks; see [Place].
func Top(dir string) (*mountinfo.Info, error) {
	at, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != dir, false })
	if err != nil {
		return nil, err
	}
	return top(at), nil
}

// top returns the mount that no other of them lies on. Their order does not tell:
// a mount that was moved here is older than what it lies on.
func top(at []*mountinfo.Info) *mountinfo.Info {
	covered := map[int]bool{}
	for _, m := range at {
		covered[m.Parent] = true
	}
	for _, m := range slices.Backward(at) {
		if !covered[m.ID] {
			return m
		}
	}
	return nil
}

// Place returns dir as an absolute path whose parents are no symlinks. Of dir
// itself it knows nothing: what is mounted there is not asked.
func Place(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// RootType returns the type of the file system that is the root directory:
// rootfs in an initramfs.
func RootType() (string, error) {
	root, err := Top("/")
	if err != nil || root == nil {
		return "", err
	}
	return root.FSType, nil
}
