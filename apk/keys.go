package apk

import (
	"crypto"
	"crypto/rsa"
	_ "crypto/sha1" // for crypto.SHA1
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Keys are the keys that are trusted, by the names of their files, such as
// alpine-devel@lists.alpinelinux.org-616ae350.rsa.pub.
type Keys map[string]*rsa.PublicKey

// maxKey bounds the file of a key, in bytes. One with 4096 bits has 800.
const maxKey = 64 << 10

// Add adds a public key: PEM, of the type PUBLIC KEY, RSA.
func (k Keys) Add(name string, text []byte) error {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return fmt.Errorf("key %s: it is no public key in PEM, as those in /etc/apk/keys are", name)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("key %s: %w", name, err)
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("key %s: it is of the type %T, and Alpine's are of RSA", name, parsed)
	}
	k[name] = key
	return nil
}

// LoadKeys reads the key in a file, or all in the files *.pub of a directory.
func LoadKeys(name string) (Keys, error) {
	files := []string{name}
	if info, err := os.Stat(name); err != nil {
		return nil, err
	} else if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(escapeGlob(name), "*.pub")); err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("%s: there is no key in it, which would be a file *.pub; the package alpine-keys has those of Alpine", name)
		}
	}
	keys := Keys{}
	for _, file := range files {
		text, err := readFile(file, maxKey)
		if err != nil {
			return nil, err
		}
		if err := keys.Add(filepath.Base(file), text); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

func escapeGlob(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s: it has over %d bytes", name, limit)
	}
	return text, err
}

// names lists the keys for people.
func (k Keys) names() string {
	if len(k) == 0 {
		return "no key was given"
	}
	return "the keys given are " + strings.Join(slices.Sorted(maps.Keys(k)), ", ")
}

// A signature is an entry of a signature member.
type signature struct {
	hash crypto.Hash
	key  string
	sig  []byte
}

// parseSignature reads the name of an entry. Algorithms that are not known, such
// as DSA, give a zero hash.
func parseSignature(name string) (signature, bool) {
	rest, ok := strings.CutPrefix(name, ".SIGN.")
	if !ok {
		return signature{}, false
	}
	alg, key, _ := strings.Cut(rest, ".")
	hashes := map[string]crypto.Hash{"RSA": crypto.SHA1, "RSA256": crypto.SHA256, "RSA512": crypto.SHA512}
	return signature{hash: hashes[alg], key: key}, true
}

// verify checks what was signed, as it is compressed. One signature by a known key
// is enough.
func (k Keys) verify(sigs []signature, signed []byte) error {
	if len(sigs) == 0 {
		return fmt.Errorf("%w: it is not signed", ErrUntrusted)
	}
	err := k.check(sigs, signed)
	if !errors.Is(err, errNoKey) {
		return err
	}
	var by []string
	for _, s := range sigs {
		by = append(by, fmt.Sprintf("%.100q", s.key))
	}
	return fmt.Errorf("%w: it is signed with %s, and %s; get the key from the distribution (Alpine's are in the package alpine-keys and at https://alpinelinux.org/keys/), "+
		"look at it, and give it under that name", ErrUntrusted, strings.Join(by, ", "), k.names())
}

// errNoKey says that no signature is by a known key.
var errNoKey = errors.New("no key for it is known")

// check returns nil if there is a right signature, errNoKey if there is none by a
// known key, and otherwise what is wrong with one.
func (k Keys) check(sigs []signature, signed []byte) error {
	err := errNoKey
	for _, s := range sigs {
		key := k[s.key]
		if key == nil || s.hash == 0 {
			continue
		}
		h := s.hash.New()
		h.Write(signed)
		bad := rsa.VerifyPKCS1v15(key, s.hash, h.Sum(nil), s.sig)
		if bad == nil {
			return nil
		}
		err = fmt.Errorf("%w: the signature with the key %s is wrong (%w): it was damaged, or signed by somebody else", ErrUntrusted, s.key, bad)
	}
	return err
}
