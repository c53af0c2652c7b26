// Package block seals and opens the objects that a store keeps.
//
// A block is up to [Size] bytes of one file's content. Sealing it gives an
// object, which is all that ever leaves the machine, and a [Ref], which is all
// that a manifest needs to find the object again and to open it:
//
//	Key    = BLAKE2b-256(plain)
//	packed = compress(plain)                     with the manifest's Codec
//	object = AES-256-GCM(Key, nonce Key[:12], no additional data, packed)
//	ID     = BLAKE2b-256(object)
//
// The recipe is convergent: equal blocks become equal objects, in every file
// and on every machine, so that a store keeps them once. With [Snappy] the
// recipe is that of threefoldtech/rfs, and the IDs are the same; a manifest
// does not say so anywhere. With [Zstd], the default, objects are about a third
// smaller, and the manifest's tag "codec" says so.
//
// Whoever knows the ID can tell whether an object is whole ([Sum]); whoever
// also knows the Key can read it ([Open]). Opening authenticates: bytes that
// were not sealed under that Key give [ErrCorrupt], never wrong content.
//
// Limits: a plain block is at most 512 KiB. [Open] refuses to produce more than
// that, whatever the object claims, and refuses objects over [MaxObject]
// before it reads them.
package block

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/crypto/blake2b"
)

const (
	// Size is the length in bytes of every block of a file but its last. It is
	// fixed by the format and recorded nowhere.
	Size = 512 << 10

	// MaxObject is the length in bytes of the longest object that can open:
	// snappy's worst case for a full block and the 16 bytes of the GCM tag.
	// Zstd's worst case is shorter.
	MaxObject = 32 + Size + Size/6 + tagSize

	tagSize   = 16
	nonceSize = 12
)

// ErrCorrupt says that an object is not what its ID or Key promise. Other
// copies of it may be sound.
var ErrCorrupt = errors.New("object is corrupt")

// An ID names an object: the BLAKE2b-256 of its bytes.
type ID [32]byte

// Sum returns the ID of an object.
func Sum(object []byte) ID { return blake2b.Sum256(object) }

// String returns the ID in 64 lower-case hex digits, as stores spell it.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads an ID in 64 hex digits of either case.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != hex.EncodedLen(len(id)) {
		return ID{}, fmt.Errorf("object name %.80q has %d characters, want 64 hex digits", s, len(s))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("object name %q: %w", s, err)
	}
	return id, nil
}

// A Key opens an object: the BLAKE2b-256 of the plain block. It is a secret in
// as much as the content is.
type Key [32]byte

// KeyOf returns the Key under which a plain block is sealed.
func KeyOf(plain []byte) Key { return blake2b.Sum256(plain) }

// A Ref is what a manifest records of one block.
type Ref struct {
	ID  ID
	Key Key
}

// Count returns how many blocks a file of size bytes has.
func Count(size int64) int64 { return (size + Size - 1) / Size }

// Seal seals plain, whose Key the caller has, and appends the object to dst. It
// returns the object's ID and the extended slice. The ID covers only what was
// appended. Seal fails only for a block over [Size] or an unknown codec.
// Concurrent use is safe.
func Seal(dst []byte, c Codec, key Key, plain []byte) (ID, []byte, error) {
	if len(plain) > Size {
		return ID{}, dst, fmt.Errorf("block of %d bytes is over the limit of %d", len(plain), Size)
	}
	start := len(dst)
	dst, err := c.compress(dst, plain)
	if err != nil {
		return ID{}, dst[:start], err
	}
	packed := dst[start:]
	dst = gcm(key).Seal(dst[:start], key[:nonceSize], packed, nil)
	return Sum(dst[start:]), dst, nil
}

// Open opens an object and appends the plain block to dst. It returns
// [ErrCorrupt], with a reason, for whatever was not sealed under key with this
// codec, and then dst unchanged. Concurrent use is safe; object is not
// modified.
//
// Open does not compute the object's ID: who receives an object from outside
// checks it with [Sum] when it arrives.
func Open(dst []byte, c Codec, key Key, object []byte) ([]byte, error) {
	if len(object) > MaxObject {
		return dst, fmt.Errorf("%w: %d bytes, over the limit of %d", ErrCorrupt, len(object), MaxObject)
	}
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	packed, err := gcm(key).Open((*buf)[:0], key[:nonceSize], object, nil)
	if err != nil {
		return dst, fmt.Errorf("%w: it does not open with the manifest's key", ErrCorrupt)
	}
	*buf = packed
	plain, err := c.decompress(dst, packed)
	if err != nil {
		return dst, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return plain, nil
}

func gcm(key Key) cipher.AEAD {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // only for a key of a length that AES does not have
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic(err) // only for a block size other than AES's
	}
	return g
}
