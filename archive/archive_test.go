package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/archive"
	"overmount/archive/archivetest"
	"overmount/internal/testenv"
)

var day = time.Unix(1_700_000_000, 0)

func newSpool(t testing.TB, o *archive.Options) *archive.Spool {
	t.Helper()
	if o == nil {
		o = &archive.Options{}
	}
	o.Dir = t.TempDir()
	s, err := archive.NewSpool(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func regular(name, content string) (archive.File, string) {
	return archive.File{Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: day}, content
}

func add(t testing.TB, p *archive.Package, f archive.File, content string) {
	t.Helper()
	if err := p.Add(f, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

func addFile(t testing.TB, p *archive.Package, name, content string) {
	t.Helper()
	f, content := regular(name, content)
	add(t, p, f, content)
}

func symlink(name, target string) archive.File {
	return archive.File{Name: name, Mode: fs.ModeSymlink | 0o777, Link: target, ModTime: day}
}

func treeOf(t testing.TB, s *archive.Spool, packages ...*archive.Package) *archive.Tree {
	t.Helper()
	tree, err := s.Tree(packages, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestTree(t *testing.T) {
	s := newSpool(t, nil)
	p, q := s.Package("p-1"), s.Package("q-1")
	add(t, p, archive.File{Name: "./lib/", Mode: fs.ModeDir | 0o750, UID: 3, GID: 4, ModTime: day}, "")
	addFile(t, p, "./lib/firmware/a.bin", "content of a")
	add(t, p, archive.File{Name: "lib/firmware/b.bin", Mode: 0o644, Link: "./lib/firmware/a.bin"}, "")
	add(t, p, symlink("lib/link.bin", "/lib/../../lib/firmware/b.bin"), "")
	add(t, q, symlink("lib/fw", "firmware"), "")
	addFile(t, q, "lib/firmware/a.bin", "content of a") // the same
	addFile(t, q, "lib/firmware/empty", "")
	tree := treeOf(t, s, p, q)

	if err := fstest.TestFS(tree, "lib/firmware/a.bin", "lib/firmware/b.bin", "lib/link.bin", "lib/fw"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"lib/firmware/b.bin", "lib/link.bin", "lib/fw/a.bin"} {
		if b, err := fs.ReadFile(tree, name); string(b) != "content of a" || err != nil {
			t.Errorf("ReadFile(%q) = %q, %v, want the content of a", name, b, err)
		}
	}
	var stats [2]*syscall.Stat_t
	for i, name := range []string{"lib/firmware/a.bin", "lib/firmware/b.bin"} {
		info, err := tree.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		stats[i] = info.Sys().(*syscall.Stat_t)
	}
	sec, _ := stats[0].Mtim.Unix()
	if diff := cmp.Diff(stats[0], stats[1]); diff != "" || stats[0].Nlink != 2 || sec != day.Unix() {
		t.Errorf("the two names of a file: %+v; difference %s; want one inode with two links", stats[0], diff)
	}
	info, err := tree.Lstat("lib")
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 3 || st.Gid != 4 || st.Mode != syscall.S_IFDIR|0o750 {
		t.Errorf("lib: %+v, want mode 0750 of 3:4", st)
	}
	for name, want := range map[string]string{"lib/firmware/a.bin": "p-1", "lib/fw": "q-1", "lib/firmware": "", "nothing": ""} {
		if got := tree.Owner(name); got != want {
			t.Errorf("Owner(%q) = %q, want %q", name, got, want)
		}
	}
	if got := p.Len(); got != 4 {
		t.Errorf("Len() = %d, want 4", got)
	}
}

func TestMap(t *testing.T) {
	s := newSpool(t, &archive.Options{Map: archive.Below("lib/firmware", "usr/lib/firmware")})
	p := s.Package("p")
	add(t, p, archive.File{Name: "lib/firmware", Mode: fs.ModeDir | 0o700}, "")
	add(t, p, archive.File{Name: "usr/lib/firmware", Mode: fs.ModeDir | 0o755}, "")
	addFile(t, p, "lib/firmware/x/a", "a")
	addFile(t, p, "usr/lib/firmware/x/b", "b")
	// Its content is not even asked for.
	if err := p.Add(archive.File{Name: "boot/vmlinuz", Mode: 0o600, Size: 1 << 50}, nil); err != nil {
		t.Fatal(err)
	}
	tree := treeOf(t, s, p)
	if got, err := fs.Glob(tree, "*/*"); !cmp.Equal(got, []string{"x/a", "x/b"}) || err != nil {
		t.Errorf("the tree has %q, %v, want x/a and x/b", got, err)
	}
	if info, err := tree.Stat("."); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("Stat(.) = %v, %v, want the mode of the first that is the root", info.Mode(), err)
	}
	if err := p.Add(archive.File{Name: "lib/firmware/l", Mode: 0o644, Link: "boot/vmlinuz"}, nil); err == nil || !strings.Contains(err.Error(), "left out") {
		t.Errorf("a hard link to what is left out: %v, want an error that says so", err)
	}
	addFile(t, p, "lib/firmware/twice", "1")
	f, content := regular("usr/lib/firmware/twice", "2")
	if err := p.Add(f, strings.NewReader(content)); err == nil {
		t.Error("two files of one package at the same path: no error")
	}
}

func TestRefused(t *testing.T) {
	file := func(name string) archive.File { return archive.File{Name: name, Mode: 0o644, Size: 1} }
	long := strings.Repeat("d/", 129) + "f"
	for _, test := range []struct {
		add  archive.File
		want string
	}{
		{file("/etc/passwd"), "absolute"},
		{file("a/../../b"), `".."`},
		{file(".."), `".."`},
		{file("./../b"), `".."`},
		{file(""), "empty"},
		{file("/"), "empty"},
		{file("."), "root of the tree"},
		{file("a//b"), `"//"`},
		{file("a/./b"), `"/./"`},
		{file("a\x00b"), "NUL"},
		{file("a\xff"), "UTF-8"},
		{file(long), "128 directories"},
		{file(strings.Repeat("x", 256)), "256 bytes"},
		{file(strings.Repeat(strings.Repeat("x", 100)+"/", 50)), "over the limit of 4095"},
		{file("dir/file"), "a file at the path already"},
		{file("./dir/link"), "a symlink to \"/\" at the path already"},
		{file("dir"), "a directory at the path already"},
		{file("dir/link/etc/passwd"), "below \"dir/link\", which is no directory but a symlink"},
		{file("dir/file/x"), "below \"dir/file\""},
		{file("short"), "ends after 0 of 1"},
		{archive.File{Name: "dir/file", Mode: fs.ModeDir}, "a file at the path already"},
		{archive.File{Name: "named", Mode: fs.ModeDir}, "twice"},
		{archive.File{Name: "null", Mode: fs.ModeDevice | fs.ModeCharDevice}, "device"},
		{archive.File{Name: "sda", Mode: fs.ModeDevice}, "device"},
		{archive.File{Name: "pipe", Mode: fs.ModeNamedPipe}, "pipe"},
		{archive.File{Name: "socket", Mode: fs.ModeSocket}, "no file, directory or symlink"},
		{symlink("s", ""), "symlink"},
		{symlink("s", "a\x00"), "symlink"},
		{symlink("s", strings.Repeat("x", 4096)), "symlink"},
		{archive.File{Name: "h", Mode: 0o644, Link: "/etc/passwd"}, "absolute"},
		{archive.File{Name: "h", Mode: 0o644, Link: "../x"}, `".."`},
		{archive.File{Name: "h", Mode: 0o644, Link: "later"}, "no earlier file"},
		{archive.File{Name: "h", Mode: 0o644, Link: "dir"}, "a directory"},
		{archive.File{Name: "h", Mode: 0o644, Link: "dir/link"}, "a symlink"},
		{archive.File{Name: "big", Mode: 0o644, Size: 1 << 40}, "over the limit of 1000"},
		{archive.File{Name: "big", Mode: 0o644, Size: -1}, "-1"},
		{archive.File{Name: "old", Mode: 0o644, ModTime: time.Unix(-1<<40, 0)}, "out of range"},
		{archive.File{Name: "x", Mode: fs.ModeDir, Xattrs: []archive.Xattr{{"user.x", make([]byte, 65<<20)}}}, "attributes"},
		{file("1/2/3/4/5/6/7/8/9/10"), "limit of 10 files"},
	} {
		t.Run(fmt.Sprintf("%.20q", test.add.Name), func(t *testing.T) {
			s := newSpool(t, &archive.Options{MaxBytes: 1000, MaxFiles: 10})
			p := s.Package("p")
			addFile(t, p, "dir/file", "x")
			add(t, p, symlink("dir/link", "/"), "")
			add(t, p, archive.File{Name: "named", Mode: fs.ModeDir}, "")
			err := p.Add(test.add, strings.NewReader(""))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Add(%.80q) = %v, want an error with %q", test.add.Name, err, test.want)
			}
		})
	}
}

func TestFollow(t *testing.T) {
	s := newSpool(t, nil)
	p := s.Package("p")
	addFile(t, p, "etc/passwd", "ours")
	for name, target := range map[string]string{
		"abs": "/etc/passwd", "up": "../../../../etc/passwd", "loop": "loop2", "loop2": "loop", "gone": "/etc/shadow",
		"dir": "etc/", "a/b/c": "../../dir/../etc/passwd", "through": "etc/passwd/..",
	} {
		add(t, p, symlink(name, target), "")
	}
	tree := treeOf(t, s, p)
	for _, name := range []string{"abs", "up", "dir/passwd", "a/b/c"} {
		if b, err := fs.ReadFile(tree, name); string(b) != "ours" || err != nil {
			t.Errorf("ReadFile(%q) = %q, %v, want the file in the tree", name, b, err)
		}
	}
	for name, want := range map[string]error{
		"loop": syscall.ELOOP, "gone": fs.ErrNotExist, "through": syscall.ENOTDIR, "etc/passwd/x": syscall.ENOTDIR, "../etc": fs.ErrInvalid,
	} {
		if _, err := tree.Open(name); !errors.Is(err, want) {
			t.Errorf("Open(%q) = %v, want %v", name, err, want)
		}
	}
	if got, err := tree.ReadLink("up"); got != "../../../../etc/passwd" || err != nil {
		t.Errorf("ReadLink(up) = %q, %v, want the target as it was", got, err)
	}
}

func TestConflict(t *testing.T) {
	build := func(t *testing.T, replaces func(winner, loser string) bool) (*archive.Tree, error) {
		s := newSpool(t, nil)
		p, q := s.Package("p-1"), s.Package("q-2")
		addFile(t, p, "a/differs", "1")
		addFile(t, q, "a/differs", "2")
		addFile(t, p, "a/same", "same")
		addFile(t, q, "a/same", "same")
		add(t, p, symlink("b", "x"), "")
		add(t, q, symlink("b", "y"), "")
		return s.Tree([]*archive.Package{p, q}, replaces)
	}
	_, err := build(t, nil)
	conflicts, ok := errors.AsType[*archive.ConflictError](err)
	want := []archive.Conflict{
		{"a/differs", [2]string{"p-1", "q-2"}, [2]string{"a file", "a file"}},
		{"b", [2]string{"p-1", "q-2"}, [2]string{`a symlink to "x"`, `a symlink to "y"`}},
	}
	if !ok || !cmp.Equal(conflicts.Conflicts, want) {
		t.Fatalf("Tree() = %v, want the conflicts %v", err, want)
	}
	if _, err := build(t, func(string, string) bool { return true }); err == nil {
		t.Error("Tree() of packages that replace each other: no error")
	}
	for winner, want := range map[string]string{"p-1": "1", "q-2": "2"} {
		tree, err := build(t, func(w, _ string) bool { return w == winner })
		if err != nil {
			t.Fatal(err)
		}
		if got, err := fs.ReadFile(tree, "a/differs"); string(got) != want || err != nil || tree.Owner("b") != winner {
			t.Errorf("%s replaces: content %q, %v, b is of %s, want %q of it", winner, got, err, tree.Owner("b"), want)
		}
	}
}

// TestBelowOtherLink is about what two packages could do together.
func TestBelowOtherLink(t *testing.T) {
	s := newSpool(t, nil)
	p, q := s.Package("p"), s.Package("q")
	add(t, p, symlink("lib/x", "/etc"), "")
	addFile(t, q, "lib/x/passwd", "bad")
	for _, order := range [][]*archive.Package{{p, q}, {q, p}} {
		_, err := s.Tree(order, func(string, string) bool { return true })
		if _, ok := errors.AsType[*archive.ConflictError](err); !ok {
			t.Errorf("Tree() = %v, want a conflict", err)
		}
	}
}

// TestDiscard also shows that the space of a package goes back to the limit, and
// that the others stay as they are.
func TestDiscard(t *testing.T) {
	s := newSpool(t, &archive.Options{MaxBytes: 10, MaxFiles: 4})
	p, q := s.Package("p"), s.Package("q")
	addFile(t, p, "p", "ppppp")
	addFile(t, p, "empty", "")
	addFile(t, q, "q", "qqqqq")
	p.Discard()
	addFile(t, p, "p", "PPPPP")
	addFile(t, p, "p2", "")
	tree := treeOf(t, s, p, q)
	for name, want := range map[string]string{"p": "PPPPP", "q": "qqqqq"} {
		if b, err := fs.ReadFile(tree, name); string(b) != want || err != nil {
			t.Errorf("ReadFile(%q) = %q, %v, want %q", name, b, err, want)
		}
	}
	if _, err := tree.Lstat("empty"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was discarded is there: %v", err)
	}
}

func TestParallel(t *testing.T) {
	s := newSpool(t, nil)
	packages := make([]*archive.Package, 8)
	content := func(i, j int) string { return strings.Repeat(fmt.Sprintf("%d-%d,", i, j), 50_000*(j%3)) }
	var wg sync.WaitGroup
	for i := range packages {
		packages[i] = s.Package(fmt.Sprint(i))
		wg.Go(func() {
			for j := range 20 {
				f, content := regular(fmt.Sprintf("d%d/%d", j, i), content(i, j))
				if err := packages[i].Add(f, strings.NewReader(content)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	tree := treeOf(t, s, packages...)
	for i := range packages {
		for j := range 20 {
			name := fmt.Sprintf("d%d/%d", j, i)
			if b, err := fs.ReadFile(tree, name); string(b) != content(i, j) || err != nil {
				t.Fatalf("ReadFile(%q): %d bytes, %v, want %d", name, len(b), err, len(content(i, j)))
			}
		}
	}
}

// TestSpool holds that nothing is left in the directory, even while the content is
// in it.
func TestSpool(t *testing.T) {
	dir := t.TempDir()
	s, err := archive.NewSpool(&archive.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	p := s.Package("p")
	addFile(t, p, "a", "content")
	if list, err := os.ReadDir(dir); len(list) != 0 || err != nil {
		t.Errorf("the directory of the spool has %v, %v, want nothing", list, err)
	}
	tree := treeOf(t, s, p)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.ReadFile(tree, "a"); err == nil {
		t.Error("reading from a spool that is closed: no error")
	}
	_, err = archive.NewSpool(&archive.Options{Dir: filepath.Join(dir, "none")})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("a spool where no directory is: %v, want an error that says what to do", err)
	}
}

// TestTar reads what GNU tar wrote.
func TestTar(t *testing.T) {
	tarCmd := testenv.Tool(t, "tar")
	dir := t.TempDir()
	for name, content := range map[string]string{"a/one": "1", "a/b/two": strings.Repeat("2", 100_000), strings.Repeat("long/", 30) + "x": "x"} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("../a/one", filepath.Join(dir, "a/link")), os.Link(filepath.Join(dir, "a/one"), filepath.Join(dir, "a/z"))); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax", "ustar"} {
		out, err := exec.Command(tarCmd, "-c", "--format", format, "--sort=name", "-C", dir, ".").Output()
		if err != nil {
			t.Fatal(err)
		}
		s := newSpool(t, nil)
		p := s.Package("p")
		if err := p.AddTar(bytes.NewReader(out)); err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		tree := treeOf(t, s, p)
		if diff := cmp.Diff(listing(t, os.DirFS(dir)), listing(t, tree)); diff != "" {
			t.Errorf("%s: directory and tree (-want +got):\n%s", format, diff)
		}
		if err := s.Package("q").AddTar(bytes.NewReader(append(out, "more"...))); err == nil || !strings.Contains(err.Error(), "follows the end") {
			t.Errorf("%s with something behind its end: %v, want an error", format, err)
		}
		if err := s.Package("q").AddTar(bytes.NewReader(out[:len(out)/2+100])); err == nil {
			t.Errorf("half of %s: no error", format)
		}
	}
}

// listing is a tree as text, by path.
func listing(t *testing.T, fsys fs.FS) map[string]string {
	t.Helper()
	list := map[string]string{}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%v %d:%d %d", info.Mode(), st.Uid, st.Gid, info.ModTime().Unix())
		switch info.Mode().Type() {
		case 0:
			b, err := fs.ReadFile(fsys, name)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %q", st.Nlink, b)
		case fs.ModeSymlink:
			target, err := fs.ReadLink(fsys, name)
			if err != nil {
				return err
			}
			line += " " + target
		}
		list[name] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestTarRefused(t *testing.T) {
	for want, h := range map[string]tar.Header{
		"device":       {Name: "null", Typeflag: tar.TypeChar, Devmajor: 1},
		"pipe":         {Name: "p", Typeflag: tar.TypeFifo},
		"another type": {Name: "x", Typeflag: tar.TypeReg, Mode: 0o040755},
		"the type":     {Name: "x", Typeflag: tar.TypeCont},
		"absolute":     {Name: "/x", Typeflag: tar.TypeReg},
		"no earlier":   {Name: "x", Typeflag: tar.TypeLink, Linkname: "y"},
		"out of range": {Name: "x", Typeflag: tar.TypeReg, Uid: -1, Format: tar.FormatGNU},
	} {
		err := newSpool(t, nil).Package("p").AddTar(bytes.NewReader(tarOf(t, h)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("AddTar of %+v = %v, want an error with %q", h, err, want)
		}
	}
	zeros := io.MultiReader(bytes.NewReader(tarOf(t)), io.LimitReader(endless{}, 1<<40))
	if err := newSpool(t, nil).Package("p").AddTar(zeros); err == nil {
		t.Error("a tar archive with a terabyte of padding: no error")
	}
}

func TestXattrs(t *testing.T) {
	s := newSpool(t, nil)
	p := s.Package("p")
	h := tar.Header{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.b": "2", "SCHILY.xattr.security.a": "1"}}
	if err := p.AddTar(bytes.NewReader(tarOf(t, h))); err != nil {
		t.Fatal(err)
	}
	got, err := treeOf(t, s, p).Xattrs("x")
	if want := []archive.Xattr{{"security.a", []byte("1")}, {"user.b", []byte("2")}}; err != nil || !cmp.Equal(got, want) {
		t.Errorf("Xattrs(x) = %v, %v, want %v", got, err, want)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// FuzzAddTar holds that no archive panics or hangs, and that no path of a tree that
// came from one leaves its root.
func FuzzAddTar(f *testing.F) {
	f.Add(tarOf(f, tar.Header{Name: "./a/", Typeflag: tar.TypeDir}, tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Size: 600},
		tar.Header{Name: "c", Typeflag: tar.TypeLink, Linkname: "a/b"}, tar.Header{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "../a"}))
	for _, name := range []string{"/etc/x", "../x", "a/../../x", "./..", "a//b", "a/./b"} {
		f.Add(tarOf(f, tar.Header{Name: "a/", Typeflag: tar.TypeDir}, tar.Header{Name: name, Typeflag: tar.TypeReg}))
		f.Add(tarOf(f, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: name}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: name}))
	}
	f.Add(tarOf(f, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/"}, tar.Header{Name: "a/b", Typeflag: tar.TypeReg}))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newSpool(t, &archive.Options{MaxBytes: 1 << 20, MaxFiles: 1000})
		p := s.Package("p")
		if p.AddTar(bytes.NewReader(data)) != nil {
			return
		}
		tree := treeOf(t, s, p)
		for name := range archivetest.InRoot(t, tree) {
			// In the tree, a symlink leads to what is in it, or nowhere.
			if info, err := tree.Stat(name); err == nil && !inTree(tree, info) {
				t.Errorf("%q leads out of the tree", name)
			}
		}
	})
}

// inTree reports whether a tree has a file.
func inTree(tree *archive.Tree, want fs.FileInfo) bool {
	found := false
	err := fs.WalkDir(tree, ".", func(_ string, d fs.DirEntry, err error) error {
		if info, e := d.Info(); err == nil && e == nil {
			found = found || info.Sys().(*syscall.Stat_t).Ino == want.Sys().(*syscall.Stat_t).Ino
		}
		return err
	})
	return err == nil && found
}
