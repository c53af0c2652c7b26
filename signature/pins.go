package signature

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strings"

	"overmount/internal/atomicfile"
)

// A Series is the manifests that replace one another.
type Series struct{ Kind, Kver string }

// Pins hold the least serial that is accepted of each series. A series without a
// pin has none.
//
// Who wants to be safe from old manifests keeps Pins in a file ([ReadPins]),
// checks what it is offered, and when it has begun to use a manifest raises the
// pin and writes the file again. Pins are not safe for concurrent use, and the
// file does not mind who else writes it.
type Pins map[Series]uint64

// Check returns ErrOlder for claims with a serial below that of their series.
func (p Pins) Check(c Claims) error { return c.CheckSerial(p[Series{c.Kind, c.Kver}]) }

// Raise pins the serial of claims, if it is above the one of their series, and
// reports whether it was.
func (p Pins) Raise(c Claims) bool {
	s := Series{c.Kind, c.Kver}
	if c.Serial <= p[s] {
		return false
	}
	p[s] = c.Serial
	return true
}

// maxPinFile is the length of the longest file of pins, in bytes.
const maxPinFile = 1 << 20

// ReadPins reads a file of WritePins. A file that does not exist has no pins; one
// with a line that is none, or is cut short, is an error, not a file with fewer.
func ReadPins(file string) (Pins, error) {
	text, err := readSmall(file, maxPinFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Pins{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pinned serials: %w", err)
	}
	p, err := parsePins(text)
	if err != nil {
		return nil, fmt.Errorf("pinned serials %s: %w", file, err)
	}
	return p, nil
}

// WritePins puts pins at the name of a file, whole or not at all: a line KIND KVER
// SERIAL for each, values as in the trusted comment, "-" for one that is empty.
func WritePins(file string, p Pins) error {
	if err := atomicfile.Write(file, p.text(), 0o644); err != nil {
		return fmt.Errorf("pinned serials: %w", err)
	}
	return nil
}

func (p Pins) text() []byte {
	var lines []string
	for s, serial := range p {
		lines = append(lines, fmt.Sprintf("%s %s %d\n", pinWord(s.Kind), pinWord(s.Kver), serial))
	}
	slices.Sort(lines)
	return []byte(strings.Join(lines, ""))
}

// pinWord is a value as a word. The value that is only a dash is not the empty
// one.
func pinWord(s string) string {
	if s == "-" {
		return "%2D"
	}
	return cmp.Or(url.PathEscape(s), "-")
}

func parsePinWord(s string) (string, error) {
	if s == "-" {
		return "", nil
	}
	return url.PathUnescape(s)
}

func parsePins(text []byte) (Pins, error) {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		return nil, errors.New("its last line is cut short")
	}
	p := Pins{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		s, serial, err := parsePin(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if _, twice := p[s]; twice {
			return nil, fmt.Errorf("line %d: it is the second one of its series", n)
		}
		p[s] = serial
	}
	return p, lines.Err()
}

func parsePin(line string) (s Series, serial uint64, err error) {
	words := strings.Split(line, " ")
	if len(words) != 3 {
		return s, 0, errors.New("want KIND KVER SERIAL")
	}
	if s.Kind, err = parsePinWord(words[0]); err != nil {
		return s, 0, err
	}
	if s.Kver, err = parsePinWord(words[1]); err != nil {
		return s, 0, err
	}
	serial, err = parseSerial(words[2])
	return s, serial, err
}
