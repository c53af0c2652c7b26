package manifest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ncruces/go-sqlite3"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/atomicfile"
	"overmount/internal/testenv"
)

// TestMain lets the test binary be a child that a test starts and kills.
func TestMain(m *testing.M) {
	if task := os.Getenv("MANIFEST_TEST_CHILD"); task != "" {
		children[task](os.Getenv("MANIFEST_TEST_PATH"))
		return
	}
	os.Exit(m.Run())
}

// say tells the parent something, and stay waits for its kill.
func say(line any) { fmt.Println(line) }

func stay() { io.Copy(io.Discard, os.Stdin) }

func must(err error) {
	if err != nil {
		say(err)
		os.Exit(1)
	}
}

// child starts this binary with a task on path. What it says comes line by
// line from next; kill ends it.
func child(t *testing.T, task, path string) (next func() string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MANIFEST_TEST_CHILD="+task, "MANIFEST_TEST_PATH="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	lines := bufio.NewScanner(out)
	next = func() string { lines.Scan(); return lines.Text() }
	kill = func() { cmd.Process.Kill(); cmd.Wait() }
	t.Cleanup(kill)
	return next, kill
}

// refs returns the Refs of made-up blocks of a file of n bytes.
func refs(name string, n int64) []block.Ref {
	var r []block.Ref
	for i := range block.Count(n) {
		b := fmt.Appendf(nil, "%s %d", name, i)
		r = append(r, block.Ref{ID: block.Sum(b), Key: block.KeyOf(b)})
	}
	return r
}

func dir(path string) Entry {
	return Entry{Path: path, Attr: Attr{Mode: unix.S_IFDIR | 0o755, Nlink: 1}}
}

func file(path string, size int64) Entry {
	return Entry{Path: path, Attr: Attr{Mode: unix.S_IFREG | 0o644, Size: size, Mtime: 1700000000, Nlink: 1}, Blocks: refs(path, size)}
}

func symlink(path, target string) Entry {
	return Entry{Path: path, Attr: Attr{Mode: unix.S_IFLNK | 0o777}, Target: target}
}

func node1(path string, mode uint32, rdev uint64) Entry {
	return Entry{Path: path, Attr: Attr{Mode: mode, Rdev: rdev}}
}

// allKinds is a tree with a node of each kind.
func allKinds() []Entry {
	owned := file("dir/owned", 10)
	owned.Attr.UID, owned.Attr.GID, owned.Attr.Mode = 1<<32-1, 4711, unix.S_IFREG|0o6755
	owned.Attr.Mtime = -3
	owned.Xattrs = []Xattr{
		{Name: "user.empty"}, {Name: "security.selinux", Value: []byte("a:b\x00")},
	}
	one := file("hard-a", block.Size+1)
	one.Attr.Nlink = 3
	two, three := one, one
	two.Path, two.LinkTo = "hard-b", "hard-a"
	three.Path, three.LinkTo = "hard-c", "hard-a"
	sticky := dir("dir/sticky")
	sticky.Attr.Mode |= unix.S_ISVTX
	return []Entry{
		dir("."),
		node1("Block", unix.S_IFBLK|0o660, unix.Mkdev(259, 70000)),
		node1("char", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)),
		dir("dir"),
		dir("dir/below"),
		file("dir/below/deep", 1),
		owned,
		sticky,
		file("dir-x", 2*block.Size), // behind dir/…, since / sorts before -
		file("empty", 0),
		node1("fifo", unix.S_IFIFO|0o600, 0),
		one, two, three,
		file("new\nline", 1),
		file(strings.Repeat("n", 255), 1),
		node1("socket", unix.S_IFSOCK|0o755, 0),
		file("space %?#'\"", 1),
		symlink("symlink", "../no where/\xff"),
		symlink("symlink-long", strings.Repeat("t", unix.PathMax-1)),
		file("ü", 1),
	}
}

