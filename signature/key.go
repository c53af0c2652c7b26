package signature

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"aead.dev/minisign"
)

// ErrPassword says that the password is not that of the key.
var ErrPassword = errors.New("wrong password")

// Lengths of keys, of their files and of passwords, in bytes.
const (
	publicLen   = 42
	secretLen   = 158
	maxKeyFile  = 16 << 10
	maxPassword = 1023 // minisign's
)

// A PublicKey checks signatures. The zero PublicKey is none, and accepts nothing.
type PublicKey struct{ key *minisign.PublicKey }

// A PrivateKey signs. Printed, it shows its ID only. The zero PrivateKey is none.
type PrivateKey struct{ key *minisign.PrivateKey }

var errNoKey = errors.New("there is no key")

// GenerateKey makes a key.
func GenerateKey() (PrivateKey, error) {
	_, key, err := minisign.GenerateKey(nil)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate key: %w", err)
	}
	return PrivateKey{&key}, nil
}

// Public returns the key that checks what k signs.
func (k PrivateKey) Public() PublicKey {
	public := k.key.Public().(minisign.PublicKey) // always
	return PublicKey{&public}
}

// ID returns the name of the key in hex digits, as minisign shows it. Two keys may
// have the same.
func (k PrivateKey) ID() string { return formatID(k.key.ID()) }

func (k PrivateKey) String() string {
	if k.key == nil {
		return "no secret key"
	}
	return "secret key " + k.ID()
}

// Encode returns the content of a secret key file, encrypted unless the password
// is empty. Encryption takes a second and 1 GiB of memory, as minisign wants it
// against those who guess.
func (k PrivateKey) Encode(password []byte) ([]byte, error) {
	var text []byte
	var err error
	switch {
	case len(password) > maxPassword:
		return nil, fmt.Errorf("the password is longer than %d bytes", maxPassword)
	case len(password) == 0:
		text, err = k.key.MarshalText()
	default:
		text, err = minisign.EncryptKey(string(password), *k.key)
	}
	if err != nil {
		return nil, fmt.Errorf("encode the secret key: %w", err)
	}
	return append(text, '\n'), nil
}

// ReadPrivateKey reads a secret key file. It asks for the password if the file is
// encrypted, and only then; opening takes as long as [PrivateKey.Encode]. Errors:
// that of reading, of password, ErrPassword. None repeats what is in the file.
func ReadPrivateKey(file string, password func() ([]byte, error)) (PrivateKey, error) {
	text, err := readKey(file)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("secret key: %w", err)
	}
	key, err := decodePrivate(text, password)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("secret key %s: %w", file, err)
	}
	return key, nil
}

func decodePrivate(text []byte, password func() ([]byte, error)) (PrivateKey, error) {
	switch n := len(decodeLine(text)); n {
	case secretLen:
	case publicLen:
		return PrivateKey{}, errors.New("it is a public key; signing needs the secret one")
	default:
		return PrivateKey{}, errors.New("it is not a secret key of minisign")
	}
	if !minisign.IsEncrypted(text) {
		key := new(minisign.PrivateKey)
		if key.UnmarshalText(text) != nil {
			return PrivateKey{}, errors.New("it is a kind of secret key that is not known here")
		}
		return PrivateKey{key}, nil
	}
	secret, err := password()
	if err != nil {
		return PrivateKey{}, err
	}
	key, err := minisign.DecryptKey(string(secret), text)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("%w, or the file is damaged", ErrPassword)
	}
	return PrivateKey{&key}, nil
}

// ID returns the name of the key in hex digits, as minisign shows it. Two keys may
// have the same.
func (k PublicKey) ID() string { return formatID(k.key.ID()) }

// String returns the key as ReadPublicKey and "minisign -P" take it: 56 characters
// of base64.
func (k PublicKey) String() string { return k.key.String() }

// Encode returns the content of a public key file.
func (k PublicKey) Encode() []byte {
	return fmt.Appendf(nil, "untrusted comment: minisign public key %s\n%s\n", k.ID(), k)
}

// bytes returns the key as Ed25519 knows it.
func (k PublicKey) bytes() ed25519.PublicKey {
	return decodeLine([]byte(k.String()))[publicLen-ed25519.PublicKeySize:]
}

// ReadPublicKey takes the text of a public key, or the name of a file that holds
// one. What is both is the key.
func ReadPublicKey(textOrFile string) (PublicKey, error) {
	if len(decodeLine([]byte(textOrFile))) == publicLen {
		key, err := parsePublic([]byte(textOrFile))
		if err != nil {
			return PublicKey{}, fmt.Errorf("public key: %w", err)
		}
		return key, nil
	}
	text, err := readKey(textOrFile)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	key, err := parsePublic(text)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key %s: %w", textOrFile, err)
	}
	return key, nil
}

func parsePublic(text []byte) (PublicKey, error) {
	if len(decodeLine(text)) == secretLen {
		return PublicKey{}, errors.New("it is a secret key; checking needs the public one")
	}
	k := PublicKey{new(minisign.PublicKey)}
	if k.key.UnmarshalText(text) != nil {
		return PublicKey{}, errors.New("it is not a public key of minisign")
	}
	// A placeholder; anybody could sign for it.
	if !slices.ContainsFunc(k.bytes(), func(b byte) bool { return b != 0 }) {
		return PublicKey{}, errors.New("it is all zeros, not a public key")
	}
	return k, nil
}

// decodeLine returns the bytes of a key, with or without the comment before it;
// nil if it is none.
func decodeLine(text []byte) []byte {
	if comment, rest, ok := bytes.Cut(text, []byte("\n")); ok && bytes.HasPrefix(comment, []byte("untrusted comment: ")) {
		text = rest
	}
	raw, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil
	}
	return raw
}

// readKey reads the file of a key. A name that may be a key itself, which someone
// gave in place of a file, is not repeated.
func readKey(file string) ([]byte, error) {
	text, err := readSmall(file, maxKeyFile)
	if err != nil && len(decodeLine([]byte(file))) >= ed25519.PublicKeySize {
		return nil, errors.New("what was given cannot be opened as a file; it looks like a key itself and is not shown")
	}
	return text, err
}

// readSmall reads a file that has no more than limit bytes.
func readSmall(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("read %s: it is longer than %d bytes", file, limit)
	}
	return text, err
}

func formatID(id uint64) string { return strings.ToUpper(strconv.FormatUint(id, 16)) }
