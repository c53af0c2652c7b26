package manifest

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/ncruces/go-sqlite3"
	"golang.org/x/sys/unix"

	"overmount/block"
)

// loader builds a Manifest from a database, one table after the other, and
// refuses what does not hold together.
//
// A hostile file can make a small b-tree look endless by pointing to its own
// pages. So every table is read in the order of its rowid, which must grow, and
// nothing is counted beforehand: what rowid and file size allow is only a hint
// for how much to allocate. It can also make many rows share one long value, so
// all values together may be no longer than the file, with room for a file in
// UTF-16.
type loader struct {
	db      *sqlite3.Conn
	m       *Manifest
	size    int64   // of the file, in bytes
	budget  int64   // what the lengths of all further values may add up to
	nodes   int     // how many nodes to expect
	inos    []int64 // column ino of each node, where it differs from the rank
	parents []int64 // column parent of each node
	known   map[string]bool
}

func load(db *sqlite3.Conn) (*Manifest, error) {
	l := &loader{db: db, m: &Manifest{}, known: map[string]bool{}}
	for _, step := range []func() error{
		l.fileSize, l.tables, l.loadTags, l.loadRoutes,
		l.loadInodes, l.linkParents, l.linkChildren, l.checkReach,
		l.loadTargets, l.loadBlocks, l.loadHardlinks, l.loadXattrs, l.loadInline, l.loadModules,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	m := l.m
	m.nodes, m.names, m.children, m.refs = clip(m.nodes), clip(m.names), clip(m.children), clip(m.refs)
	m.modules, m.moduleText = clip(m.modules), clip(m.moduleText)
	return m, nil
}

// clip gives back what append took in advance.
func clip[S ~[]E, E any](s S) S {
	if cap(s)-len(s) > len(s)/16 {
		return append(make(S, 0, len(s)), s...)
	}
	return s
}

// fileSize asks for the size of the file, or of what is left of it when a
// journal has been rolled back.
func (l *loader) fileSize() error {
	err := each(l.db, `SELECT page_count * page_size FROM pragma_page_count, pragma_page_size`, func(s *sqlite3.Stmt) error {
		l.size = s.ColumnInt64(0)
		return nil
	})
	l.budget = 2 * l.size
	return err
}

// take counts n more bytes of values against the size of the file.
func (l *loader) take(table string, row int64, n int) error {
	l.budget -= int64(n)
	if l.budget < 0 {
		return invalid(table, row, "the rows up to here hold more than the file can: it is damaged")
	}
	return nil
}

// expect tells how many rows a table may have, as a hint: no more than its last
// rowid says, and than fit into the file with rowBytes each.
func (l *loader) expect(table string, rowBytes int64) (n int, err error) {
	const most = 8 << 20
	err = each(l.db, "SELECT max(rowid) FROM "+table+" NOT INDEXED", func(s *sqlite3.Stmt) error {
		n = int(max(0, min(s.ColumnInt64(0), l.size/rowBytes, most)))
		return nil
	})
	return n, err
}

// tables looks at the schema: the tables of rfs must be there, and must be
// plain tables, since a view or a virtual table could run for ever.
func (l *loader) tables() error {
	var stored []string
	err := each(l.db, `SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0`, func(s *sqlite3.Stmt) error {
		stored = append(stored, strings.ToLower(s.ColumnText(0)))
		return nil
	})
	if err != nil {
		return err
	}
	for _, t := range []string{"inode", "extra", "block", "tag", "route", "hardlink", "xattr", "inline", "module"} {
		if l.known[t], err = l.isPlain(t, stored); err != nil {
			return err
		}
	}
	for _, t := range []string{"inode", "extra", "block", "tag", "route"} {
		if !l.known[t] {
			return invalid("", 0, "not a flist: the database has no plain table %q", t)
		}
	}
	return nil
}

// isPlain reports whether a table is stored, without generated columns and
// without one that hides the number of the row.
func (l *loader) isPlain(table string, stored []string) (bool, error) {
	if !slices.Contains(stored, table) {
		return false, nil
	}
	plain := true
	err := each(l.db, "PRAGMA table_xinfo("+table+")", func(s *sqlite3.Stmt) error {
		generated := s.ColumnInt64(6) != 0
		plain = plain && !generated && !strings.EqualFold(s.ColumnText(1), "rowid")
		return nil
	})
	return plain, err
}

func (l *loader) loadTags() error {
	l.m.tags = map[string]string{}
	err := l.rows("tag", "key, value", func(s *sqlite3.Stmt, row int64) error {
		key, value := s.ColumnText(1), s.ColumnText(2)
		l.m.tags[key] = value
		return l.take("tag", row, len(key)+len(value))
	})
	if err != nil {
		return err
	}
	if l.m.codec, err = block.ParseCodec(l.m.tags[TagCodec]); err != nil {
		return invalid("", 0, "tag %s: %v; a newer version may read it", TagCodec, err)
	}
	if s := l.m.tags[TagBlockSize]; s != "" && s != fmt.Sprint(block.Size) {
		return invalid("", 0, "tag %s: block size %.40q is not supported, only %d", TagBlockSize, s, block.Size)
	}
	return nil
}

func (l *loader) loadRoutes() error {
	return l.rows("route", `start, "end", url`, func(s *sqlite3.Stmt, row int64) error {
		if err := integers(s, "route", row, "start", "end"); err != nil {
			return err
		}
		first, last := s.ColumnInt64(1), s.ColumnInt64(2)
		if first < 0 || first > 255 || last < 0 || last > 255 {
			return invalid("route", row, "range %d to %d is not within 0 to 255", first, last)
		}
		r := Route{First: byte(first), Last: byte(last), URL: s.ColumnText(3)}
		l.m.routes = append(l.m.routes, r)
		return l.take("route", row, len(r.URL))
	})
}

// rows reads a table in the order of its rowid, which is column 0 of each row.
// Tables of additions may be missing.
func (l *loader) rows(table, columns string, row func(*sqlite3.Stmt, int64) error) error {
	if !l.known[table] {
		return nil
	}
	last, any := int64(0), false
	return each(l.db, "SELECT rowid, "+columns+" FROM "+table+" NOT INDEXED ORDER BY rowid", func(s *sqlite3.Stmt) error {
		id := s.ColumnInt64(0)
		if any && id <= last {
			return invalid(table, id, "rows are not in order: the file is damaged")
		}
		last, any = id, true
		return row(s, id)
	})
}

// integers checks that columns 1 and following, which have these names, hold
// integers: rfs stops at anything else.
func integers(s *sqlite3.Stmt, table string, row int64, names ...string) error {
	for i, name := range names {
		if s.ColumnType(i+1) != sqlite3.INTEGER {
			return invalid(table, row, "column %s is not an integer", name)
		}
	}
	return nil
}

const inodeColumns = "parent, size, uid, mode, rdev, ctime, mtime, gid, ino, name"

func (l *loader) loadInodes() error {
	const leastRow = 24 // bytes of a row with a name of one letter
	var err error
	if l.nodes, err = l.expect("inode", leastRow); err != nil {
		return err
	}
	l.m.nodes, l.parents = make([]node, 0, l.nodes), make([]int64, 0, l.nodes)
	l.m.rdev = map[Ino]uint64{}
	return l.rows("inode", inodeColumns, func(s *sqlite3.Stmt, row int64) error {
		if err := integers(s, "inode", row, "parent", "size", "uid", "mode", "rdev", "ctime", "mtime", "gid"); err != nil {
			return err
		}
		if err := isRowid(s, "inode", row, 9); err != nil {
			return err
		}
		n, err := l.newNode(row, s.ColumnRawText(10))
		if err != nil {
			return err
		}
		if err := n.set(row, s); err != nil {
			return err
		}
		l.m.nodes = append(l.m.nodes, n)
		l.parents = append(l.parents, s.ColumnInt64(1))
		l.noteIno(row)
		if t := n.mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
			l.m.rdev[Ino(len(l.m.nodes))] = uint64(s.ColumnInt64(5))
		}
		return nil
	})
}

