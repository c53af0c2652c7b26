package signature

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Claims are what the maker of a manifest says of it in its signature.
type Claims struct {
	Kind   string // modules, firmware or tree, as in the manifest's tag; may be empty
	Kver   string // the kernel version that it is for, as in the tag; may be empty
	Serial uint64 // from 1; of two manifests for one Kind and Kver the newer has more
}

// maxComment keeps the trusted comment below minisign's limit of 8,192 bytes.
const maxComment = 4096

// mark is the word that begins the trusted comment.
const mark = "overmount"

// String returns the trusted comment.
func (c Claims) String() string {
	s := mark
	if c.Kind != "" {
		s += " kind=" + url.PathEscape(c.Kind)
	}
	if c.Kver != "" {
		s += " kver=" + url.PathEscape(c.Kver)
	}
	return s + " serial=" + strconv.FormatUint(c.Serial, 10)
}

// check returns why no signature can hold the claims.
func (c Claims) check() error {
	if c.Serial == 0 {
		return errors.New("a serial begins with 1")
	}
	if len(c.String()) > maxComment {
		return fmt.Errorf("kind and kver are longer than %d bytes", maxComment)
	}
	return nil
}

// CheckSerial returns ErrOlder if the serial is below the least that is accepted.
func (c Claims) CheckSerial(least uint64) error {
	if c.Serial < least {
		return fmt.Errorf("%w: its serial is %d, the least is %d", ErrOlder, c.Serial, least)
	}
	return nil
}

// parseClaims reads a trusted comment.
func parseClaims(comment string) (Claims, error) {
	words := strings.Fields(comment)
	if len(words) == 0 || words[0] != mark {
		return Claims{}, errors.New(`it does not say which manifest it is for: its trusted comment has to begin with "overmount"`)
	}
	values := map[string]string{}
	for _, word := range words[1:] {
		name, value, ok := strings.Cut(word, "=")
		if !ok || name != "kind" && name != "kver" && name != "serial" {
			continue
		}
		if _, twice := values[name]; twice {
			return Claims{}, fmt.Errorf("its trusted comment says %s twice", name)
		}
		plain, err := url.PathUnescape(value)
		if err != nil {
			return Claims{}, fmt.Errorf("its trusted comment has a %s that cannot be read: %w", name, err)
		}
		values[name] = plain
	}
	serial, err := parseSerial(values["serial"])
	if err != nil {
		return Claims{}, fmt.Errorf("its trusted comment: %w", err)
	}
	c := Claims{Kind: values["kind"], Kver: values["kver"], Serial: serial}
	return c, c.check()
}

func parseSerial(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("serial %.40q is not a number from 1 to 2^64-1", s)
	}
	return n, nil
}
