package coldplug

import (
	"cmp"
	"slices"

	"overmount/firmware"
	"overmount/kmod"
)

// The cap on declared firmware, for each module, unless Options say otherwise. Of
// the 206 modules of Debian's 6.1 that declare any, 173 are below it, with 9.3 MB;
// all declare 170 MB, of which a machine uses a few.
const (
	DefaultCapFiles = 4
	DefaultCapBytes = 1 << 20
)

// Options are what a Planner can be told beyond what it needs.
type Options struct {
	// Loaded reports whether a module, named with underscores, is in the kernel
	// already ([Machine.Loaded]). Nil is a kernel without modules. Those that
	// modules.builtin names are known without it.
	Loaded func(name string) bool
	// Refused are the modules that the kernel does not load ([kmod.Refused]).
	Refused []string
	// Firmware is where declared firmware is. Nil means to plan none.
	Firmware *firmware.Dir
	// CapFiles and CapBytes limit what a module may declare: if the files that are
	// there are more, or larger together, none is planned. 0 means DefaultCapFiles
	// and DefaultCapBytes; below 0 there is no limit.
	CapFiles int
	CapBytes int64
}

// A Planner plans for the modules of one tree, and remembers what it has planned. It
// must not be used concurrently.
type Planner struct {
	options  Options
	tree     *kmod.Tree
	resolver *kmod.Resolver
	source   Source
	modules  map[string]bool // of earlier plans
	firmware map[string]bool // of earlier plans, by path
}

// New returns a Planner. A nil Config is empty.
func New(t *kmod.Tree, c *kmod.Config, source Source, o *Options) *Planner {
	p := &Planner{tree: t, source: source, modules: map[string]bool{}, firmware: map[string]bool{}}
	if o != nil {
		p.options = *o
	}
	p.options.CapFiles = cmp.Or(p.options.CapFiles, DefaultCapFiles)
	p.options.CapBytes = cmp.Or(p.options.CapBytes, DefaultCapBytes)
	p.resolver = kmod.NewResolver(t, c, &kmod.ResolverOptions{Loaded: p.known, Blacklist: true})
	return p
}

// known reports whether a module need not be loaded any more.
func (p *Planner) known(name string) bool {
	return p.modules[name] || p.options.Loaded != nil && p.options.Loaded(name)
}

// refused reports whether the kernel would not load a module, or not what it needs.
func (p *Planner) refused(name string) bool {
	refused := p.options.Refused
	if len(refused) == 0 {
		return false
	}
	return slices.Contains(refused, name) ||
		slices.ContainsFunc(p.needs(name), func(need string) bool { return slices.Contains(refused, need) })
}

// needs returns the modules that one needs, the most basic one first.
func (p *Planner) needs(name string) []string {
	_, deps, err := p.tree.Dep(name)
	if err != nil {
		return nil // Resolve has said it, if it matters
	}
	var names []string
	for _, file := range slices.Backward(deps) {
		names = append(names, kmod.Name(file))
	}
	return names
}

// Plan returns what devices need that no earlier plan has. Each modalias counts
// once. Those that some pattern knows by the number of the device come first, then
// those that only catch-all patterns match; otherwise the order is that of the
// devices. What one modalias needs is in the order of "modprobe -b".
//
// Damage in the indexes is a problem of the modaliases that it hits, and the
// others are planned.
func (p *Planner) Plan(devices []Device) *Plan {
	d := &draft{Planner: p, plan: &Plan{Requests: requests(devices)}, at: map[string]int{}}
	d.match()
	for i := range d.plan.Requests {
		d.resolve(i)
	}
	d.link()
	d.readFacts()
	for i := range d.plan.Modules {
		p.modules[d.plan.Modules[i].Module] = true
	}
	for _, f := range d.plan.Firmware {
		p.firmware[f.Path] = true
	}
	return d.plan
}

// requests returns each modalias with the devices that have it.
func requests(devices []Device) []Request {
	var all []Request
	at := map[string]int{}
	for _, d := range devices {
		i, ok := at[d.Modalias]
		if !ok {
			i = len(all)
			at[d.Modalias] = i
			all = append(all, Request{Modalias: d.Modalias})
		}
		all[i].Devices = append(all[i].Devices, d.Path)
	}
	return all
}
