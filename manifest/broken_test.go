package manifest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/block"
)

// small writes the manifest that the cases below damage. Its rows are numbered
// as they stand here, from 1.
func small(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "m.fl")
	first := file("z", 5)
	first.Attr.Nlink = 2
	second := first
	second.Path, second.LinkTo = "z2", "z"
	mod := file("a/f", 6e5)
	mod.Module = &Module{Name: "f", Aliases: []string{"pci:*", "usb:*"}}
	create(tb, path, block.Zstd, map[string]string{"k": "v"}, someRoutes, []Entry{
		dir("."),            // 1
		dir("a"),            // 2
		mod,                 // 3: block rows 1 and 2
		symlink("a/l", "t"), // 4
		dir("b"),            // 5
		dir("b/c"),          // 6
		file("b/c/f", 10),   // 7: block row 3
		file("y", 0),        // 8
		first,               // 9: block row 4
		second,              // 10: block row 5
	}, []byte("an object"))
	return path
}

// broken is a manifest that must be refused.
type broken struct {
	name  string
	sql   string
	table string // as InvalidError names it
	row   int64
	text  string // part of the reason
}

var brokenTrees = []broken{
	{"no root", `DELETE FROM inode WHERE ino = 1`, "inode", 2, "first row must be the root"},
	{"no rows", `DELETE FROM inode`, "", 0, "inode is empty"},
	{"root with a parent", `UPDATE inode SET parent = 1 WHERE ino = 1`, "inode", 1, "parent 0, not 1"},
	{"root is a file", `UPDATE inode SET mode = 33188 WHERE ino = 1`, "inode", 1, "root is not a directory"},
	{"root before row 1", `UPDATE inode SET ino = 0 WHERE ino = 1; UPDATE inode SET parent = 0 WHERE parent = 1`, "inode", 0, "first row must be the root"},
	{"negative row", `UPDATE inode SET ino = -8 WHERE ino = 8`, "inode", -8, "first row must be the root"},
	{"two roots", `UPDATE inode SET parent = 0 WHERE ino = 5`, "inode", 5, "second root"},
	{"orphan", `UPDATE inode SET parent = 99 WHERE ino = 7`, "inode", 7, "parent 99 does not exist"},
	{"negative parent", `UPDATE inode SET parent = -1 WHERE ino = 7`, "inode", 7, "parent -1 does not exist"},
	{"parent is 2^32 too far", `UPDATE inode SET parent = 4294967298 WHERE ino = 3`, "inode", 3, "parent 4294967298 does not exist"},
	{"parent is a file", `UPDATE inode SET parent = 3 WHERE ino = 7`, "inode", 7, "parent 3 is not a directory"},
	{"parent is a symlink", `UPDATE inode SET parent = 4 WHERE ino = 7`, "inode", 7, "parent 4 is not a directory"},
	{"own parent", `UPDATE inode SET parent = 6 WHERE ino = 6`, "inode", 6, "circle"},
	{"circle", `UPDATE inode SET parent = 6 WHERE ino = 5`, "inode", 5, "circle"},
	{"too deep", `WITH RECURSIVE n(i) AS (SELECT 11 UNION ALL SELECT i + 1 FROM n WHERE i < 2100)
		INSERT INTO inode SELECT i, CASE i WHEN 11 THEN 1 ELSE i - 1 END, 'd', 0, 0, 0, 16877, 0, 0, 0 FROM n`, "inode", 2059, "more than 2048 directories deep"},

	{"mode without a type", `UPDATE inode SET mode = 420 WHERE ino = 3`, "inode", 3, "not a Linux file mode"},
	{"mode of no type", `UPDATE inode SET mode = 61440 WHERE ino = 3`, "inode", 3, "not a Linux file mode"},
	{"mode too large", `UPDATE inode SET mode = 33188 + 65536 WHERE ino = 3`, "inode", 3, "not a Linux file mode"},
	{"mode negative", `UPDATE inode SET mode = -1 WHERE ino = 3`, "inode", 3, "not a Linux file mode"},
	{"uid negative", `UPDATE inode SET uid = -1 WHERE ino = 3`, "inode", 3, "uid -1"},
	{"gid too large", `UPDATE inode SET gid = 4294967296 WHERE ino = 3`, "inode", 3, "gid 4294967296"},
	{"size negative", `UPDATE inode SET size = -1 WHERE ino = 3`, "inode", 3, "size -1"},
	{"size huge", `UPDATE inode SET size = 9223372036854775807 WHERE ino = 3`, "inode", 3, "size 9223372036854775807"},
	{"size huge and possible", `UPDATE inode SET size = 1 << 50 WHERE ino = 3`, "inode", 3, "needs 2147483648 rows in table block, and has 2"},

	{"missing block", `DELETE FROM block WHERE rowid = 2`, "inode", 3, "a/f has 600000 bytes, so it needs 2 rows in table block, and has 1"},
	{"no blocks", `DELETE FROM block`, "inode", 3, "has 0"},
	{"extra block", `INSERT INTO block SELECT ino, id, key FROM block WHERE ino = 7`, "inode", 7, "needs 1 rows in table block, and has 2"},
	{"block of an empty file", `UPDATE block SET ino = 8 WHERE rowid = 3`, "inode", 7, "needs 1 rows"},
	{"block of nothing", `UPDATE block SET ino = 99 WHERE rowid = 3`, "block", 3, "inode 99, which does not exist"},
	{"block of NULL", `UPDATE block SET ino = NULL WHERE rowid = 3`, "block", 3, "which does not exist"},
	{"block of a word", `UPDATE block SET ino = printf('%.*c', 5000, 'x') WHERE rowid = 3`, "block", 3, "inode xxxxx"},
	{"block of a fraction", `UPDATE block SET ino = 7.5 WHERE rowid = 3`, "block", 3, "which does not exist"},
	{"block of a directory", `UPDATE block SET ino = 5 WHERE rowid = 3`, "block", 3, "inode 5, which is not a regular file"},
	{"block of a symlink", `UPDATE block SET ino = 4 WHERE rowid = 3`, "block", 3, "inode 4, which is not a regular file"},
	{"id too short", `UPDATE block SET id = x'00' WHERE rowid = 3`, "block", 3, "column id has 1 bytes"},
	{"id too long", `UPDATE block SET id = zeroblob(33) WHERE rowid = 3`, "block", 3, "column id has 33 bytes"},
	{"id is hex", `UPDATE block SET id = lower(hex(id)) WHERE rowid = 3`, "block", 3, "column id has 64 bytes"},
	{"id is NULL", `UPDATE block SET id = NULL WHERE rowid = 3`, "block", 3, "column id has 0 bytes"},
	{"key too short", `UPDATE block SET key = zeroblob(31) WHERE rowid = 5`, "block", 5, "column key has 31 bytes"},
	{"key is NULL", `UPDATE block SET key = NULL WHERE rowid = 5`, "block", 5, "column key has 0 bytes"},

	{"symlink without target", `DELETE FROM extra`, "inode", 4, "symlink, and table extra has no target"},
	{"target NULL", `UPDATE extra SET data = NULL`, "extra", 4, "1 to 4095 bytes"},
	{"target empty", `UPDATE extra SET data = ''`, "extra", 4, "1 to 4095 bytes"},
	{"target with NUL", `UPDATE extra SET data = x'610062'`, "extra", 4, "without NUL"},
	{"target too long", `UPDATE extra SET data = zeroblob(4096)`, "extra", 4, "1 to 4095 bytes"},

	{"route over 255", `UPDATE route SET "end" = 256 WHERE rowid = 2`, "route", 2, "range 128 to 256"},
	{"route under 0", `UPDATE route SET start = -1 WHERE rowid = 2`, "route", 2, "range -1 to 255"},
	{"route of words", `UPDATE route SET start = '0x' WHERE rowid = 2`, "route", 2, "column start is not an integer"},
	{"route NULL", `UPDATE route SET "end" = NULL WHERE rowid = 2`, "route", 2, "column end is not an integer"},
	{"codec", `UPDATE tag SET value = 'lz9' WHERE key = 'codec'`, "", 0, `unknown codec "lz9"`},
	{"block size", `UPDATE tag SET value = '4096' WHERE key = 'block-size'`, "", 0, `block size "4096" is not supported`},

	{"link of nothing", `UPDATE hardlink SET first = 99`, "hardlink", 10, "does not exist"},
	{"link to itself", `UPDATE hardlink SET first = 10`, "hardlink", 10, "not the first name"},
	{"link to another file", `UPDATE hardlink SET first = 8`, "hardlink", 10, "are not one file"},
	{"link with another content", `UPDATE block SET id = zeroblob(32) WHERE rowid = 5`, "hardlink", 10, "are not one file"},
	{"link of directories", `INSERT INTO hardlink VALUES (2, 5)`, "hardlink", 2, "are not one file"},
	{"links in a circle", `INSERT INTO hardlink VALUES (9, 10)`, "hardlink", 10, "not the first name"},
	{"xattr of nothing", `INSERT INTO xattr VALUES (99, 'user.a', 'x')`, "xattr", 99, "does not exist"},
	{"xattr without a name", `INSERT INTO xattr VALUES (3, '', 'x')`, "xattr", 3, "is impossible"},
	{"xattr too long", `INSERT INTO xattr VALUES (3, 'user.a', zeroblob(65537))`, "xattr", 3, "over the limit"},
	{"longer than any row may be", `INSERT INTO tag VALUES ('long', zeroblob(700000))`, "", 0, "too big"},
	{"object that is another", `UPDATE inline SET object = 'another object'`, "inline", 1, "not what its id says"},
	{"object with half an id", `UPDATE inline SET id = substr(id, 1, 16)`, "inline", 1, "not what its id says"},
	{"object without an id", `CREATE TABLE i (id, object); INSERT INTO i SELECT NULL, object FROM inline; DROP TABLE inline; ALTER TABLE i RENAME TO inline`, "inline", 1, "not what its id says"},
	{"object too long", `UPDATE inline SET object = zeroblob(611718)`, "inline", 1, "over the limit"},
	{"module of no file", `UPDATE module SET ino = 11`, "module", 11, "no regular file"},
	{"module of a directory", `UPDATE module SET ino = 2`, "module", 2, "no regular file"},
	{"module without a name", `UPDATE module SET name = ''`, "module", 3, "no name"},
}

