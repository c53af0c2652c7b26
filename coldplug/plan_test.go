package coldplug

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"overmount/depmod"
	"overmount/firmware"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

const kver = "6.1.0-test"

// A planCase is a file testdata/plan/*.txtar: a root file system with lib/modules,
// whose modules are the texts of kmodtest.Parse, modprobe.d, sys, firmware; the
// kernel's command line; and the plan as show writes it.
type planCase struct {
	dir, want, cmdline string
}

func loadPlanCase(t *testing.T, file string) planCase {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := planCase{dir: t.TempDir()}
	for _, f := range archive.Files {
		switch {
		case f.Name == "want":
			c.want = string(f.Data)
		case f.Name == "cmdline":
			c.cmdline = string(f.Data)
		case kmod.Suffix(f.Name) != "":
			kmodtest.WriteText(t, c.dir, f.Name, string(f.Data))
		default:
			write(t, filepath.Join(c.dir, f.Name), string(f.Data))
		}
	}
	index(t, filepath.Join(c.dir, "lib/modules", kver))
	return c
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// index writes the indexes of a tree.
func index(t *testing.T, dir string) {
	t.Helper()
	r, err := depmod.Build(t.Context(), os.DirFS(dir), nil)
	if err == nil {
		err = r.Write(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (c planCase) planner(t *testing.T, m *Machine, o *Options) *Planner {
	t.Helper()
	modules := os.DirFS(filepath.Join(c.dir, "lib/modules", kver))
	tree, err := kmod.OpenTree(modules)
	if err != nil {
		t.Fatal(err)
	}
	config, err := kmod.ReadConfig(os.DirFS(c.dir), "modprobe.d")
	if err != nil {
		t.Fatal(err)
	}
	config.AddCommandLine(c.cmdline)
	o.Loaded, o.Refused = m.Loaded, kmod.Refused(c.cmdline)
	o.Firmware = firmware.New(os.DirFS(filepath.Join(c.dir, "firmware")), kver)
	return New(tree, config, FromFiles(modules), o)
}

// show writes a plan for people who read tests. Sizes of modules are left out.
func show(p *Plan) string {
	var b strings.Builder
	for _, m := range p.Modules {
		fmt.Fprintf(&b, "%s %s %v of %v needs %v after %v", m.Kind, m.Module, m.Reason, m.Requests, m.Needs, m.After)
		if m.CatchAll {
			b.WriteString(" catch-all")
		}
		for _, s := range []string{m.Options, m.Command} {
			if s != "" {
				fmt.Fprintf(&b, " %q", s)
			}
		}
		b.WriteString("\n")
	}
	for _, f := range p.Firmware {
		fmt.Fprintf(&b, "firmware %s as %s, %d bytes, for %v\n", f.Name, f.Path, f.Size, f.Modules)
	}
	for _, o := range p.Omitted {
		fmt.Fprintf(&b, "omitted of %d: %q %v, %d files, %d bytes\n", o.Module, o.Names, o.Why, o.Files, o.Bytes)
	}
	for i, r := range p.Requests {
		fmt.Fprintf(&b, "request %d: %s of %s:", i, r.Modalias, strings.Join(r.Devices, " "))
		for _, m := range r.Matches {
			fmt.Fprintf(&b, " %s %v", m.Module, m.Outcome)
			if m.CatchAll {
				b.WriteString(" (catch-all)")
			}
		}
		b.WriteString("\n")
	}
	for _, err := range p.Problems {
		fmt.Fprintf(&b, "problem: %v\n", err)
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	files, err := filepath.Glob("testdata/plan/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			c := loadPlanCase(t, file)
			m, err := Scan(os.DirFS(filepath.Join(c.dir, "sys")))
			if err != nil || len(m.Warnings) > 0 {
				t.Fatal(err, m.Warnings)
			}
			p := c.planner(t, m, &Options{CapBytes: 20}).Plan(m.Devices)
			check(t, p)
			if diff := cmp.Diff(c.want, show(p)); diff != "" {
				t.Errorf("%s: Plan (-want +got):\n%s\nall of it:\n%s", file, diff, show(p))
			}
			for _, m := range p.Modules {
				if info, err := os.Stat(filepath.Join(c.dir, "lib/modules", kver, m.Path)); m.Kind == kmod.Insmod && (err != nil || info.Size() != m.Size) {
					t.Errorf("size of %s = %d, want %v, %v", m.Module, m.Size, info, err)
				}
			}
		})
	}
}

// check checks what holds for each plan.
func check(t *testing.T, p *Plan) {
	t.Helper()
	at := map[string]int{}
	for i, m := range p.Modules {
		if _, ok := at[m.Module]; ok {
			t.Errorf("%s is in the plan twice", m.Module)
		}
		at[m.Module] = i
		for _, k := range slices.Concat(m.Needs, m.After) {
			if k >= i {
				t.Errorf("%s, at %d, waits for %d", m.Module, i, k)
			}
		}
		if len(m.Requests) == 0 || !slices.IsSorted(m.Requests) {
			t.Errorf("%s is for requests %v", m.Module, m.Requests)
		}
	}
	for i, r := range p.Requests {
		for _, m := range r.Matches {
			k, ok := at[m.Module]
			if planned := m.Outcome == Planned; planned != (ok && slices.Contains(p.Modules[k].Requests, i)) {
				t.Errorf("%s: match %+v, and in the plan: %v", r.Modalias, m, !planned)
			}
		}
	}
}

// A Planner that is given one device after the other plans the same modules and
// files as for all at once, each once.
func TestPlanOneByOne(t *testing.T) {
	c := loadPlanCase(t, "testdata/plan/everything.txtar")
	m, err := Scan(os.DirFS(filepath.Join(c.dir, "sys")))
	if err != nil {
		t.Fatal(err)
	}
	whole := c.planner(t, m, &Options{}).Plan(m.Devices)
	one := c.planner(t, m, &Options{})
	var modules, files, wantModules, wantFiles []string
	for _, d := range m.Devices {
		p := one.Plan([]Device{d})
		check(t, p)
		for _, m := range p.Modules {
			modules = append(modules, m.Module)
		}
		for _, f := range p.Firmware {
			files = append(files, f.Path)
		}
	}
	for _, m := range whole.Modules {
		wantModules = append(wantModules, m.Module)
	}
	for _, f := range whole.Firmware {
		wantFiles = append(wantFiles, f.Path)
	}
	slices.Sort(modules)
	slices.Sort(wantModules)
	if diff := cmp.Diff(wantModules, modules); diff != "" {
		t.Errorf("modules planned one by one (-all at once +one by one):\n%s", diff)
	}
	slices.Sort(files)
	slices.Sort(wantFiles)
	if diff := cmp.Diff(wantFiles, files); diff != "" {
		t.Errorf("firmware planned one by one (-all at once +one by one):\n%s", diff)
	}
	if again := one.Plan(m.Devices); len(again.Modules)+len(again.Firmware) > 0 {
		t.Errorf("planned again: %s", show(again))
	}
}

func TestPlanWithoutCap(t *testing.T) {
	c := loadPlanCase(t, "testdata/plan/everything.txtar")
	devices := []Device{{"devices/a", "pci:v00001002d00005159sv00001AF4sd00001100bc03sc00i00"}}
	for _, test := range []struct {
		files       int
		bytes       int64
		want, omits int
	}{
		{0, 0, 1, 1}, {-1, -1, 6, 0}, {5, 41, 6, 0}, {4, 41, 1, 1}, {5, 40, 5, 1},
	} {
		p := c.planner(t, &Machine{}, &Options{CapFiles: test.files, CapBytes: test.bytes}).Plan(devices)
		if len(p.Firmware) != test.want || len(p.Omitted) != test.omits {
			t.Errorf("cap of %d files and %d bytes: %d planned, %d omitted, want %d and %d\n%s", test.files, test.bytes, len(p.Firmware), len(p.Omitted), test.want, test.omits, show(p))
		}
	}
}

// What is not there is a problem of its own, and no reason to plan nothing.
func TestPlanOfDamagedTree(t *testing.T) {
	c := loadPlanCase(t, "testdata/plan/everything.txtar")
	if err := os.Remove(filepath.Join(c.dir, "lib/modules", kver, "kernel/base.ko")); err != nil {
		t.Fatal(err)
	}
	m := &Machine{Devices: []Device{{"devices/a", "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00"}}}
	p := c.planner(t, m, &Options{}).Plan(m.Devices)
	check(t, p)
	if len(p.Modules) != 6 || len(p.Problems) != 1 || !strings.Contains(p.Problems[0].Error(), "module base: ") {
		t.Errorf("plan with a module whose file is missing:\n%s\nwant 6 modules and one problem", show(p))
	}
}

func TestCatchAll(t *testing.T) {
	for pattern, want := range map[string]bool{
		"pci:v00008086d000010D3sv*sd*bc*sc*i*":     false,
		"pci:v00001002d*sv*sd*bc03sc00i00*":        true,
		"pci:v*d*sv*sd*bc01sc08i02*":               true,
		"pci:v*d0000[12]*sv*sd*bc*sc*i*":           false,
		"usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*":     true,
		"usb:v0BDAp8153d*dc*dsc*dp*icFFisc*ip*in*": false,
		"usb:v0BDAp815*d*":                         false,
		"hid:b0003g*v*p*":                          true,
		"hid:b0003g*v0000046Dp0000C52B":            false,
		"input:b*v*p*e*_e*3,*k*r*a*m*l*s*f*w*":     true,
		"sdio:c*v02D0d4329*":                       false,
		"virtio:d00000001v*":                       false,
		"acpi*:PNP0C0C:*":                          false,
		"cpu:type:x86,ven*fam*mod*:feature:*0081*": false,
		"dmi*:svnAcme:*":                           false,
		"pci:":                                     false,
		"pci:v":                                    false,
		"pci:00":                                   false,
		"":                                         false,
		"e1000e":                                   false,
	} {
		if got := isCatchAll(pattern); got != want {
			t.Errorf("isCatchAll(%q) = %v, want %v", pattern, got, want)
		}
	}
}

// Where modules.dep.bin makes no sense, only the devices that need it get nothing.
func TestPlanOfDamagedIndex(t *testing.T) {
	c := loadPlanCase(t, "testdata/plan/everything.txtar")
	var b kmod.IndexBuilder
	for key, value := range map[string]string{"net_card": "../net-card.ko:", "net_any": "kernel/net-any.ko:", "rdma": "kernel/rdma.ko:"} {
		if _, err := b.Insert(key, value, 0); err != nil {
			t.Fatal(err)
		}
	}
	index, err := b.Bytes(kmod.Kmod34)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(c.dir, "lib/modules", kver, "modules.dep.bin"), string(index))
	m := &Machine{Devices: []Device{{"devices/a", "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00"}, {"devices/b", "auxiliary:card.rdma"}}}
	p := c.planner(t, m, &Options{}).Plan(m.Devices)
	check(t, p)
	if len(p.Modules) != 1 || p.Modules[0].Module != "rdma" || len(p.Problems) != 1 || !strings.Contains(p.Problems[0].Error(), "net_card needs ") {
		t.Errorf("plan with a damaged index:\n%s\nwant only rdma, and one problem", show(p))
	}
}
