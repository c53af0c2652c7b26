package manifest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
)

// source is a line of testdata/rfs-sample/source.jsonl: a node before packing.
type source struct {
	Path   string
	Mode   string
	UID    uint32
	GID    uint32
	Mtime  int64
	Size   int64
	Target string
	Rdev   []uint32
}

func sources(t *testing.T) map[string]source {
	t.Helper()
	all := map[string]source{}
	lines := bufio.NewScanner(bytes.NewReader(read(t, "testdata/rfs-sample/source.jsonl")))
	for lines.Scan() {
		var s source
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		all[s.Path] = s
	}
	return all
}

// want is what must be read of a source.
func (s source) want(t *testing.T) Entry {
	mode, err := strconv.ParseUint(s.Mode, 8, 32)
	if err != nil {
		t.Fatal(err)
	}
	e := Entry{Path: s.Path, Target: s.Target, Attr: Attr{Mode: uint32(mode), UID: s.UID, GID: s.GID, Mtime: s.Mtime, Size: s.Size}}
	if len(s.Rdev) == 2 {
		e.Attr.Rdev = unix.Mkdev(s.Rdev[0], s.Rdev[1])
	}
	if s.Target != "" {
		e.Attr.Size = int64(len(s.Target))
	}
	return e
}

func TestOpenReadsWhatRfsWrote(t *testing.T) {
	src := sources(t)
	for _, name := range []string{"sample.fl", "ranges.fl"} {
		t.Run(name, func(t *testing.T) {
			m := mustOpen(t, filepath.Join("testdata/rfs-sample", name))
			checkTree(t, m)
			got := dump(m)
			if len(got) != len(src) {
				t.Errorf("it has %d nodes, want %d", len(got), len(src))
			}
			for _, e := range got {
				if e.Attr.IsDir() {
					e.Attr.Size = 0 // of a directory it means nothing
				}
				e.Attr.Nlink, e.Attr.Ctime, e.Blocks = 0, 0, nil
				if diff := cmp.Diff(src[e.Path].want(t), e); diff != "" {
					t.Errorf("%q differs (-want +got):\n%s", e.Path, diff)
				}
			}
			openBlocks(t, m)
		})
	}
}

// openBlocks opens every object with the manifest's key.
func openBlocks(t *testing.T, m *Manifest) {
	t.Helper()
	for _, r := range m.AllBlocks() {
		id := r.ID.String()
		object := read(t, filepath.Join("testdata/rfs-sample/objects", id[:2], id))
		plain, err := block.Open(nil, m.Codec(), r.Key, object)
		if err != nil || block.KeyOf(plain) != r.Key {
			t.Errorf("object %s does not give its block: %v", id, err)
		}
	}
}

func TestTagsAndRoutesOfRfs(t *testing.T) {
	m := mustOpen(t, "testdata/rfs-sample/sample.fl")
	if diff := cmp.Diff([]Route{{Last: 255, URL: "dir:///srv/objects"}}, m.Routes()); diff != "" {
		t.Errorf("Routes differ (-want +got):\n%s", diff)
	}
	if len(m.Tags()) != 0 {
		t.Errorf("Tags = %v, want none", m.Tags())
	}
	m = mustOpen(t, "testdata/rfs-sample/ranges.fl")
	routes := []Route{
		{Last: 127, URL: "dir:///srv/objects-a"}, {First: 128, Last: 255, URL: "dir:///srv/objects-b"}, {Last: 255, URL: "dir:///srv/objects-c"},
	}
	if diff := cmp.Diff(routes, m.Routes()); diff != "" {
		t.Errorf("Routes differ (-want +got):\n%s", diff)
	}
	tags := map[string]string{"version": "1.2.3", "author": "somebody", "description": "two shards and a replica"}
	if diff := cmp.Diff(tags, m.Tags()); diff != "" {
		t.Errorf("Tags differ (-want +got):\n%s", diff)
	}
}

