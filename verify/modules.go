package verify

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"overmount/depmod"
	"overmount/firmware"
	"overmount/kmod"
	"overmount/store"
	"overmount/tree"
)

// ModulesOptions are what a check of modules can be told beyond the tree.
type ModulesOptions struct {
	// Kver is the kernel that the modules must be for; empty means not to
	// compare.
	Kver string
	// Config is that of depmod; nil is that of a host without configuration.
	Config *depmod.Config
	// Kernel is the configuration of the kernel that will load the modules; nil
	// means that it is not known.
	Kernel KernelConfig
	// Firmware is the tree that will be at /lib/firmware; nil means that it is
	// not known.
	Firmware fs.FS
	// Packages say which of them would bring firmware that is missing; nil means
	// not to tell.
	Packages *firmware.Index
	// Inline reports whether a file can be read without any store. Nil means not
	// to ask.
	Inline func(name string) bool
}

// Modules checks a directory lib/modules/KVER. It reads every module, so for a
// mounted or packed tree it fetches about all of it.
//
// The checks, by their names: module (each can be read), index (each file that
// depmod writes is byte by byte what it would write now), dep (modules.dep lists
// the modules that there are), mtime (a stray depmod -A finds nothing to do),
// vermagic, signature, compression, firmware, inline.
//
// What modules declare as their firmware are hints: names may be patterns, and
// drivers make up others as they run. So a declared name that is not there is
// information, told of each module and of each class of drivers, and a file that nobody
// declares is no finding at all.
//
// The error is one of ctx, or of a store that cannot be reached: then nothing is
// known about the tree. A module that can be read and is none is a finding.
func Modules(ctx context.Context, fsys fs.FS, o *ModulesOptions) ([]Finding, error) {
	if o == nil {
		o = &ModulesOptions{}
	}
	c := &moduleCheck{ModulesOptions: o, fsys: fsys}
	r, err := depmod.Build(ctx, fsys, &depmod.Options{Config: o.Config, Kver: o.Kver, Layout: depmod.LayoutOf(fsys)})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return c.unreadable(err)
	case len(r.Modules) == 0:
		c.add(Error, "module", "", "there is no kernel module in the tree")
		return c.findings, nil
	}
	c.result = r
	for _, check := range []func() error{c.warnings, c.dep, c.indexes, c.mtimes, c.inline, c.vermagic, c.signatures, c.compression, c.firmware} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return c.sorted(), nil
}

type moduleCheck struct {
	findings
	*ModulesOptions
	fsys   fs.FS
	result *depmod.Result
}

// unreadable is what there is to say when depmod gave up.
func (c *moduleCheck) unreadable(err error) ([]Finding, error) {
	const most = 10 // more than that say the same
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for i, err := range all {
		if lost, ok := errors.AsType[*tree.BlockError](err); ok && store.Temporary(lost.Err) {
			return nil, err
		}
		if i < most {
			c.add(Error, "module", "", "%v", err)
		}
	}
	if more := len(all) - most; more > 0 {
		c.add(Error, "module", "", "and %d more like these", more)
	}
	return c.findings, nil
}

// warnings passes on what depmod itself has found.
func (c *moduleCheck) warnings() error {
	for _, w := range c.result.Warnings {
		if w.Kind == depmod.Repeated {
			continue // every kernel has some, and they do no harm
		}
		c.add(Warning, "module", w.Path, "%s", w.Text)
	}
	return nil
}

// dep compares modules.dep with the modules, by path.
func (c *moduleCheck) dep() error {
	text, err := fs.ReadFile(c.fsys, "modules.dep")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a finding of indexes
	}
	if err != nil {
		return err
	}
	lines, err := kmod.ParseDep(text)
	if err != nil {
		c.add(Error, "dep", "modules.dep", "%v", err)
		return nil
	}
	listed, there := map[string]bool{}, map[string]bool{}
	for _, l := range lines {
		listed[l.Path] = true
	}
	var unlisted, gone []string
	for _, m := range c.result.Modules {
		there[m.Path] = true
		if !listed[m.Path] {
			unlisted = append(unlisted, m.Path)
		}
	}
	for _, l := range lines {
		if !there[l.Path] && !path.IsAbs(l.Path) {
			gone = append(gone, l.Path)
		}
	}
	if len(unlisted) > 0 {
		c.addNames(Error, "dep", "modules.dep", unlisted, "%d modules of the tree are not in it, so modprobe does not find them", len(unlisted))
	}
	if len(gone) > 0 {
		c.addNames(Error, "dep", "modules.dep", gone, "%d modules in it are not in the tree", len(gone))
	}
	return nil
}

