package manifest

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/ncruces/go-sqlite3"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/atomicfile"
)

// dirSize is what is written as the size of each directory: the size that the
// source's file system reports says nothing of the tree.
const dirSize = 4096

// An Entry is one node of a tree on its way into a manifest.
type Entry struct {
	Path   string // slash-separated from the root, "." for the root itself
	Attr   Attr   // Nlink and Ctime are not written
	Target string // of a symlink
	Blocks []block.Ref
	Xattrs []Xattr
	// Module, if not nil, is what the file says as a kernel module.
	Module *Module
	// LinkTo is the path of an earlier entry that is the same file. Attr and
	// Blocks repeat those of that entry.
	LinkTo string
}

// A Writer builds a manifest. One of Commit and Abort ends it. Its methods must
// not be called at the same time.
type Writer struct {
	file   *atomicfile.File
	db     *sqlite3.Conn
	stmts  map[string]*sqlite3.Stmt
	inos   map[string]int64 // of directories
	links  map[string]first // files that have several names
	inline map[block.ID]bool
	last   string
}

// first is the first name of a file with several.
type first struct {
	ino int64
	Entry
}

// Create starts a manifest that will appear at path, in place of what is there.
// The same entries, tags and routes in the same order give the same bytes.
func Create(ctx context.Context, path string, codec block.Codec, tags map[string]string, routes []Route) (*Writer, error) {
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create manifest %s: %w", path, err)
	}
	w := &Writer{file: f, stmts: map[string]*sqlite3.Stmt{}, inos: map[string]int64{}, links: map[string]first{}, inline: map[block.ID]bool{}}
	if err := w.begin(ctx, codec, tags, routes); err != nil {
		w.Abort()
		return nil, fmt.Errorf("create manifest %s: %w", path, err)
	}
	return w, nil
}

func (w *Writer) begin(ctx context.Context, codec block.Codec, tags map[string]string, routes []Route) error {
	db, err := openDB(ctx, w.file.Name(), sqlite3.OPEN_READWRITE, "nolock=1")
	if err != nil {
		return err
	}
	w.db = db
	// Until Commit the file has no name that anyone reads, so nothing needs to
	// be rolled back, and Commit makes it last. The file's header says DELETE.
	// OFF is not to be had for a database that is not trusted.
	if err := db.Exec(`PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; BEGIN;` + schema + additions); err != nil {
		return err
	}
	all := maps.Clone(tags)
	if all == nil {
		all = map[string]string{}
	}
	delete(all, TagCodec)
	if codec != block.Snappy { // rfs knows no tag and only snappy
		all[TagCodec] = codec.String()
	}
	all[TagBlockSize] = fmt.Sprint(block.Size)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if err := w.insert(`INSERT INTO tag (key, value) VALUES (?, ?)`, key, all[key]); err != nil {
			return err
		}
	}
	for _, r := range routes {
		if err := w.insert(insertRoute, int64(r.First), int64(r.Last), r.URL); err != nil {
			return err
		}
	}
	return nil
}

const insertRoute = `INSERT INTO route (start, "end", url) VALUES (?, ?, ?)`

// insert runs a statement that is prepared once.
func (w *Writer) insert(query string, values ...any) error {
	s := w.stmts[query]
	if s == nil {
		var err error
		if s, _, err = w.db.Prepare(query); err != nil {
			return err
		}
		w.stmts[query] = s
	}
	return run(s, values...)
}

// Add adds a node. The root comes first, a directory before what it holds, and
// the nodes of a directory in the order of their names, as fs.WalkDir gives
// them; the row numbers follow that order.
func (w *Writer) Add(e Entry) error {
	if err := w.add(e); err != nil {
		return fmt.Errorf("add %s to the manifest: %w", e.Path, err)
	}
	return nil
}

