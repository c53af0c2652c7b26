package xz

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"
)

const (
	headMagic = "\xfd7zXZ\x00"
	footMagic = "YZ"
	headLen   = 12 // of a stream
	footLen   = 12

	filterLZMA2 = 0x21
)

// A Check is the type of the integrity check of blocks.
type Check byte

// The checks that are known.
const (
	None   Check = 0
	CRC32  Check = 1
	CRC64  Check = 4
	SHA256 Check = 10
)

func (c Check) String() string {
	switch c {
	case None:
		return "none"
	case CRC32:
		return "CRC32"
	case CRC64:
		return "CRC64"
	case SHA256:
		return "SHA-256"
	}
	return fmt.Sprintf("check(%d)", byte(c))
}

// new returns the hash of a check, nil for none.
func (c Check) new() (hash.Hash, error) {
	switch c {
	case None:
		return nil, nil
	case CRC32:
		return crc32.NewIEEE(), nil
	case CRC64:
		return crc64.New(crc64.MakeTable(crc64.ECMA)), nil
	case SHA256:
		return sha256.New(), nil
	}
	return nil, fmt.Errorf("it has integrity checks of the type %d: only CRC32, CRC64 and SHA-256 are supported", byte(c))
}

// sum returns the check as a file has it.
func (c Check) sum(h hash.Hash) []byte {
	switch h := h.(type) {
	case nil:
		return nil
	case hash.Hash32:
		return binary.LittleEndian.AppendUint32(nil, h.Sum32())
	case hash.Hash64:
		return binary.LittleEndian.AppendUint64(nil, h.Sum64())
	default:
		return h.Sum(nil)
	}
}

// A stream is what is known of the current stream.
type stream struct {
	flags [2]byte
	check Check
	hash  hash.Hash
	had   tally // the blocks
}

// A tally is of blocks, or of what the index says of them.
type tally struct {
	blocks uint64
	sum    uint64 // a checksum of their sizes
}

func (t *tally) add(unpadded, plain uint64) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], unpadded)
	binary.LittleEndian.PutUint64(b[8:], plain)
	t.blocks++
	t.sum = crc64.Update(t.sum, crc64.MakeTable(crc64.ISO), b[:])
}

// A block is what is known of the current block.
type block struct {
	header        int64 // its length
	packed, plain int64 // lengths of what was read of it
	saysPacked    int64 // what the header says, or -1
	saysPlain     int64
}

// first is at the beginning of the file.
func (z *Reader) first() error {
	if head, err := z.in.Peek(len(headMagic)); err != nil && err != io.EOF {
		return err
	} else if !bytes.HasPrefix([]byte(headMagic), head) {
		return errors.New("it does not begin as xz does")
	}
	return z.streamHeader()
}

func (z *Reader) streamHeader() error {
	b, err := z.bytes(headLen)
	if err != nil {
		return err
	}
	if string(b[:len(headMagic)]) != headMagic {
		return errors.New("something that is no stream follows the first")
	}
	if crc32.ChecksumIEEE(b[6:8]) != binary.LittleEndian.Uint32(b[8:]) {
		return errors.New("the header of a stream is damaged")
	}
	if b[6] != 0 || b[7] > 0xf {
		return fmt.Errorf("a stream has the flags %x, which are not supported", b[6:8])
	}
	z.stream = stream{flags: [2]byte(b[6:8]), check: Check(b[7])}
	z.stream.hash, err = z.stream.check.new()
	z.info.Streams++
	z.noteCheck(z.stream.check)
	z.step = (*Reader).blockHeader
	return err
}

// nextStream is behind a stream.
func (z *Reader) nextStream() error {
	b, err := z.in.Peek(4)
	if err == io.EOF && len(b) == 0 {
		return io.EOF
	}
	if err != nil {
		return early(err)
	}
	if binary.LittleEndian.Uint32(b) == 0 {
		_, err := z.in.Discard(4)
		return err
	}
	return z.streamHeader()
}

func (z *Reader) blockHeader() error {
	b, err := z.in.Peek(1)
	if err != nil {
		return early(err)
	}
	if b[0] == 0 {
		return z.index()
	}
	if b, err = z.bytes(4 * (int(b[0]) + 1)); err != nil {
		return err
	}
	head, crc := b[:len(b)-4], b[len(b)-4:]
	if crc32.ChecksumIEEE(head) != binary.LittleEndian.Uint32(crc) {
		return errors.New("the header of a block is damaged")
	}
	z.block = block{header: int64(len(b)), saysPacked: -1, saysPlain: -1}
	dict, err := z.block.parse(head[1], head[2:])
	if err != nil {
		return err
	}
	if err := z.dictionary(dict); err != nil {
		return err
	}
	if z.stream.hash != nil {
		z.stream.hash.Reset()
	}
	z.chunk = chunk{}
	z.dec.begin(dict)
	z.step = (*Reader).chunkHeader
	return nil
}

var errHeader = errors.New("the header of a block is not in order")

