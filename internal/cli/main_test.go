package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"overmount/internal/mounts"
	"overmount/internal/overlay"
	"overmount/internal/testenv"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

// TestMain makes the test binary the program when it is called overmount, which
// is what tests find in PATH, and what a daemon starts again.
func TestMain(m *testing.M) {
	program := func() {
		if server := os.Getenv(nameServer); server != "" {
			net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "udp", server)
			}}
		}
		if os.Getenv(noNetlink) != "" {
			forbidNetlink()
		}
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
		code := Run(ctx, Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv})
		stop()
		os.Exit(code)
	}
	testscript.Main(m, map[string]func(){"overmount": program, spared: program, "docs-sandbox": sandbox, "peak": peak})
}

// nameServer is the environment variable with the address of the name server that
// the program shall ask, whatever the machine's is.
const nameServer = "OVERMOUNT_TEST_NAME_SERVER"

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Cmds: commands})
}

func TestMountScripts(t *testing.T) {
	testenv.FUSE(t)
	testscript.Run(t, testscript.Params{Dir: "testdata/mount", Cmds: commands})
}

// commands are what scripts can say beside what testscript knows.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	// code N COMMAND... runs a command that must end with exit code N.
	"code": func(ts *testscript.TestScript, _ bool, args []string) {
		want, err := strconv.Atoi(args[0])
		ts.Check(err)
		got := 0
		var exit *exec.ExitError
		if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
			got = exit.ExitCode()
		} else {
			ts.Check(err)
		}
		if got != want {
			ts.Fatalf("exit code %d, want %d", got, want)
		}
	},
	// serve VAR DIR serves a directory over HTTP, and puts the URL in VAR.
	"serve": func(ts *testscript.TestScript, _ bool, args []string) {
		s := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[1]))))
		ts.Defer(s.Close)
		ts.Setenv(args[0], s.URL)
	},
	// kmods DIR turns each text below DIR whose name is that of a kernel module
	// into the module that it describes; see kmodtest.Parse. All files there get
	// the same time.
	"kmods": func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				err = makeModule(name)
			}
			return err
		}))
	},
	// mounted DIR checks what is mounted there: a flist, or nothing.
	"mounted": func(ts *testscript.TestScript, neg bool, args []string) {
		dir := ts.MkAbs(args[0])
		if got := isMounted(dir); got == neg {
			ts.Fatalf("mounted at %s: %v", dir, got)
		}
		ts.Defer(func() { unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) })
	},
	// awaitmount DIR returns when something is mounted there.
	"awaitmount": func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Check(awaitMount(ts.MkAbs(args[0])))
	},
	// awaitfile FILE returns when the file is there.
	"awaitfile": func(ts *testscript.TestScript, _ bool, args []string) { awaitFile(ts.Fatalf, ts.MkAbs(args[0])) },
	// awaitline FILE PATTERN returns when a line of the file matches.
	"awaitline": func(ts *testscript.TestScript, _ bool, args []string) {
		awaitLine(ts.Fatalf, ts.MkAbs(args[0]), regexp.MustCompile(args[1]))
	},
	// awaitreader DIR returns when nobody reads the stderr of the program that serves
	// DIR any more, which is a pipe.
	"awaitreader": func(ts *testscript.TestScript, _ bool, args []string) {
		pids := daemons(args[0])
		if len(pids) != 1 {
			ts.Fatalf("programs that serve %s: %v, want one", args[0], pids)
		}
		ts.Check(awaitNoReader(fmt.Sprintf("/proc/%d/fd/2", pids[0])))
	},
	// awaitdetached DIR returns when the program that serves DIR has let go of its
	// stderr.
	"awaitdetached": func(ts *testscript.TestScript, _ bool, args []string) {
		for end := time.Now().Add(limit); ; runtime.Gosched() {
			pids := daemons(args[0])
			if len(pids) != 1 {
				ts.Fatalf("programs that serve %s: %v, want one", args[0], pids)
			}
			stderr, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pids[0]))
			ts.Check(err)
			if stderr == os.DevNull {
				return
			}
			if time.Now().After(end) {
				ts.Fatalf("the program that serves %s still has %s as its stderr after %v", args[0], stderr, limit)
			}
		}
	},
	// running N DIR checks how many programs serve DIR, which is as they were
	// told it.
	"running": func(ts *testscript.TestScript, _ bool, args []string) {
		if pids := daemons(args[1]); fmt.Sprint(len(pids)) != args[0] {
			ts.Fatalf("programs that serve %s: %v, want %s", args[1], pids, args[0])
		}
	},
	// signal NAME DIR signals the program that serves DIR.
	"signal": func(ts *testscript.TestScript, _ bool, args []string) {
		pids := daemons(args[1])
		if len(pids) != 1 {
			ts.Fatalf("programs that serve %s: %v, want one", args[1], pids)
		}
		ts.Check(unix.Kill(pids[0], unix.SignalNum(args[0])))
	},
	// layers DIR checks that an overlay of ours is mounted there, or not.
	"layers": func(ts *testscript.TestScript, neg bool, args []string) {
		dir := ts.MkAbs(args[0])
		top, err := mounts.Top(dir)
		ts.Check(err)
		if got := top != nil && overlay.Ours(top.FSType, top.Source); got == neg {
			ts.Fatalf("an overlay at %s: %v", dir, got)
		}
		ts.Defer(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	},
	// awaitgone DIR returns when nothing is mounted there.
	"awaitgone": func(ts *testscript.TestScript, _ bool, args []string) {
		for end := time.Now().Add(limit); ; runtime.Gosched() {
			top, err := mounts.Top(ts.MkAbs(args[0]))
			ts.Check(err)
			if top == nil {
				return
			}
			if time.Now().After(end) {
				ts.Fatalf("%s is still mounted after %v", args[0], limit)
			}
		}
	},
	// nothingbelow DIR checks that nothing is mounted below DIR, and nothing is in
	// it.
	"nothingbelow": func(ts *testscript.TestScript, _ bool, args []string) {
		dir := ts.MkAbs(args[0])
		info, err := os.ReadFile("/proc/self/mountinfo")
		ts.Check(err)
		if strings.Contains(string(info), " "+dir+"/") {
			ts.Fatalf("something is mounted below %s:\n%s", dir, info)
		}
		left, err := os.ReadDir(dir)
		ts.Check(err)
		if len(left) > 0 {
			ts.Fatalf("%s has %v, want nothing", dir, left)
		}
	},
	// called NAME DIR checks the name of the program that serves DIR, as the kernel
	// shows it.
	"called": func(ts *testscript.TestScript, _ bool, args []string) {
		pids := daemons(args[1])
		if len(pids) != 1 {
			ts.Fatalf("programs that serve %s: %v, want one", args[1], pids)
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pids[0]))
		ts.Check(err)
		if name, _, _ := strings.Cut(string(line), "\x00"); filepath.Base(name) != args[0] {
			ts.Fatalf("the program is called %q, want %q", name, args[0])
		}
	},
	// ended DIR returns when no program serves DIR any more.
	"ended": func(ts *testscript.TestScript, _ bool, args []string) {
		for _, pid := range daemons(args[0]) {
			ts.Check(awaitEnd(pid))
		}
	},
}

