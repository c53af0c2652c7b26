package kmod

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// maxXZDict bounds the memory for a dictionary of xz, in bytes.
	maxXZDict = 64 << 20
	// kernelXZDict is the size that the kernel's own build uses.
	kernelXZDict = 1 << 20
)

// An xzWalk goes through a file of xz (https://tukaani.org/xz/xz-file-format.txt)
// without decompressing it, to know what that would take. It does not look at
// checksums; the decompressor does.
type xzWalk struct {
	streams int
	checks  [16]bool // seen types of integrity checks
	dict    uint64   // the largest one
	plain   uint64   // bytes of content that the chunks announce
}

// lengths of the integrity checks by type.
var xzCheckLen = [16]int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}

var xzCheckNames = map[int]string{0: "none", 1: "CRC32", 4: "CRC64", 10: "SHA-256"}

// warnings says what the kernel's decompressor makes of the file.
func (w *xzWalk) warnings() []string {
	var s []string
	for kind, seen := range w.checks {
		if seen && kind > 1 {
			s = append(s, fmt.Sprintf("it has a check by %s, and the kernel decompresses only xz with CRC32 or no check", xzCheckNames[kind]))
		}
	}
	if w.dict > kernelXZDict {
		s = append(s, fmt.Sprintf("it needs an xz dictionary of %d bytes, and kernels are built for %d", w.dict, kernelXZDict))
	}
	if w.streams > 1 {
		s = append(s, "it has several xz streams, and the kernel decompresses only the first")
	}
	return s
}

// An xzInput is what is left of the file.
type xzInput []byte

// next returns the next n bytes.
func (in *xzInput) next(n int) ([]byte, error) {
	if n > len(*in) {
		return nil, io.ErrUnexpectedEOF
	}
	b := (*in)[:n]
	*in = (*in)[n:]
	return b, nil
}

// number reads a number of 7 bits a byte.
func (in *xzInput) number() (uint64, error) {
	v, n := binary.Uvarint(*in)
	if n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	if n < 0 || n > 9 {
		return 0, errors.New("a number has over 63 bits")
	}
	*in = (*in)[n:]
	return v, nil
}

// pad skips to a multiple of four bytes from where the input was start long.
func (in *xzInput) pad(start int) error {
	_, err := in.next((4 - (start-len(*in))%4) % 4)
	return err
}

func (w *xzWalk) walk(file []byte) error {
	in := xzInput(file)
	for len(in) > 0 {
		if w.streams > 0 && len(in) >= 4 && binary.LittleEndian.Uint32(in) == 0 {
			in = in[4:] // padding between streams
			continue
		}
		if err := w.stream(&in); err != nil {
			return err
		}
		w.streams++
	}
	return nil
}

func (w *xzWalk) stream(in *xzInput) error {
	head, err := in.next(12)
	if err != nil {
		return err
	}
	if string(head[:len(xzMagic)]) != xzMagic {
		return errors.New("something that is no stream follows the first")
	}
	check := head[7] & 0xf
	w.checks[check] = true
	for len(*in) > 0 && (*in)[0] != 0 {
		if err := w.block(in, xzCheckLen[check]); err != nil {
			return err
		}
	}
	return skipIndex(in)
}

// block walks a block: its header, chunks, padding, check.
func (w *xzWalk) block(in *xzInput, checkLen int) error {
	head, err := in.next(4 * (int((*in)[0]) + 1))
	if err != nil {
		return err
	}
	if err := w.blockHeader(head[1]&0xc3, head[2:]); err != nil {
		return err
	}
	start := len(*in)
	if err := w.chunks(in); err != nil {
		return err
	}
	if err := in.pad(start); err != nil {
		return err
	}
	_, err = in.next(checkLen)
	return err
}

// blockHeader takes the size of the dictionary from a block's header.
func (w *xzWalk) blockHeader(flags byte, head xzInput) error {
	const lzma2 = 0x21
	for _, size := range []byte{0x40, 0x80} { // compressed, plain
		if flags&size != 0 {
			if _, err := head.number(); err != nil {
				return err
			}
		}
	}
	filter, err := head.number()
	if err != nil {
		return err
	}
	if flags&3 != 0 || filter != lzma2 {
		return fmt.Errorf("filter %#x: only LZMA2 alone is supported", filter)
	}
	properties, err := head.next(2)
	if err != nil {
		return err
	}
	code := properties[1]
	if code > 40 {
		return fmt.Errorf("a dictionary of unknown size %d", code)
	}
	dict := uint64(2|code&1) << (code/2 + 11)
	if dict > maxXZDict {
		return fmt.Errorf("it needs a dictionary of %d bytes, over the limit of %d", dict, maxXZDict)
	}
	w.dict = max(w.dict, dict)
	return nil
}

// chunks walks the chunks of LZMA2 to the last.
func (w *xzWalk) chunks(in *xzInput) error {
	for {
		b, err := in.next(1)
		if err != nil {
			return err
		}
		var skip int
		switch control := b[0]; {
		case control == 0:
			return nil
		case control < 0x80: // stored
			if b, err = in.next(2); err != nil {
				return err
			}
			skip = int(binary.BigEndian.Uint16(b)) + 1
			w.plain += uint64(skip)
		default:
			if b, err = in.next(4); err != nil {
				return err
			}
			w.plain += uint64(control&0x1f)<<16 + uint64(binary.BigEndian.Uint16(b)) + 1
			skip = int(binary.BigEndian.Uint16(b[2:])) + 1
			if control >= 0xc0 {
				skip++ // properties
			}
		}
		if _, err := in.next(skip); err != nil {
			return err
		}
	}
}

// skipIndex walks the index behind the blocks, and the footer.
func skipIndex(in *xzInput) error {
	start := len(*in)
	if _, err := in.next(1); err != nil {
		return err
	}
	records, err := in.number()
	if err != nil {
		return err
	}
	for range min(records, uint64(start)) {
		for range 2 {
			if _, err := in.number(); err != nil {
				return err
			}
		}
	}
	if err := in.pad(start); err != nil {
		return err
	}
	_, err = in.next(4 + 12)
	return err
}
