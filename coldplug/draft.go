package coldplug

import (
	"cmp"
	"fmt"
	"path"
	"slices"

	"overmount/firmware"
	"overmount/kmod"
)

// A draft is a plan in the making.
type draft struct {
	*Planner
	plan *Plan
	at   map[string]int // where a module is in the plan
}

func (d *draft) problem(err error) { d.plan.Problems = append(d.plan.Problems, err) }

// match looks up all modaliases, and puts those with only catch-all patterns last.
func (d *draft) match() {
	for i := range d.plan.Requests {
		r := &d.plan.Requests[i]
		names, err := d.resolver.Lookup(r.Modalias)
		if err != nil {
			continue // it stands for nothing
		}
		aliases := d.tree.Aliases(r.Modalias)
		for _, name := range names {
			if !slices.ContainsFunc(r.Matches, func(m Match) bool { return m.Module == name }) {
				r.Matches = append(r.Matches, Match{Module: name, CatchAll: onlyCatchAll(aliases, name)})
			}
		}
	}
	slices.SortStableFunc(d.plan.Requests, func(a, b Request) int { return cmp.Compare(a.rank(), b.rank()) })
}

// onlyCatchAll reports whether of the aliases those of a module are all catch-all,
// and there is one.
func onlyCatchAll(aliases []kmod.Alias, module string) bool {
	found := false
	for _, a := range aliases {
		if a.Module == module {
			if !isCatchAll(a.Pattern) {
				return false
			}
			found = true
		}
	}
	return found
}

// rank is 1 for what comes behind the others.
func (r *Request) rank() int {
	if len(r.Matches) > 0 && !slices.ContainsFunc(r.Matches, func(m Match) bool { return !m.CatchAll }) {
		return 1
	}
	return 0
}

// resolve adds what a request needs.
func (d *draft) resolve(i int) {
	r := &d.plan.Requests[i]
	if len(r.Matches) == 0 {
		return
	}
	list, err := d.resolver.Resolve(r.Modalias)
	if err != nil {
		d.problem(err)
		for j := range r.Matches {
			r.Matches[j].Outcome = Missing
		}
		return
	}
	a := actions{request: i, of: map[string]kmod.Action{}, placed: map[string]bool{}}
	for _, x := range list {
		if _, ok := a.of[x.Module]; !ok { // later ones find it loaded
			a.of[x.Module] = x
		}
	}
	wanted := false
	for j := range r.Matches {
		m := &r.Matches[j]
		m.Outcome = d.outcome(m.Module, a)
		wanted = wanted || m.Outcome == Planned
	}
	if !wanted {
		return
	}
	for _, x := range list {
		d.place(x.Module, &a)
	}
}

func (d *draft) outcome(module string, a actions) Outcome {
	x, ok := a.of[module]
	switch {
	case d.known(module) || d.tree.Builtin(module):
		return Known
	case !ok:
		return Blacklisted
	case x.Kind == kmod.Missing:
		return Missing
	case d.refused(module):
		return Refused
	}
	return Planned
}

// actions are what a request needs, by module.
type actions struct {
	request int
	of      map[string]kmod.Action
	placed  map[string]bool // or about to be
}

// place adds a module, unless it is there, after what it needs. That is there
// already but where softdeps in a circle brought the module before it.
func (d *draft) place(name string, a *actions) {
	x, ok := a.of[name]
	if !ok || a.placed[name] || x.Kind != kmod.Insmod && x.Kind != kmod.Install || d.refused(name) {
		return
	}
	a.placed[name] = true
	i, ok := d.at[name]
	if !ok {
		for _, need := range d.needs(name) {
			d.place(need, a)
		}
		i = len(d.plan.Modules)
		d.at[name] = i
		d.plan.Modules = append(d.plan.Modules, Module{Action: x, Reason: Soft})
	}
	m := &d.plan.Modules[i]
	m.Reason = min(m.Reason, d.reason(x, a.request))
	m.Requests = append(m.Requests, a.request)
}

// reason returns why a request asks for an action.
func (d *draft) reason(x kmod.Action, request int) Reason {
	switch {
	case slices.ContainsFunc(d.plan.Requests[request].Matches, func(m Match) bool { return m.Module == x.Module }):
		return Direct
	case x.Required:
		return Dependency
	}
	return Soft
}

