package apk

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Limits of an index, in bytes.
const (
	maxIndexFile = 32 << 20
	maxIndex     = 128 << 20
	maxPackage   = 8 << 30 // the file of a package
)

// A Package is what an index, or a package itself, says of a package.
type Package struct {
	Name        string
	Version     string
	Arch        string
	Description string
	Origin      string // the source package
	Checksum    string // of the control member: Q1 or Q2 and base64; empty in a package itself
	Size        int64  // of the file, in bytes; 0 in a package itself
	Installed   int64  // what it says it takes when it is installed, in bytes
	Depends     []string
	Provides    []string
	Built       time.Time

	ProviderPriority int
}

// String returns name and version as in the name of the file.
func (p *Package) String() string { return p.Name + "-" + p.Version }

// An Index is the list of a repository's packages.
type Index struct {
	Description string // of the repository; may be empty
	Packages    []*Package
}

// ReadIndex reads APKINDEX.tar.gz, which must be signed by one of the keys.
func ReadIndex(r io.Reader, keys Keys) (*Index, error) {
	file, err := io.ReadAll(io.LimitReader(r, maxIndexFile+1))
	if err != nil {
		return nil, err
	}
	if len(file) > maxIndexFile {
		return nil, fmt.Errorf("it has over the limit of %d bytes", maxIndexFile)
	}
	return readIndex(file, keys)
}

func readIndex(file []byte, keys Keys) (*Index, error) {
	if err := checkMagic(file); err != nil {
		return nil, err
	}
	br := bufio.NewReader(bytes.NewReader(file))
	signed, first, err := readMember(br, maxControl)
	if errors.Is(err, errTooLong) {
		return nil, keys.verify(nil, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("the first member: %w", err)
	}
	sigs, err := signatures(first)
	if err != nil {
		return nil, err
	}
	if err := keys.verify(sigs, file[len(signed):]); err != nil {
		if len(sigs) == 0 {
			return nil, err
		}
		return nil, explain(err, sigs, keys, file[len(signed):])
	}
	_, plain, err := readMember(br, maxIndex)
	if err != nil {
		return nil, fmt.Errorf("the index member: %w", err)
	}
	if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the index member, although it is signed")
	}
	return parseTar(plain)
}

// explain tells a file that was cut off or added to from one that somebody else
// signed: the signature is over all that follows it.
func explain(err error, sigs []signature, keys Keys, rest []byte) error {
	br := bufio.NewReader(bytes.NewReader(rest))
	member, bad := copyMember(io.Discard, br, maxIndex)
	switch {
	case bad != nil:
		return fmt.Errorf("%w; the index member: %w", err, bad)
	case len(member) < len(rest) && keys.check(sigs, member) == nil:
		return fmt.Errorf("%w: %d bytes follow the index member, which is right without them", ErrUntrusted, len(rest)-len(member))
	}
	return err
}

func parseTar(plain []byte) (*Index, error) {
	text, err := entry(plain, "APKINDEX")
	if err != nil {
		return nil, fmt.Errorf("the index member: %w", err)
	}
	if text == nil {
		return nil, errors.New("there is no APKINDEX in it")
	}
	x, err := parseIndex(text)
	if err != nil {
		return nil, fmt.Errorf("APKINDEX: %w", err)
	}
	description, err := entry(plain, "DESCRIPTION")
	if err != nil {
		return nil, fmt.Errorf("the index member: %w", err)
	}
	x.Description = strings.TrimSpace(string(description[:min(len(description), 1000)]))
	return x, nil
}

// parseIndex reads the records of an index. Fields that are not known are passed
// over.
func parseIndex(text []byte) (*Index, error) {
	x := &Index{}
	var p *Package
	finish := func() error {
		if p == nil {
			return nil
		}
		if err := p.check(); err != nil {
			return err
		}
		x.Packages = append(x.Packages, p)
		p = nil
		return nil
	}
	for number := 1; len(text) > 0; number++ {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		text = rest
		if len(line) == 0 {
			if err := finish(); err != nil {
				return nil, fmt.Errorf("the record before line %d: %w", number, err)
			}
			continue
		}
		if len(line) < 2 || line[1] != ':' {
			return nil, fmt.Errorf("line %d: %.40q has not the form X:value", number, line)
		}
		if p == nil {
			p = &Package{}
		}
		if err := p.set(line[0], string(line[2:])); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	if err := finish(); err != nil {
		return nil, fmt.Errorf("the last record: %w", err)
	}
	return x, nil
}

// set takes a field of a record.
func (p *Package) set(field byte, value string) (err error) {
	switch field {
	case 'C':
		p.Checksum = value
	case 'P':
		p.Name = value
	case 'V':
		p.Version = value
	case 'A':
		p.Arch = value
	case 'T':
		p.Description = value
	case 'o':
		p.Origin = value
	case 'S':
		p.Size, err = parseSize(value)
	case 'I':
		p.Installed, err = parseSize(value)
	case 'D':
		p.Depends = strings.Fields(value)
	case 'p':
		p.Provides = strings.Fields(value)
	case 't':
		p.Built, err = parseTime(value)
	case 'k':
		p.ProviderPriority, err = strconv.Atoi(value)
	}
	if err != nil {
		return fmt.Errorf("field %c: %w", field, err)
	}
	return nil
}

func parseSize(value string) (int64, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%.40q is no size", value)
	}
	return n, nil
}

func parseTime(value string) (time.Time, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 || n > 1<<40 {
		return time.Time{}, fmt.Errorf("%.40q is no time in seconds since 1970", value)
	}
	return time.Unix(n, 0), nil
}

// check tells what is wrong with a record of an index.
func (p *Package) check() error {
	if err := p.checkName(); err != nil {
		return err
	}
	if err := checkWord("architecture", p.Arch); p.Arch != "" && err != nil {
		return err
	}
	if _, err := p.checksum(nil); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if p.Size > maxPackage {
		return fmt.Errorf("%s: it claims a file of %d bytes", p, p.Size)
	}
	return nil
}

func (p *Package) checkName() error {
	if err := checkWord("name", p.Name); err != nil {
		return err
	}
	return checkWord("version", p.Version)
}

// checkWord tells why a word cannot be a part of the name of a file.
func checkWord(what, word string) error {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._+~-", r)
	}
	if word == "" || len(word) > 120 || word[0] == '.' || word[0] == '-' || strings.IndexFunc(word, bad) >= 0 {
		return fmt.Errorf("%.140q is no %s of a package", word, what)
	}
	return nil
}

// checksum reports whether a control member is the one that the index means.
func (p *Package) checksum(control []byte) (bool, error) {
	kind, text := p.Checksum[:min(2, len(p.Checksum))], p.Checksum[min(2, len(p.Checksum)):]
	want, err := base64.StdEncoding.DecodeString(text)
	switch {
	case err == nil && kind == "Q1" && len(want) == sha1.Size:
		got := sha1.Sum(control)
		return bytes.Equal(got[:], want), nil
	case err == nil && kind == "Q2" && len(want) == sha256.Size:
		got := sha256.Sum256(control)
		return bytes.Equal(got[:], want), nil
	}
	return false, fmt.Errorf("%.80q is no checksum: want Q1 and a SHA-1, or Q2 and a SHA-256, in base64", p.Checksum)
}
