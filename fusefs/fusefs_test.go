package fusefs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

var (
	big  = treetest.Random(1, 3*block.Size+12345)
	long = strings.Repeat("n", 255)
)

// everything is a tree with all that can be in one.
func everything() []treetest.File {
	files := []treetest.File{
		{Path: ".", Mode: unix.S_IFDIR | 0o750, UID: 1, GID: 2, Mtime: 1_000_000_000},
		{Path: "kernel/drivers/big.ko", Mode: 0o644, UID: 7, GID: 8, Mtime: 1_234_567_890, Data: big},
		{Path: "kernel/drivers/hard.ko", LinkTo: "kernel/drivers/big.ko"},
		{Path: "kernel/exact", Mode: 0o444, Data: treetest.Random(2, block.Size)},
		{Path: "kernel/zeros", Mode: 0o600, Data: make([]byte, 2*block.Size)},
		{Path: "empty", Mode: 0o644},
		{Path: "hollow", Mode: unix.S_IFDIR | 0o1777},
		{Path: "suid", Mode: 0o6755, Data: []byte("x")},
		{Path: "forbidden", Mode: 0, Data: []byte("y"), Mtime: -5},
		{Path: "link", Mode: unix.S_IFLNK | 0o777, Target: "kernel/../kernel/exact"},
		{Path: "absolute", Mode: unix.S_IFLNK | 0o777, Target: "/no/where"},
		{Path: "fifo", Mode: unix.S_IFIFO | 0o640},
		{Path: "socket", Mode: unix.S_IFSOCK | 0o755},
		{Path: "null", Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)},
		{Path: "disk", Mode: unix.S_IFBLK | 0o660, Rdev: unix.Mkdev(259, 70000)},
		{Path: long, Mode: 0o644, Data: []byte("long")},
		{Path: "späße/日本 \n語", Mode: 0o644, UID: 1<<32 - 2, Data: []byte("utf-8")},
	}
	for i := range 700 { // more than one READDIR can tell
		files = append(files, treetest.File{Path: fmt.Sprintf("many/%s%03d", long[:200], i), Mode: 0o644, Data: []byte{byte(i)}})
	}
	return files
}

func TestWalk(t *testing.T) {
	files := everything()
	m := mountTree(t, Options{}, files...)
	got := walk(t, m.dir)
	man := m.t.Manifest()
	if len(got) != man.Len() {
		t.Errorf("the mount has %d nodes, want %d", len(got), man.Len())
	}
	data := map[string][]byte{}
	for _, f := range files {
		data[f.Path] = f.Data
	}
	data["kernel/drivers/hard.ko"] = big
	for name, ino := range man.Walk(manifest.Root) {
		a := man.Attr(ino)
		want := treetest.Seen{
			Path: name, Mode: a.Mode, UID: a.UID, GID: a.GID, Ino: uint64(man.FirstName(ino)), Nlink: uint64(a.Nlink),
			Rdev: a.Rdev, Size: a.Size, Mtime: a.Mtime, Blocks: (a.Size + 511) / 512, Target: man.Target(ino),
		}
		if a.IsRegular() {
			want.SHA256 = fmt.Sprintf("%x", sha256.Sum256(data[name]))
		}
		if diff := cmp.Diff(want, got[name]); diff != "" {
			t.Errorf("%.40q (-want +got):\n%s", name, diff)
		}
	}
	if log := m.log.take(); log != "" {
		t.Errorf("the mount logged:\n%s", log)
	}
}

func TestRfsSample(t *testing.T) {
	const sample = "../manifest/testdata/rfs-sample"
	sources := treetest.Sample(t, sample)
	for _, name := range []string{"sample.fl", "ranges.fl"} {
		man, err := manifest.Open(t.Context(), filepath.Join(sample, name))
		if err != nil {
			t.Fatal(err)
		}
		m := mountManifest(t, Options{}, man, store.Checked(store.NewDir(filepath.Join(sample, "objects"))), dying)
		got := walk(t, m.dir)
		if len(got) != len(sources) {
			t.Errorf("%s: the mount has %d nodes, want %d", name, len(got), len(sources))
		}
		for _, s := range sources {
			a, g := s.Attr(t), got[s.Path]
			want := treetest.Seen{
				Path: s.Path, Mode: a.Mode, UID: a.UID, GID: a.GID, Rdev: a.Rdev, Mtime: a.Mtime, SHA256: s.SHA256, Target: s.Target,
				Size: a.Size, Ino: g.Ino, Nlink: g.Nlink, Blocks: g.Blocks,
			}
			if s.SHA256 == "" && s.Target == "" {
				want.Size = g.Size // whatever the packer's file system said
			}
			if diff := cmp.Diff(want, g); diff != "" {
				t.Errorf("%s: %q (-want +got):\n%s", name, s.Path, diff)
			}
		}
	}
}