// link fills in which modules wait for which, and which are there only for
// catch-all patterns.
func (d *draft) link() {
	modules := d.plan.Modules
	brings := make([][]int, len(modules)) // what each module brings along
	for i := range modules {
		m := &modules[i]
		m.Needs = d.positions(d.needs(m.Module), i)
		pre, post := d.resolver.Softdeps(m.Module)
		m.After = append(m.After, d.positions(pre, i)...)
		later := d.positions(post, len(modules))
		for _, k := range later {
			if k > i {
				modules[k].After = append(modules[k].After, i)
			}
		}
		brings[i] = slices.Concat(m.Needs, d.positions(pre, len(modules)), later)
		m.CatchAll = true
	}
	for i := range modules {
		m := &modules[i]
		slices.Sort(m.After)
		m.After = slices.DeleteFunc(slices.Compact(m.After), func(k int) bool { return slices.Contains(m.Needs, k) })
	}
	for _, r := range d.plan.Requests {
		for _, m := range r.Matches {
			if i, ok := d.at[m.Module]; ok && !m.CatchAll {
				certain(modules, brings, i)
			}
		}
	}
}

// positions returns where modules are, of those that are before a position, in
// order.
func (d *draft) positions(names []string, before int) []int {
	var all []int
	for _, name := range names {
		if i, ok := d.at[name]; ok && i < before {
			all = append(all, i)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// certain unmarks a module, and what it brings along.
func certain(modules []Module, brings [][]int, i int) {
	if !modules[i].CatchAll {
		return
	}
	modules[i].CatchAll = false
	for _, k := range brings[i] {
		certain(modules, brings, k)
	}
}

// readFacts fills in sizes, and adds firmware.
func (d *draft) readFacts() {
	at := map[string]int{}
	for i := range d.plan.Modules {
		m := &d.plan.Modules[i]
		if m.Kind != kmod.Insmod || path.IsAbs(m.Path) {
			continue
		}
		facts, err := d.source.Facts(m.Path)
		if err != nil {
			d.problem(fmt.Errorf("module %s: %w", m.Module, err))
			continue
		}
		m.Size = facts.Size
		if d.options.Firmware != nil && len(facts.Firmware) > 0 {
			d.addFirmware(i, facts.Firmware, at)
		}
	}
}

// addFirmware adds what a module declares, if it is under the cap.
func (d *draft) addFirmware(module int, names []string, at map[string]int) {
	files, found, missing := d.search(names)
	o := Omitted{Module: module, Why: OverCap, Names: found, Files: len(files)}
	for _, f := range files {
		o.Bytes += f.Size
	}
	most := d.options
	if most.CapFiles >= 0 && o.Files > most.CapFiles || most.CapBytes >= 0 && o.Bytes > most.CapBytes {
		d.plan.Omitted = append(d.plan.Omitted, o)
	} else {
		d.take(module, files, at)
	}
	if len(missing) > 0 {
		d.plan.Omitted = append(d.plan.Omitted, Omitted{Module: module, Why: NotThere, Names: missing})
	}
}

// search returns the files that names stand for, each once, and for which names
// there are files and for which not.
func (d *draft) search(names []string) (files []Firmware, found, missing []string) {
	asked, has := map[string]bool{}, map[string]bool{}
	for _, name := range names {
		if asked[name] {
			continue
		}
		asked[name] = true
		there, err := d.find(name)
		if err != nil {
			d.problem(fmt.Errorf("look for firmware %s: %w", name, err))
		}
		if len(there) == 0 {
			missing = append(missing, name)
			continue
		}
		found = append(found, name)
		for _, f := range there {
			if !has[f.Path] {
				has[f.Path] = true
				files = append(files, Firmware{Name: name, Path: f.Path, Size: f.Size})
			}
		}
	}
	return files, found, missing
}

func (d *draft) find(name string) ([]firmware.File, error) {
	if firmware.IsPattern(name) {
		return d.options.Firmware.Match(name)
	}
	if f, ok := d.options.Firmware.Find(name); ok {
		return []firmware.File{f}, nil
	}
	return nil, nil
}

// take adds files that are not in this plan, nor in an earlier one.
func (d *draft) take(module int, files []Firmware, at map[string]int) {
	for _, f := range files {
		if d.Planner.firmware[f.Path] {
			continue
		}
		i, ok := at[f.Path]
		if !ok {
			i = len(d.plan.Firmware)
			at[f.Path] = i
			d.plan.Firmware = append(d.plan.Firmware, f)
		}
		d.plan.Firmware[i].Modules = append(d.plan.Firmware[i].Modules, module)
	}
}