// isRowid checks that a column is another name of the rowid, as INTEGER PRIMARY
// KEY makes it.
func isRowid(s *sqlite3.Stmt, table string, row int64, column int) error {
	if got := s.ColumnInt64(column); got != row {
		return invalid(table, row, "column ino is %d: it is not the primary key", got)
	}
	return nil
}

// newNode takes a name into the arena.
func (l *loader) newNode(row int64, name []byte) (node, error) {
	if len(l.m.nodes) == 0 && row != int64(Root) {
		return node{}, invalid("inode", row, "the first row must be the root, row 1")
	}
	if len(l.m.nodes) >= MaxNodes {
		return node{}, invalid("inode", row, "there are more than %d rows", MaxNodes)
	}
	if len(l.m.nodes) == 0 {
		name = nil // the root's, which is "/" by custom
	} else if !isPlainName(name) {
		if err := CheckName(string(name)); err != nil {
			return node{}, invalid("inode", row, "%v", err)
		}
	}
	n := node{name: uint32(len(l.m.names)), nameLen: uint8(len(name))}
	return n, l.addName("inode", row, name)
}

// addName puts a name or a target into the arena.
func (l *loader) addName(table string, row int64, name []byte) error {
	m := l.m
	if len(m.names)+len(name) > MaxNames {
		return invalid(table, row, "the names are longer than %d bytes together", MaxNames)
	}
	if err := l.take(table, row, len(name)); err != nil {
		return err
	}
	if left := l.nodes - len(m.nodes); cap(m.names)-len(m.names) < len(name) && left > 0 {
		// Suppose that the names to come are as long as those so far.
		m.names = slices.Grow(m.names, len(name)+left*(len(m.names)+16)/(len(m.nodes)+1))
	}
	m.names = append(m.names, name...)
	return nil
}