func create(tb testing.TB, path string, codec block.Codec, tags map[string]string, routes []Route, entries []Entry, objects ...[]byte) {
	tb.Helper()
	w, err := Create(tb.Context(), path, codec, tags, routes)
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Abort()
	for _, e := range entries {
		if err := w.Add(e); err != nil {
			tb.Fatal(err)
		}
	}
	for _, o := range objects {
		if err := w.AddObject(o); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		tb.Fatal(err)
	}
}

func mustOpen(tb testing.TB, path string) *Manifest {
	tb.Helper()
	m, err := Open(tb.Context(), path)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// dump lists what a manifest holds. Hard links are named by LinkTo.
func dump(m *Manifest) []Entry {
	var all []Entry
	for path, ino := range m.Walk(Root) {
		e := Entry{Path: path, Attr: m.Attr(ino), Target: m.Target(ino), Blocks: m.Blocks(ino), Xattrs: m.Xattrs(ino)}
		if len(e.Blocks) == 0 {
			e.Blocks = nil
		}
		if first := m.FirstName(ino); first != ino {
			e.LinkTo = m.Path(first)
		}
		all = append(all, e)
	}
	return all
}

// sql runs SQL on a file, as whoever made the file might.
func sql(tb testing.TB, path, script string) {
	tb.Helper()
	db, err := sqlite3.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer db.Close()
	if err := db.Exec(script); err != nil {
		tb.Fatalf("%v in %s", err, script)
	}
}

func read(tb testing.TB, path string) []byte {
	tb.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// names lists a directory, with "temp" for each temporary file of atomicfile.
func names(tb testing.TB, dir string) []string {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	var s []string
	for _, e := range entries {
		if atomicfile.IsTemp(e.Name()) {
			s = append(s, "temp")
		} else {
			s = append(s, e.Name())
		}
	}
	return s
}

var someRoutes = []Route{{First: 0, Last: 127, URL: "dir:///a"}, {First: 128, Last: 255, URL: "s3://user@host:9000/bucket/prefix"}}

func TestCreateThenOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	tags := map[string]string{TagKind: "tree", "": "empty key", "ü": ""}
	create(t, path, block.Zstd, tags, someRoutes, allKinds())
	m := mustOpen(t, path)

	want := allKinds()
	for i := range want {
		e := &want[i]
		e.Attr.Ctime = e.Attr.Mtime
		e.Attr.Nlink = max(e.Attr.Nlink, 1)
		switch {
		case e.Attr.IsDir():
			e.Attr.Size, e.Attr.Nlink = dirSize, 2
		case e.Attr.Type() == unix.S_IFLNK:
			e.Attr.Size = int64(len(e.Target))
		}
		if len(e.Xattrs) > 1 { // sorted by name
			e.Xattrs[0], e.Xattrs[1] = e.Xattrs[1], e.Xattrs[0]
		}
	}
	want[0].Attr.Nlink, want[3].Attr.Nlink = 3, 4
	got := dump(m)
	byPath := func(a []Entry) map[string]Entry {
		all := map[string]Entry{}
		for _, e := range a {
			all[e.Path] = e
		}
		return all
	}
	if diff := cmp.Diff(byPath(want), byPath(got)); diff != "" {
		t.Errorf("what was written and what was read differ (-want +got):\n%s", diff)
	}
	if m.Len() != len(want) || !m.Has(Ino(len(want))) || m.Has(Ino(len(want)+1)) || m.Has(0) {
		t.Errorf("Len = %d, want %d and Has to agree", m.Len(), len(want))
	}
	if diff := cmp.Diff(someRoutes, m.Routes()); diff != "" {
		t.Errorf("Routes differ (-want +got):\n%s", diff)
	}
	wantTags := map[string]string{TagKind: "tree", "": "empty key", "ü": "", TagCodec: "zstd", TagBlockSize: "524288"}
	if diff := cmp.Diff(wantTags, m.Tags()); diff != "" {
		t.Errorf("Tags differ (-want +got):\n%s", diff)
	}
	if m.Codec() != block.Zstd {
		t.Errorf("Codec = %v, want zstd", m.Codec())
	}
	if m.BlockCount() != len(m.AllBlocks()) || m.BlockCount() == 0 {
		t.Errorf("BlockCount = %d, want %d", m.BlockCount(), len(m.AllBlocks()))
	}
	checkTree(t, m)
}

// checkTree checks what holds for every manifest that opens.
func checkTree(t *testing.T, m *Manifest) {
	t.Helper()
	for path, ino := range m.Walk(Root) {
		last := ""
		for _, c := range m.Children(ino) {
			name := m.Name(c)
			if name <= last {
				t.Errorf("in %s, %q comes after %q", path, name, last)
			}
			last = name
			if got, ok := m.Lookup(ino, name); !ok || got != c {
				t.Errorf("Lookup(%s, %q) = %d, %v, want %d", path, name, got, ok, c)
			}
			if m.Parent(c) != ino {
				t.Errorf("Parent(%d) = %d, want %d", c, m.Parent(c), ino)
			}
		}
		if got, err := m.Find(path); err != nil || got != ino {
			t.Errorf("Find(%q) = %d, %v, want %d", path, got, err, ino)
		}
		a := m.Attr(ino)
		if got := int64(len(m.Blocks(ino))); a.IsRegular() && got != block.Count(a.Size) {
			t.Errorf("%s has %d blocks, want %d", path, got, block.Count(a.Size))
		}
		if a.Type() == unix.S_IFLNK && (m.Target(ino) == "" || int(a.Size) != len(m.Target(ino))) {
			t.Errorf("symlink %s of size %d points to %q", path, a.Size, m.Target(ino))
		}
	}
}

func TestFind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	create(t, path, block.Zstd, nil, nil, allKinds())
	m := mustOpen(t, path)
	for name, want := range map[string]string{
		"": ".", "/": ".", ".": ".", "dir": "dir", "/dir/below/": "dir/below", "dir/../dir/./below//deep": "dir/below/deep", "../..": ".",
	} {
		if ino, err := m.Find(name); err != nil || m.Path(ino) != want {
			t.Errorf("Find(%q) = %v, %v, want %s", name, ino, err, want)
		}
	}
	for _, name := range []string{"none", "dir/none", "empty/below", "symlink/x", "DIR"} {
		if ino, err := m.Find(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Find(%q) = %v, %v, want fs.ErrNotExist", name, ino, err)
		}
	}
	if _, ok := m.Lookup(Root, ""); ok {
		t.Error(`Lookup(Root, "") found something`)
	}
}

