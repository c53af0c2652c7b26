package xz

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	aloneLen     = 13
	aloneUnknown = 1<<64 - 1 // the length of content that an end marker ends
)

// An alone is what is known of a file of lzma.
type alone struct {
	left    uint64 // bytes of content, if that is known
	unknown bool
	n       int  // bytes in the decoder's input
	eof     bool // there are no more
}

// aloneHeader is at the beginning of a file of lzma: properties, the size of the
// dictionary, the length of the content.
func (z *Reader) aloneHeader() error {
	b, err := z.bytes(aloneLen)
	if err != nil {
		return err
	}
	if err := z.dec.setProperties(b[0]); err != nil {
		return err
	}
	dict := int64(binary.LittleEndian.Uint32(b[1:]))
	z.alone = alone{left: binary.LittleEndian.Uint64(b[5:])}
	z.alone.unknown = z.alone.left == aloneUnknown
	if err := z.dictionary(dict); err != nil {
		return err
	}
	z.dec.begin(dict)
	z.dec.resetState()
	z.dec.ip = 0
	if err := z.refill(); err != nil {
		return err
	}
	if z.alone.n < rangeLen {
		return io.ErrUnexpectedEOF
	}
	z.step = (*Reader).aloneData
	return z.dec.startRange()
}

// refill moves what is left of the input to the beginning, and reads more.
func (z *Reader) refill() error {
	a, d := &z.alone, &z.dec
	if a.eof {
		return nil
	}
	a.n = copy(d.in[:], d.in[min(int(d.ip), a.n):a.n])
	d.ip = 0
	n, err := io.ReadFull(z.in, d.in[a.n:])
	a.n += n
	a.eof = err == io.EOF || err == io.ErrUnexpectedEOF
	if err != nil && !a.eof {
		return err
	}
	d.end = uint(a.n)
	if a.eof {
		clear(d.in[a.n:])
	} else {
		d.end -= inMargin
	}
	return nil
}

var errTrailing = errors.New("something follows the end")

// aloneData decodes some content.
func (z *Reader) aloneData() error {
	a, d := &z.alone, &z.dec
	if err := z.refillIfLow(); err != nil {
		return err
	}
	want := uint64(piece)
	if !a.unknown {
		want = min(want, a.left)
	}
	last := want == 0
	if last && d.finished() {
		return z.aloneEnd()
	}
	// An end marker may follow a length that is known; it takes room for a byte that
	// does not come.
	room, err := d.room(int(max(want, 1)))
	if err != nil {
		return err
	}
	from := d.pos
	err = d.run(from + room)
	switch {
	case int(d.ip) > a.n:
		return io.ErrUnexpectedEOF
	case err != nil:
		return err
	case d.marker:
		z.step = (*Reader).aloneMarker
	case last:
		return errTrailing
	}
	z.left = d.buf[from:d.pos]
	a.left -= uint64(len(z.left))
	return nil
}

// refillIfLow refills the input when a piece could need more.
func (z *Reader) refillIfLow() error {
	if z.dec.ip >= z.dec.end/2 {
		return z.refill()
	}
	return nil
}

// aloneMarker is behind an end marker.
func (z *Reader) aloneMarker() error {
	if !z.alone.unknown && z.alone.left > 0 || z.dec.code != 0 {
		return errCorrupt
	}
	return z.aloneEnd()
}

// aloneEnd is at what must be the end.
func (z *Reader) aloneEnd() error {
	if err := z.refill(); err != nil {
		return err
	}
	if !z.alone.eof || int(z.dec.ip) < z.alone.n {
		return errTrailing
	}
	return io.EOF
}
