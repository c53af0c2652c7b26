package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store/storetest"
)

// recovery is how soon after an outage a read that has waited for its end is done.
const recovery = 2 * time.Second

// outage is how long stores are away: 4 s, or a minute where there is time.
func outage() time.Duration {
	if os.Getenv("OVERMOUNT_TEST_LONG") == "1" {
		return time.Minute
	}
	return 4 * time.Second
}

// TestOutage reads a file while its store is away for some time. The read waits,
// and is done soon after the store is back; who reads and is killed ends at once;
// who reads what is in the cache notices nothing.
func TestOutage(t *testing.T) {
	testenv.FUSE(t)
	k := newKitchen(t, map[string]int{"wanted": 2*block.Size + 17, "cached": 300, "given up": block.Size, "undisturbed": 2*block.Size + 18})
	var cases sync.WaitGroup
	for _, c := range []struct {
		name   string
		fault  storetest.ProxyFault
		inBody bool // the outage begins in the middle of an answer
	}{
		{"refuse", storetest.ProxyFault{Refuse: true}, false},
		{"refuse in mid-body", storetest.ProxyFault{Refuse: true}, true},
		{"hang", storetest.ProxyFault{Hang: true}, false},
		{"hang in mid-body", storetest.ProxyFault{Hang: true}, true},
		{"black hole", storetest.ProxyFault{Swallow: true}, false},
		{"black hole in mid-body", storetest.ProxyFault{Swallow: true}, true},
	} {
		cases.Go(func() {
			t.Run(c.name, func(t *testing.T) {
				w := k.newWay(t)
				m := k.mount(t, outage()+30*time.Second, w.url)
				mustRun(t, "cat", filepath.Join(m.dir, "cached"))
				m.stop(t) // so that it is in the cache, and not in the kernel's
				m.start(t)
				k.outage(t, w, m, c.fault, c.inBody)
			})
		})
	}
	cases.Wait()
}

func (k *kitchen) outage(t *testing.T, w *way, m mounted, fault storetest.ProxyFault, inBody bool) {
	var wanted *reader
	if inBody {
		gate := storetest.NewGate()
		w.server.Always(storetest.HangInBody(gate))
		wanted = m.read(t, "wanted")
		<-gate.Arrived()
		w.proxy.Set(fault)
		w.server.Always(nil)
		gate.Open()
	} else {
		w.proxy.Set(fault)
		wanted = m.read(t, "wanted")
	}
	over := time.After(outage())

	victim := m.read(t, "given up")
	victim.waits(t)
	if err := victim.cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-victim.ended:
	case <-time.After(recovery):
		t.Errorf("a reader that was killed is still there after %v:\n%s", recovery, victim.status())
	}
	for range 2 {
		if got := mustRun(t, "cat", filepath.Join(m.dir, "cached")); got != string(k.files["cached"]) {
			t.Errorf("during the outage a cached file reads as %d bytes, want its %d", len(got), len(k.files["cached"]))
		}
	}
	select {
	case <-wanted.ended:
		t.Fatalf("the read ended during the outage: %q", &wanted.stderr)
	case <-over:
	}

	w.proxy.Set(storetest.ProxyFault{})
	back := time.Now()
	<-wanted.ended
	took := time.Since(back)
	usual := m.undisturbed(t)
	if most := recovery + 2*usual; took > most {
		t.Errorf("the read was done %v after the store was back, want %v at most where one takes %v without an outage", took, most, usual)
	} else {
		t.Logf("the read was done %v after the store was back", took.Round(time.Millisecond))
	}
	if !bytes.Equal(wanted.stdout.Bytes(), k.files["wanted"]) {
		t.Errorf("the read gave %d bytes and %q, want the %d of the file", wanted.stdout.Len(), &wanted.stderr, len(k.files["wanted"]))
	}
	if !k.readOrEIO(t, m) {
		t.Error("after the outage a read failed")
	}
}

// undisturbed returns how long it takes to read a file like the wanted one that nothing
// is wrong with: on a machine that does much else that is no moment.
func (m mounted) undisturbed(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	mustRun(t, "cat", filepath.Join(m.dir, "undisturbed"))
	return time.Since(start)
}

// A reader is a process that reads a file.
type reader struct {
	file           string
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	ended          chan struct{}
}

// read starts to read a file.
func (m mounted) read(t *testing.T, name string) *reader {
	t.Helper()
	r := &reader{file: filepath.Join(m.dir, name), ended: make(chan struct{})}
	r.cmd = exec.CommandContext(t.Context(), "cat", r.file)
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.ended)
		r.cmd.Wait()
	}()
	return r
}

// waits returns when the reader has the file open and waits in read(2).
func (r *reader) waits(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond) // nothing announces it
	defer tick.Stop()
	for !r.reading() {
		select {
		case <-tick.C:
		case <-r.ended:
			t.Fatalf("cat %s ended before it was killed: %q", r.file, &r.stderr)
		}
	}
}

func (r *reader) reading() bool {
	proc := fmt.Sprintf("/proc/%d/", r.cmd.Process.Pid)
	call, err := os.ReadFile(proc + "syscall")
	if err != nil || !strings.HasPrefix(string(call), fmt.Sprintf("%d 0x", unix.SYS_READ)) {
		return false
	}
	var fd int
	if _, err := fmt.Sscanf(string(call), "%v 0x%x", new(int), &fd); err != nil {
		return false
	}
	name, err := os.Readlink(fmt.Sprintf("%sfd/%d", proc, fd))
	return err == nil && name == r.file
}

// status says what the reader's process is doing.
func (r *reader) status() string {
	var text strings.Builder
	for _, name := range []string{"status", "wchan", "stack"} {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", r.cmd.Process.Pid, name))
		fmt.Fprintf(&text, "%s: %s\n", name, b)
	}
	return text.String()
}
