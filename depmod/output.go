package depmod

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"overmount/kmod"
)

// An output makes one index file.
type output struct {
	name string
	make func(*builder) ([]byte, []Warning, error)
}

// outputs are the files in the order in which depmod writes them.
func outputs(l kmod.Layout) []output {
	list := []output{
		{"modules.dep", (*builder).dep},
		{"modules.dep.bin", (*builder).depBin},
		{"modules.alias", (*builder).alias},
		{"modules.alias.bin", (*builder).aliasBin},
		{"modules.softdep", (*builder).softdep},
	}
	if l != kmod.Kmod30 {
		list = append(list, output{"modules.weakdep", (*builder).weakdep})
	}
	return append(list,
		output{"modules.symbols", (*builder).symbols},
		output{"modules.symbols.bin", (*builder).symbolsBin},
		output{"modules.builtin.bin", (*builder).builtinBin},
		output{"modules.builtin.alias.bin", (*builder).builtinAliasBin},
		output{"modules.devname", (*builder).devname})
}

// index makes all files, side by side.
func (b *builder) index() error {
	list := outputs(b.o.Layout)
	type made struct {
		data     []byte
		warnings []Warning
		err      error
	}
	results := make([]made, len(list))
	b.exported = b.table.exported()
	var wg sync.WaitGroup
	for i, out := range list {
		wg.Go(func() {
			r := &results[i]
			r.data, r.warnings, r.err = out.make(b)
		})
	}
	wg.Wait()
	for i, r := range results {
		if r.err != nil {
			return fmt.Errorf("make %s: %w", list[i].name, r.err)
		}
		b.warn(r.warnings...)
		b.Files = append(b.Files, File{list[i].name, r.data})
	}
	return nil
}

// line is what modules.dep says of a module.
func (m *Module) line() kmod.Dep {
	d := kmod.Dep{Path: m.Path}
	for _, c := range m.Closure {
		d.Deps = append(d.Deps, c.Path)
	}
	return d
}

func (b *builder) dep() ([]byte, []Warning, error) {
	var out []byte
	for _, m := range b.Modules {
		out = kmod.AppendDep(out, m.line())
	}
	return out, nil, nil
}

// A binIndex is a binary index on its way.
type binIndex struct {
	kmod.IndexBuilder
	warnings []Warning
}

// insert adds a value. what names the kind of key in the warning that the index
// has it already.
func (x *binIndex) insert(key, value string, m *Module, what string) error {
	existed, err := x.Insert(key, value, uint32(m.rank))
	if err != nil {
		return fmt.Errorf("module %s: %w", m.Path, err)
	}
	if existed {
		x.warnings = append(x.warnings, Warning{Kind: Repeated, Path: m.Path, Text: fmt.Sprintf("duplicate module %s: %s", what, key)})
	}
	return nil
}

func (x *binIndex) finish(l kmod.Layout) ([]byte, []Warning, error) {
	data, err := x.Bytes(l)
	return data, x.warnings, err
}

func (b *builder) depBin() ([]byte, []Warning, error) {
	var x binIndex
	var line []byte
	for _, m := range b.Modules {
		line = kmod.AppendDep(line[:0], m.line())
		if err := x.insert(m.Name, strings.TrimSuffix(string(line), "\n"), m, "deps"); err != nil {
			return nil, nil, err
		}
	}
	return x.finish(b.o.Layout)
}

func (b *builder) alias() ([]byte, []Warning, error) {
	out := []byte(kmod.AliasHeader)
	for _, m := range b.Modules {
		for _, f := range m.Info {
			if f.Key == "alias" {
				out = kmod.AppendAlias(out, kmod.Alias{Pattern: f.Value, Module: m.Name})
			}
		}
	}
	return out, nil, nil
}

func (b *builder) aliasBin() ([]byte, []Warning, error) {
	var x binIndex
	for _, m := range b.Modules {
		for _, f := range m.Info {
			if f.Key != "alias" {
				continue
			}
			alias, ok := kmod.Normalize(f.Value)
			if !ok {
				x.warnings = append(x.warnings, unmatched(m.Path, f.Value))
				continue
			}
			if err := x.insert(alias, m.Name, m, "alias"); err != nil {
				return nil, nil, err
			}
		}
	}
	return x.finish(b.o.Layout)
}

func unmatched(path, alias string) Warning {
	return Warning{Kind: BadAlias, Path: path, Text: "unmatched bracket in alias " + alias}
}

func (b *builder) softdep() ([]byte, []Warning, error) {
	out := []byte(kmod.SoftdepHeader)
	for _, m := range b.Modules {
		for _, v := range m.Info.All("softdep") {
			out = kmod.AppendSoftdep(out, kmod.Softdep{Module: m.Name, Value: v})
		}
	}
	return out, nil, nil
}