// isPlainName reports whether CheckName surely accepts a name. It is quick, and
// true for nearly every name in use.
func isPlainName(name []byte) bool {
	for _, c := range name {
		if c < ' ' || c == '/' || c >= utf8.RuneSelf {
			return false
		}
	}
	return len(name) > 0 && len(name) <= 255 && name[0] != '.'
}

// set takes the numbers of a row of inodeColumns.
func (n *node) set(row int64, s *sqlite3.Stmt) error {
	size, uid, mode, gid := s.ColumnInt64(2), s.ColumnInt64(3), s.ColumnInt64(4), s.ColumnInt64(8)
	switch {
	case mode < 0 || mode > 0o177777 || !knownType(uint32(mode)):
		return invalid("inode", row, "mode %#o is not a Linux file mode", mode)
	case uid < 0 || uid > 1<<32-1:
		return invalid("inode", row, "uid %d is impossible", uid)
	case gid < 0 || gid > 1<<32-1:
		return invalid("inode", row, "gid %d is impossible", gid)
	case size < 0 || size > maxFileSize:
		return invalid("inode", row, "size %d is impossible", size)
	}
	n.size, n.uid, n.gid, n.mode = size, uint32(uid), uint32(gid), uint16(mode)
	n.ctime, n.mtime = s.ColumnInt64(6), s.ColumnInt64(7)
	return nil
}

func knownType(mode uint32) bool {
	t := mode & unix.S_IFMT
	return t == unix.S_IFREG || slices.ContainsFunc(typeBits, func(b bits) bool { return b.unix == t })
}

// CheckName tells why a name cannot be that of a file in a directory: it must
// be 1 to 255 bytes of UTF-8, without a slash or NUL, and not "." or "..".
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the name is empty")
	case name == "." || name == "..":
		return fmt.Errorf("the name %q stands for another directory", name)
	case len(name) > 255:
		return fmt.Errorf("the name %.40q… has %d bytes, over the limit of 255", name, len(name))
	case strings.ContainsRune(name, '/'):
		return fmt.Errorf("the name %q holds a slash", name)
	case strings.ContainsRune(name, 0):
		return fmt.Errorf("the name %q holds a NUL byte", name)
	case !utf8.ValidString(name):
		return fmt.Errorf("the name %q is not UTF-8", name)
	}
	return nil
}

