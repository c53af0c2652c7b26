package decompress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// An lz4Reader reads frames of LZ4
// (https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md), as apt keeps its
// lists in. It does not look at their checksums, which are no protection.
type lz4Reader struct {
	in     *bufio.Reader
	inside bool // a frame
	flags  byte
	max    int    // length of a block
	packed []byte // of a block
	window []byte // content before what is left, and this
	left   []byte // content that has not been read
}

const lz4Window = 64 << 10

func (z *lz4Reader) Read(p []byte) (int, error) {
	for len(z.left) == 0 {
		if err := z.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.left)
	z.left = z.left[n:]
	return n, nil
}

// more reads a header or a block. At the end of the last frame it is io.EOF.
func (z *lz4Reader) more() error {
	if !z.inside {
		if _, err := z.in.Peek(1); err != nil {
			return err
		}
		return unexpected(z.header())
	}
	return unexpected(z.block())
}

const (
	lz4Dictionary  = 1 << 0
	lz4Checksum    = 1 << 2
	lz4Size        = 1 << 3
	lz4BlockChecks = 1 << 4
)

func (z *lz4Reader) header() error {
	var h [6]byte
	if _, err := io.ReadFull(z.in, h[:]); err != nil {
		return err
	}
	if string(h[:4]) != magics[LZ4] {
		return errors.New("something that is no frame follows the first")
	}
	z.flags = h[4]
	code := h[5] >> 4 & 7
	if z.flags>>6 != 1 || code < 4 || z.flags&lz4Dictionary != 0 {
		return errors.New("a frame of an unknown kind")
	}
	z.max = 1 << (8 + 2*code)
	rest := 1 // checksum of the header
	if z.flags&lz4Size != 0 {
		rest += 8
	}
	z.inside, z.window = true, z.window[:0]
	return z.skip(rest)
}

func (z *lz4Reader) skip(n int) error {
	_, err := z.in.Discard(n)
	return err
}

func (z *lz4Reader) block() error {
	var h [4]byte
	if _, err := io.ReadFull(z.in, h[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(h[:])
	if n == 0 {
		z.inside = false
		if z.flags&lz4Checksum != 0 {
			return z.skip(4)
		}
		return nil
	}
	stored := n>>31 != 0
	n &= 1<<31 - 1
	if n > uint32(z.max) {
		return fmt.Errorf("a block of %d bytes, where the frame says %d at most", n, z.max)
	}
	if cap(z.packed) < z.max {
		z.packed = make([]byte, z.max)
		z.window = make([]byte, 0, lz4Window+z.max)
	}
	if _, err := io.ReadFull(z.in, z.packed[:n]); err != nil {
		return err
	}
	if z.flags&lz4BlockChecks != 0 {
		if err := z.skip(4); err != nil {
			return err
		}
	}
	return z.unpack(z.packed[:n], stored)
}

// unpack keeps the end of the content so far, and puts that of a block behind it.
func (z *lz4Reader) unpack(packed []byte, stored bool) error {
	if keep := len(z.window) - lz4Window; keep > 0 {
		z.window = z.window[:copy(z.window, z.window[keep:])]
	}
	start := len(z.window)
	if stored {
		z.window = append(z.window, packed...)
	} else {
		var ok bool
		if z.window, ok = lz4Block(z.window, packed, start+z.max); !ok {
			return errors.New("a block is damaged")
		}
	}
	z.left = z.window[start:]
	return nil
}

// lz4Block appends the content of a block to dst, up to a length that dst has room
// for.
func lz4Block(dst, src []byte, most int) ([]byte, bool) {
	for len(src) > 0 {
		token := src[0]
		literals, src2, ok := lz4Length(int(token>>4), src[1:])
		if !ok || literals > len(src2) || literals > most-len(dst) {
			return dst, false
		}
		dst = append(dst, src2[:literals]...)
		if src = src2[literals:]; len(src) == 0 {
			return dst, true // the last sequence has no match
		}
		if len(src) < 2 {
			return dst, false
		}
		offset := int(binary.LittleEndian.Uint16(src))
		match, rest, ok := lz4Length(int(token&15), src[2:])
		match += 4
		if !ok || offset == 0 || offset > len(dst) || match > most-len(dst) {
			return dst, false
		}
		for from := len(dst) - offset; match > 0; { // they may overlap
			n := min(match, len(dst)-from)
			dst = append(dst, dst[from:from+n]...)
			match -= n
		}
		src = rest
	}
	return dst, false
}

// lz4Length reads the rest of a length whose first four bits are n.
func lz4Length(n int, src []byte) (int, []byte, bool) {
	if n < 15 {
		return n, src, true
	}
	for i, b := range src {
		n += int(b)
		if b != 255 {
			return n, src[i+1:], true
		}
	}
	return 0, nil, false
}

// unexpected is for places where a stream does not end.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
