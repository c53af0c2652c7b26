package signature

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/scrypt"
)

func encode(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) }

func secretText(t testing.TB, key PrivateKey) string {
	t.Helper()
	text, err := key.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestReadPublicKey(t *testing.T) {
	dir, want := t.TempDir(), generate(t).Public()
	file := write(t, filepath.Join(dir, "key.pub"), want.Encode())
	bare := write(t, filepath.Join(dir, "bare.pub"), []byte(want.String()))
	dos := write(t, filepath.Join(dir, "dos.pub"), []byte(strings.ReplaceAll(string(want.Encode()), "\n", "\r\n")))
	for _, from := range []string{want.String(), " " + want.String() + "\n", string(want.Encode()), file, bare, dos} {
		got, err := ReadPublicKey(strings.TrimLeft(from, " "))
		if err != nil || got.String() != want.String() {
			t.Errorf("ReadPublicKey(%q) = %v, %v, want %v", from, got, err, want)
		}
	}
}

// No error shows a secret key, whatever was mistaken for what.
func TestKeysThatAreNone(t *testing.T) {
	dir, key := t.TempDir(), generate(t)
	secret := secretText(t, key)
	_, bare, _ := strings.Cut(strings.TrimSpace(secret), "\n")
	secretFile := write(t, filepath.Join(dir, "secret"), []byte(secret))
	publicFile := write(t, filepath.Join(dir, "public"), key.Public().Encode())
	long := write(t, filepath.Join(dir, "long"), []byte(strings.Repeat("A", maxKeyFile+1)))
	junk := write(t, filepath.Join(dir, "junk"), []byte("a key, believe me\n"))
	raw := decodeLine([]byte(secret))
	raw[2] = 0x77
	odd := write(t, filepath.Join(dir, "odd"), []byte(encode(raw)))
	ask := func() ([]byte, error) { return nil, errors.New("asked for a password") }
	private := func(file string) error { _, err := ReadPrivateKey(file, ask); return err }
	public := func(text string) error { _, err := ReadPublicKey(text); return err }
	for _, c := range []struct {
		name string
		read func(string) error
		from string
		says string
	}{
		{"public", public, secretFile, "is a secret key"},
		{"public", public, secret, "not shown"},
		{"public", public, bare, "not shown"},
		{"public", public, bare[4:60], "not a public key"},
		{"public", public, bare[4:100], "not shown"},
		{"public", public, junk, "not a public key"},
		{"public", public, long, "longer than"},
		{"public", public, "", "no such file"},
		{"public", public, dir, "is a directory"},
		{"private", private, publicFile, "is a public key"},
		{"private", private, secret, "not shown"},
		{"private", private, bare, "not shown"},
		{"private", private, junk, "not a secret key"},
		{"private", private, long, "longer than"},
		{"private", private, odd, "not known here"},
	} {
		err := c.read(c.from)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s key from %.20q = %v, want an error with %q", c.name, c.from, err, c.says)
		}
		if err != nil && (strings.Contains(err.Error(), bare[20:40]) || strings.Contains(err.Error(), bare[120:140])) {
			t.Errorf("%s key from %.20q: the error shows the key: %v", c.name, c.from, err)
		}
	}
	if err := public(filepath.Join(dir, "nosuch.pub")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadPublicKey of a file that is not there = %v, want fs.ErrNotExist", err)
	}
}

func TestPrivateKeyIsNotPrinted(t *testing.T) {
	key := generate(t)
	raw := decodeLine([]byte(secretText(t, key)))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, x := range []any{key, &key, []PrivateKey{key}, struct{ K PrivateKey }{key}} {
			got := fmt.Sprintf(verb, x)
			for _, part := range [][]byte{raw[62:70], raw[86:94]} {
				for _, as := range []string{"%v", "%x", "%d", "%#v"} {
					if s := strings.Trim(fmt.Sprintf(as, part), "[]{}"); strings.Contains(got, s) {
						t.Errorf("Sprintf(%q, %T) = %q, shows %q", verb, x, got, s)
					}
				}
			}
		}
	}
	if got, want := fmt.Sprint(key), "secret key "+key.ID(); got != want {
		t.Errorf("Sprint(key) = %q, want %q", got, want)
	}
}

