package vm_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

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

// guest is an image with a guest that does what the command line says.
func guest(t *testing.T, modules string) string {
	t.Helper()
	const script = "testdata/guest.sh"
	if info, err := os.Stat(script); err != nil || info.Mode()&0o111 == 0 {
		t.Fatalf("%s: %v, want a file that can be executed", script, err)
	}
	img := filepath.Join(t.TempDir(), "boot.img")
	cmd := exec.Command(overmount(t), "initramfs", "-m", modules, "--stage1", "virtio", "--busybox", testenv.Tool(t, "busybox"), "--udev",
		"--include", script+":/etc/overmount/start", "-o", img)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make the image: %v\n%s", err, out)
	}
	t.Logf("the image:\n%s", out)
	return img
}

// lab is a host and what a guest on it needs.
type lab struct {
	*host
	vmlinuz, modules, image string
	devices                 []vm.Device
}

// newLab packs, and makes an image. The guest is as far away as rtt says.
func newLab(t *testing.T, rtt time.Duration) *lab {
	t.Helper()
	testenv.Tool(t, "qemu-system-x86_64")
	testenv.Tool(t, "udevadm")
	l := &lab{devices: vm.Devices(t)}
	l.vmlinuz, l.modules = vm.Kernel(t)
	firmware := vm.Firmware(t, l.devices)
	vm.WriteFile(t, filepath.Join(firmware, "labtest/blob.bin"), blob(1))
	vm.WriteFile(t, filepath.Join(firmware, "labtest/late.bin"), blob(2))
	vm.WriteFile(t, filepath.Join(firmware, "ath3k-1.fw"), blob(3))
	start := time.Now()
	l.host = newHost(t, l.modules, firmware, rtt)
	packed := time.Now()
	l.image = guest(t, l.modules)
	t.Logf("packing took %.1f s, the image %.1f s", packed.Sub(start).Seconds(), time.Since(packed).Seconds())
	return l
}

// start starts a guest that does what it is told.
func (l *lab) start(do string, limit time.Duration) *vm.VM {
	l.t.Helper()
	return vm.Start(l.t, vm.Options{
		Kernel: l.vmlinuz, Initrd: l.image, Devices: l.devices, Cmdline: "lab.server=" + l.url() + " " + do, Limit: limit,
	})
}

// check waits for the end of a guest, and returns what it had to say.
func (l *lab) check(m *vm.VM) *check {
	l.t.Helper()
	m.End()
	l.t.Logf("the machine ran for %v", m.Age())
	l.mu.Lock()
	defer l.mu.Unlock()
	return &check{l.t, l.host, l.report}
}

// TestBoot boots a machine from an image without a driver for anything but its
// network, and has it mount the rest.
func TestBoot(t *testing.T) {
	l := newLab(t, 0)
	l.fail("igc", storetest.SpoiledBody())
	m := l.start("lab.do=main,spoiled,switch lab.spoiled=igc lab.late=ixgbe", 0)
	m.WaitFor("lab: main")
	t.Logf("the main phase took %v", m.Age())
	c := l.check(m)
	c.mounts()
	c.succeeded("settle", "test_firmware", "dummy_hcd", "hotplug", "e100-open")
	c.drivers(l.devices, "")
	c.firmware(l.devices)
	c.economy(l.modules, "igc")
	c.spoiled("igc")
	c.switched("ixgbe")
}

// all skips tests that take a machine of their own, unless they are asked for.
func all(t *testing.T) {
	t.Helper()
	if os.Getenv("OVERMOUNT_TEST_VM") != "all" {
		t.Skip("OVERMOUNT_TEST_VM=all runs this test, too, which boots another machine")
	}
}

// TestFarAway is TestBoot over a line of 80 ms, which then is cut for five seconds
// while a module is on its way.
func TestFarAway(t *testing.T) {
	all(t)
	l := newLab(t, 80*time.Millisecond)
	gate := storetest.NewGate()
	l.fail("ice", storetest.HangInBody(gate))
	m := l.start("lab.do=main,cut lab.cut=ice", 0)
	select {
	case <-gate.Arrived():
	case <-m.Done():
		t.Fatal("the machine ended before it asked for the module")
	}
	m.SetLink("n0", false)
	gate.Open()
	select {
	case <-time.After(5 * time.Second): // this is the cut, not a wait for something
	case <-m.Done():
	}
	m.SetLink("n0", true)
	c := l.check(m)
	c.mounts()
	c.succeeded("settle", "test_firmware", "dummy_hcd", "hotplug", "e100-open", "cut")
	c.drivers(l.devices, "")
	c.firmware(l.devices)
	c.economy(l.modules, "ice")
	if s, err := strconv.Atoi(c.r.One("seconds:cut")); err != nil || s < 4 || s > 60 {
		t.Errorf("the module that was on its way when the line was cut for 5 s took %d s, %v, want 4 to 60", s, err)
	}
}

