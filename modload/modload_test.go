package modload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"overmount/coldplug"
	"overmount/depmod"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

// modules is a tree: a bus whose driver needs two others, what hangs on the bus,
// and a module that cannot be loaded.
var modules = map[string]string{
	"core.ko":   "export core",
	"bus.ko":    "export bus\nneed core",
	"hub.ko":    "alias=pci:hub\nneed bus",
	"disk.ko":   "alias=usb:disk\nneed bus",
	"other.ko":  "alias=pci:other\nneed core",
	"broken.ko": "export broken\nalias=pci:broken",
	"above.ko":  "alias=pci:above\nneed broken",
	"filter.ko": "",
	"wants.ko":  "alias=pci:wants\nsoftdep=pre: filter",
}

// A machine is a kernel and its devices in a directory that looks like /sys.
type machine struct {
	t    *testing.T
	sys  string
	tree *kmod.Tree
	took time.Duration // by each module

	mu      sync.Mutex
	loaded  []string
	fails   map[string]error
	appears map[string]string // device that comes with a module
	news    chan coldplug.Device
}

func newMachine(t *testing.T, devices ...string) *machine {
	t.Helper()
	dir := t.TempDir()
	for name, text := range modules {
		kmodtest.WriteText(t, dir, "kernel/"+name, text)
	}
	kmodtest.WriteOrder(t, dir)
	r, err := depmod.Build(t.Context(), os.DirFS(dir), nil)
	if err == nil {
		err = r.Write(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, sys: t.TempDir(), fails: map[string]error{}, appears: map[string]string{}, news: make(chan coldplug.Device, 100)}
	if m.tree, err = kmod.OpenTree(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(m.sys, "devices"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, alias := range devices {
		m.device(alias)
	}
	return m
}

// device makes a device in sysfs.
func (m *machine) device(alias string) coldplug.Device {
	path := "devices/" + strings.ReplaceAll(alias, ":", "-")
	if err := os.MkdirAll(filepath.Join(m.sys, path), 0o755); err != nil {
		m.t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(m.sys, path, "modalias"), []byte(alias+"\n"), 0o644); err != nil {
		m.t.Error(err)
	}
	return coldplug.Device{Path: path, Modalias: alias}
}

func (m *machine) insert(_ context.Context, a kmod.Action) error {
	time.Sleep(m.took)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fails[a.Module]; err != nil {
		return err
	}
	m.loaded = append(m.loaded, a.Module)
	if alias := m.appears[a.Module]; alias != "" {
		m.news <- m.device(alias)
	}
	return nil
}

func (m *machine) Next(ctx context.Context) (coldplug.Device, error) {
	select {
	case d := <-m.news:
		return d, nil
	case <-ctx.Done():
		return coldplug.Device{}, ctx.Err()
	}
}

func (m *machine) loader() *Loader { return New("/nowhere", m.tree, &Options{Insert: m.insert}) }

func (m *machine) planner() *coldplug.Planner {
	return coldplug.New(m.tree, nil, noFacts{}, nil)
}

type noFacts struct{}

func (noFacts) Facts(string) (coldplug.Facts, error) { return coldplug.Facts{}, nil }

func (m *machine) coldplug(l *Loader) error {
	return Coldplug(m.t.Context(), time.Minute, os.DirFS(m.sys), m.planner(), l, m)
}

// before reports whether modules were loaded in an order.
func (m *machine) before(names ...string) bool {
	for i, name := range names {
		at := slices.Index(m.loaded, name)
		if at < 0 || i > 0 && at < slices.Index(m.loaded, names[i-1]) {
			return false
		}
	}
	return true
}

func TestColdplug(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "pci:hub", "pci:other", "pci:broken", "pci:above", "pci:wants", "acpi:nobody")
		m.fails["broken"] = inserted("broken.ko", unix.ENODEV)
		m.fails["filter"] = inserted("filter.ko", unix.EIO)
		m.appears["hub"] = "usb:disk"
		m.took = time.Second
		start, l := time.Now(), m.loader()
		if err := m.coldplug(l); err != nil {
			t.Fatal(err)
		}
		if !m.before("core", "bus", "hub", "disk") || !m.before("core", "other") || !m.before("wants") || slices.Contains(m.loaded, "above") {
			t.Errorf("loaded %q", m.loaded)
		}
		if len(m.loaded) != 6 {
			t.Errorf("loaded %q, want each of six once", m.loaded)
		}
		// Four in a row, then the wait whether more comes, twice.
		if took := time.Since(start); took > 4*time.Second+4*idle {
			t.Errorf("it took %v, want what does not need each other at the same time", took)
		}
		for _, r := range l.Results() {
			failed := slices.Contains([]string{"broken", "above", "filter"}, r.Module)
			if failed != (r.Err != nil) || errors.Is(r.Err, ErrNeeds) != (r.Module == "above") {
				t.Errorf("%s: %v", r.Module, r.Err)
			}
			if declined := failed && r.Module != "filter"; declined != r.Declined() {
				t.Errorf("%s declined: %v, want %v, for %v", r.Module, r.Declined(), declined, r.Err)
			}
		}
	})
}

