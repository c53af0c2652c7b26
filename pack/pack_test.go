package pack

import (
	"archive/tar"
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
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/atomicfile"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

// small is a tree of a few blocks, one of which occurs three times.
func small(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	twice := treetest.Random(1, block.Size)
	write(t, dir, []treetest.File{
		{Path: "a", Mtime: 1, Data: []byte("a")}, {Path: "b", Mtime: 1, Data: slices.Concat(twice, twice, []byte("end"))},
		{Path: "d/c", Mtime: 1, Data: twice}, {Path: "d/e", Mtime: 1}, {Path: "l", Mode: unix.S_IFLNK | 0o777, Mtime: 1, Target: "a"},
	})
	return dir
}

func TestSummaryAndDedup(t *testing.T) {
	dir, dst := small(t), store.NewDir(filepath.Join(t.TempDir(), "objects"))
	want := Summary{
		Files: 4, Others: 3, Bytes: 3*block.Size + 4, DoneFile: 4, DoneByte: 3*block.Size + 4, Blocks: 5,
		Objects: 3, NewObjects: 3,
	}
	for _, newObjects := range []int64{3, 0} {
		got, err := Run(t.Context(), Dir(dir), dst, filepath.Join(t.TempDir(), "m.fl"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if (got.NewBytes == got.ObjectBytes) != (newObjects > 0) || got.ObjectBytes < block.Size {
			t.Errorf("%d bytes of objects, %d of them new, with %d new objects", got.ObjectBytes, got.NewBytes, newObjects)
		}
		got.ObjectBytes, got.NewBytes, want.NewObjects = 0, 0, newObjects
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Summary differs (-want +got):\n%s", diff)
		}
	}
}

func TestOneObjectIsPutOnce(t *testing.T) {
	f := storetest.NewFaulty(&store.Mem{})
	if _, err := Run(t.Context(), Dir(small(t)), f, filepath.Join(t.TempDir(), "m.fl"), nil); err != nil {
		t.Fatal(err)
	}
	if got := f.Total(); got != 3 {
		t.Errorf("%d objects were put, want each of 3 once", got)
	}
}

// hooked calls a function when a file has been read from for the first time, and
// fails where it is told to. Its files may read otherwise than those of dirFS.
type hooked struct {
	dirFS
	name   string
	after  func()
	reader func(io.Reader) io.Reader
	fail   string // open, read, readdir, stat, xattr or readlink
}

func hook(dir, name string) hooked { return hooked{dirFS: Dir(dir).(dirFS), name: name} }

var errDisk = errors.New("the disk is sick")

func (h hooked) failed(op, name string) error {
	if h.fail != op || h.name != name {
		return nil
	}
	return &fs.PathError{Op: op, Path: "elsewhere/" + name, Err: errDisk}
}

func (h hooked) Open(name string) (fs.File, error) {
	if err := h.failed("open", name); err != nil {
		return nil, err
	}
	f, err := h.dirFS.Open(name)
	if err != nil || name == "." || h.name != "" && name != h.name {
		return f, err
	}
	hf := &hookedFile{File: f, h: h, name: name, r: f}
	if h.reader != nil {
		hf.r = h.reader(f)
	}
	return hf, nil
}

func (h hooked) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := h.failed("readdir", name); err != nil {
		return nil, err
	}
	return h.dirFS.ReadDir(name)
}

func (h hooked) ReadLink(name string) (string, error) {
	if err := h.failed("readlink", name); err != nil {
		return "", err
	}
	return h.dirFS.ReadLink(name)
}

func (h hooked) Xattrs(name string) ([]manifest.Xattr, error) {
	if err := h.failed("xattr", name); err != nil {
		return nil, err
	}
	return h.dirFS.Xattrs(name)
}

type hookedFile struct {
	fs.File
	h    hooked
	name string
	r    io.Reader
	read bool
}

func (f *hookedFile) Read(p []byte) (int, error) {
	if err := f.h.failed("read", f.name); err != nil {
		return 0, err
	}
	n, err := f.r.Read(p)
	if !f.read && f.h.after != nil {
		f.h.after()
	}
	f.read = true
	return n, err
}

func (f *hookedFile) Stat() (fs.FileInfo, error) {
	if err := f.h.failed("stat", f.name); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

// refused packs to a manifest that exists, and checks that it fails as it should:
// with the manifest untouched and nothing beside it. It returns the error.
func refused(t *testing.T, ctx context.Context, src fs.FS, dst store.Writer, opts *Options) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.fl")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Run(ctx, src, dst, path, opts)
	if err == nil {
		t.Fatal("Run succeeded, want an error")
	}
	if data, rerr := os.ReadFile(path); rerr != nil || string(data) != "old" {
		t.Errorf("after a failed run the manifest holds %.40q, error %v; want it as it was", data, rerr)
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("after a failed run the directory holds %v, error %v; want the old manifest alone", names, err)
	}
	return err
}

func TestChangeWhileReading(t *testing.T) {
	long := treetest.Random(3, 2*block.Size+5)
	tests := map[string]func(name string) error{
		"grows": func(name string) error {
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("more")
			return errors.Join(err, f.Close())
		},
		"is cut":                  func(name string) error { return os.Truncate(name, block.Size) },
		"is emptied":              func(name string) error { return os.Truncate(name, 0) },
		"is overwritten in place": func(name string) error { return overwrite(name, len(long)) },
		"gets another time":       func(name string) error { return os.Chtimes(name, time.Now(), time.Now()) },
		"gets another mode":       func(name string) error { return os.Chmod(name, 0o640) },
	}
	for what, change := range tests {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, []treetest.File{{Path: "d/f", Mode: unix.S_IFREG | 0o644, Mtime: 1, Data: long}, {Path: "g", Data: []byte("g")}})
			src := hook(dir, "d/f")
			src.after = func() {
				if err := change(filepath.Join(dir, "d/f")); err != nil {
					t.Error(err)
				}
			}
			err := refused(t, t.Context(), src, &store.Mem{}, nil)
			if !errors.Is(err, errChanged) || !strings.Contains(err.Error(), "d/f") {
				t.Errorf("Run = %v, want that d/f changed", err)
			}
		})
	}
}

