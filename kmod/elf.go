package kmod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Numbers of the ELF specification that debug/elf has, too; that package's
// reader takes several times as long for what is needed here.
const (
	elfClass32 = 1
	elfClass64 = 2
	elfLittle  = 1
	elfBig     = 2

	typeRelocatable = 1
	machineSPARC    = 2
	machineSPARCV9  = 43

	sectionNull   = 0
	sectionNobits = 8

	indexUndefined = 0
	indexReserved  = 0xff00
	indexAbsolute  = 0xfff1
	indexExtended  = 0xffff

	symbolWeak     = 2  // binding
	symbolRegister = 13 // type, on SPARC only

	elfHeaderLen = 64 // of class 64; that of 32 has 52

	versionLen = 64 // of a record of __versions in both classes
)

// An elf reads a relocatable object, as libkmod-elf.c does, except that damage
// which libkmod passes over is an error.
type elf struct {
	*image
	sections []section
	found    []found
	names    []byte         // of found, on their way into one string
	needs    map[string]int // where in Module.Needs a name is

	wide    bool // 64-bit
	big     bool
	machine uint16

	// What was found by name; a nil section is not there.
	modinfo, symtab, strtab, versions, exported *section
}

// A section is the part of a section's header that matters.
type section struct {
	nameOff, kind, link uint32
	off, size           uint64
}

func (e *elf) u16(b []byte) uint16 {
	if e.big {
		return binary.BigEndian.Uint16(b)
	}
	return binary.LittleEndian.Uint16(b)
}

func (e *elf) u32(b []byte) uint32 {
	if e.big {
		return binary.BigEndian.Uint32(b)
	}
	return binary.LittleEndian.Uint32(b)
}

func (e *elf) u64(b []byte) uint64 {
	if e.big {
		return binary.BigEndian.Uint64(b)
	}
	return binary.LittleEndian.Uint64(b)
}

// word reads a number of the width of the class.
func (e *elf) word(b []byte) uint64 {
	if e.wide {
		return e.u64(b)
	}
	return uint64(e.u32(b))
}

// pick returns the offset or length of something in the header's class.
func (e *elf) pick(narrow, wide int) int {
	if e.wide {
		return wide
	}
	return narrow
}

// read fills the module.
func (e *elf) read(m *Module) error {
	if err := e.readHeader(m); err != nil {
		return err
	}
	if err := e.loadSections(); err != nil {
		return err
	}
	if err := e.readInfo(m); err != nil {
		return err
	}
	if err := e.readSymbols(m); err != nil {
		return err
	}
	return e.readSignature(m)
}

// readHeader reads the ELF header and the headers of the sections.
func (e *elf) readHeader(m *Module) error {
	head, err := e.at(0, min(e.size, elfHeaderLen))
	if err != nil {
		return err
	}
	if len(head) == 0 {
		return errors.New("the file is empty")
	}
	if !bytes.HasPrefix(head, []byte("\x7fELF")) {
		return errors.New("not a module: it is no ELF file, nor one compressed with gzip, xz or zstd")
	}
	if len(head) < 16 {
		return fmt.Errorf("truncated: an ELF header in a file of %d bytes", len(head))
	}
	switch class := head[4]; class {
	case elfClass32:
		m.Class = 32
	case elfClass64:
		m.Class, e.wide = 64, true
	default:
		return fmt.Errorf("damaged: unknown ELF class %d", class)
	}
	switch order := head[5]; order {
	case elfLittle:
		m.ByteOrder = binary.LittleEndian
	case elfBig:
		m.ByteOrder, e.big = binary.BigEndian, true
	default:
		return fmt.Errorf("damaged: unknown ELF byte order %d", order)
	}
	if n := e.pick(52, 64); len(head) < n {
		return fmt.Errorf("truncated: the ELF header ends at byte %d, the file has %d", n, len(head))
	}
	if kind := e.u16(head[16:]); kind != typeRelocatable {
		return fmt.Errorf("not a module: it is an ELF file of type %d, want %d, a relocatable one", kind, typeRelocatable)
	}
	e.machine = e.u16(head[18:])
	return e.readSectionHeaders(head)
}

