package coldplug

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"overmount/internal/testenv"
)

// files returns a file system of texts. One that begins with -> is a symlink.
func files(texts map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for name, text := range texts {
		f := &fstest.MapFile{Data: []byte(text)}
		if target, ok := strings.CutPrefix(text, "->"); ok {
			f = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink}
		}
		fsys[name] = f
	}
	return fsys
}

var sysfs = map[string]string{
	"devices/pci0000:00/0000:00:02.0/modalias":      "pci:v00008086d000010D3\n",
	"devices/pci0000:00/0000:00:02.0/uevent":        "DRIVER=e1000e\nMODALIAS=pci:v00008086d000010D3\n",
	"devices/pci0000:00/0000:00:02.0/subsystem":     "->../../../bus/pci",
	"devices/pci0000:00/0000:00:02.0/x.rdma/uevent": "MODALIAS=auxiliary:x.rdma\nSEQNUM=1\n",
	"devices/pci0000:00/0000:00:02.0/firmware_node": "->../../LNXSYSTM:00",
	"devices/pci0000:00/0000:00:02.0/net/lo/uevent": "INTERFACE=lo",
	"devices/pci0000:00/uevent":                     "",
	"devices/LNXSYSTM:00/modalias":                  "acpi:A:B:\nof:NxTyCz\nacpi:A:B:\n",
	"devices/system/cpu/modalias":                   "cpu:type:x86,ven0000fam0006mod00CF:feature:,0000,0001",
	"devices/linked/modalias":                       "->../LNXSYSTM:00/modalias",
	"devices/odd/modalias":                          "a\x1b[31mb\n-- x --\n\xff\n\nok\n",
	"bus/pci/devices/0000:00:02.0/modalias":         "pci:nobody looks here",
	"module/e1000e/initstate":                       "live\n",
	"module/a-b/initstate":                          "coming\n",
	"module/old/initstate":                          "going\n",
	"module/odd/initstate":                          "strange\n",
	"module/printk/parameters/time":                 "Y\n",
}

var scanned = &Machine{
	Devices: []Device{
		{"devices/LNXSYSTM:00", "acpi:A:B:"},
		{"devices/LNXSYSTM:00", "of:NxTyCz"},
		{"devices/odd", "ok"},
		{"devices/pci0000:00/0000:00:02.0", "pci:v00008086d000010D3"},
		{"devices/pci0000:00/0000:00:02.0/x.rdma", "auxiliary:x.rdma"},
		{"devices/system/cpu", "cpu:type:x86,ven0000fam0006mod00CF:feature:,0000,0001"},
	},
	Modules: []KnownModule{{"a_b", "coming"}, {"e1000e", "live"}, {"old", "going"}, {"printk", Builtin}},
}

func TestScan(t *testing.T) {
	m, err := Scan(files(sysfs))
	if err != nil {
		t.Fatal(err)
	}
	want := *scanned
	want.Warnings = []string{`module/odd/initstate: unknown state "strange"`}
	if diff := cmp.Diff(&want, m); diff != "" {
		t.Errorf("Scan (-want +got):\n%s", diff)
	}
	for name, want := range map[string]bool{"e1000e": true, "a_b": true, "printk": true, "old": false, "odd": false, "": false} {
		if got := m.Loaded(name); got != want {
			t.Errorf("Loaded(%q) = %v, want %v", name, got, want)
		}
	}
	modules, err := ScanModules(files(sysfs))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Machine{Modules: want.Modules, Warnings: want.Warnings}, modules); diff != "" {
		t.Errorf("ScanModules (-want +got):\n%s", diff)
	}
	if got, want := []string{m.State("old"), m.State("printk"), m.State("nosuch")}, []string{"going", Builtin, ""}; !slices.Equal(got, want) {
		t.Errorf("states %q, want %q", got, want)
	}
}

func TestScanErrors(t *testing.T) {
	if _, err := Scan(files(map[string]string{"module/x/initstate": "live"})); err == nil || !strings.Contains(err.Error(), "look for devices: ") {
		t.Errorf("Scan without devices = %v, want an error that says so", err)
	}
	m, err := Scan(files(map[string]string{"devices/x/modalias": "a"}))
	if err != nil || len(m.Devices) != 1 || len(m.Modules) != 0 {
		t.Errorf("Scan without modules = %+v, %v, want a device", m, err)
	}
}

