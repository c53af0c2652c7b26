package signature

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"aead.dev/minisign"
	"golang.org/x/crypto/blake2b"

	"overmount/internal/testenv"
)

var modules = Claims{Kind: "modules", Kver: "6.1.0-56-amd64", Serial: 17}

func generate(t testing.TB) PrivateKey {
	t.Helper()
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, key PrivateKey, file string, c Claims) []byte {
	t.Helper()
	sig, err := Sign(key, strings.NewReader(file), c)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestSignAndVerify(t *testing.T) {
	key := generate(t)
	for _, c := range []Claims{modules, {Serial: 1}, {Kind: "a b=c\n%", Kver: "\x00\xff", Serial: 1<<64 - 1}} {
		for _, file := range []string{"", "x", strings.Repeat("manifest ", 100_000)} {
			sig := sign(t, key, file, c)
			if got, err := Verify(key.Public(), iotest.HalfReader(strings.NewReader(file)), sig); got != c || err != nil {
				t.Errorf("Verify(%d bytes) = %+v, %v, want %+v", len(file), got, err, c)
			}
			if got, err := Read(key.Public(), sig); got != c || err != nil {
				t.Errorf("Read = %+v, %v, want %+v", got, err, c)
			}
			if again := sign(t, key, file, c); !bytes.Equal(again, sig) {
				t.Errorf("Sign again = %q, want %q", again, sig)
			}
		}
	}
}

func TestSignRefuses(t *testing.T) {
	key := generate(t)
	for _, c := range []Claims{{}, {Kind: "modules"}, {Kind: strings.Repeat("x", maxComment), Serial: 1}} {
		if sig, err := Sign(key, strings.NewReader("x"), c); sig != nil || err == nil {
			t.Errorf("Sign(%.40v) = %q, %v, want an error", c, sig, err)
		}
	}
	broken := errors.New("disk on fire")
	if sig, err := Sign(key, iotest.ErrReader(broken), modules); sig != nil || !errors.Is(err, broken) {
		t.Errorf("Sign of what cannot be read = %q, %v, want %v", sig, err, broken)
	}
	if sig, err := Sign(PrivateKey{}, strings.NewReader("x"), modules); sig != nil || err == nil {
		t.Errorf("Sign without a key = %q, %v, want an error", sig, err)
	}
}

// A secret key whose halves do not belong together would give away the secret.
func TestSignRefusesADamagedKey(t *testing.T) {
	text, err := generate(t).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := generate(t).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	const head = "untrusted comment: minisign encrypted secret key\n"
	raw, donor := decodeLine(text), decodeLine(other)
	copy(raw[62+32:62+64], donor[62+32:62+64])
	file := write(t, filepath.Join(t.TempDir(), "key"), []byte(head+encode(raw)))
	key, err := ReadPrivateKey(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if sig, err := Sign(key, strings.NewReader("x"), modules); sig != nil || err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("Sign with a damaged key = %q, %v, want an error that says so", sig, err)
	}
}

// replaced returns s with the first old replaced, which has to be there.
func replaced(t *testing.T, s []byte, old, by string) []byte {
	t.Helper()
	if !bytes.Contains(s, []byte(old)) {
		t.Fatalf("%q does not contain %q", s, old)
	}
	return bytes.Replace(s, []byte(old), []byte(by), 1)
}

func lines(sig []byte) []string { return strings.SplitAfter(string(sig), "\n") }

func TestVerifyRefuses(t *testing.T) {
	key, other := generate(t), generate(t)
	const file = "the manifest"
	good := sign(t, key, file, modules)
	older := sign(t, key, "an older manifest", Claims{"modules", "6.1.0-56-amd64", 3})
	g, o := lines(good), lines(older)
	comment := func(text string) []byte {
		r := minisign.NewReader(strings.NewReader(file))
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		return r.SignWithComments(*key.key, text, "")
	}
	for _, c := range []struct {
		name string
		sig  []byte
		file string
		want error
		says string
	}{
		{"tampered file", good, file + ".", ErrChangedFile, ""},
		{"shortened file", good, file[1:], ErrChangedFile, ""},
		{"signature of another manifest", older, file, ErrChangedFile, ""},
		{"tampered comment", replaced(t, good, "serial=17", "serial=18"), file, ErrChangedComment, ""},
		{"comment of another signature", []byte(g[0] + g[1] + o[2] + o[3]), file, ErrChangedComment, ""},
		{"signature of another comment", []byte(o[0] + o[1] + g[2] + g[3]), file, ErrChangedComment, ""},
		{"word added", replaced(t, good, "serial=17", "serial=17 x"), file, ErrChangedComment, ""},
		{"other key", sign(t, other, file, modules), file, ErrOtherKey, other.ID() + ", not " + key.ID()},
		{"empty", nil, file, ErrMalformed, "four lines"},
		{"three lines", []byte(g[0] + g[1] + g[2]), file, ErrMalformed, "four lines"},
		{"web page", []byte("<html>\n<body>\n</body>\n</html>\n"), file, ErrMalformed, "four lines"},
		{"too long", append(good, make([]byte, MaxSize)...), file, ErrMalformed, "longer than"},
		{"something behind", append(bytes.Clone(good), "more\n"...), file, ErrMalformed, "four lines"},
		{"legacy", minisign.SignWithComments(*key.key, []byte(file), modules.String(), ""), file, ErrMalformed, "legacy"},
		{"minisign's own comment", comment("timestamp:1\tfile:x\thashed"), file, ErrMalformed, "which manifest"},
		{"no serial", comment("overmount kind=modules"), file, ErrMalformed, "serial \"\""},
		{"serial 0", comment("overmount serial=0"), file, ErrMalformed, "serial \"0\""},
		{"serial of 65 bits", comment("overmount serial=18446744073709551616"), file, ErrMalformed, "serial"},
		{"two serials", comment("overmount serial=1 serial=2"), file, ErrMalformed, "twice"},
		{"bad escape", comment("overmount kind=%zz serial=1"), file, ErrMalformed, "kind"},
	} {
		got, err := Verify(key.Public(), strings.NewReader(c.file), c.sig)
		if got != (Claims{}) || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: Verify = %+v, %v, want %v, saying %q", c.name, got, err, c.want, c.says)
		}
	}
}

