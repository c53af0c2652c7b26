package modload

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A board is a directory that looks like /sys, of a machine whose kernel binds as
// told.
type board struct {
	t   *testing.T
	dir string

	mu   sync.Mutex
	asks []string // what was probed, in order
	// probe is what the kernel does; nil finds no driver.
	probe func(bus, device string) error
}

func newBoard(t *testing.T) *board {
	b := &board{t: t, dir: t.TempDir()}
	b.write("devices/.keep", "")
	b.write("bus/.keep", "")
	return b
}

func (b *board) write(name, text string) {
	b.t.Helper()
	file := filepath.Join(b.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

// link makes a relative symlink, as those of sysfs are.
func (b *board) link(name, to string) {
	b.t.Helper()
	file := filepath.Join(b.dir, name)
	target, err := filepath.Rel(filepath.Dir(file), filepath.Join(b.dir, to))
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.MkdirAll(filepath.Join(b.dir, to), 0o755), os.Symlink(target, file))
	}
	if err != nil {
		b.t.Error(err)
	}
}

// device puts a device on a bus. Its path is below devices.
func (b *board) device(bus, path, modalias string) {
	b.t.Helper()
	if modalias != "" {
		b.write("devices/"+path+"/modalias", modalias+"\n")
	}
	b.link("bus/"+bus+"/devices/"+filepath.Base(path), "devices/"+path)
}

// module loads a module, that registers a driver on a bus.
func (b *board) module(name, bus, driver string) {
	b.t.Helper()
	b.write("module/"+name+"/initstate", "live\n")
	if driver != "" {
		b.link("bus/"+bus+"/drivers/"+driver+"/module", "module/"+name)
	}
}

func (b *board) bind(bus, path, driver string) {
	b.t.Helper()
	b.link("devices/"+path+"/driver", "bus/"+bus+"/drivers/"+driver)
}

// Probe is the kernel's.
func (b *board) Probe(bus, device string) error {
	b.mu.Lock()
	b.asks = append(b.asks, bus+" "+device)
	b.mu.Unlock()
	if b.probe == nil {
		return nil
	}
	return b.probe(bus, device)
}

// aliases is what the modules are for: "NAME:…" is for the module NAME.
func aliases(modalias string) []string {
	name, _, _ := strings.Cut(modalias, ":")
	return []string{name, "nosuch"}
}

func (b *board) asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asks)
}