func (e *elf) readSectionHeaders(head []byte) error {
	off := e.word(head[e.pick(32, 40):])
	tail := head[e.pick(46, 58):]
	length, count, nameIndex := e.u16(tail), uint64(e.u16(tail[2:])), uint32(e.u16(tail[4:]))
	if off == 0 {
		return errors.New("not a module: it has no sections")
	}
	want := e.pick(40, 64)
	if int(length) != want {
		return fmt.Errorf("damaged: section headers of %d bytes, want %d", length, want)
	}
	if count == 0 || nameIndex == indexExtended {
		// The numbers do not fit into the header, and stand in section 0.
		b, err := e.sectionHeaders(off, 1)
		if err != nil {
			return err
		}
		zero := e.parseSection(b)
		if count == 0 {
			count = zero.size
		}
		if nameIndex == indexExtended {
			nameIndex = zero.link
		}
	}
	b, err := e.sectionHeaders(off, count)
	if err != nil {
		return err
	}
	for ; len(b) > 0; b = b[want:] {
		e.sections = append(e.sections, e.parseSection(b))
	}
	return e.findSections(nameIndex)
}

// sectionHeaders reads the headers, and what stands around them: names before
// and a signature behind.
func (e *elf) sectionHeaders(off, count uint64) ([]byte, error) {
	const before, behind = 4 << 10, 16 << 10
	size := uint64(e.pick(40, 64))
	if count > math.MaxInt64/size {
		return nil, fmt.Errorf("damaged: it claims to have %d sections", count)
	}
	if err := e.bounds("the table of sections", off, count*size); err != nil {
		return nil, err
	}
	at, n := int64(off), int64(count*size)
	from := max(at-before, 0)
	if _, err := e.at(from, min(at+n+behind, e.size)-from); err != nil {
		return nil, err
	}
	return e.at(at, n)
}

func (e *elf) parseSection(b []byte) section {
	return section{
		nameOff: e.u32(b),
		kind:    e.u32(b[4:]),
		off:     e.word(b[e.pick(16, 24):]),
		size:    e.word(b[e.pick(20, 32):]),
		link:    e.u32(b[e.pick(24, 40):]),
	}
}

// findSections checks that all sections lie in the file, and finds those that
// matter by their names, of which the first counts.
func (e *elf) findSections(nameIndex uint32) error {
	if int64(nameIndex) >= int64(len(e.sections)) {
		return fmt.Errorf("damaged: the names of sections are in section %d of %d", nameIndex, len(e.sections))
	}
	names, err := e.table(&e.sections[nameIndex], "of section names")
	if err != nil {
		return err
	}
	for i := range e.sections {
		s := &e.sections[i]
		if s.kind == sectionNull || i == 0 {
			continue
		}
		if uint64(s.nameOff) >= uint64(len(names)) {
			return fmt.Errorf("damaged: the name of section %d is at byte %d of %d", i, s.nameOff, len(names))
		}
		name := names[s.nameOff:]
		name = name[:bytes.IndexByte(name, 0)]
		if s.kind == sectionNobits {
			continue // its offset and size are not of the file
		}
		if !e.inside(s.off, s.size) {
			return e.bounds("section "+string(name), s.off, s.size)
		}
		if place := e.wanted(name); place != nil && *place == nil {
			*place = s
		}
	}
	return nil
}

// wanted returns where a section of that name is kept, or nil.
func (e *elf) wanted(name []byte) **section {
	switch string(name) {
	case ".modinfo":
		return &e.modinfo
	case ".symtab":
		return &e.symtab
	case ".strtab":
		return &e.strtab
	case "__versions":
		return &e.versions
	case "__ksymtab_strings":
		return &e.exported
	}
	return nil
}

// loadSections reads what will be wanted, in few pieces.
func (e *elf) loadSections() error {
	const near = 32 << 10 // so much is read sooner than asked for anew
	var extents [5]extent
	n := 0
	for _, s := range [...]*section{e.modinfo, e.symtab, e.strtab, e.versions, e.exported} {
		if s != nil {
			extents[n] = extent{int64(s.off), int64(s.off + s.size)}
			n++
		}
	}
	return e.load(extents[:n], near)
}

// data returns the content of a section; that of nil is empty.
func (e *elf) data(s *section) ([]byte, error) {
	if s == nil {
		return nil, nil
	}
	return e.at(int64(s.off), int64(s.size))
}

// table returns the content of a section of strings, which ends with a NUL.
func (e *elf) table(s *section, what string) ([]byte, error) {
	if s.kind == sectionNobits || s.kind == sectionNull {
		return nil, fmt.Errorf("damaged: the table %s has no content", what)
	}
	if err := e.bounds("the table "+what, s.off, s.size); err != nil {
		return nil, err
	}
	b, err := e.data(s)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 || b[len(b)-1] != 0 {
		return nil, fmt.Errorf("damaged: the table %s does not end with a NUL", what)
	}
	return b, nil
}