// noteIno remembers the column ino of the node just added, from the first one
// on that is not its rank.
func (l *loader) noteIno(row int64) {
	rank := int64(len(l.m.nodes))
	if l.inos == nil && row == rank {
		return
	}
	if l.inos == nil {
		for i := range rank - 1 {
			l.inos = append(l.inos, i+1)
		}
	}
	l.inos = append(l.inos, row)
}

// rank finds the node whose column ino is row.
func (l *loader) rank(row int64) (Ino, bool) {
	if l.inos == nil {
		return Ino(row), row >= 1 && row <= int64(len(l.m.nodes))
	}
	i, ok := slices.BinarySearch(l.inos, row)
	return Ino(i + 1), ok
}

// row is the column ino of a node.
func (l *loader) row(ino Ino) int64 {
	if l.inos == nil {
		return int64(ino)
	}
	return l.inos[ino-1]
}

// linkParents turns the column parent into Inos.
func (l *loader) linkParents() error {
	if len(l.parents) == 0 {
		return invalid("", 0, "the table inode is empty: the manifest was not finished")
	}
	for i, p := range l.parents {
		ino := Ino(i + 1)
		if ino == Root {
			if err := l.checkRoot(p); err != nil {
				return err
			}
			l.m.node(ino).parent = uint32(Root)
			continue
		}
		parent, ok := l.rank(p)
		switch {
		case p == 0:
			return invalid("inode", l.row(ino), "it is a second root: only row 1 may have parent 0")
		case !ok:
			return invalid("inode", l.row(ino), "its parent %d does not exist", p)
		case l.m.node(parent).mode&unix.S_IFMT != unix.S_IFDIR:
			return invalid("inode", l.row(ino), "its parent %d is not a directory", p)
		}
		l.m.node(ino).parent = uint32(parent)
	}
	return nil
}

func (l *loader) checkRoot(parent int64) error {
	switch {
	case parent != 0:
		return invalid("inode", 1, "the root must have parent 0, not %d", parent)
	case l.m.node(Root).mode&unix.S_IFMT != unix.S_IFDIR:
		return invalid("inode", 1, "the root is not a directory")
	}
	return nil
}

// linkChildren lists each directory's nodes, sorted by name. Of two with one
// name the first row counts, as in rfs.
func (l *loader) linkChildren() error {
	m := l.m
	for i := range m.nodes[1:] {
		m.nodes[m.nodes[i+1].parent-1].count++
	}
	next := make([]uint32, len(m.nodes))
	sum := uint32(0)
	for i := range m.nodes {
		n := &m.nodes[i]
		n.first, next[i] = sum, sum
		sum += n.count
	}
	m.children = make([]Ino, sum)
	for i := range m.nodes[1:] {
		p := m.nodes[i+1].parent - 1
		m.children[next[p]] = Ino(i + 2)
		next[p]++
	}
	for i := range m.nodes {
		if n := &m.nodes[i]; n.count > 1 {
			l.sortChildren(m.children[n.first : n.first+n.count])
		}
	}
	return nil
}

func (l *loader) sortChildren(c []Ino) {
	byName := func(a, b Ino) int {
		return cmp.Or(bytes.Compare(l.m.nameBytes(a), l.m.nameBytes(b)), cmp.Compare(a, b))
	}
	if !slices.IsSortedFunc(c, byName) {
		slices.SortFunc(c, byName)
	}
}

// checkReach walks down from the root. What it does not meet goes round in a
// circle, since every parent exists. It also counts sub-directories.
func (l *loader) checkReach() error {
	m := l.m
	m.nlink = map[Ino]uint32{}
	seen := make([]bool, len(m.nodes))
	level, met := []Ino{Root}, 1
	seen[0] = true
	for depth := 0; len(level) > 0; depth++ {
		if depth > MaxDepth {
			return invalid("inode", l.row(level[0]), "it lies more than %d directories deep", MaxDepth)
		}
		var below []Ino
		for _, dir := range level {
			n := m.node(dir)
			for _, c := range m.children[n.first : n.first+n.count] {
				seen[c-1] = true
				met++
				if m.node(c).mode&unix.S_IFMT == unix.S_IFDIR {
					below = append(below, c)
				}
			}
			l.dropDoubles(n)
			l.countLinks(dir)
		}
		level = below
	}
	if met < len(m.nodes) {
		lost := Ino(slices.Index(seen, false) + 1)
		return invalid("inode", l.row(lost), "it is not reached from the root: its parents go round in a circle")
	}
	return nil
}

