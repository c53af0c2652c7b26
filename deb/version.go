package deb

import (
	"cmp"
	"strings"
)

// Compare compares two versions of Debian packages, [epoch:]upstream[-revision]:
// less than 0 if a is older. The order is that of deb-version(7): epochs are
// numbers; in the rest runs of digits are numbers, a tilde comes before the end,
// the end before letters, letters before everything else.
func Compare(a, b string) int {
	ae, au, ar := splitVersion(a)
	be, bu, br := splitVersion(b)
	return cmp.Or(compareNumbers(ae, be), comparePart(au, bu), comparePart(ar, br))
}

func splitVersion(v string) (epoch, upstream, revision string) {
	upstream = strings.TrimSpace(v)
	if before, after, ok := strings.Cut(upstream, ":"); ok {
		epoch, upstream = before, after
	}
	if i := strings.LastIndexByte(upstream, '-'); i >= 0 {
		upstream, revision = upstream[:i], upstream[i+1:]
	}
	return epoch, upstream, revision
}

// compareNumbers compares runs of digits of any length. None is zero.
func compareNumbers(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

func comparePart(a, b string) int {
	for a != "" || b != "" {
		for i := 0; weight(a, i) != 0 || weight(b, i) != 0; i++ {
			if c := cmp.Compare(weight(a, i), weight(b, i)); c != 0 {
				return c
			}
		}
		var na, nb string
		na, a = nextNumber(a)
		nb, b = nextNumber(b)
		if c := compareNumbers(na, nb); c != 0 {
			return c
		}
	}
	return 0
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// weight orders the bytes that are no digits. Digits and the end weigh nothing.
func weight(s string, i int) int {
	if i >= len(s) || isDigit(s[i]) {
		return 0
	}
	switch c := s[i]; {
	case c == '~':
		return -1
	case c|0x20 >= 'a' && c|0x20 <= 'z':
		return int(c)
	default:
		return int(c) + 256
	}
}

// nextNumber returns the first run of digits, and what follows it.
func nextNumber(s string) (digits, rest string) {
	i := 0
	for i < len(s) && !isDigit(s[i]) {
		i++
	}
	j := i
	for j < len(s) && isDigit(s[j]) {
		j++
	}
	return s[i:j], s[j:]
}
