package cli

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
)

// The service manager hears when the mount answers, and when it goes; of a mount
// that fails it hears nothing.
func TestServiceManager(t *testing.T) {
	testenv.FUSE(t)
	dir := t.TempDir()
	manifest, target := filepath.Join(dir, "x.fl"), filepath.Join(dir, "target")
	for _, name := range []string{"src", "target"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "overmount", "pack", "-m", manifest, "-s", "dir://"+dir+"/objects", filepath.Join(dir, "src"))
	socket := filepath.Join(dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", socket)

	if r := run(t, "overmount", "mount", "-m", manifest, "-c", "none", filepath.Join(dir, "none")); r.code != exitFailed {
		t.Errorf("mount at no directory: exit code %d", r.code)
	}
	cmd := exec.CommandContext(t.Context(), "overmount", "mount", "-m", manifest, "-c", "none", target)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	if got, want := hear(t, manager), "READY=1\nSTATUS="+manifest+" is mounted at "+target; got != want {
		t.Errorf("first the manager hears %q, want %q", got, want)
	}
	if !isMounted(target) {
		t.Error("when the manager hears of it, the mount is not there")
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := hear(t, manager); got != "STOPPING=1" {
		t.Errorf("then the manager hears %q, want STOPPING=1", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("mount: %v", err)
	}
}

// hear returns the next datagram.
func hear(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4096)
	n, err := c.Read(data)
	if err != nil {
		t.Fatal(err)
	}
	return string(data[:n])
}

// firmwareBoot is the configuration of a boot that mounts firmware at dir/target.
func firmwareBoot(t *testing.T) (dir, config string) {
	t.Helper()
	testenv.FUSE(t)
	dir = t.TempDir()
	manifest, config := filepath.Join(dir, "firmware.fl"), filepath.Join(dir, "boot.toml")
	writeFile(t, filepath.Join(dir, "src/a.bin"), "firmware")
	mustRun(t, "overmount", "pack", "--kind", "firmware", "-m", manifest, "-s", "dir://"+dir+"/objects", filepath.Join(dir, "src"))
	text := fmt.Sprintf("kver = '6.1.0-test'\nmodules = 'none'\nfirmware = %q\nfirmware-dir = %q\nrun-dir = %q\ncache = 'none'\ncoldplug = 'none'\nstage1-firmware = 'none'\n",
		manifest, dir+"/target", dir+"/run")
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, config
}

// Of a boot the service manager hears when all steps were done, how that went, and
// when the mounts go.
func TestServiceManagerOfBoot(t *testing.T) {
	dir, config := firmwareBoot(t)
	socket := filepath.Join(dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	cmd := exec.CommandContext(t.Context(), "overmount", "boot", "--foreground", "--config", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir+"/target", unix.MNT_DETACH) })
	if got, want := hear(t, manager), "READY=1\nSTATUS=modules and firmware: firmware local at "+dir+"/target; "; !strings.HasPrefix(got, want) {
		t.Errorf("first the manager hears %q, want it to begin with %q", got, want)
	}
	if _, err := os.Stat(dir + "/run/ready"); err != nil || !isMounted(dir+"/target") {
		t.Errorf("when the manager hears of it, the ready file or the mount is not there: %v", err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := hear(t, manager); got != "STOPPING=1" {
		t.Errorf("then the manager hears %q, want STOPPING=1", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("boot: %v", err)
	}
}
