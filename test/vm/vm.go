// Package vm boots virtual machines in tests: a kernel and an image, with the
// devices that a test wants, in QEMU.
//
//	m := vm.Start(t, vm.Options{Kernel: vm.Kernel(t), Initrd: image, Devices: vm.Devices(t)})
//	m.WaitFor("ready")
//	m.End()
//
// The processor is emulated (TCG): that works wherever QEMU does, and needs no
// privilege. A machine that has KVM may have one that boots nothing. It is a plain
// one, because each of its extensions brings modules that test themselves for
// seconds.
//
// Networks are QEMU's own, without a device on the host. The guest finds the host's
// loopback at 10.0.2.2, and nothing else is of use to it.
//
// Whatever happens, a machine ends with its test or at its limit.
package vm

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
)

// HostAddr is where a guest finds what listens on the loopback of the host.
const HostAddr = "10.0.2.2"

// Options say which machine to start.
type Options struct {
	Kernel  string // a file, as boot/vmlinuz-KVER
	Initrd  string // a file
	Cmdline string // beside the console
	Devices []Device

	Memory int           // MiB; 0 means 512
	CPUs   int           // 0 means 2
	Limit  time.Duration // after which the machine is ended; 0 means 180 s

	// Counted has the clock of the guest count instructions, one a nanosecond,
	// whatever else the host does meanwhile. Then there is one processor.
	Counted bool
	// Processor is QEMU's name of it; empty means a plain one.
	Processor string
	// Files are open in QEMU, the first as descriptor 4.
	Files []*os.File
}

// A Device is something that QEMU puts into a machine, and what a kernel is to make
// of it.
type Device struct {
	// Args are for QEMU. They should say where on the bus the device is.
	Args []string
	// Slot is where sysfs has it, as 0000:00:03.0; empty for what is on no PCI bus.
	Slot string
	// Driver is the one that binds; empty if that does not matter.
	Driver string
	// Cmdline is what makes the driver ask for Firmware.
	Cmdline string
	// Firmware is the file that the driver asks for, empty for none.
	Firmware string
	// Content is a firmware that the driver takes.
	Content []byte
}

// A VM is a machine that runs, or did.
type VM struct {
	t     testing.TB
	cmd   *exec.Cmd
	qmp   *qmp
	limit time.Duration
	start time.Time
	done  chan struct{} // closed when QEMU has ended

	mu      sync.Mutex
	console strings.Builder
	changed chan struct{} // closed and replaced when there is more
	killed  bool
	waitErr error
}

// Kernel returns a kernel that a machine can boot, and its modules. It is that of
// [testenv.Kernel], whose tree must have it in boot, as a Debian package does.
func Kernel(tb testing.TB) (vmlinuz, modules string) {
	tb.Helper()
	modules = testenv.Kernel(tb)
	kver := filepath.Base(modules)
	root := filepath.Dir(filepath.Dir(filepath.Dir(modules)))
	vmlinuz = filepath.Join(root, "boot", "vmlinuz-"+kver)
	if _, err := os.Stat(vmlinuz); err != nil {
		testenv.Need(tb, fmt.Sprintf("the kernel of %s is not beside it: %v", modules, err))
	}
	return vmlinuz, modules
}

// Start starts a machine, which ends with the test.
func Start(tb testing.TB, o Options) *VM {
	tb.Helper()
	v := &VM{t: tb, limit: o.Limit, start: time.Now(), done: make(chan struct{}), changed: make(chan struct{})}
	if v.limit == 0 {
		v.limit = 180 * time.Second
	}
	v.cmd = exec.Command(testenv.Tool(tb, "qemu-system-x86_64"), o.args()...)
	mine, its := socketPair(tb)
	v.cmd.ExtraFiles = append([]*os.File{its}, o.Files...)
	// A test that is killed, or runs out of time, cleans nothing up.
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, in, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	v.cmd.Stdout, v.cmd.Stderr = in, in
	err = v.cmd.Start()
	in.Close()
	its.Close()
	if err != nil {
		tb.Fatalf("start QEMU: %v", err)
	}
	v.qmp = newQMP(tb, mine)
	go v.read(out)
	end := time.AfterFunc(v.limit, v.kill)
	tb.Cleanup(func() {
		end.Stop()
		v.kill()
		<-v.done
		if tb.Failed() {
			tb.Logf("the machine's console:\n%s", v.Console())
		}
	})
	return v
}

// args are the arguments of QEMU. Its monitor is file descriptor 3.
func (o *Options) args() []string {
	cmdline := []string{"console=ttyS0", "panic=-1", "quiet"}
	for _, d := range o.Devices {
		if d.Cmdline != "" {
			cmdline = append(cmdline, d.Cmdline)
		}
	}
	cmdline = append(cmdline, o.Cmdline)
	memory, cpus := o.Memory, o.CPUs
	if memory == 0 {
		memory = 512
	}
	if cpus == 0 {
		cpus = 2
	}
	threads := "multi"
	if o.Counted {
		threads, cpus = "single", 1
	}
	args := []string{
		"-accel", "tcg,thread=" + threads, "-cpu", cmp.Or(o.Processor, "qemu64"), "-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(memory),
		"-machine", "q35", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
		"-kernel", o.Kernel, "-initrd", o.Initrd, "-append", strings.TrimSpace(strings.Join(cmdline, " ")),
	}
	if o.Counted {
		args = append(args, "-icount", "shift=0,sleep=on,align=off")
	}
	for _, d := range o.Devices {
		args = append(args, d.Args...)
	}
	return args
}

// read keeps what the console says until QEMU ends.
func (v *VM) read(out *os.File) {
	defer close(v.done)
	defer out.Close()
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		v.mu.Lock()
		v.console.WriteString(line)
		close(v.changed)
		v.changed = make(chan struct{})
		v.mu.Unlock()
		if err != nil {
			break
		}
	}
	err := v.cmd.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waitErr = err
}

