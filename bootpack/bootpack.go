// Package bootpack keeps what a boot reads in one object, so that the next boot
// gets it with one request.
//
// A mount notes which blocks are read, in order ([Access], [WriteRecord]). [Write]
// puts these blocks into a pack, which is published beside the manifest under a
// [Name] of kernel version and hardware. [NewReader] gives the blocks back as they
// come in, each checked:
//
//	r, err := bootpack.NewReader(m, body)
//	for {
//		key, plain, err := r.Next()
//		…
//	}
//
// A pack belongs to one manifest, and is only a copy: whatever is wrong with it,
// nothing but time is lost.
//
// # Format
//
//	magic   8 bytes, "OVMPACK1"
//	salt   32 bytes
//	chunks  each of 64 KiB, the last of 0 to 64 KiB, and 16 bytes of tag
//
// All hashes are BLAKE2b-256; "‖" joins bytes.
//
//	master  = hash("overmount boot pack 1\n" ‖ the manifest's distinct keys, sorted)
//	salt    = hash keyed with master of ("salt\n" ‖ stream)
//	key     = hash keyed with master of ("chunks\n" ‖ salt)
//	chunk i = AES-256-GCM(key, nonce: i in 11 bytes, big-endian, ‖ last, stream[i])
//
// where last is 1 for the last chunk and 0 for the others, so that a pack that was
// cut short does not look whole. Who has the manifest has the keys of its blocks,
// and can read the pack; nobody else can. The salt comes from the content: the
// same blocks give the same bytes, and other blocks another key.
//
// The stream is one zstd frame (RFC 8878) with a window of up to 8 MiB, and holds
// for each block its length, in 4 bytes, big-endian, and its content. Nothing says
// which block it is: its hash is its Key, which the manifest has, or it is not used.
//
// Limits: a pack has at most [MaxSize] bytes and [MaxMembers] blocks, which take at
// most [MaxPlain] bytes.
package bootpack

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/blake2b"

	"overmount/block"
	"overmount/manifest"
)

const (
	// MaxPlain is how much the blocks of a pack may be together, in bytes.
	MaxPlain = 256 << 20
	// MaxSize is the length of the longest pack, in bytes: what does not compress
	// gets a little longer.
	MaxSize = MaxPlain + MaxPlain/8
	// MaxMembers is how many blocks a pack may have, and how many accesses a
	// record.
	MaxMembers = 1 << 16

	magic     = "OVMPACK1"
	chunkSize = 64 << 10
	tagSize   = 16
	window    = 8 << 20
)

// ErrCorrupt says that a pack is not one that was made for this manifest, or not
// all of it.
var ErrCorrupt = errors.New("the boot pack is cut short, damaged, or of another manifest")

// Summary says what is in a pack.
type Summary struct {
	Members int   // blocks
	Plain   int64 // their size in bytes
	Size    int64 // of the pack
	Unknown int   // accesses to what the manifest does not have
	Left    int   // blocks that did not fit under the limits
}

// Write writes a pack of the blocks that were accessed, in that order, each once.
// Blocks that the manifest carries itself are left out. What get returns for a
// block must be its plain content; its errors end Write. All of the pack is in
// memory until it is written.
func Write(ctx context.Context, w io.Writer, m *manifest.Manifest, accesses []Access, get func(context.Context, manifest.Ino, int) ([]byte, error)) (Summary, error) {
	var s Summary
	var stream bytes.Buffer
	// One goroutine, for the same bytes on every machine.
	z, err := zstd.NewWriter(&stream, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window))
	if err != nil {
		return s, err
	}
	defer z.Close()
	for _, at := range choose(m, accesses, &s) {
		plain, err := get(ctx, at.ino, at.i)
		if err != nil {
			return s, err
		}
		if block.KeyOf(plain) != m.Blocks(at.ino)[at.i].Key {
			return s, fmt.Errorf("block %d of %s: %w", at.i, m.Path(at.ino), block.ErrCorrupt)
		}
		if _, err := z.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(plain))), plain...)); err != nil {
			return s, err
		}
		s.Members++
		s.Plain += int64(len(plain))
	}
	if s.Members == 0 {
		return s, errors.New("none of what was read is in the manifest's objects: are the records of another tree?")
	}
	if err := z.Close(); err != nil {
		return s, err
	}
	sealed, err := seal(m, stream.Bytes())
	if err != nil {
		return s, err
	}
	s.Size = int64(len(sealed))
	_, err = w.Write(sealed)
	return s, err
}

// A place is one block of a file.
type place struct {
	ino manifest.Ino
	i   int
}

// choose returns where the blocks of accesses are, each once, within the limits.
func choose(m *manifest.Manifest, accesses []Access, s *Summary) []place {
	var places []place
	total := int64(0)
	seen := map[block.Key]bool{}
	for _, a := range accesses {
		ino, err := m.Find(a.Path)
		if err != nil || a.Block < 0 || a.Block >= len(m.Blocks(ino)) {
			s.Unknown++
			continue
		}
		ref := m.Blocks(ino)[a.Block]
		if _, inline := m.Object(ref.ID); inline || seen[ref.Key] {
			continue
		}
		seen[ref.Key] = true
		size := min(block.Size, m.Attr(ino).Size-int64(a.Block)*block.Size)
		if len(places) == MaxMembers || total+size > MaxPlain {
			s.Left++
			continue
		}
		total += size
		places = append(places, place{ino, a.Block})
	}
	return places
}

