package kmod

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// An IndexBuilder makes a binary index. Its zero value is empty and ready. It is
// not safe for concurrent use.
type IndexBuilder struct {
	root  branch
	count uint32
}

// A branch is a node of the trie with all below it.
type branch struct {
	prefix string
	kids   []edge // in order of their characters
	values []ranked
	seen   map[string]bool // the values, once they are many
	own    int             // bytes of the node in the file, once measured
	size   int             // bytes of it and all below
}

type edge struct {
	char byte
	to   *branch
}

type ranked struct {
	Value
	order uint32 // the how-manieth Insert
}

// Insert puts a value under a key; once more if the key has it already. It
// reports whether the key had this value before, which is what depmod -w warns
// of. Of values with equal priority, the one inserted later comes first.
//
// Insert fails, and leaves the index as it was, for a key that is over 4,095
// bytes or not ASCII, and for a key or value with a NUL.
func (b *IndexBuilder) Insert(key, value string, priority uint32) (existed bool, err error) {
	switch {
	case len(key) > maxKey:
		return false, fmt.Errorf("index key %.80q... has %d bytes, over the limit of %d", key, len(key), maxKey)
	case !isASCII(key):
		return false, fmt.Errorf("index key %q is not ASCII", key)
	case strings.IndexByte(key, 0) >= 0:
		return false, fmt.Errorf("index key %q has a NUL", key)
	case strings.IndexByte(value, 0) >= 0:
		return false, fmt.Errorf("value %q of index key %q has a NUL", value, key)
	}
	b.count++
	return b.root.grow(key).add(ranked{Value{value, priority}, b.count}), nil
}

// grow returns the branch of a key, made if need be.
func (n *branch) grow(key string) *branch {
	for {
		common := 0
		for common < len(n.prefix) && common < len(key) && n.prefix[common] == key[common] {
			common++
		}
		if common < len(n.prefix) {
			n.split(common)
		}
		if key = key[common:]; key == "" {
			return n
		}
		i, ok := slices.BinarySearchFunc(n.kids, key[0], func(e edge, c byte) int { return int(e.char) - int(c) })
		if !ok {
			kid := &branch{prefix: key[1:]}
			n.kids = slices.Insert(n.kids, i, edge{key[0], kid})
			return kid
		}
		n, key = n.kids[i].to, key[1:]
	}
}

// split cuts the prefix of a branch. What the branch was is its only child then.
func (n *branch) split(at int) {
	kid := *n
	kid.prefix = n.prefix[at+1:]
	*n = branch{prefix: n.prefix[:at], kids: []edge{{n.prefix[at], &kid}}}
}

// add puts a value to those of a branch, and reports whether it was there.
func (n *branch) add(v ranked) (existed bool) {
	const many = 16
	if len(n.values) >= many {
		if n.seen == nil {
			n.seen = make(map[string]bool)
			for _, v := range n.values {
				n.seen[v.Value.Value] = true
			}
		}
		existed = n.seen[v.Value.Value]
		n.seen[v.Value.Value] = true
	} else {
		existed = slices.ContainsFunc(n.values, func(o ranked) bool { return o.Value.Value == v.Value.Value })
	}
	n.values = append(n.values, v)
	return existed
}

// Bytes returns the index as a file. It fails if that would be over 256 MiB,
// which is as far as the references of the format reach.
func (b *IndexBuilder) Bytes(l Layout) ([]byte, error) {
	size := indexHeader + b.root.measure()
	if size > offsetMask {
		return nil, fmt.Errorf("binary index would have %d bytes, over the limit of %d", size, offsetMask)
	}
	out := make([]byte, size)
	binary.BigEndian.PutUint32(out, indexMagic)
	binary.BigEndian.PutUint32(out[4:], indexVersion)
	binary.BigEndian.PutUint32(out[8:], b.root.write(out, indexHeader, l))
	return out, nil
}

// measure notes the length of each node, alone and with all below it.
func (n *branch) measure() int {
	n.own = 0
	if n.prefix != "" {
		n.own += len(n.prefix) + 1
	}
	if len(n.kids) > 0 {
		n.own += 2 + 4*n.span()
	}
	if len(n.values) > 0 {
		n.own += 4
		for _, v := range n.values {
			n.own += 4 + len(v.Value.Value) + 1
		}
	}
	n.size = n.own
	for _, kid := range n.kids {
		n.size += kid.to.measure()
	}
	return n.size
}

// span returns how many references a node has for its children and the gaps
// between them.
func (n *branch) span() int {
	return int(n.kids[len(n.kids)-1].char) - int(n.kids[0].char) + 1
}

// write puts a node and all below it at an offset, and returns the reference to
// it. The children follow each other in order of their characters; the node is
// before the first of them or behind the last.
func (n *branch) write(out []byte, at int, l Layout) uint32 {
	own, kids := at, at+n.own
	if l == Kmod30 {
		own, kids = at+n.size-n.own, at
	}
	ref, w := uint32(own), out[own:own]
	if n.prefix != "" {
		ref |= hasPrefix
		w = append(append(w, n.prefix...), 0)
	}
	if len(n.kids) > 0 {
		ref |= hasChildren
		first := n.kids[0].char
		w = append(w, first, n.kids[len(n.kids)-1].char)
		refs := w[len(w) : len(w)+4*n.span()]
		for _, kid := range n.kids {
			binary.BigEndian.PutUint32(refs[4*int(kid.char-first):], kid.to.write(out, kids, l))
			kids += kid.to.size
		}
		w = w[:len(w)+len(refs)]
	}
	if len(n.values) > 0 {
		ref |= hasValues
		n.writeValues(w)
	}
	return ref
}

func (n *branch) writeValues(w []byte) {
	slices.SortFunc(n.values, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(b.order, a.order))
	})
	w = binary.BigEndian.AppendUint32(w, uint32(len(n.values)))
	for _, v := range n.values {
		w = binary.BigEndian.AppendUint32(w, v.Priority)
		w = append(append(w, v.Value.Value...), 0)
	}
}