// kill ends QEMU, if it has not ended.
func (v *VM) kill() {
	select {
	case <-v.done:
		return
	default:
	}
	v.mu.Lock()
	v.killed = true
	v.mu.Unlock()
	_ = v.cmd.Process.Kill() // it may be gone by now
}

// Console returns what the machine has said so far.
func (v *VM) Console() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.console.String()
}

// more returns the console, and a channel that is closed when there is more.
func (v *VM) more() (string, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.console.String(), v.changed
}

// WaitFor waits until the console has a line with the text, and returns it. The
// test fails if the machine ends before.
func (v *VM) WaitFor(text string) string {
	v.t.Helper()
	for {
		console, more := v.more()
		for line := range strings.Lines(console) {
			if strings.Contains(line, text) && strings.HasSuffix(line, "\n") {
				return strings.TrimRight(line, "\r\n")
			}
		}
		select {
		case <-more:
		case <-v.done:
			v.t.Fatalf("the machine ended after %v without saying %q: %s", v.Age(), text, v.how())
		}
	}
}

// Age is the time since the start.
func (v *VM) Age() time.Duration { return time.Since(v.start).Round(10 * time.Millisecond) }

// how tells how the machine ended.
func (v *VM) how() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.killed {
		return fmt.Sprintf("it was ended at its limit of %v", v.limit)
	}
	return fmt.Sprintf("QEMU's end: %v", v.waitErr)
}

// Done is closed when the machine has ended.
func (v *VM) Done() <-chan struct{} { return v.done }

// End waits until the machine has powered off. The test fails if it did not by
// itself.
func (v *VM) End() {
	v.t.Helper()
	<-v.done
	v.mu.Lock()
	killed, err := v.killed, v.waitErr
	v.mu.Unlock()
	if killed || err != nil {
		v.t.Fatalf("the machine did not end well: %s", v.how())
	}
}

// SetLink plugs the cable of a network in or out: id is that of -netdev.
func (v *VM) SetLink(id string, up bool) {
	v.t.Helper()
	v.qmp.run(v.t, "set_link", map[string]any{"name": id, "up": up})
}

// A qmp is a connection to the monitor of QEMU, which talks JSON lines
// (docs/interop/qmp-spec.txt).
type qmp struct {
	conn net.Conn
	in   *json.Decoder
}

func newQMP(tb testing.TB, conn net.Conn) *qmp {
	tb.Cleanup(func() { conn.Close() })
	return &qmp{conn: conn, in: json.NewDecoder(conn)}
}

// qmpLimit bounds how long QEMU may take to answer.
const qmpLimit = 30 * time.Second

// run runs a command. The first one greets before.
func (q *qmp) run(tb testing.TB, command string, args map[string]any) {
	tb.Helper()
	if err := q.conn.SetDeadline(time.Now().Add(qmpLimit)); err != nil {
		tb.Fatal(err)
	}
	if err := q.do("qmp_capabilities", nil); err != nil && !strings.Contains(err.Error(), "CommandNotFound") {
		tb.Fatalf("greet the monitor of QEMU: %v", err)
	}
	if err := q.do(command, args); err != nil {
		tb.Fatalf("QEMU's %s: %v", command, err)
	}
}

func (q *qmp) do(command string, args map[string]any) error {
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(q.conn).Encode(request); err != nil {
		return err
	}
	for {
		var answer struct {
			Return *json.RawMessage
			Error  *struct{ Class, Desc string }
		}
		if err := q.in.Decode(&answer); err != nil {
			return err
		}
		if answer.Error != nil {
			return fmt.Errorf("%s: %s", answer.Error.Class, answer.Error.Desc)
		}
		if answer.Return != nil {
			return nil // others are greetings and events
		}
	}
}

// socketPair returns two ends of a connection: one for us, one for a child.
func socketPair(tb testing.TB) (mine net.Conn, its *os.File) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	its = os.NewFile(uintptr(fds[1]), "monitor")
	f := os.NewFile(uintptr(fds[0]), "monitor")
	defer f.Close()
	if mine, err = net.FileConn(f); err != nil {
		tb.Fatal(err)
	}
	return mine, its
}

// Disk returns the path of an empty disk, which takes no room.
func Disk(tb testing.TB, size int64) string {
	tb.Helper()
	f, err := os.CreateTemp(tb.TempDir(), "disk")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	return f.Name()
}

// Firmware writes the firmware of devices to a directory, as lib/firmware.
func Firmware(tb testing.TB, devices []Device) string {
	tb.Helper()
	dir := tb.TempDir()
	for _, d := range devices {
		if d.Firmware != "" {
			WriteFile(tb, filepath.Join(dir, d.Firmware), d.Content)
		}
	}
	return dir
}

// WriteFile writes a file, and makes the directories above it.
func WriteFile(tb testing.TB, name string, data []byte) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		tb.Fatal(err)
	}
}

// A Report is what a guest has posted: lines of a word and a value.
type Report map[string][]string

// ReadReport reads a report.
func ReadReport(r io.Reader) (Report, error) {
	report := Report{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // the report of a boot is one line
	for lines.Scan() {
		word, value, _ := strings.Cut(lines.Text(), " ")
		report[word] = append(report[word], value)
	}
	return report, lines.Err()
}

// One returns the value of a word that is there once, and "" otherwise.
func (r Report) One(word string) string {
	if len(r[word]) != 1 {
		return ""
	}
	return r[word][0]
}

// Has reports whether a word is there with a value.
func (r Report) Has(word, value string) bool { return slices.Contains(r[word], value) }