var brokenSchemas = []broken{
	{"view as inode", `ALTER TABLE inode RENAME TO i; CREATE VIEW inode AS SELECT * FROM i`, "", 0, `no plain table "inode"`},
	{"view without end", `DROP TABLE extra; CREATE VIEW extra AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS ino, 'x' AS data FROM n`, "", 0, `no plain table "extra"`},
	{"virtual table", `DROP TABLE tag; PRAGMA writable_schema = 1;
		INSERT INTO sqlite_schema VALUES ('table', 'tag', 'tag', 0, 'CREATE VIRTUAL TABLE tag USING fts5(key, value)')`, "", 0, `no plain table "tag"`},
	{"generated column", `DROP TABLE tag; CREATE TABLE tag (key TEXT, value TEXT GENERATED ALWAYS AS (key || 'x'))`, "", 0, `no plain table "tag"`},
	{"generated column, short form", `DROP TABLE extra; CREATE TABLE extra (ino INTEGER PRIMARY KEY, data AS (zeroblob(4000)))`, "", 0, `no plain table "extra"`},
	{"column that hides the rowid", `DROP TABLE tag; CREATE TABLE tag (key, value, RowID)`, "", 0, `no plain table "tag"`},
	{"no rowid", `DROP TABLE tag; CREATE TABLE tag (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID`, "", 0, "no such column: rowid"},
	{"ino is not the key", `CREATE TABLE e (ino INTEGER, data); INSERT INTO e SELECT 3, data FROM extra UNION SELECT ino, data FROM extra;
		INSERT INTO e VALUES (1, 'x'), (2, 'y'); DROP TABLE extra; ALTER TABLE e RENAME TO extra`, "extra", 4, "it is not the primary key"},
	{"missing column", `ALTER TABLE inode DROP COLUMN gid`, "", 0, "no such column: gid"},
}

