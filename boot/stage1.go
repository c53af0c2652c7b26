package boot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
)

// firmwarePath is the kernel's parameter that names one more directory of
// firmware, where it looks first. Documentation/driver-api/firmware/fw_search_path.rst
// in the kernel's source.
const firmwarePath = "/sys/module/firmware_class/parameters/path"

// keepStage1 has the kernel look for firmware in the directory of stage 1, too:
// the mount covers /lib/firmware, and the driver of the network card may ask again
// when the network is just not there.
func (b *Boot) keepStage1() (string, error) {
	dir := b.c.Stage1Firmware
	if dir == "" || dir == none {
		return "not asked for", nil
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return "there is no " + dir, nil
	}
	old, err := os.ReadFile(b.firmDir)
	if err != nil {
		return "", err
	}
	if old = bytes.TrimSpace(old); len(old) > 0 {
		return "firmware_class.path is set: " + string(old), nil
	}
	// Without a line break, which the kernel would take for a part of the name.
	return dir, os.WriteFile(b.firmDir, []byte(dir), 0o200)
}
