package modload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"overmount/coldplug"
)

// An Unbound is a device that has no driver, though a module is loaded that is for
// it: its driver has given up, for what it did not find.
type Unbound struct {
	Bus  string // as pci
	Name string // on the bus, as 0000:00:02.0
	Path string // below /sys, as in coldplug.Device
	// Modules are those that are loaded and for the device, in modprobe's order. A
	// device without a modalias has none: some module has a driver on its bus.
	Modules []string
}

// FindUnbound returns the devices below sysfs that have no driver though a loaded
// module is for them, in the order of their paths, so that a device comes after the
// one that it hangs on. Modules says which modules a modalias stands for.
//
// A module counts if it, or one that it uses, has registered a driver on the
// device's bus: others have nothing to bind. A bus whose drivers_autoprobe is 0 is
// left out: somebody wants to choose there.
func FindUnbound(sysfs fs.FS, modules func(modalias string) []string) ([]Unbound, error) {
	m, err := coldplug.Scan(sysfs)
	if err != nil {
		return nil, err
	}
	s := &search{sysfs: sysfs, machine: m, modules: modules, aliases: map[string][]string{}}
	for _, d := range m.Devices {
		s.aliases[d.Path] = append(s.aliases[d.Path], d.Modalias)
	}
	buses, err := fs.ReadDir(sysfs, "bus")
	if err != nil {
		return nil, fmt.Errorf("look for buses: %w", err)
	}
	var all []Unbound
	for _, bus := range buses {
		all = append(all, s.onBus(bus.Name())...)
	}
	slices.SortStableFunc(all, func(a, b Unbound) int { return cmp.Compare(a.Path, b.Path) })
	return all, nil
}

// FindHeld returns the paths of the devices below sysfs that have a driver, as of
// Unbound. The link driver, by which it tells them, is there while a driver tries, too.
func FindHeld(sysfs fs.FS) map[string]bool {
	links, _ := fs.Glob(sysfs, "bus/*/devices/*") // what cannot be read has none
	held := map[string]bool{}
	for _, link := range links {
		target, err := fs.ReadLink(sysfs, link)
		device := path.Join(path.Dir(link), target)
		if err == nil && Driver(sysfs, coldplug.Device{Path: device}) != "" {
			held[device] = true
		}
	}
	return held
}

// search is what FindUnbound knows.
type search struct {
	sysfs   fs.FS
	machine *coldplug.Machine
	modules func(modalias string) []string
	aliases map[string][]string // by the path of the device
}

func (s *search) onBus(bus string) (all []Unbound) {
	owners := s.owners(bus)
	if len(owners) == 0 || strings.TrimSpace(read(s.sysfs, path.Join("bus", bus, "drivers_autoprobe"))) == "0" {
		return nil
	}
	dir := path.Join("bus", bus, "devices")
	devices, _ := fs.ReadDir(s.sysfs, dir) // a bus without has none
	for _, d := range devices {
		target, err := fs.ReadLink(s.sysfs, path.Join(dir, d.Name()))
		if err != nil {
			continue // the device has gone
		}
		u := Unbound{Bus: bus, Name: d.Name(), Path: path.Join(dir, target)}
		if Driver(s.sysfs, coldplug.Device{Path: u.Path}) != "" {
			continue
		}
		aliases := s.aliases[u.Path]
		u.Modules = s.loaded(aliases, owners)
		if len(aliases) == 0 || len(u.Modules) > 0 {
			all = append(all, u)
		}
	}
	return all
}

// owners returns the loaded modules that have registered drivers on a bus.
func (s *search) owners(bus string) (owners []string) {
	dir := path.Join("bus", bus, "drivers")
	drivers, _ := fs.ReadDir(s.sysfs, dir) // not each bus has any
	for _, d := range drivers {
		target, err := fs.ReadLink(s.sysfs, path.Join(dir, d.Name(), "module"))
		if name := path.Base(target); err == nil && s.isModule(name) && !slices.Contains(owners, name) {
			owners = append(owners, name)
		}
	}
	return owners
}

// isModule reports whether a name is that of a module that is loaded, and no part of
// the kernel.
func (s *search) isModule(name string) bool {
	return s.machine.Loaded(name) && s.machine.State(name) != coldplug.Builtin
}

