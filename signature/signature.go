// Package signature signs manifests and checks who made them.
//
// A signature is a small file beside the manifest, FILE.minisig, in the format
// of minisign, whose program and whose keys work here, too:
//
//	untrusted comment: TEXT                        nobody vouches for it
//	base64("ED", key ID, Ed25519(BLAKE2b-512(file)))
//	trusted comment: overmount kind=modules kver=6.1.0-56-amd64 serial=17
//	base64(Ed25519(the Ed25519 above, the trusted comment))
//
// The trusted comment carries [Claims]: what the manifest is, and which of two
// is the newer one. It is words with spaces between them, the first of which is
// "overmount"; the others are NAME=VALUE with a value as [url.PathEscape] writes
// it, and those with a NAME that is not one of the three, or without a =, mean
// nothing yet. A serial is a number from 1 to 2^64-1; kind and kver may be
// missing. "minisign -S -t" with such a comment makes a signature that [Verify]
// accepts; one without is not about a manifest, and is refused.
//
// The number needs no clock on the machine that checks it: who remembers the last
// one that was used of a kind and kernel version, and accepts none below it
// ([Claims.CheckSerial]), cannot be offered an old manifest with its old, right
// signature.
//
// A file may have several signatures, one behind the other: while a manifest is
// being replaced, that of the new one and then that of the old one, so that at no
// moment it is without the right one. Any of them will do. The first is that of the
// manifest which is there, or about to be; minisign looks at no other.
//
// Only signatures over the hash of a file are read, which minisign has made by
// default since 0.10. The legacy kind is over the file itself, which would have
// to be in memory as a whole. Limits: a file of signatures has at most [MaxSize]
// bytes.
package signature

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"

	"aead.dev/minisign"
)

// Suffix is what the name of a file gets to name its signature.
const Suffix = ".minisig"

// MaxSize is the length of the longest file of signatures that is read, in bytes.
// The longest signature that minisign writes has 9,452, ours have some 300.
const MaxSize = 16 << 10

// Why a signature is refused. The errors of this package say more and wrap one
// of them; an error that wraps none comes from reading.
var (
	// ErrMalformed says that it is no signature, or none of a manifest.
	ErrMalformed = errors.New("not a signature that can be used")
	// ErrOtherKey says that another key made it.
	ErrOtherKey = errors.New("signed with another key")
	// ErrChangedComment says that its trusted comment is not what was signed.
	ErrChangedComment = errors.New("the trusted comment of the signature is not the one that was signed")
	// ErrChangedFile says that it belongs to other bytes than those of the file.
	ErrChangedFile = errors.New("the file is not the one that was signed")
	// ErrOlder says that it is right, and too old.
	ErrOlder = errors.New("older than what is accepted")
)

// Sign reads a file to its end and returns its signature, which holds the claims.
// The same file, key and claims give the same bytes. It fails if the file cannot
// be read, for claims that no signature can hold, and for a key that is damaged.
func Sign(key PrivateKey, file io.Reader, c Claims) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if key.key == nil {
		return nil, fmt.Errorf("sign: %w", errNoKey)
	}
	r := minisign.NewReader(file)
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	sig := r.SignWithComments(*key.key, c.String(), "overmount signature, key "+key.ID())
	// The two halves of a key that is damaged make a signature that is wrong, and
	// may tell of the secret: nobody gets it.
	if !r.Verify(*key.Public().key, sig) {
		return nil, errors.New("sign: the secret key is damaged: its halves do not belong together")
	}
	return sig, nil
}

// Verify reads a file to its end and returns what its signature claims, if key
// made the signature and made it of this file. It does not judge the claims. Of
// several signatures, that of this file counts.
//
// Errors: ErrMalformed, ErrOtherKey, ErrChangedComment, all before anything is
// read; ErrChangedFile; that of reading.
func Verify(key PublicKey, file io.Reader, sig []byte) (Claims, error) {
	usable, err := readAll(key, sig)
	if err != nil {
		return Claims{}, err
	}
	r := minisign.NewReader(file)
	if _, err := io.Copy(io.Discard, r); err != nil {
		return Claims{}, err
	}
	for _, u := range usable {
		if r.Verify(*key.key, u.text) {
			return u.claims, nil
		}
	}
	return Claims{}, ErrChangedFile
}

// Read returns what a signature claims, if key made it, of whatever file; of
// several, the first that key made. Errors are those of Verify.
func Read(key PublicKey, sig []byte) (Claims, error) {
	usable, err := readAll(key, sig)
	if err != nil {
		return Claims{}, err
	}
	return usable[0].claims, nil
}

// First returns the first of the signatures in a file.
func First(sig []byte) []byte { return split(sig)[0] }

// Join returns a file with a signature, and behind it those that are in another file,
// of which what is no signature is left out. If that would be longer than MaxSize it
// is the signature alone.
func Join(first, others []byte) []byte {
	all := split(first)
	for _, sig := range split(others) {
		if _, err := parse(sig); err == nil && !bytes.Equal(sig, all[0]) {
			all = append(all, sig)
		}
	}
	joined := append(bytes.Join(all, []byte("\n")), '\n')
	if len(joined) > MaxSize {
		return first
	}
	return joined
}

// split returns the signatures in a file, at least one: four lines each, without the
// end of the last.
func split(sig []byte) (all [][]byte) {
	lines := bytes.SplitAfter(bytes.TrimRight(sig, "\r\n"), []byte("\n"))
	for four := range slices.Chunk(lines, 4) {
		all = append(all, bytes.TrimRight(bytes.Join(four, nil), "\r\n"))
	}
	return all
}

// A usable signature is one by the key that is asked about.
type usable struct {
	text   []byte
	claims Claims
}

// readAll returns the signatures that key made, at least one, or why the first of
// all cannot be used.
func readAll(key PublicKey, sig []byte) ([]usable, error) {
	if len(sig) > MaxSize {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrMalformed, MaxSize)
	}
	var all []usable
	var first error
	for _, text := range split(sig) {
		c, err := read(key, text)
		switch {
		case errors.Is(err, ErrMalformed):
			return nil, err // something else is in the file
		case err == nil:
			all = append(all, usable{text, c})
		case first == nil:
			first = err
		}
	}
	if len(all) == 0 {
		return nil, first
	}
	return all, nil
}

// read reads one signature.
func read(key PublicKey, sig []byte) (Claims, error) {
	s, err := parse(sig)
	if err != nil {
		return Claims{}, err
	}
	if key.key == nil {
		return Claims{}, errNoKey
	}
	if s.KeyID != key.key.ID() {
		return Claims{}, fmt.Errorf("%w: %s, not %s", ErrOtherKey, formatID(s.KeyID), key.ID())
	}
	if !ed25519.Verify(key.bytes(), append(s.Signature[:], s.TrustedComment...), s.CommentSignature[:]) {
		return Claims{}, ErrChangedComment
	}
	c, err := parseClaims(s.TrustedComment)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return c, nil
}

func parse(sig []byte) (*minisign.Signature, error) {
	var s minisign.Signature
	if err := s.UnmarshalText(sig); err != nil {
		return nil, fmt.Errorf("%w: it has not the four lines that minisign writes", ErrMalformed)
	}
	if s.Algorithm != minisign.HashEdDSA {
		return nil, fmt.Errorf("%w: it is a legacy one, over the file instead of its hash: sign again with overmount, or with minisign and without -l", ErrMalformed)
	}
	return &s, nil
}