// encrypted returns a secret key file as [PrivateKey.Encode] writes it, but with
// scrypt's cost at the least that libsodium takes: the real one is 1 GiB and a
// second for each use.
func encrypted(t testing.TB, key PrivateKey, password string) []byte {
	t.Helper()
	const ops, mem = 1 << 15, 1 << 24 // libsodium makes them N = 1024, r = 8, p = 1
	raw := decodeLine([]byte(secretText(t, key)))
	stream, err := scrypt.Key([]byte(password), raw[6:38], 1024, 8, 1, secretLen-54)
	if err != nil {
		t.Fatal(err)
	}
	copy(raw[2:], "Sc")
	binary.LittleEndian.PutUint64(raw[38:], ops)
	binary.LittleEndian.PutUint64(raw[46:], mem)
	sum := blake2b.Sum256(append([]byte("Ed"), raw[54:54+72]...))
	copy(raw[54+72:], sum[:])
	subtle.XORBytes(raw[54:], raw[54:], stream)
	return []byte("untrusted comment: minisign encrypted secret key\n" + encode(raw) + "\n")
}

func TestPassword(t *testing.T) {
	key := generate(t)
	text := encrypted(t, key, "correct horse")
	file := write(t, filepath.Join(t.TempDir(), "key"), text)
	ask := func(password string, err error) func() ([]byte, error) {
		return func() ([]byte, error) { return []byte(password), err }
	}
	if got, err := ReadPrivateKey(file, ask("correct horse", nil)); err != nil || got.Public().String() != key.Public().String() {
		t.Errorf("ReadPrivateKey = %v, %v, want %v", got, err, key)
	}
	if _, err := ReadPrivateKey(file, ask("battery staple", nil)); !errors.Is(err, ErrPassword) || strings.Contains(err.Error(), "battery") {
		t.Errorf("ReadPrivateKey with a wrong password = %v, want ErrPassword without it", err)
	}
	noTerminal := errors.New("no terminal")
	if _, err := ReadPrivateKey(file, ask("", noTerminal)); !errors.Is(err, noTerminal) {
		t.Errorf("ReadPrivateKey without a password = %v, want %v", err, noTerminal)
	}
	if _, err := key.Encode(make([]byte, maxPassword+1)); err == nil {
		t.Error("Encode with a password that minisign cannot read = nil, want an error")
	}
}

func FuzzReadPublicKey(f *testing.F) {
	key := generate(f).Public()
	f.Add(key.Encode())
	f.Add([]byte(key.String()))
	f.Add([]byte("untrusted comment: minisign public key\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := parsePublic(text)
		if err != nil {
			if k.key != nil {
				t.Errorf("parsePublic(%q) = %v, %v, want no key", text, k, err)
			}
			return
		}
		if again, err := parsePublic(k.Encode()); err != nil || again.String() != k.String() {
			t.Errorf("parsePublic(%q) = %v, %v, want %v", k.Encode(), again, err, k)
		}
	})
}

// Only keys that are not encrypted: the others cost a second each.
func FuzzDecodePrivate(f *testing.F) {
	f.Add([]byte(secretText(f, generate(f))))
	f.Add([]byte("untrusted comment: minisign encrypted secret key\n"))
	noPassword := errors.New("no password")
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := decodePrivate(text, func() ([]byte, error) { return nil, noPassword })
		if (err == nil) != (k.key != nil) {
			t.Fatalf("decodePrivate(%q) = %v, %v, want a key or an error", text, k, err)
		}
		if err == nil {
			if sig, err := Sign(k, strings.NewReader("x"), modules); err == nil {
				if _, err := Verify(k.Public(), strings.NewReader("x"), sig); err != nil {
					t.Errorf("Verify what the key of %q signed = %v", text, err)
				}
			}
		}
	})
}
