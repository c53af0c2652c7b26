package kmod_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

// An editor changes a 64-bit module's file.
type editor struct {
	tb     testing.TB
	file   []byte
	parsed *elf.File
}

func edit(tb testing.TB, m kmodtest.Module) *editor {
	tb.Helper()
	file := m.Bytes()
	parsed, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		tb.Fatal(err)
	}
	return &editor{tb, file, parsed}
}

func (e *editor) section(name string) *elf.Section {
	e.tb.Helper()
	s := e.parsed.Section(name)
	if s == nil {
		e.tb.Fatalf("no section %s", name)
	}
	return s
}

// header returns where the header of a section is in the file. In it are, for
// 64 bits, at 0 the name, 4 the type, 24 the offset, 32 the size.
func (e *editor) header(name string) uint64 {
	e.tb.Helper()
	i := slices.Index(e.parsed.Sections, e.section(name))
	return e.parsed.ByteOrder.Uint64(e.file[40:]) + uint64(i)*64
}

// put writes an integer at an offset.
func (e *editor) put(at uint64, v any) {
	e.tb.Helper()
	if _, err := binary.Encode(e.file[at:], e.parsed.ByteOrder, v); err != nil {
		e.tb.Fatal(err)
	}
}

const (
	name, kind, offset, size = 0, 4, 24, 32 // in a section's header
	nobits                   = uint32(8)
)

func TestHostile(t *testing.T) {
	base := kmodtest.Module{
		Info:     []string{"license=GPL"},
		Exports:  []string{"exported"},
		Needs:    []string{"needed"},
		Versions: kmodtest.Versions("needed"),
	}
	length := uint64(len(base.Bytes()))
	for _, c := range []struct {
		name   string
		change func(e *editor)
		want   string // in the error
	}{
		{"empty", func(e *editor) { e.file = nil }, "the file is empty"},
		{"text", func(e *editor) { e.file = []byte("#!/bin/sh\n") }, "not a module: it is no ELF file"},
		{"only the magic", func(e *editor) { e.file = e.file[:4] }, "truncated: an ELF header in a file of 4 bytes"},
		{"half a header", func(e *editor) { e.file = e.file[:40] }, "truncated: the ELF header ends at byte 64, the file has 40"},
		{"class", func(e *editor) { e.file[4] = 3 }, "damaged: unknown ELF class 3"},
		{"byte order", func(e *editor) { e.file[5] = 0 }, "damaged: unknown ELF byte order 0"},
		{"a program", func(e *editor) { e.put(16, uint16(2)) }, "not a module: it is an ELF file of type 2"},
		{"no sections", func(e *editor) { e.put(40, uint64(0)) }, "not a module: it has no sections"},
		{"length of headers", func(e *editor) { e.put(58, uint16(40)) }, "damaged: section headers of 40 bytes, want 64"},
		{"headers behind the end", func(e *editor) { e.put(40, length) }, "truncated: the table of sections ends at byte"},
		{"headers far away", func(e *editor) { e.put(40, uint64(math.MaxUint64-100)) }, "damaged: the table of sections"},
		{"too many sections", func(e *editor) { e.put(60, uint16(60000)) }, "truncated: the table of sections ends at byte"},
		{"no count of sections", func(e *editor) { e.put(60, uint16(0)) }, "damaged: the names of sections are in section"},
		{"names in no section", func(e *editor) { e.put(62, uint16(100)) }, "damaged: the names of sections are in section 100"},
		{"names in section 0", func(e *editor) { e.put(62, uint16(0)) }, "damaged: the table of section names has no content"},
		{"names in .bss", func(e *editor) { e.put(e.header(".shstrtab")+kind, nobits) }, "damaged: the table of section names has no content"},
		{"names behind the end", func(e *editor) { e.put(e.header(".shstrtab")+offset, length) }, "truncated: the table of section names ends at byte"},
		{"names without a NUL", func(e *editor) { e.put(e.header(".shstrtab")+size, e.section(".shstrtab").Size-1) }, "damaged: the table of section names does not end with a NUL"},
		{"no names", func(e *editor) { e.put(e.header(".shstrtab")+size, uint64(0)) }, "damaged: the table of section names does not end with a NUL"},
		{"a name outside", func(e *editor) { e.put(e.header(".text")+name, uint32(5000)) }, "damaged: the name of section 1 is at byte 5000 of"},
		{"size of a section", func(e *editor) { e.put(e.header(".text")+size, uint64(100_000)) }, "truncated: section .text ends at byte 100064, the file has"},
		{"size of all", func(e *editor) { e.put(e.header(".text")+size, uint64(math.MaxUint64)) }, "damaged: section .text of 18446744073709551615 bytes"},
		{"offset of a section", func(e *editor) { e.put(e.header(".modinfo")+offset, uint64(1)<<62) }, "truncated: section .modinfo ends at byte"},
		{"part of a symbol", func(e *editor) { e.put(e.header(".symtab")+size, e.section(".symtab").Size-1) }, "damaged: section .symtab has"},
		{"symbol names without a NUL", func(e *editor) { e.put(e.header(".strtab")+size, e.section(".strtab").Size-1) }, "damaged: the table of symbol names does not end with a NUL"},
		{"no symbol names", func(e *editor) { e.put(e.header(".strtab")+size, uint64(0)) }, "damaged: the table of symbol names does not end with a NUL"},
		{"symbol name outside", func(e *editor) { e.put(e.section(".symtab").Offset+24, uint32(9999)) }, "damaged: the name of symbol 1 is at byte 9999 of"},
		{"part of a version", func(e *editor) { e.put(e.header("__versions")+size, uint64(63)) }, "damaged: section __versions has 63 bytes"},
		{"version without end", func(e *editor) {
			copy(e.file[e.section("__versions").Offset+8:], bytes.Repeat([]byte{'x'}, 56))
		}, `damaged: a name in section __versions has no end: "xxx`},
		{"CRC outside", func(e *editor) { e.put(e.section(".symtab").Offset+24+8, uint64(1)) }, "the CRC of symbol exported: damaged: it is at byte 1 of a section of 4"},
		{"CRC far outside", func(e *editor) { e.put(e.section(".symtab").Offset+24+8, uint64(math.MaxUint64-1)) }, "the CRC of symbol exported: damaged: it is at byte"},
		{"CRC in no section", func(e *editor) { e.put(e.section(".symtab").Offset+24+6, uint16(200)) }, "the CRC of symbol exported: damaged: it is in section 200 of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := edit(t, base)
			c.change(e)
			for _, suffix := range suffixes {
				m, err := read(kmodtest.Compress(t, suffix, e.file))
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: ReadModule = %v, %v, want an error with %q", suffix, m, err, c.want)
				}
			}
		})
	}
}