func TestBroken(t *testing.T) {
	cases := append(brokenTrees, brokenSchemas...)
	for _, table := range []string{"inode", "extra", "block", "tag", "route"} {
		cases = append(cases, broken{"no table " + table, "DROP TABLE " + table, "", 0, `no plain table "` + table + `"`})
	}
	for _, column := range []string{"parent", "size", "uid", "gid", "mode", "rdev", "ctime", "mtime"} {
		for _, value := range []string{"NULL", "'word'", "x'01'", "1.5"} {
			cases = append(cases, broken{column + " is " + value, fmt.Sprintf("UPDATE inode SET %s = %s WHERE ino = 7", column, value), "inode", 7, "column " + column + " is not an integer"})
		}
	}
	for _, v := range []struct{ name, hex, text string }{
		{"empty", "", "empty"}, {".", "2e", "another directory"}, {"..", "2e2e", "another directory"},
		{"a slash", "612f62", "slash"}, {"absolute", "2f", "slash"}, {"NUL", "610062", "NUL"}, {"only NUL", "00", "NUL"},
		{"not UTF-8", "61ff", "not UTF-8"}, {"half a rune", "c3", "not UTF-8"}, {"256 bytes", strings.Repeat("6e", 256), "over the limit of 255"},
	} {
		cases = append(cases,
			broken{"name " + v.name, fmt.Sprintf("UPDATE inode SET name = CAST(x'%s' AS TEXT) WHERE ino = 7", v.hex), "inode", 7, v.text},
			broken{"BLOB name " + v.name, fmt.Sprintf("UPDATE inode SET name = x'%s' WHERE ino = 6", v.hex), "inode", 6, v.text})
	}
	cases = append(cases, broken{"name NULL", "UPDATE inode SET name = NULL WHERE ino = 7", "inode", 7, "empty"})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := small(t)
			sql(t, path, c.sql)
			c.check(t, path)
		})
	}
}

