package initramfs

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"overmount/depmod"
	"overmount/kmod"
)

// A Stage1 is the modules and the firmware without which a machine does not reach
// the network, or cannot mount.
type Stage1 struct {
	// Modules come in an order in which they can be loaded.
	Modules []Module
	// Always are the names of modules that are loaded whatever devices there are.
	Always []string
	// Absent are names of sets that this kernel does not have.
	Absent []string
	// Firmware are names of the files that the modules declare and that are there.
	Firmware []string
	// NoFirmware are names of declared files that are not.
	NoFirmware []string

	builtin func(name string) bool
	odd     []string // warnings
}

// Has reports whether the kernel has a module before the mounts: as a file of stage 1,
// or built in.
func (s *Stage1) Has(name string) bool {
	return s.builtin(name) || slices.ContainsFunc(s.Modules, func(m Module) bool { return m.Name == name })
}

// machine is that of the modules, EM_NONE if there are none.
func (s *Stage1) machine() elf.Machine {
	if len(s.Modules) == 0 || len(s.Modules[0].plain) < elfHead {
		return elf.EM_NONE
	}
	return machineOf(s.Modules[0].plain)
}

// A Module is one of stage 1.
type Module struct {
	Name string
	Path string // in the image, below lib/modules/KVER; ends in .ko
	Size int64  // uncompressed
	Soft bool   // only a softdep asks for it

	source   string // the file, which may be compressed
	plain    []byte
	firmware []string
	builtFor string // the version of the kernel; empty if the module does not say
}

// A set is a choice of modules.
type set struct {
	modules []string // names, of which a kernel need not have all
	dirs    []string // prefixes of paths
	nics    bool     // whatever drives a network card: see isNIC
	others  []string // further sets
}

// Sets are the names of sets that Select knows.
func Sets() []string { return []string{"virtio", "vm", "server", "all-ethernet"} }

func namedSet(name string) (set, bool) {
	switch name {
	case "virtio":
		return set{modules: []string{"virtio_pci", "virtio_mmio", "virtio_net"}}, true
	case "vm":
		return set{others: []string{"virtio"}, modules: []string{"e1000", "e1000e", "vmxnet3", "hv_netvsc", "xen_netfront", "ena", "gve"}}, true
	case "server":
		return set{others: []string{"vm"}, modules: []string{
			"igb", "igc", "ixgbe", "i40e", "ice", "tg3", "bnxt_en", "bnx2", "bnx2x", "r8169", "mlx4_en", "mlx5_core",
			"qede", "cxgb4", "be2net", "atlantic", "sfc", "enic", "8021q", "bonding",
		}}, true
	case "all-ethernet":
		return set{others: []string{"vm"}, nics: true, dirs: []string{ethernetDir, "kernel/drivers/net/phy/"}}, true
	}
	return set{}, false
}

// needed are the modules of every stage 1: mounts are of FUSE, and a DHCP client
// opens packet sockets.
func needed() []string { return []string{"fuse", "af_packet"} }

// Select finds the modules of stage 1 in a directory lib/modules/KVER. Each item
// is
//
//	virtio        network cards that are virtio devices
//	vm            those of virtual machines: virtio, e1000(e), vmxnet3, Hyper-V,
//	              Xen, AWS, Google
//	server        vm and the common ones of servers, 8021q and bonding
//	all-ethernet  all drivers of Ethernet cards but wireless and USB ones: those
//	              in the kernel's directory of them, and those that import the
//	              symbols that only such a driver needs
//	DIR/          all modules below a directory, as kernel/drivers/net/phy/
//	NAME          a module, or what an alias stands for
//	-NAME         not this module, although a set has it
//
// With each module comes what it depends on, its softdeps and weakdeps. fuse and
// af_packet are always there. A module that is part of the kernel needs no file.
//
// Select fails for a NAME that this kernel does not have, or does not have as a
// file in the directory. The modules are not read, but those are that might drive
// a network card, with all-ethernet.
func Select(ctx context.Context, modules fs.FS, items []string) (*Stage1, error) {
	t, err := kmod.OpenTree(modules)
	if err != nil {
		return nil, err
	}
	s := &selection{fsys: modules, tree: t, resolver: kmod.NewResolver(t, nil, nil),
		names: map[string]bool{}, refused: map[string]bool{}, absent: map[string]bool{}}
	for _, item := range items {
		if err := s.add(ctx, item); err != nil {
			return nil, err
		}
	}
	for _, name := range needed() {
		s.module(name)
		s.always(name)
	}
	return s.stage1()
}

// A selection is on its way to a Stage1.
type selection struct {
	fsys     fs.FS
	tree     *kmod.Tree
	resolver *kmod.Resolver

	names   map[string]bool // of modules that are files
	refused map[string]bool // false as long as there was none to leave out
	absent  map[string]bool
	load    []string // whatever devices there are
}