func (c *moduleCheck) indexes() error {
	differences, err := c.result.Compare(c.fsys)
	for _, d := range differences {
		c.add(Error, "index", d.Name, "it %s; depmod makes it right", d.Text)
	}
	return err
}

func (c *moduleCheck) mtimes() error {
	ok, newer, err := depmod.UpToDate(c.fsys)
	if err == nil && !ok && newer != "modules.dep" {
		c.add(Warning, "mtime", newer, "it is newer than modules.dep, so that a depmod -A at boot would read every module")
	}
	return err
}

// inline looks whether modprobe can work without a store.
func (c *moduleCheck) inline() error {
	if c.Inline == nil {
		return nil
	}
	list, err := fs.ReadDir(c.fsys, ".")
	if err != nil {
		return err
	}
	var names []string
	for _, d := range list {
		if name := d.Name(); d.Type().IsRegular() && strings.HasPrefix(name, "modules.") && !c.Inline(name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		c.addNames(Warning, "inline", "", names, "%d index files are not in the manifest itself, so modprobe must wait for a store; pack with --kind modules", len(names))
	}
	return nil
}

// vermagic compares the version that each module was built for. The kernel looks
// past the version if the module has CRCs of the symbols that it needs.
func (c *moduleCheck) vermagic() error {
	if c.Kver == "" {
		return nil
	}
	var silent []string
	others := map[string][]string{}
	for _, m := range c.result.Modules {
		switch version, _, _ := strings.Cut(m.Info.Get("vermagic"), " "); version {
		case c.Kver:
		case "":
			silent = append(silent, m.Path)
		default:
			others[version] = append(others[version], m.Path)
		}
	}
	for _, version := range slices.Sorted(maps.Keys(others)) {
		paths := others[version]
		c.addNames(Error, "vermagic", paths[0], paths, "%d modules are for the kernel %s, not for %s", len(paths), version, c.Kver)
	}
	if len(silent) > 0 {
		c.addNames(Warning, "vermagic", silent[0], silent, "%d modules do not say which kernel they are for", len(silent))
	}
	return nil
}

func (c *moduleCheck) signatures() error {
	var unsigned []string
	signers := map[string]bool{}
	for _, m := range c.result.Modules {
		if m.Signature == nil {
			unsigned = append(unsigned, m.Path)
		} else {
			signers[m.Signature.Signer] = true
		}
	}
	all := len(c.result.Modules)
	switch {
	case len(unsigned) > 0 && c.Kernel.has("MODULE_SIG_FORCE"):
		c.addNames(Error, "signature", "", unsigned, "the kernel loads only signed modules (CONFIG_MODULE_SIG_FORCE), and %d of %d are not", len(unsigned), all)
	case len(unsigned) == all:
		c.add(Info, "signature", "", "no module is signed")
	case len(unsigned) > 0:
		c.addNames(Warning, "signature", "", unsigned, "%d of %d modules are not signed, and the others are", len(unsigned), all)
	default:
		c.add(Info, "signature", "", "all %d modules are signed, by %s; whether the kernel has their keys is not known here", all, count(len(signers), "signer"))
	}
	return nil
}

// compression asks whether the kernel can load the files as they are. Otherwise
// modprobe must decompress them, which not every one can.
func (c *moduleCheck) compression() error {
	count := map[kmod.Compression][]string{}
	for _, m := range c.result.Modules {
		count[m.Compression] = append(count[m.Compression], m.Path)
	}
	delete(count, kmod.None)
	for _, kind := range []kmod.Compression{kmod.Gzip, kmod.XZ, kmod.Zstd} {
		paths := count[kind]
		if len(paths) == 0 {
			continue
		}
		option := "MODULE_COMPRESS_" + strings.ToUpper(kind.String())
		switch {
		case c.Kernel == nil:
			c.add(Info, "compression", "", "%d modules are compressed with %v: the kernel must be able to decompress them, or modprobe; give the kernel's configuration to check that", len(paths), kind)
		case !c.Kernel.has("MODULE_DECOMPRESS") || !c.Kernel.has(option):
			c.addNames(Error, "compression", "", paths, "%d modules are compressed with %v, and the kernel cannot decompress that (CONFIG_MODULE_DECOMPRESS, CONFIG_%s): only a modprobe that can do it loads them", len(paths), kind, option)
		}
	}
	return nil
}