func (b *board) unbound() []Unbound {
	b.t.Helper()
	all, err := FindUnbound(os.DirFS(b.dir), aliases)
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

func TestFindUnbound(t *testing.T) {
	b := newBoard(t)
	b.module("wifi", "pci", "wifi_pci")
	b.module("going", "pci", "going")
	b.write("module/going/initstate", "going\n")
	b.module("core", "pci", "for_others")
	b.module("uses", "", "")
	b.link("module/core/holders/uses", "module/uses")
	b.module("library", "", "")
	b.link("bus/pci/drivers/inside/module", "module/inside") // a part of the kernel: no initstate
	b.module("chosen", "vm", "chosen")
	b.write("bus/vm/drivers_autoprobe", "0\n")
	b.module("plain", "old", "plain")
	b.link("bus/empty/drivers/inside/module", "module/inside")

	b.device("pci", "pci0/0b.0", "wifi:2")
	b.device("pci", "pci0/0a.0", "wifi:1")
	b.device("pci", "pci0/0a.0/sub", "uses:1")
	b.device("pci", "pci0/0c.0", "wifi:bound")
	b.bind("pci", "pci0/0c.0", "wifi_pci")
	b.device("pci", "pci0/0d.0", "absent:1")  // its module is not loaded
	b.device("pci", "pci0/0e.0", "going:1")   // about to be unloaded
	b.device("pci", "pci0/0f.0", "library:1") // has no driver on the bus
	b.device("pci", "pci0/10.0", "inside:1")
	b.device("pci", "pci0/11.0", "") // nothing says what it is: the kernel knows
	b.device("vm", "vm0", "chosen:1")
	b.device("old", "old0", "plain:0")
	b.device("empty", "empty0", "")
	want := []Unbound{
		{Bus: "old", Name: "old0", Path: "devices/old0", Modules: []string{"plain"}},
		{Bus: "pci", Name: "0a.0", Path: "devices/pci0/0a.0", Modules: []string{"wifi"}},
		{Bus: "pci", Name: "sub", Path: "devices/pci0/0a.0/sub", Modules: []string{"uses"}},
		{Bus: "pci", Name: "0b.0", Path: "devices/pci0/0b.0", Modules: []string{"wifi"}},
		{Bus: "pci", Name: "11.0", Path: "devices/pci0/11.0"},
	}
	if diff := cmp.Diff(want, b.unbound()); diff != "" {
		t.Errorf("FindUnbound (-want +got):\n%s", diff)
	}
	if _, err := FindUnbound(os.DirFS(filepath.Join(b.dir, "nosuch")), aliases); err == nil {
		t.Error("FindUnbound without /sys: no error")
	}
}

// A driver that is at it while the list is made has its device, and gives up after. What
// it held tells who has to be tried once more.
func TestFindHeld(t *testing.T) {
	b := newBoard(t)
	b.module("wifi", "pci", "wifi_pci")
	for _, slot := range []string{"0a.0", "0b.0", "0c.0"} {
		b.device("pci", "pci0/"+slot, "wifi:"+slot)
	}
	b.bind("pci", "pci0/0b.0", "wifi_pci")
	b.bind("pci", "pci0/0c.0", "wifi_pci")
	held := FindHeld(os.DirFS(b.dir))
	if diff := cmp.Diff(map[string]bool{"devices/pci0/0b.0": true, "devices/pci0/0c.0": true}, held); diff != "" {
		t.Errorf("FindHeld (-want +got):\n%s", diff)
	}
	if first := b.unbound(); len(first) != 1 || held[first[0].Path] {
		t.Errorf("first without a driver: %v, want the one that is not held", first)
	}
	if err := os.Remove(filepath.Join(b.dir, "devices/pci0/0b.0/driver")); err != nil {
		t.Fatal(err)
	}
	var lost []string
	for _, u := range b.unbound() {
		if held[u.Path] {
			lost = append(lost, u.Name)
		}
	}
	if !slices.Equal(lost, []string{"0b.0"}) {
		t.Errorf("lost since: %q, want 0b.0", lost)
	}
	if held := FindHeld(os.DirFS(filepath.Join(b.dir, "nosuch"))); len(held) != 0 {
		t.Errorf("FindHeld without /sys = %v", held)
	}
}

// The machine that this is about: two cards whose firmware was not there.
func TestRebind(t *testing.T) {
	b := newBoard(t)
	b.module("wifi", "pci", "wifi_pci")
	for _, slot := range []string{"0a.0", "0b.0", "0c.0", "0d.0", "0e.0"} {
		b.device("pci", "pci0/"+slot, "wifi:"+slot)
	}
	b.probe = func(bus, device string) error {
		switch device {
		case "0a.0":
			b.bind(bus, "pci0/"+device, "wifi_pci")
		case "0c.0":
			return unix.EINVAL
		}
		return nil
	}
	devices := b.unbound()
	b.bind("pci", "pci0/0d.0", "wifi_pci") // by somebody else, meanwhile
	if err := os.RemoveAll(filepath.Join(b.dir, "devices/pci0/0e.0")); err != nil {
		t.Fatal(err)
	}
	got := Rebind(t.Context(), os.DirFS(b.dir), devices, b)
	if want := []string{"pci 0a.0", "pci 0b.0", "pci 0c.0"}; !slices.Equal(b.asked(), want) {
		t.Errorf("probed %q, want %q", b.asked(), want)
	}
	for i, want := range []struct {
		driver string
		err    error
	}{{"wifi_pci", nil}, {"", nil}, {"", unix.EINVAL}, {"wifi_pci", nil}, {"", ErrNotTried}} {
		if r := got[i]; r.Driver != want.driver || !errors.Is(r.Err, want.err) || (want.err == nil) != (r.Err == nil) {
			t.Errorf("%s: driver %q, %v, want %q, %v", r.Name, r.Driver, r.Err, want.driver, want.err)
		}
	}
}

// A probe that waits for ever keeps others from being tried for a while only, and a
// context that ends at once.
func TestRebindHangs(t *testing.T) {
	b := newBoard(t)
	b.module("wifi", "pci", "wifi_pci")
	for _, slot := range []string{"0a.0", "0b.0", "0c.0"} {
		b.device("pci", "pci0/"+slot, "wifi:"+slot)
	}
	devices := b.unbound()
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		b.probe = func(bus, device string) error {
			b.bind(bus, "pci0/"+device, "wifi_pci") // which the kernel does before it tries the driver
			if device != "0b.0" {
				<-stuck
			}
			return nil
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), probePatience+time.Second)
		defer cancel()
		got := Rebind(ctx, os.DirFS(b.dir), devices, b)
		if took := time.Since(start); took != probePatience+time.Second {
			t.Errorf("it took %v, want %v for the first and the rest of the time for the last", took, probePatience)
		}
		for i, want := range []struct {
			driver string
			err    error
		}{{"", ErrProbing}, {"wifi_pci", nil}, {"", ErrProbing}} {
			if r := got[i]; r.Driver != want.driver || !errors.Is(r.Err, want.err) {
				t.Errorf("%s: driver %q, %v, want %q, %v", r.Name, r.Driver, r.Err, want.driver, want.err)
			}
		}
		asks := len(b.asked())
		if got := Rebind(ctx, os.DirFS(b.dir), devices, b); len(b.asked()) != asks || !errors.Is(got[0].Err, ErrNotTried) {
			t.Errorf("Rebind after the end = %+v, and probed %q, want nothing tried", got, b.asked()[asks:])
		}
		close(stuck)
	})
}

