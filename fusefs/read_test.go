package fusefs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree"
	"overmount/tree/treetest"
)

func newTree(m *manifest.Manifest, src store.Reader) *tree.Tree { return tree.New(m, src, nil) }

// shell starts a script whose $0 is arg, with pipes to and from it.
func shell(t *testing.T, script, arg string) (*exec.Cmd, io.Writer, *bufio.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script, arg)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return cmd, in, bufio.NewReader(out)
}

// readLine returns a line, or what there is of the last one.
func readLine(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// stuck returns a file system whose first answer does not come before the context
// ends, which it does then.
func stuck(t *testing.T, tr *tree.Tree) (context.Context, *rawFS) {
	ctx, cancel := context.WithCancel(t.Context())
	w := writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("GETATTR")) {
			cancel()
			<-ctx.Done()
		}
		return len(p), nil
	})
	log := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return ctx, newRawFS(tr, (&Options{Debug: true, Logger: log}).filled())
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func bigFile() treetest.File { return treetest.File{Path: "d/big.ko", Mode: 0o644, Data: big} }

func TestLostBlock(t *testing.T) {
	for name, fault := range map[string]storetest.Fault{
		"not found": storetest.NotFound(), "corrupt": storetest.WrongBytes(), "truncated": storetest.Truncated(),
		"failing": storetest.Fail(errors.New("connection reset")), "enoent": storetest.Fail(unix.ENOENT), "cancelled": storetest.Fail(context.Canceled),
	} {
		t.Run(name, func(t *testing.T) {
			m := mountTree(t, Options{}, bigFile())
			ino, err := m.t.Manifest().Find("d/big.ko")
			if err != nil {
				t.Fatal(err)
			}
			lost := m.t.Manifest().Blocks(ino)[1].ID
			m.src.Always(func(ctx context.Context, id block.ID, next func() ([]byte, error)) ([]byte, error) {
				if id == lost {
					return fault(ctx, id, next)
				}
				return next()
			})
			for range 3 {
				stdout, stderr, err := run(t, "cat", m.path("d/big.ko"))
				if err == nil || !strings.Contains(stderr, "Input/output error") {
					t.Errorf("cat of a file with a lost block = %v, %q, want Input/output error", err, stderr)
				}
				if len(stdout) > block.Size || stdout != string(big[:len(stdout)]) {
					t.Errorf("cat gave %d bytes, want nothing but what is before the lost block", len(stdout))
				}
			}
			log := m.log.take()
			if strings.Count(log, "\n") != 1 || !strings.Contains(log, lost.String()) || !strings.Contains(log, "d/big.ko") {
				t.Errorf("log = %q, want one line that names the block and the file", log)
			}
			m.src.Always(nil)
			if stdout, stderr, err := run(t, "cat", m.path("d/big.ko")); err != nil || stdout != string(big) {
				t.Errorf("cat after the store was healed = %d bytes, %v, %q, want the file", len(stdout), err, stderr)
			}
		})
	}
}

// A stopwatch measures from the beginning of the first READ to the end of the last.
type stopwatch struct {
	mu       sync.Mutex
	from, to time.Time
}

func (w *stopwatch) Read(manifest.Ino, int64, int) func(error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.from.IsZero() {
		w.from = time.Now()
	}
	return func(error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.to = time.Now()
	}
}

func (w *stopwatch) took() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Sub(w.from)
}

func TestReadTimeout(t *testing.T) {
	const budget = 2 * time.Second
	var reads stopwatch // how long it takes to start cat is the machine's affair
	m := mountTree(t, Options{ReadTimeout: budget, Watcher: &reads}, bigFile())
	m.src.Always(storetest.Hang())
	_, stderr, err := run(t, "cat", m.path("d/big.ko"))
	if took := reads.took(); took < budget || took > budget*19/10 {
		t.Errorf("the READs of a cat took %v, want little more than %v, not twice that", took, budget)
	}
	if err == nil || !strings.Contains(stderr, "Input/output error") {
		t.Errorf("cat = %v, %q, want Input/output error", err, stderr)
	}
	if log := m.log.take(); !strings.Contains(log, "deadline") || !strings.Contains(log, "2s") {
		t.Errorf("log = %q, want it to say that 2 s were over", log)
	}
	m.src.Always(nil)
	if stdout, _, err := run(t, "cat", m.path("d/big.ko")); err != nil || stdout != string(big) {
		t.Errorf("cat after the store was healed = %d bytes, %v, want the file", len(stdout), err)
	}
}

func TestTimeoutIsRememberedForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l failures
		a, b := block.Ref{ID: block.ID{1}}, block.Ref{ID: block.ID{2}}
		l.timedOut([]block.Ref{a})
		for _, c := range []struct {
			refs []block.Ref
			want bool
		}{{nil, false}, {[]block.Ref{b}, false}, {[]block.Ref{b, a}, true}} {
			if got := l.justTimedOut(c.refs); got != c.want {
				t.Errorf("justTimedOut(%d blocks) = %v, want %v", len(c.refs), got, c.want)
			}
		}
		time.Sleep(moment)
		if l.justTimedOut([]block.Ref{a}) {
			t.Errorf("justTimedOut after %v = true, want false", moment)
		}
	})
}

func TestBlocksOfARead(t *testing.T) {
	man, mem := treetest.Build(t, block.Zstd, bigFile())
	f := newRawFS(newTree(man, mem), (&Options{}).filled())
	ino, err := man.Find("d/big.ko")
	if err != nil {
		t.Fatal(err)
	}
	all := man.Blocks(ino)
	for _, c := range []struct {
		off         int64
		n           int
		first, last int
	}{
		{0, 1, 0, 1}, {0, block.Size, 0, 1}, {0, block.Size + 1, 0, 2}, {block.Size - 1, 1, 0, 1}, {block.Size - 1, 2, 0, 2},
		{block.Size, 1, 1, 2}, {0, 1 << 30, 0, 4}, {3 * block.Size, 1 << 20, 3, 4}, {4 * block.Size, 1, 0, 0}, {-1, 1, 0, 0}, {0, 0, 0, 0},
	} {
		if got := f.blocks(ino, c.off, c.n); !slices.Equal(got, all[c.first:c.last]) {
			t.Errorf("blocks(%d, %d) = %d blocks, want %d to %d", c.off, c.n, len(got), c.first, c.last)
		}
	}
}

// Each object is requested once, however many read it at the same time.
func TestParallelReaders(t *testing.T) {
	var files []treetest.File
	var paths []string
	for i := range 3 {
		data := treetest.Random(uint64(i), 2*block.Size+i*1000)
		name := fmt.Sprintf("%x", sha256.Sum256(data))
		files = append(files, treetest.File{Path: name, Mode: 0o644, Data: data})
		paths = append(paths, name)
	}
	m := mountTree(t, Options{}, files...)
	for i := range paths {
		paths[i] = m.path(paths[i])
	}
	if _, stderr, err := runHelperProgram(t, "parallel", paths...); err != nil {
		t.Errorf("parallel readers: %v: %s", err, stderr)
	}
	for _, ref := range m.t.Manifest().AllBlocks() {
		if n := m.src.Requests(ref.ID); n != 1 {
			t.Errorf("block %v was requested %d times, want 1", ref.ID, n)
		}
	}
}

// hang makes the store hang, starts cmd, and waits until its read has come to the
// store.
func (m *mounted) hang(t *testing.T, cmd *exec.Cmd) *storetest.Gate {
	t.Helper()
	gate := m.closeGate()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	arrive(t, gate)
	return gate
}

// closeGate makes the store hang.
func (m *mounted) closeGate() *storetest.Gate {
	gate := storetest.NewGate()
	m.src.Always(storetest.Through(gate))
	return gate
}

func arrive(t *testing.T, gate *storetest.Gate) {
	t.Helper()
	select {
	case <-gate.Arrived():
	case <-time.After(limit):
		t.Fatal("no read came to the store")
	}
}

// ends reports whether a process ends soon, far within the budget of a READ.
func ends(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		return errors.New("it still runs after 20 s")
	}
}

// heedHangups has what this test starts heed SIGHUP, also if the test was started by
// nohup: that a signal is ignored is inherited, that it is handled is not.
func heedHangups(t *testing.T) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGHUP)
	t.Cleanup(func() { signal.Stop(c) })
}