// check opens a file that must be refused, for the reason that c gives.
func (c broken) check(t *testing.T, path string) {
	t.Helper()
	m, err := Open(t.Context(), path)
	bad, ok := errors.AsType[*InvalidError](err)
	if m != nil || !ok {
		t.Fatalf("Open = %v, want an InvalidError", err)
	}
	if bad.Table != c.table || bad.Row != c.row {
		t.Errorf("InvalidError names table %q, row %d, want %q, %d: %v", bad.Table, bad.Row, c.table, c.row, err)
	}
	text := err.Error()
	if !strings.Contains(text, c.text) || !strings.HasPrefix(text, "open manifest "+path+": ") {
		t.Errorf("Open = %q, want it to say %q", text, c.text)
	}
	if len(text) > len(path)+300 || strings.Contains(text, "\n") {
		t.Errorf("the message has %d bytes or several lines: %q", len(text), text)
	}
}

func TestNotAFlist(t *testing.T) {
	good := read(t, small(t))
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write([]byte("flistdb.sqlite3"))
	z.Close()
	for _, c := range []struct {
		name string
		data []byte
		text string
	}{
		{"empty", nil, "the file is empty"},
		{"text", []byte("hello, world"), "not a flist"},
		{"long text", bytes.Repeat([]byte("hello "), 1000), "not a flist"},
		{"web page", []byte("<!DOCTYPE html>"), "not a flist"},
		{"10 bytes of the header", good[:10], "not a flist"},
		{"50 bytes of the header", good[:50], "truncated: the file has 50 bytes, less than a SQLite header"},
		{"only the header", good[:100], "truncated: the file has 100 bytes, its header says"},
		{"the first page", good[:4096], "truncated: the file has 4096 bytes, its header says"},
		{"all but a byte", good[:len(good)-1], "truncated"},
		{"all but a page", good[:len(good)-4096], "truncated"},
		{"zeros behind the first page", append(bytes.Clone(good[:4096]), make([]byte, len(good)-4096)...), "malformed"},
		{"first page of zeros", append(bytes.Clone(good[:100]), make([]byte, len(good)-100)...), "malformed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.fl")
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			broken{text: c.text}.check(t, path)
		})
	}
	path := filepath.Join(t.TempDir(), "m.flist")
	if err := os.WriteFile(path, zipped.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path); !errors.Is(err, ErrLegacy) {
		t.Errorf("Open of gzip = %v, want ErrLegacy", err)
	}
	broken{text: "not a regular file"}.check(t, t.TempDir())
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "none.fl")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of nothing = %v, want fs.ErrNotExist", err)
	}
}

