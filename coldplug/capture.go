package coldplug

import (
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
)

// MaxCapture is the length of the longest capture that is read, in bytes. That of a
// large machine has some hundred thousand.
const MaxCapture = 16 << 20

const captureComment = "What the kernel of a machine said of its devices and modules, as files below /sys.\n\n"

// captureEnd is a file without content behind all others of a capture.
const captureEnd = "end"

// Capture writes what a machine's kernel said, so that [ReadCapture] gives the same
// Machine without its warnings. It is an archive in the form of txtar, a text: for
// each device a file PATH/modalias with a modalias in each line, and for each module
// a file module/NAME/initstate with its state, which is "builtin" where the kernel
// has no such file. Nothing else of the machine is in it. The last file is "end".
func (m *Machine) Capture(w io.Writer) error {
	b := []byte(captureComment)
	last := ""
	add := func(name, line string) {
		if name != last {
			b = fmt.Appendf(b, "-- %s --\n", name)
		}
		b = append(append(b, line...), '\n')
		last = name
	}
	for _, d := range m.Devices {
		add(d.Path+"/modalias", d.Modalias)
	}
	for _, k := range m.Modules {
		add("module/"+k.Name+"/initstate", k.State)
	}
	_, err := w.Write(fmt.Appendf(b, "-- %s --\n", captureEnd))
	return err
}

// ReadCapture reads a capture, or any archive in the form of txtar with files of
// sysfs: PATH/modalias, PATH/uevent and module/NAME/initstate. Other files are
// passed over. It fails for a text that is longer than MaxCapture, or has no device
// or paths that sysfs cannot have, and for a capture that is cut short.
func ReadCapture(r io.Reader) (*Machine, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxCapture+1))
	if err != nil {
		return nil, fmt.Errorf("read the capture: %w", err)
	}
	if len(text) > MaxCapture {
		return nil, fmt.Errorf("read the capture: it is longer than %d bytes", MaxCapture)
	}
	var m Machine
	whole := !strings.HasPrefix(string(text), captureComment)
	for name, text := range archived(string(text)) {
		whole = whole || name == captureEnd
		if err := m.addFile(name, text); err != nil {
			return nil, fmt.Errorf("read the capture: %w", err)
		}
	}
	if len(m.Devices) == 0 {
		return nil, fmt.Errorf("read the capture: no device is in it; want a text that \"overmount plan --capture\" has written")
	}
	if !whole {
		return nil, fmt.Errorf("read the capture: it is cut short: the line \"-- %s --\" is not there", captureEnd)
	}
	m.sort()
	seen := map[Device]bool{} // uevent says again what modalias has
	m.Devices = slices.DeleteFunc(m.Devices, func(d Device) bool {
		again := seen[d]
		seen[d] = true
		return again
	})
	m.Modules = slices.CompactFunc(m.Modules, func(a, b KnownModule) bool { return a.Name == b.Name })
	return &m, nil
}

// archived yields the files of an archive with their texts. A line "-- NAME --"
// begins a file; what stands before the first is a comment.
func archived(archive string) iter.Seq2[string, string] {
	return func(yield func(name, text string) bool) {
		name, start, at := "", 0, 0
		for line := range strings.Lines(archive) {
			next, begins := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "-- ")
			next, ends := strings.CutSuffix(next, " --")
			if next = strings.TrimSpace(next); begins && ends && next != "" {
				if name != "" && !yield(name, archive[start:at]) {
					return
				}
				name, start = next, at+len(line)
			}
			at += len(line)
		}
		if name != "" {
			yield(name, archive[start:])
		}
	}
}

// addFile adds what a file of sysfs says.
func (m *Machine) addFile(name, text string) error {
	if !fs.ValidPath(name) || hasControl(name) {
		return fmt.Errorf("%.80q is not a path below /sys", name)
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	switch parent := path.Dir(dir); {
	case strings.HasPrefix(dir, "devices/") && (base == "modalias" || base == "uevent"):
		for _, alias := range modaliases(base, text) {
			m.Devices = append(m.Devices, Device{dir, alias})
		}
	case parent == "module" && base == "initstate":
		return m.addModule(path.Base(dir), text)
	}
	return nil
}