// This machine has devices, and each modalias that find(1) finds is there.
func TestScanThisMachine(t *testing.T) {
	if _, err := os.Stat("/sys/devices/system/cpu"); err != nil {
		testenv.Need(t, err.Error())
	}
	m, err := Scan(os.DirFS("/sys"))
	if err != nil || len(m.Warnings) > 0 {
		t.Fatal(err, m.Warnings)
	}
	paths := map[string]bool{}
	for _, d := range m.Devices {
		paths["/sys/"+d.Path] = true
	}
	filepath.WalkDir("/sys/devices", func(name string, d fs.DirEntry, err error) error {
		if text, readErr := os.ReadFile(name); err == nil && d.Name() == "modalias" && readErr == nil && len(text) > 1 && !paths[filepath.Dir(name)] {
			t.Errorf("Scan has no device for %s", name)
		}
		return nil
	})
	captureAgain(t, m)
}

// captureAgain writes a machine, and reads it.
func captureAgain(t *testing.T, m *Machine) {
	t.Helper()
	var b bytes.Buffer
	if err := m.Capture(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	got, err := ReadCapture(&b)
	if err != nil {
		t.Fatal(err)
	}
	got.Warnings = m.Warnings
	if diff := cmp.Diff(m, got); diff != "" {
		t.Errorf("captured and read (-want +got):\n%s\nof %s", diff, text)
	}
}

func TestCapture(t *testing.T) {
	captureAgain(t, scanned)
	var b strings.Builder
	if err := (&Machine{Devices: scanned.Devices[:2], Modules: scanned.Modules[3:]}).Capture(&b); err != nil {
		t.Fatal(err)
	}
	want := captureComment + `-- devices/LNXSYSTM:00/modalias --
acpi:A:B:
of:NxTyCz
-- module/printk/initstate --
builtin
-- end --
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("Capture (-want +got):\n%s", diff)
	}
}

func TestReadCapture(t *testing.T) {
	m, err := ReadCapture(strings.NewReader("-- devices/b/uevent --\nMODALIAS=x\nDRIVER=y\n-- devices/a/uevent --\nMODALIAS=z\n-- devices/b/modalias --\nx\n-- README --\nhello\n"))
	want := &Machine{Devices: []Device{{"devices/a", "z"}, {"devices/b", "x"}}}
	if diff := cmp.Diff(want, m); diff != "" || err != nil {
		t.Errorf("ReadCapture (-want +got), error %v:\n%s", err, diff)
	}
	for text, want := range map[string]string{
		"":                                    "no device is in it",
		"\x7fELF":                             "no device is in it",
		"-- ../devices/x/modalias --\na\n":    `"../devices/x/modalias" is not a path below /sys`,
		"-- /devices/x/modalias --\na\n":      "is not a path below /sys",
		"-- devices/\x1b[0m/modalias --\na\n": "is not a path below /sys",
		"-- module/x/initstate --\nhappy\n":   `unknown state "happy"`,
		strings.Repeat("x", MaxCapture+1):     "it is longer than 16777216 bytes",
		captureComment + "-- devices/x/modalias --\na\n": "it is cut short",
		"-- devicesx/x/modalias --\nmodalias\n":          "no device is in it",
	} {
		if _, err := ReadCapture(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ReadCapture(%.40q) = %v, want an error with %q", text, err, want)
		}
	}
}

// What is read and written is read as the same.
func FuzzReadCapture(f *testing.F) {
	f.Add("-- devices/b/uevent --\nMODALIAS=x\nDRIVER=y\n-- devices/a/modalias --\nz\nzz\n-- module/x/initstate --\nlive\n")
	f.Add("-- devices/b/modalias --\nMODALIAS=x -- y --\n -- x --\n-- devices/b /modalias --\n \n-- module/ /initstate --\nbuiltin\n")
	f.Add("-- --")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ReadCapture(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, d := range m.Devices {
			if !fs.ValidPath(d.Path) || !strings.HasPrefix(d.Path, "devices/") || d.Modalias == "" {
				t.Errorf("ReadCapture(%q) has %+v", text, d)
			}
		}
		captureAgain(t, m)
	})
}
