package xz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A chunk is what is left of the current chunk of LZMA2, and what must come before
// others.
type chunk struct {
	left int // bytes of content

	dict  bool // the dictionary was reset
	props bool // properties were set since
	state bool // the state was reset since
}

// maxRatio is more than LZMA can do: a match of 273 bytes takes 14 decisions, each at
// least a 45th of a bit, which is one in 7,000.
const maxRatio = 8 << 10

var errChunk = errors.New("a chunk is not in order")

// chunkHeader is before a chunk, or the end of the block's.
func (z *Reader) chunkHeader() error {
	b, err := z.bytes(1)
	if err != nil {
		return err
	}
	z.block.packed++
	control := b[0]
	switch {
	case control == 0:
		return z.blockEnd()
	case control <= 2:
		return z.storedHeader(control == 1)
	case control < 0x80:
		return errChunk
	}
	return z.lzmaHeader(control)
}

// storedHeader begins a chunk of plain content.
func (z *Reader) storedHeader(reset bool) error {
	b, err := z.bytes(2)
	if err != nil {
		return err
	}
	z.block.packed += 2
	c := &z.chunk
	if reset {
		*c = chunk{dict: true}
		z.dec.resetDict()
	}
	if !c.dict {
		return errChunk
	}
	c.left = int(binary.BigEndian.Uint16(b)) + 1
	z.block.packed += int64(c.left)
	z.step = (*Reader).storedChunk
	return z.fits()
}

// lzmaHeader begins a chunk of LZMA, and reads it. The control byte says what is
// reset before: from 0xa0 the state, from 0xc0 also the properties, from 0xe0 also
// the dictionary.
func (z *Reader) lzmaHeader(control byte) error {
	b, err := z.bytes(4)
	if err != nil {
		return err
	}
	c := &z.chunk
	c.left = int(control&0x1f)<<16 + int(binary.BigEndian.Uint16(b)) + 1
	packed := int(binary.BigEndian.Uint16(b[2:])) + 1
	z.block.packed += 4 + int64(packed)
	if c.left/maxRatio > packed {
		return fmt.Errorf("a chunk claims %d bytes of content, too many for %d compressed ones", c.left, packed)
	}
	if control >= 0xe0 {
		c.dict = true
		z.dec.resetDict()
	}
	if control >= 0xc0 {
		if b, err = z.bytes(1); err != nil {
			return err
		}
		z.block.packed++
		if err := z.dec.setProperties(b[0]); err != nil {
			return err
		}
		c.props = true
	}
	if control >= 0xa0 && c.props {
		c.state = true
		z.dec.resetState()
	}
	if !c.dict || !c.props || !c.state {
		return errChunk
	}
	if err := z.fits(); err != nil {
		return err
	}
	if _, err := io.ReadFull(z.in, z.dec.in[:packed]); err != nil {
		return early(err)
	}
	z.dec.ip, z.dec.end = 0, uint(packed)
	z.step = (*Reader).lzmaChunk
	return z.dec.startRange()
}

// fits refuses content behind the end that the block's header states.
func (z *Reader) fits() error {
	z.block.plain += int64(z.chunk.left)
	if z.block.saysPlain >= 0 && z.block.plain > z.block.saysPlain || z.block.saysPacked >= 0 && z.block.packed > z.block.saysPacked {
		return errors.New("a block is longer than its header states")
	}
	return nil
}

// storedChunk copies some of a stored chunk.
func (z *Reader) storedChunk() error {
	room, err := z.dec.room(z.chunk.left)
	if err != nil {
		return err
	}
	from := z.dec.pos
	if _, err := io.ReadFull(z.in, z.dec.buf[from:from+room]); err != nil {
		return early(err)
	}
	z.dec.pos += room
	z.decoded(from)
	return nil
}

// lzmaChunk decodes some of a chunk of LZMA.
func (z *Reader) lzmaChunk() error {
	room, err := z.dec.room(z.chunk.left)
	if err != nil {
		return err
	}
	from := z.dec.pos
	if err := z.dec.run(from + room); err != nil {
		return err
	}
	if z.dec.pos != from+room || z.dec.marker {
		return errCorrupt
	}
	if room == z.chunk.left && !z.dec.finished() {
		return errCorrupt
	}
	z.decoded(from)
	return nil
}

// decoded hands out what has been decoded.
func (z *Reader) decoded(from int) {
	z.left = z.dec.buf[from:z.dec.pos]
	if z.stream.hash != nil {
		z.stream.hash.Write(z.left)
	}
	if z.chunk.left -= len(z.left); z.chunk.left == 0 {
		z.step = (*Reader).chunkHeader
	}
}
