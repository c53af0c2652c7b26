package signature

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPins(t *testing.T) {
	p := Pins{}
	old, firmware := Claims{"modules", "6.1.0-56-amd64", 16}, Claims{"firmware", "", 1}
	if err := p.Check(old); err != nil {
		t.Errorf("Check(%v) without pins = %v", old, err)
	}
	if !p.Raise(modules) || p.Raise(modules) || p.Raise(old) {
		t.Errorf("Raise does not say when it raises: %v", p)
	}
	if err := p.Check(old); !errors.Is(err, ErrOlder) || !strings.Contains(err.Error(), "serial is 16, the least is 17") {
		t.Errorf("Check(%v) = %v, want ErrOlder with both serials", old, err)
	}
	for _, c := range []Claims{modules, firmware, {"modules", "6.1.0-57-amd64", 1}, {"", "6.1.0-56-amd64", 1}} {
		if err := p.Check(c); err != nil {
			t.Errorf("Check(%v) = %v, want nil", c, err)
		}
	}
}

func TestPinFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pins")
	if p, err := ReadPins(file); p == nil || len(p) != 0 || err != nil {
		t.Fatalf("ReadPins of no file = %v, %v, want no pins", p, err)
	}
	want := Pins{
		{"modules", "6.1.0-56-amd64"}: 17, {"firmware", ""}: 1 << 63, {"", ""}: 1, {"-", "-"}: 2, {"a b", "\n%2D"}: 3,
	}
	if err := WritePins(file, want); err != nil {
		t.Fatal(err)
	}
	const text = "%2D %2D 2\n- - 1\na%20b %0A%252D 3\nfirmware - 9223372036854775808\nmodules 6.1.0-56-amd64 17\n"
	if got, err := os.ReadFile(file); err != nil || string(got) != text {
		t.Errorf("WritePins wrote %q, %v, want %q", got, err, text)
	}
	if got, err := ReadPins(file); err != nil || !cmp.Equal(got, want) {
		t.Errorf("ReadPins = %v, %v, want %v", got, err, want)
	}
}

func TestPinFilesThatAreNone(t *testing.T) {
	for _, text := range []string{
		"modules 6.1", "modules 6.1 1", "modules 6.1\n", "modules 6.1 0\n", "modules 6.1 -1\n", "modules  6.1 1\n",
		"modules 6.1 1 2\n", "%zz 6.1 1\n", "a %z 1\n", "a b 1\na b 2\n", "\n", "a b 1\n\n", "\x00",
		strings.Repeat("x", maxPinFile+1),
	} {
		file := write(t, filepath.Join(t.TempDir(), "pins"), []byte(text))
		if p, err := ReadPins(file); p != nil || err == nil {
			t.Errorf("ReadPins of %.40q = %v, %v, want an error", text, p, err)
		}
	}
	if p, err := ReadPins(t.TempDir()); p != nil || err == nil {
		t.Errorf("ReadPins of a directory = %v, %v, want an error", p, err)
	}
}

func FuzzParsePins(f *testing.F) {
	f.Add("modules 6.1.0-56-amd64 17\nfirmware - 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePins([]byte(text))
		if err != nil {
			return
		}
		if again, err := parsePins(p.text()); err != nil || !cmp.Equal(again, p) {
			t.Errorf("parsePins(%q) = %v, %v, want %v", p.text(), again, err, p)
		}
	})
}