// dropDoubles leaves the first of several nodes with one name.
func (l *loader) dropDoubles(dir *node) {
	c := l.m.children[dir.first : dir.first+dir.count]
	unique := slices.CompactFunc(c, func(a, b Ino) bool {
		return bytes.Equal(l.m.nameBytes(a), l.m.nameBytes(b))
	})
	dir.count = uint32(len(unique))
}

func (l *loader) countLinks(dir Ino) {
	links := uint32(2)
	for _, c := range l.m.Children(dir) {
		if l.m.node(c).mode&unix.S_IFMT == unix.S_IFDIR {
			links++
		}
	}
	if links > 2 {
		l.m.nlink[dir] = links
	}
}

// loadTargets reads where symlinks point. Rows for other nodes mean nothing.
func (l *loader) loadTargets() error {
	m := l.m
	err := l.rows("extra", "data, ino", func(s *sqlite3.Stmt, row int64) error {
		ino, ok := l.rank(row)
		if !ok || m.node(ino).mode&unix.S_IFMT != unix.S_IFLNK {
			return nil
		}
		if err := isRowid(s, "extra", row, 2); err != nil {
			return err
		}
		target := s.ColumnRawBlob(1) // of TEXT and BLOB alike, the bytes
		if !validTarget(target) {
			return invalid("extra", row, "a symlink's target must be 1 to %d bytes without NUL", unix.PathMax-1)
		}
		n := m.node(ino)
		n.first, n.count = uint32(len(m.names)), uint32(len(target))
		return l.addName("extra", row, target)
	})
	if err != nil {
		return err
	}
	for i := range m.nodes {
		n := &m.nodes[i]
		if n.mode&unix.S_IFMT != unix.S_IFLNK {
			continue
		}
		if n.count == 0 {
			return invalid("inode", l.row(Ino(i+1)), "it is a symlink, and table extra has no target for it")
		}
		n.size = int64(n.count)
	}
	return nil
}

func validTarget(t []byte) bool {
	return len(t) > 0 && len(t) < unix.PathMax && bytes.IndexByte(t, 0) < 0
}

// loadBlocks reads the blocks and gives each file its own, in the order of the
// rows. Rows of different files may stand mixed: rfs writes them so.
func (l *loader) loadBlocks() error {
	m := l.m
	const leastRow = 70 // bytes
	n, err := l.expect("block", leastRow)
	if err != nil {
		return err
	}
	m.refs = make([]block.Ref, 0, n)
	owners, mixed := make([]Ino, 0, n), false
	err = l.rows("block", "ino, id, key", func(s *sqlite3.Stmt, row int64) error {
		ref, owner, err := l.blockRow(s, row)
		if err != nil {
			return err
		}
		mixed = mixed || len(owners) > 0 && owner < owners[len(owners)-1]
		owners, m.refs = append(owners, owner), append(m.refs, ref)
		return nil
	})
	if err != nil {
		return err
	}
	if mixed {
		l.sortBlocks(owners)
	}
	return l.shareBlocks(owners)
}

func (l *loader) blockRow(s *sqlite3.Stmt, row int64) (ref block.Ref, owner Ino, err error) {
	owner, ok := l.rank(s.ColumnInt64(1))
	if !ok || s.ColumnType(1) != sqlite3.INTEGER {
		return ref, 0, invalid("block", row, "it belongs to inode %.20s, which does not exist", s.ColumnText(1))
	}
	if l.m.node(owner).mode&unix.S_IFMT != unix.S_IFREG {
		return ref, 0, invalid("block", row, "it belongs to inode %d, which is not a regular file", l.row(owner))
	}
	id := s.ColumnRawBlob(2)
	if copy(ref.ID[:], id); len(id) != len(ref.ID) {
		return ref, 0, invalid("block", row, "column id has %d bytes, want %d", len(id), len(ref.ID))
	}
	key := s.ColumnRawBlob(3)
	if copy(ref.Key[:], key); len(key) != len(ref.Key) {
		return ref, 0, invalid("block", row, "column key has %d bytes, want %d", len(key), len(ref.Key))
	}
	return ref, owner, nil
}

