package pathfs

import (
	"errors"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

// A mapNode is a file of an fstest.MapFS.
type mapNode struct {
	fs.FileInfo
	path, target string
}

func (n mapNode) Target() string { return n.target }

// newFS makes a tree of words such as a/b and a/link=target; a/b has "a/b" in it.
func newFS(t *testing.T, chroot bool, words string) *FS[mapNode] {
	t.Helper()
	src := fstest.MapFS{}
	for word := range strings.FieldsSeq(words) {
		name, target, link := strings.Cut(word, "=")
		src[name] = &fstest.MapFile{Data: []byte(name), Mode: 0o644}
		if link {
			src[name] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
		}
	}
	nodes := map[string]mapNode{}
	for name := range src {
		for ; nodes[name].FileInfo == nil; name = path.Dir(name) {
			info, err := src.Lstat(name)
			if err != nil {
				t.Fatal(err)
			}
			target, _ := src.ReadLink(name)
			nodes[name] = mapNode{info, name, target}
		}
	}
	return New(nodes, Options[mapNode]{Chroot: chroot, Open: func(n mapNode) (fs.File, error) {
		if path.Base(n.path) == "bad" {
			return nil, syscall.EIO
		}
		return src.Open(n.path)
	}})
}

func TestFS(t *testing.T) {
	for _, chroot := range []bool{false, true} {
		if err := fstest.TestFS(newFS(t, chroot, "a/b a/c/d a/up=c/../b dir=a/c"), "a/b", "a/c/d", "a/up", "dir"); err != nil {
			t.Errorf("with Chroot %t: %v", chroot, err)
		}
	}
}

func TestOpen(t *testing.T) {
	const words = "d/f d/abs=/d/f d/high=../../d/f d/in=../d/f loop=loop2 loop2=loop dir=d/ d/not=f/.. d/bad"
	for _, test := range []struct {
		name         string
		here, chroot error // nil if d/f is there
	}{
		{"d/f", nil, nil},
		{"d/in", nil, nil},
		{"dir/in", nil, nil},
		{"d/abs", fs.ErrNotExist, nil},
		{"d/high", fs.ErrNotExist, nil},
		{"gone", fs.ErrNotExist, fs.ErrNotExist},
		{"gone/f", fs.ErrNotExist, fs.ErrNotExist},
		{"loop", syscall.ELOOP, syscall.ELOOP},
		{"d/f/x", syscall.ENOTDIR, syscall.ENOTDIR},
		{"d/not", syscall.ENOTDIR, syscall.ENOTDIR},
		{"d/../d/f", fs.ErrInvalid, fs.ErrInvalid},
		{"d/bad", syscall.EIO, syscall.EIO},
	} {
		for chroot, want := range map[bool]error{false: test.here, true: test.chroot} {
			data, err := fs.ReadFile(newFS(t, chroot, words), test.name)
			if !errors.Is(err, want) || err == nil && string(data) != "d/f" {
				t.Errorf("ReadFile(%q) with Chroot %t = %q, %v, want d/f or %v", test.name, chroot, data, err, want)
			}
			if pe, ok := errors.AsType[*fs.PathError](err); err != nil && (!ok || pe.Op != "open" || pe.Path != test.name) {
				t.Errorf("ReadFile(%q) with Chroot %t: %v, want an error that names it", test.name, chroot, err)
			}
		}
	}
}

func TestLast(t *testing.T) {
	f := newFS(t, false, "d/f d/l=f dir=d")
	if info, err := f.Lstat("dir/l"); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("Lstat of a symlink: %v, %v, want it and not what it leads to", info, err)
	}
	if n, err := f.Find("look at", "dir/l", true); err != nil || n.path != "d/f" {
		t.Errorf("Find of a symlink, followed: %q, %v, want d/f", n.path, err)
	}
	if _, err := f.ReadLink("dir/f"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ReadLink of a file: %v, want %v", err, fs.ErrInvalid)
	}
	if _, err := f.ReadDir("d/f"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("ReadDir of a file: %v, want %v", err, syscall.ENOTDIR)
	}
}
