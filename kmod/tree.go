package kmod

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"
)

// ErrUnknown says that no module has a name, and nothing is an alias for it.
var ErrUnknown = errors.New("no such module or alias")

// A Tree is what a directory lib/modules/KVER says of its modules: the binary
// indexes, which modprobe trusts, and the softdeps. It holds everything in memory
// and reads no file after [OpenTree]. Concurrent use is safe.
type Tree struct {
	dep, alias, symbols, builtin, builtinAlias *Index

	rules []rules // of modules.softdep and modules.weakdep
}

// OpenTree reads the metadata of a directory lib/modules/KVER; no module.
//
// modules.softdep, modules.weakdep and modules.builtin.alias.bin may be missing,
// and the last may be empty, as depmod leaves it for old kernels. The other
// indexes must be there: without one of them modprobe goes on, finds nothing, and
// sometimes calls that success. Each index is walked once, so that a damaged one
// is found here.
func OpenTree(fsys fs.FS) (*Tree, error) {
	t := &Tree{}
	for _, x := range []struct {
		name  string
		index **Index
	}{
		{"modules.dep.bin", &t.dep},
		{"modules.alias.bin", &t.alias},
		{"modules.symbols.bin", &t.symbols},
		{"modules.builtin.bin", &t.builtin},
		{"modules.builtin.alias.bin", &t.builtinAlias},
	} {
		index, err := openIndex(fsys, x.name)
		if err != nil {
			return nil, fmt.Errorf("open the module indexes: %w", err)
		}
		*x.index = index
	}
	for _, name := range []string{"modules.softdep", "modules.weakdep"} {
		text, err := fs.ReadFile(fsys, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open the module indexes: %w", err)
		}
		r := rules{file: name}
		r.parse(string(text)) // what is left out, modprobe leaves out
		t.rules = append(t.rules, r)
	}
	return t, nil
}

// openIndex returns nil for an index that need not be there.
func openIndex(fsys fs.FS, name string) (*Index, error) {
	optional := name == "modules.builtin.alias.bin"
	data, err := fs.ReadFile(fsys, name)
	switch {
	case optional && (errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0):
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w; depmod writes it", err)
	case err != nil:
		return nil, err
	case len(data) == 0:
		return nil, fmt.Errorf("%s is empty; depmod leaves it so when it lacks the file that it is made from", name)
	}
	index, err := OpenIndex(data)
	if err == nil {
		err = index.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return index, nil
}

// Modules yields the name of each module that is a file, in the order of the
// names.
func (t *Tree) Modules() iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range t.dep.All() {
			if !yield(name) {
				return
			}
		}
	}
}

// Dep returns what modules.dep says of a module, whose name is written with
// underscores: its file, and the files of all modules that it needs, the most
// basic one last. Paths are relative to the directory, or absolute for modules
// that depmod found elsewhere. It returns ErrUnknown if no file is this module,
// and another error if the line of modules.dep makes no sense.
func (t *Tree) Dep(name string) (file string, deps []string, err error) {
	line, ok := t.dep.Lookup(name)
	if !ok {
		return "", nil, fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	all, err := ParseDep([]byte(line))
	if err != nil || len(all) != 1 {
		return "", nil, fmt.Errorf("modules.dep.bin: %s has %.80q, which is not a line of modules.dep", name, line)
	}
	d := all[0]
	for _, file := range append([]string{d.Path}, d.Deps...) {
		if !validPath(file) {
			return "", nil, fmt.Errorf("modules.dep.bin: %s needs %.80q, which is not the path of a module", name, file)
		}
	}
	return d.Path, d.Deps, nil
}

// validPath reports whether a path stays in the directory, or says that it does
// not.
func validPath(file string) bool {
	file = strings.TrimPrefix(file, "/")
	return fs.ValidPath(file) && file != "."
}

// Builtin reports whether a module, whose name is written with underscores, is
// part of the kernel.
func (t *Tree) Builtin(name string) bool {
	_, ok := t.builtin.Lookup(name)
	return ok
}

// Aliases returns the aliases of modules that match a name, such as the modalias
// of a device, in the order in which modprobe loads the modules. The patterns are
// as the index has them, normalized. A module may come more than once. Aliases of
// builtin modules and of the configuration are not among them.
func (t *Tree) Aliases(name string) []Alias {
	name, ok := Normalize(name)
	if !ok {
		return nil
	}
	const room = 1 << 20 // real names match some hundred bytes of patterns
	var all []Alias
	for _, h := range t.alias.search(name, room) {
		if h.pattern != "" {
			all = append(all, Alias{h.pattern, h.Value.Value})
		}
	}
	return all
}