// TestNeverAnswered: one module does not come. Only its device has no driver, and
// nobody waits for it for ever: udev ends who waits after a minute. On a machine
// that is short of processors, others take half of that.
func TestNeverAnswered(t *testing.T) {
	all(t)
	l := newLab(t, 0)
	l.fail("nvme", storetest.HangBeforeHeaders(storetest.NewGate()))
	c := l.check(l.start("lab.do=main lab.event=60", 5*time.Minute))
	c.mounts()
	c.succeeded("settle", "test_firmware", "dummy_hcd", "hotplug", "e100-open")
	c.drivers(l.devices, "nvme")
	c.firmware(l.devices)
}

// A check compares what the guest says and the host has seen with what should be.
type check struct {
	t *testing.T
	h *host
	r vm.Report
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

// mounts: before it, no driver of an Ethernet card; then all of them. (A look at the
// whole tree would take as long as a good part of the boot.)
func (c *check) mounts() {
	c.succeeded("mount-modules", "mount-firmware")
	all := 0
	for ino := range c.h.modules.Modules() {
		if strings.HasPrefix(strings.TrimPrefix(c.h.modules.Path(ino), "/"), "kernel/drivers/net/ethernet/") {
			all++
		}
	}
	if before, after := c.r.One("before"), c.r.One("after"); before != "0" || after != strconv.Itoa(all) || all < 50 {
		c.t.Errorf("drivers of Ethernet cards before the mount: %s, want 0; after it: %s, want %d", before, after, all)
	}
}

// drivers: every device has its driver, but the one that has none.
func (c *check) drivers(devices []vm.Device, none string) {
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
func (c *check) firmware(devices []vm.Device) {
	want := []string{"labtest/blob.bin", "ath3k-1.fw"}
	for _, d := range devices {
		if d.Firmware != "" {
			want = append(want, d.Firmware)
		}
	}
	files := c.h.files(c.h.firmware)
	for _, name := range want {
		if files[name] != 1 {
			c.t.Errorf("firmware %s was fetched %d times, want once", name, files[name])
		}
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

// economy: little was fetched, and nothing twice but what belongs to a module that
// failed. The server was asked for nothing that it does not have.
func (c *check) economy(modules, failed string) {
	fetched := c.h.fetched()
	for _, id := range c.h.objects(c.h.modules, c.h.path(failed)) {
		delete(fetched, id)
	}
	for id, n := range fetched {
		if n != 1 {
			c.t.Errorf("object %v was asked for %d times, want once", id, n)
		}
	}
	var raw int64
	for name := range c.h.files(c.h.modules) {
		info, err := os.Stat(filepath.Join(modules, name))
		if err != nil {
			c.t.Error(err)
			continue
		}
		raw += info.Size()
	}
	const most, mostRaw = 150, 30 << 20
	c.t.Logf("%d objects were fetched, of modules of %.1f MiB, out of %.0f MiB", len(fetched), float64(raw)/(1<<20), float64(c.h.packed.Bytes)/(1<<20))
	if len(fetched) > most || raw > mostRaw {
		c.t.Errorf("%d objects were fetched, of modules of %d bytes, want at most %d and %d", len(fetched), raw, most, mostRaw)
	}
	known := c.h.known()
	for _, r := range c.h.server.Requests() {
		if !known[path.Base(r.Path)] {
			c.t.Errorf("the server was asked for %s, which nothing is called", r.Path)
		}
	}
}

// spoiled: a module that came with wrong bytes is an I/O error.
func (c *check) spoiled(module string) {
	if got := c.r.One("spoiled"); !strings.Contains(got, "Input/output error") {
		c.t.Errorf("loading %s, which the server spoils: %q, want an I/O error", module, got)
	}
	if c.r.Has("loaded", module) {
		c.t.Errorf("%s was loaded from wrong bytes", module)
	}
}

// switched: the mounts work on in another root.
func (c *check) switched(module string) {
	c.succeeded("switched-module", "request:labtest/late.bin")
	if got, want := c.r.One("content:labtest/late.bin"), fmt.Sprintf("%x", sha256.Sum256(blob(2))); got != want {
		c.t.Errorf("after switch_root the kernel got a late.bin with the sum %s, want %s", got, want)
	}
	if n := c.h.files(c.h.modules)[c.h.path(module)]; n != 1 {
		c.t.Errorf("%s was fetched %d times, want once", module, n)
	}
}
