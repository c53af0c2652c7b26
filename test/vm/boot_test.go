package vm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"overmount/boot"
	"overmount/internal/testenv"
	"overmount/store/storetest"
	"overmount/test/vm"
)

// blob is a firmware of a few blocks' pages, whose bytes the guest sums.
func blob(seed byte) []byte {
	b := make([]byte, 20_001)
	for i := range b {
		b[i] = byte(i*i>>3) ^ seed
	}
	return b
}

// A loader is who loads drivers in the guest.
type loader string

const (
	udev    loader = "udev"    // and kmod; the test starts "overmount boot"
	own     loader = "own"     // overmount; the image's own /init starts it
	handed  loader = "handed"  // udev; the image's own /init starts it, and "overmount boot", and hands over
	systemd loader = "systemd" // with its udev; our unit starts "overmount boot"
)

// pubkey is where the image has the key of the manifests.
const pubkey = "/etc/overmount/keys/lab.pub"

// script is what the guest does.
const script = "testdata/guest.sh"

// guest is an image with a guest that does what the command line says.
func (l *lab) guest(t *testing.T, who loader) string {
	t.Helper()
	if info, err := os.Stat(script); err != nil || info.Mode()&0o111 == 0 {
		t.Fatalf("%s: %v, want a file that can be executed", script, err)
	}
	dir := t.TempDir()
	vm.WriteFile(t, filepath.Join(dir, "lab.pub"), l.key.Public().Encode())
	vm.WriteFile(t, filepath.Join(dir, "stage1.bin"), blob(4))
	config := fmt.Sprintf("base = %q\npubkey = %q\nmodules-serial = %d\nprefetch = \"plan\"\nload = [\"test_firmware\"]\n", l.url(), pubkey, serial)
	vm.WriteFile(t, filepath.Join(dir, "boot.toml"), []byte(config))
	img := filepath.Join(dir, "boot.img")
	args := []string{
		"initramfs", "-m", l.modulesDir, "--stage1", "virtio", "--busybox", testenv.Tool(t, "busybox"), "--key", filepath.Join(dir, "lab.pub"),
		"--include", filepath.Join(dir, "stage1.bin") + ":/lib/overmount/firmware/labtest/stage1.bin", "-o", img,
	}
	switch who {
	case udev:
		args = append(args, "--udev", "--include", script+":/etc/overmount/start", "--include", script+":/sbin/init")
	case own, handed:
		if who == handed {
			args = append(args, "--udev")
		}
		// It has no other way in before "overmount boot" than that of the network.
		args = append(args, "--config", filepath.Join(dir, "boot.toml"), "--include", script+":/sbin/init",
			"--include", script+":/usr/share/udhcpc/default.script", "--include", "../../initramfs/udhcpc.sh:/usr/share/udhcpc/plain.script")
	case systemd:
		args = append(args, "--config", filepath.Join(dir, "boot.toml"), "--udev", "--include", script+":/sbin/lab")
		args = append(args, withSystemd(t)...)
	}
	out, err := exec.Command(l.program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("make the image: %v\n%s", err, out)
	}
	t.Logf("the image:\n%s", out)
	return img
}

// lab is a host and what a guest on it needs.
type lab struct {
	*host
	vmlinuz, modulesDir, program string
	devices                      []vm.Device
	images                       map[loader]string
	cpus                         int // of the guest, if not the usual number
}

// newLab packs.
func newLab(t *testing.T) *lab {
	t.Helper()
	testenv.Tool(t, "qemu-system-x86_64")
	testenv.Tool(t, "udevadm")
	l := &lab{devices: vm.Devices(t), images: map[loader]string{}}
	l.vmlinuz, l.modulesDir = vm.Kernel(t)
	firmware := vm.Firmware(t, l.devices)
	vm.WriteFile(t, filepath.Join(firmware, "labtest/blob.bin"), blob(1))
	vm.WriteFile(t, filepath.Join(firmware, "labtest/late.bin"), blob(2))
	vm.WriteFile(t, filepath.Join(firmware, "ath3k-1.fw"), blob(3))
	vm.WriteFile(t, filepath.Join(firmware, "BCM2033-MD.hex"), blob(5))
	vm.WriteFile(t, filepath.Join(firmware, "BCM2033-FW.bin"), blob(6))
	start := time.Now()
	l.host = newHost(t, l.modulesDir, firmware)
	t.Logf("packing took %.1f s", time.Since(start).Seconds())
	l.program = overmount(t)
	return l
}

