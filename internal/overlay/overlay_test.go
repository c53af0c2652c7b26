package overlay

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/internal/mounts"
	"overmount/internal/testenv"
)

// begin prepares a stage for a new target, and mounts a tmpfs that stands in for
// the read-only file system.
func begin(t *testing.T, o Options) (s *Stage, target string) {
	t.Helper()
	testenv.Root(t, "mounting")
	o.RunDir = filepath.Join(t.TempDir(), "run")
	target = t.TempDir()
	put(t, target, "old", "from below")
	put(t, target, "both", "from below")
	s, err := Prepare(target, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(target, unix.MNT_DETACH)
		unix.Unmount(s.layers(), unix.MNT_DETACH)
	})
	if err := unix.Mount("lower", s.Lower(), "tmpfs", 0, "mode=0751,gid=7"); err != nil {
		t.Fatal(err)
	}
	put(t, s.Lower(), "new", "from above")
	put(t, s.Lower(), "both", "from above")
	return s, target
}

func mount(t *testing.T, s *Stage) *Overlay {
	t.Helper()
	o, err := s.Mount()
	if errors.Is(err, unix.ENODEV) {
		testenv.Need(t, "the kernel has no overlayfs")
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// wantFiles checks what is in a directory: names and contents.
func wantFiles(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(want) {
		t.Errorf("%s has %v, want %v", dir, entries, want)
	}
	for name, text := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != text || err != nil {
			t.Errorf("ReadFile(%s) = %q, %v, want %q", name, got, err, text)
		}
	}
}

// wantNothing checks that no stage and no mount of it is left.
func wantNothing(t *testing.T, s *Stage) {
	t.Helper()
	wantFiles(t, s.opts.RunDir, nil)
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], s.opts.RunDir) {
			t.Errorf("still mounted: %s", line)
		}
	}
}

func TestWritable(t *testing.T) {
	s, target := begin(t, Options{Writable: true, Name: "x.fl"})
	if info, err := os.Stat(s.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the stage's directory = %v, %v, want mode 0700", info, err)
	}
	o := mount(t, s)
	wantNothing(t, s)
	wantFiles(t, target, map[string]string{"new": "from above", "both": "from above"})
	put(t, target, "both", "changed")
	put(t, target, "mine", "mine")
	if err := os.Remove(filepath.Join(target, "new")); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, target, map[string]string{"both": "changed", "mine": "mine"})
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil || st.Mode != unix.S_IFDIR|0o751 || st.Gid != 7 {
		t.Errorf("the overlay's root = mode %o, group %d, %v, want those of the layer below", st.Mode, st.Gid, err)
	}
	m, err := mounts.Top(target)
	if err != nil || m == nil || !Ours(m.FSType, m.Source) || m.Source != "overmount:x.fl" {
		t.Errorf("Top = %+v, %v, want ours", m, err)
	}
	if err := o.Unmount(false); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, target, map[string]string{"old": "from below", "both": "from below"})
}

func TestKeepLower(t *testing.T) {
	all := map[string]string{"new": "from above", "both": "from above", "old": "from below"}
	for _, writable := range []bool{false, true} {
		s, target := begin(t, Options{KeepLower: true, Writable: writable})
		o := mount(t, s)
		wantNothing(t, s)
		wantFiles(t, target, all)
		err := os.WriteFile(filepath.Join(target, "old"), []byte("changed"), 0o644)
		if writable && err != nil || !writable && !errors.Is(err, unix.EROFS) {
			t.Errorf("writable %v: WriteFile = %v", writable, err)
		}
		if err := o.Unmount(false); err != nil {
			t.Error(err)
		}
		wantFiles(t, target, map[string]string{"old": "from below", "both": "from below"})
	}
}

func TestUpperSize(t *testing.T) {
	s, target := begin(t, Options{Writable: true, UpperSize: 1 << 20})
	mount(t, s)
	err := os.WriteFile(filepath.Join(target, "big"), make([]byte, 2<<20), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("WriteFile of 2 MiB where 1 MiB fits = %v, want ENOSPC", err)
	}
}

