package verify

import (
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"overmount/depmod"
	"overmount/firmware"
	"overmount/kmod"
)

// A Present is a declared name that is there.
type Present struct {
	Name string `json:"name"`
	Path string `json:"path"` // of the file that the kernel takes; of a pattern, of the first
}

// A declaration is what a module declares.
type declaration struct {
	module  string // its path
	names   int
	present []Present
	missing []string
	packed  map[string][]string // what is there only compressed, by suffix
}

// firmware looks for what modules declare.
func (c *moduleCheck) firmware() error {
	if c.Firmware == nil {
		return nil
	}
	if _, err := fs.ReadDir(c.Firmware, "."); err != nil {
		return fmt.Errorf("read the firmware: %w", err)
	}
	dir := firmware.New(c.Firmware, c.Kver)
	classes := map[string][]declaration{}
	for _, m := range c.result.Modules {
		d, err := declarationOf(m, dir)
		if err != nil {
			return fmt.Errorf("read the firmware: %w", err)
		}
		if d.names == 0 {
			continue
		}
		classes[class(m.Path)] = append(classes[class(m.Path)], d)
		c.packedFirmware(d)
	}
	var all []declaration
	for _, name := range slices.Sorted(maps.Keys(classes)) {
		c.classFirmware(name, classes[name])
		all = append(all, classes[name]...)
	}
	c.packages(all)
	names, missing := tally(all)
	c.add(Info, "firmware", "", "%d of %d declared names are there. They are hints: some are patterns, drivers make up others as they run, and no file is useless because nobody declares it", names-len(missing), names)
	return nil
}

// declarationOf looks for what a module declares.
func declarationOf(m *depmod.Module, dir *firmware.Dir) (declaration, error) {
	names := slices.Compact(slices.Sorted(slices.Values(m.Info.All("firmware"))))
	d := declaration{module: m.Path, names: len(names), packed: map[string][]string{}}
	for _, name := range names {
		var files []firmware.File
		var err error
		if firmware.IsPattern(name) {
			if files, err = dir.Match(name); err != nil {
				return d, err
			}
		} else if f, ok := dir.Find(name); ok {
			files = append(files, f)
		}
		if len(files) == 0 {
			d.missing = append(d.missing, name)
			continue
		}
		d.present = append(d.present, Present{name, files[0].Path})
		if suffix := files[0].Suffix; suffix != "" {
			d.packed[suffix] = append(d.packed[suffix], name)
		}
	}
	return d, nil
}

// class returns the class of a driver: the directory that says what it is for, such as
// kernel/drivers/net/wireless or kernel/sound/pci.
func class(module string) string {
	parts := strings.Split(path.Dir(module), "/")
	depth := 2
	if parts[0] == "kernel" {
		depth = 3
		if len(parts) > 1 && parts[1] == "drivers" {
			depth = 4
		}
	}
	return path.Join(parts[:min(depth, len(parts))]...)
}

// tally counts the names that modules declare, each once, and lists those that are missing.
func tally(all []declaration) (names int, missing []string) {
	seen := map[string]bool{}
	for _, d := range all {
		for _, p := range d.present {
			seen[p.Name] = true
		}
		for _, name := range d.missing {
			seen[name] = true
		}
		missing = append(missing, d.missing...)
	}
	slices.Sort(missing)
	return len(seen), slices.Compact(missing)
}

// classFirmware tells what the modules of a class have, and what they lack.
func (c *moduleCheck) classFirmware(class string, all []declaration) {
	lacking := 0
	for _, d := range all {
		if len(d.missing) > 0 {
			lacking++
		}
	}
	names, missing := tally(all)
	switch {
	case lacking == 0:
		c.add(Info, "firmware", class, "of %s, all %d declared names are there", count(len(all), "module"), names)
	case len(all) == 1:
		c.addNames(Info, "firmware", class, missing, "of 1 module, which lacks some of what it declares: %d of %s", len(missing), count(names, "name"))
	default:
		c.addNames(Info, "firmware", class, missing, "of %d modules, %d lack some of what they declare: %d of %s", len(all), lacking, len(missing), count(names, "name"))
	}
	for _, d := range all {
		c.moduleFirmware(d)
	}
}