// A device whose event got lost is found by a scan.
func TestLostEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "pci:hub")
		m.appears["hub"] = "usb:disk"
		l := m.loader()
		lossy := listenerFunc(func(ctx context.Context) (coldplug.Device, error) {
			if _, err := m.Next(ctx); err != nil {
				return coldplug.Device{}, err
			}
			return coldplug.Device{}, ErrLost
		})
		if err := Coldplug(t.Context(), time.Minute, os.DirFS(m.sys), m.planner(), l, lossy); err != nil {
			t.Fatal(err)
		}
		if !m.before("bus", "hub", "disk") {
			t.Errorf("loaded %q, want disk, too", m.loaded)
		}
	})
}

type listenerFunc func(ctx context.Context) (coldplug.Device, error)

func (f listenerFunc) Next(ctx context.Context) (coldplug.Device, error) { return f(ctx) }

// A module that never comes back does not keep Coldplug beyond its context, nor
// others from being loaded.
func TestModuleHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "pci:hub", "pci:other")
		stuck := make(chan struct{})
		l := New("/nowhere", m.tree, &Options{Insert: func(ctx context.Context, a kmod.Action) error {
			if a.Module == "bus" {
				<-stuck
			}
			return m.insert(ctx, a)
		}})
		err := Coldplug(t.Context(), time.Minute, os.DirFS(m.sys), m.planner(), l, m)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 modules") {
			t.Errorf("Coldplug: %v, want the deadline, and 2 modules on their way", err)
		}
		if !m.before("core", "other") || slices.Contains(m.loaded, "hub") {
			t.Errorf("loaded %q", m.loaded)
		}
		close(stuck)
		synctest.Wait()
		if !m.before("bus", "hub") {
			t.Errorf("loaded %q, want what was on its way when the time was over, too", m.loaded)
		}
	})
}

// What appears after Coldplug has returned, and what appeared while nobody listened.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, "pci:other")
		l, p := m.loader(), m.planner()
		if err := Coldplug(t.Context(), time.Minute, os.DirFS(m.sys), p, l, m); err != nil {
			t.Fatal(err)
		}
		m.device("pci:hub")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- Follow(ctx, os.DirFS(m.sys), p, l, m) }()
		synctest.Wait()
		if !m.before("other", "bus", "hub") || slices.Contains(m.loaded, "disk") {
			t.Errorf("loaded %q, want what hub needs and no disk", m.loaded)
		}
		m.news <- m.device("usb:disk")
		synctest.Wait()
		if !m.before("hub", "disk") {
			t.Errorf("loaded %q, want disk, too", m.loaded)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: %v, want the context's error", err)
		}
	})
}

// A file of a mount that this process serves must not be given to the poller: with
// one processor, a boot that loaded its drivers itself hung at the first module.
func TestOpenWithoutPoller(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo") // which can be polled, as a file of FUSE can
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	f, err := open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("the poller has the file: SetDeadline gives %v, want %v", err, os.ErrNoDeadline)
	}
}

// What a later plan needs of an earlier one is waited for.
func TestLaterPlanWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.took = time.Second
		l, p := m.loader(), m.planner()
		first := l.Load(t.Context(), p.Plan([]coldplug.Device{{Path: "1", Modalias: "pci:hub"}}))
		second := l.Load(t.Context(), p.Plan([]coldplug.Device{{Path: "2", Modalias: "usb:disk"}}))
		<-first
		<-second
		if !m.before("core", "bus", "disk") {
			t.Errorf("loaded %q", m.loaded)
		}
	})
}

func TestParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		now, most := 0, 0
		l := New("/nowhere", m.tree, &Options{Parallel: 2, Insert: func(context.Context, kmod.Action) error {
			m.mu.Lock()
			now++
			most = max(most, now)
			m.mu.Unlock()
			time.Sleep(time.Second)
			m.mu.Lock()
			now--
			m.mu.Unlock()
			return nil
		}})
		var plan coldplug.Plan
		for i := range 7 {
			plan.Modules = append(plan.Modules, coldplug.Module{Action: kmod.Action{Kind: kmod.Insmod, Module: fmt.Sprint("m", i)}})
		}
		<-l.Load(t.Context(), &plan)
		if most != 2 {
			t.Errorf("%d at a time, want 2", most)
		}
	})
}

func TestParseUevent(t *testing.T) {
	for msg, want := range map[string]coldplug.Device{
		"add@/devices/pci0/1\x00ACTION=add\x00DEVPATH=/devices/pci0/1\x00MODALIAS=pci:v1\x00SEQNUM=1\x00": {Path: "devices/pci0/1", Modalias: "pci:v1"},
		"change@/devices/pci0/1\x00MODALIAS=pci:v1\x00":                                                   {},
		"remove@/devices/pci0/1\x00MODALIAS=pci:v1\x00":                                                   {},
		"add@/devices/pci0/1\x00ACTION=add\x00":                                                           {},
		"add@/devices/pci0/1":                                                                             {},
		"libudev\x00\xfe\xed\xca\xfe":                                                                     {},
		"":                                                                                                {},
	} {
		got, ok := ParseUevent([]byte(msg))
		if ok != (want.Modalias != "") || ok && got != want {
			t.Errorf("ParseUevent(%q) = %v, %v, want %v", msg, got, ok, want)
		}
	}
}

func TestListenEnds(t *testing.T) {
	u, err := ListenUevents()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next: %v, want the context's error", err)
	}
	if err := u.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func FuzzParseUevent(f *testing.F) {
	f.Add([]byte("add@/devices/1\x00MODALIAS=pci:v1\x00"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if d, ok := ParseUevent(msg); ok && (d.Path == "" || d.Modalias == "") {
			t.Errorf("ParseUevent(%q) = %v", msg, d)
		}
	})
}