// with runs a test with guests, one after the other: with some always, with others
// if OVERMOUNT_TEST_VM is all.
func (l *lab) with(t *testing.T, test func(t *testing.T, who loader), always []loader, others ...loader) {
	for _, who := range slices.Concat(always, others) {
		t.Run(string(who), func(t *testing.T) {
			if !slices.Contains(always, who) && os.Getenv("OVERMOUNT_TEST_VM") != "all" {
				t.Skip("OVERMOUNT_TEST_VM=all runs this, too, which boots another machine")
			}
			l.begin()
			test(t, who)
		})
	}
}

// start starts a guest that does what it is told.
func (l *lab) start(t *testing.T, who loader, do string, limit time.Duration) *vm.VM {
	t.Helper()
	if l.images[who] == "" {
		l.images[who] = l.guest(l.t, who)
	}
	words := []string{"lab.server=" + l.url(), do}
	switch who {
	case udev:
		// The others have it in a file.
		words = append(words, "overmount.modules="+l.url()+"/modules-{kver}.fl", "overmount.firmware="+l.url()+"/firmware.fl", "overmount.pubkey="+pubkey,
			"overmount.prefetch=none", "overmount.cache=/var/cache/overmount")
	case own, handed:
		words = append(words, "overmount.base="+l.url())
	case systemd:
		words = append(words, "rdinit=/sbin/init")
	}
	return vm.Start(t, vm.Options{
		Kernel: l.vmlinuz, Initrd: l.images[who], Devices: l.devices, Cmdline: strings.Join(words, " "), Limit: limit, CPUs: l.cpus,
	})
}

