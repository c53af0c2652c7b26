package cli

import (
	"path"
	"slices"
	"strings"

	"overmount/block"
	"overmount/boot"
	"overmount/firmware"
	"overmount/kmod"
	"overmount/manifest"
	"overmount/prefetch"
)

// files are those of both mounts that were opened, or fetched ahead.
func (m *machine) files() []boot.File {
	var all []boot.File
	modules, fw := m.mounted(boot.Modules), m.mounted(boot.Firmware)
	if modules != nil {
		man := modules.tree.Manifest()
		for _, s := range modules.fetcher.ByFile() {
			f := modules.file(boot.Modules, s)
			if x, ok := man.Module(s.Ino); ok {
				f.Modules = []string{x.Name}
			}
			all = append(all, f)
		}
	}
	if fw != nil {
		d := declarers{kver: m.config.Kver}
		if modules != nil {
			d.m = modules.tree.Manifest()
		}
		for _, s := range fw.fetcher.ByFile() {
			f := fw.file(boot.Firmware, s)
			f.Modules = d.of(f.Path)
			all = append(all, f)
		}
	}
	return all
}

// file says what a file has cost. An object that several files have counts for each.
func (k *bootMount) file(kind string, s prefetch.FileStats) boot.File {
	man := k.tree.Manifest()
	c := boot.Cost{Files: 1, ReadBytes: s.ReadBytes, Waited: s.Waited, Prefetched: s.Prefetched, Hits: s.Hits}
	seen := map[block.ID]bool{}
	for _, ref := range man.Blocks(s.Ino) {
		if seen[ref.ID] {
			continue
		}
		seen[ref.ID] = true
		wanted, tried := k.count.wanted.Of(ref.ID), k.count.tried.Of(ref.ID)
		c.Objects += tried.Objects
		c.ObjectBytes += tried.Bytes
		c.Requests += tried.Requests
		c.Retries += retries(wanted, tried)
	}
	return boot.File{Kind: kind, Path: strings.TrimPrefix(man.Path(s.Ino), "/"), Opened: s.Reads > 0, Cost: c}
}

// declarers say which modules declare a firmware.
type declarers struct {
	m    *manifest.Manifest // of the modules; nil if there is none
	kver string

	read     bool
	names    map[string][]string // modules by what they declare
	patterns []string            // those of names that are some
}

// of returns the modules that declare the firmware in a file, in the order of their
// names.
func (d *declarers) of(file string) (modules []string) {
	if !d.read {
		d.index()
	}
	file = strings.TrimSuffix(strings.TrimSuffix(file, ".zst"), ".xz")
	for _, dir := range []string{path.Join("updates", d.kver), "updates", d.kver, ""} {
		name, ok := strings.CutPrefix(file, dir+"/")
		if dir == "" {
			name, ok = file, true
		}
		if !ok {
			continue
		}
		modules = append(modules, d.names[name]...)
		for _, pattern := range d.patterns {
			if kmod.Match(pattern, name) {
				modules = append(modules, d.names[pattern]...)
			}
		}
	}
	slices.Sort(modules)
	return slices.Compact(modules)
}

func (d *declarers) index() {
	d.read, d.names = true, map[string][]string{}
	if d.m == nil {
		return
	}
	for _, x := range d.m.Modules() {
		for _, name := range x.Firmware {
			if firmware.IsPattern(name) && d.names[name] == nil {
				d.patterns = append(d.patterns, name)
			}
			d.names[name] = append(d.names[name], x.Name)
		}
	}
}