// While a manifest is replaced, its file of signatures has that of the new one and
// that of the old one.
func TestSeveralSignatures(t *testing.T) {
	key, other := generate(t), generate(t)
	newer, older := Claims{"modules", "6.1", 2}, Claims{"modules", "6.1", 1}
	first, second, foreign := sign(t, key, "new", newer), sign(t, key, "old", older), sign(t, other, "old", older)
	both := Join(first, second)
	for _, c := range []struct {
		name string
		sig  []byte
		file string
		got  Claims
		want error
	}{
		{"the new one", both, "new", newer, nil},
		{"the old one", both, "old", older, nil},
		{"neither", both, "nobody's", Claims{}, ErrChangedFile},
		{"behind that of another key", Join(foreign, second), "old", older, nil},
		{"of another key behind it", Join(first, foreign), "old", Claims{}, ErrChangedFile},
		{"something else behind them", append(bytes.Clone(both), "more\n"...), "new", Claims{}, ErrMalformed},
		{"with the line ends of others", bytes.ReplaceAll(both, []byte("\n"), []byte("\r\n")), "old", older, nil},
	} {
		if got, err := Verify(key.Public(), strings.NewReader(c.file), c.sig); got != c.got || !errors.Is(err, c.want) {
			t.Errorf("%s: Verify = %+v, %v, want %+v, %v", c.name, got, err, c.got, c.want)
		}
	}
	if got, err := Read(key.Public(), both); got != newer || err != nil {
		t.Errorf("Read = %+v, %v, want the claims of the first", got, err)
	}
	if got, err := Verify(key.Public(), strings.NewReader("old"), First(both)); !errors.Is(err, ErrChangedFile) {
		t.Errorf("the first of both accepts the old file: %+v, %v", got, err)
	}
	for what, joined := range map[string][]byte{"itself": Join(first, first), "nothing": Join(first, nil), "no signature": Join(first, []byte("a\nb\nc\nd\n")), "too much": Join(first, bytes.Repeat(second, 100))} {
		if !bytes.Equal(joined, first) {
			t.Errorf("Join with %s = %q, want the signature alone", what, joined)
		}
	}
	if again := Join(first, both); !bytes.Equal(again, both) {
		t.Errorf("Join with both once more = %q, want no change", again)
	}
}

