package xz

import "encoding/binary"

// run decodes symbols until the dictionary is filled up to limit, which is in buf,
// or the input ends, or the marker comes. A match that has no room is left pending;
// what is pending comes first.
//
// All the time of decompression is spent here. So the state is in variables, no
// index is checked that a mask or a loop bounds, and bits whose value nobody can
// guess are decoded without a branch: [decide] is for those, and the branches are
// for what kind of symbol it is, which processors guess well.
func (d *decoder) run(limit int) error {
	in, p := &d.in, &d.p
	ip, end := d.ip, d.end
	rng, code := d.rng, d.code
	state, rep0 := d.state, d.rep0
	out := d.buf[:limit]
	pos, base, wrap := uint(d.pos), d.base, uint(len(d.buf))
	lc, lpMask, posMask := d.lc, uint(1)<<d.lp-1, d.posMask&15
	var zero uint64 // all ones if the bit was 0

	pos += d.finishMatch(limit)
	prev := d.last(pos)
	for pos < uint(len(out)) && ip <= end {
		posState := (pos + base) & posMask
		prob := &p.match[(state<<4|posState)&0xff]
		rng, code, ip = normal(rng, code, in, ip)
		bound := rng >> probBits * uint64(*prob)
		if code < bound { // a literal
			rng, *prob = bound, up(*prob)
			lit := &p.literal[((pos+base)&lpMask<<lc|prev>>(8-lc))&(1<<maxLitPos-1)]
			sym := uint64(1)
			if state < litStates {
				for sym < 0x100 {
					i := sym & (litCoder - 1)
					rng, code, ip = normal(rng, code, in, ip)
					rng, code, lit[i], zero = decide(rng, code, lit[i])
					sym = sym<<1 + 1 + zero
				}
			} else {
				// Behind a match it is not the byte that would continue it: that one
				// selects the probabilities, as long as it agrees.
				src := pos - rep0 - 1
				if rep0 >= pos {
					src += wrap
				}
				match, agrees := uint64(d.buf[src]), uint64(0x100)
				for sym < 0x100 {
					match <<= 1
					i := (agrees + match&agrees + sym) & (litCoder - 1)
					rng, code, ip = normal(rng, code, in, ip)
					rng, code, lit[i], zero = decide(rng, code, lit[i])
					sym = sym<<1 + 1 + zero
					agrees &= match ^ zero
				}
			}
			prev = uint(uint8(sym))
			out[pos] = uint8(sym)
			pos++
			state = uint(behindLiteral[state&15])
			continue
		}
		rng, code, *prob = rng-bound, code-bound, down(*prob)

		length := uint(0) // until it is known
		fresh := false    // the match has a distance of its own
		lens := &p.repLen
		prob = &p.rep[state&15]
		rng, code, ip = normal(rng, code, in, ip)
		bound = rng >> probBits * uint64(*prob)
		if code < bound {
			rng, *prob = bound, up(*prob)
			fresh, lens = true, &p.len
			d.rep1, d.rep2, d.rep3 = rep0, d.rep1, d.rep2
			state = uint(behindMatch[state&15])
		} else {
			rng, code, *prob = rng-bound, code-bound, down(*prob)
			prob = &p.repG0[state&15]
			rng, code, ip = normal(rng, code, in, ip)
			bound = rng >> probBits * uint64(*prob)
			if code < bound {
				rng, *prob = bound, up(*prob)
				prob = &p.rep0Long[(state<<4|posState)&0xff]
				rng, code, ip = normal(rng, code, in, ip)
				bound = rng >> probBits * uint64(*prob)
				if code < bound {
					rng, *prob = bound, up(*prob)
					length = 1
					state = uint(behindShort[state&15])
				} else {
					rng, code, *prob = rng-bound, code-bound, down(*prob)
					state = uint(behindRep[state&15])
				}
			} else {
				rng, code, *prob = rng-bound, code-bound, down(*prob)
				prob = &p.repG1[state&15]
				rng, code, ip = normal(rng, code, in, ip)
				bound = rng >> probBits * uint64(*prob)
				if code < bound {
					rng, *prob = bound, up(*prob)
					rep0, d.rep1 = d.rep1, rep0
				} else {
					rng, code, *prob = rng-bound, code-bound, down(*prob)
					prob = &p.repG2[state&15]
					rng, code, ip = normal(rng, code, in, ip)
					bound = rng >> probBits * uint64(*prob)
					if code < bound {
						rng, *prob = bound, up(*prob)
						rep0, d.rep1, d.rep2 = d.rep2, rep0, d.rep1
					} else {
						rng, code, *prob = rng-bound, code-bound, down(*prob)
						rep0, d.rep1, d.rep2, d.rep3 = d.rep3, rep0, d.rep1, d.rep2
					}
				}
				state = uint(behindRep[state&15])
			}
		}

		if length == 0 {
			prob = &lens.choice[0]
			rng, code, ip = normal(rng, code, in, ip)
			bound = rng >> probBits * uint64(*prob)
			if code < bound {
				rng, *prob = bound, up(*prob)
				sym := uint64(1)
				for sym < 8 {
					i := (uint64(posState)<<3 | sym) & 0x7f
					rng, code, ip = normal(rng, code, in, ip)
					rng, code, lens.low[i], zero = decide(rng, code, lens.low[i])
					sym = sym<<1 + 1 + zero
				}
				length = minMatch + uint(sym) - 8
			} else {
				rng, code, *prob = rng-bound, code-bound, down(*prob)
				prob = &lens.choice[1]
				rng, code, ip = normal(rng, code, in, ip)
				bound = rng >> probBits * uint64(*prob)
				if code < bound {
					rng, *prob = bound, up(*prob)
					sym := uint64(1)
					for sym < 8 {
						i := (uint64(posState)<<3 | sym) & 0x7f
						rng, code, ip = normal(rng, code, in, ip)
						rng, code, lens.mid[i], zero = decide(rng, code, lens.mid[i])
						sym = sym<<1 + 1 + zero
					}
					length = minMatch + 8 + uint(sym) - 8
				} else {
					rng, code, *prob = rng-bound, code-bound, down(*prob)
					sym := uint64(1)
					for sym < 0x100 {
						i := sym & 0xff
						rng, code, ip = normal(rng, code, in, ip)
						rng, code, lens.high[i], zero = decide(rng, code, lens.high[i])
						sym = sym<<1 + 1 + zero
					}
					length = minMatch + 16 + uint(sym) - 0x100
				}
			}
		}

		if fresh {
			at := uint64(min(length-minMatch, 3)) << 6
			sym := uint64(1)
			for sym < 64 {
				i := (at | sym) & 0xff
				rng, code, ip = normal(rng, code, in, ip)
				rng, code, p.slot[i], zero = decide(rng, code, p.slot[i])
				sym = sym<<1 + 1 + zero
			}
			slot := uint(sym - 64)
			rep0 = slot
			if slot >= 4 {
				bits := slot>>1 - 1
				rep0 = (2 | slot&1) << bits
				if slot < 14 {
					// The trees of all slots lie one behind another.
					at := uint64(rep0 - slot)
					sym := uint64(1)
					for one := uint(1); one < 1<<bits; one <<= 1 {
						i := (at + sym) & 0x7f
						rng, code, ip = normal(rng, code, in, ip)
						rng, code, p.special[i], zero = decide(rng, code, p.special[i])
						rep0 += one &^ uint(zero)
						sym = sym<<1 + 1 + zero
					}
				} else {
					direct := uint64(0)
					for range bits - 4 {
						rng, code, ip = normal(rng, code, in, ip)
						rng >>= 1
						code -= rng
						zero = uint64(int64(code) >> 63)
						code += rng & zero
						direct = direct<<1 + 1 + zero
					}
					rep0 += uint(direct) << 4
					sym := uint64(1)
					for one := uint(1); one < 16; one <<= 1 {
						i := sym & 15
						rng, code, ip = normal(rng, code, in, ip)
						rng, code, p.align[i], zero = decide(rng, code, p.align[i])
						rep0 += one &^ uint(zero)
						sym = sym<<1 + 1 + zero
					}
					if rep0 == endMarker {
						d.marker = true
						break
					}
				}
			}
		}
		if rep0 >= pos+base || rep0 >= d.reach {
			d.ip = ip
			return errCorrupt
		}

		src := pos - rep0 - 1
		if rep0 >= pos {
			src += wrap
		}
		if length <= 16 && rep0 >= 7 && pos+16 <= uint(len(out)) && src+16 <= wrap {
			// Most are short. What is written too much comes to be overwritten.
			from, to := d.buf[src:src+16:src+16], out[pos:pos+16:pos+16]
			binary.LittleEndian.PutUint64(to, binary.LittleEndian.Uint64(from))
			binary.LittleEndian.PutUint64(to[8:], binary.LittleEndian.Uint64(from[8:]))
			pos += length
		} else {
			n := min(length, uint(len(out))-pos)
			d.copy(pos, src, n)
			d.pending = length - n
			pos += n
		}
		prev = uint(out[pos-1])
	}
	rng, code, ip = normal(rng, code, in, ip) // as the encoder does at its end
	d.ip, d.rng, d.code, d.state, d.rep0, d.pos = ip, rng, code, state, rep0, int(pos)
	return nil
}

