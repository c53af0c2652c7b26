package xz

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// LZMA: a range coder whose every decision has an adaptive probability, and on
// it literals, matches and repeated matches. The names are those of the
// specification in the LZMA SDK (lzma-specification.txt).

const (
	probBits = 11 // a probability is that of a 0, out of 1<<probBits
	moveBits = 5  // how fast it adapts
	probHalf = 1 << probBits / 2
	rangeTop = 1 << 24

	litStates = 7       // states below are those behind a literal
	minMatch  = 2       // bytes
	maxLitPos = 4       // lc+lp at most, as in LZMA2
	litCoder  = 1 << 10 // probabilities of a literal; 768 are in use

	rangeLen = 5 // bytes that the range coder begins with

	// inSize is the room for compressed data: two to the power of something, so that
	// an index can be masked.
	inSize = 1 << 17
	inMask = inSize - 1
	// inMargin is more than one symbol takes.
	inMargin = 32

	// endMarker is the distance that says that there is nothing more.
	endMarker = 1<<32 - 1
)

var errCorrupt = errors.New("the compressed data is damaged")

// A lengthCoder holds the probabilities of a match's length.
type lengthCoder struct {
	choice [2]uint16
	low    [16 << 3]uint16 // by position
	mid    [16 << 3]uint16
	high   [256]uint16
}

// probabilities are what the decoder learns. The indexes are bounded by their type
// or a mask, so that no index is checked when it is used.
type probabilities struct {
	match       [16 << 4]uint16 // by state and position
	rep         [16]uint16
	repG0       [16]uint16
	repG1       [16]uint16
	repG2       [16]uint16
	rep0Long    [16 << 4]uint16
	slot        [4 << 6]uint16 // of a distance, by length
	special     [128]uint16
	align       [16]uint16
	len, repLen lengthCoder
	literal     [1 << maxLitPos][litCoder]uint16
}

func fill(p []uint16) {
	for i := range p {
		p[i] = probHalf
	}
}

func (l *lengthCoder) reset() {
	fill(l.choice[:])
	fill(l.low[:])
	fill(l.mid[:])
	fill(l.high[:])
}

// reset forgets what was learned. lit is how many literal coders are in use.
func (p *probabilities) reset(lit int) {
	for _, some := range [][]uint16{p.match[:], p.rep[:], p.repG0[:], p.repG1[:], p.repG2[:], p.rep0Long[:], p.slot[:], p.special[:], p.align[:]} {
		fill(some)
	}
	p.len.reset()
	p.repLen.reset()
	for i := range lit {
		fill(p.literal[i][:])
	}
}

// A decoder decodes LZMA from in to buf.
type decoder struct {
	in      [inSize]byte
	ip, end uint // where it is in in, and where the data ends

	rng, code uint64

	state                  uint
	rep0, rep1, rep2, rep3 uint
	pending                uint // bytes of a match that had no room
	marker                 bool // the end marker was there

	lc, lp  uint // bits of the byte before, and of the position, that select a literal's coder
	posMask uint // bits of the position that select other probabilities

	dictionary
	p probabilities
}

// setProperties takes lc, lp and pb from their byte.
func (d *decoder) setProperties(b byte) error {
	if b >= 9*5*5 {
		return errCorrupt
	}
	lc, lp, pb := uint(b%9), uint(b/9%5), uint(b/45)
	if lc+lp > maxLitPos {
		return fmt.Errorf("it has the properties lc %d and lp %d, and only up to %d together are supported", lc, lp, maxLitPos)
	}
	d.lc, d.lp, d.posMask = lc, lp, 1<<pb-1
	return nil
}

// resetState begins anew, with the same dictionary.
func (d *decoder) resetState() {
	d.state, d.rep0, d.rep1, d.rep2, d.rep3 = 0, 0, 0, 0, 0
	d.pending, d.marker = 0, false
	d.p.reset(1 << (d.lc + d.lp))
}

// startRange reads the first five bytes.
func (d *decoder) startRange() error {
	d.rng = 1<<32 - 1
	d.code = uint64(binary.BigEndian.Uint32(d.in[d.ip+1:]))
	if d.in[d.ip] != 0 || d.code == d.rng {
		return errCorrupt
	}
	d.ip += rangeLen
	return nil
}

// finished reports whether the data ended as an encoder ends it.
func (d *decoder) finished() bool {
	return d.pending == 0 && d.ip == d.end && d.code == 0
}

// normal makes the range large enough for a decision.
func normal(rng, code uint64, in *[inSize]byte, ip uint) (uint64, uint64, uint) {
	if rng < rangeTop {
		return rng << 8, code<<8 | uint64(in[ip&inMask]), ip + 1
	}
	return rng, code, ip
}

// up and down adapt a probability after a 0 and a 1.
func up(p uint16) uint16   { return p + (1<<probBits-p)>>moveBits }
func down(p uint16) uint16 { return p - p>>moveBits }

// decide decodes a bit of probability p without a branch: which way it goes cannot
// be predicted. mask is all ones for a 0.
func decide(rng, code uint64, p uint16) (rng2, code2 uint64, p2 uint16, mask uint64) {
	bound := rng >> probBits * uint64(p)
	code -= bound
	mask = uint64(int64(code) >> 63)
	rng -= bound
	rng ^= (rng ^ bound) & mask
	code += bound & mask
	p -= uint16(int32(uint32(p)+uint32(mask)&^2016) >> moveBits)
	return rng, code, p, mask
}
