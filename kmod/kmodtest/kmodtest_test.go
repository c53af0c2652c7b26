package kmodtest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/kmod"
)

func TestParse(t *testing.T) {
	got, err := Parse(`# a module
alias=pci:v* d*
description=with spaces = and more

export a b
export c
need d
weak e
version module_layout
class 32
order big
text 100
signer A key
nocrc
absolutecrc
`)
	want := Module{
		Class: 32, Order: binary.BigEndian,
		Info:    []string{"alias=pci:v* d*", "description=with spaces = and more"},
		Exports: []string{"a", "b", "c"}, NoCRC: true, AbsoluteCRC: true,
		Needs: []string{"d"}, WeakNeeds: []string{"e"},
		Versions: []kmod.Symbol{{Name: "module_layout", CRC: uint64(CRC("module_layout")), HasCRC: true}},
		Text:     100, Signer: "A key",
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Parse = %v, (-want +got):\n%s", err, diff)
	}
	for _, bad := range []string{"exports a", "class x", "order small", "text"} {
		if m, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %+v, want an error", bad, m)
		}
	}
}

// An independent reader finds the sections where they should be.
func TestBytesIsELF(t *testing.T) {
	for _, class := range []int{32, 64} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			m := Module{Class: class, Order: order, Info: []string{"a=1"}, Exports: []string{"x"}, Needs: []string{"y"}, Versions: Versions("z"), Text: 5}
			data := m.Bytes()
			if !bytes.Equal(data, m.Bytes()) {
				t.Error("Bytes gave other bytes the second time")
			}
			f, err := elf.NewFile(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if f.Type != elf.ET_REL || f.ByteOrder != order {
				t.Errorf("the file is %v %v, want relocatable and %v", f.Type, f.ByteOrder, order)
			}
			for name, want := range map[string]string{".modinfo": "a=1\x00", "__ksymtab_strings": "x\x00", ".text": "\x00\x00\x00\x00\x00"} {
				s := f.Section(name)
				if s == nil {
					t.Fatalf("no section %s", name)
				}
				if got, err := s.Data(); err != nil || string(got) != want {
					t.Errorf("%s = %q, %v, want %q", name, got, err, want)
				}
			}
			symbols, err := f.Symbols()
			if err != nil || len(symbols) != 3 {
				t.Errorf("Symbols = %v, %v, want __crc_x, x, y", symbols, err)
			}
		}
	}
}