// check waits for the end of a guest, and returns what it had to say.
func (l *lab) check(t *testing.T, who loader, m *vm.VM) *check {
	t.Helper()
	m.End()
	t.Logf("the machine ran for %v", m.Age())
	body := l.post("report")
	t.Logf("the guest's report:\n%s", body)
	report, err := vm.ReadReport(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return &check{t: t, h: l, who: who, r: report}
}

// TestBoot boots machines from an image without a driver for anything but its
// network, and has them mount the rest: with udev, with nothing but overmount and
// busybox, and with systemd and our unit. Each fault has a machine of its own.
func TestBoot(t *testing.T) {
	l := newLab(t)
	t.Run("whole", func(t *testing.T) { l.with(t, l.whole, []loader{udev, own}) })
	t.Run("image", func(t *testing.T) { l.with(t, l.image, []loader{handed}) })
	t.Run("deaf", func(t *testing.T) { l.with(t, l.deaf, []loader{handed}) })
	t.Run("service", func(t *testing.T) { l.with(t, l.service, []loader{systemd}) })
	t.Run("alone", func(t *testing.T) { l.with(t, l.alone, []loader{systemd}, udev, own) })
	t.Run("outage", func(t *testing.T) { l.with(t, l.outage, []loader{udev}, own) })
	t.Run("late-firmware", func(t *testing.T) { l.with(t, l.lateFirmware, []loader{own}, udev) })
	t.Run("never-answered", func(t *testing.T) { l.with(t, l.neverAnswered, []loader{own}, udev) })
	t.Run("far-away", func(t *testing.T) { l.with(t, l.farAway, []loader{own}, udev) }) // the last: it stays there
}

// whole: all is well, but for one module that the server spoils, which no device
// wants. In the end the guest goes to another root.
func (l *lab) whole(t *testing.T, who loader) {
	l.fail("igc", storetest.SpoiledBody())
	m := l.start(t, who, "lab.do=main,spoiled,switch lab.after=switched lab.spoiled=igc lab.late=ixgbe overmount.prefetch=none", 0)
	m.WaitFor("lab: main")
	t.Logf("the main phase took %v", m.Age())
	c := l.check(t, who, m)
	c.booted()
	c.mounts()
	c.succeeded("disks", "test_firmware", "dummy_hcd", "hotplug", "e100-open")
	c.drivers("")
	c.firmware()
	c.economy("igc")
	c.spoiled("igc")
	c.switched("ixgbe")
	c.plan()
}

// image: its own /init starts udevd, and has ended it when it hands over.
func (l *lab) image(t *testing.T, who loader) {
	c := l.check(t, who, l.start(t, who, "lab.do=booted,bound,handed overmount.prefetch=none", 0))
	c.booted()
	c.mounts()
	for _, s := range c.report("report").Steps {
		if strings.Contains(s.Note, loadedNothing) {
			t.Errorf("step %s: %s; want udev to load the drivers", s.Name, s.Note)
		}
	}
	if got := c.r.One("handed"); got != "1 0" {
		t.Errorf("the process and how many of udevd are left: %q, want \"1 0\"", got)
	}
}

// loadedNothing is in the report of a boot that did what udev should have done.
const loadedNothing = "by udev, which has loaded nothing; from here: "

// deaf has a udevd that settles and loads nothing: overmount does it then.
func (l *lab) deaf(t *testing.T, who loader) {
	c := l.check(t, own, l.start(t, who, "lab.do=booted,bound lab.deaf=yes overmount.prefetch=none", 0))
	c.booted()
	c.drivers("")
	said := func(s boot.Step) bool { return s.Name == "coldplug" && strings.HasPrefix(s.Note, loadedNothing) }
	if !slices.ContainsFunc(c.report("report").Steps, said) {
		t.Errorf("the report does not say that udev has loaded nothing")
	}
}

// farAway has a line of 80 ms, which is cut for five seconds while a module is on
// its way.
func (l *lab) farAway(t *testing.T, who loader) {
	if !l.isFar {
		l.farther(80 * time.Millisecond)
	}
	gate := storetest.NewGate()
	l.fail("ice", storetest.HangInBody(gate))
	m := l.start(t, who, "lab.do=main,cut lab.cut=ice", 0)
	select {
	case <-gate.Arrived():
	case <-m.Done():
		t.Fatal("the machine ended before it asked for the module")
	}
	m.SetLink("n0", false)
	gate.Open()
	pause(m, 5*time.Second)
	m.SetLink("n0", true)
	c := l.check(t, who, m)
	c.booted()
	c.mounts()
	c.succeeded("disks", "test_firmware", "dummy_hcd", "hotplug", "e100-open", "cut")
	c.drivers("")
	c.firmware()
	c.economy("ice")
	if s, err := strconv.Atoi(c.r.One("seconds:cut")); err != nil || s < 4 || s > 60 {
		t.Errorf("the module that was on its way when the line was cut for 5 s took %d s, %v, want 4 to 60", s, err)
	}
}

// pause is how long a fault lasts. It is no wait for something.
func pause(m *vm.VM, d time.Duration) {
	select {
	case <-time.After(d):
	case <-m.Done():
	}
}

// neverAnswered: one module does not come. Only its device has no driver, and nobody
// waits for it for ever: udev ends who waits after a minute, and overmount the read
// when it was told to. On a machine that is short of processors, the other events of
// udev take half a minute.
func (l *lab) neverAnswered(t *testing.T, who loader) {
	l.fail("nvme", storetest.HangBeforeHeaders(storetest.NewGate()))
	timeout := map[loader]string{udev: "60s", own: "30s"}[who]
	c := l.check(t, who, l.start(t, who, "lab.do=main lab.event=60 overmount.read-timeout="+timeout, 5*time.Minute))
	c.mounts()
	c.succeeded("disks", "test_firmware", "dummy_hcd", "hotplug", "e100-open")
	c.drivers("nvme")
	c.firmware()
}

// outage: the server goes while drivers are being loaded, and comes back after 20
// seconds.
func (l *lab) outage(t *testing.T, who loader) {
	gate := storetest.NewGate()
	l.fail("usbcore", storetest.HangBeforeHeaders(gate))
	m := l.start(t, who, "lab.do=main", 0)
	select {
	case <-gate.Arrived():
	case <-m.Done():
		t.Fatal("the machine ended before it asked for the module")
	}
	l.server.Stop()
	pause(m, 20*time.Second)
	gate.Open()
	l.server.Start()
	c := l.check(t, who, m)
	c.booted()
	c.mounts()
	c.succeeded("disks", "test_firmware", "dummy_hcd", "hotplug", "e100-open")
	c.drivers("")
}

// alone: the server is not there. The machine is up all the same, and says why it
// has no drivers; and it gets them when the server comes.
//
// The machine has one processor: there a process that waits for its own mount hangs,
// unless it waits in the right way.
func (l *lab) alone(t *testing.T, who loader) {
	one := *l
	one.cpus = 1
	l.server.Stop()
	m := one.start(t, who, "lab.do=alone,main overmount.network-wait=5s", 0)
	m.WaitFor("lab: alone")
	t.Logf("the machine was up without a server after %v", m.Age())
	l.server.Start()
	c := l.check(t, who, m)
	c.alone()
	c.succeeded("company", "disks", "test_firmware", "dummy_hcd", "hotplug", "e100-open")
	c.drivers("")
	c.firmware()
	if who == systemd {
		c.state("multi-user", "active 0 ready") // not failed
		c.started()
		c.shutDown(m)
	}
}

// A check compares what the guest says and the host has seen with what should be.
type check struct {
	t       *testing.T
	h       *lab
	who     loader
	r       vm.Report
	company string // the file that was fetched twice; see once
}

// succeeded checks commands that the guest tried.
func (c *check) succeeded(words ...string) {
	c.t.Helper()
	for _, word := range words {
		if got := c.r.One(word); got != "0" && !strings.HasPrefix(got, "0 ") {
			c.t.Errorf("%s ended with %q, want 0", word, got)
		}
	}
}

// booted: "overmount boot" did all its steps, and says so.
func (c *check) booted() {
	c.t.Helper()
	if c.who == udev { // otherwise /init has seen to it
		c.succeeded("boot")
	}
	c.succeeded("ready")
	r := c.report("report")
	if r.Degraded || len(r.Pending) > 0 {
		c.t.Errorf("the boot's report: %s, want all done", r.Line())
	}
	for _, m := range r.Mounts {
		if m.State != "fetched" || m.Serial != serial || m.Counts["objects"] == 0 && m.Kind == boot.Modules {
			c.t.Errorf("mount of the %s: %+v, want it fetched, with serial %d", m.Kind, m, serial)
		}
	}
	notes := map[string]string{}
	for _, s := range r.Steps {
		notes[s.Name] = s.Note
		if s.Error != "" {
			c.t.Errorf("step %s: %s", s.Name, s.Error)
		}
		c.t.Logf("step %s took %.2f s: %s", s.Name, s.Took.Seconds(), s.Note)
	}
	by := "by udev"
	if c.who == own {
		by = " 0 failed, 0 waiting"
	}
	if len(r.Mounts) != 2 || !strings.Contains(notes["coldplug"], by) {
		c.t.Errorf("the boot has %d mounts, and its coldplug says %q, want 2, and %q", len(r.Mounts), notes["coldplug"], by)
	}
	c.drove(r)
}

// report returns a report of "overmount boot".
func (c *check) report(word string) *boot.Report {
	c.t.Helper()
	r := new(boot.Report)
	if err := json.Unmarshal([]byte(c.r.One(word)), r); err != nil {
		c.t.Errorf("the report of the boot is %q: %v", c.r.One(word), err)
	}
	return r
}

// alone: what a boot without a server says.
func (c *check) alone() {
	r := c.report("alone")
	if !r.Degraded || len(r.Mounts) > 0 || !slices.Contains(r.Pending, boot.Modules) || !slices.Contains(r.Pending, boot.Firmware) {
		c.t.Errorf("the report without a server: %s, want both kinds pending", r.Line())
	}
	for _, name := range []string{"fetch modules", "fetch firmware"} {
		i := slices.IndexFunc(r.Steps, func(s boot.Step) bool { return s.Name == name })
		if i < 0 || !strings.Contains(r.Steps[i].Error, "connection refused") {
			c.t.Errorf("the steps without a server: %+v, want that %s tells of a connection refused", r.Steps, name)
		}
	}
	if n := c.r.One("alone-after"); n != "0" {
		c.t.Errorf("without a server there were %s drivers of Ethernet cards, want 0", n)
	}
	if !slices.ContainsFunc(c.r["log"], func(line string) bool { return strings.Contains(line, "cannot mount; going on without") }) {
		c.t.Errorf("the log does not say why nothing is mounted")
	}
	if r := c.report("report"); len(r.Pending) > 0 || len(r.Mounts) != 2 {
		c.t.Errorf("the report when the server has come: %s, want two mounts", r.Line())
	}
}

// mounts: before it, no driver of an Ethernet card; then all of them. (A look at the
// whole tree would take as long as a good part of the boot.)
func (c *check) mounts() {
	all := 0
	for ino := range c.h.modules.Modules() {
		if strings.HasPrefix(strings.TrimPrefix(c.h.modules.Path(ino), "/"), "kernel/drivers/net/ethernet/") {
			all++
		}
	}
	before, after := c.r.One("before"), c.r.One("after")
	if c.who == systemd {
		before = "0" // nobody could look
	}
	if before != "0" || after != strconv.Itoa(all) || all < 50 {
		c.t.Errorf("drivers of Ethernet cards before the mount: %s, want 0; after it: %s, want %d", before, after, all)
	}
}

// drivers: every device has its driver, but the one that has none, and so has what
// is on a bus that has just come up.
func (c *check) drivers(none string) {
	c.bound(c.h.devices, none)
	for _, child := range []string{"usbhid", "hid_generic", "usb_storage", "sd_mod", "snd_hda_codec_generic"} {
		if !c.r.Has("loaded", child) {
			c.t.Errorf("%s was not loaded", child)
		}
	}
}

func (c *check) bound(devices []vm.Device, none string) {
	c.t.Helper()
	for _, d := range devices {
		want := d.Slot + " " + d.Driver
		if d.Driver == none {
			want = d.Slot + " none"
		}
		if d.Driver != "" && !c.r.Has("bound", want) {
			c.t.Errorf("no %q among the bound devices %q", want, c.r["bound"])
		}
	}
}

// firmware: what was asked for was fetched, once and right, and what is not there
// is not.
func (c *check) firmware() {
	want := []string{"labtest/blob.bin", "ath3k-1.fw"}
	for _, d := range c.h.devices {
		if d.Firmware != "" {
			want = append(want, d.Firmware)
		}
	}
	files := c.h.files(c.h.host.firmware)
	for _, name := range want {
		c.once(files, name)
	}
	c.succeeded("request:labtest/blob.bin")
	if got, want := c.r.One("content:labtest/blob.bin"), fmt.Sprintf("%x", sha256.Sum256(blob(1))); got != want {
		c.t.Errorf("the kernel got a blob.bin with the sum %s, want %s", got, want)
	}
	for _, got := range c.r["request:labtest/absent.bin"] {
		if !strings.Contains(got, "No such file or directory") {
			c.t.Errorf("a firmware that is not there: %q, want ENOENT", got)
		}
	}
	if n := len(c.r["request:labtest/absent.bin"]); n != 2 {
		c.t.Errorf("the absent firmware was asked for %d times, want 2", n)
	}
}

// once checks that a file was fetched, and not again. A request from which nothing comes
// for a second gets company, which happens on a busy host, so one file of all may have
// been fetched twice.
func (c *check) once(fetched map[string]int, name string) {
	c.t.Helper()
	switch n := fetched[name]; {
	case n == 1:
	case n == 2 && c.company == "":
		c.company = name
		c.t.Logf("%s was fetched twice", name)
	default:
		c.t.Errorf("%s was fetched %d times, want once", name, n)
	}
}

// economy: little was fetched, and hardly anything twice but what belongs to a module
// that failed. The server was asked for nothing that it does not have.
func (c *check) economy(failed string) {
	fetched := c.h.fetched()
	files := c.h.files(c.h.host.modules)
	for _, id := range c.h.objects(c.h.modules, c.h.path(failed)) {
		delete(fetched, id)
	}
	// A request from which nothing comes for a second gets company, which happens on a
	// busy host.
	mostTwice := len(fetched) / 20
	var twice []string
	for name, n := range files {
		if n > 1 && name != strings.TrimPrefix(c.h.path(failed), "/") {
			twice = append(twice, fmt.Sprintf("%s %d times", name, n))
		}
	}
	if len(twice) > mostTwice {
		c.t.Errorf("asked for more than once: %q, want each once, but for %d files at most", twice, mostTwice)
	}
	var raw int64
	for name := range files {
		info, err := os.Stat(filepath.Join(c.h.modulesDir, name))
		if err != nil {
			c.t.Error(err)
			continue
		}
		raw += info.Size()
	}
	const most, mostRaw = 150, 30 << 20
	c.t.Logf("%d objects were fetched, %d of them twice, of modules of %.1f MiB, out of %.0f MiB", len(fetched), len(twice), float64(raw)/(1<<20), float64(c.h.packed.Bytes)/(1<<20))
	if len(fetched) > most || raw > mostRaw {
		c.t.Errorf("%d objects were fetched, of modules of %d bytes, want at most %d and %d", len(fetched), raw, most, mostRaw)
	}
	known := c.h.known()
	for _, r := range c.h.requests() {
		if !known[path.Base(r.Path)] {
			c.t.Errorf("the server was asked for %s, which nothing is called", r.Path)
		}
	}
}

// spoiled: a module that came with wrong bytes is an I/O error.
func (c *check) spoiled(module string) {
	want := map[loader]string{udev: "Input/output error", own: "short read"}[c.who] // the latter is busybox's word for it
	if got := c.r.One("spoiled"); !strings.Contains(got, want) {
		c.t.Errorf("loading %s, which the server spoils: %q, want %s", module, got, want)
	}
	if !slices.ContainsFunc(c.r["log"], func(line string) bool {
		return strings.Contains(line, "its caller got EIO") && strings.Contains(line, module)
	}) {
		c.t.Errorf("the log does not tell of the read of %s that failed", module)
	}
	if c.r.Has("loaded", module) {
		c.t.Errorf("%s was loaded from wrong bytes", module)
	}
}

// switched: the mounts work on in another root.
func (c *check) switched(module string) {
	c.succeeded("switched-module", "request:labtest/late.bin", "request:labtest/stage1.bin")
	if got, want := c.r.One("content:labtest/stage1.bin"), fmt.Sprintf("%x", sha256.Sum256(blob(4))); got != want {
		c.t.Errorf("after switch_root the kernel got a firmware of stage 1 with the sum %s, want %s", got, want)
	}
	if got, want := c.r.One("content:labtest/late.bin"), fmt.Sprintf("%x", sha256.Sum256(blob(2))); got != want {
		c.t.Errorf("after switch_root the kernel got a late.bin with the sum %s, want %s", got, want)
	}
	c.once(c.h.files(c.h.modules), c.h.path(module))
}