// A page of the table inode that is its own grandchild would be read for ever.
func TestTreeOfPagesGoesRound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	writeFlat(t, path, 5000)
	data := read(t, path)
	const page, interior = 4096, 5
	changed := 0
	for at := page; at < len(data); at += page {
		if data[at] != interior {
			continue
		}
		cells := int(binary.BigEndian.Uint16(data[at+3:]))
		first := at + int(binary.BigEndian.Uint16(data[at+12:]))
		for i := range cells {
			cell := at + int(binary.BigEndian.Uint16(data[at+12+2*i:]))
			copy(data[cell:cell+4], data[first:first+4]) // all children are the first
		}
		changed++
	}
	if changed == 0 {
		t.Fatal("found no interior page of a table")
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), path)
	if bad, ok := errors.AsType[*InvalidError](err); !ok || bad.Table != "inode" || !strings.Contains(bad.Reason, "not in order") {
		t.Errorf("Open = %v, want the rows of inode to be out of order", err)
	}
}

// Rows that share their overflow pages could claim more than the file holds.
func TestBudgetOfValues(t *testing.T) {
	l := &loader{budget: 100}
	if err := l.take("route", 7, 100); err != nil {
		t.Errorf("take of all that is left = %v", err)
	}
	if err := l.take("route", 8, 1); err == nil {
		t.Error("take of more than is left succeeded")
	}
}

