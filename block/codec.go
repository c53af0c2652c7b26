package block

import (
	"fmt"
	"sync"

	"github.com/golang/snappy"
	"github.com/klauspost/compress/zstd"
)

// A Codec says how a plain block is compressed before it is encrypted. One
// manifest has one codec.
type Codec uint8

const (
	// Zstd is one RFC 8878 frame that states its content size. Blocks that do
	// not shrink become frames of raw blocks. It is the default for packing.
	Zstd Codec = iota
	// Snappy is the raw block format of github.com/golang/snappy, whose output
	// is byte for byte that of the encoder which rfs uses. Other encoders of the
	// same format give other IDs.
	Snappy
)

// ParseCodec reads the value of a manifest's tag "codec", or of --codec. The
// empty string is Snappy: rfs writes no tag.
func ParseCodec(s string) (Codec, error) {
	switch s {
	case "", "snappy":
		return Snappy, nil
	case "zstd":
		return Zstd, nil
	}
	return 0, fmt.Errorf("unknown codec %.40q: want zstd or snappy", s)
}

func (c Codec) String() string {
	switch c {
	case Snappy:
		return "snappy"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// maxPacked is the length of the longest compressed block of either codec.
const maxPacked = MaxObject - tagSize

// scratch holds buffers for compressed blocks on their way to be opened.
var scratch = sync.Pool{New: func() any {
	b := make([]byte, 0, maxPacked)
	return &b
}}

// compress appends the compressed form of plain to dst, with room behind it for
// the GCM tag.
func (c Codec) compress(dst, plain []byte) ([]byte, error) {
	start := len(dst)
	switch c {
	case Snappy:
		dst = grow(dst, snappy.MaxEncodedLen(len(plain))+tagSize)
		packed := snappy.Encode(dst[start:cap(dst)], plain)
		return dst[:start+len(packed)], nil
	case Zstd:
		enc, _ := zstdCoders()
		return enc.EncodeAll(plain, grow(dst, enc.MaxEncodedSize(len(plain))+tagSize)), nil
	}
	return dst, fmt.Errorf("unknown %v", c)
}

// decompress appends the plain form of packed to dst. It checks the length that
// packed claims before it allocates.
func (c Codec) decompress(dst, packed []byte) ([]byte, error) {
	start := len(dst)
	switch c {
	case Snappy:
		n, err := snappy.DecodedLen(packed)
		if err != nil {
			return dst, err
		}
		if n > Size {
			return dst, fmt.Errorf("it claims %d bytes, over the limit of %d", n, Size)
		}
		dst = grow(dst, n)
		plain, err := snappy.Decode(dst[start:start+n], packed)
		if err != nil {
			return dst[:start], err
		}
		return dst[:start+len(plain)], nil
	case Zstd:
		var h zstd.Header
		if err := h.Decode(packed); err != nil {
			return dst, err
		}
		if h.Skippable || !h.HasFCS {
			return dst, fmt.Errorf("it does not state its length")
		}
		if h.FrameContentSize > Size {
			return dst, fmt.Errorf("it claims %d bytes, over the limit of %d", h.FrameContentSize, Size)
		}
		if n := frameLen(h, packed); n != len(packed) {
			return dst, fmt.Errorf("its one frame has %d bytes of %d", n, len(packed))
		}
		_, dec := zstdCoders()
		// The decoder never goes past the capacity that it is given, nor past
		// what the frame claims. With a little room behind that, it need not
		// look for the end at each step.
		const room = 32
		end := start + int(h.FrameContentSize) + room
		dst = grow(dst, end-start)
		plain, err := dec.DecodeAll(packed, dst[:start:end])
		if err != nil {
			return dst[:start], err
		}
		return plain, nil
	}
	return dst, fmt.Errorf("unknown %v", c)
}

// frameLen returns the length of the zstd frame that b begins with, from the
// headers of its blocks: RFC 8878, section 3.1.1.2. It is over len(b) if the
// frame is cut short.
func frameLen(h zstd.Header, b []byte) int {
	const rle = 1
	at := h.HeaderSize
	for last := false; !last; {
		if at+3 > len(b) {
			return len(b) + 1
		}
		head := int(b[at]) | int(b[at+1])<<8 | int(b[at+2])<<16
		last = head&1 != 0
		at += 3
		if head>>1&3 == rle {
			at++
		} else {
			at += head >> 3
		}
	}
	if h.HasCheckSum {
		at += 4
	}
	return at
}

// grow makes room for n more bytes behind b.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	g := make([]byte, len(b), len(b)+n)
	copy(g, b)
	return g
}

// zstdCoders returns the shared coders, made on first use: a program that meets
// only snappy does not pay for them. Both are stateless between calls and safe
// for concurrent use.
var zstdCoders = sync.OnceValues(func() (*zstd.Encoder, *zstd.Decoder) {
	// Without SingleSegment, a block under 256 bytes would not state its
	// length; without ZeroFrames, an empty one would be no frame at all.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), zstd.WithZeroFrames(true), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // only for options that contradict each other
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		panic(err)
	}
	return enc, dec
})
