// Package manifest reads, writes and edits flists: the SQLite files, by
// convention with the extension .fl, that describe a file tree, the blocks that
// hold its content, and the stores that hold the blocks.
//
// The format is that of threefoldtech/rfs, with additions that other readers
// ignore; docs/format.md tells it byte by byte. SQLite stays inside this
// package. [Open] checks a whole manifest and gives a [Manifest], a compact
// table in memory that no longer needs the file. [Create] gives a [Writer],
// whose manifest appears at its name whole or not at all. [Edit] changes tags
// and routes.
//
// What is read is hostile: a manifest that names a file "..", loops, lacks
// blocks or claims more than its file could hold is refused with an
// [*InvalidError] that names the row. What is accepted satisfies: every node is
// reached from the root over directories, each name is one path component,
// each regular file has exactly the blocks that its size needs, and each
// symlink has a target.
//
// Costs: Open reads every row once, about a microsecond each; a Manifest takes
// about 60 bytes for each node, 64 for each block, and the names.
package manifest

import (
	"fmt"
	"io/fs"
	"iter"
	"path"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
)

// An Ino names a node of a manifest. The root is 1; the others follow without
// gaps, so a manifest's nodes are 1 to Len. It is the row's rank by the
// column ino, which for every manifest written by rfs or by this package is
// the column itself.
type Ino uint32

// Root is the Ino of the root directory.
const Root Ino = 1

// Attr is what a manifest says of a node, in Linux terms.
type Attr struct {
	Mode  uint32 // st_mode: type bits and 07777
	Nlink uint32 // names of this node; for a directory 2 and one for each sub-directory
	UID   uint32
	GID   uint32
	Rdev  uint64 // for devices, as the C library encodes it: see unix.Major
	Size  int64  // bytes; for a directory whatever the packer noted
	Mtime int64  // seconds since 1970; the format has no fractions
	Ctime int64
}

// Type returns the type bits of the mode, one of unix.S_IFREG and the like.
func (a Attr) Type() uint32 { return a.Mode & unix.S_IFMT }

// IsDir reports whether the node is a directory.
func (a Attr) IsDir() bool { return a.Type() == unix.S_IFDIR }

// IsRegular reports whether the node is a regular file.
func (a Attr) IsRegular() bool { return a.Type() == unix.S_IFREG }

// FileMode returns the mode in Go's terms.
func (a Attr) FileMode() fs.FileMode { return FileMode(a.Mode) }

// ModTime returns the time of the last change of content.
func (a Attr) ModTime() time.Time { return time.Unix(a.Mtime, 0) }

// A Route says that objects whose ID begins with a byte from First to Last are
// found in the store at URL. With First over Last it matches nothing.
type Route struct {
	First, Last byte
	URL         string
}

// An Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// check tells why Linux could not have such an attribute.
func (x Xattr) check() error {
	switch {
	case x.Name == "" || len(x.Name) > 255 || strings.ContainsRune(x.Name, 0):
		return fmt.Errorf("the name %.40q of an extended attribute is impossible", x.Name)
	case len(x.Value) > maxCell:
		return fmt.Errorf("the extended attribute %s has %d bytes, over the limit of %d", x.Name, len(x.Value), maxCell)
	}
	return nil
}

// A Manifest is a checked manifest in memory. It does not change; all methods
// are safe for concurrent use. Methods that take an Ino panic for one that the
// manifest does not have.
type Manifest struct {
	codec     block.Codec
	tags      map[string]string
	routes    []Route
	nodes     []node // by Ino-1
	names     []byte // arena of names and symlink targets
	children  []Ino  // each directory's, sorted by name, one directory after the other
	refs      []block.Ref
	rdev      map[Ino]uint64
	firstName map[Ino]Ino    // later names of a hard-linked node to the first one
	nlink     map[Ino]uint32 // where it is not the usual one
	xattrs    map[Ino][]Xattr
	inline    map[block.ID][]byte

	modules    []moduleRow // sorted by ino
	moduleText []byte
}

// node is one row of the table. first and count are, for a directory, its part
// of children; for a regular file, of refs; for a symlink, of names.
type node struct {
	size, mtime, ctime int64
	parent, name       uint32
	uid, gid           uint32
	first, count       uint32
	mode               uint16
	nameLen            uint8
}

// Codec returns how the blocks are compressed.
func (m *Manifest) Codec() block.Codec { return m.codec }

// Tag returns the value of a tag, empty if it is not there.
func (m *Manifest) Tag(key string) string { return m.tags[key] }

// Tags returns all tags. The map must not be modified.
func (m *Manifest) Tags() map[string]string { return m.tags }

// Routes returns the routes in the order of the table, which is the order in
// which stores are tried. The slice must not be modified.
func (m *Manifest) Routes() []Route { return m.routes }

// Len returns the number of nodes; their Inos are 1 to Len.
func (m *Manifest) Len() int { return len(m.nodes) }

// Has reports whether the manifest has a node of this number.
func (m *Manifest) Has(ino Ino) bool { return ino >= 1 && int(ino) <= len(m.nodes) }

// BlockCount returns the number of blocks of all files together, counting each
// as often as it is used.
func (m *Manifest) BlockCount() int { return len(m.refs) }

