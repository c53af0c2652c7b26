package initramfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"overmount/kmod"
)

// addFirmware adds the firmware that the modules declare. Not all of it is there,
// and not all that is there will be used: drivers name files of hardware that a
// distribution does not have, and make up names as they run.
func (im *Image) addFirmware(fsys fs.FS) error {
	s := im.Stage1
	files := map[string][]byte{}
	for _, name := range s.declared() {
		found, err := readFirmware(fsys, name, files)
		if err != nil {
			return fmt.Errorf("read firmware %s: %w", name, pathless(err))
		}
		if !found {
			s.NoFirmware = append(s.NoFirmware, name)
		}
	}
	for name := range files {
		s.Firmware = append(s.Firmware, name)
	}
	slices.Sort(s.Firmware)
	p := im.part("firmware")
	for _, name := range s.Firmware {
		if err := im.bytes(p, path.Join(FirmwareDir, name), 0o644, files[name]); err != nil {
			return err
		}
	}
	return nil
}

// declared returns the names of firmware that the modules declare, each once.
func (s *Stage1) declared() []string {
	var names []string
	for _, m := range s.Modules {
		for _, name := range m.firmware {
			if fs.ValidPath(name) && name != "." {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// readFirmware puts the files of a name, which may be a pattern, under their plain
// names. It reports whether there is one.
func readFirmware(fsys fs.FS, name string, files map[string][]byte) (bool, error) {
	if fsys == nil {
		return false, nil
	}
	names := []string{name}
	if strings.ContainsAny(name, `*?[\`) {
		names = globFirmware(fsys, name)
	}
	found := false
	for _, name := range names {
		data, err := readPlain(fsys, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		files[name], found = data, true
	}
	return found, nil
}

// globFirmware returns the plain names that a pattern stands for. A bad pattern
// stands for nothing.
func globFirmware(fsys fs.FS, pattern string) []string {
	var names []string
	for _, suffix := range suffixes() {
		found, err := fs.Glob(fsys, pattern+suffix)
		if err != nil {
			return nil
		}
		for _, name := range found {
			names = append(names, strings.TrimSuffix(name, suffix))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// suffixes are those of firmware files, in the order in which the kernel looks for
// them.
func suffixes() []string { return []string{"", ".zst", ".xz"} }

// readPlain reads a file of firmware. Only the suffix tells that it is compressed:
// firmware may begin with any bytes.
func readPlain(fsys fs.FS, name string) ([]byte, error) {
	for _, suffix := range suffixes() {
		data, err := fs.ReadFile(fsys, name+suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || suffix == "" {
			return data, err
		}
		return kmod.Plain(data)
	}
	return nil, fs.ErrNotExist
}
