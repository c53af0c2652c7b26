package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"overmount/internal/pathfs"
)

// A Conflict is a path at which two packages have different things.
type Conflict struct {
	Path   string
	Owners [2]string
	What   [2]string // such as "a file" and "a symlink to …"
}

func (c Conflict) String() string {
	if c.What[0] == c.What[1] {
		return fmt.Sprintf("%s: %s and %s have it, with different content or mode", c.Path, c.Owners[0], c.Owners[1])
	}
	return fmt.Sprintf("%s: in %s it is %s, in %s it is %s", c.Path, c.Owners[0], c.What[0], c.Owners[1], c.What[1])
}

// A ConflictError is all conflicts between the packages of a tree, by path.
type ConflictError struct{ Conflicts []Conflict }

func (e *ConflictError) Error() string {
	const most = 10
	lines := []string{"packages have different files at the same paths; leave one of them out:"}
	for i, c := range e.Conflicts {
		if i == most {
			lines = append(lines, fmt.Sprintf("and %d more", len(e.Conflicts)-most))
			break
		}
		lines = append(lines, c.String())
	}
	return strings.Join(lines, "\n  ")
}

// Tree returns the tree of some packages of the Spool, which get no more files.
//
// Packages may have the same directory; the first one that names it says its mode,
// owner and time. They may have the same file or symlink, with the same mode and
// owner. If they differ, replaces is asked about two owners; if winner may put its
// file in the place of loser's, and the other way round it may not, it does. All
// else is a [*ConflictError].
func (s *Spool) Tree(packages []*Package, replaces func(winner, loser string) bool) (*Tree, error) {
	if s.opts.NamesOnly {
		return nil, errors.New("the content of the packages was not kept")
	}
	m := merger{spool: s, replaces: replaces, nodes: map[string]*node{".": impliedDir(".", "")}}
	for _, p := range packages {
		for _, name := range slices.Sorted(maps.Keys(p.nodes)) {
			if err := m.add(p.nodes[name]); err != nil {
				return nil, err
			}
		}
	}
	if len(m.conflicts) > 0 {
		slices.SortStableFunc(m.conflicts, func(a, b Conflict) int { return strings.Compare(a.Path, b.Path) })
		return nil, &ConflictError{m.conflicts}
	}
	return newTree(s, m.nodes), nil
}

type merger struct {
	spool     *Spool
	replaces  func(winner, loser string) bool
	nodes     map[string]*node
	conflicts []Conflict
}

func (m *merger) add(n *node) error {
	was := m.nodes[n.Name]
	switch {
	case was == nil:
		m.nodes[n.Name] = n
		return nil
	case was.Mode.IsDir() && n.Mode.IsDir():
		if was.implied && !n.implied {
			m.nodes[n.Name] = n
		}
		return nil
	}
	same, err := m.spool.same(was, n)
	if err != nil {
		return fmt.Errorf("compare %s of %s and %s: %w", n.Name, was.owner, n.owner, err)
	}
	if same {
		return nil
	}
	m.decide(was, n)
	return nil
}

// decide settles which of two different things is at a path. A directory has
// things below it, and is never replaced.
func (m *merger) decide(was, n *node) {
	if m.replaces != nil && !was.Mode.IsDir() && !n.Mode.IsDir() {
		newWins, oldWins := m.replaces(n.owner, was.owner), m.replaces(was.owner, n.owner)
		if newWins != oldWins {
			if newWins {
				m.nodes[n.Name] = n
			}
			return
		}
	}
	m.conflicts = append(m.conflicts, Conflict{n.Name, [2]string{was.owner, n.owner}, [2]string{kind(was), kind(n)}})
}

// same reports whether two files are the same, but for the time.
func (s *Spool) same(a, b *node) (bool, error) {
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Size != b.Size || a.Link != b.Link {
		return false, nil
	}
	if !slices.EqualFunc(a.Xattrs, b.Xattrs, func(x, y Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) }) {
		return false, nil
	}
	if a.data == nil || b.data == nil {
		return a.data == b.data, nil
	}
	return s.sameContent(a.data, b.data)
}

