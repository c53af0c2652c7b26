package kmod

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// crcPrefix begins the name of a symbol that stands for the type of another.
const crcPrefix = "__crc_"

// A found is a symbol of interest in the symbol table.
type found struct {
	nameEnd int // in elf.names, where the one before ends and this begins
	value   uint64
	section uint16
	export  bool // else a need
	weak    bool
}

// readSymbols fills Exports and Needs.
func (e *elf) readSymbols(m *Module) error {
	if e.symtab == nil || e.strtab == nil {
		m.Warnings = append(m.Warnings, "it has no symbol table, and no kernel loads such a module")
		return e.readExportedStrings(m)
	}
	table, err := e.data(e.symtab)
	if err != nil {
		return err
	}
	names, err := e.table(e.strtab, "of symbol names")
	if err != nil {
		return err
	}
	if size := e.pick(16, 24); len(table)%size != 0 {
		return fmt.Errorf("damaged: section .symtab has %d bytes, which is no multiple of %d", len(table), size)
	}
	if err := e.scanSymbols(table, names); err != nil {
		return err
	}
	if err := e.keepSymbols(m); err != nil {
		return err
	}
	if err := e.readVersions(m); err != nil {
		return err
	}
	if len(m.Exports) == 0 {
		return e.readExportedStrings(m)
	}
	return nil
}

// scanSymbols notes the symbols that are exports or needs, and their names.
func (e *elf) scanSymbols(table, names []byte) error {
	size := e.pick(16, 24)
	infoAt, sectionAt, valueAt := e.pick(12, 4), e.pick(14, 6), e.pick(4, 8)
	sparc := e.machine == machineSPARC || e.machine == machineSPARCV9
	for i := size; i < len(table); i += size {
		b := table[i : i+size]
		nameOff := e.u32(b)
		if uint64(nameOff) >= uint64(len(names)) {
			return fmt.Errorf("damaged: the name of symbol %d is at byte %d of %d", i/size, nameOff, len(names))
		}
		name := names[nameOff:]
		f := found{section: e.u16(b[sectionAt:])}
		if f.section == indexUndefined && name[0] != 0 && !(sparc && b[infoAt]&0xf == symbolRegister) {
			f.weak = b[infoAt]>>4 == symbolWeak
			if name[0] == '.' {
				name = name[1:]
			}
			if err := e.note(f, name, len(names)); err != nil {
				return fmt.Errorf("symbol %d: %w", i/size, err)
			}
			name = names[nameOff:]
		}
		if name[0] == '_' && bytes.HasPrefix(name, []byte(crcPrefix)) {
			f.export, f.value = true, e.word(b[valueAt:])
			if err := e.note(f, name[len(crcPrefix):], len(names)); err != nil {
				return fmt.Errorf("symbol %d: %w", i/size, err)
			}
		}
	}
	return nil
}

// note keeps a symbol and its name, which a NUL ends. Names that overlap in
// their table of all bytes can be more than it; much more is an attack.
func (e *elf) note(f found, name []byte, all int) error {
	n := bytes.IndexByte(name[:min(len(name), maxName+1)], 0)
	if n < 0 {
		return fmt.Errorf("damaged: its name has over %d bytes", maxName)
	}
	if len(e.names)+n > 4*all {
		return errors.New("damaged: the names of symbols overlap too much")
	}
	e.names = append(e.names, name[:n]...)
	f.nameEnd = len(e.names)
	e.found = append(e.found, f)
	return nil
}

// keepSymbols makes the symbols found those of the module. Their names share
// the memory of one string.
func (e *elf) keepSymbols(m *Module) error {
	exports := 0
	for i := range e.found {
		if e.found[i].export {
			exports++
		}
	}
	if exports > 0 {
		m.Exports = make([]Symbol, 0, exports)
	}
	if needs := len(e.found) - exports; needs > 0 {
		m.Needs = make([]Symbol, 0, needs+1) // and module_layout, which is only in __versions
		e.needs = make(map[string]int, needs)
	}
	text, start := string(e.names), 0
	for _, f := range e.found {
		name := text[start:f.nameEnd]
		start = f.nameEnd
		if !f.export {
			e.addNeed(m, Symbol{Name: name, Weak: f.weak})
			continue
		}
		crc, known, err := e.crc(f)
		if err != nil {
			return fmt.Errorf("the CRC of symbol %s: %w", name, err)
		}
		m.Exports = append(m.Exports, Symbol{Name: name, CRC: crc, HasCRC: known})
	}
	return nil
}

// addNeed adds a symbol that is not there yet.
func (e *elf) addNeed(m *Module, s Symbol) {
	if s.Name == "" {
		return
	}
	if _, ok := e.needs[s.Name]; ok {
		return
	}
	if e.needs == nil {
		e.needs = make(map[string]int)
	}
	e.needs[s.Name] = len(m.Needs)
	m.Needs = append(m.Needs, s)
}

// crc returns what the symbol __crc_NAME stands for: its value if it is
// absolute, otherwise the 32-bit word at that offset of its section.
func (e *elf) crc(f found) (crc uint64, known bool, err error) {
	switch {
	case f.section == indexAbsolute:
		return f.value, true, nil
	case f.section == indexUndefined || f.section >= indexReserved:
		return 0, false, nil // the compiler could not make one
	case int(f.section) >= len(e.sections):
		return 0, false, fmt.Errorf("damaged: it is in section %d of %d", f.section, len(e.sections))
	}
	s := &e.sections[f.section]
	if s.kind == sectionNobits || s.kind == sectionNull {
		return 0, false, nil
	}
	if s.size < 4 || f.value > s.size-4 {
		return 0, false, fmt.Errorf("damaged: it is at byte %d of a section of %d", f.value, s.size)
	}
	b, err := e.data(s)
	if err != nil {
		return 0, false, err
	}
	return uint64(e.u32(b[f.value:])), true, nil
}

// readVersions reads the CRCs of needs from __versions, and adds the needs that
// only it names. A record has a CRC of the width of the class, and a name.
func (e *elf) readVersions(m *Module) error {
	b, err := e.data(e.versions)
	if err != nil {
		return err
	}
	if len(b)%versionLen != 0 {
		return fmt.Errorf("damaged: section __versions has %d bytes, which is no multiple of %d", len(b), versionLen)
	}
	for at := e.pick(4, 8); len(b) > 0; b = b[versionLen:] {
		name := b[at:versionLen]
		n := bytes.IndexByte(name, 0)
		if n < 0 {
			return fmt.Errorf("damaged: a name in section __versions has no end: %q", name)
		}
		name = bytes.TrimPrefix(name[:n], []byte("."))
		s := Symbol{CRC: e.word(b), HasCRC: true}
		if i, ok := e.needs[string(name)]; !ok {
			s.Name = string(name)
			e.addNeed(m, s)
		} else if need := &m.Needs[i]; !need.HasCRC {
			need.CRC, need.HasCRC = s.CRC, true
		}
	}
	return nil
}

// readExportedStrings takes the exports from __ksymtab_strings, where kernels
// without CONFIG_MODVERSIONS have all there is to know.
func (e *elf) readExportedStrings(m *Module) error {
	b, err := e.stringsOf(e.exported, "__ksymtab_strings")
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(string(b), "\x00") {
		if name != "" {
			m.Exports = append(m.Exports, Symbol{Name: name})
		}
	}
	return nil
}
