package initramfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// driversRule is what udev must do to load modules: the rule of systemd and eudev
// (80-drivers.rules), less what is for hardware of the last century. Other rules
// name and mark devices, which is for the system that comes later.
const driversRule = `ACTION=="add", ENV{MODALIAS}=="?*", RUN{builtin}+="kmod load $env{MODALIAS}"
`

// addUdev adds udevd, udevadm and kmod of the system in root, with the libraries
// that they need: systemd's udev, where udevd may be a name of udevadm, or eudev.
func (im *Image) addUdev(p *Part, root string) error {
	udevadm, err := firstOf(root, "udevadm", "/bin/udevadm", "/usr/bin/udevadm", "/sbin/udevadm")
	if err != nil {
		return err
	}
	udevd, err := firstOf(root, "udevd", "/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd", "/sbin/udevd", "/usr/lib/udev/udevd", "/lib/udev/udevd")
	if err != nil {
		return err
	}
	kmod, err := firstOf(root, "kmod", "/bin/kmod", "/usr/bin/kmod", "/sbin/kmod")
	if err != nil {
		return err
	}
	if err := im.addProgram(p, root, "bin/udevadm", udevadm); err != nil {
		return err
	}
	if udevd == udevadm {
		err = im.link(p, "sbin/udevd", "/bin/udevadm")
	} else {
		err = im.addProgram(p, root, "sbin/udevd", udevd)
	}
	if err != nil {
		return err
	}
	if err := im.addProgram(p, root, "bin/kmod", kmod); err != nil {
		return err
	}
	for _, name := range []string{"depmod", "insmod", "lsmod", "modinfo", "modprobe", "rmmod"} {
		if err := im.link(p, "sbin/"+name, "/bin/kmod"); err != nil {
			return err
		}
	}
	if err := im.bytes(p, "lib/udev/rules.d/80-drivers.rules", 0o644, []byte(driversRule)); err != nil {
		return err
	}
	return im.addModprobeConfig(p, root)
}

// firstOf returns the first of some places of a program that is there, with
// symlinks followed.
func firstOf(root, what string, places ...string) (string, error) {
	for _, name := range places {
		file, err := inRoot(root, name)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("there is no %s in %s: looked for %s", what, root, strings.Join(places, ", "))
}

// addModprobeConfig adds what the distribution says of modules: which of two
// drivers a device gets depends on its blacklists. What the host's owner says is
// not taken.
func (im *Image) addModprobeConfig(p *Part, root string) error {
	dir, err := inRoot(root, "/lib/modprobe.d")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(root, dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".conf") {
			continue
		}
		file, err := inRoot(root, path.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a symlink to nothing
		}
		if err != nil {
			return err
		}
		if err := im.hostFile(p, path.Join("lib/modprobe.d", e.Name()), 0o644, filepath.Join(root, file)); err != nil {
			return err
		}
	}
	return nil
}
