package vm_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"overmount/boot"
	"overmount/bootpack"
	"overmount/internal/testenv"
	"overmount/test/vm"
)

// A method is a way to have a machine's drivers loaded.
type method struct {
	id    string // for the guest, too
	name  string
	image string // need: what is needed is inside; boot: as it should be
	args  string // for the kernel's command line
	packs bool   // boot packs are there
}

// local reports whether nothing comes over the network, whose length then is of no
// matter.
func (m *method) local() bool { return m.image == "need" }

// methods are what is compared. The first is what the others cannot reach: nothing
// has to be fetched.
func methods() []method {
	return []method{
		{id: "local-udev", name: "needed files in the image, udevd", image: "need", args: "bench.udev=1"},
		{id: "local-own", name: "needed files in the image, own coldplug", image: "need"},
		{id: "lazy-udev", name: "on demand, udevd", image: "boot", args: "bench.udev=1 overmount.prefetch=none overmount.coldplug=udev"},
		{id: "plan-udev", name: "plan, udevd", image: "boot", args: "bench.udev=1 overmount.prefetch=plan overmount.coldplug=udev"},
		{id: "lazy-own", name: "on demand, own coldplug", image: "boot", args: "overmount.prefetch=none overmount.coldplug=own"},
		{id: "plan-own", name: "plan, own coldplug", image: "boot", args: "overmount.prefetch=plan overmount.coldplug=own"},
		{id: "pack-udev", name: "boot pack, udevd", image: "boot", args: "bench.udev=1 overmount.coldplug=udev", packs: true},
		{id: "pack-own", name: "boot pack, own coldplug", image: "boot", args: "overmount.coldplug=own", packs: true},
	}
}

// chosen reports whether the method is to be timed.
func (m *method) chosen() bool {
	list := os.Getenv("OVERMOUNT_BENCH_METHODS")
	return list == "" || slices.Contains(strings.Split(list, ","), m.id)
}

// A figure is what one boot gave: a line of JSON.
type figure struct {
	Method  string  `json:"method"` // its id
	RTT     int     `json:"rtt_ms"`
	Run     int     `json:"run"`
	Bound   float64 `json:"bound_s"` // from the network to the last driver, in the guest's time
	Ended   float64 `json:"ended_s"` // to the end of the command, which may be before
	Devices int     `json:"devices"` // on the bus, that have their driver
	Modules int     `json:"modules"` // loaded
	Objects int     `json:"objects"`
	Body    int64   `json:"body_bytes"` // of all answers
	Wire    int64   `json:"wire_bytes"` // that the guest's card received
	Wall    float64 `json:"wall_s"`

	Report *boot.Report `json:"report,omitempty"`

	s *counter
}

// A bench times boots.
type bench struct {
	t                *testing.T
	vmlinuz, modules string
	firmware         string
	program          string
	depot            *depot
	packs            string // directory with the boot packs
	images           map[string]string
	stage1           []string // modules of the image
	loaded           int      // modules in the end, according to the first boot
	sizes            []imageSize

	mu      sync.Mutex
	figures []figure
}

type imageSize struct {
	Image   string `json:"image"`
	Bytes   int64  `json:"bytes"`
	Modules int    `json:"modules"`
}

// TestBootTimes times boots of a machine whose clock counts instructions, over lines
// of several lengths: "make bench-boot". OVERMOUNT_BENCH_BOOT is how many boots of each kind;
// without it the test is skipped. OVERMOUNT_BENCH_METHODS and OVERMOUNT_BENCH_RTTS choose
// some, by lists with commas of the methods' ids and of milliseconds. What comes out goes to the
// directory of OVERMOUNT_BENCH_OUT: a table, and lines of JSON.
func TestBootTimes(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("OVERMOUNT_BENCH_BOOT"))
	if err != nil || runs < 1 {
		t.Skip("OVERMOUNT_BENCH_BOOT=N times N boots of each kind, which takes some 20 minutes")
	}
	rtts := roundTrips(t)
	b := newBench(t)
	t.Run("boot", func(t *testing.T) {
		for run := range runs {
			for _, m := range methods() {
				for _, rtt := range rtts {
					if m.local() && rtt != rtts[0] || !m.chosen() {
						continue
					}
					t.Run(fmt.Sprintf("%s/%dms", m.id, rtt), func(t *testing.T) {
						t.Parallel() // the clocks do not mind
						b.add(b.boot(t, m, rtt, run))
					})
				}
			}
		}
	})
	b.addSizes()
	b.publish(rtts)
}

