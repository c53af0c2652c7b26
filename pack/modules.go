package pack

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"overmount/depmod"
	"overmount/kmod"
	"overmount/manifest"
)

// ModulesOptions say how a tree of modules is prepared.
type ModulesOptions struct {
	// Kver is the kernel version that the modules must be for. Empty means
	// Name, if that is a kernel version, or else what the modules themselves
	// say.
	Kver string
	// Name is what the directory is called.
	Name string
	// Depmod makes the index files, in the layout Layout, in place of those of
	// the tree. Without it, the tree must have the right ones.
	Depmod bool
	Layout kmod.Layout
	// Config is that of depmod; nil is that of a host without configuration.
	Config *depmod.Config
	// Newest is that of Options.
	Newest time.Time
}

// A ModuleTree is a directory lib/modules/KVER that is ready to be packed.
type ModuleTree struct {
	FS       fs.FS // the tree, with the index files that belong to it
	Kver     string
	Modules  map[string]*manifest.Module // by path
	Warnings []string
}

// IsModuleIndex reports whether a path is that of a file that depmod or the build
// of a kernel puts beside the modules, and that modprobe or udev may read.
func IsModuleIndex(name string) bool {
	return !strings.Contains(name, "/") && strings.HasPrefix(name, "modules.")
}

// A MetadataError says in which ways the index files of a tree are not those that
// belong to its modules.
type MetadataError struct{ Problems []string }

func (e *MetadataError) Error() string {
	return "the index files do not belong to the modules beside them:\n  " + strings.Join(e.Problems, "\n  ")
}

// PrepareModules reads all modules of a directory lib/modules/KVER, checks that
// the index files beside them are right or makes them, and gathers what the
// manifest shall note of them. The source is not changed.
//
// It fails for a module that cannot be read, for modules of another kernel than
// asked for, and, without o.Depmod, with a [*MetadataError] for index files that
// are missing, wrong, or older than a module.
func PrepareModules(ctx context.Context, src fs.FS, o ModulesOptions) (*ModuleTree, error) {
	fsys := followed(src)
	if dir := furtherDown(fsys); dir != "" {
		return nil, fmt.Errorf("it is not a directory lib/modules/KVER, but has one, %s: pack that", dir)
	}
	layout := o.Layout
	if !o.Depmod {
		layout = depmod.LayoutOf(fsys)
	}
	r, err := depmod.Build(ctx, fsys, &depmod.Options{Config: o.Config, Kver: cmp.Or(o.Kver, o.Name), Layout: layout})
	if err != nil {
		return nil, err
	}
	if len(r.Modules) == 0 {
		return nil, errors.New("there is no kernel module in it: a directory such as /lib/modules/6.1.0-56-amd64 is wanted")
	}
	t := &ModuleTree{FS: src, Modules: map[string]*manifest.Module{}}
	for _, w := range r.Warnings {
		if w.Kind == depmod.Repeated {
			continue // every kernel has some, and they do no harm
		}
		t.Warnings = append(t.Warnings, w.String())
	}
	if err := t.setKver(r, o); err != nil {
		return nil, err
	}
	if o.Depmod {
		t.FS = Layer(src, indexLayer(r, o.Newest))
	} else if err := checkIndexes(fsys, r); err != nil {
		return nil, err
	}
	for _, m := range r.Modules {
		if !path.IsAbs(m.Path) {
			t.Modules[m.Path] = note(m)
		}
	}
	return t, nil
}

// furtherDown returns the directory lib/modules/KVER in what is the root of a
// system, or of an unpacked package.
func furtherDown(fsys fs.FS) string {
	for _, pattern := range []string{"lib/modules/*", "usr/lib/modules/*"} {
		if found, err := fs.Glob(fsys, pattern); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	return ""
}

// checkIndexes returns a MetadataError unless the index files of a tree are those
// of its modules.
func checkIndexes(fsys fs.FS, r *depmod.Result) error {
	var problems []string
	differences, err := r.Compare(fsys)
	if err != nil {
		return err
	}
	for _, d := range differences {
		problems = append(problems, d.String())
	}
	ok, newer, err := depmod.UpToDate(fsys)
	if err != nil {
		return err
	}
	if !ok && newer != "modules.dep" { // that it is missing has been said
		problems = append(problems, fmt.Sprintf("modules.dep is older than %s, so that depmod -A would read all modules", newer))
	}
	if len(problems) > 0 {
		return &MetadataError{problems}
	}
	return nil
}

// indexLayer is the index files, as old as the newest module: depmod -A on the
// packed tree then finds nothing to do.
func indexLayer(r *depmod.Result, newest time.Time) []LayerFile {
	var at time.Time
	for _, m := range r.Modules {
		if m.Mtime.After(at) {
			at = m.Mtime
		}
	}
	if !newest.IsZero() && at.After(newest) {
		at = newest
	}
	var files []LayerFile
	for _, f := range r.Files {
		files = append(files, LayerFile{f.Name, f.Data, at})
	}
	return files
}

// setKver finds the kernel version, and compares it with what the modules were
// built for. The kernel passes over the version of a module that has CRCs of the
// symbols that it needs, so such a module may be for another one.
func (t *ModuleTree) setKver(r *depmod.Result, o ModulesOptions) error {
	count, others := map[string]int{}, map[string][]string{}
	for _, m := range r.Modules {
		version, _, _ := strings.Cut(m.Info.Get("vermagic"), " ")
		if version != "" {
			count[version]++
			others[version] = append(others[version], m.Path)
		}
	}
	most := ""
	for version, n := range count {
		if n > count[most] || n == count[most] && version < most {
			most = version
		}
	}
	switch {
	case o.Kver != "":
		t.Kver = o.Kver
	case kmod.IsVersion(o.Name):
		t.Kver = o.Name
	case most != "":
		t.Kver = most
	default:
		return fmt.Errorf("which kernel the modules are for is not known: they do not say it, and %q is not a kernel version; give --kver", o.Name)
	}
	delete(others, t.Kver)
	if most != "" && count[t.Kver] == 0 {
		return fmt.Errorf("the modules are for the kernel %s, not for %s: give --kver %s if that is meant", most, t.Kver, most)
	}
	for _, version := range slices.Sorted(maps.Keys(others)) {
		paths := others[version]
		t.Warnings = append(t.Warnings, fmt.Sprintf("%s: it is for the kernel %s, not for %s (%d such modules)", paths[0], version, t.Kver, len(paths)))
	}
	return nil
}

// note is what a manifest notes of a module.
func note(m *depmod.Module) *manifest.Module {
	n := &manifest.Module{
		Name: m.Name, Vermagic: m.Info.Get("vermagic"), Aliases: values(m, "alias"),
		Softdeps: values(m, "softdep"), Weakdeps: values(m, "weakdep"), Firmware: values(m, "firmware"),
	}
	if s := m.Signature; s != nil {
		n.Signer = cmp.Or(s.Signer, hex.EncodeToString(s.KeyID), "-")
	}
	for _, d := range m.Depends {
		n.Depends = append(n.Depends, d.Name)
	}
	return n
}

// values returns all values of a key that can mean something.
func values(m *depmod.Module, key string) []string {
	return slices.DeleteFunc(m.Info.All(key), func(v string) bool { return v == "" || strings.Contains(v, "\n") })
}
