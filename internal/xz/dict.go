package xz

import "slices"

const (
	// piece is how many bytes are decoded at a time, so that they are still in the
	// processor's cache when they are hashed and read.
	piece = 64 << 10
	// firstDict is how many bytes a dictionary has in the beginning.
	firstDict = 256 << 10
	// dictMargin is more than what is written too much behind a match.
	dictMargin = 64
	// minDict is the smallest dictionary, as for liblzma.
	minDict = 4 << 10
)

// A dictionary is what the decoder has written last: a ring, which grows until it
// has the size that it needs, or, for content that is wanted whole, all of it.
type dictionary struct {
	buf   []byte
	pos   int  // where the next byte goes
	base  uint // pos + base counts from the last reset
	reach uint // how far a match may look back, in bytes
	flat  bool // not a ring
	most  int  // bytes that buf may have, if it is flat
}

// clear forgets everything.
func (d *decoder) clear() {
	if d.flat {
		d.buf = nil
	}
	d.pos, d.base, d.reach, d.flat, d.most = 0, 0, 0, false, 0
}

// whole makes the dictionary a buffer with what is decoded behind dst.
func (d *decoder) whole(dst []byte, most int) {
	d.buf, d.pos, d.flat, d.most = dst[:cap(dst)], len(dst), true, most
	d.buf = d.buf[:min(len(d.buf), most)]
}

// begin begins a block whose matches look back up to size bytes.
func (d *decoder) begin(size int64) {
	d.reach = uint(max(size, minDict))
	if !d.flat {
		d.pos = 0
	}
	d.resetDict()
}

// resetDict forgets the content.
func (d *decoder) resetDict() { d.base = -uint(d.pos) }

// room makes room at pos for up to want bytes, and returns for how many.
func (d *decoder) room(want int) (int, error) {
	if d.flat {
		return d.flatRoom(want)
	}
	if d.pos == len(d.buf) {
		d.turn()
	}
	return min(want, piece, len(d.buf)-d.pos), nil
}

// turn lets the ring grow, or goes to its beginning.
func (d *decoder) turn() {
	full := (int(d.reach) + dictMargin + 15) &^ 15
	if have := len(d.buf); have < full {
		grown := make([]byte, min(full, max(firstDict, 4*have)))
		copy(grown, d.buf)
		d.buf = grown
		return
	}
	d.base += uint(len(d.buf))
	d.pos = 0
}

func (d *decoder) flatRoom(want int) (int, error) {
	if want > d.most-d.pos {
		return 0, ErrTooLong
	}
	if want > len(d.buf)-d.pos {
		grown := slices.Grow(d.buf[:d.pos], want)
		d.buf = grown[:min(cap(grown), d.most)]
	}
	return want, nil
}