func (b *builder) weakdep() ([]byte, []Warning, error) {
	out := []byte(kmod.WeakdepHeader)
	for _, m := range b.Modules {
		for _, v := range m.Info.All("weakdep") {
			out = kmod.AppendWeakdep(out, kmod.Softdep{Module: m.Name, Value: v})
		}
	}
	return out, nil, nil
}

func (b *builder) symbols() ([]byte, []Warning, error) {
	out := []byte(kmod.SymbolsHeader)
	for _, s := range b.exported {
		out = kmod.AppendAlias(out, kmod.Alias{Pattern: "symbol:" + s.name, Module: s.owner.Name})
	}
	return out, nil, nil
}

func (b *builder) symbolsBin() ([]byte, []Warning, error) {
	var x binIndex
	for _, s := range b.exported {
		if err := x.insert("symbol:"+s.name, s.owner.Name, s.owner, "syms"); err != nil {
			return nil, nil, err
		}
	}
	return x.finish(b.o.Layout)
}

// builtinBin lists the modules that are part of the kernel.
func (b *builder) builtinBin() ([]byte, []Warning, error) {
	var x binIndex
	for line := range strings.Lines(string(b.builtin)) {
		if c := line[0] | 0x20; c < 'a' || c > 'z' {
			x.warnings = append(x.warnings, Warning{Kind: Missing, Path: "modules.builtin", Text: fmt.Sprintf("invalid line %q", line)})
			continue
		}
		if _, err := x.Insert(kmod.Name(line), "", 0); err != nil { // with the newline, if there is no dot before it
			return nil, nil, fmt.Errorf("modules.builtin: %w", err)
		}
	}
	return x.finish(b.o.Layout)
}

// builtinAliasBin has the aliases of the modules that are part of the kernel.
func (b *builder) builtinAliasBin() ([]byte, []Warning, error) {
	var x binIndex
	infos, err := kmod.ParseBuiltinModinfo(b.builtinInfo)
	if err != nil {
		return nil, nil, fmt.Errorf("modules.builtin.modinfo: %w", err)
	}
	for _, f := range infos {
		if f.Key != "alias" {
			continue
		}
		alias, ok := kmod.Normalize(f.Value)
		if !ok {
			x.warnings = append(x.warnings, unmatched("modules.builtin.modinfo", f.Value))
			continue
		}
		if _, err := x.Insert(alias, f.Module, 0); err != nil {
			return nil, nil, fmt.Errorf("modules.builtin.modinfo: %w", err)
		}
	}
	return x.finish(b.o.Layout)
}

// devname lists the device nodes that load a module when they are opened.
func (b *builder) devname() ([]byte, []Warning, error) {
	var out []byte
	var warnings []Warning
	for _, m := range b.Modules {
		d := deviceNode(m)
		if d.Name == "" {
			continue
		}
		if d.Type == 0 {
			warnings = append(warnings, Warning{Path: m.Path, Text: fmt.Sprintf("it has devname %s, but no major and minor number", d.Name)})
			continue
		}
		if out == nil {
			out = []byte(kmod.DevnameHeader)
		}
		out = kmod.AppendDevname(out, d)
	}
	return out, warnings, nil
}

// deviceNode finds the name and the number of a device among the aliases, each
// the last until both are known.
func deviceNode(m *Module) kmod.Devname {
	d := kmod.Devname{Module: m.Name}
	for _, alias := range m.Info.All("alias") {
		if name, ok := strings.CutPrefix(alias, "devname:"); ok {
			d.Name = name
		} else if major, minor, ok := deviceNumber(alias, "char-major-"); ok {
			d.Type, d.Major, d.Minor = 'c', major, minor
		} else if major, minor, ok := deviceNumber(alias, "block-major-"); ok {
			d.Type, d.Major, d.Minor = 'b', major, minor
		}
		if d.Name != "" && d.Type != 0 {
			break
		}
	}
	return d
}

// deviceNumber reads MAJOR-MINOR behind a prefix, and as sscanf(3) does, not what
// may follow.
func deviceNumber(alias, prefix string) (major, minor uint32, ok bool) {
	s, ok := strings.CutPrefix(alias, prefix)
	if !ok {
		return 0, 0, false
	}
	major, s, ok = leadingNumber(s)
	if !ok || s == "" || s[0] != '-' {
		return 0, 0, false
	}
	minor, _, ok = leadingNumber(s[1:])
	return major, minor, ok
}

func leadingNumber(s string) (n uint32, rest string, ok bool) {
	end := 0
	for end < len(s) && '0' <= s[end] && s[end] <= '9' {
		end++
	}
	v, err := strconv.ParseUint(s[:end], 10, 32)
	return uint32(v), s[end:], err == nil
}