func TestTolerated(t *testing.T) {
	for _, c := range []struct {
		name, sql string
		check     func(*testing.T, *Manifest)
	}{
		{"first of two names counts", `INSERT INTO inode SELECT 100, parent, name, 0, uid, gid, 16877, 0, 0, 0 FROM inode WHERE ino = 3`, func(t *testing.T, m *Manifest) {
			ino, err := m.Find("a/f")
			if err != nil || !m.Attr(ino).IsRegular() || len(m.Children(m.Parent(ino))) != 2 {
				t.Errorf("Find(a/f) = %d, %v, want the file, once", ino, err)
			}
		}},
		{"second of two names counts if it has the lower row", `INSERT INTO inode SELECT 100, 1, 'a', 0, 0, 0, 33188, 0, 0, 0`, func(t *testing.T, m *Manifest) {
			if ino, err := m.Find("a"); err != nil || ino != 2 {
				t.Errorf("Find(a) = %d, %v, want 2", ino, err)
			}
		}},
		{"mixed block rows", `CREATE TEMP TABLE b AS SELECT * FROM block; DELETE FROM block;
			INSERT INTO block SELECT * FROM b WHERE rowid = 5; INSERT INTO block SELECT * FROM b WHERE rowid = 1;
			INSERT INTO block SELECT * FROM b WHERE rowid = 4; INSERT INTO block SELECT * FROM b WHERE rowid = 3;
			INSERT INTO block SELECT * FROM b WHERE rowid = 2`, nil},
		{"TEXT target", `UPDATE extra SET data = CAST(data AS TEXT)`, nil},
		{"TEXT id and key", `UPDATE block SET id = CAST(id AS TEXT), key = CAST(key AS TEXT)`, nil},
		{"BLOB names", `UPDATE inode SET name = CAST(name AS BLOB)`, nil},
		{"no tags", `DELETE FROM tag WHERE key <> 'codec'`, nil},
		{"unknown tables and columns", `CREATE TABLE more (a, b); INSERT INTO more VALUES (1, 2);
			ALTER TABLE inode ADD COLUMN atime INTEGER; ALTER TABLE route ADD COLUMN weight; ALTER TABLE block ADD COLUMN crc DEFAULT 7;
			CREATE VIEW v AS SELECT nonsense FROM nowhere`, nil},
		{"rows far apart", `UPDATE inode SET ino = ino * 1000000007, parent = parent * 1000000007 WHERE ino > 1;
			UPDATE inode SET parent = 1 WHERE parent = 1000000007;
			UPDATE block SET ino = ino * 1000000007; UPDATE extra SET ino = ino * 1000000007;
			UPDATE hardlink SET ino = ino * 1000000007, first = first * 1000000007; UPDATE module SET ino = ino * 1000000007`, nil},
		{"children before their directory", `UPDATE inode SET ino = 50 WHERE ino = 2; UPDATE inode SET parent = 50 WHERE parent = 2`, func(t *testing.T, m *Manifest) {
			if ino, err := m.Find("a/f"); err != nil || ino != 2 {
				t.Errorf("Find(a/f) = %d, %v, want 2", ino, err)
			}
		}},
		{"route backwards", `UPDATE route SET start = 9, "end" = 3 WHERE rowid = 1`, func(t *testing.T, m *Manifest) {
			if diff := cmp.Diff(Route{First: 9, Last: 3, URL: "dir:///a"}, m.Routes()[0]); diff != "" {
				t.Errorf("route differs (-want +got):\n%s", diff)
			}
		}},
		{"no routes", `DELETE FROM route`, nil},
		{"targets of what is no symlink", `INSERT INTO extra VALUES (1, 'x'), (3, NULL), (77, '')`, nil},
		{"no additions", `DROP VIEW stores; DROP TABLE hardlink; DROP TABLE xattr; DROP INDEX parent_name`, func(t *testing.T, m *Manifest) {
			if got := m.Attr(9).Nlink; got != 1 {
				t.Errorf("Nlink = %d, want 1", got)
			}
		}},
		{"other page size", `PRAGMA page_size = 65536; VACUUM`, nil},
		{"WAL mode, closed", `PRAGMA journal_mode = WAL; UPDATE inode SET mtime = mtime`, nil},
		{"deep, but not too deep", `WITH RECURSIVE n(i) AS (SELECT 11 UNION ALL SELECT i + 1 FROM n WHERE i < 2058)
			INSERT INTO inode SELECT i, CASE i WHEN 11 THEN 1 ELSE i - 1 END, 'd', 0, 0, 0, 16877, 0, 0, 0 FROM n`, func(t *testing.T, m *Manifest) {
			if got := strings.Count(m.Path(2058), "/"); got != 2047 {
				t.Errorf("the deepest path has %d slashes, want 2047", got)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := small(t)
			want := dump(mustOpen(t, path))
			sql(t, path, c.sql)
			m := mustOpen(t, path)
			checkTree(t, m)
			if c.check != nil {
				c.check(t, m)
				return
			}
			if diff := cmp.Diff(want, dump(m)); diff != "" {
				t.Errorf("the tree changed (-want +got):\n%s", diff)
			}
		})
	}
}