func seal(m *manifest.Manifest, stream []byte) ([]byte, error) {
	secret := master(m)
	salt, err := keyed(secret, "salt\n", stream)
	if err != nil {
		return nil, err
	}
	c, err := chunkCipher(secret, salt)
	if err != nil {
		return nil, err
	}
	sealed := append([]byte(magic), salt...)
	for i := uint64(0); ; i++ {
		n := min(chunkSize, len(stream))
		last := n == len(stream)
		sealed = c.Seal(sealed, nonce(i, last), stream[:n], nil)
		if stream = stream[n:]; last {
			return sealed, nil
		}
	}
}

// master returns the secret that the manifest's keys are.
func master(m *manifest.Manifest) []byte {
	keys := make([]block.Key, 0, m.BlockCount())
	for _, ref := range m.AllBlocks() {
		keys = append(keys, ref.Key)
	}
	slices.SortFunc(keys, func(a, b block.Key) int { return bytes.Compare(a[:], b[:]) })
	all := []byte("overmount boot pack 1\n")
	for _, key := range slices.Compact(keys) {
		all = append(all, key[:]...)
	}
	sum := blake2b.Sum256(all)
	return sum[:]
}

func keyed(secret []byte, label string, data []byte) ([]byte, error) {
	h, err := blake2b.New256(secret)
	if err != nil {
		return nil, err
	}
	h.Write([]byte(label))
	h.Write(data)
	return h.Sum(nil), nil
}

func chunkCipher(secret, salt []byte) (cipher.AEAD, error) {
	key, err := keyed(secret, "chunks\n", salt)
	if err != nil {
		return nil, err
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

func nonce(i uint64, last bool) []byte {
	n := binary.BigEndian.AppendUint64(make([]byte, 3, 12), i)
	if last {
		return append(n, 1)
	}
	return append(n, 0)
}

// A Reader reads a pack. It is not safe for concurrent use.
type Reader struct {
	known   map[block.Key]bool
	o       *opener
	z       *zstd.Decoder
	members int
	plain   int64
}

// NewReader reads the beginning of a pack of m. It fails with [ErrCorrupt] for what
// cannot be one, and otherwise with what r fails with. Close must be called.
func NewReader(m *manifest.Manifest, r io.Reader) (*Reader, error) {
	head := make([]byte, len(magic)+blake2b.Size256)
	if _, err := io.ReadFull(r, head); err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, ErrCorrupt
	} else if err != nil {
		return nil, fmt.Errorf("read the boot pack: %w", err)
	}
	if string(head[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrCorrupt)
	}
	c, err := chunkCipher(master(m), head[len(magic):])
	if err != nil {
		return nil, err
	}
	o := &opener{r: r, c: c}
	z, err := zstd.NewReader(o, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
	if err != nil {
		return nil, o.blame(err)
	}
	known := make(map[block.Key]bool, m.BlockCount())
	for _, ref := range m.AllBlocks() {
		known[ref.Key] = true
	}
	return &Reader{known: known, o: o, z: z}, nil
}

// Close frees what the Reader holds. It does not close what it reads from.
func (r *Reader) Close() { r.z.Close() }

// Next returns the next block that the manifest has, as new memory, and its key.
// After the last it returns io.EOF. An error that is [ErrCorrupt], or what reading
// failed with, ends the pack; what came before it is right.
func (r *Reader) Next() (block.Key, []byte, error) {
	for {
		plain, err := r.member()
		if err != nil {
			return block.Key{}, nil, err
		}
		key := block.KeyOf(plain)
		if r.known[key] {
			return key, plain, nil
		}
	}
}

func (r *Reader) member() ([]byte, error) {
	var head [4]byte
	switch _, err := io.ReadFull(r.z, head[:]); {
	case err == io.EOF:
		return nil, io.EOF
	case err != nil:
		return nil, r.o.blame(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	r.members++
	r.plain += int64(n)
	if n == 0 || n > block.Size || r.members > MaxMembers || r.plain > MaxPlain {
		return nil, fmt.Errorf("%w: it is over the limits", ErrCorrupt)
	}
	plain := make([]byte, n)
	if _, err := io.ReadFull(r.z, plain); err != nil {
		return nil, r.o.blame(err)
	}
	return plain, nil
}

// An opener gives the stream of a pack, chunk by chunk as they come.
type opener struct {
	r     io.Reader
	c     cipher.AEAD
	i     uint64
	ahead []byte // the beginning of the next chunk: the byte that says there is one
	plain []byte // what is not read yet
	read  int64
	err   error // after plain
}

func (o *opener) Read(p []byte) (int, error) {
	for len(o.plain) == 0 {
		if o.err != nil {
			return 0, o.err
		}
		o.plain, o.err = o.chunk()
	}
	n := copy(p, o.plain)
	o.plain = o.plain[n:]
	return n, nil
}

// blame says why the stream could not be read on, when its decoder failed with err:
// the pack could not be read, or it is not right.
func (o *opener) blame(err error) error {
	switch {
	case o.err == nil || o.err == io.EOF:
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case errors.Is(o.err, ErrCorrupt):
		return o.err
	}
	return fmt.Errorf("read the boot pack: %w", o.err)
}

// chunk opens the next chunk. With the last one it returns io.EOF.
func (o *opener) chunk() ([]byte, error) {
	sealed := make([]byte, chunkSize+tagSize+1)
	had := copy(sealed, o.ahead)
	n, err := io.ReadFull(o.r, sealed[had:])
	n += had
	last := err == io.EOF || err == io.ErrUnexpectedEOF
	if err != nil && !last {
		return nil, err
	}
	if o.read += int64(n); o.read > MaxSize {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrCorrupt, MaxSize)
	}
	if last {
		err = io.EOF
	} else {
		n--
		o.ahead = sealed[n:]
	}
	plain, openErr := o.c.Open(nil, nonce(o.i, last), sealed[:n], nil)
	if openErr != nil {
		return nil, ErrCorrupt
	}
	o.i++
	return plain, err
}
