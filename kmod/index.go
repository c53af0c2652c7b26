package kmod

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// The binary index, modules.*.bin. Numbers are 32 bits, big-endian, nothing is
// aligned.
//
//	file   magic, version, reference to the root
//	node   [prefix NUL]  [first, last, last-first+1 references]  [count, count × (priority, value NUL)]
//
// A reference is the offset of a node in the file in the low 28 bits, and in the
// high 4 which of the three parts the node has. A reference of 0 is no node. The
// key of a node is that of its parent, the child's character, and its prefix:
// the file is a trie over ASCII.
const (
	indexMagic   = 0xb007f457
	indexVersion = 2<<16 | 1 // readers look at the upper half
	indexHeader  = 12

	hasPrefix   = 1 << 31
	hasValues   = 1 << 30
	hasChildren = 1 << 29
	offsetMask  = 1<<28 - 1

	ascii = 0x80

	// maxKey is the length of the longest key. The longest that depmod writes
	// is shorter than PATH_MAX.
	maxKey = 4095
)

// A Value is what an index holds under a key. A key may have several; those with
// a lower Priority come first. In the indexes of depmod the priority is the
// position of the module in the tree, and the value the name of the module or
// its line of modules.dep.
type Value struct {
	Value    string
	Priority uint32
}

// An Index is an open binary index: a map from keys of ASCII to values. Use
// [OpenIndex]. Concurrent use is safe.
//
// No content of a file makes its methods panic or go in circles: none reads a
// byte twice, unless Search is given a name with wildcards. Of a damaged index
// they return what can be read; Check tells.
type Index struct {
	data string
	root uint32
}

// OpenIndex reads the header of a binary index. It fails for what is not an
// index, or one of a version that kmod would not read. An empty file is not an
// index: depmod leaves one behind when it had nothing to read. OpenIndex keeps a
// copy of data.
func OpenIndex(data []byte) (*Index, error) {
	x := &Index{data: string(data)}
	if len(data) < indexHeader {
		return nil, fmt.Errorf("binary index has %d bytes, fewer than its header of %d", len(data), indexHeader)
	}
	if magic := x.number(0); magic != indexMagic {
		return nil, fmt.Errorf("not a binary index: it starts with %08x, want %08x", magic, uint32(indexMagic))
	}
	if v := x.number(4); v>>16 != indexVersion>>16 {
		return nil, fmt.Errorf("binary index has version %d.%d, want %d", v>>16, v&0xffff, indexVersion>>16)
	}
	x.root = x.number(8)
	return x, nil
}

// Lookup returns the first value of a key.
func (x *Index) Lookup(key string) (value string, ok bool) {
	for ref := x.root; len(key) <= maxKey; key = key[1:] {
		n, err := x.node(ref)
		if err != nil {
			return "", false
		}
		if key, ok = strings.CutPrefix(key, n.prefix); !ok {
			return "", false
		}
		if key == "" {
			w := walk{x: x, left: len(x.data)}
			for v := range w.values(n) {
				return v.Value, true
			}
			return "", false
		}
		if ref = x.child(n, key[0]); ref == 0 {
			return "", false
		}
	}
	return "", false
}

// Search takes the keys for patterns, and returns the values of those that match
// name, as fnmatch(3) has it ([Match]). The values come in ascending priority,
// those of equal priority as kmod has them. Like kmod, Search compares what
// stands before the first *, ? or [ of a pattern byte by byte, so that a
// backslash there is a plain character, and finds a key twice if name itself has
// such a character where the key does.
func (x *Index) Search(name string) []Value {
	var found []Value
	for _, h := range x.search(name, 0) {
		found = append(found, h.Value)
	}
	return found
}

// search is Search with the pattern that each value was found by, as long as all
// patterns have no more bytes than room; those behind are empty.
func (x *Index) search(name string, room int) []hit {
	// Below a character that is a wildcard in name and key it looks twice.
	looks := 1 + strings.Count(name, "*") + strings.Count(name, "?") + strings.Count(name, "[")
	s := search{walk: walk{x: x, left: looks * len(x.data)}, name: name, room: room}
	s.literal(name)
	// Whatever is found later comes before its equals.
	slices.Reverse(s.found)
	slices.SortStableFunc(s.found, func(a, b hit) int { return cmp.Compare(a.Priority, b.Priority) })
	return s.found
}

// All yields every key with each of its values, the keys in order of their
// bytes, the values of one key in the order of the index.
func (x *Index) All() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		w := walk{x: x, left: len(x.data)}
		if n, ok := w.node(x.root); ok {
			w.all(n, text(n.prefix), yield)
		}
	}
}