func TestSameInputSameBytes(t *testing.T) {
	d := t.TempDir()
	tags := map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}
	for _, name := range []string{"one.fl", "two.fl"} {
		create(t, filepath.Join(d, name), block.Zstd, tags, someRoutes, allKinds())
	}
	one := read(t, filepath.Join(d, "one.fl"))
	if !bytes.Equal(one, read(t, filepath.Join(d, "two.fl"))) {
		t.Error("two manifests of one tree differ")
	}
	if got := one[18:20]; got[0] != 1 || got[1] != 1 {
		t.Errorf("header says read and write format %v, want 1 and 1: rollback journal", got)
	}
	if got := int(one[16])<<8 | int(one[17]); got != 4096 {
		t.Errorf("page size = %d, want 4096", got)
	}
	if got := names(t, d); len(got) != 2 {
		t.Errorf("directory holds %v, want only the two manifests", got)
	}
}

func TestSnappyHasNoCodecTag(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	create(t, path, block.Snappy, map[string]string{TagCodec: "zstd"}, nil, []Entry{dir(".")})
	m := mustOpen(t, path)
	if _, ok := m.Tags()[TagCodec]; ok || m.Codec() != block.Snappy {
		t.Errorf("Codec = %v, tags %v, want snappy and no tag", m.Codec(), m.Tags())
	}
}

