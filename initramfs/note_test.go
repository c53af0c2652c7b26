package initramfs

import (
	"encoding/binary"
	"slices"
	"testing"
)

// note is a note as readelf shows those of Debian 13's libsystemd-shared.
func note(owner string, kind uint32, desc string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(owner)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.LittleEndian.AppendUint32(b, kind)
	for _, s := range []string{owner, desc} {
		b = append(b, s...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

const (
	kmodNote = `[{"feature":"kmod","description":"Support for loading kernel modules","priority":"recommended","soname":["libkmod.so.2"]}]` + "\x00"
	idnNote  = `[{"feature":"idn","description":"Names","priority":"suggested","soname":["libidn2.so.0"]}]` + "\x00"
)

func TestParseDlopen(t *testing.T) {
	section := slices.Concat(note(dlopenOwner, dlopenType, idnNote), note("GNU\x00", dlopenType, "other"), note(dlopenOwner, 7, "x"), note(dlopenOwner, dlopenType, kmodNote))
	got, err := parseDlopen(section, binary.LittleEndian)
	if err != nil || len(got) != 2 || got[0].wanted() || !got[1].wanted() || got[1].Feature != "kmod" || got[1].Soname[0] != "libkmod.so.2" {
		t.Errorf("parseDlopen = %+v, %v, want idn and, wanted, kmod", got, err)
	}
	for name, bad := range map[string][]byte{
		"cut":      section[:len(section)-9],
		"short":    section[:7],
		"no JSON":  note(dlopenOwner, dlopenType, "kmod"),
		"too long": binary.LittleEndian.AppendUint32(nil, 1<<31),
	} {
		if got, err := parseDlopen(bad, binary.LittleEndian); err == nil || got != nil {
			t.Errorf("parseDlopen(%s) = %+v, want an error", name, got)
		}
	}
}

func FuzzParseDlopen(f *testing.F) {
	f.Add(note(dlopenOwner, dlopenType, kmodNote))
	f.Add(slices.Concat(note("GNU\x00", 1, "abc"), note(dlopenOwner, dlopenType, idnNote)))
	f.Fuzz(func(t *testing.T, section []byte) {
		if got, err := parseDlopen(section, binary.LittleEndian); err != nil && got != nil {
			t.Errorf("parseDlopen gave %v with an error", got)
		}
	})
}
