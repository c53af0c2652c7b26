package depmod

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"overmount/kmod"
)

// Symbols are what the kernel itself exports, to check modules against.
type Symbols struct {
	crcs    map[string]uint64
	checked bool // the CRCs are known
}

// fakeSymbols are those that the loader of the kernel makes.
var fakeSymbols = [...]string{"__this_module", "_GLOBAL_OFFSET_TABLE_", "TOC."}

func newSymbols() *Symbols {
	s := &Symbols{crcs: map[string]uint64{}}
	for _, name := range fakeSymbols {
		s.crcs[name] = 0
	}
	return s
}

// ReadSymvers reads a Module.symvers: symbols of vmlinux with their CRC. prefix
// is dropped from names; 0 is none.
func ReadSymvers(r io.Reader, prefix byte) (*Symbols, error) {
	s := newSymbols()
	s.checked = true
	return s.read(r, func(line string) error {
		words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
		if len(words) < 3 || words[2] != "vmlinux" {
			return nil
		}
		crc, err := strconv.ParseUint(strings.TrimPrefix(words[0], "0x"), 16, 64)
		if err != nil {
			return fmt.Errorf("invalid symbol version %q", words[0])
		}
		s.crcs[unprefixed(words[1], prefix)] = crc
		return nil
	})
}

// ReadSystemMap reads a System.map: the names of exported symbols. prefix is
// dropped from names; 0 is none.
func ReadSystemMap(r io.Reader, prefix byte) (*Symbols, error) {
	s := newSymbols()
	return s.read(r, func(line string) error {
		words := strings.SplitN(line, " ", 3)
		if len(words) < 3 {
			return fmt.Errorf("invalid line %q", line)
		}
		if name, ok := strings.CutPrefix(unprefixed(words[2], prefix), "__ksymtab_"); ok {
			s.crcs[name] = 0
		}
		return nil
	})
}

// read calls do for each line, and returns s unless that fails.
func (s *Symbols) read(r io.Reader, do func(line string) error) (*Symbols, error) {
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		if err := do(in.Text()); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	return s, nil
}

func unprefixed(name string, prefix byte) string {
	if prefix != 0 && name != "" && name[0] == prefix {
		return name[1:]
	}
	return name
}

// A symbol is one that a module exports, or the kernel.
type symbol struct {
	name  string
	crc   uint64
	owner *Module // nil: the kernel
}

// table finds symbols by name.
type table struct {
	symbols map[string]symbol
	prefix  byte
}

// newTable collects what the kernel and the modules export. A module goes before
// the kernel, and the last module before all.
func newTable(kernel *Symbols, modules []*Module, prefix byte) *table {
	n := 0
	for _, m := range modules {
		n += len(m.Exports)
	}
	if kernel != nil {
		n += len(kernel.crcs)
	}
	t := &table{symbols: make(map[string]symbol, n), prefix: prefix}
	if kernel != nil {
		for name, crc := range kernel.crcs {
			t.symbols[name] = symbol{name, crc, nil}
		}
	}
	for _, m := range modules {
		for _, s := range m.Exports {
			name := unprefixed(s.Name, prefix)
			t.symbols[name] = symbol{name, s.CRC, m}
		}
	}
	return t
}

// find looks a needed symbol up.
func (t *table) find(name string) (symbol, bool) {
	s, ok := t.symbols[unprefixed(name, t.prefix)]
	return s, ok
}

// exported returns the symbols of modules, in kmod's order.
func (t *table) exported() []symbol {
	var list []symbol
	for _, s := range t.symbols {
		if s.owner != nil {
			list = append(list, s)
		}
	}
	sortHashed(list, symbolBuckets, func(symbol) int { return 0 }, func(s symbol) string { return s.name })
	return list
}

// connect fills in the direct dependencies, in the order in which their symbols
// are needed. With a kernel's symbols it reports what is amiss.
func (t *table) connect(modules []*Module, kernel *Symbols) []Warning {
	var warnings []Warning
	for _, m := range modules {
		for _, need := range m.Needs {
			s, ok := t.find(need.Name)
			if !ok {
				if kernel != nil && !need.Weak {
					warnings = append(warnings, unresolved(m, need))
				}
				continue
			}
			if kernel != nil && kernel.checked && s.crc != need.CRC && !need.Weak {
				warnings = append(warnings, Warning{Kind: Disagrees, Path: m.Path, Text: "disagrees about version of symbol " + need.Name})
			}
			if s.owner != nil {
				m.depend(s)
			}
		}
	}
	return warnings
}

func unresolved(m *Module, need kmod.Symbol) Warning {
	return Warning{Kind: Unresolved, Path: m.Path, Text: "needs unknown symbol " + need.Name}
}

// depend adds a dependency, once.
func (m *Module) depend(s symbol) {
	if slices.Contains(m.Depends, s.owner) {
		return
	}
	m.Depends = append(m.Depends, s.owner)
	m.via = append(m.via, s.name)
}