func (s *selection) always(name string) {
	if s.names[name] && !slices.Contains(s.load, name) {
		s.load = append(s.load, name)
	}
}

func (s *selection) add(ctx context.Context, item string) error {
	if other, ok := namedSet(item); ok {
		return s.set(ctx, other)
	}
	if name, ok := strings.CutPrefix(item, "-"); ok {
		s.refused[strings.ReplaceAll(name, "-", "_")] = false
		return nil
	}
	if strings.HasSuffix(item, "/") {
		if s.dir(item) == 0 {
			return fmt.Errorf("stage 1: there is no module below %s", item)
		}
		return nil
	}
	return s.name(item)
}

// name adds a module that was asked for by name or alias.
func (s *selection) name(item string) error {
	found, err := s.resolver.Lookup(item)
	if errors.Is(err, kmod.ErrUnknown) {
		return fmt.Errorf("stage 1: %q is neither a module of this kernel nor one of the sets %s", item, strings.Join(Sets(), ", "))
	}
	if err != nil {
		return err
	}
	for _, name := range found {
		name = strings.ReplaceAll(name, "-", "_")
		if !s.module(name) && !s.tree.Builtin(name) {
			return fmt.Errorf("stage 1: the indexes know %s, and there is no such module", name)
		}
		s.always(name)
	}
	return nil
}

// module adds a module, and reports whether it is a file.
func (s *selection) module(name string) bool {
	_, _, err := s.tree.Dep(name)
	if err == nil {
		s.names[name] = true
	} else if !s.tree.Builtin(name) {
		s.absent[name] = true
	}
	return err == nil
}

func (s *selection) set(ctx context.Context, c set) error {
	for _, name := range c.others {
		if err := s.add(ctx, name); err != nil {
			return err
		}
	}
	for _, name := range c.modules {
		s.module(name)
	}
	for _, dir := range c.dirs {
		s.dir(dir)
	}
	if c.nics {
		return s.nics(ctx)
	}
	return nil
}

// dir adds all modules below a directory, and returns their number.
func (s *selection) dir(prefix string) int {
	n := 0
	for name, file := range s.files() {
		if strings.HasPrefix(file, prefix) {
			s.names[name] = true
			n++
		}
	}
	return n
}

// files yields the modules that are files in the directory.
func (s *selection) files() func(yield func(name, file string) bool) {
	return func(yield func(name, file string) bool) {
		for name := range s.tree.Modules() {
			file, _, err := s.tree.Dep(name)
			if err == nil && !path.IsAbs(file) && !yield(name, file) {
				return
			}
		}
	}
}

// stage1 adds what the modules need.
func (s *selection) stage1() (*Stage1, error) {
	if s.absent["fuse"] {
		return nil, errors.New("stage 1: this kernel has no fuse, neither as a module nor built in, and mounts need it")
	}
	delete(s.absent, "af_packet") // other clients do without
	maps.DeleteFunc(s.names, func(name string, _ bool) bool { return s.refuses(name) })
	s.addWeakdeps()
	needed, err := s.resolver.Closure(slices.Sorted(maps.Keys(s.names))...)
	if err != nil {
		return nil, fmt.Errorf("stage 1: %w", err)
	}
	out := &Stage1{Absent: slices.Sorted(maps.Keys(s.absent)), builtin: s.tree.Builtin}
	for _, name := range s.load {
		if s.names[name] {
			out.Always = append(out.Always, name)
		}
	}
	for _, n := range needed {
		if path.IsAbs(n.Path) {
			return nil, fmt.Errorf("stage 1: module %s lies outside of the directory, in %s", n.Module, n.Path)
		}
		plain := strings.TrimSuffix(n.Path, kmod.Suffix(n.Path)) + ".ko"
		out.Modules = append(out.Modules, Module{Name: n.Module, Path: plain, Soft: n.Soft, source: n.Path})
	}
	out.odd = s.odd(out)
	return out, nil
}

// refuses reports whether a module was refused, and notes that this was of use.
func (s *selection) refuses(name string) bool {
	if _, ok := s.refused[name]; !ok {
		return false
	}
	s.refused[name] = true
	return true
}

// odd is what whoever refused modules may not have meant.
func (s *selection) odd(out *Stage1) (warnings []string) {
	for _, name := range slices.Sorted(maps.Keys(s.refused)) {
		switch {
		case name == "fuse" && !out.Has(name):
			warnings = append(warnings, "stage 1: fuse is left out, and without it nothing can be mounted")
		case slices.ContainsFunc(out.Modules, func(m Module) bool { return m.Name == name }):
			warnings = append(warnings, fmt.Sprintf("stage 1: %s is not left out: other modules need it", name))
		case !s.refused[name]:
			warnings = append(warnings, fmt.Sprintf("stage 1: there is no %s to leave out", name))
		}
	}
	return warnings
}