// The two letters that tell a signature of the hash from one of the file are not
// signed themselves. One that calls itself legacy is never read as the other
// kind, where it might be right.
func TestVerifyDoesNotMixUpAlgorithms(t *testing.T) {
	key := generate(t)
	hash := blake2b.Sum512([]byte("the manifest"))
	legacy := minisign.SignWithComments(*key.key, hash[:], modules.String(), "")
	if _, err := Verify(key.Public(), strings.NewReader("the manifest"), legacy); !errors.Is(err, ErrMalformed) {
		t.Errorf("Verify with a legacy signature of the hash = %v, want ErrMalformed", err)
	}
	relabelled := replaced(t, sign(t, key, "the manifest", modules), "\nRU", "\nRW")
	if _, err := Verify(key.Public(), bytes.NewReader(hash[:]), relabelled); !errors.Is(err, ErrMalformed) {
		t.Errorf("Verify of the hash with a signature called legacy = %v, want ErrMalformed", err)
	}
}

func TestVerifyReportsWhatCannotBeRead(t *testing.T) {
	key := generate(t)
	broken := errors.New("disk on fire")
	_, err := Verify(key.Public(), iotest.ErrReader(broken), sign(t, key, "x", modules))
	if !errors.Is(err, broken) {
		t.Errorf("Verify = %v, want %v", err, broken)
	}
}

// For the key of zeros anybody can sign.
func TestTheZeroKeyAcceptsNothing(t *testing.T) {
	sig := sign(t, generate(t), "x", modules)
	if _, err := Verify(PublicKey{}, strings.NewReader("x"), sig); err == nil {
		t.Error("Verify with the zero PublicKey = nil, want an error")
	}
	if _, err := ReadPublicKey(new(minisign.PublicKey).String()); err == nil || !strings.Contains(err.Error(), "zeros") {
		t.Errorf("ReadPublicKey of zeros = %v, want an error that says so", err)
	}
}