// A reader that waits can be killed, through the page cache, past it, and in a
// page fault; and nothing of it keeps the mount from going away.
func TestKilledReader(t *testing.T) {
	heedHangups(t)
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGHUP} { // dd handles SIGINT
		for name, command := range map[string]func(file string) *exec.Cmd{
			"cached": func(file string) *exec.Cmd { return exec.Command("cat", file) },
			"direct": func(file string) *exec.Cmd {
				return exec.Command("dd", "if="+file, "of=/dev/null", "iflag=direct", "bs=64k")
			},
			"mapped": func(file string) *exec.Cmd { return helper(context.Background(), "mmap", file) },
		} {
			t.Run(fmt.Sprintf("%s/%v", name, sig), func(t *testing.T) {
				if name == "mapped" && sig != unix.SIGKILL {
					t.Skip("the helper is a Go program, which handles the others")
				}
				m := mountTree(t, Options{}, bigFile())
				cmd := command(m.path("d/big.ko"))
				m.hang(t, cmd)
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				var exit *exec.ExitError
				if err := ends(cmd); !errors.As(err, &exit) || exit.Sys().(interface{ Signal() unix.Signal }).Signal() != sig {
					t.Errorf("the reader ended with %v, want death by %v", err, sig)
				}
				m.end(t) // while the read ahead still waits
			})
		}
	}
}

// mountWatched mounts bigFile, and tells when the caller of an interrupted read
// is looked at.
func mountWatched(t *testing.T) (*mounted, <-chan struct{}) {
	t.Helper()
	asked := make(chan struct{}, 1000)
	man, mem := treetest.Build(t, block.Zstd, bigFile())
	return mountManifest(t, Options{}, man, mem, func(tid uint32) bool {
		asked <- struct{}{}
		return dying(tid)
	}), asked
}

func await(t *testing.T, asked <-chan struct{}) {
	t.Helper()
	select {
	case <-asked:
	case <-time.After(limit):
		t.Fatal("no INTERRUPT came, or it was not looked into")
	}
}

// A signal that a program handles, as Go's runtime sends itself, is not the end
// of its reads.
func TestHandledSignals(t *testing.T) {
	m, asked := mountWatched(t)
	cmd := helper(t.Context(), "signals", m.path("d/big.ko"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	gate := m.hang(t, cmd)
	for range 3 { // the kernel said INTERRUPT once, and the caller is looked at again and again
		await(t, asked)
	}
	gate.Open()
	if err := ends(cmd); err != nil || !bytes.Equal(out.Bytes(), big[:4096]) {
		t.Errorf("a reader with a timer: %v, %d bytes, %s, want its page", err, out.Len(), errs.String())
	}
}

// A read that was interrupted for nothing ends when its caller is killed later:
// the kernel does not say so again.
func TestKilledAfterHandledSignals(t *testing.T) {
	m, asked := mountWatched(t)
	cmd := helper(t.Context(), "signals", m.path("d/big.ko"))
	m.hang(t, cmd)
	await(t, asked)
	cmd.Process.Kill()
	var exit *exec.ExitError
	if err := ends(cmd); !errors.As(err, &exit) {
		t.Errorf("the reader ended with %v, want death", err)
	}
}

// Breaking the connection ends reads whose callers live on: a shell's own read.
func TestReadsEndWithTheMount(t *testing.T) {
	m := mountTree(t, Options{}, bigFile())
	gate := m.closeGate()
	_, _, out := shell(t, `read x <"$0"; echo on; read y`, m.path("d/big.ko"))
	arrive(t, gate)
	if err := unix.Unmount(m.dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if line := readLine(t, out); line != "on" {
		t.Errorf("the shell said %q after its read, want it to live on", line)
	}
	m.wait(t)
}

// A handler that panics answers.
func TestPanic(t *testing.T) {
	log := &logs{}
	var once sync.Once
	w := writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("a read failed")) {
			once.Do(func() { panic("out of tea") })
		}
		return log.Write(p)
	})
	m := mountTree(t, Options{Logger: slog.New(slog.NewTextHandler(w, nil))}, bigFile())
	m.src.Always(storetest.NotFound())
	if _, stderr, err := run(t, "cat", m.path("d/big.ko")); err == nil || !strings.Contains(stderr, "Input/output error") {
		t.Errorf("cat = %v, %q, want Input/output error", err, stderr)
	}
	if got := log.take(); !strings.Contains(got, "out of tea") || !strings.Contains(got, "read.go") {
		t.Errorf("log = %q, want the panic and its stack", got)
	}
}