// loaded returns the loaded modules that modaliases stand for and that have a driver
// on a bus, or whose drivers one of the owners has registered for them.
func (s *search) loaded(aliases, owners []string) (names []string) {
	for _, alias := range aliases {
		for _, name := range s.modules(alias) {
			if !slices.Contains(names, name) && s.isModule(name) && slices.ContainsFunc(owners, func(owner string) bool {
				_, err := fs.Lstat(s.sysfs, path.Join("module", owner, "holders", name))
				return owner == name || err == nil
			}) {
				names = append(names, name)
			}
		}
	}
	return names
}

func read(sysfs fs.FS, name string) string {
	text, _ := fs.ReadFile(sysfs, name) // what is not there says nothing
	return string(text)
}

// A Prober has the kernel look for a driver of a device that has none, as [Sysfs]
// does.
type Prober interface {
	// Probe returns when all drivers that are for the device have tried. That none
	// of them took it is no error: the device's link driver tells. One that has a
	// driver keeps it. Concurrent use is safe.
	Probe(bus, device string) error
}

// Sysfs is a directory that is or looks like /sys.
type Sysfs string

var _ Prober = Sysfs("")

// Probe writes the device's name to drivers_probe of its bus
// (Documentation/ABI/testing/sysfs-bus of Linux, drivers/base/bus.c).
func (s Sysfs) Probe(bus, device string) error {
	f, err := os.OpenFile(filepath.Join(string(s), "bus", bus, "drivers_probe"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(device)
	return errors.Join(err, f.Close())
}

// A Rebound is what became of an Unbound.
type Rebound struct {
	Unbound
	Driver string // that it has now, empty if none
	Took   time.Duration
	Err    error // why it was not tried, or not to the end
}

// Limits of Rebind.
const (
	// maxRebind is how many devices are tried.
	maxRebind = 1024
	// probePatience is how long one device keeps the next from being tried. A probe
	// cannot be taken back: it goes on by itself.
	probePatience = 20 * time.Second
)

var (
	// ErrProbing says that a driver has not said yet whether it takes a device.
	ErrProbing = errors.New("a driver is still at it")
	// ErrNotTried says that a device was left as it was.
	ErrNotTried = errors.New("it was not tried")
)

// Rebind has the kernel look again for drivers of devices, one after the other, and
// says what became of each. A device that has got a driver meanwhile is left alone.
//
// It waits up to 20 s for each device, tries 1024 at most, and begins with none when
// the context has ended. Of devices without a modalias it speaks only if a driver has
// taken them, or not yet declined: some are of a kind that no driver is for, such as
// the hosts of SCSI.
func Rebind(ctx context.Context, sysfs fs.FS, devices []Unbound, p Prober) []Rebound {
	all := make([]Rebound, 0, len(devices))
	for i, u := range devices {
		r := Rebound{Unbound: u}
		switch {
		case i >= maxRebind:
			r.Err = fmt.Errorf("%w: there are more than %d", ErrNotTried, maxRebind)
		case ctx.Err() != nil:
			r.Err = fmt.Errorf("%w: %w", ErrNotTried, context.Cause(ctx))
		case !exists(sysfs, u.Path):
			r.Err = fmt.Errorf("%w: it has gone", ErrNotTried)
		case Driver(sysfs, coldplug.Device{Path: u.Path}) == "":
			start := time.Now()
			r.Err = probe(ctx, u, p)
			r.Took = time.Since(start)
		}
		if !errors.Is(r.Err, ErrProbing) { // the link is there already while a driver tries
			r.Driver = Driver(sysfs, coldplug.Device{Path: u.Path})
		}
		if len(u.Modules) > 0 || r.Driver != "" || r.Err != nil {
			all = append(all, r)
		}
	}
	return all
}

func exists(sysfs fs.FS, name string) bool {
	_, err := fs.Stat(sysfs, name)
	return err == nil
}

// probe probes, and waits for it as long as there is patience.
func probe(ctx context.Context, u Unbound, p Prober) error {
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.Probe(u.Bus, u.Name) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ErrProbing
	}
}