// What the kernel knows it does not ask for again: the mount's whole speed.
func TestTheKernelAsksOnce(t *testing.T) {
	m := mountTree(t, Options{Debug: true},
		treetest.File{Path: "d/f", Mode: 0o644, Data: []byte("x")},
		treetest.File{Path: "d/g", Mode: 0o644, Data: []byte("y")},
		treetest.File{Path: "l", Mode: unix.S_IFLNK | 0o777, Target: "d/f"},
	)
	use := func() string {
		m.log.take()
		run(t, "ls", "-lR", m.dir)
		run(t, "cat", m.path("d/f"), m.path("d/g"), m.path("l"))
		run(t, "cat", m.path("d/none"), m.path("none/none"))
		run(t, "ls", "-lR", m.dir)
		return m.log.take()
	}
	again, first := "", use()
	for op, want := range map[string]int{"OPEN": 1, "OPENDIR": 1, "FLUSH": 1, "GETATTR": 0} { // 1: asked whether to ask
		if got := strings.Count(first, ": "+op+" n"); got != want {
			t.Errorf("the first use made %d requests %s, want %d:\n%s", got, op, want, first)
		}
	}
	for _, op := range []string{"READDIRPLUS", "READLINK", "READ", "LOOKUP"} {
		if !strings.Contains(first, ": "+op+" n") {
			t.Errorf("the first use made no request %s:\n%s", op, first)
		}
	}
	// Now and then the kernel drops what it keeps, as when someone on this
	// machine tells it to, so one quiet use of several is enough.
	for range 10 {
		if again = requests(use()); again == "" {
			return
		}
	}
	t.Errorf("every use makes requests; the last one:\n%s", again)
}

// requests returns the lines of a debug log that are requests. FORGET is not one.
func requests(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if strings.Contains(line, "rx ") && !strings.Contains(line, "FORGET") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestMissingNames(t *testing.T) {
	m := mountTree(t, Options{}, treetest.File{Path: "d/f", Mode: 0o644, Data: []byte("x")})
	m.src.Always(storetest.Hang()) // names never wait for the store
	for name, want := range map[string]string{
		"none": "No such file", "d/none": "No such file", "none/f": "No such file", "d/f/x": "Not a directory",
		"d/" + long: "No such file", "d/" + long + "n": "No such file",
	} {
		for range 2 {
			_, stderr, err := run(t, "stat", m.path(name))
			if err == nil || !strings.Contains(stderr, want) {
				t.Errorf("stat %.20q = %v, %.300q, want %q", name, err, stderr, want)
			}
		}
	}
	if _, _, err := run(t, "ls", "-lR", m.dir); err != nil {
		t.Errorf("ls: %v", err)
	}
	if m.src.Total() != 0 {
		t.Errorf("looking at names made %d requests to the store, want none", m.src.Total())
	}
}

func TestReadOnly(t *testing.T) {
	m := mountTree(t, Options{}, treetest.File{Path: "f", Mode: 0o666, Data: []byte("x")})
	for _, args := range [][]string{
		{"rm", "-f", m.path("f")}, {"touch", m.path("new")}, {"chmod", "0", m.path("f")}, {"mkdir", m.path("d")},
		{"dd", "if=/dev/zero", "of=" + m.path("f"), "count=1"},
	} {
		if _, stderr, err := run(t, args[0], args[1:]...); err == nil || !strings.Contains(stderr, "Read-only file system") {
			t.Errorf("%v = %v, %q, want Read-only file system", args, err, stderr)
		}
	}
}

func TestXattrs(t *testing.T) {
	m := mountTree(t, Options{},
		treetest.File{Path: "f", Mode: 0o644, Data: []byte("x"), Xattrs: []manifest.Xattr{{Name: "user.a", Value: []byte("1")}, {Name: "user.b"}}},
		treetest.File{Path: "g", Mode: 0o644},
	)
	all := walk(t, m.dir)
	if got, want := all["f"].Xattrs, "user.a=1,user.b="; got != want {
		t.Errorf("attributes of f = %q, want %q", got, want)
	}
	if got := all["g"].Xattrs; got != "" {
		t.Errorf("attributes of g = %q, want none", got)
	}
}

func TestMountIsAsPromised(t *testing.T) {
	m := mountTree(t, Options{FSName: "a,b c", Subtype: "sub"},
		treetest.File{Path: "big", Mode: 0o644, Data: make([]byte, 5000)}, treetest.File{Path: "hard", LinkTo: "big"})
	stdout, _, err := run(t, "stat", "-f", "-c", "%b %f %c %d %l %S", m.dir)
	if want := "2 0 2 0 255 4096\n"; err != nil || stdout != want {
		t.Errorf("stat -f = %q, %v, want %q", stdout, err, want)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	line := ""
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, " "+m.dir+" ") {
			line = l
		}
	}
	for _, want := range []string{"ro,", "nosuid", "nodev", "noatime", "default_permissions", "allow_other", "max_read=1048576", "fuse.sub", `a,b\040c`} {
		if !strings.Contains(line, want) {
			t.Errorf("mountinfo says %q, want %q in it", line, want)
		}
	}
	kb, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", m.at.major, m.at.minor))
	if err != nil || strings.TrimSpace(string(kb)) != "1024" {
		t.Errorf("read_ahead_kb = %q, %v, want 1024", kb, err)
	}
}

