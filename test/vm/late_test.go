package vm_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"overmount/boot"
)

// lateFirmware: at first the server has the modules only. A driver whose device wants
// firmware for its probe gives up; and gets the device when the firmware is there.
// Without udev, the machine has gone to another root meanwhile, as from an initramfs.
func (l *lab) lateFirmware(t *testing.T, who loader) {
	few := *l
	few.devices = l.devices[:1] // the network card: others would only take time
	manifest := filepath.Join(l.dir, "firmware.fl")
	move(t, manifest, manifest+".kept")
	come := sync.OnceFunc(func() { move(t, manifest+".kept", manifest) })
	defer come()
	do := map[loader]string{udev: "lab.do=late,company", own: "lab.do=late,switch lab.after=company"}[who]
	m := few.start(t, who, do, 0)
	m.WaitFor("lab: company")
	come()
	c := few.check(t, who, m)
	c.succeeded("dummy_hcd", "late-probe", "company")
	c.late()
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// late: the device had no driver, and has it; and the report says so, and what that
// driver has cost.
func (c *check) late() {
	if before, after := c.r.One("late-before"), c.r.One("late-after"); before != "none" || after != "bcm203x" {
		c.t.Errorf("the device had the driver %q, and then %q, want none, and then bcm203x", before, after)
	}
	r := c.report("report")
	i := slices.IndexFunc(r.Rebound, func(d boot.Rebound) bool { return slices.Contains(d.Modules, "bcm203x") })
	if i < 0 || r.Rebound[i].Driver != "bcm203x" || !strings.HasPrefix(r.Rebound[i].Device, "usb ") || r.Rebound[i].Error != "" {
		c.t.Errorf("probed again: %+v, want among them the USB device of bcm203x", r.Rebound)
	}
	for _, d := range r.Rebound {
		c.t.Logf("probed again: %+v", d)
	}
	i = slices.IndexFunc(r.Drivers, func(d boot.Driver) bool { return d.Module == "bcm203x" })
	if i < 0 {
		c.t.Fatalf("the report has no driver bcm203x")
	}
	d := r.Drivers[i]
	if d.State != "live" || len(d.Bound) != 1 || !slices.Contains(d.Opened, "firmware/BCM2033-MD.hex") || d.Files != 3 || d.Objects < 3 || d.Requests < 3 || d.Waited == 0 {
		c.t.Errorf("the report has of bcm203x %+v, want it live, bound, with the module and the firmware that was opened", d)
	}
}

// drove: the report says of every driver what it has cost, whoever loaded it.
func (c *check) drove(r *boot.Report) {
	c.t.Helper()
	for _, want := range c.h.devices {
		if want.Driver == "" || want.Driver == "virtio-pci" { // which is of stage 1
			continue
		}
		i := slices.IndexFunc(r.Drivers, func(d boot.Driver) bool { return slices.Contains(d.Bound, "pci "+want.Slot) })
		if i < 0 {
			c.t.Errorf("the report has no driver with the device %s, which is that of %s", want.Slot, want.Driver)
			continue
		}
		d := r.Drivers[i]
		if d.State != "live" || d.Files == 0 || len(d.Opened)+len(d.Ahead) != d.Files || d.Objects == 0 || d.ObjectBytes == 0 || d.Requests < d.Objects {
			c.t.Errorf("the report has of %s %+v, want it live, with its files, objects and requests", want.Driver, d)
		}
		if (d.Took > 0) != (c.who == own) || (c.who == udev || c.who == handed) && (len(d.Opened) == 0 || d.Waited == 0) {
			c.t.Errorf("the report has of %s %+v, want how long loading took if overmount did it, and with udev what was opened, and waited for", want.Driver, d)
		}
	}
}