// roundTrips are the lengths of the line, in milliseconds.
func roundTrips(t *testing.T) (rtts []int) {
	t.Helper()
	list := os.Getenv("OVERMOUNT_BENCH_RTTS")
	if list == "" {
		return []int{0, 20, 80}
	}
	for text := range strings.SplitSeq(list, ",") {
		ms, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("OVERMOUNT_BENCH_RTTS: %v", err)
		}
		rtts = append(rtts, ms)
	}
	return rtts
}

// publish writes what came out.
func (b *bench) publish(rtts []int) {
	b.t.Helper()
	text := table(b.figures, rtts) + b.sizeTable()
	b.t.Logf("boots:\n%s", text)
	dir := os.Getenv("OVERMOUNT_BENCH_OUT")
	if dir == "" {
		return
	}
	var lines bytes.Buffer
	out := json.NewEncoder(&lines)
	for _, f := range b.figures {
		if err := out.Encode(f); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, s := range b.sizes {
		if err := out.Encode(s); err != nil {
			b.t.Fatal(err)
		}
	}
	vm.WriteFile(b.t, filepath.Join(dir, "bench-boot.md"), []byte(text))
	vm.WriteFile(b.t, filepath.Join(dir, "bench-boot.jsonl"), lines.Bytes())
}

// newBench packs, and makes the image that is booted.
func newBench(t *testing.T) *bench {
	t.Helper()
	testenv.Root(t, "a network of its own")
	for _, tool := range []string{"qemu-system-x86_64", "udevadm", "busybox", "tc", "ip", "depmod"} {
		testenv.Tool(t, tool)
	}
	b := &bench{t: t, program: overmount(t), packs: t.TempDir(), images: map[string]string{}}
	b.vmlinuz, b.modules = vm.Kernel(t)
	b.firmware = vm.Firmware(t, vm.Devices(t))
	b.depot = newDepot(t, b.modules, b.firmware)
	b.stage1 = b.image("boot", b.modules, b.forGuest("virtio,sch_netem")...)
	b.record()
	return b
}

// image makes an image, and returns the names of the modules that are in it, by
// their paths in lib/modules/KVER.
func (b *bench) image(name, modules string, args ...string) (paths []string) {
	b.t.Helper()
	img := filepath.Join(b.t.TempDir(), "boot.img")
	args = append([]string{"initramfs", "--json", "-m", modules, "--busybox", testenv.Tool(b.t, "busybox"), "-o", img}, args...)
	cmd := exec.Command(b.program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("make the image %s: %v\n%s", name, err, stderr.Bytes())
	}
	var made struct {
		Bytes   int64
		Modules []struct{ Path string }
	}
	if err := json.Unmarshal(text, &made); err != nil {
		b.t.Fatal(err)
	}
	for _, m := range made.Modules {
		paths = append(paths, m.Path)
	}
	b.images[name] = img
	b.sizes = append(b.sizes, imageSize{name, made.Bytes, len(paths)})
	return paths
}

// forGuest are the arguments for the image of a timed guest, with tc.
func (b *bench) forGuest(stage1 string) []string {
	b.t.Helper()
	return []string{"--stage1", stage1, "--udev", "--init", "testdata/bench-guest.sh", "--program", testenv.Tool(b.t, "tc") + ":/sbin/tc"}
}

// record boots once to see what is needed, makes boot packs of that, and an image
// with all of it inside.
func (b *bench) record() {
	b.t.Helper()
	f := b.boot(b.t, method{
		id: "record", name: "record", image: "boot",
		args: "bench.udev=1 overmount.prefetch=none overmount.coldplug=udev overmount.record=/run/record",
	}, 0, 0)
	b.loaded = f.Modules
	c := newCable(b.t)
	_, stop := serve(c, b.depot, "")
	defer stop()
	modules := b.profile(c, "modules", f.s.post("modules"))
	firmware := b.profile(c, "firmware", f.s.post("firmware"))

	root := b.t.TempDir()
	need := filepath.Join(root, "lib/modules", b.depot.kver)
	b.copy(b.modules, need, append(modules, b.stage1...))
	b.copy(b.modules, need, []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"})
	if out, err := exec.Command("depmod", "-b", root, b.depot.kver).CombinedOutput(); err != nil {
		b.t.Fatalf("depmod: %v\n%s", err, out)
	}
	b.copy(b.firmware, filepath.Join(root, "lib/firmware"), firmware)
	b.image("need", need, append(b.forGuest("kernel/"), "--include", filepath.Join(root, "lib/firmware")+":/lib/firmware")...)
}

// profile makes a boot pack of a record, beside the manifest, and returns the files
// that the record has.
func (b *bench) profile(c *cable, kind string, record []byte) (files []string) {
	b.t.Helper()
	accesses, _, err := bootpack.ReadRecord(bytes.NewReader(record))
	if err != nil {
		b.t.Fatalf("the record of the %s: %v", kind, err)
	}
	for _, a := range accesses {
		files = append(files, strings.TrimPrefix(a.Path, "/"))
	}
	slices.Sort(files)
	files = slices.Compact(files)
	name := filepath.Join(b.t.TempDir(), kind+".record")
	vm.WriteFile(b.t, name, record)
	cmd := exec.Command(b.program, "profile", "-m", "http://"+benchHost+"/"+filepath.Base(b.depot.manifest(kind)), "-r", name)
	cmd.Dir = b.packs
	var out []byte
	c.inside(func() { out, err = cmd.CombinedOutput() })
	if err != nil {
		b.t.Fatalf("make a boot pack of the %s: %v\n%s", kind, err, out)
	}
	b.t.Logf("%d %s were read: %s", len(files), kind, out)
	return files
}

// copy copies files from one directory to another.
func (b *bench) copy(from, to string, files []string) {
	b.t.Helper()
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			b.t.Fatal(err)
		}
		vm.WriteFile(b.t, filepath.Join(to, name), data)
	}
}

