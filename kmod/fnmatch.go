package kmod

// Match reports whether a pattern matches the whole of name: fnmatch(pattern,
// name, 0) of C, in the "C" locale.
//
//	?        any byte
//	*        any bytes, none too; also / and a leading dot
//	[abc-f]  one of these; [!...] and [^...] none of these; ] is plain if it is the
//	         first, - at either end; [:alpha:] and the other classes of C
//	\c       c, outside and inside of brackets
//	[        a plain byte, if no ] follows
//
// A backslash at the end, and a class that C does not know, match nothing. Not
// supported are collating symbols and equivalence classes, [.x.] and [=x=]:
// their characters are plain here. No alias of a kernel has them.
//
// The time is at most the product of both lengths.
func Match(pattern, name string) bool { return match([]byte(pattern), name) }

func match(pattern []byte, name string) bool {
	rest := name
	// Only the last star need ever be tried again: the part before it matched
	// as little as it could.
	var behind []byte // the pattern behind the last star
	var retry string  // where behind was tried last
	for {
		if len(pattern) > 0 && pattern[0] == '*' {
			pattern = pattern[1:]
			behind, retry = pattern, rest
			if len(pattern) == 0 {
				return true
			}
			continue
		}
		if rest == "" {
			return len(pattern) == 0
		}
		if n, ok := matchByte(pattern, rest[0]); ok {
			pattern, rest = pattern[n:], rest[1:]
			continue
		}
		if behind == nil {
			return false
		}
		retry = retry[1:]
		pattern, rest = behind, retry
	}
}

// matchByte matches one byte of a name against the beginning of a pattern that
// is no star, and returns how long that is.
func matchByte(pattern []byte, c byte) (n int, ok bool) {
	if len(pattern) == 0 {
		return 0, false
	}
	switch pattern[0] {
	case '?':
		return 1, true
	case '\\':
		return 2, len(pattern) > 1 && pattern[1] == c
	case '[':
		b := bracket{pattern: pattern, at: 1}
		switch b.match(c) {
		case bracketYes:
			return b.at, true
		case bracketNo:
			return 0, false
		}
	}
	return 1, pattern[0] == c
}

// A bracket is a bracket expression on its way to be read.
type bracket struct {
	pattern []byte
	at      int
}

type bracketResult int

const (
	bracketNo      bracketResult = iota
	bracketYes                   // at is behind the expression
	bracketLiteral               // it does not end: the [ is a plain byte
)

// peek returns the byte n behind the next one, 0 at the end.
func (b *bracket) peek(n int) byte {
	if b.at+n < len(b.pattern) {
		return b.pattern[b.at+n]
	}
	return 0
}

// next returns the next byte and goes on, 0 at the end.
func (b *bracket) next() byte {
	c := b.peek(0)
	if c != 0 {
		b.at++
	}
	return c
}

// match matches one byte of a name against the expression, up to the first
// member that has it.
func (b *bracket) match(c byte) bracketResult {
	not := b.peek(0) == '!' || b.peek(0) == '^'
	if not {
		b.at++
	}
	for first := true; ; first = false {
		m := b.next()
		var in bool
		switch {
		case m == 0:
			return bracketLiteral
		case m == ']' && !first:
			return result(not)
		case m == '[' && b.class() > 0:
			var known bool
			if in, known = inClass(string(b.pattern[b.at+1:b.at+b.class()-2]), c); !known {
				return bracketNo
			}
			b.at += b.class()
		default:
			var ok bool
			if in, ok = b.member(m, c); !ok {
				return bracketNo
			}
		}
		if in {
			return b.skip(!not)
		}
	}
}

func result(ok bool) bracketResult {
	if ok {
		return bracketYes
	}
	return bracketNo
}

// member reads the rest of a member that begins with m, a byte or a range, and
// reports whether it has c. It is not ok if the pattern ends within.
func (b *bracket) member(m, c byte) (in, ok bool) {
	if m == '\\' {
		m = b.next()
	}
	switch {
	case m == 0:
		return false, false
	case b.peek(0) != '-' || b.peek(1) == ']':
		return m == c, true
	case b.peek(1) == 0:
		return m == c, m == c // so has it glibc: [[- matches [[-, [a- nothing
	}
	b.at++
	high := b.next()
	if high == '\\' {
		high = b.next()
	}
	return m <= c && c <= high, high != 0
}

// class returns the length of the rest of a class, [:name:], of which the first
// bracket has been read; 0 if it is none.
func (b *bracket) class() int {
	if b.peek(0) != ':' {
		return 0
	}
	n := 1
	for 'a' <= b.peek(n) && b.peek(n) < 'z' {
		n++
	}
	if b.peek(n) != ':' || b.peek(n+1) != ']' {
		return 0
	}
	return n + 2
}

// skip goes behind the expression, whose result is known unless it does not end.
func (b *bracket) skip(ok bool) bracketResult {
	for {
		switch b.next() {
		case 0:
			return bracketLiteral
		case ']':
			return result(ok)
		case '\\':
			if b.next() == 0 {
				return bracketNo
			}
		case '[':
			b.at += b.class()
		}
	}
}

// inClass reports whether c is in a character class of the "C" locale.
func inClass(name string, c byte) (in, known bool) {
	lower, upper, digit := 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9'
	graph := ' ' < c && c < 0x7f
	switch name {
	case "alpha":
		return lower || upper, true
	case "alnum":
		return lower || upper || digit, true
	case "lower":
		return lower, true
	case "upper":
		return upper, true
	case "digit":
		return digit, true
	case "xdigit":
		return digit || 'a' <= c|0x20 && c|0x20 <= 'f', true
	case "blank":
		return c == ' ' || c == '\t', true
	case "space":
		return c == ' ' || '\t' <= c && c <= '\r', true
	case "cntrl":
		return c < ' ' || c == 0x7f, true
	case "graph":
		return graph, true
	case "print":
		return graph || c == ' ', true
	case "punct":
		return graph && !lower && !upper && !digit, true
	}
	return false, false
}