func (c *moduleCheck) moduleFirmware(d declaration) {
	f := Finding{Severity: Info, Check: "firmware", Path: d.module, Names: d.missing, Present: d.present}
	var present []string
	for _, p := range d.present {
		present = append(present, p.Name)
	}
	switch {
	case len(d.missing) == 0:
		f.Text = fmt.Sprintf("all %d declared firmware files are there: %s", d.names, some(present))
	case len(present) == 0:
		f.Text = fmt.Sprintf("%d of %d declared firmware files are not there: %s", len(d.missing), d.names, some(d.missing))
	default:
		f.Text = fmt.Sprintf("%d of %d declared firmware files are not there: %s; there are %s", len(d.missing), d.names, some(d.missing), some(present))
	}
	c.findings = append(c.findings, f)
}

// packedFirmware is about files that are there only compressed.
func (c *moduleCheck) packedFirmware(d declaration) {
	for _, suffix := range []string{".xz", ".zst"} {
		option := map[string]string{".xz": "FW_LOADER_COMPRESS_XZ", ".zst": "FW_LOADER_COMPRESS_ZSTD"}[suffix]
		old := suffix == ".xz" && c.Kernel.has("FW_LOADER_COMPRESS") // before Linux 5.19 it had no further name
		if names := d.packed[suffix]; len(names) > 0 && c.Kernel != nil && !c.Kernel.has(option) && !old {
			c.addNames(Error, "firmware", d.module, names, "%d firmware files are there only with %s, which the kernel does not read (CONFIG_%s)", len(names), suffix, option)
		}
	}
}

// A supply is what packages together would bring.
type supply struct {
	firmware.Source
	names, modules map[string]bool
}

// packages tells which packages would bring what is missing.
func (c *moduleCheck) packages(all []declaration) {
	if c.Packages == nil {
		return
	}
	supplies := map[string]*supply{}
	add := func(source firmware.Source, name, module string) {
		key := fmt.Sprint(source)
		if supplies[key] == nil {
			supplies[key] = &supply{source, map[string]bool{}, map[string]bool{}}
		}
		supplies[key].names[name], supplies[key].modules[kmod.Name(module)] = true, true
	}
	for _, d := range all {
		for _, name := range d.missing {
			sources := c.sources(name)
			if len(sources) == 0 {
				add(firmware.Source{}, name, d.module)
			}
			for _, source := range sources {
				add(source, name, d.module)
			}
		}
	}
	for _, s := range slices.SortedFunc(maps.Values(supplies), compareSupplies) {
		c.supply(s)
	}
}

func (c *moduleCheck) sources(name string) []firmware.Source {
	if firmware.IsPattern(name) {
		return c.Packages.Match(c.Kver, name)
	}
	return c.Packages.Find(c.Kver, name)
}

// compareSupplies puts first what is known, by the names of the packages, and last
// what no package has.
func compareSupplies(a, b *supply) int {
	order := func(s *supply) int {
		switch {
		case len(s.Packages) == 0:
			return 2
		case s.Perhaps:
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(order(a), order(b)), cmp.Compare(title(a.Packages), title(b.Packages)))
}

// title is what people call packages that are needed together.
func title(packages []firmware.Package) string {
	var words []string
	for _, p := range packages {
		words = append(words, p.String())
	}
	return strings.Join(words, " with ")
}

func (c *moduleCheck) supply(s *supply) {
	f := Finding{Severity: Info, Check: "firmware", Packages: s.Packages, Names: slices.Sorted(maps.Keys(s.names)), Modules: slices.Sorted(maps.Keys(s.modules))}
	what := fmt.Sprintf("%s: %s (%s)", count(len(f.Names), "missing file"), some(f.Names), some(f.Modules))
	switch {
	case len(s.Packages) == 0:
		f.Text = "no package of the index has " + what
	case s.Perhaps:
		f.Perhaps = true
		f.Text = title(s.Packages) + " may bring, by a link that the index does not show, " + what
	default:
		f.Text = title(s.Packages) + " would bring " + what
	}
	c.findings = append(c.findings, f)
}
