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
	seen  map[entry]struct{}
	count uint32
}

type entry struct{ key, value string }

// A branch is a node of the trie with all below it.
type branch struct {
	prefix string
	chars  []byte // in ascending order
	kids   []*branch
	values []ranked
	size   int // bytes of this and all below, once Bytes has measured
}

type ranked struct {
	Value
	order uint32 // the how-manieth Insert
}

// Insert puts a value under a key; the same value again if it is there. It
// reports whether the key had this value before, which is what depmod -w warns
// of. Of values with equal priority, the one inserted later comes first.
//
// Insert fails, and leaves the index as it was, for a key of more than 4,095
// bytes, one that is not ASCII, and a key or value with a NUL.
func (b *IndexBuilder) Insert(key, value string, priority uint32) (existed bool, err error) {
	switch {
	case len(key) > maxKey:
		return false, fmt.Errorf("index key %.80q… has %d bytes, over the limit of %d", key, len(key), maxKey)
	case !isASCII(key) || strings.Contains(key, "\x00"):
		return false, fmt.Errorf("index key %q is not ASCII", key)
	case strings.Contains(value, "\x00"):
		return false, fmt.Errorf("index value %q of key %q has a NUL", value, key)
	}
	if b.seen == nil {
		b.seen = make(map[entry]struct{})
	}
	_, existed = b.seen[entry{key, value}]
	b.seen[entry{key, value}] = struct{}{}
	n := b.root.grow(key)
	n.values = append(n.values, ranked{Value{value, priority}, b.count})
	b.count++
	return existed, nil
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
		i, ok := slices.BinarySearch(n.chars, key[0])
		if !ok {
			kid := &branch{prefix: key[1:]}
			n.chars = slices.Insert(n.chars, i, key[0])
			n.kids = slices.Insert(n.kids, i, kid)
			return kid
		}
		n, key = n.kids[i], key[1:]
	}
}

// split cuts the prefix of a branch. What the branch was is its only child then.
func (n *branch) split(at int) {
	kid := *n
	kid.prefix = n.prefix[at+1:]
	*n = branch{prefix: n.prefix[:at], chars: []byte{n.prefix[at]}, kids: []*branch{&kid}}
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

// own returns the length of the node alone.
func (n *branch) own() int {
	size := 0
	if n.prefix != "" {
		size += len(n.prefix) + 1
	}
	if len(n.kids) > 0 {
		size += 2 + 4*(int(n.chars[len(n.chars)-1])-int(n.chars[0])+1)
	}
	if len(n.values) > 0 {
		size += 4
		for _, v := range n.values {
			size += 4 + len(v.Value.Value) + 1
		}
	}
	return size
}

// measure notes the length of each node with all below it.
func (n *branch) measure() int {
	n.size = n.own()
	for _, kid := range n.kids {
		n.size += kid.measure()
	}
	return n.size
}

// write puts a node and all below it at an offset, and returns the reference to
// it. The children follow each other in order of their characters; the node is
// before the first or behind the last of them.
func (n *branch) write(out []byte, at int, l Layout) uint32 {
	own, kids := at, at+n.own()
	if l == Kmod30 {
		own, kids = at+n.size-n.own(), at
	}
	ref, w := uint32(own), out[own:own]
	if n.prefix != "" {
		ref |= hasPrefix
		w = append(append(w, n.prefix...), 0)
	}
	if len(n.kids) > 0 {
		ref |= hasChildren
		first, last := n.chars[0], n.chars[len(n.chars)-1]
		w = append(w, first, last)
		refs := w[len(w) : len(w)+4*int(last-first+1)]
		for i, kid := range n.kids {
			binary.BigEndian.PutUint32(refs[4*int(n.chars[i]-first):], kid.write(out, kids, l))
			kids += kid.size
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