// makeModule writes the module that the text in a file describes in its place.
func makeModule(name string) error {
	if kmod.Suffix(name) != "" {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		m, err := kmodtest.Parse(string(text))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(name, m.Bytes(), 0o644); err != nil {
			return err
		}
	}
	at := time.Unix(1700000000, 0)
	return os.Chtimes(name, at, at)
}

const limit = time.Minute

// awaitNoReader waits until the last reader of a pipe has closed it. As one of its
// writers it does not read.
func awaitNoReader(pipe string) error {
	fd, err := unix.Open(pipe, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil // there is none
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd)}} // an error is always waited for
	for {
		n, err := unix.Poll(fds, int(limit.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("%s still has a reader after %v", pipe, limit)
		default:
			return nil
		}
	}
}

// awaitFile waits until a file is there.
func awaitFile(fatalf func(string, ...any), file string) {
	for end := time.Now().Add(limit); ; runtime.Gosched() {
		if _, err := os.Lstat(file); err == nil {
			return
		}
		if time.Now().After(end) {
			fatalf("there is no %s after %v", file, limit)
		}
	}
}

// awaitLine waits until a line of the file matches.
func awaitLine(fatalf func(string, ...any), file string, pattern *regexp.Regexp) {
	for end := time.Now().Add(limit); ; runtime.Gosched() {
		text, err := os.ReadFile(file)
		if err == nil && pattern.Match(text) {
			return
		}
		if time.Now().After(end) {
			fatalf("no line of %s matches %v after %v: %s", file, pattern, limit, text)
		}
	}
}

// isMounted reports whether a flist is mounted at dir.
func isMounted(dir string) bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(mounts), " "+dir+" ro")
}

// awaitMount waits until something is mounted at dir.
func awaitMount(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	for end := time.Now().Add(limit); !isMounted(dir); {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 1000); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("nothing is mounted at %s after %v", dir, limit)
		}
	}
	return nil
}

// daemons returns the processes that mount a flist at dir: their last argument
// says so.
func daemons(dir string) []int {
	var pids []int
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		line, err := os.ReadFile(name)
		if err != nil || !bytes.HasSuffix(line, []byte("\x00"+dir+"\x00")) || !bytes.Contains(line, []byte("\x00mount\x00")) && !bytes.Contains(line, []byte("\x00boot\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// awaitEnd waits until a process has ended.
func awaitEnd(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if n, err := unix.Poll(fds, 1000); n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("process %d still runs after %v", pid, limit)
}

// ran is how a program ended.
type ran struct {
	stdout, stderr string
	code           int // -1: killed
}

func run(t *testing.T, name string, args ...string) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return ran{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// mustRun runs a program that must succeed, and returns what it prints.
func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	r := run(t, name, args...)
	if r.code != 0 {
		t.Fatalf("%s %q: exit code %d: %s", name, args, r.code, r.stderr)
	}
	return r.stdout
}

// mountAt mounts in the background, and unmounts when the test is over.
func mountAt(t *testing.T, dir string, args ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "overmount", append(append([]string{"mount", "-d"}, args...), dir)...)
	unmountAfter(t, dir)
}

// unmountAfter unmounts, if it has to, when the test is over.
func unmountAfter(t *testing.T, dir string) {
	t.Cleanup(func() {
		pids := daemons(dir)
		if isMounted(dir) {
			if out, err := exec.Command("overmount", "umount", dir).CombinedOutput(); err != nil {
				t.Errorf("umount: %v: %s", err, out)
				unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
			}
		}
		for _, pid := range pids {
			if err := awaitEnd(pid); err != nil {
				t.Error(err)
			}
		}
	})
}

// write writes a file that nobody else may read, into a directory that is there.
func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// writeFile writes a file, with the directories above it.
func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
