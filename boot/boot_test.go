package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/origin"
	"overmount/signature"
)

const kver = "6.1.0-test"

// A machine is what a boot acts on: it writes down what is done, and fails as
// told.
type machine struct {
	mu    sync.Mutex
	done  []string
	fetch func(place string) (origin.Copy, error)
	fail  map[string]error // by what is done
	files []File
	lost  []Rebound   // what is probed again after coldplug
	root  func() bool // whether PID 1 has another one
}

func (m *machine) note(what string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = append(m.done, what)
	return m.fail[what]
}

func (m *machine) count(what string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.done {
		if d == what {
			n++
		}
	}
	return n
}

func (m *machine) actions() Actions {
	return Actions{
		Fetch: func(_ context.Context, place, _ string, _ origin.Trust) (origin.Copy, error) {
			if err := m.note("fetch " + place); err != nil {
				return origin.Copy{}, err
			}
			if m.fetch != nil {
				return m.fetch(place)
			}
			return origin.Copy{Path: "/kept/" + filepath.Base(place), State: origin.Fetched}, nil
		},
		ClearDead: func(_ context.Context, dir string) (int, error) { return 0, m.note("clear " + filepath.Base(dir)) },
		Mount: func(_ context.Context, kind, file, dir string) (Mounted, error) {
			return mounted{m, kind}, m.note("mount " + kind + " " + file)
		},
		Prefetch: func(context.Context) (string, error) { return "", m.note("prefetch") },
		Coldplug: func(context.Context) (Coldplugged, error) {
			err := m.note("coldplug")
			drivers := []Driver{{Module: "e100", Took: time.Second}}
			if n := m.count("coldplug"); n > 1 { // which loads what the one before has not
				drivers = []Driver{{Module: fmt.Sprint("again", n), Took: time.Second}}
			}
			return Coldplugged{Drivers: drivers}, err
		},
		Depmod: func(context.Context) (string, error) { return "", m.note("depmod") },
		Load:   func(_ context.Context, names []string) error { return m.note("load " + strings.Join(names, " ")) },
		Rebind: func(context.Context) ([]Rebound, error) {
			return []Rebound{{Device: "pci 0a.0", Driver: "wifi"}, {Device: "pci 0b.0"}}, m.note("rebind")
		},
		RebindLost: func(context.Context) ([]Rebound, error) {
			return m.lost, m.note("rebind lost")
		},
		Files: func() []File { return m.files },
		FollowRoot: func() (bool, error) {
			err := m.note("follow")
			return m.root != nil && m.root(), err
		},
	}
}

type mounted struct {
	m    *machine
	kind string
}

func (m mounted) Counts() map[string]int64 { return map[string]int64{"files": 7} }
func (m mounted) Unmount() error           { return m.m.note("unmount " + m.kind) }

// config is one that touches nothing outside of a directory of the test.
func config(t *testing.T) *Config {
	dir := t.TempDir()
	c := Default()
	c.Base, c.Kver = "http://web.example/flists", kver
	c.ModulesDir, c.FirmwareDir = filepath.Join(dir, "modules"), filepath.Join(dir, "firmware")
	c.RunDir, c.Kept, c.Embedded = filepath.Join(dir, "run"), filepath.Join(dir, "kept"), filepath.Join(dir, "embedded")
	c.Stage1Firmware = none
	return c
}

