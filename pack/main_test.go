package pack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/tree"
	"overmount/tree/treetest"
)

// helperEnv makes the test binary one of the programs that tests start.
const helperEnv = "PACK_TEST_HELPER"

func TestMain(m *testing.M) {
	helpers := map[string]func(args []string) error{"pack": helperPack, "unpack": helperUnpack}
	name := os.Getenv(helperEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := helpers[name](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// helper returns the command that runs one of the helpers.
func helper(t *testing.T, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
}

// A seen node is what a directory holds at a path, to the second.
type seen struct {
	Mode, UID, GID                 uint32
	Rdev                           uint64
	Size, Mtime                    int64
	SHA256, Target, SameAs, Xattrs string
}

// look returns what is below dir, by path.
func look(t *testing.T, dir string) map[string]seen {
	t.Helper()
	all := map[string]seen{}
	names := map[uint64]string{}
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		all[at], err = lookAt(name, at, names)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func lookAt(name, at string, names map[uint64]string) (seen, error) {
	l, err := treetest.Look(name)
	s := seen{
		Mode: l.Mode, UID: l.UID, GID: l.GID, Rdev: l.Rdev, Mtime: l.Mtime,
		SHA256: l.SHA256, Target: l.Target, Xattrs: l.Xattrs,
	}
	if l.Mode&unix.S_IFMT != unix.S_IFDIR {
		s.Size = l.Size
		if s.SameAs = names[l.Ino]; s.SameAs == "" {
			names[l.Ino] = at
		}
	}
	return s, err
}

func sameTree(t *testing.T, want, got map[string]seen) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("trees differ (-want +got):\n%s", diff)
	}
}

// write makes the files in the directory dir, in the given order, and then sets
// the times of the directories. Mtime gets a fraction on top.
func write(t *testing.T, dir string, files []treetest.File) {
	t.Helper()
	for _, f := range files {
		name := filepath.Join(dir, f.Path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := writeNode(dir, name, f); err != nil {
			t.Fatalf("make %q: %v", f.Path, err)
		}
	}
	dirs := slices.DeleteFunc(slices.Clone(files), func(f treetest.File) bool { return f.Mode&unix.S_IFMT != unix.S_IFDIR })
	slices.SortFunc(dirs, func(a, b treetest.File) int { return strings.Compare(b.Path, a.Path) })
	for _, f := range dirs {
		if err := finishNode(filepath.Join(dir, f.Path), f); err != nil {
			t.Fatalf("make %q: %v", f.Path, err)
		}
	}
}

func writeNode(dir, name string, f treetest.File) error {
	var err error
	switch f.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return os.MkdirAll(name, 0o755)
	case unix.S_IFLNK:
		err = os.Symlink(f.Target, name)
	case 0, unix.S_IFREG:
		if f.LinkTo != "" {
			return os.Link(filepath.Join(dir, f.LinkTo), name)
		}
		err = os.WriteFile(name, f.Data, 0o600)
	default:
		err = unix.Mknod(name, f.Mode, int(f.Rdev))
	}
	return errors.Join(err, finishNode(name, f))
}

func finishNode(name string, f treetest.File) error {
	var errs []error
	if os.Geteuid() == 0 {
		errs = append(errs, os.Lchown(name, int(f.UID), int(f.GID)))
	}
	for _, x := range f.Xattrs {
		errs = append(errs, unix.Lsetxattr(name, x.Name, x.Value, 0))
	}
	if f.Mode&unix.S_IFMT != unix.S_IFLNK {
		errs = append(errs, unix.Chmod(name, f.Mode&0o7777))
	}
	times := []unix.Timespec{{Sec: f.Mtime, Nsec: 987654321}, {Sec: f.Mtime, Nsec: 987654321}}
	return errors.Join(append(errs, unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW))...)
}

// allKinds is a tree of all that can be packed; what only root can make is in it
// for root alone.
func allKinds() []treetest.File {
	const when = 1700000000
	dir := func(name string, perm uint32, mtime int64) treetest.File {
		return treetest.File{Path: name, Mode: unix.S_IFDIR | perm, Mtime: mtime}
	}
	file := func(name string, perm uint32, data []byte) treetest.File {
		return treetest.File{Path: name, Mode: unix.S_IFREG | perm, Mtime: when, Data: data}
	}
	user := []manifest.Xattr{{Name: "user.empty"}, {Name: "user.note", Value: []byte("a\x00b")}}
	files := []treetest.File{
		dir("d", 0o1777, when), dir("d/empty", 0o700, -1), dir("closed", 0, when),
		file("a", 0o644, []byte("a")), file("zero", 0o444, nil), file("none", 0, []byte("nobody reads this")),
		file("setuid", 0o6755, []byte("x")), file("d/one-more", 0o644, treetest.Random(1, block.Size+1)),
		file("block", 0o644, treetest.Random(2, block.Size)), file("zeros", 0o644, make([]byte, 3*block.Size+7)),
		file("a space\nand a line", 0o600, []byte("odd")), file(strings.Repeat("n", 255), 0o600, []byte("long")),
		file("d/überström-漢字", 0o600, []byte("not ASCII")), file("-rf", 0o600, nil),
		{Path: "old", Mode: unix.S_IFREG | 0o644, Mtime: -86400, Data: []byte("1969")},
		{Path: "d/first", Mode: unix.S_IFREG | 0o640, Mtime: when, Data: []byte("two names"), Xattrs: user},
		{Path: "e/second", LinkTo: "d/first"},
		{Path: "locked", Mode: unix.S_IFREG | 0o400, Mtime: when, Data: []byte("read-only, with an attribute"), Xattrs: user},
		{Path: "link", Mode: unix.S_IFLNK | 0o777, Mtime: when, Target: "d/first"},
		{Path: "dangling", Mode: unix.S_IFLNK | 0o777, Mtime: -5, Target: "/no/such\nfile"},
		{Path: "pipe", Mode: unix.S_IFIFO | 0o620, Mtime: when}, {Path: "socket", Mode: unix.S_IFSOCK | 0o755, Mtime: when},
		{Path: "e", Mode: unix.S_IFDIR | 0o555, Mtime: when, Xattrs: user},
		dir(".", 0o750, when),
	}
	if os.Geteuid() != 0 {
		return slices.DeleteFunc(files, func(f treetest.File) bool { return f.Mode&0o400 == 0 && f.LinkTo == "" })
	}
	for i := range files {
		files[i].UID, files[i].GID = uint32(1000+i), uint32(70000+i)
	}
	root := []manifest.Xattr{{Name: "security.test", Value: []byte{0, 255}}, {Name: "trusted.overlay.opaque", Value: []byte("y")}}
	return append([]treetest.File{
		{Path: "char", Mode: unix.S_IFCHR | 0o666, Mtime: when, Rdev: unix.Mkdev(1, 3)},
		{Path: "disk", Mode: unix.S_IFBLK | 0o660, Mtime: when, Rdev: unix.Mkdev(259, 70000)},
		{Path: "trusted", Mode: unix.S_IFREG | 0o644, Mtime: when, Data: []byte("t"), Xattrs: root},
	}, files...)
}

// packed packs src to a store in memory, and returns what readers get.
func packed(t *testing.T, src fs.FS, opts *Options) (*tree.Tree, Summary) {
	t.Helper()
	mem := &store.Mem{}
	path := filepath.Join(t.TempDir(), "m.fl")
	s, err := Run(t.Context(), src, mem, path, opts)
	if err != nil {
		t.Fatal(err)
	}
	return tree.New(open(t, path), mem, nil), s
}

func open(t *testing.T, path string) *manifest.Manifest {
	t.Helper()
	m, err := manifest.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// bytesOf packs src and returns the manifest.
func bytesOf(t *testing.T, src fs.FS, opts *Options) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.fl")
	if _, err := Run(t.Context(), src, &store.Mem{}, path, opts); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// unpacked unpacks as the user who tests may.
func unpacked(t *testing.T, tr *tree.Tree) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "out")
	_, skipped, err := Unpack(t.Context(), tr, dir, &UnpackOptions{Owners: os.Geteuid() == 0})
	if err != nil || skipped != 0 {
		t.Fatalf("Unpack skipped %d, error %v; want neither", skipped, err)
	}
	return dir
}

var codecs = []block.Codec{block.Zstd, block.Snappy}

// soon is a context for what must not hang.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
