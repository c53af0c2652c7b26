package deb

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"overmount/internal/decompress"
)

// An Entry is what an index says of a package.
type Entry struct {
	Control
	Filename string // below the root of the repository, as in fs.ValidPath
	Size     int64  // of the file, in bytes
	SHA256   string // of the file, in hex
}

// Match reports whether one of the patterns, as of path.Match, matches the name of
// a package.
func Match(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		return ok && err == nil
	})
}

// ReadIndex reads an index of packages, a file called Packages, plain, and returns
// what is about those that the patterns match.
func ReadIndex(r io.Reader, patterns []string) ([]Entry, error) {
	var found []Entry
	for s, err := range stanzas(r) {
		if err != nil {
			return nil, err
		}
		name, ok := s["package"]
		if ok && !Match(patterns, name) {
			continue
		}
		e, err := s.entry()
		if err != nil {
			return nil, fmt.Errorf("package %q: %w", shorten(name), err)
		}
		found = append(found, e)
	}
	return found, nil
}

func (s stanza) entry() (Entry, error) {
	c, err := s.control()
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Control: c, Filename: strings.TrimPrefix(s["filename"], "./"), SHA256: strings.ToLower(s["sha256"])}
	if !fs.ValidPath(e.Filename) || e.Filename == "." {
		return e, fmt.Errorf("the field Filename is %q, which could lead out of the repository", shorten(e.Filename))
	}
	if e.Size, err = strconv.ParseInt(s["size"], 10, 64); err != nil || e.Size <= 0 {
		return e, fmt.Errorf("the field Size is %q", shorten(s["size"]))
	}
	if !isSHA256(e.SHA256) {
		return e, fmt.Errorf("the field SHA256 is %q", shorten(e.SHA256))
	}
	return e, nil
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32
}

// Newest returns the newest version of each package, sorted by name. It fails for a
// package of which two files have the same version, and for a pattern that matches
// none.
func Newest(entries []Entry, patterns []string) ([]Entry, error) {
	best := map[string]Entry{}
	for _, e := range entries {
		was, ok := best[e.Package]
		c := Compare(e.Version, was.Version)
		if !ok || c > 0 {
			best[e.Package] = e
		} else if c == 0 && e.SHA256 != was.SHA256 {
			return nil, fmt.Errorf("there are two packages %s %s, with the SHA-256 %s and %s: choose one architecture or one repository",
				e.Package, e.Version, was.SHA256, e.SHA256)
		}
	}
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("the pattern %q is none: %w", p, err)
		}
		if !matchesAny(p, best) {
			return nil, fmt.Errorf("no package matches %q", p)
		}
	}
	var list []Entry
	for _, name := range slices.Sorted(maps.Keys(best)) {
		list = append(list, best[name])
	}
	return list, nil
}

func matchesAny(pattern string, packages map[string]Entry) bool {
	for name := range packages {
		if Match([]string{pattern}, name) {
			return true
		}
	}
	return false
}

// A release is the file that names the indexes of a suite.
type release struct {
	fields stanza
	files  map[string]listed // by path below the directory of the suite
}

// A listed is a file as a release lists it.
type listed struct {
	sha256 string
	size   int64
}

func readRelease(text []byte) (*release, error) {
	r := &release{files: map[string]listed{}}
	for s, err := range stanzas(bytes.NewReader(text)) {
		if err != nil {
			return nil, err
		}
		if r.fields != nil {
			return nil, errors.New("it has several paragraphs")
		}
		r.fields = s
	}
	sums := strings.TrimSpace(r.fields["sha256"])
	if sums == "" {
		return nil, errors.New("it lists no file with a SHA-256")
	}
	for line := range strings.SplitSeq(sums, "\n") {
		f := strings.Fields(line)
		if len(f) != 3 || !isSHA256(f[0]) || !fs.ValidPath(f[2]) {
			return nil, fmt.Errorf("the line %q lists no file", shorten(line))
		}
		size, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("the line %q lists no file", shorten(line))
		}
		r.files[f[2]] = listed{strings.ToLower(f[0]), size}
	}
	return r, nil
}

// indexes returns the paths of the plain indexes of an architecture.
func (r *release) indexes(components []string, arch string) []string {
	archs := []string{arch}
	if r.fields["no-support-for-architecture-all"] != "Packages" && arch != "all" {
		archs = append(archs, "all")
	}
	var list []string
	for _, c := range r.components(components) {
		for _, a := range archs {
			if name := path.Join(c, "binary-"+a, "Packages"); r.lists(name) {
				list = append(list, name)
			}
		}
	}
	return list
}

// components returns the components that are wanted; of none, all.
func (r *release) components(wanted []string) []string {
	if len(wanted) > 0 {
		return slices.Clip(wanted)
	}
	// Debian's security archive calls them updates/main, and has main.
	var all []string
	for c := range strings.FieldsSeq(r.fields["components"]) {
		all = append(all, c, path.Base(c))
	}
	return slices.Compact(all)
}

// lists reports whether the release lists an index, plain or compressed.
func (r *release) lists(plain string) bool {
	return fs.ValidPath(plain) && slices.ContainsFunc(indexSuffixes[:], func(suffix string) bool {
		_, ok := r.files[plain+suffix]
		return ok
	})
}

// indexSuffixes are the ways in which an index may be compressed, the smallest
// first.
var indexSuffixes = [...]string{".xz", ".zst", ".gz", ".lz4", ""}

// maxIndex bounds a plain index, in bytes. That of Debian 12 has 50 MB.
const maxIndex = 1 << 30

// A reading is how an index is read.
type reading struct {
	most int64 // bytes that the plain form may have
	// parse returns what keeps what it has read, which is done once, and if all of the
	// index was right.
	parse func(io.Reader) (keep func(), err error)
}

// entriesTo is how an index of packages is read.
func entriesTo(all *[]Entry, patterns []string) reading {
	return reading{maxIndex, func(in io.Reader) (func(), error) {
		some, err := ReadIndex(in, patterns)
		return func() { *all = append(*all, some...) }, err
	}}
}

// readListed reads an index from a file called name, and compares it with what the
// release lists: the file as it is, if it is listed, or its plain form. strict says
// that one of them must be listed.
func (r *release) readListed(name, plainName string, f io.Reader, how reading, strict bool) error {
	whole, wholeListed := r.files[name]
	plain, plainListed := r.files[plainName]
	if strict && !wholeListed && !plainListed {
		return errors.New("the release does not list it")
	}
	file := newSum(f, whole.size)
	_, format := decompress.OfName(name)
	z, err := decompress.NewReader(format, file)
	if err != nil {
		return err
	}
	defer z.Close()
	content := newSum(limited(z, how.most), plain.size)
	keep, err := how.parse(content)
	if e := errors.Join(content.drain(), file.drain()); e != nil {
		return e
	}
	if wholeListed && !file.is(whole) || plainListed && !content.is(plain) {
		return errors.New("it is not the one that the release lists: damaged, or of another time; try again when the mirror is in sync")
	}
	if err == nil {
		keep()
	}
	return err
}

func (s *summedReader) is(l listed) bool { return s.n == l.size && s.hex() == l.sha256 }
