package vm_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"overmount/internal/testenv"
	"overmount/test/vm"
)

// systemdDir is where this host has systemd, and the guest, too.
const systemdDir = "/usr/lib/systemd"

// systemdUnits are those of systemd that bring a machine up and down: for devices,
// the network and the log.
const systemdUnits = `
basic.target final.target local-fs-pre.target local-fs.target multi-user.target network-online.target network.target
nss-lookup.target paths.target poweroff.target shutdown.target slices.target sockets.target sysinit.target timers.target umount.target
systemd-journald-dev-log.socket systemd-journald.service systemd-journald.socket systemd-modules-load.service
systemd-networkd-wait-online.service systemd-networkd.service systemd-networkd.socket systemd-poweroff.service
systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service`

// systemdWants says which target starts what, as it is where somebody has enabled
// networkd and our unit.
var systemdWants = map[string]string{
	"sysinit.target":        "systemd-journald.service systemd-modules-load.service systemd-udevd.service systemd-udev-trigger.service",
	"sockets.target":        "systemd-journald.socket systemd-journald-dev-log.socket systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-networkd.socket",
	"network-online.target": "systemd-networkd-wait-online.service",
	"multi-user.target":     "systemd-networkd.service overmount.service lab-needs.service lab.service",
}

// systemdFiles are the guest's configuration. Nothing that it starts needs more
// users or another network. Of the test's own units one waits for ours, and one for
// all others.
var systemdFiles = map[string]string{
	"etc/passwd":                           "root:x:0:0:root:/root:/bin/sh\nsystemd-network:x:998:998::/:/sbin/nologin\n",
	"etc/group":                            "root:x:0:\ntty:x:5:\nsystemd-journal:x:999:\nsystemd-network:x:998:\n",
	"etc/machine-id":                       "0123456789abcdef0123456789abcdef\n",
	"etc/os-release":                       "ID=lab\nNAME=lab\n",
	"etc/modules-load.d/fuse.conf":         "fuse\n",
	"etc/systemd/network/lan.network":      "[Match]\nDriver=virtio_net\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
	"etc/systemd/system/lab-needs.service": "[Unit]\nAfter=overmount.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/sbin/lab needs\n",
	"etc/systemd/system/lab.service":       "[Unit]\nAfter=multi-user.target\n[Service]\nExecStart=/sbin/lab multi-user\nStandardOutput=tty\nTTYPath=/dev/console\n",
}

// withSystemd are the arguments for an image that has systemd beside udev.
func withSystemd(t *testing.T) []string {
	t.Helper()
	args := []string{"--include", systemdRoot(t) + ":/", "--include", "../../contrib/systemd:/etc/systemd/system"}
	for _, name := range []string{"mount", "umount", "systemctl"} {
		args = append(args, "--program", testenv.Tool(t, name)+":/bin/"+name)
	}
	for _, name := range []string{
		"systemd", "systemd-executor", "systemd-journald", "systemd-modules-load", "systemd-networkd", "systemd-networkd-wait-online", "systemd-shutdown",
	} {
		file := filepath.Join(systemdDir, name)
		if _, err := os.Stat(file); err != nil && name == "systemd-executor" {
			continue // before 255 there is none
		}
		args = append(args, "--program", file)
	}
	return args
}

