package initramfs

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
)

// A dlopened is a library that a program opens while it runs, as it says in its
// section .note.dlopen (https://uapi-group.org/specifications/specs/elf_dlopen_metadata).
// systemd's udev since version 257 gets to libkmod in this way.
type dlopened struct {
	Feature     string   `json:"feature"`
	Description string   `json:"description"`
	Priority    string   `json:"priority"` // required, recommended or suggested
	Soname      []string `json:"soname"`   // the first that is there is taken
}

// wanted reports whether a program is not itself without the library.
func (d *dlopened) wanted() bool { return d.Priority != "suggested" && len(d.Soname) > 0 }

const (
	dlopenOwner = "FDO\x00"
	dlopenType  = 0x407c0c0a
)

// parseDlopen reads the section: ELF notes, of which those with this owner and
// type hold a list in JSON. Others are passed over.
func parseDlopen(section []byte, order binary.ByteOrder) ([]dlopened, error) {
	var all []dlopened
	for len(section) > 0 {
		if len(section) < 12 {
			return nil, fmt.Errorf("section .note.dlopen: %d bytes are left, too few for a note", len(section))
		}
		owner, desc := uint64(order.Uint32(section)), uint64(order.Uint32(section[4:]))
		kind := order.Uint32(section[8:])
		section = section[12:]
		descAt := (owner + 3) &^ 3
		end := (descAt + desc + 3) &^ 3
		if descAt+desc > uint64(len(section)) {
			return nil, fmt.Errorf("section .note.dlopen: a note of %d and %d bytes does not fit into it", owner, desc)
		}
		if kind == dlopenType && string(section[:owner]) == dlopenOwner {
			text := strings.TrimRight(string(section[descAt:descAt+desc]), "\x00")
			var some []dlopened
			if err := json.Unmarshal([]byte(text), &some); err != nil {
				return nil, fmt.Errorf("section .note.dlopen: %w", err)
			}
			all = append(all, some...)
		}
		section = section[min(end, uint64(len(section))):]
	}
	return all, nil
}