func overwrite(name string, size int) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size))
	return errors.Join(err, f.Close())
}

// A file that was replaced between the walk and the reading is not that file.
func TestReplacedBeforeReading(t *testing.T) {
	for what, replace := range map[string]func(name string) error{
		"by a file":    func(name string) error { return os.WriteFile(name, []byte("b"), 0o644) },
		"by a symlink": func(name string) error { return os.Symlink("/etc/passwd", name) },
		"by a pipe":    func(name string) error { return unix.Mkfifo(name, 0o644) },
		"by nothing":   func(string) error { return nil },
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, []treetest.File{{Path: "f", Mode: unix.S_IFREG | 0o644, Mtime: 1, Data: []byte("a")}})
			src := &replacing{hooked: hook(dir, "f"), replace: replace}
			if err := refused(t, soon(t), src, &store.Mem{}, nil); !strings.Contains(err.Error(), "read f: ") {
				t.Errorf("Run = %v, want an error that names f", err)
			}
		})
	}
}

// replacing replaces a file when it is opened.
type replacing struct {
	hooked
	replace func(name string) error
}

func (r *replacing) Open(name string) (fs.File, error) {
	if name == r.name {
		file := filepath.Join(r.root, name)
		if err := errors.Join(os.Remove(file), r.replace(file)); err != nil {
			return nil, err
		}
	}
	return r.dirFS.Open(name)
}

func TestUnreadable(t *testing.T) {
	for op, name := range map[string]string{"open": "d/c", "read": "d/c", "stat": "b", "readdir": "d", "xattr": "d/c", "readlink": "l"} {
		t.Run(op, func(t *testing.T) {
			src := hook(small(t), name)
			src.fail = op
			err := refused(t, t.Context(), src, &store.Mem{}, nil)
			if !errors.Is(err, errDisk) || !strings.Contains(err.Error(), " "+name+": the disk") {
				t.Errorf("Run = %v, want the disk's error after the name %s", err, name)
			}
		})
	}
}

// TestTruncated has a file of which less comes than there is, because it is decompressed
// on the way, and damaged: nobody has changed it.
func TestTruncated(t *testing.T) {
	src := hook(small(t), "d/c")
	damaged := fmt.Errorf("truncated: %w", io.ErrUnexpectedEOF)
	src.reader = func(io.Reader) io.Reader { return iotest.ErrReader(damaged) }
	if err := refused(t, t.Context(), src, &store.Mem{}, nil); !errors.Is(err, damaged) || errors.Is(err, errChanged) {
		t.Errorf("Run = %v, want %v", err, damaged)
	}
}