func TestHardPaths(t *testing.T) {
	d := t.TempDir()
	for _, name := range []string{"a?b", "a#b", "a%20b", "a b", "a\xffb", "a:b", "a'\"b", "a\\b", "a&mode=ro", "a\nb"} {
		path := filepath.Join(d, name)
		create(t, path, block.Zstd, nil, nil, []Entry{dir(".")})
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("Create(%q): %v", path, err)
		}
		for _, spelling := range []string{path, "//" + path, d + "/./" + name} {
			if m, err := Open(t.Context(), spelling); err != nil || m.Len() != 1 {
				t.Errorf("Open(%q) = %v, want one node", spelling, err)
			}
		}
		if err := Edit(t.Context(), path, func(e *Editor) error { return e.SetTag("k", name) }); err != nil {
			t.Errorf("Edit(%q) = %v", path, err)
		}
	}
	t.Chdir(d)
	for _, path := range []string{"a?b", "./a b", "relative.fl"} {
		create(t, path, block.Zstd, nil, nil, []Entry{dir(".")})
		mustOpen(t, path)
	}
}

func TestOpenOnReadOnlyMedia(t *testing.T) {
	d := t.TempDir()
	if err := unix.Mount("tmpfs", d, "tmpfs", 0, ""); err != nil {
		testenv.Need(t, fmt.Sprintf("a tmpfs cannot be mounted: %v", err))
	}
	t.Cleanup(func() { unix.Unmount(d, unix.MNT_DETACH) })
	path := filepath.Join(d, "m.fl")
	create(t, path, block.Zstd, nil, someRoutes, allKinds())
	if err := unix.Mount("", d, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if m := mustOpen(t, path); m.Len() != len(allKinds()) {
		t.Errorf("Len = %d, want %d", m.Len(), len(allKinds()))
	}
	if err := Edit(t.Context(), path, func(*Editor) error { return nil }); !errors.Is(err, unix.EROFS) {
		t.Errorf("Edit = %v, want EROFS", err)
	}
	if _, err := Create(t.Context(), path, block.Zstd, nil, nil); !errors.Is(err, unix.EROFS) {
		t.Errorf("Create = %v, want EROFS", err)
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	create(t, path, block.Zstd, nil, nil, []Entry{dir(".")})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("Open = %v, want context.Canceled", err)
	}
}

func TestFileMode(t *testing.T) {
	for _, v := range []struct {
		unix uint32
		mode fs.FileMode
	}{
		{unix.S_IFREG | 0o644, 0o644},
		{unix.S_IFDIR | 0o1777, fs.ModeDir | fs.ModeSticky | 0o777},
		{unix.S_IFREG | 0o6711, fs.ModeSetuid | fs.ModeSetgid | 0o711},
		{unix.S_IFCHR | 0o600, fs.ModeDevice | fs.ModeCharDevice | 0o600},
		{unix.S_IFBLK | 0o600, fs.ModeDevice | 0o600},
		{unix.S_IFIFO, fs.ModeNamedPipe},
		{unix.S_IFSOCK, fs.ModeSocket},
		{unix.S_IFLNK | 0o777, fs.ModeSymlink | 0o777},
	} {
		if got := FileMode(v.unix); got != v.mode {
			t.Errorf("FileMode(%#o) = %v, want %v", v.unix, got, v.mode)
		}
		if got := UnixMode(v.mode); got != v.unix {
			t.Errorf("UnixMode(%v) = %#o, want %#o", v.mode, got, v.unix)
		}
	}
	if got := UnixMode(fs.ModeIrregular | 0o600); got != 0o600 {
		t.Errorf("UnixMode(irregular) = %#o, want no type", got)
	}
}
