package kmod

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// A Kind is what modprobe does with a module.
type Kind int

const (
	// Insmod loads the file of the module.
	Insmod Kind = iota
	// Builtin does nothing: the module is part of the kernel.
	Builtin
	// Install runs a command instead of loading the module.
	Install
	// Missing cannot be done: an alias or a command names a module that is not
	// there. modprobe says so only when it really loads, and "modprobe -D" shows
	// nothing.
	Missing
)

// String returns the first word of a line of "modprobe -D", or "missing".
func (k Kind) String() string {
	switch k {
	case Insmod:
		return "insmod"
	case Builtin:
		return "builtin"
	case Install:
		return "install"
	}
	return "missing"
}

// An Action is one step of what modprobe does.
type Action struct {
	Kind   Kind
	Module string
	// Path is the file of the module, if there is one: relative to
	// lib/modules/KVER, or absolute.
	Path string
	// Options are the parameters of the module, as the configuration spells them.
	Options string
	// Command is what Install runs with a shell.
	Command string
	// Required is false for what only a softdep asks for. modprobe goes on if
	// such a step fails.
	Required bool
}

// Line returns the action as a line of "modprobe -D", where dir is the directory
// lib/modules/KVER. Like those it ends with a space, unless the module is builtin.
// It is "" for Missing.
func (a Action) Line(dir string) string {
	options := a.Options
	if options != "" {
		options += " "
	}
	switch a.Kind {
	case Insmod:
		file := a.Path
		if !path.IsAbs(file) {
			file = dir + "/" + file
		}
		return "insmod " + file + " " + options
	case Builtin:
		return "builtin " + a.Module
	case Install:
		return "install " + a.Command + " " + options
	case Missing:
	}
	return ""
}

// ResolverOptions say how to resolve. Nil and zero are what "modprobe -D" does.
type ResolverOptions struct {
	// Loaded reports whether a module, named with underscores, is in the kernel
	// already. If it is set, these are left out, and so are builtin modules, as
	// modprobe does without -D.
	Loaded func(name string) bool
	// Blacklist applies the blacklist to modules that are asked for by their own
	// names too, as "modprobe -b" and udev do; otherwise it applies only to what
	// an alias stands for. It never applies to what other modules need.
	Blacklist bool
}

// A Resolver knows what modprobe would do, for the modules of a tree and a
// configuration. Concurrent use is safe.
type Resolver struct {
	tree    *Tree
	rules   rules
	options ResolverOptions
}

// NewResolver returns a Resolver. A nil Config is empty.
func NewResolver(t *Tree, c *Config, o *ResolverOptions) *Resolver {
	if c == nil {
		c = &Config{}
	}
	if o == nil {
		o = &ResolverOptions{}
	}
	return &Resolver{tree: t, rules: c.merge(t.rules), options: *o}
}

// Lookup returns the names of the modules that a name or alias stands for, in the
// order in which modprobe loads them: what "modprobe -R" prints. It returns
// ErrUnknown if there is none. The modules need not be in the tree, and may be
// blacklisted.
func (r *Resolver) Lookup(name string) ([]string, error) {
	found := r.lookup(name)
	if len(found) == 0 {
		return nil, fmt.Errorf("resolve %q: %w", name, ErrUnknown)
	}
	return names(found), nil
}

// Resolve returns what modprobe would do for a name or alias, in order: load the
// modules that it stands for, each after everything that it needs. As with
// modprobe, a module can be in the list more than once. The list is empty if all
// of it is blacklisted or loaded.
//
// Resolve returns ErrUnknown if the name stands for nothing. Other errors are
// those of a damaged index.
func (r *Resolver) Resolve(name string) ([]Action, error) {
	found := r.lookup(name)
	if len(found) == 0 {
		return nil, fmt.Errorf("resolve %q: %w", name, ErrUnknown)
	}
	var actions []Action
	for _, m := range found {
		if r.inKernel(m) || r.blacklisted(m) {
			continue
		}
		p := newProbe(r)
		if err := p.add(m, true); err != nil {
			return nil, fmt.Errorf("resolve %q: %w", name, err)
		}
		for _, s := range p.steps {
			if !r.inKernel(s.module) {
				actions = append(actions, r.action(s, p.required[s.module]))
			}
		}
	}
	return actions, nil
}