// sortBlocks brings the blocks of each file together and keeps their order.
func (l *loader) sortBlocks(owners []Ino) {
	order := make([]int, len(owners))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool { return owners[order[i]] < owners[order[j]] })
	sorted := make([]block.Ref, len(owners))
	for i, from := range order {
		sorted[i] = l.m.refs[from]
	}
	l.m.refs = sorted
	slices.Sort(owners)
}

// shareBlocks gives each regular file its part of the sorted blocks, which must
// be as many as its size needs.
func (l *loader) shareBlocks(owners []Ino) error {
	at := 0
	for i := range l.m.nodes {
		n, ino := &l.m.nodes[i], Ino(i+1)
		if n.mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		n.first = uint32(at)
		for at < len(owners) && owners[at] == ino {
			at++
		}
		n.count = uint32(at) - n.first
		if want := block.Count(n.size); int64(n.count) != want {
			return invalid("inode", l.row(ino), "%s has %d bytes, so it needs %d rows in table block, and has %d",
				l.m.Path(ino), n.size, want, n.count)
		}
	}
	return nil
}

func (l *loader) loadHardlinks() error {
	m := l.m
	m.firstName = map[Ino]Ino{}
	err := l.rows("hardlink", "first, ino", func(s *sqlite3.Stmt, row int64) error {
		if err := isRowid(s, "hardlink", row, 2); err != nil {
			return err
		}
		ino, ok := l.rank(row)
		first, okFirst := l.rank(s.ColumnInt64(1))
		switch {
		case !ok || !okFirst:
			return invalid("hardlink", row, "inode %d or inode %d does not exist", row, s.ColumnInt64(1))
		case ino == first || m.firstName[first] != 0 || m.nlink[ino] > 1:
			return invalid("hardlink", row, "inode %d is not the first name of a file", l.row(first))
		case !l.sameFile(ino, first):
			return invalid("hardlink", row, "inodes %d and %d are not one file", row, l.row(first))
		}
		m.firstName[ino] = first
		m.nlink[first] = max(m.nlink[first], 1) + 1
		return nil
	})
	for ino, first := range m.firstName {
		m.nlink[ino] = m.nlink[first]
	}
	return err
}

// sameFile reports whether two nodes are alike in all that one inode has.
func (l *loader) sameFile(a, b Ino) bool {
	m := l.m
	aa, ab := m.Attr(a), m.Attr(b)
	aa.Nlink, ab.Nlink = 0, 0
	return !aa.IsDir() && aa == ab && m.Target(a) == m.Target(b) && slices.Equal(m.Blocks(a), m.Blocks(b))
}

func (l *loader) loadXattrs() error {
	m := l.m
	m.xattrs = map[Ino][]Xattr{}
	if !l.known["xattr"] {
		return nil
	}
	last := Ino(0)
	// The table's own order is that of its key. To ask for it could mean to
	// sort, without end, what is not in order.
	return each(l.db, `SELECT ino, name, value FROM xattr NOT INDEXED`, func(s *sqlite3.Stmt) error {
		row := s.ColumnInt64(0)
		x := Xattr{Name: s.ColumnText(1), Value: s.ColumnBlob(2, nil)}
		ino, ok := l.rank(row)
		prev := m.xattrs[ino]
		if !ok {
			return invalid("xattr", row, "the inode does not exist")
		}
		if err := x.check(); err != nil {
			return invalid("xattr", row, "%v", err)
		}
		if ino < last || len(prev) > 0 && prev[len(prev)-1].Name >= x.Name {
			return invalid("xattr", row, "rows are not in order: the file is damaged")
		}
		last = ino
		m.xattrs[ino] = append(prev, x)
		return l.take("xattr", row, len(x.Name)+len(x.Value))
	})
}