// These look odd, and are read.
func TestOdd(t *testing.T) {
	base := kmodtest.Module{
		Info:     []string{"license=GPL"},
		Exports:  []string{"exported"},
		Needs:    []string{"needed"},
		Versions: kmodtest.Versions("needed"),
	}
	whole := mustRead(t, base.Bytes())
	for _, c := range []struct {
		name           string
		change         func(e *editor)
		exports, needs []kmod.Symbol
		warnings       int
	}{
		{"extended numbering", func(e *editor) {
			zero := e.parsed.ByteOrder.Uint64(e.file[40:])
			e.put(zero+size, uint64(len(e.parsed.Sections)))
			e.put(zero+40, uint32(len(e.parsed.Sections)-1))
			e.put(60, uint16(0))
			e.put(62, uint16(0xffff))
		}, whole.Exports, whole.Needs, 0},
		{".bss of any size", func(e *editor) { e.put(e.header(".bss")+size, uint64(math.MaxUint64)) }, whole.Exports, whole.Needs, 0},
		{"sections over each other", func(e *editor) {
			e.put(e.header(".text")+offset, uint64(0))
			e.put(e.header(".text")+size, uint64(len(e.file)))
		}, whole.Exports, whole.Needs, 0},
		{"CRC in .bss", func(e *editor) { e.put(e.header("__kcrctab")+kind, nobits) }, []kmod.Symbol{{Name: "exported"}}, whole.Needs, 0},
		{"CRC in an extended section", func(e *editor) {
			e.put(e.section(".symtab").Offset+24+6, uint16(0xffff))
		}, []kmod.Symbol{{Name: "exported"}}, whole.Needs, 0},
		{"two of a name", func(e *editor) { // the first counts
			copy(e.file[e.header("__kcrctab"):][:4], e.file[e.header(".modinfo"):][:4])
		}, whole.Exports, whole.Needs, 0},
		{"__versions is empty", func(e *editor) { e.put(e.header("__versions")+size, uint64(0)) }, whole.Exports, []kmod.Symbol{{Name: "needed"}}, 0},
		{"stripped", func(e *editor) { e.put(e.header(".symtab")+kind, nobits) }, []kmod.Symbol{{Name: "exported"}}, nil, 1},
	} {
		e := edit(t, base)
		c.change(e)
		m, err := read(e.file)
		if err != nil {
			t.Errorf("%s: ReadModule = %v", c.name, err)
			continue
		}
		if !slices.Equal(m.Exports, c.exports) || !slices.Equal(m.Needs, c.needs) || len(m.Warnings) != c.warnings || m.Info.Get("license") != "GPL" {
			t.Errorf("%s: ReadModule = %+v, want exports %v, needs %v, %d warnings", c.name, m, c.exports, c.needs, c.warnings)
		}
	}
}

func TestTruncatedAnywhere(t *testing.T) {
	m := all
	m.Signer = "" // its table of sections ends the file
	for _, suffix := range suffixes {
		data := kmodtest.Compress(t, suffix, m.Bytes())
		for n := range data {
			if _, err := read(data[:n]); err == nil {
				t.Fatalf("%s: ReadModule of the first %d bytes of %d succeeded", suffix, n, len(data))
			}
		}
	}
}

