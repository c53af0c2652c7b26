// Package testenv tells tests what the machine has. A test that lacks something
// is skipped and says what; where REQUIRE_TOOLS=1, as in CI, it fails.
package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Need skips the test for a reason, or fails it where nothing may be missing. An
// empty reason is none.
func Need(tb testing.TB, reason string) {
	tb.Helper()
	switch {
	case reason == "":
	case os.Getenv("REQUIRE_TOOLS") == "1":
		tb.Fatalf("REQUIRE_TOOLS=1, and %s", reason)
	default:
		tb.Skip(reason)
	}
}

// Tool returns the path of a program that the test runs.
func Tool(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Need(tb, name+" is not installed")
	}
	return path
}

// Program returns the path of a program that the environment variable names. hint
// says where to get it.
func Program(tb testing.TB, variable, hint string) string {
	tb.Helper()
	path := os.Getenv(variable)
	if path == "" {
		Need(tb, variable+" names no program; "+hint)
	}
	return path
}

// Root is for tests that do what only root may; what says what that is.
func Root(tb testing.TB, what string) {
	tb.Helper()
	if os.Geteuid() != 0 {
		Need(tb, what+" needs root")
	}
}

// FUSE is for tests that mount.
func FUSE(tb testing.TB) {
	tb.Helper()
	Root(tb, "mounting")
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		Need(tb, "there is no FUSE: "+err.Error())
		return
	}
	f.Close()
}

// Kernel returns the directory of a real kernel's modules, lib/modules/KVER, from
// OVERMOUNT_TEST_KERNEL: that directory, or a root with exactly one such in it.
// "scripts/kernel-tree --package" makes one.
func Kernel(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("OVERMOUNT_TEST_KERNEL")
	if dir == "" {
		Need(tb, "OVERMOUNT_TEST_KERNEL does not name the modules of a kernel; scripts/kernel-tree --package makes a tree of them")
	}
	return kernel(tb, "OVERMOUNT_TEST_KERNEL", dir)
}

// Kernels returns the directories of the modules of kernels for other
// architectures, from OVERMOUNT_TEST_KERNELS: a list like PATH of what
// OVERMOUNT_TEST_KERNEL may name. "scripts/kernel-tree --arch ARCH" makes one.
func Kernels(tb testing.TB) []string {
	tb.Helper()
	list := filepath.SplitList(os.Getenv("OVERMOUNT_TEST_KERNELS"))
	if len(list) == 0 {
		Need(tb, "OVERMOUNT_TEST_KERNELS names no modules of kernels for other architectures; scripts/kernel-tree --arch s390x makes a tree of them")
	}
	for i, dir := range list {
		list[i] = kernel(tb, "OVERMOUNT_TEST_KERNELS", dir)
	}
	return list
}

func kernel(tb testing.TB, variable, dir string) string {
	tb.Helper()
	if _, err := os.Stat(filepath.Join(dir, "modules.order")); err == nil {
		return dir
	}
	found, err := filepath.Glob(filepath.Join(dir, "lib/modules/*/modules.order"))
	if err != nil || len(found) != 1 {
		tb.Fatalf("%s: %s holds the modules of %d kernels, want one", variable, dir, len(found))
	}
	return filepath.Dir(found[0])
}

// Kmod returns the command line that begins a run of a tool of kmod (depmod,
// modprobe, modinfo) of that major version, 30 or 34. It comes from
// OVERMOUNT_TEST_KMOD30 or OVERMOUNT_TEST_KMOD34, programs that "scripts/kmod-of"
// makes.
func Kmod(tb testing.TB, version int, tool string) []string {
	tb.Helper()
	variable := fmt.Sprintf("OVERMOUNT_TEST_KMOD%d", version)
	return []string{Program(tb, variable, fmt.Sprintf("scripts/kmod-of makes one that runs kmod %d", version)), tool}
}

// Nginx returns the path of the web server nginx, which Debian has where only
// root's PATH leads.
func Nginx(tb testing.TB) string {
	tb.Helper()
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	Need(tb, "nginx is not installed")
	return ""
}

// Garage returns the path of the S3 server Garage, from OVERMOUNT_TEST_GARAGE, and
// skips the test without it, also where nothing else may be missing: it takes a
// quarter of an hour to build. "scripts/garage" does that.
func Garage(tb testing.TB) string {
	tb.Helper()
	path := os.Getenv("OVERMOUNT_TEST_GARAGE")
	if path == "" {
		tb.Skip("OVERMOUNT_TEST_GARAGE names no program; scripts/garage builds one")
	}
	return path
}