func TestUnmountInUse(t *testing.T) {
	s, target := begin(t, Options{Writable: true})
	o := mount(t, s)
	f, err := os.Open(filepath.Join(target, "new"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := o.Unmount(false); !errors.Is(err, unix.EBUSY) {
		t.Errorf("Unmount of what is in use = %v, want EBUSY", err)
	}
	if err := o.Unmount(true); err != nil {
		t.Error(err)
	}
	wantFiles(t, target, map[string]string{"old": "from below", "both": "from below"})
	text := make([]byte, 4)
	if _, err := f.ReadAt(text, 0); err != nil || string(text) != "from" {
		t.Errorf("ReadAt after a lazy unmount = %q, %v", text, err)
	}
	if err := o.Unmount(true); err == nil {
		t.Error("Unmount of what is not there any more succeeded")
	}
}

// Something else that is mounted over it is not taken away in its stead.
func TestUnmountCovered(t *testing.T) {
	s, target := begin(t, Options{Writable: true})
	o := mount(t, s)
	if err := unix.Mount("other", target, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	if err := o.Unmount(true); err == nil || !strings.Contains(err.Error(), "something else is mounted over it") {
		t.Errorf("Unmount = %v, want an error", err)
	}
	if m, err := mounts.Top(target); err != nil || m.Source != "other" {
		t.Errorf("Top = %v, %v, want the other mount", m, err)
	}
}

func TestFailuresLeaveNothing(t *testing.T) {
	s, target := begin(t, Options{Writable: true})
	if err := s.Abort(); err != nil {
		t.Error(err)
	}
	wantNothing(t, s)

	s, _ = begin(t, Options{Writable: true})
	s.target = filepath.Join(target, "none")
	if _, err := s.Mount(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Mount at a directory that is not there = %v, want ENOENT", err)
	}
	wantNothing(t, s)

	run := t.TempDir()
	if _, err := Prepare(filepath.Join(target, "none"), &Options{KeepLower: true, RunDir: run}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Prepare for a directory that is not there = %v, want ENOENT", err)
	}
	wantNothing(t, &Stage{opts: Options{RunDir: run}})
	if _, err := Prepare(target, &Options{Writable: true, RunDir: t.TempDir() + "/a:b"}); err == nil {
		t.Error("Prepare in a directory with a colon succeeded")
	}
}

// What a program that was killed has left goes with the next; what one that
// still runs has there stays.
func TestSweep(t *testing.T) {
	alive, _ := begin(t, Options{Writable: true})
	killed, err := Prepare(t.TempDir(), &Options{Writable: true, RunDir: alive.opts.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	killed.lock.Close()
	third, err := Prepare(t.TempDir(), &Options{Writable: true, RunDir: alive.opts.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed.dir); !os.IsNotExist(err) {
		t.Errorf("Stat of a stage without its program = %v, want it gone", err)
	}
	if err := third.Abort(); err != nil {
		t.Error(err)
	}
	if err := alive.Abort(); err != nil {
		t.Error(err)
	}
	wantNothing(t, alive)
}

func TestMountError(t *testing.T) {
	err := mountError(unix.ENODEV)
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "modprobe overlay") {
		t.Errorf("mountError(ENODEV) = %v, want the module's name", err)
	}
	if err := mountError(unix.EINVAL); !errors.Is(err, unix.EINVAL) {
		t.Errorf("mountError(EINVAL) = %v", err)
	}
}

// Whoever is not root is told so, not that some system call fails.
func TestOnlyRoot(t *testing.T) {
	const child = "OVERLAY_TEST_CHILD"
	if os.Getenv(child) != "" {
		_, err := Prepare("/", &Options{Writable: true, RunDir: os.Getenv(child)})
		t.Log(err)
		return
	}
	testenv.Root(t, "being someone else")
	run := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestOnlyRoot$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), child+"="+run)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "only root can mount an overlay") {
		t.Errorf("Prepare as nobody: %v: %s", err, out)
	}
}