func (w *Writer) add(e Entry) error {
	if w.db == nil {
		return fs.ErrClosed
	}
	parent, name, err := w.place(e)
	if err != nil {
		return err
	}
	switch {
	case e.Attr.IsDir():
		e.Attr.Size = dirSize
	case e.Attr.Type() == unix.S_IFLNK:
		e.Attr.Size = int64(len(e.Target))
	}
	if err := e.check(); err != nil {
		return err
	}
	if err := w.checkLink(e); err != nil {
		return err
	}
	// The time of the last change of the inode is that of unpacking it here,
	// so it would make every pack differ; mtime stands for it.
	err = w.insert(`INSERT INTO inode (parent, name, size, uid, gid, mode, rdev, ctime, mtime) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		parent, name, e.Attr.Size, int64(e.Attr.UID), int64(e.Attr.GID), int64(e.Attr.Mode), int64(e.Attr.Rdev), e.Attr.Mtime, e.Attr.Mtime)
	if err != nil {
		return err
	}
	ino := w.db.LastInsertRowID()
	switch {
	case e.Attr.IsDir():
		w.inos[e.Path] = ino
	case e.Attr.Nlink > 1 && e.LinkTo == "":
		w.links[e.Path] = first{ino, e}
	}
	return w.addContent(ino, e)
}

func (w *Writer) addContent(ino int64, e Entry) error {
	if e.Target != "" {
		if err := w.insert(`INSERT INTO extra (ino, data) VALUES (?, ?)`, ino, []byte(e.Target)); err != nil {
			return err
		}
	}
	for _, b := range e.Blocks {
		if err := w.insert(`INSERT INTO block (ino, id, key) VALUES (?, ?, ?)`, ino, b.ID[:], b.Key[:]); err != nil {
			return err
		}
	}
	for _, x := range e.Xattrs {
		if err := w.insert(`INSERT INTO xattr (ino, name, value) VALUES (?, ?, ?)`, ino, x.Name, notNil(x.Value)); err != nil {
			return err
		}
	}
	if e.Module != nil {
		if err := w.addModule(ino, e.Module); err != nil {
			return err
		}
	}
	if e.LinkTo == "" {
		return nil
	}
	return w.insert(`INSERT INTO hardlink (ino, first) VALUES (?, ?)`, ino, w.links[e.LinkTo].ino)
}

func (w *Writer) addModule(ino int64, m *Module) error {
	texts, err := m.texts()
	if err != nil {
		return err
	}
	values := []any{ino}
	for _, t := range texts {
		values = append(values, t)
	}
	return w.insert(`INSERT INTO module (ino, `+moduleColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, values...)
}

// checkLink refuses a link that is not the same file as its first name.
func (w *Writer) checkLink(e Entry) error {
	if e.LinkTo == "" {
		return nil
	}
	f, ok := w.links[e.LinkTo]
	if !ok {
		return fmt.Errorf("it is a link to %s, which is not an earlier entry, the first of several links", e.LinkTo)
	}
	a, b := e.Attr, f.Attr
	a.Nlink, a.Ctime = b.Nlink, b.Ctime
	if a != b || e.Target != f.Target || !slices.Equal(e.Blocks, f.Blocks) {
		return fmt.Errorf("it is a link to %s, but its attributes or its content differ", e.LinkTo)
	}
	return nil
}

// notNil keeps an empty value from becoming NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// place finds an entry's directory and name, and checks the order of entries.
func (w *Writer) place(e Entry) (parent int64, name string, err error) {
	if w.last == "" {
		if e.Path != "." || !e.Attr.IsDir() {
			return 0, "", fmt.Errorf(`the first entry must be the root directory, "."`)
		}
		w.last = e.Path
		return 0, "/", nil
	}
	dir, name := path.Split(e.Path)
	dir = path.Clean(dir) // "" becomes "."
	parent, ok := w.inos[dir]
	switch {
	case !ok:
		return 0, "", fmt.Errorf("its directory %s has not been added", dir)
	case w.last != "." && comparePaths(w.last, e.Path) >= 0:
		return 0, "", fmt.Errorf("it comes after %s: entries must be sorted", w.last)
	}
	w.last = e.Path
	return parent, name, CheckName(name)
}

// comparePaths orders paths as a sorted walk meets them: a directory, all that
// it holds, then its next sibling.
func comparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return slashFirst(a[i]) - slashFirst(b[i])
		}
	}
	return len(a) - len(b)
}

func slashFirst(c byte) int {
	if c == '/' {
		return 0
	}
	return int(c) + 1
}

// check refuses what Open would refuse.
func (e Entry) check() error {
	a := e.Attr
	switch {
	case a.Mode > 0o177777 || !knownType(a.Mode):
		return fmt.Errorf("mode %#o is not a Linux file mode", a.Mode)
	case a.Size < 0 || a.Size > maxFileSize:
		return fmt.Errorf("size %d is impossible", a.Size)
	case a.IsRegular() && block.Count(a.Size) != int64(len(e.Blocks)):
		return fmt.Errorf("%d bytes need %d blocks, not %d", a.Size, block.Count(a.Size), len(e.Blocks))
	case !a.IsRegular() && len(e.Blocks) > 0:
		return fmt.Errorf("only a regular file has blocks")
	case a.Type() == unix.S_IFLNK && !validTarget([]byte(e.Target)):
		return fmt.Errorf("a symlink's target must be 1 to %d bytes without NUL", unix.PathMax-1)
	case a.Type() != unix.S_IFLNK && e.Target != "":
		return fmt.Errorf("only a symlink has a target")
	case a.IsDir() && strings.Count(e.Path, "/") >= MaxDepth:
		return fmt.Errorf("it lies more than %d directories deep", MaxDepth)
	}
	if e.Module != nil && !a.IsRegular() {
		return fmt.Errorf("only a regular file is a kernel module")
	}
	for _, x := range e.Xattrs {
		if err := x.check(); err != nil {
			return err
		}
	}
	return nil
}

// Commit finishes the manifest and gives it its name.
func (w *Writer) Commit() error {
	defer w.Abort()
	if w.db == nil {
		return fs.ErrClosed
	}
	if w.last == "" {
		return fmt.Errorf("write manifest: nothing was added, not even the root")
	}
	if err := w.db.Exec(indexes + `COMMIT; PRAGMA journal_mode = DELETE;`); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if err := w.closeDB(); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return w.file.Commit()
}

// Abort drops the manifest. After Commit it does nothing.
func (w *Writer) Abort() {
	w.closeDB()
	w.file.Abort()
}

func (w *Writer) closeDB() error {
	for _, s := range w.stmts {
		s.Close()
	}
	w.stmts = nil
	db := w.db
	w.db = nil
	return db.Close() // of nil too
}
