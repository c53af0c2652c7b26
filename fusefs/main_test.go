package fusefs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree"
	"overmount/tree/treetest"
)

// helperEnv makes the test binary one of the programs below. What uses a mount
// must be another process than the one that serves it.
const helperEnv = "FUSEFS_TEST_HELPER"

func TestMain(m *testing.M) {
	helpers := map[string]func(args []string) error{
		"walk": helperWalk, "parallel": helperParallel, "signals": helperSignals, "mmap": helperMmap,
		"fusermount": helperFusermount,
	}
	name := os.Getenv(helperEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := helpers[name](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// helper returns the command that runs one of the helpers.
func helper(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
}

// helperWalk prints what it finds below a directory.
func helperWalk(args []string) error {
	out := json.NewEncoder(os.Stdout)
	return filepath.WalkDir(args[0], func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		s, err := treetest.Look(name)
		if err != nil {
			return err
		}
		s.Path, err = filepath.Rel(args[0], name)
		return errors.Join(err, out.Encode(s))
	})
}

// helperParallel reads files from 64 goroutines, each from another place on,
// and says the SHA-256 of what they all saw of each.
func helperParallel(args []string) error {
	var wg sync.WaitGroup
	failed := make(chan error, 64)
	for i := range 64 {
		wg.Go(func() { failed <- readRotated(args[i%len(args)], i) })
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

// readRotated reads a file from its i-th part on, then what is before, and
// compares that with the file's name, which is the SHA-256 of its content.
func readRotated(name string, i int) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	data := make([]byte, info.Size())
	from := info.Size() * int64(i) / 64
	if _, err := f.ReadAt(data[from:], from); err != nil {
		return err
	}
	if _, err := f.ReadAt(data[:from], 0); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", sha256.Sum256(data)); got != filepath.Base(name) {
		return fmt.Errorf("%s: the content's SHA-256 is %s", name, got)
	}
	return nil
}

// helperSignals reads the beginning of a file past the page cache, so that the
// kernel sends INTERRUPT, while signals that it handles come to its thread.
func helperSignals(args []string) error {
	runtime.LockOSThread()
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGALRM, unix.SIGURG)
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	tid := unix.Gettid()
	go func() {
		for range time.Tick(time.Millisecond) {
			unix.Tgkill(os.Getpid(), tid, unix.SIGALRM)
			unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
		}
	}()
	n, err := unix.Pread(fd, page, 0)
	if err != nil {
		return fmt.Errorf("pread: %w", err)
	}
	<-caught
	_, err = os.Stdout.Write(page[:n])
	return err
}

// helperMmap touches the first page of a mapped file.
func helperMmap(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	data, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write([]byte{data[0]})
	return err
}

// helperFusermount stands in for fusermount3: it mounts what it is told and sends
// the connection, or unmounts.
func helperFusermount(args []string) error {
	dir := args[len(args)-1]
	if args[0] == "-u" {
		return unix.Unmount(dir, 0)
	}
	o := Options{FSName: "by-helper", Subtype: "test", AllowOther: strings.Contains(args[1], ",allow_other")}
	fd, err := mountRoot(dir, o)
	if err != nil {
		return err
	}
	fmt.Fprint(os.Stderr, args)
	return unix.Sendmsg(3, []byte{0}, unix.UnixRights(fd), nil, 0)
}

// logs collects what a Server logs.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// take returns what was logged since the last take.
func (l *logs) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.buf.Reset()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// A mounted tree.
type mounted struct {
	*Server
	dir string
	t   *tree.Tree
	src *storetest.Faulty
	log *logs
}

// path returns where a node of the tree is.
func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

// mountTree mounts files packed into a store that can be told to fail, and
// unmounts them when the test is over.
func mountTree(tb testing.TB, o Options, files ...treetest.File) *mounted {
	tb.Helper()
	man, mem := treetest.Build(tb, block.Zstd, files...)
	return mountManifest(tb, o, man, mem, dying)
}

func mountManifest(tb testing.TB, o Options, man *manifest.Manifest, src store.Reader, dying func(uint32) bool) *mounted {
	tb.Helper()
	testenv.FUSE(tb)
	m := &mounted{dir: tb.TempDir(), src: storetest.NewFaulty(src), log: &logs{}}
	m.t = tree.New(man, m.src, nil)
	if o.Logger == nil {
		o.Logger = m.log.logger()
	}
	raw := newRawFS(m.t, o.filled())
	raw.dying = dying
	var err error
	if m.Server, err = mount(tb.Context(), m.dir, raw); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.end(tb) })
	return m
}

// end unmounts, whatever the test has left.
func (m *mounted) end(tb testing.TB) {
	if err := m.Unmount(); err != nil {
		tb.Errorf("%v; unmounting lazily", err)
		unix.Unmount(m.dir, unix.MNT_FORCE|unix.MNT_DETACH)
	}
	m.wait(tb)
}

func (m *mounted) wait(tb testing.TB) {
	tb.Helper()
	select {
	case <-m.Done():
	case <-time.After(30 * time.Second):
		tb.Error("the server still runs 30 s after its mount went away")
	}
}

// run runs a program, and returns what it prints; limit keeps a mount that hangs
// from hanging the test.
func run(tb testing.TB, name string, args ...string) (stdout, stderr string, err error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), limit)
	defer cancel()
	return output(exec.CommandContext(ctx, name, args...))
}

const limit = time.Minute

func runHelperProgram(tb testing.TB, name string, args ...string) (stdout, stderr string, err error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), limit)
	defer cancel()
	return output(helper(ctx, name, args...))
}

func output(cmd *exec.Cmd) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// walk returns what another process finds in a mount.
func walk(tb testing.TB, dir string) map[string]treetest.Seen {
	tb.Helper()
	stdout, stderr, err := runHelperProgram(tb, "walk", dir)
	if err != nil {
		tb.Fatalf("walk: %v: %s", err, stderr)
	}
	all := map[string]treetest.Seen{}
	for d := json.NewDecoder(strings.NewReader(stdout)); ; {
		var s treetest.Seen
		if err := d.Decode(&s); err == io.EOF {
			return all
		} else if err != nil {
			tb.Fatal(err)
		}
		all[s.Path] = s
	}
}
