package tree_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/tree"
	"overmount/tree/treetest"
)

func link(name, target string) treetest.File {
	return treetest.File{Path: name, Mode: unix.S_IFLNK | 0o777, Target: target}
}

func viewOf(t *testing.T, files ...treetest.File) fs.FS {
	t.Helper()
	m, mem := treetest.Build(t, block.Snappy, files...)
	return tree.New(m, mem, nil).FS(t.Context())
}

func TestFS(t *testing.T) {
	small := big[:5000]
	fsys := viewOf(t,
		treetest.File{Path: "a/b/big", Mode: 0o644, Data: small},
		treetest.File{Path: "a/b/hard", LinkTo: "a/b/big"},
		treetest.File{Path: "a/empty", Mode: 0o600},
		treetest.File{Path: "hollow", Mode: unix.S_IFDIR | 0o1777},
		treetest.File{Path: "fifo", Mode: unix.S_IFIFO | 0o644},
		treetest.File{Path: "null", Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)},
		treetest.File{Path: "schön \n" + strings.Repeat("x", 200), Mode: 0o4755, Data: []byte("hello")},
		link("a/l", "b/big"), // TestFS fails for a dangling one, as it does for os.DirFS
	)
	if err := fstest.TestFS(fsys, "a/b/big", "a/b/hard", "a/empty", "hollow", "fifo", "null", "a/l"); err != nil {
		t.Error(err)
	}
	f, err := fsys.Open("a/b/big")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := iotest.TestReader(f, small); err != nil { // it also seeks, and reads at offsets
		t.Error(err)
	}
}

func TestFSFollowsLinksWithinTheTree(t *testing.T) {
	files := []treetest.File{
		{Path: "d/e/f", Mode: 0o644, Data: []byte("here")},
		link("file", "d/e/f"), link("dir", "d/e"), link("two", "file"), link("d/up", "../dir/../e/f"),
		link("slash", "d/e/"), link("dot", "./d/./e/f"),
		link("abs", "/d/e/f"), link("out", "../d/e/f"), link("d/out", "../../d/e/f"), link("dangling", "nowhere"),
		link("through", "d/e/f/x"), link("loop", "loop2"), link("loop2", "loop"),
		link("hop0", "d/e/f"),
	}
	for i := range 45 {
		files = append(files, link(fmt.Sprintf("hop%d", i+1), fmt.Sprintf("hop%d", i)))
	}
	fsys := viewOf(t, files...)
	for _, name := range []string{"file", "dir/f", "two", "d/up", "slash/f", "dot", "hop39"} {
		if got, err := fs.ReadFile(fsys, name); string(got) != "here" || err != nil {
			t.Errorf("ReadFile(%s) = %q, %v, want %q", name, got, err, "here")
		}
	}
	for _, name := range []string{"abs", "out", "d/out", "dangling", "through", "file/x", "dir/none", "d/e/f/.."} {
		_, err := fs.Stat(fsys, name)
		if want := fs.ErrNotExist; !errors.Is(err, want) && !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Stat(%s) = %v, want %v", name, err, want)
		}
	}
	for _, name := range []string{"loop", "loop/x", "hop40", "hop45"} {
		if _, err := fsys.Open(name); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "symbolic links") {
			t.Errorf("Open(%s) = %v, want too many symbolic links", name, err)
		}
	}
	if info, err := fs.Lstat(fsys, "dir"); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("Lstat(dir) = %v, %v, want a symlink", info, err)
	}
	if _, err := fs.ReadLink(fsys, "d/e/f"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ReadLink of a file = %v, want fs.ErrInvalid", err)
	}
	if _, err := fs.ReadFile(fsys, "d"); err == nil {
		t.Error("ReadFile of a directory = nil, want an error")
	}
	if _, err := fs.ReadDir(fsys, "file"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadDir of a file = %v, want another error than fs.ErrNotExist", err)
	}
}

func TestFileAfterClose(t *testing.T) {
	f, err := viewOf(t, treetest.File{Path: "f", Mode: 0o644, Data: []byte("x")}).Open("f")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read after Close = %v, want fs.ErrClosed", err)
	}
}

// A lost block is an error of its own, never a missing file.
func TestFSLostBlock(t *testing.T) {
	m, _ := treetest.Build(t, block.Zstd, treetest.File{Path: "f", Mode: 0o644, Data: []byte("x")})
	got, err := fs.ReadFile(tree.New(m, &store.Mem{}, nil).FS(t.Context()), "f")
	if got != nil || !errors.Is(err, store.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadFile of a lost block = %q, %v, want store.ErrNotFound and not fs.ErrNotExist", got, err)
	}
}

func TestSysIsStat(t *testing.T) {
	fsys := viewOf(t,
		treetest.File{Path: "a", Mode: 0o4711, UID: 3, GID: 70000, Mtime: -5, Data: make([]byte, 513)},
		treetest.File{Path: "b", LinkTo: "a"},
	)
	for _, name := range []string{"a", "b"} {
		info, err := fs.Stat(fsys, name)
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		got := []int64{int64(st.Ino), int64(st.Nlink), int64(st.Mode), int64(st.Uid), int64(st.Gid), st.Size, st.Blocks, int64(st.Mtim.Sec)}
		if diff := cmp.Diff([]int64{2, 2, unix.S_IFREG | 0o4711, 3, 70000, 513, 2, -5}, got); diff != "" {
			t.Errorf("Sys of %s (-want +got):\n%s", name, diff)
		}
	}
}

const sample = "../manifest/testdata/rfs-sample"

func TestRfsSample(t *testing.T) {
	for _, name := range []string{"sample.fl", "ranges.fl"} {
		m, err := manifest.Open(t.Context(), filepath.Join(sample, name))
		if err != nil {
			t.Fatal(err)
		}
		src := store.Checked(store.NewDir(filepath.Join(sample, "objects")))
		fsys := tree.New(m, src, nil).FS(t.Context())
		sources := treetest.Sample(t, sample)
		for _, s := range sources {
			compare(t, fsys, s)
		}
		n := 0
		fs.WalkDir(fsys, ".", func(string, fs.DirEntry, error) error { n++; return nil })
		if n != len(sources) {
			t.Errorf("%s has %d nodes, want %d", name, n, len(sources))
		}
	}
}

func compare(t *testing.T, fsys fs.FS, s treetest.Source) {
	t.Helper()
	info, err := fs.Lstat(fsys, s.Path)
	if err != nil {
		t.Error(err)
		return
	}
	st, want := info.Sys().(*syscall.Stat_t), s.Attr(t)
	got := manifest.Attr{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Rdev: st.Rdev, Mtime: int64(st.Mtim.Sec), Size: st.Size}
	if want.Size == 0 {
		got.Size = 0 // of directories and devices it is whatever the packer's file system said
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("attributes of %s (-want +got):\n%s", s.Path, diff)
	}
	if s.Target != "" {
		if target, err := fs.ReadLink(fsys, s.Path); target != s.Target || err != nil {
			t.Errorf("ReadLink(%s) = %q, %v, want %q", s.Path, target, err, s.Target)
		}
	}
	if s.SHA256 == "" {
		return
	}
	f, err := fsys.Open(s.Path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil || fmt.Sprintf("%x", h.Sum(nil)) != s.SHA256 {
		t.Errorf("content of %s: sha256 %x, %v, want %s", s.Path, h.Sum(nil), err, s.SHA256)
	}
}
