package decompress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// An xzGuard hands on a file of xz (https://tukaani.org/xz/xz-file-format.txt),
// and walks along it. It stops before the header of a block that needs a
// dictionary over MaxWindow: the decompressor would take the memory at once. What
// it does not understand it hands on; the decompressor refuses it.
type xzGuard struct {
	in    *bufio.Reader
	step  func(*xzGuard) error // what comes after the next pass bytes
	pass  int64
	bytes int64 // handed on of a block or an index, for its padding
	check int   // length of a block's check
	left  uint64
	err   error
}

// lengths of the checks of a block, by type.
var xzCheckLen = [16]int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}

func (g *xzGuard) Read(p []byte) (int, error) {
	for g.pass == 0 && g.err == nil {
		step := g.step
		if step == nil {
			step = (*xzGuard).header
		}
		g.err = step(g)
	}
	if g.err != nil {
		return 0, g.err
	}
	n, err := g.in.Read(p[:min(int64(len(p)), g.pass)])
	g.pass -= int64(n)
	g.bytes += int64(n)
	return n, err
}

// then lets n bytes pass, and goes on with a step.
func (g *xzGuard) then(n int, step func(*xzGuard) error) error {
	g.pass, g.step = int64(n), step
	return nil
}

// next looks at bytes that have not passed.
func (g *xzGuard) next(n int) ([]byte, error) {
	b, err := g.in.Peek(n)
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// header is at the header of a stream, the padding before another, or the end.
func (g *xzGuard) header() error {
	b, err := g.next(4)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) == 0 {
		return g.then(4, (*xzGuard).header)
	}
	if b, err = g.next(12); err != nil {
		return err
	}
	g.check = xzCheckLen[b[7]&0xf]
	return g.then(12, (*xzGuard).block)
}

func (g *xzGuard) block() error {
	g.bytes = 0
	b, err := g.next(1)
	if err != nil {
		return unexpected(err)
	}
	if b[0] == 0 {
		return g.then(1, (*xzGuard).index)
	}
	size := 4 * (int(b[0]) + 1)
	if b, err = g.next(size); err != nil {
		return unexpected(err)
	}
	if err := blockHeader(b[1], b[2:]); err != nil {
		return err
	}
	return g.then(size, (*xzGuard).chunk)
}

// blockHeader refuses a dictionary that is too large.
func blockHeader(flags byte, head []byte) error {
	const lzma2 = 0x21
	number := func() uint64 {
		v, n := binary.Uvarint(head)
		head = head[max(n, 0):]
		return v
	}
	for _, size := range []byte{0x40, 0x80} { // compressed, plain
		if flags&size != 0 {
			number()
		}
	}
	if filter := number(); flags&3 != 0 || filter != lzma2 {
		return fmt.Errorf("filter %#x: only LZMA2 alone is supported", filter)
	}
	if len(head) < 2 {
		return errors.New("a block's header is too short")
	}
	code := head[1]
	if code > 40 {
		return fmt.Errorf("a dictionary of unknown size %d", code)
	}
	if dict := uint64(2|code&1) << (code/2 + 11); dict > MaxWindow {
		return fmt.Errorf("it needs a dictionary of %d bytes, over the limit of %d", dict, MaxWindow)
	}
	return nil
}

// chunk is at a chunk of LZMA2.
func (g *xzGuard) chunk() error {
	b, err := g.next(1)
	if err != nil {
		return unexpected(err)
	}
	control := b[0]
	switch {
	case control == 0:
		return g.then(1, (*xzGuard).padding)
	case control < 0x80: // stored
		if b, err = g.next(3); err != nil {
			return unexpected(err)
		}
		return g.then(3+int(binary.BigEndian.Uint16(b[1:]))+1, (*xzGuard).chunk)
	}
	if b, err = g.next(5); err != nil {
		return unexpected(err)
	}
	n := 5 + int(binary.BigEndian.Uint16(b[3:])) + 1
	if control >= 0xc0 {
		n++ // properties
	}
	return g.then(n, (*xzGuard).chunk)
}

// padding is behind the chunks. The header before them is a multiple of four
// bytes.
func (g *xzGuard) padding() error {
	return g.then(int(-g.bytes&3)+g.check, (*xzGuard).block)
}

// index is behind its first byte.
func (g *xzGuard) index() error {
	n, records, err := g.number()
	if err != nil {
		return err
	}
	if records > 1<<40 {
		return errors.New("the index has too many records")
	}
	g.left = 2 * records
	return g.then(n, (*xzGuard).record)
}

func (g *xzGuard) record() error {
	if g.left == 0 {
		const crc, footer = 4, 12
		return g.then(int(-g.bytes&3)+crc+footer, (*xzGuard).header)
	}
	g.left--
	n, _, err := g.number()
	if err != nil {
		return err
	}
	return g.then(n, (*xzGuard).record)
}

// number looks at a number of 7 bits a byte.
func (g *xzGuard) number() (n int, v uint64, err error) {
	b, err := g.in.Peek(9)
	if v, n = binary.Uvarint(b); n > 0 {
		return n, v, nil
	}
	if err == nil {
		err = errors.New("a number has over 63 bits")
	}
	return 0, 0, unexpected(err)
}

// unexpected is for places where a stream does not end.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