// addWeakdeps adds what the modules may ask the kernel for while they run.
func (s *selection) addWeakdeps() {
	queue := slices.Sorted(maps.Keys(s.names))
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		for _, weak := range s.resolver.Weakdeps(name) {
			found, err := s.resolver.Lookup(weak)
			if err != nil {
				continue // a weak one
			}
			for _, other := range found {
				if !s.names[other] && !s.refuses(other) && s.module(other) {
					queue = append(queue, other)
				}
			}
		}
	}
}

// read reads the modules, and notes what they say of firmware.
func (s *Stage1) read(ctx context.Context, fsys fs.FS) error {
	for i := range s.Modules {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := &s.Modules[i]
		if err := m.read(fsys); err != nil {
			return fmt.Errorf("read module %s: %w", m.source, err)
		}
	}
	return nil
}

func (m *Module) read(fsys fs.FS) error {
	file, err := fs.ReadFile(fsys, m.source)
	if err != nil {
		return pathless(err)
	}
	if m.plain, err = kmod.Plain(file); err != nil {
		return err
	}
	m.Size = int64(len(m.plain))
	info, err := kmod.ReadModule(bytes.NewReader(m.plain), m.Size)
	if err != nil {
		return err
	}
	m.firmware = info.Info.All("firmware")
	m.builtFor, _, _ = strings.Cut(info.Info.Get("vermagic"), " ")
	return nil
}

// pathless is an error of a file without its path, for those who have said it.
func pathless(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// addStage1 adds modules, their indexes and their firmware.
func (im *Image) addStage1(ctx context.Context, o *Options) error {
	s, err := Select(ctx, o.Modules, o.Stage1)
	if err != nil {
		return err
	}
	im.Stage1 = s
	if err := s.read(ctx, o.Modules); err != nil {
		return err
	}
	im.Warnings = append(im.Warnings, s.odd...)
	im.warnOfOtherKernels(o.Kver)
	dir := path.Join("lib/modules", o.Kver)
	p := im.part("modules")
	for _, m := range s.Modules {
		if err := im.bytes(p, path.Join(dir, m.Path), 0o644, m.plain); err != nil {
			return err
		}
	}
	if err := im.addIndexes(ctx, o, dir); err != nil {
		return err
	}
	return im.addFirmware(o.Firmware)
}

// warnOfOtherKernels says that modules are not for the kernel whose directory they lie
// in: it will refuse them, or crash.
func (im *Image) warnOfOtherKernels(kver string) {
	var others []Module
	for _, m := range im.Stage1.Modules {
		if m.builtFor != "" && m.builtFor != kver {
			others = append(others, m)
		}
	}
	if len(others) > 0 {
		im.Warnings = append(im.Warnings, fmt.Sprintf("%d of %d modules were not built for the kernel %s; %s, for one, is for %s",
			len(others), len(im.Stage1.Modules), kver, others[0].Name, others[0].builtFor))
	}
}

// addIndexes makes the indexes of exactly these modules.
func (im *Image) addIndexes(ctx context.Context, o *Options, dir string) error {
	files, inputs, err := im.Stage1.directory(o.Modules)
	if err != nil {
		return err
	}
	result, err := depmod.Build(ctx, files, &depmod.Options{Kver: o.Kver, Layout: depmod.LayoutOf(o.Modules), Files: im.Stage1.paths()})
	if err != nil {
		return fmt.Errorf("make the indexes of stage 1: %w", err)
	}
	for _, w := range result.Warnings {
		im.Warnings = append(im.Warnings, w.String())
	}
	p := im.part("indexes")
	for _, name := range inputs {
		if err := im.bytes(p, path.Join(dir, name), 0o644, files[name]); err != nil {
			return err
		}
	}
	for _, f := range result.Files {
		if err := im.bytes(p, path.Join(dir, f.Name), 0o644, f.Data); err != nil {
			return err
		}
	}
	if err := im.bytes(p, Stage1List, 0o644, lines(im.Stage1.paths())); err != nil {
		return err
	}
	return im.bytes(p, AlwaysList, 0o644, lines(im.Stage1.Always))
}

func lines(all []string) []byte {
	var b bytes.Buffer
	for _, line := range all {
		b.WriteString(line + "\n")
	}
	return b.Bytes()
}

// paths returns the paths of the modules, in the order in which they can be loaded.
func (s *Stage1) paths() []string {
	var all []string
	for _, m := range s.Modules {
		all = append(all, m.Path)
	}
	return all
}

// directory returns the modules as a directory lib/modules/KVER, with the files
// that come from the kernel's build, and the names of these.
func (s *Stage1) directory(modules fs.FS) (files memFS, inputs []string, err error) {
	files = memFS{}
	for _, m := range s.Modules {
		files[m.Path] = m.plain
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		data, err := fs.ReadFile(modules, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // depmod says what that means
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", name, pathless(err))
		}
		if name == "modules.order" {
			data = files.order(data)
		}
		files[name] = data
		inputs = append(inputs, name)
	}
	return files, inputs, nil
}