func TestMountRefuses(t *testing.T) {
	testenv.FUSE(t)
	man, mem := treetest.Build(t, block.Zstd)
	tr := newTree(man, mem)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dead := t.TempDir()
	killMount(t, dead)
	for dir, want := range map[string]string{
		filepath.Join(t.TempDir(), "none"): "there is no such directory",
		file:                               "not a directory",
		dead:                               "overmount umount",
	} {
		s, err := Mount(t.Context(), dir, tr, nil)
		if s != nil || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("Mount(%s) = %v, want an error that says %q", dir, err, want)
		}
	}
}

// killMount makes a mount whose program is gone.
func killMount(t *testing.T, dir string) {
	t.Helper()
	fd, err := mountRoot(dir, (&Options{}).filled())
	if err != nil {
		t.Fatal(err)
	}
	closeFD(fd)
	t.Cleanup(func() { // unless the test has done it, and something else is there
		if _, err := os.Stat(dir); errors.Is(err, unix.ENOTCONN) {
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
}

func TestOvermount(t *testing.T) {
	testenv.FUSE(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "below"), []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	var servers []*Server
	for i, at := range []string{dir, link} {
		man, mem := treetest.Build(t, block.Zstd, treetest.File{Path: "f", Mode: 0o644, Data: []byte{byte('1' + i)}})
		s, err := Mount(t.Context(), at, newTree(man, mem), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.UnmountLazy() })
		servers = append(servers, s)
		if got, _, err := run(t, "cat", filepath.Join(dir, "f")); err != nil || got != fmt.Sprint(i+1) {
			t.Errorf("after mount %d cat f = %q, %v", i+1, got, err)
		}
	}
	if err := servers[0].Unmount(); err == nil || !strings.Contains(err.Error(), "something else is mounted over it") {
		t.Errorf("Unmount of the covered mount = %v, want an error", err)
	}
	for i := range 2 {
		s := servers[1-i]
		if err := s.Unmount(); err != nil {
			t.Errorf("Unmount: %v", err)
		}
		s.Wait()
		if err := s.Unmount(); err != nil {
			t.Errorf("Unmount of what is gone = %v, want nil", err)
		}
	}
	if got, _, err := run(t, "cat", filepath.Join(dir, "below")); got != "0" || err != nil {
		t.Errorf("cat below = %q, %v, want what was there before", got, err)
	}
}

func TestUnmountFromOutside(t *testing.T) {
	m := mountTree(t, Options{}, treetest.File{Path: "f", Mode: 0o644, Data: []byte("x")})
	if _, stderr, err := run(t, "umount", m.dir); err != nil {
		t.Fatal(stderr)
	}
	m.wait(t)
	if err := m.Unmount(); err != nil {
		t.Errorf("Unmount of what is gone = %v, want nil", err)
	}
}

func TestUnmountBusy(t *testing.T) {
	m := mountTree(t, Options{}, treetest.File{Path: "d/f", Mode: 0o644, Data: []byte("x")})
	user, in, out := shell(t, `cd "$0/d" && echo in && read x && cat f`, m.dir)
	if line := readLine(t, out); line != "in" {
		t.Fatalf("the shell said %q", line)
	}
	if err := m.Unmount(); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), m.dir) {
		t.Errorf("Unmount while in use = %v, want ErrBusy", err)
	}
	if err := m.UnmountLazy(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
		t.Error("the server ended while a process uses its mount")
	default:
	}
	fmt.Fprintln(in)
	if line := readLine(t, out); line != "x" {
		t.Errorf("reading after a lazy unmount = %q, want the file", line)
	}
	if err := user.Wait(); err != nil {
		t.Error(err)
	}
	m.wait(t)
}

