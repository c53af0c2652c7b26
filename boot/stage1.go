package boot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// firmwarePath is the kernel's parameter that names one more directory of
// firmware, where it looks first. Documentation/driver-api/firmware/fw_search_path.rst
// in the kernel's source.
const firmwarePath = "/sys/module/firmware_class/parameters/path"

// keepStage1 has the kernel look for firmware in a copy of that of stage 1, too: the
// mount covers /lib/firmware, the initramfs goes, and the driver of the network card
// may ask again when the network is just not there. A directory that somebody else
// has named stays.
func (b *Boot) keepStage1() (string, error) {
	from := b.c.Stage1Firmware
	if from == "" || from == none {
		return "not asked for", nil
	}
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return "there is none", nil
	}
	old, err := os.ReadFile(b.parameter)
	if err != nil {
		return "", err
	}
	to := filepath.Join(b.c.RunDir, "stage1-firmware")
	if old := string(bytes.TrimSpace(old)); old != "" && old != from && old != to {
		return "firmware_class.path is set: " + old, nil
	}
	if err := copyNew(from, to); err != nil {
		return "", err
	}
	// Without a line break, which the kernel would take for a part of the name.
	return to, os.WriteFile(b.parameter, []byte(to), 0o200)
}

// copyNew copies a directory, unless a boot before this one did. It appears whole.
func copyNew(from, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	temp, err := os.MkdirTemp(filepath.Dir(to), ".stage1-")
	if err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(temp, "f"), os.DirFS(from)); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return errors.Join(os.Rename(filepath.Join(temp, "f"), to), os.Remove(temp))
}