func newBoot(t *testing.T, c *Config, m *machine) *Boot {
	t.Helper()
	b, err := New(c, m.actions(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.sysfs = fstest.MapFS{"devices/none": {}} // not this machine's
	t.Cleanup(func() { b.Close() })
	return b
}

const (
	fetchModules  = "fetch http://web.example/flists/modules-" + kver + ".fl"
	fetchFirmware = "fetch http://web.example/flists/firmware.fl"
)

func TestSteps(t *testing.T) {
	c, m := config(t), &machine{}
	c.Load = []string{"8021q", "bonding"}
	b := newBoot(t, c, m)
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := func(what string) int { return slices.Index(m.done, what) }
	for _, order := range [][]string{
		{fetchModules, "clear modules", "mount modules /kept/modules-" + kver + ".fl", "prefetch", "coldplug", "load 8021q bonding"},
		{fetchFirmware, "clear firmware", "mount firmware /kept/firmware.fl", "prefetch"},
	} {
		for i, what := range order {
			if at(what) < 0 || i > 0 && at(what) < at(order[i-1]) {
				t.Errorf("done: %q, want in this order %q", m.done, order)
				break
			}
		}
	}
	if _, err := b.WriteReport(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(c.RunDir, ReportFile))
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if r.Degraded || len(r.Mounts) != 2 || r.Mounts[0].Counts["files"] != 7 || len(r.Drivers) != 1 || r.Drivers[0].Module != "e100" {
		t.Errorf("report: %s", text)
	}
	if err := b.Close(); err != nil || m.count("unmount modules") != 1 || m.count("unmount firmware") != 1 {
		t.Errorf("Close: %v, done %q", err, m.done)
	}
}

// A step that fails keeps no other from being tried.
func TestDegraded(t *testing.T) {
	for _, broken := range []string{"clear modules", "mount firmware /kept/firmware.fl", "prefetch", "coldplug", "load 8021q"} {
		c, m := config(t), &machine{fail: map[string]error{broken: errors.New("broken on purpose")}}
		c.Load = []string{"8021q"}
		b := newBoot(t, c, m)
		if err := b.Run(t.Context()); err != nil {
			t.Fatalf("%s: %v", broken, err)
		}
		for _, what := range []string{fetchModules, fetchFirmware, "prefetch", "coldplug", "load 8021q"} {
			if m.count(what) != 1 {
				t.Errorf("%s: done %q, want also %s", broken, m.done, what)
			}
		}
		r := b.Report()
		said := slices.ContainsFunc(r.Steps, func(s Step) bool { return strings.Contains(s.Error, "on purpose") })
		if !r.Degraded || !said {
			t.Errorf("%s: report %+v, want it degraded, with the reason", broken, r)
		}
	}
}

// depmod runs only if it is asked for, where modules are mounted, and before whatever
// reads the indexes. It makes them writable.
func TestDepmod(t *testing.T) {
	c := config(t)
	if b := newBoot(t, c, &machine{}); b.Config().Writable || b.Config().Depmod {
		t.Error("a configuration that asks for nothing has depmod, or writable modules")
	} else if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	c.Depmod = true
	m := &machine{fail: map[string]error{fetchModules: errors.New("refused")}}
	c.NetworkWait = time.Nanosecond
	b := newBoot(t, c, m)
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.count("depmod") != 0 {
		t.Errorf("done %q, want no depmod without modules", m.done)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	m = &machine{}
	b = newBoot(t, c, m)
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := slices.Index(m.done, "depmod")
	if m.count("depmod") != 1 || at > slices.Index(m.done, "prefetch") || at > slices.Index(m.done, "coldplug") || !b.Config().Writable {
		t.Errorf("done %q, writable %v, want one depmod before prefetch and coldplug, in writable modules", m.done, b.Config().Writable)
	}
}

// A setting that was wrong, and so left out, is in the report.
func TestMisled(t *testing.T) {
	b := newBoot(t, config(t), &machine{})
	b.Misled(errors.New("there is no setting \"pubkye\""))
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := b.Report(); !r.Degraded || r.Steps[0].Name != "settings" || !strings.Contains(r.Line(), "settings failed") {
		t.Errorf("report: %+v, want it degraded, with the settings", r)
	}
}

func TestReportCounts(t *testing.T) {
	r := Report{Mounts: []*MountReport{{Counts: map[string]int64{"files": 2}}, {Counts: map[string]int64{"files": 3, "objects": 1}}}}
	if got, want := r.Counts(), map[string]int64{"files": 5, "objects": 1}; !maps.Equal(got, want) {
		t.Errorf("Counts = %v, want %v", got, want)
	}
}

func TestWaitsForTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, start := &machine{}, time.Now()
		m.fetch = func(place string) (origin.Copy, error) {
			if time.Since(start) < 20*time.Second {
				return origin.Copy{}, errors.New("no route to host")
			}
			return origin.Copy{Path: place, State: origin.Fetched}, nil
		}
		b := newBoot(t, config(t), m)
		if err := b.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, pending := b.Mounted(); n != 2 || pending != 0 {
			t.Errorf("mounted %d, pending %d, want 2 and 0", n, pending)
		}
		if took := time.Since(start); took > 24*time.Second {
			t.Errorf("it took %v, want no more than 3 s after the network came", took)
		}
		if n := m.count(fetchModules); n > 40 {
			t.Errorf("%d requests in 20 s", n)
		}
	})
}