func TestRebindIsBounded(t *testing.T) {
	b := newBoard(t)
	b.write("devices/one/modalias", "wifi:1\n")
	many := make([]Unbound, maxRebind+1)
	for i := range many {
		many[i] = Unbound{Bus: "pci", Name: "one", Path: "devices/one", Modules: []string{"wifi"}}
	}
	got := Rebind(t.Context(), os.DirFS(b.dir), many, b)
	if len(b.asked()) != maxRebind || !errors.Is(got[maxRebind].Err, ErrNotTried) || got[maxRebind-1].Err != nil {
		t.Errorf("%d of %d devices were probed, the last: %v; want %d", len(b.asked()), len(many), got[maxRebind].Err, maxRebind)
	}
}

// A device without a modalias is tried, as the kernel may know it, and spoken of if
// that was of use.
func TestRebindWithoutModalias(t *testing.T) {
	b := newBoard(t)
	b.module("scsi_disk", "scsi", "sd")
	b.device("scsi", "host0", "")
	b.device("scsi", "unknown0", "")
	b.probe = func(bus, device string) error {
		if device == "unknown0" {
			b.bind(bus, device, "sd")
		}
		return nil
	}
	got := Rebind(t.Context(), os.DirFS(b.dir), b.unbound(), b)
	if len(b.asked()) != 2 || len(got) != 1 || got[0].Name != "unknown0" || got[0].Driver != "sd" {
		t.Errorf("probed %q, and Rebind = %+v, want both, and the one that is bound", b.asked(), got)
	}
}

// What the kernel gets is the name and nothing else.
func TestSysfsProbe(t *testing.T) {
	b := newBoard(t)
	b.write("bus/pci/drivers_probe", "")
	if err := Sysfs(b.dir).Probe("pci", "0000:00:02.0"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(b.dir, "bus/pci/drivers_probe")); err != nil || string(got) != "0000:00:02.0" {
		t.Errorf("drivers_probe has %q, %v, want the name alone", got, err)
	}
	if err := Sysfs(b.dir).Probe("nosuch", "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Probe on a bus that is not there: %v, want %v", err, os.ErrNotExist)
	}
}
