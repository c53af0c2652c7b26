package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store/storetest"
)

// unread is the writing end of a pipe that is full, and the reading end.
func unread(t *testing.T) (r, w *os.File) {
	t.Helper()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(ends[0]), "unread"), os.NewFile(uintptr(ends[1]), "unread")
	t.Cleanup(func() { r.Close() })
	t.Cleanup(func() { w.Close() })
	size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	if err == nil {
		_, err = w.Write(append(bytes.Repeat([]byte("#"), size-1), '\n'))
	}
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// A mount whose log nobody reads serves all the same, and ends when it is told to. Each
// line of its log once waited for a reader, and with it whoever read the mount. One who
// comes back sees how many lines are missing.
func TestUnreadLog(t *testing.T) {
	testenv.FUSE(t)
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprintf("the reader comes back %v", back), func(t *testing.T) {
			l := newLongTalk(t)
			target := filepath.Join(l.work, "target")
			if err := os.Mkdir(target, 0o755); err != nil {
				t.Fatal(err)
			}
			r, w := unread(t)
			cmd := exec.CommandContext(t.Context(), "overmount", "mount", "-m", l.meta, "-c", "none", target)
			cmd.Stderr = w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
			if err := awaitMount(target); err != nil {
				t.Fatal(err)
			}
			l.read(t, target)
			var text bytes.Buffer
			read := make(chan struct{})
			go func() {
				defer close(read)
				if back {
					io.Copy(&text, r)
				}
			}()
			endInTime(t, cmd)
			if isMounted(target) {
				t.Error("after the end it is still mounted")
			}
			<-read
			if back {
				checkMissing(t, text.String())
			}
		})
	}
}

// A boot goes on though its console is stopped, and what it could not say there is in
// its log.
func TestUnreadConsole(t *testing.T) {
	dir, config := firmwareBoot(t)
	_, w := unread(t)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "overmount", "boot", "--config", config)
	cmd.Stderr = w
	t.Cleanup(func() {
		for _, pid := range daemons(config) {
			if err := errors.Join(unix.Kill(pid, unix.SIGTERM), awaitEnd(pid)); err != nil {
				t.Error(err)
			}
		}
		unix.Unmount(dir+"/target", unix.MNT_DETACH)
	})
	if err := cmd.Run(); err != nil {
		t.Fatalf("boot: %v, after %v at most", err, limit)
	}
	text, err := os.ReadFile(dir + "/run/boot.log")
	if err != nil || !strings.Contains(string(text), "msg=booted") || !isMounted(dir+"/target") {
		t.Errorf("the boot is not mounted, or its log does not say so: %v\n%s", err, text)
	}
}

// What libraries say by themselves is in the log, too, and nowhere else: whoever does
// not read stderr would stop them.
func TestLibrariesTalk(t *testing.T) {
	before, to := slog.Default(), log.Writer()
	t.Cleanup(func() {
		slog.SetDefault(before)
		log.SetOutput(to)
		slog.SetLogLoggerLevel(slog.LevelInfo)
	})
	var text bytes.Buffer
	a := &app{logLevel: "warn"}
	if _, err := a.lastingLogger(nil, &text); err != nil {
		t.Fatal(err)
	}
	log.Print("an answer that nobody has asked for")
	if got := text.String(); !strings.Contains(got, `level=WARN msg="an answer that nobody has asked for"`) {
		t.Errorf("the log has %q", got)
	}
}

// A longTalk is a tree that the log of its mount has much to say of: many files, far
// from the root, that the store has lost. Of others each second answer is an error.
type longTalk struct {
	*served
	lost []string
}

func newLongTalk(t *testing.T) *longTalk {
	t.Helper()
	l := &longTalk{served: serveTree(t)}
	l.meta = filepath.Join(l.work, "lost.fl")
	src := filepath.Join(l.work, "lost")
	deep := strings.Repeat(strings.Repeat("d", 250)+"/", 12)
	for i := range 120 {
		name := fmt.Sprintf("%s%d", deep, i)
		l.lost = append(l.lost, name)
		file := filepath.Join(src, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(src, "f"), l.data, 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "overmount", "pack", "-m", l.meta, "-s", "dir://"+l.work+"/objects", src)
	mustRun(t, "overmount", "config", "-m", l.meta, "store", "delete", "-a")
	mustRun(t, "overmount", "config", "-m", l.meta, "store", "add", "-s", l.web.URL)
	var n atomic.Int64
	l.web.Always(func(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
		switch {
		case len(object) < block.Size/2:
			http.NotFound(w, r)
		case n.Add(1)%2 == 1:
			storetest.Status(500)(w, r, id, object)
		default:
			storetest.ServeObject(w, r, id, object)
		}
	})
	return l
}

// read reads what the store has from the mount, and tries to read the rest.
func (l *longTalk) read(t *testing.T, target string) {
	t.Helper()
	if got := mustRun(t, "head", "-c", fmt.Sprint(block.Size), filepath.Join(target, "f")); got != string(l.data[:block.Size]) {
		t.Errorf("the file has %d bytes, or wrong ones", len(got))
	}
	var files []string
	for _, name := range l.lost {
		files = append(files, filepath.Join(target, name))
	}
	if r := run(t, "cat", files...); r.code != 1 || strings.Count(r.stderr, "Input/output error") != len(files) {
		t.Errorf("cat of what is lost: exit code %d, %d errors of input and output, want %d", r.code, strings.Count(r.stderr, "Input/output error"), len(files))
	}
}

// endInTime has a mount end, which must not take long even if its last words are in
// vain.
func endInTime(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the mount ended with %v", err)
		}
	case <-time.After(lastUse + lastWords):
		t.Errorf("the mount still runs %v after SIGTERM", lastUse+lastWords)
		if err := errors.Join(unix.Unmount(cmd.Args[len(cmd.Args)-1], unix.MNT_FORCE|unix.MNT_DETACH), cmd.Process.Kill(), <-ended); err != nil {
			t.Log(err)
		}
	}
}

// checkMissing checks that a log says where it has lost lines, and is whole else.
func checkMissing(t *testing.T, text string) {
	t.Helper()
	missing := regexp.MustCompile(`(?m)^time=\S+ level=WARN msg="lines are missing here: nobody read the log, or it could not be written" lines=[1-9]\d*$`)
	text = strings.TrimLeft(text, "#\n")
	if !missing.MatchString(text) {
		t.Errorf("no line of the log says that some are missing: %.2000s", text)
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for _, want := range []string{"msg=mounted", "asking again", "msg=unmounted"} {
		if !strings.Contains(text, want) {
			t.Errorf("no line of the log has %q", want)
		}
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("a line of the log is %.200q", line)
		}
	}
}