// flist puts a manifest into a directory.
func flist(t *testing.T, dir, name string, tags map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := manifest.Create(t.Context(), filepath.Join(dir, name), block.Zstd, tags, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(manifest.Entry{Path: ".", Attr: manifest.Attr{Mode: 0o40755}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// signed signs a file with a new key, and returns that.
func signed(t *testing.T, file string, c signature.Claims) (pubkey string) {
	t.Helper()
	key, err := signature.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := signature.Sign(key, bytes.NewReader(data), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+signature.Suffix, sig, 0o644); err != nil {
		t.Fatal(err)
	}
	return key.Public().String()
}

// With the server away, or a manifest at it that must not be used, what this
// machine has does: first what was kept, then what the image brings.
func TestFallback(t *testing.T) {
	for name, reason := range map[string]error{
		"no network": errors.New("no route to host"),
		"refused":    fmt.Errorf("%w: signed with another key", origin.ErrRefused),
		"missing":    fmt.Errorf("404 (%w)", fs.ErrNotExist),
	} {
		c := config(t)
		modules := "modules-" + kver + ".fl"
		flist(t, c.Embedded, modules, map[string]string{manifest.TagKind: Modules, manifest.TagKver: kver})
		flist(t, c.Embedded, "firmware.fl", map[string]string{manifest.TagKind: Firmware})
		flist(t, c.Kept, modules, map[string]string{manifest.TagKind: Modules, manifest.TagKver: "another"})
		flist(t, c.Kept, "firmware.fl", map[string]string{manifest.TagKind: Firmware})
		synctest.Test(t, func(t *testing.T) {
			m := &machine{fetch: func(string) (origin.Copy, error) { return origin.Copy{}, reason }}
			b := newBoot(t, c, m)
			start := time.Now()
			if err := b.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{
				"mount modules " + filepath.Join(c.Embedded, modules), "mount firmware " + filepath.Join(c.Kept, "firmware.fl"),
			} {
				if m.count(want) != 1 {
					t.Errorf("%s: done %q, want %q", name, m.done, want)
				}
			}
			if took := time.Since(start); name != "no network" && took > time.Second {
				t.Errorf("%s: it waited %v for what asking again cannot change", name, took)
			}
			r, states := b.Report(), map[string]string{}
			for _, m := range r.Mounts {
				states[m.Kind] = m.State
			}
			if want := map[string]string{Modules: string(Embedded), Firmware: string(origin.Kept)}; !r.Degraded || !maps.Equal(states, want) {
				t.Errorf("%s: degraded %v, states %v, want it degraded and %v", name, r.Degraded, states, want)
			}
		})
	}
}

// A directory for manifests that takes none costs nothing but the copy: what it has
// still says which manifests are too old.
func TestNothingCanBeKept(t *testing.T) {
	c := config(t)
	name := "modules-" + kver + ".fl"
	flist(t, c.Kept, name, map[string]string{manifest.TagKind: Modules, manifest.TagKver: kver})
	c.Pubkey = signed(t, filepath.Join(c.Kept, name), signature.Claims{Kind: Modules, Kver: kver, Serial: 7})
	full := &fs.PathError{Op: "write", Path: filepath.Join(c.Kept, ".x"), Err: unix.ENOSPC}
	m := &machine{}
	b := newBoot(t, c, m)
	b.do.Fetch = func(_ context.Context, place, dir string, trust origin.Trust) (origin.Copy, error) {
		if dir == c.Kept {
			return origin.Copy{}, fmt.Errorf("manifest %s: %w", place, full)
		}
		if least := map[string]uint64{Modules: 7}[trust.Kind]; trust.MinSerial != least || trust.Key == nil {
			t.Errorf("%s may have the serial %d, want %d", trust.Kind, trust.MinSerial, least)
		}
		return origin.Copy{Path: dir, State: origin.Fetched}, m.note("fetch " + place)
	}
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(c.RunDir, "kept")
	if r := b.Report(); m.count("mount modules "+want) != 1 || m.count("mount firmware "+want) != 1 || r.Degraded {
		t.Errorf("done %q, report %+v, want both mounted from %s", m.done, r, want)
	}
	for _, tt := range []struct {
		path string
		want bool
	}{{c.Kept, true}, {c.Kept + "/x", true}, {filepath.Dir(c.Kept), true}, {c.Kept + "x", false}, {c.RunDir, false}} {
		if got := isOf(&fs.PathError{Path: tt.path, Err: unix.EROFS}, c.Kept); got != tt.want {
			t.Errorf("isOf an error of %s, %s = %v, want %v", tt.path, c.Kept, got, tt.want)
		}
	}
}

// awayFor is a server that is away for a time.
func awayFor(d time.Duration) func(place string) (origin.Copy, error) {
	start := time.Now()
	return func(place string) (origin.Copy, error) {
		if time.Since(start) < d {
			return origin.Copy{}, errors.New("connection refused")
		}
		return origin.Copy{Path: place, State: origin.Fetched}, nil
	}
}

// Without any manifest the machine still boots, and what comes later is mounted
// later, with the devices announced again.
func TestServerComesLate(t *testing.T) {
	c := config(t)
	synctest.Test(t, func(t *testing.T) {
		m, start := &machine{fetch: awayFor(10 * time.Minute)}, time.Now()
		b := newBoot(t, c, m)
		if err := b.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > c.NetworkWait+time.Second {
			t.Errorf("Run took %v with the server away, want %v", took, c.NetworkWait)
		}
		if r := b.Report(); !r.Degraded || len(r.Pending) != 2 || m.count("prefetch") != 0 || m.count("coldplug") != 1 {
			t.Errorf("report %+v, done %q, want two pending, and coldplug for what the image has", r, m.done)
		}
		changed := 0
		b.Background(t.Context(), func() { changed++ })
		if n, pending := b.Mounted(); n != 2 || pending != 0 || changed == 0 {
			t.Errorf("afterwards mounted %d, pending %d, changed %d, want 2, 0 and some", n, pending, changed)
		}
		if m.count("coldplug") < 2 {
			t.Errorf("done %q, want coldplug again", m.done)
		}
		if took := time.Since(start); took > 11*time.Minute {
			t.Errorf("it took %v", took)
		}
	})
}

// An initramfs has handed over, and its /run is not the one that there is now.
func TestFollowsTheRoot(t *testing.T) {
	c := config(t)
	synctest.Test(t, func(t *testing.T) {
		m := &machine{fetch: awayFor(10 * time.Minute)}
		m.root = func() bool {
			if m.count("follow") != 3 {
				return false
			}
			if n := m.count("mount modules http://web.example/flists/modules-" + kver + ".fl"); n != 0 {
				t.Errorf("%d mounts before the root was followed", n)
			}
			if err := os.RemoveAll(c.RunDir); err != nil {
				t.Error(err)
			}
			return true
		}
		b := newBoot(t, c, m)
		if err := b.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		reported := false
		b.Background(t.Context(), func() {
			_, err := b.WriteReport()
			reported = reported || err == nil && m.count("follow") == 3
		})
		if _, err := os.Stat(filepath.Join(c.RunDir, ReadyFile)); err != nil || !reported {
			t.Errorf("ready file: %v, report there when the root was followed: %v", err, reported)
		}
		if n, _ := b.Mounted(); n != 2 {
			t.Errorf("%d mounted, want both", n)
		}
	})
}

func TestInterrupted(t *testing.T) {
	c := config(t)
	synctest.Test(t, func(t *testing.T) {
		m := &machine{fetch: func(string) (origin.Copy, error) { return origin.Copy{}, errors.New("no route to host") }}
		b := newBoot(t, c, m)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := b.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run: %v, want the context's error", err)
		}
		if m.count("coldplug") != 0 {
			t.Errorf("done %q after the end", m.done)
		}
	})
}

func TestOneAtATime(t *testing.T) {
	c := config(t)
	b := newBoot(t, c, &machine{})
	if _, err := New(c, (&machine{}).actions(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "another boot") {
		t.Errorf("a second New: %v, want an error", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	newBoot(t, c, &machine{})
}

func TestKeepStage1(t *testing.T) {
	dir := t.TempDir()
	stage1, parameter, run := filepath.Join(dir, "stage1"), filepath.Join(dir, "path"), filepath.Join(dir, "run")
	copied := filepath.Join(run, "stage1-firmware")
	if err := errors.Join(os.MkdirAll(filepath.Join(stage1, "e100"), 0o755), os.Mkdir(run, 0o755),
		os.WriteFile(filepath.Join(stage1, "e100/ucode.bin"), []byte("code"), 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ before, dir, want string }{
		{"\n", filepath.Join(dir, "absent"), "\n"}, {"\n", none, "\n"}, {"/elsewhere\n", stage1, "/elsewhere\n"},
		{"\n", stage1, copied}, {stage1 + "\n", stage1, copied}, {copied + "\n", stage1, copied},
	} {
		if err := os.WriteFile(parameter, []byte(tt.before), 0o600); err != nil {
			t.Fatal(err)
		}
		b := &Boot{c: Config{Stage1Firmware: tt.dir, RunDir: run}, parameter: parameter}
		if _, err := b.keepStage1(); err != nil {
			t.Errorf("%+v: %v", tt, err)
		}
		got, err := os.ReadFile(parameter)
		if err != nil || string(got) != tt.want {
			t.Errorf("%+v: the parameter is %q, %v", tt, got, err)
		}
		if tt.want != copied {
			continue
		}
		if code, err := os.ReadFile(filepath.Join(copied, "e100/ucode.bin")); err != nil || string(code) != "code" {
			t.Errorf("%+v: the copy has %q, %v", tt, code, err)
		}
	}
	if left, err := os.ReadDir(run); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}