// parse reads a block's header, and returns the size of its dictionary.
func (b *block) parse(flags byte, head []byte) (dict int64, err error) {
	number := func() uint64 {
		v, n := binary.Uvarint(head)
		if n <= 0 || n > 9 || n > 1 && head[n-1] == 0 {
			err = errHeader
			head = nil
			return 0
		}
		head = head[n:]
		return v
	}
	if flags&0x3c != 0 {
		return 0, fmt.Errorf("a block has the flags %#x, which are not supported", flags)
	}
	if flags&0x40 != 0 {
		b.saysPacked = int64(number())
	}
	if flags&0x80 != 0 {
		b.saysPlain = int64(number())
	}
	filter := number()
	if err != nil {
		return 0, err
	}
	if filter != filterLZMA2 || flags&3 != 0 {
		return 0, fmt.Errorf("filter %s: only LZMA2 alone is supported", filterName(filter))
	}
	if number() != 1 || len(head) == 0 || !zeros(head[1:]) {
		return 0, errHeader
	}
	return dictSize(head[0])
}

// zeros reports whether padding is what it must be.
func zeros(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

// filterName returns the name of a filter, as in section 5.3 of the format.
func filterName(id uint64) string {
	names := map[uint64]string{3: "delta", 4: "x86", 5: "PowerPC", 6: "IA-64", 7: "ARM", 8: "ARM-Thumb", 9: "SPARC", 10: "ARM64", 11: "RISC-V", filterLZMA2: "LZMA2"}
	if name, ok := names[id]; ok {
		return fmt.Sprintf("%#x (%s)", id, name)
	}
	return fmt.Sprintf("%#x", id)
}

// dictSize returns the size that a byte of LZMA2's properties stands for.
func dictSize(code byte) (int64, error) {
	if code > 40 {
		return 0, fmt.Errorf("a dictionary of unknown size %d", code)
	}
	if code == 40 {
		return 1<<32 - 1, nil
	}
	return int64(2|code&1) << (code/2 + 11), nil
}

// blockEnd is behind the chunks: padding and the check.
func (z *Reader) blockEnd() error {
	bl, s := &z.block, &z.stream
	if bl.saysPacked >= 0 && bl.saysPacked != bl.packed || bl.saysPlain >= 0 && bl.saysPlain != bl.plain {
		return errors.New("a block has not the length that its header states")
	}
	pad, err := z.bytes(int(-bl.packed & 3))
	if err != nil {
		return err
	}
	if !zeros(pad) {
		return errors.New("the padding of a block is damaged")
	}
	want := s.check.sum(s.hash)
	got, err := z.bytes(len(want))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the content is not what its %v says", s.check)
	}
	s.had.add(uint64(bl.header+bl.packed)+uint64(len(want)), uint64(bl.plain))
	z.step = (*Reader).blockHeader
	return nil
}

// index reads the index behind the blocks and the footer.
func (z *Reader) index() error {
	in := &indexReader{z: z}
	if _, err := in.ReadByte(); err != nil {
		return early(err)
	}
	var said tally
	n, err := in.number()
	if err != nil {
		return err
	}
	if n != z.stream.had.blocks {
		return fmt.Errorf("the index lists %d blocks, and there are %d", n, z.stream.had.blocks)
	}
	for said.blocks < n {
		unpadded, err := in.number()
		if err != nil {
			return err
		}
		plain, err := in.number()
		if err != nil {
			return err
		}
		said.add(unpadded, plain)
	}
	if said != z.stream.had {
		return errors.New("the index has other blocks than there are")
	}
	for in.n&3 != 0 {
		if b, err := in.ReadByte(); err != nil {
			return early(err)
		} else if b != 0 {
			return errors.New("the padding of the index is damaged")
		}
	}
	return z.footer(in.n+4, in.crc)
}

// footer is behind the index, which has a length and a checksum.
func (z *Reader) footer(index int64, crc uint32) error {
	b, err := z.bytes(4)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != crc {
		return errors.New("the index is damaged")
	}
	if b, err = z.bytes(footLen); err != nil {
		return err
	}
	if string(b[10:]) != footMagic || crc32.ChecksumIEEE(b[4:10]) != binary.LittleEndian.Uint32(b) ||
		[2]byte(b[8:]) != z.stream.flags || (int64(binary.LittleEndian.Uint32(b[4:]))+1)*4 != index {
		return errors.New("the end of a stream is damaged")
	}
	z.step = (*Reader).nextStream
	return nil
}

// An indexReader counts and sums what it reads.
type indexReader struct {
	z   *Reader
	n   int64
	crc uint32
}

func (in *indexReader) ReadByte() (byte, error) {
	b, err := in.z.in.ReadByte()
	if err == nil {
		in.n++
		in.crc = crc32.Update(in.crc, crc32.IEEETable, []byte{b})
	}
	return b, err
}

// number reads a number of 7 bits a byte, up to nine bytes.
func (in *indexReader) number() (uint64, error) {
	var v uint64
	for shift := 0; shift < 63; shift += 7 {
		b, err := in.ReadByte()
		if err != nil {
			return 0, early(err)
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if b == 0 && shift > 0 {
				break // a shorter way to write it
			}
			return v, nil
		}
	}
	return 0, errors.New("the index is not in order: a number is none")
}