// A mount that does not answer is taken away again, and nothing keeps running.
func TestMountThatDoesNotAnswer(t *testing.T) {
	testenv.FUSE(t)
	man, mem := treetest.Build(t, block.Zstd)
	dir := t.TempDir()
	ctx, f := stuck(t, newTree(man, mem))
	s, err := mount(ctx, dir, f)
	if s != nil || err == nil || !strings.Contains(err.Error(), "first answer") {
		t.Errorf("mount = %v, %v, want an error that it does not answer", s, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("after a failed mount %s is still mounted (%v)", dir, err)
	}
	if !f.conn.dead() {
		t.Error("after a failed mount its connection lives")
	}
}

// All mounts of the tests above work with one thread for Go code, where a
// process that waits for itself is found out.
func TestOneProc(t *testing.T) {
	testenv.FUSE(t)
	if os.Getenv("GOMAXPROCS") == "1" {
		t.Skip("this is it")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^Test(Walk|Parallel|LostBlock|Overmount|Killed|Handled)", "-test.timeout", "3m")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("with GOMAXPROCS=1: %v\n%s", err, out)
	}
}

// Users without the right to mount do so with fusermount3, for which a stand-in
// checks what it is told.
func TestFusermount(t *testing.T) {
	testenv.FUSE(t)
	bin, dir := t.TempDir(), t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n%s=fusermount exec %s \"$@\"\n", helperEnv, os.Args[0])
	if err := os.WriteFile(filepath.Join(bin, helperName), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	o := (&Options{FSName: `a,b\c`}).filled()
	fd, err := mountHelper(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	man, mem := treetest.Build(t, block.Zstd, treetest.File{Path: "f", Mode: 0o644, Data: []byte("x")})
	s := &Server{at: mountPoint{dir: dir}, done: make(chan struct{})}
	if err := s.serve(fd, newRawFS(newTree(man, mem), o)); err != nil {
		t.Fatal(err)
	}
	if got, _, err := run(t, "cat", filepath.Join(dir, "f")); got != "x" || err != nil {
		t.Errorf("cat = %q, %v, want x", got, err)
	}
	if err := unmountHelper(s.at.dir, false); err != nil {
		t.Error(err)
	}
	s.Wait()
	if err := unmountHelper(s.at.dir, false); err == nil || !strings.Contains(err.Error(), "invalid argument") {
		t.Errorf("unmount of nothing = %v, want what the helper printed", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := mountHelper(t.Context(), dir, o); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("mount without fusermount3 = %v, want exec.ErrNotFound", err)
	}
	if got, want := escapeOption(`a,b\c`), `a\,b\\c`; got != want {
		t.Errorf("escapeOption = %q, want %q", got, want)
	}
}

func TestStatus(t *testing.T) {
	for _, err := range []error{store.ErrNotFound, block.ErrCorrupt, store.ErrForbidden, fs.ErrNotExist, unix.ENOENT, errors.New("x"), os.ErrDeadlineExceeded} {
		if got := status(fmt.Errorf("read: %w", err)); got != 5 {
			t.Errorf("status(%v) = %d, want EIO", err, got)
		}
	}
	if got := status(fmt.Errorf("read: %w", errDying)); got != 4 {
		t.Errorf("status(%v) = %d, want EINTR", errDying, got)
	}
	for _, e := range errnos {
		if e.errno == unix.ENOENT {
			t.Errorf("%v is ENOENT, which only a name may be", e.err)
		}
	}
}

func TestNodeNumbersOutOfRange(t *testing.T) {
	man, mem := treetest.Build(t, block.Zstd)
	f := newRawFS(newTree(man, mem), (&Options{}).filled())
	for _, id := range []uint64{0, 2, 1<<32 + 1, 1<<64 - 1} {
		if _, err := f.node(id); err == nil {
			t.Errorf("node(%s) = nil error, want one", strconv.FormatUint(id, 10))
		}
	}
}