// TestHostileMemory reads files that would take far more memory than they have
// bytes.
func TestHostileMemory(t *testing.T) {
	// All symbols have names that end where the table ends.
	names := func(length int) []byte {
		e := edit(t, kmodtest.Module{Needs: slices.Repeat([]string{"needed"}, 20_000)})
		table := e.section(".strtab")
		for i := range table.Size - 1 {
			e.file[table.Offset+i] = 'x'
		}
		for i := range uint64(20_000) {
			e.put(e.section(".symtab").Offset+24*(i+1), uint32(table.Size-uint64(length)+i%2000))
		}
		return e.file
	}
	for _, c := range []struct {
		name  string
		file  []byte
		limit uint64
		want  string
	}{
		{"long names", names(5000), 2 << 20, "its name has over 4096 bytes"},
		{"overlapping names", names(3000), 20 << 20, "the names of symbols overlap too much"},
		{"zstd claim", zstdClaim(500 << 20), 1 << 20, "too many for"},
		{"zstd claim over the limit", zstdClaim(513 << 20), 1 << 20, "over the limit"},
		{"xz claim", xzClaim(300), 1 << 20, "claims 2097152 bytes of content, too many for 1 compressed ones"},
		{"xz dictionary", xzDict(t, 40), 1 << 20, "it needs a dictionary of 4294967295 bytes, over the limit of 67108864"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := read(c.file)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: ReadModule = %v, want an error with %q", c.name, err, c.want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > c.limit {
			t.Errorf("%s: ReadModule of %d bytes took %d bytes of memory, want at most %d", c.name, len(c.file), n, c.limit)
		}
	}
}

// TestManySections reads modules whose CRCs lie in sections all over the file.
// However many and long these are, the file is read at most twice.
func TestManySections(t *testing.T) {
	const text = 1 << 20
	for _, c := range []struct {
		name      string
		count     uint64
		off, size func(i uint64) uint64
	}{
		{"long", 10, func(i uint64) uint64 { return 10 - i }, func(i uint64) uint64 { return text - 10 }},
		{"short", 3000, func(i uint64) uint64 { return 300 * i }, func(uint64) uint64 { return 4 }},
	} {
		e := edit(t, kmodtest.Module{Exports: make([]string, c.count), Text: text})
		order := e.parsed.ByteOrder
		// A new table of sections at the end: the old one, and a section for each
		// of the exports, which come first in the symbol table.
		start := uint64(len(e.file))
		old := e.file[order.Uint64(e.file[40:]):]
		e.file = append(e.file, old...)
		for i := range c.count {
			at := uint64(len(e.file))
			e.file = append(e.file, old[64:128]...)
			e.put(at+offset, c.off(i))
			e.put(at+size, c.size(i))
			symbol := e.section(".symtab").Offset + 24*(i+1)
			e.put(symbol+6, uint16(len(e.parsed.Sections)+int(i)))
			e.put(symbol+8, uint64(0))
		}
		e.put(40, start)
		e.put(60, uint16((uint64(len(e.file))-start)/64))
		r := &counting{ReaderAt: bytes.NewReader(e.file)}
		m, err := kmod.ReadModule(r, int64(len(e.file)))
		if err != nil || len(m.Exports) != int(c.count) {
			t.Errorf("%s: ReadModule = %v, want %d exports", c.name, err, c.count)
		}
		if r.calls > 20 || r.bytes > 2*len(e.file) {
			t.Errorf("%s: %d bytes in %d reads, want at most 20 reads, and twice the file's %d bytes", c.name, r.bytes, r.calls, len(e.file))
		}
	}
}

// A sparse file is as long as anyone likes.
func TestSparseFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse.ko"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const length = 1 << 40
	m := kmodtest.Module{Needs: []string{"a"}}
	for _, c := range []struct {
		section string
		size    uint64
		want    string
	}{
		{".symtab", length, "it needs 1099511627776 bytes read, over the limit of 536870912"},
		{".modinfo", 17 << 20, "section .modinfo has 17825792 bytes, over the limit of 16777216"},
	} {
		e := edit(t, m)
		e.put(e.header(c.section)+size, c.size)
		e.put(e.header(c.section)+offset, uint64(0))
		if _, err := f.WriteAt(e.file, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(length); err != nil {
			t.Skip("the file system has no long files: ", err)
		}
		if _, err := kmod.ReadModule(f, length); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("ReadModule of a long %s = %v, want an error with %q", c.section, err, c.want)
		}
	}
	if _, err := f.WriteAt([]byte("\x1f\x8b"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := kmod.ReadModule(f, length); err == nil || !strings.Contains(err.Error(), "over the limit") {
		t.Errorf("ReadModule of a compressed file of %d bytes = %v, want an error", int64(length), err)
	}
}
