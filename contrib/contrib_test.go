package contrib

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"overmount/internal/testenv"
)

const limit = time.Minute

// replaced writes a copy of a file of ours to dir, where each of the old strings,
// which must be in it, is the new one.
func replaced(t *testing.T, dir, name string, oldnew ...string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			t.Fatalf("%s does not say %q", name, oldnew[i])
		}
		text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
	}
	to := filepath.Join(dir, filepath.Base(name))
	put(t, to, text)
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, info.Mode()); err != nil {
		t.Fatal(err)
	}
	return to
}

// put writes a file that can be run.
func put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// run runs a program, and returns what it prints.
func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

func TestShellSyntax(t *testing.T) {
	busybox := testenv.Tool(t, "busybox")
	for _, shell := range [][]string{{"sh"}, {busybox, "ash"}} {
		for _, name := range []string{"openrc/overmount", "busybox/overmount"} {
			if out, err := run(t, shell[0], append(shell[1:], "-n", name)...); err != nil || out != "" {
				t.Errorf("%v -n %s: %v: %s", shell, name, err, out)
			}
		}
	}
}

// said is a stand-in for overmount that says what it is told to do.
const said = "#!/bin/sh\necho overmount \"$@\"\n"

func TestBusybox(t *testing.T) {
	testenv.Root(t, "mounting")
	busybox := testenv.Tool(t, "busybox")
	dir := t.TempDir()
	bin, target := filepath.Join(dir, "bin"), filepath.Join(dir, "modules")
	put(t, filepath.Join(bin, "overmount"), said)
	put(t, filepath.Join(dir, "flist/a.ko"), "")
	put(t, filepath.Join(dir, "below/b.ko"), "")
	put(t, filepath.Join(target, "hidden"), "")
	script := replaced(t, dir, "busybox/overmount", "/usr/bin/overmount", bin+"/overmount", `"/lib/modules/$(uname -r) /lib/firmware"`, target)
	for arg, want := range map[string]string{"start": "overmount boot\n", "stop": ""} {
		if out, err := run(t, busybox, "ash", script, arg); err != nil || out != want {
			t.Errorf("%s prints %q, %v, want %q", arg, out, err, want)
		}
	}
	if out, err := run(t, busybox, "ash", script, "go"); err == nil || !strings.HasPrefix(out, "usage:") {
		t.Errorf("a wrong argument prints %q, %v, want the usage", out, err)
	}
	// In a mount namespace of its own, with a mount that looks like one of ours.
	const steps = `set -e
mount -t overlay overmount:x.fl -o "lowerdir=$2/flist:$2/below" "$3"
sh "$1" stop
sh "$1" move "$2/newroot"
echo $(ls "$2/newroot/$3") $(ls "$3")
sh "$1" move "$2/newroot"
`
	out, err := run(t, "unshare", "--mount", "--propagation=private", "sh", "-c", steps, "sh", script, dir, target)
	if strings.Contains(out, "unknown filesystem type") {
		testenv.Need(t, "the kernel has no overlayfs")
	}
	if want := "overmount umount --lazy " + target + "\na.ko b.ko hidden\n"; err != nil || out != want {
		t.Errorf("stop and move print %q, %v, want %q", out, err, want)
	}
}

// OpenRC's shell gives functions like these.
func TestOpenRC(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "bin/overmount"), said)
	script := replaced(t, dir, "openrc/overmount", "/usr/bin/overmount", dir+"/bin/overmount")
	const steps = `for f in ebegin eend need use after keyword; do eval "$f() { echo $f \"\$@\"; }"; done
. "$1"
depend
start
stop
`
	out, err := run(t, "sh", "-eu", "-c", steps, "sh", script)
	const want = `need net
use dns logger
after bootmisc modules udev udev-trigger
keyword -shutdown -timeout
ebegin Mounting kernel modules and firmware
overmount boot
eend 0
ebegin Unmounting kernel modules and firmware
eend 0
`
	if err != nil || out != want {
		t.Errorf("the script does\n%s%v, want\n%s", out, err, want)
	}
}

// systemd-analyze loads a unit as systemd would, and says what it finds: words it
// does not know, and units that wait for each other.
func TestSystemd(t *testing.T) {
	analyze := testenv.Tool(t, "systemd-analyze")
	dir := t.TempDir()
	program := filepath.Join(dir, "overmount")
	put(t, program, said)
	verify := func(unit string) string {
		// With what brings the network up early, where a cycle would show.
		out, err := run(t, analyze, "verify", "--man=no", unit,
			"systemd-networkd.service", "systemd-networkd-wait-online.service", "sysinit.target", "multi-user.target")
		var lines strings.Builder
		for line := range strings.Lines(out) {
			if strings.Contains(line, "overmount") || strings.Contains(line, "cycle") {
				lines.WriteString(line)
			}
		}
		if err != nil && lines.Len() == 0 {
			t.Fatalf("systemd-analyze: %v: %s", err, out)
		}
		return lines.String()
	}
	unit := replaced(t, dir, "systemd/overmount.service", "@/usr/bin/overmount", "@"+program)
	if got := verify(unit); got != "" {
		t.Errorf("systemd-analyze verify says\n%s", got)
	}
	for change, want := range map[string]string{
		"Before=systemd-modules-load.service": "ordering cycle",
		"Befor=x":                             "Unknown key",
	} {
		sub := t.TempDir()
		wrong := replaced(t, sub, unit, "Before=multi-user.target", change+"\nWants=systemd-networkd.service")
		if got := verify(wrong); !strings.Contains(got, want) {
			t.Errorf("with %s systemd-analyze verify says %q, want %q in it", change, got, want)
		}
	}
}

// The settings of the mounts, which have two names each, are one.
func TestSystemdMounts(t *testing.T) {
	files, err := filepath.Glob("systemd/*.mount.d/overmount.conf")
	if err != nil || len(files) != 4 {
		t.Fatalf("there are settings of mounts in %q, %v, want four", files, err)
	}
	first, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if data, err := os.ReadFile(name); err != nil || !bytes.Equal(data, first) {
			t.Errorf("%s holds %q, %v, want what %s does", name, data, err, files[0])
		}
	}
}

// lines returns the lines of a file that others write to; none if it is not there.
func lines(t *testing.T, name string) []string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var all []string
	for line := range bytes.Lines(data) {
		all = append(all, strings.TrimSpace(string(line)))
	}
	return all
}