// AllBlocks returns the blocks of all files, in the order of the files. One may
// stand there more than once. The slice must not be modified.
func (m *Manifest) AllBlocks() []block.Ref { return m.refs }

func (m *Manifest) node(ino Ino) *node { return &m.nodes[ino-1] }

// Attr returns the attributes of a node.
func (m *Manifest) Attr(ino Ino) Attr {
	n := m.node(ino)
	a := Attr{
		Mode: uint32(n.mode), Nlink: 1, UID: n.uid, GID: n.gid,
		Size: n.size, Mtime: n.mtime, Ctime: n.ctime, Rdev: m.rdev[ino],
	}
	if a.IsDir() {
		a.Nlink = 2
	}
	if l, ok := m.nlink[ino]; ok {
		a.Nlink = l
	}
	return a
}

// Name returns the node's name in its directory; the root's is ".".
func (m *Manifest) Name(ino Ino) string {
	if ino == Root {
		return "."
	}
	return string(m.nameBytes(ino))
}

func (m *Manifest) nameBytes(ino Ino) []byte {
	n := m.node(ino)
	return m.names[n.name : n.name+uint32(n.nameLen)]
}

// Parent returns the directory that holds the node; the root's is the root.
func (m *Manifest) Parent(ino Ino) Ino { return Ino(m.node(ino).parent) }

// Path returns the node's path from the root, slash-separated, "." for the
// root itself.
func (m *Manifest) Path(ino Ino) string {
	if ino == Root {
		return "."
	}
	p := m.Name(ino)
	for ino = m.Parent(ino); ino != Root; ino = m.Parent(ino) {
		p = m.Name(ino) + "/" + p
	}
	return p
}

// FirstName returns the node that holds what ino is another name of. For a
// node that is not hard-linked, and for the first of its names, that is ino.
func (m *Manifest) FirstName(ino Ino) Ino {
	if first, ok := m.firstName[ino]; ok {
		return first
	}
	return ino
}

// Target returns where a symlink points, exactly as it was packed. For other
// nodes it is empty.
func (m *Manifest) Target(ino Ino) string {
	n := m.node(ino)
	if n.mode&unix.S_IFMT != unix.S_IFLNK {
		return ""
	}
	return string(m.names[n.first : n.first+n.count])
}

// Blocks returns the blocks of a regular file in order; each but the last holds
// block.Size bytes. The slice must not be modified.
func (m *Manifest) Blocks(ino Ino) []block.Ref {
	n := m.node(ino)
	if n.mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	return m.refs[n.first : n.first+n.count : n.first+n.count]
}

// Xattrs returns the extended attributes of a node, sorted by name. The slice
// must not be modified.
func (m *Manifest) Xattrs(ino Ino) []Xattr { return m.xattrs[ino] }

// Children returns the nodes in a directory, sorted by name. The slice must not
// be modified.
func (m *Manifest) Children(dir Ino) []Ino {
	n := m.node(dir)
	if n.mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return m.children[n.first : n.first+n.count : n.first+n.count]
}

// Lookup returns the node of that name in a directory.
func (m *Manifest) Lookup(dir Ino, name string) (Ino, bool) {
	c := m.Children(dir)
	i := sort.Search(len(c), func(i int) bool { return string(m.nameBytes(c[i])) >= name })
	if i < len(c) && string(m.nameBytes(c[i])) == name {
		return c[i], true
	}
	return 0, false
}

// Find returns the node at a slash-separated path from the root. A leading
// slash, "." and ".." are taken as usual; symlinks are not followed. The error
// is a *fs.PathError with fs.ErrNotExist.
func (m *Manifest) Find(name string) (Ino, error) {
	ino := Root
	clean := path.Clean("/" + name)
	for part := range strings.SplitSeq(clean[1:], "/") {
		if part == "" {
			continue
		}
		next, ok := m.Lookup(ino, part)
		if !ok {
			return 0, &fs.PathError{Op: "find", Path: name, Err: fs.ErrNotExist}
		}
		ino = next
	}
	return ino, nil
}

// Walk yields every node below and including top with its path, a directory
// before what it holds, and the nodes of a directory sorted by name.
func (m *Manifest) Walk(top Ino) iter.Seq2[string, Ino] {
	return func(yield func(string, Ino) bool) {
		m.walk(m.Path(top), top, yield)
	}
}

func (m *Manifest) walk(name string, ino Ino, yield func(string, Ino) bool) bool {
	if !yield(name, ino) {
		return false
	}
	for _, c := range m.Children(ino) {
		below := m.Name(c)
		if ino != Root {
			below = name + "/" + below
		}
		if !m.walk(below, c, yield) {
			return false
		}
	}
	return true
}

// An InvalidError says what is wrong with a manifest, and where.
type InvalidError struct {
	Table  string // the table, empty if it is the file itself
	Row    int64  // the row's ino, or its rowid where the table has no ino of its own
	Reason string
}

func (e *InvalidError) Error() string {
	if e.Table == "" {
		return e.Reason
	}
	return fmt.Sprintf("table %s, row %d: %s", e.Table, e.Row, e.Reason)
}

func invalid(table string, row int64, format string, args ...any) error {
	return &InvalidError{Table: table, Row: row, Reason: fmt.Sprintf(format, args...)}
}
