package apk

import (
	"cmp"
	"slices"
	"strings"
)

// A version is a package version in parts: 1.2.3b_rc4_p5~6f7e-r8 as apk-tools
// reads it (src/version.c).
type version struct {
	numbers  []string // digits
	letter   string
	suffixes []suffix
	commit   string
	release  string // digits
	rest     string // what no rule explains
}

type suffix struct {
	rank   int
	number string
}

// ranks are the suffixes, in the order of versions; one without is at 0.
var ranks = map[string]int{"alpha": -4, "beta": -3, "pre": -2, "rc": -1, "cvs": 1, "svn": 2, "git": 3, "hg": 4, "p": 5}

// span cuts off the first part of s that is made of what in accepts.
func span(s string, in func(byte) bool) (part, rest string) {
	n := 0
	for n < len(s) && in(s[n]) {
		n++
	}
	return s[:n], s[n:]
}

func digit(b byte) bool { return b >= '0' && b <= '9' }
func lower(b byte) bool { return b >= 'a' && b <= 'z' }

func parseVersion(s string) version {
	var v version
	var part string
	for {
		part, s = span(s, digit)
		v.numbers = append(v.numbers, part)
		if len(s) < 2 || s[0] != '.' || !digit(s[1]) {
			break
		}
		s = s[1:]
	}
	if s != "" && lower(s[0]) {
		v.letter, s = s[:1], s[1:]
	}
	for strings.HasPrefix(s, "_") {
		name, rest := span(s[1:], lower)
		rank, ok := ranks[name]
		if !ok {
			break
		}
		part, s = span(rest, digit)
		v.suffixes = append(v.suffixes, suffix{rank, part})
	}
	if strings.HasPrefix(s, "~") {
		v.commit, s = span(s[1:], func(b byte) bool { return digit(b) || b >= 'a' && b <= 'f' })
	}
	if strings.HasPrefix(s, "-r") {
		v.release, s = span(s[2:], digit)
	}
	v.rest = s
	return v
}

// compareVersions orders versions as apk does.
func compareVersions(a, b string) int {
	v, w := parseVersion(a), parseVersion(b)
	return cmp.Or(
		compareNumbers(v.numbers, w.numbers),
		strings.Compare(v.letter, w.letter),
		compareSuffixes(v.suffixes, w.suffixes),
		strings.Compare(v.commit, w.commit),
		compareDigits(v.release, w.release),
		strings.Compare(v.rest, w.rest),
	)
}

// compareNumbers compares the numbers between dots. But for the first, one with a
// zero in front is compared as a fraction.
func compareNumbers(a, b []string) int {
	for i := range min(len(a), len(b)) {
		c := compareDigits(a[i], b[i])
		if i > 0 && (strings.HasPrefix(a[i], "0") || strings.HasPrefix(b[i], "0")) {
			c = strings.Compare(a[i], b[i])
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// compareDigits compares numbers of any length.
func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// compareSuffixes compares suffixes in turn; the end of the list counts as a
// suffix of rank 0.
func compareSuffixes(a, b []suffix) int {
	for i := range max(len(a), len(b)) {
		var x, y suffix
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if c := cmp.Or(cmp.Compare(x.rank, y.rank), compareDigits(x.number, y.number)); c != 0 {
			return c
		}
	}
	return 0
}

// A dependency is a word of D:, p: or replaces: "name", "name=1", "name>=1",
// "!name".
type dependency struct {
	name     string
	conflict bool
	op       string // =, <, <=, >, >=, ~; empty for any version
	version  string
}

func parseDependency(word string) dependency {
	var d dependency
	word, d.conflict = strings.CutPrefix(word, "!")
	at := strings.IndexAny(word, "<>=~")
	if at < 0 {
		d.name = word
	} else {
		d.name = word[:at]
		ops, _ := span(word[at:], func(b byte) bool { return strings.IndexByte("<>=~", b) >= 0 })
		d.op, d.version = ops, word[at+len(ops):]
		if strings.Contains(ops, "~") {
			d.op = "~"
		}
	}
	d.name, _, _ = strings.Cut(d.name, "@") // of a tagged repository
	return d
}

// allows reports whether a version is one that the dependency is about.
func (d dependency) allows(v string) bool {
	switch c := compareVersions(v, d.version); d.op {
	case "":
		return true
	case "=":
		return c == 0
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	case ">=":
		return c >= 0
	case "~":
		return d.fuzzy(v)
	default:
		return false
	}
}

// fuzzy reports whether a version begins with that of the dependency.
func (d dependency) fuzzy(v string) bool {
	have, want := parseVersion(v), parseVersion(d.version)
	return len(have.numbers) >= len(want.numbers) && slices.Equal(have.numbers[:len(want.numbers)], want.numbers) &&
		(want.letter == "" || have.letter == want.letter)
}