// boot boots once.
func (b *bench) boot(t *testing.T, m method, rtt, run int) figure {
	t.Helper()
	devices := vm.Devices(t)
	// The descriptor of the TAP.
	devices[0].Args = append([]string{"-netdev", "tap,id=n0,fd=4"}, devices[0].Args[2:]...)
	packs := ""
	if m.packs {
		packs = b.packs
	}
	c := newCable(t)
	s, stop := serve(c, b.depot, packs)
	defer stop()
	machine := vm.Start(t, vm.Options{
		Kernel: b.vmlinuz, Initrd: b.images[m.image], Devices: devices, Memory: 1024, Limit: 10 * time.Minute,
		// A processor of today, whose instructions for AES count as one, too.
		Counted: true, Processor: "max", Files: []*os.File{c.tap},
		Cmdline: fmt.Sprintf("bench.how=%s bench.rtt=%d bench.modules=%d "+
			"overmount.modules=http://%s/modules-{kver}.fl.zst overmount.firmware=http://%s/firmware.fl.zst %s", m.id, rtt, b.loaded, benchHost, benchHost, m.args),
	})
	machine.End()
	f := figure{Method: m.id, RTT: rtt, Run: run, Wall: machine.Age().Seconds(), s: s}
	f.Objects, f.Body = s.objects()
	f.read(t, devices, s.report())
	if n := s.packed(); m.packs && n != 2 {
		t.Errorf("%d boot packs were fetched, want those of both mounts", n)
	}
	t.Logf("%.2f s (the command %.2f s), %d modules, %d of %d devices, %d objects, %d bytes, %.0f s of the host", f.Bound, f.Ended, f.Modules, f.Devices, len(devices), f.Objects, f.Wire, f.Wall)
	return f
}