// Check reads the whole index, and returns an error unless it is one that kmod
// could have written: every reference leads to a node, all strings end, the
// values of a key are in order, and the nodes fill the file without a gap and
// without meeting, so that none is reached twice. It cannot see a changed
// letter in a key or value, nor a changed priority.
func (x *Index) Check() error {
	if v := x.number(4); v != indexVersion {
		return fmt.Errorf("binary index has version %d.%d, want %d.%d", v>>16, v&0xffff, indexVersion>>16, indexVersion&0xffff)
	}
	c := checker{x: x, left: len(x.data)}
	if err := c.node(x.root, 0); err != nil {
		return err
	}
	slices.SortFunc(c.spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	at := indexHeader
	for _, s := range append(c.spans, span{start: len(x.data)}) {
		if s.start < at {
			return fmt.Errorf("binary index: the node at byte %d begins inside of another", s.start)
		}
		if s.start > at {
			return fmt.Errorf("binary index: bytes %d to %d belong to no node", at, s.start-1)
		}
		at = s.end
	}
	return nil
}

// A node, as far as it can be read in a time that does not depend on the length
// of the file.
type node struct {
	prefix      string
	first, last byte // if there are children
	children    string
	hasValues   bool
	count       uint32 // of values
	start       int
	values      int // offset of the first value, or of the end
}

// node reads the node that a reference leads to.
func (x *Index) node(ref uint32) (node, error) {
	at := int(ref & offsetMask)
	n := node{start: at}
	bad := func(what string) (node, error) {
		return node{}, fmt.Errorf("binary index: node at byte %d: %s", n.start, what)
	}
	switch {
	case at < indexHeader || at > len(x.data):
		return bad("it is outside of the file")
	case ref&^(hasPrefix|hasValues|hasChildren|offsetMask) != 0:
		return bad("unknown flag")
	case ref&(hasValues|hasChildren) == 0 && ref != x.root:
		return bad("it has neither values nor children")
	}
	if ref&hasPrefix != 0 {
		window := x.data[at:min(at+maxKey+1, len(x.data))]
		end := strings.IndexByte(window, 0)
		if end < 0 {
			return bad("its prefix does not end")
		}
		n.prefix = window[:end]
		at += end + 1
	}
	if ref&hasChildren != 0 {
		if at+2 > len(x.data) {
			return bad("it is cut short")
		}
		n.first, n.last = x.data[at], x.data[at+1]
		at += 2
		if n.first == 0 || n.first > n.last || n.last >= ascii {
			return bad(fmt.Sprintf("it has children from %#02x to %#02x", n.first, n.last))
		}
		size := 4 * (int(n.last) - int(n.first) + 1)
		if at+size > len(x.data) {
			return bad("it is cut short")
		}
		n.children = x.data[at : at+size]
		at += size
	}
	if ref&hasValues != 0 {
		if at+4 > len(x.data) {
			return bad("it is cut short")
		}
		n.hasValues, n.count = true, x.number(at)
		at += 4
	}
	n.values = at
	return n, nil
}

// child returns the reference to the child of a node for one character, 0 if
// there is none.
func (x *Index) child(n node, c byte) uint32 {
	if n.children == "" || c < n.first || c > n.last {
		return 0
	}
	return number(n.children[4*int(c-n.first):])
}

// value reads the value at an offset, and returns the offset behind it.
func (x *Index) value(at int) (v Value, end int, err error) {
	if at+4 <= len(x.data) {
		v.Priority = x.number(at)
		at += 4
		if n := strings.IndexByte(x.data[at:], 0); n >= 0 {
			v.Value = x.data[at : at+n]
			return v, at + n + 1, nil
		}
	}
	return Value{}, 0, fmt.Errorf("binary index: value at byte %d does not end", at)
}

func (x *Index) number(at int) uint32 { return number(x.data[at:]) }

func number(s string) uint32 {
	return uint32(s[0])<<24 | uint32(s[1])<<16 | uint32(s[2])<<8 | uint32(s[3])
}

// text returns s with room for what keys usually add to it: all children of a
// node write in the same place.
func text(s string) []byte { return append(make([]byte, 0, 256), s...) }

// A walk reads nodes until it has read as many bytes as it may: those of the
// file, as no walk over a sound index needs to read a byte twice.
type walk struct {
	x    *Index
	left int
}

// node returns the node that a reference leads to, or false if that is unsound.
func (w *walk) node(ref uint32) (node, bool) {
	n, err := w.x.node(ref)
	w.left -= n.values - n.start
	return n, err == nil && w.left >= 0
}

// child returns the child of a node for one character, or false if there is none
// or it is unsound.
func (w *walk) child(n node, c int) (node, bool) {
	ref := w.x.child(n, byte(c))
	if ref == 0 {
		return node{}, false
	}
	return w.node(ref)
}

// values yields the values of a node.
func (w *walk) values(n node) iter.Seq[Value] {
	return func(yield func(Value) bool) {
		at := n.values
		for range n.count {
			v, end, err := w.x.value(at)
			if err != nil {
				return
			}
			if w.left -= end - at; w.left < 0 || !yield(v) {
				return
			}
			at = end
		}
	}
}

// all yields what is at and below a node with this key.
func (w *walk) all(n node, key []byte, yield func(string, Value) bool) bool {
	if len(key) > maxKey {
		return true
	}
	if n.count > 0 {
		k := string(key)
		for v := range w.values(n) {
			if !yield(k, v) {
				return false
			}
		}
	}
	for c := int(n.first); c <= int(n.last); c++ {
		kid, ok := w.child(n, c)
		if ok && !w.all(kid, append(append(key, byte(c)), kid.prefix...), yield) {
			return false
		}
	}
	return true
}

// A search collects the values of patterns that match a name.
type search struct {
	walk
	name  string
	room  int // for patterns
	found []hit
}

// A hit is a value and the pattern that it stands under.
type hit struct {
	Value
	pattern string
}

// literal goes down the trie as the characters of name say, up to the first
// pattern on the way, and looks aside for patterns that begin at each step.
func (s *search) literal(name string) {
	for ref := s.x.root; ; {
		n, ok := s.node(ref)
		if !ok {
			return
		}
		if wild := strings.IndexAny(n.prefix, "*?["); wild >= 0 {
			if rest, ok := strings.CutPrefix(name, n.prefix[:wild]); ok {
				s.patterns(n, text(n.prefix[wild:]), rest)
			}
			return
		}
		if name, ok = strings.CutPrefix(name, n.prefix); !ok {
			return
		}
		for _, wild := range "*?[" {
			if kid, ok := s.child(n, int(wild)); ok {
				s.patterns(kid, append(text(string(wild)), kid.prefix...), name)
			}
		}
		if name == "" {
			s.add(n, nil, "")
			return
		}
		if ref = s.x.child(n, name[0]); ref == 0 {
			return
		}
		name = name[1:]
	}
}

// patterns looks at and below a node for patterns that match a name. The node's
// own is given, from where the name begins.
func (s *search) patterns(n node, pattern []byte, name string) {
	if len(pattern) > maxKey {
		return
	}
	for c := int(n.first); c <= int(n.last); c++ {
		if kid, ok := s.child(n, c); ok {
			s.patterns(kid, append(append(pattern, byte(c)), kid.prefix...), name)
		}
	}
	if n.count > 0 && match(pattern, name) {
		s.add(n, pattern, name)
	}
}

// add takes the values of a node, whose pattern is what stands before rest in the
// name, and then what is given.
func (s *search) add(n node, pattern []byte, rest string) {
	whole := ""
	if before := len(s.name) - len(rest); before+len(pattern) <= s.room {
		whole = s.name[:before] + string(pattern)
		s.room -= len(whole)
	}
	for v := range s.values(n) {
		s.found = append(s.found, hit{v, whole})
	}
}

// A checker reads a whole index, and notes which bytes each node has.
type checker struct {
	x     *Index
	left  int
	spans []span
}

type span struct{ start, end int }

func (c *checker) node(ref uint32, key int) error {
	n, err := c.x.node(ref)
	if err != nil {
		return err
	}
	bad := func(what string, args ...any) error {
		return fmt.Errorf("binary index: node at byte %d: "+what, append([]any{n.start}, args...)...)
	}
	if key += len(n.prefix); key > maxKey {
		return bad("it has a key over %d bytes", maxKey)
	}
	if !isASCII(n.prefix) {
		return bad("its prefix %q is not ASCII", n.prefix)
	}
	if n.hasValues && n.count == 0 {
		return bad("it has no values where it says so")
	}
	end, err := c.values(n)
	if err != nil {
		return err
	}
	if c.left -= end - n.start; c.left < 0 {
		return bad("it, or one before it, is reached twice")
	}
	c.spans = append(c.spans, span{n.start, end})
	for char := n.first; n.children != "" && char <= n.last; char++ {
		kid := c.x.child(n, char)
		if kid == 0 {
			if char == n.first || char == n.last {
				return bad("it has no child for its first or last character")
			}
			continue
		}
		if err := c.node(kid, key+1); err != nil {
			return err
		}
	}
	return nil
}

// values returns the offset behind the values of a node.
func (c *checker) values(n node) (int, error) {
	at, before := n.values, uint32(0)
	for range n.count {
		v, end, err := c.x.value(at)
		if err != nil {
			return 0, err
		}
		if v.Priority < before {
			return 0, fmt.Errorf("binary index: value at byte %d has priority %d, behind one with %d", at, v.Priority, before)
		}
		at, before = end, v.Priority
	}
	return at, nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= ascii {
			return false
		}
	}
	return true
}