// Weakdeps returns the modules that a module, named with underscores, may ask for
// when it runs, by names or aliases as they are written. modprobe does not load
// them; who packs an initramfs needs them.
func (r *Resolver) Weakdeps(module string) []string {
	for _, w := range r.rules.weakdeps {
		if Match(w.name, module) {
			return strings.Fields(w.value)
		}
	}
	return nil
}

// Softdeps returns the modules that the softdep of a module, named with
// underscores, brings: those to load before it, and those after it. The first rule
// for the module counts.
func (r *Resolver) Softdeps(module string) (pre, post []string) {
	i := slices.IndexFunc(r.rules.softdeps, func(s rule) bool { return Match(s.name, module) })
	if i < 0 {
		return nil, nil
	}
	before, after := splitSoftdep(r.rules.softdeps[i].value)
	return names(r.lookupAll(before)), names(r.lookupAll(after))
}

func names(modules []module) []string {
	var all []string
	for _, m := range modules {
		all = append(all, m.name)
	}
	return all
}

// A module is one as libkmod tells them apart: the same name found by another
// alias is another module, and is loaded again.
type module struct {
	name    string
	alias   string // that it was found by, if any; a pattern, if the configuration has one
	command string // that it was found by, if any
	builtin bool   // it was found among the builtin ones
}

// lookup returns what a name stands for. The first place that knows it decides.
// See kmod_module_new_from_lookup of libkmod.
func (r *Resolver) lookup(name string) []module {
	name, ok := Normalize(name)
	if !ok || name == "" {
		return nil
	}
	var found []module
	for _, a := range r.rules.aliases {
		if Match(a.name, name) {
			found = append(found, module{name: a.value, alias: a.name})
		}
	}
	if len(found) > 0 {
		return found
	}
	if _, ok := r.tree.dep.Lookup(name); ok && !strings.Contains(name, ":") {
		return []module{{name: name}}
	}
	if strings.HasPrefix(name, "symbol:") {
		if found = aliased(r.tree.symbols, name, false); len(found) > 0 {
			return found
		}
	}
	for _, c := range r.rules.install {
		if c.name == name {
			return []module{{name: name, command: c.value}}
		}
	}
	for _, c := range r.rules.remove {
		if c.name == name {
			return []module{{name: name}}
		}
	}
	if found = aliased(r.tree.alias, name, false); len(found) > 0 {
		return found
	}
	if r.tree.Builtin(name) {
		return []module{{name: name, builtin: true}}
	}
	return aliased(r.tree.builtinAlias, name, true)
}

// aliased returns the modules that have an alias in an index, which may be nil.
func aliased(x *Index, name string, builtin bool) []module {
	if x == nil {
		return nil
	}
	var found []module
	for _, v := range x.Search(name) {
		found = append(found, module{name: v.Value, alias: name, builtin: builtin})
	}
	return found
}

func (r *Resolver) inKernel(m module) bool {
	return r.options.Loaded != nil && (m.builtin || r.tree.Builtin(m.name) || r.options.Loaded(m.name))
}

func (r *Resolver) blacklisted(m module) bool {
	return (m.alias != "" || r.options.Blacklist) && slices.Contains(r.rules.blacklist, m.name)
}

// action returns what modprobe does for a step. A module with softdeps is loaded
// even if it has an install command: its softdeps are said to be what the command
// is for.
func (r *Resolver) action(s step, required bool) Action {
	a := Action{Module: s.name, Path: s.path, Options: r.parameters(s.module), Required: required}
	if !s.softdeps {
		a.Command = r.command(s.module)
	}
	switch {
	case a.Command != "":
		a.Kind = Install
	case a.Path != "":
		a.Kind = Insmod
	case s.builtin || r.tree.Builtin(s.name):
		a.Kind = Builtin
	default:
		a.Kind = Missing
	}
	return a
}