func (s *Spool) sameContent(a, b *content) (bool, error) {
	const chunk = 64 << 10
	x, y := make([]byte, chunk), make([]byte, chunk)
	for done := int64(0); done < a.size; done += chunk {
		n := min(chunk, a.size-done)
		if _, err := s.file.ReadAt(x[:n], a.at+done); err != nil {
			return false, err
		}
		if _, err := s.file.ReadAt(y[:n], b.at+done); err != nil {
			return false, err
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// A Tree is the files of some packages, as an fs.ReadDirFS, fs.StatFS and
// fs.ReadLinkFS. Its Open, Stat and ReadDir follow symlinks inside the tree, also
// those with an absolute target, as in a chroot; Lstat, ReadLink, Xattrs and Owner
// follow none in the last name. An open file is also an io.ReaderAt and an
// io.Seeker. FileInfo.Sys gives a *syscall.Stat_t.
// Concurrent use is safe. It can be read until its Spool is closed.
type Tree struct{ *pathfs.FS[info] }

// newTree numbers the files in the order of their paths.
func newTree(s *Spool, nodes map[string]*node) *Tree {
	numbered := make(map[string]info, len(nodes))
	first, count := map[*content]*node{}, map[*content]uint64{}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		n := *nodes[name]
		n.ino = uint64(len(numbered) + 1)
		if n.data != nil {
			if f := first[n.data]; f != nil {
				n.ino = f.ino
			} else {
				first[n.data] = &n
			}
			count[n.data]++
		}
		numbered[name] = info{&n}
	}
	for _, i := range numbered {
		n := i.n
		n.nlink = 1
		if n.data != nil {
			n.nlink = count[n.data]
		} else if n.Mode.IsDir() {
			n.nlink = 2
		}
	}
	return &Tree{pathfs.New(numbered, pathfs.Options[info]{Chroot: true, Open: s.open})}
}

func (s *Spool) open(i info) (fs.File, error) {
	return &file{io.NewSectionReader(s.file, i.n.data.at, i.n.data.size), i}, nil
}

// Owner returns the package that a path is from; empty for directories that no
// package names, and for paths that are not in the tree.
func (t *Tree) Owner(name string) string {
	i, err := t.Find("owner", name, false)
	if err != nil || i.n.implied {
		return ""
	}
	return i.n.owner
}

// Xattrs returns the extended attributes of a file, sorted by name.
func (t *Tree) Xattrs(name string) ([]Xattr, error) {
	i, err := t.Find("listxattr", name, false)
	if err != nil {
		return nil, err
	}
	return i.n.Xattrs, nil
}

// info is what a tree shows of a node.
type info struct{ n *node }

func (i info) Name() string       { return path.Base(i.n.Name) }
func (i info) Mode() fs.FileMode  { return i.n.Mode }
func (i info) ModTime() time.Time { return i.n.ModTime }
func (i info) IsDir() bool        { return i.n.Mode.IsDir() }
func (i info) Target() string     { return i.n.Link }

// Size is that of the content, or of the target of a symlink, as in Linux.
func (i info) Size() int64 {
	switch {
	case i.n.data != nil:
		return i.n.data.size
	case i.n.Mode&fs.ModeSymlink != 0:
		return int64(len(i.n.Link))
	default:
		return 0
	}
}

// Sys returns what stat(2) would.
func (i info) Sys() any {
	st := &syscall.Stat_t{
		Ino: i.n.ino, Mode: unixMode(i.n.Mode), Uid: i.n.UID, Gid: i.n.GID, Size: i.Size(),
		Mtim: syscall.NsecToTimespec(i.n.ModTime.UnixNano()),
	}
	setWord(&st.Nlink, i.n.nlink)
	return st
}

// setWord sets a field that has another width on each architecture.
func setWord[T uint32 | uint64](field *T, v uint64) { *field = T(v) }

func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		unix uint32
	}{{fs.ModeSetuid, syscall.S_ISUID}, {fs.ModeSetgid, syscall.S_ISGID}, {fs.ModeSticky, syscall.S_ISVTX}} {
		if m&b.mode != 0 {
			mode |= b.unix
		}
	}
	switch m.Type() {
	case fs.ModeDir:
		return mode | syscall.S_IFDIR
	case fs.ModeSymlink:
		return mode | syscall.S_IFLNK
	default:
		return mode | syscall.S_IFREG
	}
}

type file struct {
	*io.SectionReader
	info info
}

func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *file) Close() error               { return nil }