func TestSymlinkNeedsReadLink(t *testing.T) {
	err := refused(t, t.Context(), struct{ fs.FS }{Dir(small(t))}, &store.Mem{}, nil)
	if !strings.Contains(err.Error(), "pack l: ") {
		t.Errorf("Run = %v, want an error that names the symlink l", err)
	}
}

func TestNameThatIsNotUTF8(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, []treetest.File{{Path: "d/ok"}, {Path: "d/caf\xe9.ko"}})
	err := refused(t, t.Context(), Dir(dir), &store.Mem{}, nil)
	if !strings.Contains(err.Error(), `"d/caf\xe9.ko"`) {
		t.Errorf(`Run = %v, want an error that names "d/caf\xe9.ko"`, err)
	}
	// The error proposes to leave it out.
	tr, s := packed(t, Dir(dir), &Options{Exclude: []string{"caf*"}})
	if _, err := tr.Manifest().Find("d/ok"); err != nil || s.Files != 1 {
		t.Errorf("without it %d files are packed, %v; want d/ok alone", s.Files, err)
	}
}

func TestStoreFails(t *testing.T) {
	errFull := errors.New("the store is full")
	for _, after := range []int{0, 1, 2} {
		f := storetest.NewFaulty(&store.Mem{})
		f.Next(make([]storetest.Fault, after)...)
		f.Always(storetest.Fail(errFull))
		if err := refused(t, soon(t), Dir(small(t)), f, nil); !errors.Is(err, errFull) || !strings.Contains(err.Error(), "put object ") {
			t.Errorf("Run with a store that fails after %d = %v, want its error", after, err)
		}
	}
}

// unsynced is a store whose objects do not last.
type unsynced struct{ store.Writer }

func (unsynced) Sync(context.Context) error { return errDisk }

func TestSyncFails(t *testing.T) {
	if err := refused(t, t.Context(), Dir(small(t)), unsynced{&store.Mem{}}, nil); !errors.Is(err, errDisk) {
		t.Errorf("Run = %v, want the error of Sync", err)
	}
}

func TestCancelled(t *testing.T) {
	t.Run("before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for _, src := range []fs.FS{Dir(small(t)), Dir(t.TempDir())} {
			if err := refused(t, ctx, src, &store.Mem{}, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("Run = %v, want context.Canceled", err)
			}
		}
	})
	t.Run("in the store", func(t *testing.T) {
		ctx, cancel := context.WithCancel(soon(t))
		gate, f := storetest.NewGate(), storetest.NewFaulty(&store.Mem{})
		f.Always(storetest.Through(gate))
		go func() {
			<-gate.Arrived()
			cancel()
		}()
		if err := refused(t, ctx, Dir(small(t)), f, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want context.Canceled", err)
		}
	})
	t.Run("in a file", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		src := hook(small(t), "b")
		src.after = cancel
		if err := refused(t, ctx, src, &store.Mem{}, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want context.Canceled", err)
		}
	})
}

func TestNoPlaceForTheManifest(t *testing.T) {
	f := storetest.NewFaulty(&store.Mem{})
	_, err := Run(t.Context(), Dir(small(t)), f, filepath.Join(t.TempDir(), "no", "m.fl"), nil)
	if !errors.Is(err, fs.ErrNotExist) || f.Total() > 0 {
		t.Errorf("Run = %v after %d objects, want fs.ErrNotExist before the first", err, f.Total())
	}
}

func TestShortReads(t *testing.T) {
	dir := small(t)
	want := bytesOf(t, Dir(dir), nil)
	for what, reader := range map[string]func(io.Reader) io.Reader{
		"one byte": iotest.OneByteReader, "half": iotest.HalfReader, "data with EOF": iotest.DataErrReader,
	} {
		src := hook(dir, "")
		src.reader = reader
		if !bytes.Equal(want, bytesOf(t, src, nil)) {
			t.Errorf("a source that reads %s at a time gives another manifest", what)
		}
	}
}