// What is packed with snappy has the schema that rfs asks for, word for word.
func TestSchemaIsThatOfRfs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	create(t, path, block.Snappy, nil, someRoutes, allKinds())
	const columns = `SELECT m.name, c.name, c.type, c.pk FROM sqlite_schema m, pragma_table_info(m.name) c
		WHERE m.name IN ('inode', 'extra', 'block', 'tag', 'route') ORDER BY m.name, c.cid`
	const indexes = `SELECT m.tbl_name, m.name FROM sqlite_schema m WHERE m.type = 'index' AND m.name <> 'parent_name' ORDER BY m.name`
	for _, query := range []string{columns, indexes} {
		want := sqliteShell(t, "testdata/rfs-sample/sample.fl", query)
		if diff := cmp.Diff(want, sqliteShell(t, path, query)); diff != "" {
			t.Errorf("schema differs from that of rfs (-want +got):\n%s", diff)
		}
	}
	if got, want := sqliteShell(t, path, `SELECT ino, parent, name FROM inode LIMIT 1`), "1|0|/\n"; got != want {
		t.Errorf("the root's row = %q, want %q", got, want)
	}
	const types = `SELECT DISTINCT typeof(id), typeof(key) FROM block; SELECT DISTINCT typeof(data) FROM extra;
		SELECT DISTINCT typeof(ino), typeof(parent), typeof(name), typeof(size), typeof(uid), typeof(gid), typeof(mode), typeof(rdev), typeof(ctime), typeof(mtime) FROM inode`
	want := "blob|blob\nblob\ninteger|integer|text" + strings.Repeat("|integer", 7) + "\n"
	if got := sqliteShell(t, path, types); got != want {
		t.Errorf("types = %q, want %q", got, want)
	}
}

// sqliteShell runs a command as a person would: sqlite3 FILE SQL.
func sqliteShell(t *testing.T, path, query string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "sqlite3"), path, query)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sqlite3 %s %q: %v %s", path, query, err, &stderr)
	}
	return string(out)
}

func TestStoresInSqliteShell(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.fl")
	create(t, path, block.Zstd, nil, someRoutes, allKinds())
	before := dump(mustOpen(t, path))

	if got, want := sqliteShell(t, path, "SELECT id, uri FROM stores;"), "1|dir:///a\n2|s3://user@host:9000/bucket/prefix\n"; got != want {
		t.Errorf("stores = %q, want %q", got, want)
	}
	const public = "https://web.example.com/bucket/prefix"
	a, b, c := someRoutes[0], Route{First: 128, Last: 255, URL: public}, Route{Last: 255, URL: "dir:///new"}
	for _, step := range []struct {
		query string
		want  []Route
	}{
		{"UPDATE stores SET uri='" + public + "' WHERE uri LIKE 's3://%';", []Route{a, b}},
		{"INSERT INTO stores(uri) VALUES ('dir:///new');", []Route{a, b, c}},
		{"DELETE FROM stores WHERE id = 1", []Route{b, c}},
		{"UPDATE stores SET id = 9 WHERE uri = '" + public + "'", []Route{c, b}},
		{"INSERT INTO stores VALUES (4, 'dir:///a'); UPDATE route SET \"end\" = 127 WHERE url = 'dir:///a'", []Route{c, a, b}},
	} {
		sqliteShell(t, path, step.query)
		if diff := cmp.Diff(step.want, mustOpen(t, path).Routes()); diff != "" {
			t.Errorf("after %q routes differ (-want +got):\n%s", step.query, diff)
		}
	}
	if got := sqliteShell(t, path, "PRAGMA integrity_check"); got != "ok\n" {
		t.Errorf("integrity_check = %q, want ok", got)
	}
	if diff := cmp.Diff(before, dump(mustOpen(t, path))); diff != "" {
		t.Errorf("the tree changed (-before +after):\n%s", diff)
	}
}

func TestIntegrity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	writeFlat(t, path, 3000)
	if got := sqliteShell(t, path, "PRAGMA integrity_check"); got != "ok\n" {
		t.Errorf("integrity_check = %q, want ok", got)
	}
	if got := sqliteShell(t, path, "PRAGMA journal_mode"); got != "delete\n" {
		t.Errorf("journal_mode = %q, want delete", got)
	}
}
