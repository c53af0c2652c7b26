package coldplug

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/internal/testenv"
	"overmount/kmod"
)

// q35 returns a made-up machine.
func q35(tb testing.TB) *Machine {
	tb.Helper()
	f, err := os.Open("testdata/q35.capture")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	m, err := ReadCapture(f)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// A modprobe is the packaged one, looking at a real kernel with a configuration of
// the test's own.
type modprobe struct {
	path, dir, conf string
	tree            *kmod.Tree
}

func newModprobe(t *testing.T, conf string) modprobe {
	t.Helper()
	m := modprobe{path: "/usr/sbin/modprobe", dir: testenv.Kernel(t), conf: t.TempDir()}
	if _, err := os.Stat(m.path); err != nil {
		m.path = testenv.Tool(t, "modprobe")
	}
	write(t, filepath.Join(m.conf, "test.conf"), conf)
	var err error
	if m.tree, err = kmod.OpenTree(os.DirFS(m.dir)); err != nil {
		t.Fatal(err)
	}
	return m
}

// lines returns what modprobe -b would do for a modalias that may be unknown.
func (m modprobe) lines(t *testing.T, modalias string) []string {
	t.Helper()
	root, kver, ok := strings.Cut(m.dir, "/lib/modules/")
	if !ok {
		t.Fatalf("%s is not a directory lib/modules/KVER", m.dir)
	}
	cmd := exec.CommandContext(t.Context(), m.path, "-b", "--show-depends", "-a", "-q", "-C", m.conf, "-d", root, "-S", kver, "--", modalias)
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return slices.Collect(strings.FieldsFuncSeq(string(out), func(r rune) bool { return r == '\n' }))
}

func (m modprobe) planner(t *testing.T, o *Options) *Planner {
	t.Helper()
	config, err := kmod.ReadConfig(os.DirFS(m.conf), ".")
	if err != nil {
		t.Fatal(err)
	}
	cmdline, err := os.ReadFile("/proc/cmdline") // which modprobe reads
	if err != nil {
		t.Fatal(err)
	}
	config.AddCommandLine(string(cmdline))
	return New(m.tree, config, FromFiles(os.DirFS(m.dir)), o)
}

// planLines are the modules of a plan as modprobe --show-depends has them.
func (m modprobe) planLines(p *Plan) []string {
	var lines []string
	for _, x := range p.Modules {
		lines = append(lines, x.Line(m.dir))
	}
	return lines
}

// The plan is what modprobe -b would do for one modalias after the other, without
// what comes again; and the plan for one modalias what it would do for that.
func TestPlanIsModprobe(t *testing.T) {
	for name, conf := range map[string]string{
		"alone": "",
		"with configuration": `
alias pci:v00001B36d00000011* dummy
alias virtio:d00000003* nosuch
softdep e1000e pre: crc-itu-t post: dummy
softdep nvme pre: e1000e
softdep ahci post: nosuch mii
options e1000e InterruptThrottleRate=3000 copybreak=256
options libata force=a
options snd_hda_intel   power_save=1
blacklist pcspkr
blacklist radeon
blacklist ttm
install megaraid-sas /bin/megaraid $CMDLINE_OPTS
install libcrc32c /bin/true
`,
	} {
		t.Run(name, func(t *testing.T) {
			modprobe := newModprobe(t, conf)
			m := q35(t)
			plan := modprobe.planner(t, nil).Plan(m.Devices)
			check(t, plan)
			if len(plan.Problems) > 0 {
				t.Errorf("Problems = %v", plan.Problems)
			}
			var want []string
			seen := map[string]bool{}
			for _, r := range plan.Requests {
				var alone []string
				for _, line := range modprobe.lines(t, r.Modalias) {
					if strings.HasPrefix(line, "builtin ") || slices.Contains(alone, line) {
						continue
					}
					alone = append(alone, line)
					if !seen[line] {
						want = append(want, line)
					}
					seen[line] = true
				}
				one := modprobe.planner(t, nil).Plan([]Device{{"devices/x", r.Modalias}})
				if diff := cmp.Diff(alone, modprobe.planLines(one)); diff != "" {
					t.Errorf("plan for %s (-modprobe +plan):\n%s", r.Modalias, diff)
				}
			}
			if diff := cmp.Diff(want, modprobe.planLines(plan)); diff != "" {
				t.Errorf("plan for all (-modprobe +plan):\n%s", diff)
			}
			if len(want) < 60 {
				t.Errorf("modprobe does only %d things: %q", len(want), want)
			}
		})
	}
}

// What matters most is there, in the machine as it is after stage 1.
func TestPlanOfQ35(t *testing.T) {
	m := q35(t)
	plan := newModprobe(t, "blacklist radeon").planner(t, &Options{Loaded: m.Loaded}).Plan(m.Devices)
	check(t, plan)
	outcomes := map[string]string{}
	for _, r := range plan.Requests {
		for _, m := range r.Matches {
			outcomes[m.Module] = fmt.Sprint(m.Outcome)
			if m.CatchAll {
				outcomes[m.Module] += " catch-all"
			}
		}
	}
	for module, want := range map[string]string{
		"e1000e": "planned", "nvme": "planned", "megaraid_sas": "planned", "mptsas": "planned", "vmxnet3": "planned", "e100": "planned",
		"snd_hda_intel": "planned", "xhci_pci": "planned catch-all", "bochs": "planned", "i6300esb": "planned", "usbhid": "planned catch-all",
		"ahci": "planned", "sd_mod": "planned", "amdgpu": "planned", "radeon": "blacklisted", "virtio_net": "known", "virtio_pci": "known catch-all",
		"virtio_blk": "planned", "mmc_block": "planned", "mlx5_ib": "planned", "iwlwifi": "planned", "aesni_intel": "planned",
	} {
		if outcomes[module] != want {
			t.Errorf("%s is %q, want %q", module, outcomes[module], want)
		}
	}
}

// Whatever the devices are, and in how many calls they come: each module is planned
// once, after all that it needs.
func TestPlanOfAnything(t *testing.T) {
	modprobe := newModprobe(t, "softdep *fs pre: nls_utf8 post: ext4\nsoftdep nls_utf8 post: ext4\ninstall *hid /bin/true\nblacklist iwlwifi\n")
	devices := filledIn(t, modprobe.dir, 1000)
	for i := range 4 {
		some := devices[i*250 : (i+1)*250]
		once, parts := modprobe.planner(t, nil), modprobe.planner(t, nil)
		once.source, parts.source = noFacts{}, noFacts{}
		whole := once.Plan(some)
		check(t, whole)
		planned := map[string]bool{}
		for part := range slices.Chunk(some, 1+5*i*i) {
			p := parts.Plan(part)
			check(t, p)
			for _, m := range p.Modules {
				for _, need := range parts.needs(m.Module) {
					if !planned[need] {
						t.Errorf("%s comes before %s, which it needs", m.Module, need)
					}
				}
				if planned[m.Module] {
					t.Errorf("%s is planned again", m.Module)
				}
				planned[m.Module] = true
			}
		}
		for _, m := range whole.Modules {
			if !planned[m.Module] {
				t.Errorf("%s is not planned in parts", m.Module)
			}
			for k, need := range parts.needs(m.Module) {
				if !slices.ContainsFunc(m.Needs, func(i int) bool { return whole.Modules[i].Module == need }) {
					t.Errorf("Needs of %s lack number %d, %s", m.Module, k, need)
				}
			}
		}
		if len(planned) != len(whole.Modules) || len(planned) < 50 {
			t.Errorf("%d modules in parts, %d at once", len(planned), len(whole.Modules))
		}
	}
}

// filledIn returns n devices that patterns of a kernel's modules match.
func filledIn(tb testing.TB, dir string, n int) []Device {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "modules.alias"))
	if err != nil {
		tb.Fatal(err)
	}
	aliases, err := kmod.ParseAliases(text)
	if err != nil {
		tb.Fatal(err)
	}
	fill := strings.NewReplacer("*", "00001AF4", "?", "0", "[", "", "]", "")
	var devices []Device
	for i := range n {
		devices = append(devices, Device{fmt.Sprint("devices/x/", i), fill.Replace(aliases[i*97%len(aliases)].Pattern)})
	}
	return devices
}

// BenchmarkPlan plans for 200 modaliases: those of q35, and some that patterns of the
// kernel's modules match.
func BenchmarkPlan(b *testing.B) {
	dir := testenv.Kernel(b)
	tree, err := kmod.OpenTree(os.DirFS(dir))
	if err != nil {
		b.Fatal(err)
	}
	devices := q35(b).Devices
	devices = append(devices, filledIn(b, dir, 200-len(devices))...)
	var modules int
	for b.Loop() {
		modules = len(New(tree, nil, noFacts{}, nil).Plan(devices).Modules)
	}
	b.ReportMetric(float64(modules), "modules")
}

// BenchmarkOpenTree is what comes before.
func BenchmarkOpenTree(b *testing.B) {
	fsys := os.DirFS(testenv.Kernel(b))
	for b.Loop() {
		if _, err := kmod.OpenTree(fsys); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkScan(b *testing.B) {
	var devices int
	for b.Loop() {
		m, err := Scan(os.DirFS("/sys"))
		if err != nil {
			b.Fatal(err)
		}
		devices = len(m.Devices)
	}
	b.ReportMetric(float64(devices), "modaliases")
}

type noFacts struct{}

func (noFacts) Facts(string) (Facts, error) { return Facts{}, nil }
