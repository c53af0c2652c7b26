package boot

import (
	"cmp"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"overmount/coldplug"
)

// A Driver is a module that coldplug has loaded, or tried to, or of which something
// was read from a mount, or fetched for it.
type Driver struct {
	// Module is empty in one Driver at most, the last: it has the files that belong
	// to no module, and firmware that none declares.
	Module string `json:"module"`
	// State is how the kernel has the module when the report is written, as
	// coldplug.KnownModule has it; empty for a module that is not loaded.
	State string `json:"state,omitempty"`
	// Bound are the devices that have a driver of the module, as "pci 0000:00:02.0".
	Bound []string `json:"bound,omitempty"`
	// Took is how long loading took, with the wait for its file and its firmware; 0
	// for a module that the coldplug step has not loaded: udev did, or it came later.
	Took  time.Duration `json:"took_ns"`
	Error string        `json:"error,omitempty"`

	Cost
	// Opened are the files that the kernel began to read from the mounts, in order;
	// those of the firmware begin with firmware/. Ahead are those that were fetched
	// before, and that the kernel has not asked for since: it had them in its page
	// cache, or did not want them.
	Opened []string `json:"opened,omitempty"`
	Ahead  []string `json:"fetched_ahead,omitempty"`
}

// Cost is what files of the mounts have cost.
type Cost struct {
	Files int `json:"files"` // that were opened, or fetched ahead
	// Objects came from stores: not what the cache on disk had, or a boot pack. One
	// that two files have counts for both.
	Objects     int64         `json:"objects"`
	ObjectBytes int64         `json:"object_bytes"` // of Objects, as they came over the network
	ReadBytes   int64         `json:"read_bytes"`   // that the kernel asked for
	Requests    int64         `json:"requests"`     // for objects, also those that failed; one that several stores were asked counts once
	Retries     int64         `json:"retries"`      // those after the first for an object
	Waited      time.Duration `json:"waited_ns"`    // by all who read
	Prefetched  int64         `json:"prefetched_blocks"`
	// Hits are the blocks that were there before who wanted them. Blocks of a module
	// that is loaded are taken for wanted: from the page cache it reads them unseen.
	Hits int64 `json:"prefetch_hits"`
}

func (c *Cost) add(o Cost) {
	c.Files += o.Files
	c.Objects += o.Objects
	c.ObjectBytes += o.ObjectBytes
	c.ReadBytes += o.ReadBytes
	c.Requests += o.Requests
	c.Retries += o.Retries
	c.Waited += o.Waited
	c.Prefetched += o.Prefetched
	c.Hits += o.Hits
}

// A File is a file of a mount that was opened, or fetched ahead.
type File struct {
	Kind   string // of the mount
	Path   string
	Opened bool
	// Modules are those that the file belongs to, named with underscores: the module
	// that it is; or those that declare the firmware.
	Modules []string
	Cost
}

// costs adds to a report what the files of the mounts have cost, by drivers, and what
// the kernel says of these. A firmware that several modules declare counts for the
// first of those that are loaded, or else of all.
func (r *Report) costs(sysfs fs.FS, before *coldplug.Machine, files []File) error {
	now, err := coldplug.ScanModules(sysfs)
	if err != nil {
		return err
	}
	all := map[string]*Driver{}
	for _, d := range r.Drivers {
		all[d.Module] = &d
	}
	hits := map[string]int64{}
	for _, f := range files {
		module := owner(now, f.Modules)
		if f.Kind == Modules && now.Loaded(module) && !before.Loaded(module) {
			f.Hits = max(f.Hits, f.Prefetched)
		}
		if all[module] == nil {
			all[module] = &Driver{Module: module}
		}
		all[module].add(f.Cost)
		all[module].note(f)
		hits[f.Kind] += f.Hits
	}
	for _, m := range r.Mounts {
		m.Counts["prefetch_hits"] = hits[m.Kind]
	}
	r.Drivers = nil
	for _, d := range all {
		d.State, d.Bound = now.State(d.Module), bound(sysfs, d.Module)
		r.Drivers = append(r.Drivers, *d)
	}
	slices.SortFunc(r.Drivers, func(a, b Driver) int {
		if a.Module == "" || b.Module == "" {
			return cmp.Compare(b.Module, a.Module) // no module comes last
		}
		return cmp.Compare(a.Module, b.Module)
	})
	return nil
}

// owner returns the module that pays for a file.
func owner(now *coldplug.Machine, modules []string) string {
	if i := slices.IndexFunc(modules, now.Loaded); i >= 0 {
		return modules[i]
	}
	if len(modules) == 0 {
		return ""
	}
	return modules[0]
}

// note names a file.
func (d *Driver) note(f File) {
	name := f.Path
	if f.Kind == Firmware {
		name = path.Join(Firmware, name)
	}
	if f.Opened {
		d.Opened = append(d.Opened, name)
	} else {
		d.Ahead = append(d.Ahead, name)
	}
}

// bound returns the devices that have a driver of a module. In a module's directory
// the link BUS:NAME stands for a driver, whose directory has links to its devices.
func bound(sysfs fs.FS, module string) (devices []string) {
	if module == "" {
		return nil
	}
	drivers, _ := fs.ReadDir(sysfs, path.Join("module", module, "drivers")) // most have none
	for _, d := range drivers {
		bus, name, ok := strings.Cut(d.Name(), ":")
		if !ok {
			continue
		}
		dir := path.Join("bus", bus, "drivers", name)
		entries, _ := fs.ReadDir(sysfs, dir) // the driver may just have gone
		for _, e := range entries {
			target, err := fs.ReadLink(sysfs, path.Join(dir, e.Name()))
			if err == nil && strings.HasPrefix(path.Join(dir, target), "devices/") {
				devices = append(devices, bus+" "+e.Name())
			}
		}
	}
	return devices
}

// merged are drivers of an earlier coldplug and of a later one, which counts.
func merged(earlier, later []Driver) []Driver {
	all := slices.Clone(later)
	for _, d := range earlier {
		if !slices.ContainsFunc(later, func(l Driver) bool { return l.Module == d.Module }) {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Driver) int { return cmp.Compare(a.Module, b.Module) })
	return all
}

// noteModules notes which modules the kernel has before any can come from a mount.
func (b *Boot) noteModules() {
	m, err := coldplug.ScanModules(b.sysfs)
	if err != nil {
		b.log.Warn("cannot see which modules are loaded", "error", err)
		m = new(coldplug.Machine)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before = m
}
