package kmod_test

import (
	"debug/elf"
	"encoding/binary"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/internal/testenv"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

// TestRealModules reads all modules of a real kernel, and asks modinfo and the
// standard library about some.
func TestRealModules(t *testing.T) {
	paths := modules(t, testenv.Kernel(t))
	if len(paths) < 100 {
		t.Fatalf("the kernel has only %d modules", len(paths))
	}
	exports := 0
	for i, path := range paths {
		m, err := readFile(path)
		if err != nil {
			t.Errorf("%s: ReadModule = %v", path, err)
			continue
		}
		exports += len(m.Exports)
		if len(m.Warnings) > 0 {
			t.Errorf("%s: Warnings = %q, want none", path, m.Warnings)
		}
		if name := m.Info.Get("name"); name != kmod.Name(path) {
			t.Errorf("%s: it calls itself %q", path, name)
		}
		if i%20 == 0 {
			compareWithELF(t, path, m)
		}
		if i%40 == 0 {
			compareWithModinfo(t, path)
		}
	}
	if exports < 1000 {
		t.Errorf("all modules export %d symbols, want thousands", exports)
	}
}

// TestModinfoOfSynthetic lets modinfo judge modules of all kinds.
func TestModinfoOfSynthetic(t *testing.T) {
	dir := t.TempDir()
	for _, class := range []int{32, 64} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			m := all
			m.Class, m.Order = class, order
			name := strings.ToLower(order.String()) + ".ko"
			kmodtest.Write(t, dir, name, m)
			compareWithModinfo(t, filepath.Join(dir, name))
			compareWithELF(t, filepath.Join(dir, name), mustRead(t, m.Bytes()))
		}
	}
}

// compareWithELF reads exports and needs with debug/elf, which knows nothing of
// modules.
func compareWithELF(tb testing.TB, path string, m *kmod.Module) {
	tb.Helper()
	f, err := elf.Open(path)
	if err != nil {
		tb.Errorf("%s: elf.Open = %v", path, err)
		return
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		tb.Errorf("%s: Symbols = %v", path, err)
		return
	}
	var exports, needs []kmod.Symbol
	versions := versionsOf(tb, f)
	for _, s := range symbols {
		if name, ok := strings.CutPrefix(s.Name, "__crc_"); ok {
			exports = append(exports, kmod.Symbol{Name: name, CRC: crcOf(tb, f, s), HasCRC: true})
		}
		if s.Section != elf.SHN_UNDEF || s.Name == "" {
			continue
		}
		need := kmod.Symbol{Name: strings.TrimPrefix(s.Name, "."), Weak: elf.ST_BIND(s.Info) == elf.STB_WEAK}
		if i := slices.IndexFunc(versions, func(v kmod.Symbol) bool { return v.Name == need.Name }); i >= 0 {
			need.CRC, need.HasCRC = versions[i].CRC, true
			versions = slices.Delete(versions, i, i+1)
		}
		needs = append(needs, need)
	}
	needs = append(needs, versions...)
	if !slices.Equal(exports, m.Exports) {
		tb.Errorf("%s: Exports (-debug/elf +ReadModule):\n%s", path, cmp.Diff(exports, m.Exports))
	}
	if !slices.Equal(needs, m.Needs) {
		tb.Errorf("%s: Needs (-debug/elf +ReadModule):\n%s", path, cmp.Diff(needs, m.Needs))
	}
}

func versionsOf(tb testing.TB, f *elf.File) []kmod.Symbol {
	tb.Helper()
	s := f.Section("__versions")
	if s == nil {
		return nil
	}
	data, err := s.Data()
	if err != nil {
		tb.Fatal(err)
	}
	var all []kmod.Symbol
	for record := range slices.Chunk(data, 64) {
		v := kmod.Symbol{HasCRC: true}
		if f.Class == elf.ELFCLASS64 {
			v.CRC, record = f.ByteOrder.Uint64(record), record[8:]
		} else {
			v.CRC, record = uint64(f.ByteOrder.Uint32(record)), record[4:]
		}
		v.Name, _, _ = strings.Cut(string(record), "\x00")
		all = append(all, v)
	}
	return all
}

func crcOf(tb testing.TB, f *elf.File, s elf.Symbol) uint64 {
	tb.Helper()
	if s.Section == elf.SHN_ABS {
		return s.Value
	}
	data, err := f.Sections[s.Section].Data()
	if err != nil {
		tb.Fatal(err)
	}
	return uint64(f.ByteOrder.Uint32(data[s.Value:]))
}
