package main_test

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
	"overmount/kmod/kmodtest"
)

// limit is the length that the program may have on amd64, in bytes.
const limit = 16_000_000

// build builds both programs into one directory, as "make build" does.
func build(t *testing.T) (full, boot string) {
	t.Helper()
	testenv.Tool(t, "go")
	dir := t.TempDir()
	testenv.Build(t, dir, "-s -w -X main.version=v1.2.3", "overmount/cmd/overmount", "overmount/cmd/overmount-boot")
	return filepath.Join(dir, "overmount"), filepath.Join(dir, "overmount-boot")
}

// run runs a program, and returns its exit code and what it said.
func run(t *testing.T, program string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, talk bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), talk.String()
}

// must is run of what has to go well.
func must(t *testing.T, program string, args ...string) (stdout string) {
	t.Helper()
	code, stdout, stderr := run(t, program, args...)
	if code != 0 {
		t.Fatalf("%s %v ended with %d: %s", filepath.Base(program), args, code, stderr)
	}
	return stdout
}

func TestProgram(t *testing.T) {
	full, boot := build(t)
	t.Run("size", func(t *testing.T) { testSize(t, full, boot) })
	t.Run("verbs", func(t *testing.T) { testVerbs(t, full, boot) })
	t.Run("image", func(t *testing.T) { testImage(t, full, boot) })
	t.Run("mount", func(t *testing.T) { testMount(t, full, boot) })
}

// The program is small and static. One that grows without need has come to name a
// verb or a store that no machine needs that boots.
func testSize(t *testing.T, full, boot string) {
	size := func(file string) int64 {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	f, err := elf.Open(boot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Machine == elf.EM_X86_64 && size(boot) > limit {
		t.Errorf("the program has %d bytes, want at most %d", size(boot), limit)
	}
	if saved := size(full) - size(boot); saved < 1<<20 {
		t.Errorf("the program has %d bytes, which is %d less than overmount has: want at least a MiB less", size(boot), saved)
	}
	if libraries, err := f.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Errorf("the program needs the libraries %v, %v; want none", libraries, err)
	}
}

func testVerbs(t *testing.T, full, boot string) {
	if got := must(t, boot, "version"); !strings.HasPrefix(got, "overmount-boot v1.2.3 (go1.") {
		t.Errorf("version says %q", got)
	}
	if got := must(t, full, "version"); !strings.HasPrefix(got, "overmount v1.2.3 (go1.") {
		t.Errorf("version of overmount says %q", got)
	}
	for _, args := range [][]string{{"pack"}, {"help", "pack"}, {"verify", "x.fl"}, {"bott"}} {
		const want = "for machines that boot, overmount-boot; the other verbs are in the program overmount"
		if code, _, got := run(t, boot, args...); code != 2 || !strings.Contains(got, want) {
			t.Errorf("%v ended with %d and %q, want 2 and %q", args, code, got, want)
		}
	}
	help := must(t, boot)
	for _, verb := range []string{"boot", "coldplug", "mount", "umount", "plan", "modules", "report", "version"} {
		if !strings.Contains(help, "\n  "+verb+" ") {
			t.Errorf("the help has no verb %s:\n%s", verb, help)
		}
	}
}

// An image gets the small program, if it lies beside the large one.
func testImage(t *testing.T, full, boot string) {
	dir := t.TempDir()
	modules := filepath.Join(dir, "lib/modules/6.1.0-test")
	kmodtest.Write(t, modules, "kernel/nic.ko", kmodtest.Module{Info: []string{"license=GPL"}})
	kmodtest.Write(t, modules, "kernel/fuse.ko", kmodtest.Module{Info: []string{"license=GPL"}})
	for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		write(t, filepath.Join(modules, name), "")
	}
	must(t, full, "depmod", "-b", dir, "6.1.0-test")

	program := func(args ...string) string {
		var report struct{ Program string }
		text := must(t, full, append([]string{"initramfs", "-m", modules, "--stage1", "nic", "--init", boot, "--dry-run", "--json"}, args...)...)
		if err := json.Unmarshal([]byte(text), &report); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		return report.Program
	}
	if got := program(); got != boot {
		t.Errorf("the image has %s, want %s", got, boot)
	}
	if got := program("--overmount", full); got != full {
		t.Errorf("with --overmount, the image has %s, want %s", got, full)
	}
	if err := os.Rename(boot, boot+".away"); err != nil {
		t.Fatal(err)
	}
	got := program("--init", full)
	if err := os.Rename(boot+".away", boot); err != nil {
		t.Fatal(err)
	}
	if got != full {
		t.Errorf("without overmount-boot, the image has %s, want %s", got, full)
	}
}

// What one program packs the other mounts; but it does not read from S3.
func testMount(t *testing.T, full, boot string) {
	testenv.FUSE(t)
	dir := t.TempDir()
	source, place, objects, manifest := filepath.Join(dir, "source"), filepath.Join(dir, "place"), filepath.Join(dir, "objects"), filepath.Join(dir, "x.fl")
	write(t, filepath.Join(source, "a"), "content\n")
	write(t, filepath.Join(place, "covered"), "")
	must(t, full, "pack", "-m", manifest, "-s", "dir://"+objects, source)
	t.Cleanup(func() { _ = unix.Unmount(place, unix.MNT_DETACH) })
	ready := filepath.Join(dir, "ready")
	must(t, boot, "mount", "-d", "-m", manifest, "-c", filepath.Join(dir, "cache"), "--ready-file", ready, place)
	ended := watch(t, ready)
	if got := must(t, "cat", filepath.Join(place, "a")); got != "content\n" {
		t.Errorf("the mount has %q", got)
	}
	must(t, boot, "umount", place)
	ended() // which writes to the cache until then

	must(t, full, "config", "-m", manifest, "store", "add", "-s", "s3://s3.example.com/bucket")
	must(t, full, "config", "-m", manifest, "store", "delete", "-s", "dir://"+objects)
	const want = `the program for machines that boot reads no scheme "s3", only dir, http, https, zdb`
	if code, _, got := run(t, boot, "mount", "-m", manifest, "-c", "none", place); code != 1 || !strings.Contains(got, want) {
		t.Errorf("mount from S3 ended with %d and %q, want 1 and %q", code, got, want)
	}
}

// watch returns a function that waits for the end of the process whose number is in a
// file.
func watch(t *testing.T, file string) (ended func()) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	process := os.NewFile(uintptr(fd), "process")
	t.Cleanup(func() { process.Close() })
	return func() {
		t.Helper()
		fds := []unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}}
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			n, err := unix.Poll(fds, 1000)
			if n > 0 {
				return
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				t.Fatal(err)
			}
		}
		t.Errorf("process %d still runs after a minute", pid)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
