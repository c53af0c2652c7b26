package coldplug

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/sync/errgroup"
)

// maxAttribute is the longest file of sysfs, a page of the largest kind.
const maxAttribute = 64 << 10

// Scan reads a directory that is or looks like /sys. Of devices it reads the files
// modalias, and the file uevent of those that have none: of an auxiliary device or
// an MMC card only that has the modalias. Of modules it reads initstate. It follows
// no symlink, so that each device is found once.
//
// A device may go while Scan reads, which is no error. What else cannot be read is
// a warning. Scan fails if there is no directory devices. The kernel may have no
// modules, and therefore no directory module.
func Scan(sysfs fs.FS) (*Machine, error) {
	var m Machine
	files, err := m.attributes(sysfs)
	if err != nil {
		return nil, fmt.Errorf("look for devices: %w", err)
	}
	texts := make([]attribute, len(files))
	var g errgroup.Group
	g.SetLimit(max(4, runtime.GOMAXPROCS(0))) // the kernel may have to ask the device
	for i, name := range files {
		g.Go(func() error {
			texts[i] = read(sysfs, name)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, text := range texts {
		if m.warn(text.err) {
			continue
		}
		dir, base := path.Split(files[i])
		for _, alias := range modaliases(base, text.text) {
			m.Devices = append(m.Devices, Device{path.Clean(dir), alias})
		}
	}
	if err := m.scanModules(sysfs); err != nil {
		return nil, err
	}
	m.sort()
	return &m, nil
}

// ScanModules is [Scan] without the devices.
func ScanModules(sysfs fs.FS) (*Machine, error) {
	var m Machine
	if err := m.scanModules(sysfs); err != nil {
		return nil, err
	}
	m.sort()
	return &m, nil
}

func (m *Machine) sort() {
	slices.SortStableFunc(m.Devices, func(a, b Device) int { return cmp.Compare(a.Path, b.Path) })
	slices.SortStableFunc(m.Modules, func(a, b KnownModule) int { return cmp.Compare(a.Name, b.Name) })
}

// warn notes an error, and reports whether there was one.
func (m *Machine) warn(err error) bool {
	gone := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
	if err != nil && !gone {
		m.Warnings = append(m.Warnings, err.Error())
	}
	return err != nil
}

// attributes returns the paths of the files that have modaliases: in each directory
// modalias, or uevent if there is no such file.
func (m *Machine) attributes(sysfs fs.FS) ([]string, error) {
	var files []string
	has := map[string]bool{} // directories with a modalias
	err := fs.WalkDir(sysfs, "devices", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil && name == "devices":
			return err
		case m.warn(err) || !d.Type().IsRegular():
			return nil
		}
		switch dir, base := path.Split(name); base {
		case "uevent": // it comes behind modalias
			if !has[dir] {
				files = append(files, name)
			}
		case "modalias":
			has[dir] = true
			files = append(files, name)
		}
		return nil
	})
	return files, err
}

type attribute struct {
	text string
	err  error
}

func read(sysfs fs.FS, name string) attribute {
	f, err := sysfs.Open(name)
	if err != nil {
		return attribute{err: err}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAttribute))
	return attribute{string(b), err}
}

// modaliases returns those that a file modalias or uevent has, each once: a device
// of ACPI may have two. What no kernel writes is passed over.
func modaliases(base, text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\x00\n")
		ok := true
		if base == "uevent" {
			line, ok = strings.CutPrefix(line, "MODALIAS=")
		}
		if ok && line != "" && !hasControl(line) && !strings.HasPrefix(line, "-- ") && !slices.Contains(all, line) {
			all = append(all, line)
		}
	}
	return all
}

// hasControl reports whether a text has characters that no name of the kernel has,
// and no terminal should get.
func hasControl(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar })
}

func (m *Machine) scanModules(sysfs fs.FS) error {
	list, err := fs.ReadDir(sysfs, "module")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for modules: %w", err)
	}
	for _, d := range list {
		if !d.IsDir() {
			continue
		}
		state := read(sysfs, "module/"+d.Name()+"/initstate")
		if errors.Is(state.err, fs.ErrNotExist) {
			state = attribute{text: Builtin}
		}
		if state.err == nil {
			state.err = m.addModule(d.Name(), state.text)
		}
		m.warn(state.err)
	}
	return nil
}

// addModule adds a module with what its file initstate has.
func (m *Machine) addModule(name, initstate string) error {
	state := strings.TrimSpace(initstate)
	if !slices.Contains([]string{"live", "coming", "going", Builtin}, state) {
		return fmt.Errorf("module/%s/initstate: unknown state %.20q", name, state)
	}
	m.Modules = append(m.Modules, KnownModule{underscores(name), state})
	return nil
}

func underscores(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Loaded reports whether a module, named with underscores, is in the kernel, about
// to be, or part of it. One that is going is not.
func (m *Machine) Loaded(name string) bool {
	state := m.State(name)
	return state != "" && state != "going"
}

// State returns the state of a module, named with underscores, as in [KnownModule];
// it is empty for one that the kernel does not have.
func (m *Machine) State(name string) string {
	i, ok := slices.BinarySearchFunc(m.Modules, name, func(k KnownModule, name string) int { return cmp.Compare(k.Name, name) })
	if !ok {
		return ""
	}
	return m.Modules[i].State
}
