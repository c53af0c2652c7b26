package kmod

import (
	"fmt"
	"strconv"
	"strings"
)

// The text indexes have a comment as their first line, except for modules.dep.
// A modules.devname without lines has none either.
const (
	AliasHeader   = "# Aliases extracted from modules themselves.\n"
	SoftdepHeader = "# Soft dependencies extracted from modules themselves.\n"
	WeakdepHeader = "# Weak dependencies extracted from modules themselves.\n"
	SymbolsHeader = "# Aliases for symbols, used by symbol_request().\n"
	DevnameHeader = "# Device nodes to trigger on-demand module loading.\n"
)

// A Dep is a line of modules.dep, and a value of modules.dep.bin: a module's
// file, and those of all modules it needs, directly or not, the most basic one
// last. Paths are relative to the directory of the index, or absolute.
type Dep struct {
	Path string
	Deps []string
}

// ParseDep reads modules.dep, or one value of modules.dep.bin.
func ParseDep(data []byte) ([]Dep, error) {
	return parseLines(data, "PATH: [PATH]...", func(line string) (Dep, bool) {
		file, deps, ok := strings.Cut(line, ":")
		if !ok || file == "" {
			return Dep{}, false
		}
		return Dep{Path: file, Deps: strings.Fields(deps)}, true
	})
}

// AppendDep appends a line of modules.dep. Without the line feed it is the value
// of modules.dep.bin.
func AppendDep(dst []byte, d Dep) []byte {
	dst = append(append(dst, d.Path...), ':')
	for _, dep := range d.Deps {
		dst = append(append(dst, ' '), dep...)
	}
	return append(dst, '\n')
}

// An Alias is a line of modules.alias or modules.symbols: a pattern for [Match]
// as the module spells it, and the module's name. In modules.symbols the pattern
// is "symbol:" and the symbol.
type Alias struct{ Pattern, Module string }

// ParseAliases reads modules.alias or modules.symbols. Patterns may contain
// spaces.
func ParseAliases(data []byte) ([]Alias, error) {
	return parseLines(data, "alias PATTERN MODULE", func(line string) (Alias, bool) {
		line, ok := strings.CutPrefix(line, "alias ")
		space := strings.LastIndexByte(line, ' ')
		if !ok || space < 0 || space == len(line)-1 {
			return Alias{}, false
		}
		return Alias{Pattern: line[:space], Module: line[space+1:]}, true
	})
}

// AppendAlias appends a line of modules.alias or modules.symbols.
func AppendAlias(dst []byte, a Alias) []byte {
	return fmt.Appendf(dst, "alias %s %s\n", a.Pattern, a.Module)
}

// A Softdep is a line of modules.softdep or modules.weakdep: what a module says
// of its soft or weak dependencies. For a weak one Value is names between spaces.
type Softdep struct{ Module, Value string }

// Split returns the names behind "pre:" and behind "post:" in the value of a
// soft dependency, as the module spells them. Like kmod, it ignores names before
// either.
func (s Softdep) Split() (pre, post []string) {
	var list *[]string
	for word := range strings.FieldsSeq(s.Value) {
		switch {
		case word == "pre:":
			list = &pre
		case word == "post:":
			list = &post
		case list != nil:
			*list = append(*list, word)
		}
	}
	return pre, post
}

// ParseSoftdeps reads modules.softdep.
func ParseSoftdeps(data []byte) ([]Softdep, error) { return parseSoft(data, "softdep") }

// ParseWeakdeps reads modules.weakdep.
func ParseWeakdeps(data []byte) ([]Softdep, error) { return parseSoft(data, "weakdep") }

func parseSoft(data []byte, word string) ([]Softdep, error) {
	return parseLines(data, word+" MODULE VALUE", func(line string) (Softdep, bool) {
		line, ok := strings.CutPrefix(line, word+" ")
		module, value, _ := strings.Cut(line, " ")
		if !ok || module == "" {
			return Softdep{}, false
		}
		return Softdep{Module: module, Value: value}, true
	})
}

// AppendSoftdep appends a line of modules.softdep.
func AppendSoftdep(dst []byte, s Softdep) []byte {
	return fmt.Appendf(dst, "softdep %s %s\n", s.Module, s.Value)
}

// AppendWeakdep appends a line of modules.weakdep.
func AppendWeakdep(dst []byte, s Softdep) []byte {
	return fmt.Appendf(dst, "weakdep %s %s\n", s.Module, s.Value)
}

// A Devname is a line of modules.devname: a device node which exists from boot
// on, so that opening it loads the module.
type Devname struct {
	Module       string
	Name         string // below /dev
	Type         byte   // 'c' or 'b': a character or block device
	Major, Minor uint32
}

// ParseDevnames reads modules.devname.
func ParseDevnames(data []byte) ([]Devname, error) {
	return parseLines(data, "MODULE NAME {c|b}MAJOR:MINOR", func(line string) (Devname, bool) {
		words := strings.Fields(line)
		if len(words) != 3 {
			return Devname{}, false
		}
		kind, numbers := words[2][0], words[2][1:]
		majorText, minorText, ok := strings.Cut(numbers, ":")
		if !ok || kind != 'c' && kind != 'b' {
			return Devname{}, false
		}
		major, err1 := strconv.ParseUint(majorText, 10, 32)
		minor, err2 := strconv.ParseUint(minorText, 10, 32)
		return Devname{words[0], words[1], kind, uint32(major), uint32(minor)}, err1 == nil && err2 == nil
	})
}

// AppendDevname appends a line of modules.devname.
func AppendDevname(dst []byte, d Devname) []byte {
	return fmt.Appendf(dst, "%s %s %c%d:%d\n", d.Module, d.Name, d.Type, d.Major, d.Minor)
}

// ParseBuiltin reads modules.builtin: the paths that modules would have had which
// are part of the kernel.
func ParseBuiltin(data []byte) []string { return paths(data) }

// ParseOrder reads modules.order: the paths of modules in the order of the
// kernel's build, uncompressed.
func ParseOrder(data []byte) []string { return paths(data) }

func paths(data []byte) []string {
	all, _ := parseLines(data, "PATH", func(line string) (string, bool) { return line, true })
	return all
}

// A BuiltinField is a record of modules.builtin.modinfo: what a module that is
// part of the kernel says of itself.
type BuiltinField struct {
	Module string
	Field
}

// ParseBuiltinModinfo reads modules.builtin.modinfo, records of MODULE.KEY=VALUE
// that end with NUL.
func ParseBuiltinModinfo(data []byte) ([]BuiltinField, error) {
	var all []BuiltinField
	n := 0
	for record := range strings.SplitSeq(string(data), "\x00") {
		n++
		if record == "" {
			continue
		}
		name, value, ok := strings.Cut(record, "=")
		module, key, ok2 := strings.Cut(name, ".")
		if !ok || !ok2 || module == "" {
			return nil, fmt.Errorf("record %d: want MODULE.KEY=VALUE, found %.80q", n, record)
		}
		all = append(all, BuiltinField{module, Field{key, value}})
	}
	return all, nil
}

// parseLines parses each line that is neither empty nor a comment. An error tells
// what it wants instead of a line that parse does not take.
func parseLines[T any](data []byte, want string, parse func(line string) (T, bool)) ([]T, error) {
	var all []T
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if text := strings.TrimSpace(line); text == "" || text[0] == '#' {
			continue
		}
		v, ok := parse(line)
		if !ok {
			return nil, fmt.Errorf("line %d: want %q, found %.80q", n, want, line)
		}
		all = append(all, v)
	}
	return all, nil
}
