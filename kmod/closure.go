package kmod

import (
	"fmt"
	"slices"
	"strings"
)

// A Needed is a module of a closure.
type Needed struct {
	Module string
	// Path is relative to lib/modules/KVER, or absolute.
	Path string
	// Soft says that only softdeps lead to the module.
	Soft bool
}

// Closure returns the modules that are needed to load those of the given names:
// they themselves, what they depend on, and their softdeps before and after them,
// with what these depend on. Each is there once, after everything that it depends
// on. Builtin modules need nothing and are left out. The configuration of a
// machine may have other softdeps: see [Resolver.Closure].
//
// The names are of modules, not aliases; [Resolver.Lookup] gives them. Closure
// returns ErrUnknown for a name that is not a module of the tree.
//
// Which firmware the modules declare is not in the indexes. Who has read the
// modules adds it by the names in the closure.
func (t *Tree) Closure(names ...string) ([]Needed, error) {
	return NewResolver(t, nil, nil).Closure(names...)
}

// Closure is [Tree.Closure] with the softdeps and aliases of the configuration.
// Its install commands and its blacklist change nothing.
func (r *Resolver) Closure(names ...string) ([]Needed, error) {
	c := closure{at: map[string]int{}}
	for _, name := range names {
		if err := c.addAll(r, module{name: strings.ReplaceAll(name, "-", "_")}); err != nil {
			return nil, fmt.Errorf("closure of %q: %w", name, err)
		}
	}
	return c.list, nil
}

// A closure is a list of modules, each once.
type closure struct {
	list []Needed
	at   map[string]int
}

// addAll adds all that a module needs. Softdeps may have brought a module before
// what it depends on, so that each comes with that.
func (c *closure) addAll(r *Resolver, m module) error {
	if _, ok := r.tree.dep.Lookup(m.name); !ok {
		if r.tree.Builtin(m.name) {
			return nil
		}
		return ErrUnknown
	}
	p := newProbe(r)
	if err := p.add(m, true); err != nil {
		return err
	}
	for _, s := range p.steps {
		if s.path == "" {
			continue
		}
		soft := !p.required[s.module]
		_, deps, err := r.tree.Dep(s.name)
		if err != nil {
			return err
		}
		for _, file := range slices.Backward(deps) {
			c.add(Needed{Name(file), file, soft})
		}
		c.add(Needed{s.name, s.path, soft})
	}
	return nil
}

func (c *closure) add(n Needed) {
	if i, ok := c.at[n.Module]; ok {
		c.list[i].Soft = c.list[i].Soft && n.Soft
		return
	}
	c.at[n.Module] = len(c.list)
	c.list = append(c.list, n)
}