// finishMatch copies what is pending, up to limit, and returns how many bytes.
func (d *decoder) finishMatch(limit int) uint {
	if d.pending == 0 {
		return 0
	}
	pos := uint(d.pos)
	src := pos - d.rep0 - 1
	if d.rep0 >= pos {
		src += uint(len(d.buf))
	}
	n := min(d.pending, uint(limit)-pos)
	d.copy(pos, src, n)
	d.pending -= n
	return n
}

// last returns the byte before pos, or 0 behind a reset.
func (d *decoder) last(pos uint) uint {
	switch {
	case pos+d.base == 0:
		return 0
	case pos == 0:
		return uint(d.buf[len(d.buf)-1])
	}
	return uint(d.buf[pos-1])
}

// copy copies n bytes within the dictionary from src. They may overlap, and go over
// its end.
func (d *decoder) copy(pos, src, n uint) {
	if src > pos {
		c := uint(copy(d.buf[pos:pos+n], d.buf[src:]))
		pos, n, src = pos+c, n-c, 0
	}
	for n > 0 {
		// What was copied repeats what is before it, so that the next step can
		// begin at the same place, and is twice as long.
		c := uint(copy(d.buf[pos:pos+n], d.buf[src:pos]))
		pos, n = pos+c, n-c
	}
}

// The states behind a symbol, by that before it. Below litStates the last symbol
// was a literal.
var (
	behindLiteral = [16]uint8{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 4, 5}
	behindMatch   = [16]uint8{7, 7, 7, 7, 7, 7, 7, 10, 10, 10, 10, 10}
	behindRep     = [16]uint8{8, 8, 8, 8, 8, 8, 8, 11, 11, 11, 11, 11}
	behindShort   = [16]uint8{9, 9, 9, 9, 9, 9, 9, 11, 11, 11, 11, 11}
)