// systemdRoot makes what such an image has beside programs.
func systemdRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	files, links := map[string]string{}, map[string]string{
		"etc/systemd/system/default.target": "multi-user.target",
		"lib/systemd":                       systemdDir,
		"sbin/init":                         systemdDir + "/systemd",
		"usr/bin/overmount":                 "/bin/overmount",
		"usr/lib/systemd/systemd-udevd":     "/bin/udevadm",
	}
	for name := range strings.FieldsSeq(systemdUnits) {
		files["usr/lib/systemd/system/"+name] = filepath.Join(systemdDir, "system", name)
	}
	for target, units := range systemdWants {
		for unit := range strings.FieldsSeq(units) {
			links[filepath.Join("etc/systemd/system", target+".wants", unit)] = "../" + unit
		}
	}
	for name, text := range systemdFiles {
		vm.WriteFile(t, filepath.Join(root, name), []byte(text))
	}
	for name, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		vm.WriteFile(t, filepath.Join(root, name), data)
	}
	for name, target := range links {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// service: the unit does what it says, in a machine that systemd has brought up:
// also when it is stopped, and when the program is killed. A few devices will do:
// alone has them all.
func (l *lab) service(t *testing.T, who loader) {
	few := *l
	few.devices = l.devices[:4]
	m := few.start(t, who, "lab.do=booted,bound,stopped,killed lab.late=ixgbe", 0)
	m.WaitFor("lab: booted")
	t.Logf("the machine was up after %v", m.Age())
	c := few.check(t, who, m)
	c.booted()
	c.mounts()
	c.bound(few.devices, "")
	c.started()
	c.state("needs", "active 2 ready") // not before
	c.state("multi-user", "active 2 ready")

	c.succeeded("stop", "stopped-udev", "start")
	c.state("stopped", "inactive 0 ")
	c.state("started", "active 2 ready")
	for word, want := range map[string]string{"result:stopped": "success", "udevd": "0 active"} {
		if got := c.r.One(word); got != want {
			t.Errorf("%s: %q, want %q", word, got, want)
		}
	}
	if s, err := strconv.Atoi(c.r.One("seconds:stop")); err != nil || s > 8 {
		t.Errorf("stopping the unit took %d s, %v, want no waiting for anybody", s, err)
	}

	c.succeeded("restarted", "killed-module")
	c.state("killed", "active 2 ready")
	c.shutDown(m)
}

// state checks what the unit was at some point.
func (c *check) state(when, want string) {
	c.t.Helper()
	if got := c.r.One("state:" + when); got != want {
		c.t.Errorf("the unit, its mounts, and what waits for them, when %s: %q, want %q", when, got, want)
	}
}

// started: the units came in the order that ours promises, and none has failed.
func (c *check) started() {
	c.t.Helper()
	at := func(unit string, i int) time.Duration {
		f := strings.Fields(c.r.One("unit:" + unit))
		if i >= len(f) {
			c.t.Errorf("of %s systemd says %q, want two times", unit, f)
			return 0
		}
		us, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil || us == 0 {
			c.t.Errorf("of %s systemd says %q, want two times", unit, f)
		}
		return time.Duration(us) * time.Microsecond
	}
	const began, active = 0, 1
	order := []struct {
		what string
		at   time.Duration
	}{
		{"the first coldplug is done", at("systemd-udev-trigger", active)},
		{"the network is there", at("systemd-networkd-wait-online", active)},
		{"ours begins", at("overmount", began)},
		{"ours is active", at("overmount", active)},
		{"what needs it begins", at("lab-needs", began)},
		{"all is up", at("multi-user", began)},
	}
	for i, o := range order {
		c.t.Logf("%v: %s", o.at, o.what)
		if i > 1 && o.at < order[i-1].at || i == 2 && o.at < order[0].at {
			c.t.Errorf("%s at %v, and %s at %v, want the reverse", o.what, o.at, order[i-1].what, order[i-1].at)
		}
	}
	if got := c.r.One("failed"); got != "" {
		c.t.Errorf("units that have failed: %s", got)
	}
}

// shutDown: the machine has gone down without a complaint, and without waiting for
// anything.
func (c *check) shutDown(m *vm.VM) {
	c.t.Helper()
	_, after, found := strings.Cut(m.Console(), "lab: finished")
	if !found {
		c.t.Error("the console does not say when the guest had finished")
	}
	for line := range strings.Lines(after) {
		low := strings.ToLower(line)
		if strings.Contains(low, "failed") && strings.Contains(low, "mount") || strings.Contains(low, "timed out") || strings.Contains(low, "stop job") {
			c.t.Errorf("at shutdown the console says %q", line)
		}
	}
}
