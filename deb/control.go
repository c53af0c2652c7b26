package deb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// maxStanza bounds a paragraph of fields, in bytes. The largest one of Debian 12, its
// Release, has 150 KB.
const maxStanza = 4 << 20

// A stanza is a paragraph of fields (deb822(5)) by their names in lower case.
// Values keep their line breaks.
type stanza map[string]string

// stanzas reads paragraphs with an empty line between them. It ends after an
// error.
func stanzas(r io.Reader) iter.Seq2[stanza, error] {
	return func(yield func(stanza, error) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxStanza)
		p := &stanzaParser{s: stanza{}}
		for lines.Scan() {
			line := strings.TrimRight(lines.Text(), " \t\r")
			if line != "" {
				if err := p.add(line); err != nil {
					yield(nil, err)
					return
				}
				continue
			}
			if len(p.s) > 0 && !yield(p.s, nil) {
				return
			}
			p = &stanzaParser{s: stanza{}}
		}
		if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
			yield(nil, errLongStanza)
		} else if err != nil {
			yield(nil, err)
		} else if len(p.s) > 0 {
			yield(p.s, nil)
		}
	}
}

var errLongStanza = fmt.Errorf("a paragraph of fields has over the limit of %d bytes", maxStanza)

type stanzaParser struct {
	s    stanza
	last string
	size int
}

func (p *stanzaParser) add(line string) error {
	if p.size += len(line) + 1; p.size > maxStanza {
		return errLongStanza
	}
	if line[0] == ' ' || line[0] == '\t' {
		if p.last == "" {
			return fmt.Errorf("the line %q continues no field", shorten(line))
		}
		p.s[p.last] += "\n" + line[1:]
		return nil
	}
	if line[0] == '#' {
		return nil
	}
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" || strings.ContainsAny(name, " \t") {
		return fmt.Errorf("the line %q is no field", shorten(line))
	}
	name = strings.ToLower(name)
	if _, repeated := p.s[name]; repeated {
		return fmt.Errorf("it has the field %s twice", shorten(name))
	}
	p.last, p.s[name] = name, strings.TrimSpace(value)
	return nil
}

// shorten makes what a stranger wrote fit into a message.
func shorten(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// A Control is what a package says of itself.
type Control struct {
	Package, Version, Architecture string

	Source   string     // the package that it was built from
	Depends  []Relation // with Pre-Depends
	Replaces []Relation // whose files it may overwrite
}

// String returns the name, version and architecture, as in the name of the file.
func (c *Control) String() string { return c.Package + "_" + c.Version + "_" + c.Architecture }

// A Relation names a package, and which versions of it. Of alternatives only the
// first is kept.
type Relation struct {
	Package string
	Op      string // <<, <=, =, >=, >> or empty for all versions
	Version string
}

// Includes reports whether a package of that name and version is meant.
func (r Relation) Includes(name, version string) bool {
	if r.Package != name {
		return false
	}
	c := Compare(version, r.Version)
	switch r.Op {
	case "<<":
		return c < 0
	case "<=", "<":
		return c <= 0
	case "=":
		return c == 0
	case ">=", ">":
		return c >= 0
	case ">>":
		return c > 0
	}
	return true
}

// relations reads a field such as Depends.
func relations(field string) []Relation {
	var list []Relation
	for item := range strings.SplitSeq(field, ",") {
		item, _, _ = strings.Cut(item, "|")
		name, version, _ := strings.Cut(item, "(")
		name, _, _ = strings.Cut(strings.TrimSpace(name), ":") // of any architecture
		if name == "" {
			continue
		}
		r := Relation{Package: name}
		version, _, _ = strings.Cut(version, ")")
		version = strings.TrimSpace(version)
		r.Version = strings.TrimSpace(strings.TrimLeft(version, "<=>"))
		r.Op = strings.TrimSpace(version[:len(version)-len(strings.TrimLeft(version, "<=>"))])
		list = append(list, r)
	}
	return list
}

// control takes the fields of a package, and refuses those that could not be part
// of a file's name.
func (s stanza) control() (Control, error) {
	c := Control{Package: s["package"], Version: s["version"], Architecture: s["architecture"], Source: s["source"]}
	for _, f := range []struct{ name, value, also string }{
		{"Package", c.Package, "+-."}, {"Version", c.Version, "+-.~:"}, {"Architecture", c.Architecture, "-"},
	} {
		if f.value == "" {
			return c, fmt.Errorf("the field %s is missing", f.name)
		}
		if len(f.value) > 255 || !isWord(f.value, f.also) {
			return c, fmt.Errorf("the field %s is %q, which is not allowed", f.name, shorten(f.value))
		}
	}
	c.Depends = append(relations(s["pre-depends"]), relations(s["depends"])...)
	c.Replaces = relations(s["replaces"])
	return c, nil
}

// isWord reports whether a value begins with a letter or digit and has only these
// and some others.
func isWord(s, also string) bool {
	for i, c := range []byte(s) {
		letter := isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || strings.IndexByte(also, c) < 0) {
			return false
		}
	}
	return true
}