// runMinisign runs the program minisign with a line on its standard input.
func runMinisign(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(testenv.Tool(t, "minisign"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustMinisign(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := runMinisign(t, stdin, args...)
	if err != nil {
		t.Fatalf("minisign %q: %v: %s", args, err, out)
	}
	return out
}

// minisign accepts what is signed here, with both forms of the public key.
func TestMinisignVerifies(t *testing.T) {
	testenv.Tool(t, "minisign")
	dir, key := t.TempDir(), generate(t)
	for _, c := range []Claims{modules, {Kind: strings.Repeat("x", 3000), Kver: "a b\n", Serial: 1<<64 - 1}} {
		file := write(t, filepath.Join(dir, "m.fl"), []byte("the manifest"))
		write(t, file+Suffix, sign(t, key, "the manifest", c))
		pub := write(t, filepath.Join(dir, "key.pub"), key.Public().Encode())
		for _, args := range [][]string{{"-p", pub}, {"-P", key.Public().String()}} {
			args = append([]string{"-V", "-H", "-Q", "-m", file}, args...)
			if got := strings.TrimSpace(mustMinisign(t, "", args...)); got != c.String() {
				t.Errorf("minisign %q prints %q, want %q", args, got, c)
			}
		}
	}
	write(t, filepath.Join(dir, "m.fl"), []byte("another manifest"))
	if out, err := runMinisign(t, "", "-V", "-P", key.Public().String(), "-m", filepath.Join(dir, "m.fl")); err == nil {
		t.Errorf("minisign accepts a tampered file: %s", out)
	}
}

// What minisign signs is accepted here, if its comment claims something.
// Of several signatures, minisign looks at the first.
func TestMinisignReadsTheFirst(t *testing.T) {
	testenv.Tool(t, "minisign")
	key, dir := generate(t), t.TempDir()
	file, pub := write(t, filepath.Join(dir, "file"), []byte("new")), write(t, filepath.Join(dir, "pub"), key.Public().Encode())
	write(t, file+Suffix, Join(sign(t, key, "new", modules), sign(t, key, "old", modules)))
	mustMinisign(t, "", "-V", "-p", pub, "-m", file)
}

func TestMinisignSigns(t *testing.T) {
	dir := t.TempDir()
	secret, pub := filepath.Join(dir, "key"), filepath.Join(dir, "key.pub")
	mustMinisign(t, "", "-G", "-W", "-s", secret, "-p", pub)
	key, err := ReadPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, filepath.Join(dir, "m.fl"), []byte("the manifest"))
	for _, c := range []struct {
		args []string
		want Claims
		err  error
	}{
		{[]string{"-t", modules.String()}, modules, nil},
		{[]string{"-t", "overmount  serial=5  colour=red kind=firmware note"}, Claims{Kind: "firmware", Serial: 5}, nil},
		{[]string{"-l", "-t", modules.String()}, Claims{}, ErrMalformed},
		{nil, Claims{}, ErrMalformed},
	} {
		mustMinisign(t, "", append([]string{"-S", "-s", secret, "-m", file}, c.args...)...)
		sig, err := os.ReadFile(file + Suffix)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Verify(key, strings.NewReader("the manifest"), sig)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("Verify after minisign -S %q = %+v, %v, want %+v, %v", c.args, got, err, c.want, c.err)
		}
	}
}

// minisign signs with our keys, plain ones and encrypted ones. One that costs as
// much as a real one is tried in internal/cli.
func TestMinisignReadsOurKeys(t *testing.T) {
	dir, key := t.TempDir(), generate(t)
	file := write(t, filepath.Join(dir, "m.fl"), []byte("the manifest"))
	for name, text := range map[string][]byte{"plain": []byte(secretText(t, key)), "encrypted": encrypted(t, key, "correct horse")} {
		secret := write(t, filepath.Join(dir, name), text)
		mustMinisign(t, "correct horse\n", "-S", "-s", secret, "-m", file, "-t", modules.String())
		sig, err := os.ReadFile(file + Suffix)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Verify(key.Public(), strings.NewReader("the manifest"), sig); got != modules || err != nil {
			t.Errorf("%s: Verify what minisign signed with our key = %+v, %v, want %+v", name, got, err, modules)
		}
	}
}

// A key of minisign signs here.
func TestMinisignsKey(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "m.fl"), []byte("the manifest"))
	secret, pub := filepath.Join(dir, "key"), filepath.Join(dir, "key.pub")
	mustMinisign(t, "", "-G", "-W", "-s", secret, "-p", pub)
	key, err := ReadPrivateKey(secret, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want, err := ReadPublicKey(pub); err != nil || key.Public().String() != want.String() {
		t.Errorf("Public = %s, want %s, %v, what minisign wrote", key.Public(), want, err)
	}
	write(t, file+Suffix, sign(t, key, "the manifest", modules))
	mustMinisign(t, "", "-V", "-p", pub, "-m", file)
}

func FuzzRead(f *testing.F) {
	key := generate(f)
	good := sign(f, key, "x", modules)
	f.Add(good)
	f.Add([]byte(strings.ReplaceAll(string(good), "\n", "\r\n")))
	f.Add(minisign.Sign(*key.key, []byte("x")))
	f.Add(Join(good, sign(f, key, "y", modules)))
	f.Fuzz(func(t *testing.T, sig []byte) {
		got, err := Read(key.Public(), sig)
		if err != nil && (got != (Claims{}) ||
			!errors.Is(err, ErrMalformed) && !errors.Is(err, ErrOtherKey) && !errors.Is(err, ErrChangedComment)) {
			t.Errorf("Read(%q) = %+v, %v, want nothing and one of the errors it lists", sig, got, err)
		}
		if err == nil && got != modules {
			t.Errorf("Read(%q) = %+v, which nobody signed", sig, got)
		}
		if s, err := parse(sig); err == nil {
			text, err := s.MarshalText()
			if err != nil {
				t.Fatal(err)
			}
			again, err := parse(text)
			if err != nil || !again.Equal(*s) {
				t.Errorf("parse(%q) = %v, %v, want what it was", text, again, err)
			}
		}
	})
}

func ExampleSign() {
	key, err := GenerateKey()
	if err != nil {
		panic(err)
	}
	sig, err := Sign(key, strings.NewReader("a manifest"), Claims{Kind: "modules", Kver: "6.1", Serial: 17})
	if err != nil {
		panic(err)
	}
	c, err := Verify(key.Public(), strings.NewReader("a manifest"), sig)
	fmt.Println(c, err)
	_, err = Verify(key.Public(), strings.NewReader("another"), sig)
	fmt.Println(err)
	// Output:
	// overmount kind=modules kver=6.1 serial=17 <nil>
	// the file is not the one that was signed
}