func TestFSWithTarHeaders(t *testing.T) {
	when := time.Unix(-1, 999)
	entry := func(mode fs.FileMode, data string, h tar.Header) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(data), Mode: mode, ModTime: when, Sys: &h}
	}
	src := fstest.MapFS{
		"d":      entry(fs.ModeDir|fs.ModeSticky|0o700, "", tar.Header{Uid: 1, Gid: 2}),
		"d/f":    entry(fs.ModeSetuid|0o755, "content", tar.Header{Uid: 70000, Gid: 3, Devmajor: 9}),
		"link":   entry(fs.ModeSymlink|0o777, "d/f", tar.Header{}),
		"null":   entry(fs.ModeDevice|fs.ModeCharDevice|0o666, "", tar.Header{Devmajor: 1, Devminor: 3}),
		"disk":   entry(fs.ModeDevice|0o660, "", tar.Header{Gid: 6, Devmajor: 259, Devminor: 70000}),
		"pipe":   entry(fs.ModeNamedPipe|0o600, "", tar.Header{}),
		"simple": {Data: []byte("no Sys"), Mode: 0o644, ModTime: when},
	}
	tr, _ := packed(t, src, nil)
	m := tr.Manifest()
	got := map[string]string{}
	for name, ino := range m.Walk(manifest.Root) {
		a := m.Attr(ino)
		got[name] = fmt.Sprintf("%o %d:%d %d:%d %s", a.Mode, a.UID, a.GID, unix.Major(a.Rdev), unix.Minor(a.Rdev), m.Target(ino))
		if name != "." && a.Mtime != -1 {
			t.Errorf("the time of %s = %d, want -1", name, a.Mtime)
		}
	}
	want := map[string]string{
		".": "40555 0:0 0:0 ", "d": "41700 1:2 0:0 ", "d/f": "104755 70000:3 0:0 ", "link": "120777 0:0 0:0 d/f",
		"null": "20666 0:0 1:3 ", "disk": "60660 0:6 259:70000 ", "pipe": "10600 0:0 0:0 ", "simple": "100644 0:0 0:0 ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("manifest differs (-want +got):\n%s", diff)
	}
	data, err := fs.ReadFile(tr.FS(t.Context()), "link")
	if err != nil || string(data) != "content" {
		t.Errorf("content of link = %q, %v; want that of d/f", data, err)
	}
}

func TestExclude(t *testing.T) {
	src := fstest.MapFS{}
	for _, name := range []string{"a.o", "a.c", "d/b.o", "d/keep/b.c", "build", "source/x", "d/source/y"} {
		src[name] = &fstest.MapFile{}
	}
	tests := []struct {
		patterns []string
		want     string
	}{
		{nil, "a.c a.o build d/b.o d/keep/b.c d/source/y source/x"},
		{[]string{"*.o"}, "a.c build d/keep/b.c d/source/y source/x"},
		{[]string{"/source", "build"}, "a.c a.o d/b.o d/keep/b.c d/source/y"},
		{[]string{"source"}, "a.c a.o build d/b.o d/keep/b.c"},
		{[]string{"d/**/*.c"}, "a.c a.o build d/b.o d/source/y source/x"},
		{[]string{"d/*"}, "a.c a.o build source/x"},
		{[]string{"*.{c,o}", "d"}, "build source/x"},
		{[]string{"*"}, ""},
	}
	for _, test := range tests {
		tr, _ := packed(t, src, &Options{Exclude: test.patterns})
		var got []string
		for name, ino := range tr.Manifest().Walk(manifest.Root) {
			if tr.Manifest().Attr(ino).IsRegular() {
				got = append(got, name)
			}
		}
		if got := strings.Join(got, " "); got != test.want {
			t.Errorf("Run with exclude %q packs %q, want %q", test.patterns, got, test.want)
		}
	}
	if err := refused(t, t.Context(), src, &store.Mem{}, &Options{Exclude: []string{"a["}}); !strings.Contains(err.Error(), `"a["`) {
		t.Errorf("Run with exclude a[ = %v, want an error that names it", err)
	}
}

func TestRootThatIsASymlink(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	dir := small(t)
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytesOf(t, Dir(dir), nil), bytesOf(t, Dir(link), nil)) {
		t.Errorf("packing through a symlink gives another manifest")
	}
}

// deadly is a store in a directory that kills its process at the n-th Put, or at
// Sync; or else says when it has synced.
type deadly struct {
	*store.Dir
	at   int64
	puts atomic.Int64
}

func die() { syscall.Kill(os.Getpid(), syscall.SIGKILL) }

func (d *deadly) Put(ctx context.Context, id block.ID, object []byte) (bool, error) {
	if d.puts.Add(1) == d.at {
		die()
	}
	return d.Dir.Put(ctx, id, object)
}

func (d *deadly) Sync(ctx context.Context) error {
	if d.at == 0 {
		die()
	}
	err := d.Dir.Sync(ctx)
	fmt.Println("synced")
	return err
}

