package mounts

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
)

// As in an initramfs: PID 1 changes the root, and a program that it has started
// before goes after it.
func TestFollowsPID1(t *testing.T) {
	testenv.Root(t, "changing the root")
	switch os.Getenv("OVERMOUNT_TEST_ROLE") {
	case "init":
		if err := beInit(); err != nil {
			fmt.Println("init:", err)
		}
		os.Exit(0)
	case "daemon":
		if err := beDaemon(); err != nil {
			fmt.Println("daemon:", err)
		}
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFollowsPID1$")
	cmd.Env = append(os.Environ(), "OVERMOUNT_TEST_ROLE=init", "OVERMOUNT_TEST_DIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	want := "before: false\nafter: true, here is [proc real]\nonce more: false\n"
	if err != nil || string(out) != want {
		t.Errorf("%v, output:\n%s\nwant:\n%s", err, out, want)
	}
}

// beInit is PID 1 of a namespace of mounts and processes.
func beInit() error {
	root := filepath.Join(os.Getenv("OVERMOUNT_TEST_DIR"), "root")
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		os.Mkdir(root, 0o755),
		unix.Mount("real", root, "tmpfs", 0, ""),
		os.Mkdir(filepath.Join(root, "proc"), 0o755),
		os.Mkdir(filepath.Join(root, "real"), 0o755),
	} {
		if err != nil {
			return err
		}
	}
	daemon := exec.Command("/proc/self/exe", "-test.run=^TestFollowsPID1$")
	daemon.Env = append(os.Environ(), "OVERMOUNT_TEST_ROLE=daemon")
	daemon.Stderr = os.Stderr
	out, err := daemon.StdoutPipe()
	if err != nil {
		return err
	}
	in, err := daemon.StdinPipe()
	if err != nil {
		return err
	}
	if err := daemon.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		return fmt.Errorf("the daemon says nothing: %w", cmp.Or(lines.Err(), io.EOF))
	}
	fmt.Println(lines.Text())
	for _, err := range []error{
		unix.Mount("/proc", filepath.Join(root, "proc"), "", unix.MS_MOVE, ""),
		unix.Chdir(root),
		unix.Mount(".", "/", "", unix.MS_MOVE, ""),
		unix.Chroot("."),
		in.Close(),
	} {
		if err != nil {
			return err
		}
	}
	for lines.Scan() {
		fmt.Println(lines.Text())
	}
	return daemon.Wait()
}

// beDaemon follows when its input ends.
func beDaemon() error {
	r, err := NewRoot()
	if err != nil {
		return err
	}
	changed, err := r.Follow()
	if err != nil {
		return err
	}
	fmt.Printf("before: %v\n", changed)
	if _, err := os.Stdin.Read(make([]byte, 1)); err == nil {
		return fmt.Errorf("input, where its end was wanted")
	}
	if changed, err = r.Follow(); err != nil {
		return err
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	fmt.Printf("after: %v, here is [%s]\n", changed, strings.Join(names, " "))
	if changed, err = r.Follow(); err != nil {
		return err
	}
	fmt.Printf("once more: %v\n", changed)
	return r.Close()
}

// Where PID 1 has other mounts than we have, it is not followed.
func TestFollowsNoStranger(t *testing.T) {
	testenv.Root(t, "namespaces of mounts")
	run := func(role string, flags uintptr) ([]byte, error) {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestFollowsNoStranger$")
		cmd.Env = append(os.Environ(), "OVERMOUNT_TEST_ROLE="+role)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
		return cmd.CombinedOutput()
	}
	switch os.Getenv("OVERMOUNT_TEST_ROLE") {
	case "init":
		err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("proc", "/proc", "proc", 0, ""))
		for _, flags := range []uintptr{0, unix.CLONE_NEWNS} {
			out, runErr := run("program", flags)
			fmt.Print(string(out))
			err = errors.Join(err, runErr)
		}
		fmt.Println(err)
		os.Exit(0)
	case "program":
		r, err := NewRoot()
		changed, again := r.Follow()
		fmt.Println(r != nil, err, changed, again)
		os.Exit(0)
	}
	out, err := run("init", unix.CLONE_NEWPID|unix.CLONE_NEWNS)
	if want := "true <nil> false <nil>\nfalse <nil> false <nil>\n<nil>\n"; err != nil || string(out) != want {
		t.Errorf("%v, output %q, want %q", err, out, want)
	}
}