// add keeps a figure.
func (b *bench) add(f figure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.figures = append(b.figures, f)
}

// read takes the figures from a report.
func (f *figure) read(t *testing.T, devices []vm.Device, r vm.Report) {
	t.Helper()
	for _, line := range slices.Concat(r["log"], r["ping"], r["cpu"]) {
		t.Log(line)
	}
	// That a module was refused, as acpi_cpufreq is by this machine, is 3.
	if ended := r.One("ended"); ended != "0" && ended != "3" {
		t.Errorf("the command ended with %q", ended)
	}
	number := func(word string) float64 {
		x, err := strconv.ParseFloat(r.One(word), 64)
		if err != nil {
			t.Errorf("the guest reports %s %q", word, r.One(word))
		}
		return x
	}
	f.Bound = number("time:bound") - number("time:online")
	f.Ended = number("time:ended") - number("time:online")
	f.Wire = int64(number("received"))
	if ms := number("ping"); ms < float64(f.RTT) || ms > float64(f.RTT)+10 {
		t.Errorf("the line has a round trip of %v ms, want %d", ms, f.RTT)
	}
	f.Modules = len(r["loaded"])
	for _, d := range devices {
		if r.Has("bound", d.Slot+" "+d.Driver) {
			f.Devices++
		} else {
			t.Errorf("%s has no driver %s", d.Slot, d.Driver)
		}
	}
	if text := r.One("report"); text != "" {
		var report boot.Report
		if err := json.Unmarshal([]byte(text), &report); err != nil {
			t.Errorf("the report of the boot: %v", err)
		}
		f.Report = &report
	}
}

// table is the median of each kind of boot.
func table(figures []figure, rtts []int) string {
	var out strings.Builder
	fmt.Fprint(&out, "| method |")
	for _, rtt := range rtts {
		fmt.Fprintf(&out, " %d ms |", rtt)
	}
	fmt.Fprint(&out, " objects | received |\n| --- |"+strings.Repeat(" --- |", len(rtts)+2)+"\n")
	for _, m := range methods() {
		var last *figure
		line := "| " + m.name + " |"
		for _, rtt := range rtts {
			var times []float64
			for i, f := range figures {
				if f.Method == m.id && f.RTT == rtt {
					times = append(times, f.Bound)
					last = &figures[i]
				}
			}
			if len(times) == 0 {
				line += " |"
				continue
			}
			line += " " + spread(times) + " |"
		}
		if last != nil {
			fmt.Fprintf(&out, "%s %d | %.2f MB |\n", line, last.Objects, float64(last.Wire)/1e6)
		}
	}
	return out.String()
}

// spread is the median of some seconds, and where they lie.
func spread(times []float64) string {
	slices.Sort(times)
	median := fmt.Sprintf("%.2f", times[len(times)/2])
	if len(times) == 1 {
		return median
	}
	return fmt.Sprintf("%s (%.2f – %.2f)", median, times[0], times[len(times)-1])
}

// addSizes makes the images that are not booted.
func (b *bench) addSizes() {
	b.t.Helper()
	for _, set := range []string{"virtio", "vm", "server", "all-ethernet"} {
		b.image(set, b.modules, "--stage1", set)
		if set == "virtio" {
			b.image("virtio, udev and kmod", b.modules, "--stage1", set, "--udev")
		}
	}
}

func (b *bench) sizeTable() string {
	var out strings.Builder
	fmt.Fprint(&out, "\n| image | modules | bytes |\n| --- | --- | --- |\n")
	for _, s := range b.sizes {
		fmt.Fprintf(&out, "| %s | %d | %.1f MB |\n", s.Image, s.Modules, float64(s.Bytes)/1e6)
	}
	return out.String()
}