// helperPack packs DIR to OBJECTS and MANIFEST, and dies at Put AT, or at Sync if
// AT is 0.
func helperPack(args []string) error {
	d := &deadly{Dir: store.NewDir(args[1])}
	if _, err := fmt.Sscan(args[3], &d.at); err != nil {
		return err
	}
	_, err := Run(context.Background(), Dir(args[0]), d, args[2], &Options{Puts: 1})
	return err
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	var files []treetest.File
	for i := range 3000 { // so that writing the manifest takes a while
		files = append(files, treetest.File{Path: fmt.Sprintf("d%d/file%d", i%7, i), Mtime: int64(i), Data: fmt.Append(nil, i%40)})
	}
	write(t, dir, files)
	work := t.TempDir()
	objects, path := filepath.Join(work, "objects"), filepath.Join(work, "m.fl")

	// Without a manifest before, there is none or the new one after.
	for _, at := range []string{"1", "17", "40", "0"} {
		killed(t, helper(t, "pack", dir, objects, path, at), nil)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("killed at %s: Lstat of the manifest = %v, want fs.ErrNotExist", at, err)
		}
	}
	if _, err := Run(t.Context(), Dir(small(t)), store.NewDir(objects), path, nil); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := map[bool]int{}
	for _, size := range []int64{-1, 0, 1, 16 << 10, 128 << 10} {
		removeTemps(t, work)
		there, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		killed(t, helper(t, "pack", dir, objects, path, "-1"), func(synced func()) {
			if size < 0 {
				synced()
				return
			}
			awaitTemp(t, path, there, size)
		})
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		old[bytes.Equal(before, after)]++
		sound(t, path, objects)
	}
	t.Logf("killed while the manifest was being written: %d times the old one is there, %d times the new one", old[true], old[false])
}

// killed runs a command that kills itself or is killed when await returns. The
// function that await gets returns when the command has said that its objects
// are synced.
func killed(t *testing.T, cmd *exec.Cmd, await func(synced func())) {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if await != nil {
		await(func() {
			if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
				t.Errorf("the child did not sync its objects: %v", err)
			}
		})
		cmd.Process.Kill()
	}
	if err := cmd.Wait(); await == nil && (err == nil || cmd.ProcessState.Exited()) {
		t.Fatalf("the child ended with %v, want it killed", err)
	}
}

// removeTemps removes what killed runs have left.
func removeTemps(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, ".overmount-tmp-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitTemp returns when a temporary file of more than size bytes is beside the
// manifest at path, or another manifest than before is there: on a busy machine
// the writer may be faster than the one who looks.
func awaitTemp(t *testing.T, path string, before os.FileInfo, size int64) {
	for ctx := soon(t); ; {
		if ctx.Err() != nil {
			t.Fatal("no manifest was being written within a minute")
		}
		if now, err := os.Stat(path); err == nil && !os.SameFile(before, now) {
			return
		}
		names, _ := os.ReadDir(filepath.Dir(path))
		for _, d := range names {
			if info, err := d.Info(); atomicfile.IsTemp(d.Name()) && err == nil && info.Size() > size {
				return
			}
		}
	}
}

// sound checks that a manifest opens, and all of its objects.
func sound(t *testing.T, path, objects string) {
	t.Helper()
	m, src := open(t, path), store.Checked(store.NewDir(objects))
	for _, r := range m.AllBlocks() {
		object, err := src.Get(t.Context(), r.ID)
		if err == nil {
			_, err = block.Open(nil, m.Codec(), r.Key, object)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A listed store knows what it has from a list.
type listed struct {
	store.Mem
	most []int
}

func (l *listed) Learn(_ context.Context, most int) (bool, error) {
	l.most = append(l.most, most)
	return true, nil
}

func TestStoreIsListedOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, []treetest.File{{Path: "a", Data: []byte("a")}, {Path: "b", Data: treetest.Random(1, block.Size+1)}})
	l := &listed{}
	routes := store.Routes{{Last: 255, Writer: l}}
	if _, err := Run(t.Context(), Dir(dir), routes, filepath.Join(t.TempDir(), "m.fl"), nil); err != nil {
		t.Fatal(err)
	}
	if len(l.most) != 1 || l.most[0] != 300 || l.Len() != 3 {
		t.Errorf("Learn was called with %v, and %d objects came, want 300, 100 for each of 3", l.most, l.Len())
	}
}