// parameters joins the options of a module and of the alias that it was found by.
func (r *Resolver) parameters(m module) string {
	var all []string
	for _, o := range r.rules.options {
		if (o.name == m.name || m.alias != "" && o.name == m.alias) && o.value != "" {
			all = append(all, o.value)
		}
	}
	return strings.Join(all, " ")
}

// command returns the first install command for a module.
func (r *Resolver) command(m module) string {
	if m.command != "" {
		return m.command
	}
	for _, c := range r.rules.install {
		if Match(c.name, m.name) {
			return c.value
		}
	}
	return ""
}

// A step is a module in the order of loading.
type step struct {
	module
	path     string
	softdeps bool
}

// maxWork limits what is done for one module: 100 for each step and for each name
// in a softdep, and 1 for each softdep that is compared. Real modules need some
// thousands. Only indexes and softdeps that are made to harm reach the limit,
// within about a second.
const maxWork = 2_000_000

// A probe collects the steps for one module, in libkmod's order: see
// kmod_module_get_probe_list. Softdeps that lead back to a module are ignored.
type probe struct {
	resolver *Resolver
	visited  map[module]bool
	required map[module]bool // what the module cannot do without
	steps    []step
	work     int
}

func newProbe(r *Resolver) *probe {
	return &probe{resolver: r, visited: map[module]bool{}, required: map[module]bool{}}
}

// add adds a module after everything that it needs.
func (p *probe) add(m module, required bool) error {
	if p.visited[m] {
		return nil
	}
	p.visited[m] = true
	own, deps, err := p.resolver.tree.Dep(m.name)
	if err != nil && !errors.Is(err, ErrUnknown) {
		return err
	}
	if required {
		p.required[m] = true
		for _, file := range deps {
			p.required[module{name: Name(file)}] = true
		}
	}
	for _, file := range slices.Backward(deps) {
		if err := p.addAlone(module{name: Name(file)}, file); err != nil {
			return err
		}
	}
	return p.addAlone(m, own)
}

// addAlone adds a module between its softdeps.
func (p *probe) addAlone(m module, file string) error {
	pre, post, err := p.softdeps(m.name)
	if err != nil {
		return err
	}
	for _, s := range pre {
		if err := p.add(s, false); err != nil {
			return err
		}
	}
	p.steps = append(p.steps, step{m, file, len(pre)+len(post) > 0})
	for _, s := range post {
		if err := p.add(s, false); err != nil {
			return err
		}
	}
	return nil
}

// softdeps returns the modules to load before and after one. The first rule for
// the module counts, and names that stand for nothing are left out.
func (p *probe) softdeps(name string) (pre, post []module, err error) {
	rules := p.resolver.rules.softdeps
	p.work += 100 + len(rules)
	i := slices.IndexFunc(rules, func(s rule) bool { return Match(s.name, name) })
	if i >= 0 {
		before, after := splitSoftdep(rules[i].value)
		if p.work += 100 * (len(before) + len(after)); p.work <= maxWork {
			pre, post = p.resolver.lookupAll(before), p.resolver.lookupAll(after)
		}
	}
	if p.work > maxWork {
		return nil, nil, fmt.Errorf("module %s: softdeps and dependencies ask for too much", name)
	}
	return pre, post, nil
}

func (r *Resolver) lookupAll(names []string) []module {
	var found []module
	for _, name := range names {
		found = append(found, r.lookup(name)...)
	}
	return found
}

// splitSoftdep returns the names after "pre:" and "post:". A blank more before the
// first word than the one that ends the name of the module belongs to the word,
// which is lost by that: kmod does so, if it is just one.
func splitSoftdep(value string) (pre, post []string) {
	if len(value) > 1 && isSpace(value[0]) && !isSpace(value[1]) {
		value = "?" + value[1:]
	}
	return Softdep{Value: value}.Split()
}