// What the kernel never asks for.
func TestReadOutOfRange(t *testing.T) {
	man, mem := treetest.Build(t, block.Zstd, bigFile())
	f := newRawFS(newTree(man, mem), (&Options{}).filled())
	ino, err := man.Find("d/big.ko")
	if err != nil {
		t.Fatal(err)
	}
	size := uint64(len(big))
	for _, c := range []struct {
		node, off uint64
		want      int
		status    fuse.Status
	}{
		{uint64(ino), 0, 4096, fuse.OK},
		{uint64(ino), size - 1, 1, fuse.OK},
		{uint64(ino), size, 0, fuse.OK},
		{uint64(ino), 1 << 62, 0, fuse.OK},
		{uint64(ino), 1 << 63, 0, fuse.EIO},
		{1, 0, 0, fuse.EISDIR},
		{1 << 40, 0, 0, fuse.Status(unix.ESTALE)},
	} {
		in := &fuse.ReadIn{Offset: c.off, Size: 4096}
		in.NodeId = c.node
		result, status := f.Read(nil, in, make([]byte, 4096))
		n := 0
		if result != nil {
			n = result.Size()
		}
		if n != c.want || status != c.status {
			t.Errorf("READ node %d at %d = %d bytes, %v, want %d, %v", c.node, c.off, n, status, c.want, c.status)
		}
	}
}

func TestFailuresAreNewsOncePerBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l failures
		for i := range 6 {
			for j := range byte(2) {
				if got, want := l.first(block.ID{j}), i == 0 || i == 3; got != want {
					t.Errorf("first(%d), time %d = %v, want %v", j, i, got, want)
				}
			}
			time.Sleep(quiet / 3)
		}
		for i := range maxFailures + 1 {
			l.first(block.ID{1, byte(i), byte(i >> 8)})
		}
		if len(l.told) > maxFailures {
			t.Errorf("%d blocks are remembered, want %d at most", len(l.told), maxFailures)
		}
	})
}

func TestFatalPending(t *testing.T) {
	for _, c := range []struct {
		thread, process, blocked, ignored, caught uint64
		want                                      bool
	}{
		{want: false},
		{thread: mask(unix.SIGKILL), want: true},
		{process: mask(unix.SIGKILL), blocked: 1<<64 - 1, ignored: 1<<64 - 1, want: true},
		{process: mask(unix.SIGTERM), want: true},
		{thread: mask(unix.SIGSEGV), want: true},
		{process: mask(unix.SIGTERM), caught: mask(unix.SIGTERM), want: false},
		{process: mask(unix.SIGTERM), blocked: mask(unix.SIGTERM), want: false},
		{process: mask(unix.SIGHUP), ignored: mask(unix.SIGHUP), want: false},
		{process: mask(unix.SIGTERM, unix.SIGALRM), caught: mask(unix.SIGALRM), want: true},
		{process: mask(unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGCONT, unix.SIGSTOP, unix.SIGTSTP), want: false},
		{thread: 1 << 63, want: true}, // SIGRTMAX
	} {
		status := fmt.Sprintf("Name:\tx\nThreads:\t1\nSigQ:\t0/1\nSigPnd:\t%016x\nShdPnd:\t%016x\nSigBlk:\t%016x\nSigIgn:\t%016x\nSigCgt:\t%016x\nCapInh:\t0\n",
			c.thread, c.process, c.blocked, c.ignored, c.caught)
		if got := fatalPending([]byte(status)); got != c.want {
			t.Errorf("fatalPending(%+v) = %v, want %v", c, got, c.want)
		}
	}
	for _, status := range []string{"", "\nSigPnd:", "\nSigPnd:\tx\n"} {
		if fatalPending([]byte(status)) {
			t.Errorf("fatalPending(%q) = true, want false", status)
		}
	}
}

func TestDying(t *testing.T) {
	cmd, _, _ := shell(t, `trap "" TERM; read x`, "sh")
	if dying(uint32(cmd.Process.Pid)) {
		t.Error("dying(a shell that waits) = true")
	}
	if dying(0) {
		t.Error("dying(0) = true")
	}
	cmd.Process.Kill()
	cmd.Wait()
	if !dying(uint32(cmd.Process.Pid)) {
		t.Error("dying(a process that is gone) = false")
	}
}
