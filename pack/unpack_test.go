package pack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree"
	"overmount/tree/treetest"
)

func TestUnpackRefusesWhatExists(t *testing.T) {
	tr, _ := packed(t, Dir(small(t)), nil)
	for name, make := range map[string]func(string) error{
		"a":   func(p string) error { return os.WriteFile(p, []byte("mine"), 0o600) },
		"b":   func(p string) error { return os.Mkdir(p, 0o700) },
		"l":   func(p string) error { return os.Symlink("mine", p) },
		"d":   func(p string) error { return os.WriteFile(p, []byte("mine"), 0o600) },
		"d/c": func(p string) error { return errors.Join(os.Mkdir(filepath.Dir(p), 0o700), unix.Mkfifo(p, 0o600)) },
	} {
		dir := t.TempDir()
		if err := make(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		before := look(t, dir)[name]
		_, _, err := Unpack(t.Context(), tr, dir, nil)
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "unpack "+name+": ") {
			t.Errorf("Unpack over %s = %v, want fs.ErrExist and its name", name, err)
		}
		if diff := cmp.Diff(before, look(t, dir)[name]); diff != "" {
			t.Errorf("Unpack has changed %s, which was there (-before +after):\n%s", name, diff)
		}
	}
}

func TestUnpackIntoDirectoriesThatExist(t *testing.T) {
	src, dir := small(t), t.TempDir()
	tr, _ := packed(t, Dir(src), nil)
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Unpack(t.Context(), tr, dir, nil); err != nil {
		t.Fatal(err)
	}
	sameTree(t, look(t, src), look(t, dir))
}

// A symlink planted in the target leads nowhere.
func TestUnpackFollowsNoSymlink(t *testing.T) {
	tr, _ := packed(t, Dir(small(t)), nil)
	for name, target := range map[string]string{"d": "outside", "a": "outside/new", "b": "inside", "d/c": "../inside/new"} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			dir, outside := filepath.Join(base, "target"), filepath.Join(base, "outside")
			inside := filepath.Join(dir, "inside")
			for _, d := range []string{outside, inside, filepath.Dir(filepath.Join(dir, name))} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			target = strings.Replace(target, "outside", outside, 1)
			if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := Unpack(t.Context(), tr, dir, nil); err == nil {
				t.Errorf("Unpack over the symlink %s succeeded, want an error", name)
			}
			if got := len(look(t, outside)) + len(look(t, inside)); got != 2 {
				t.Errorf("Unpack has written %d nodes through the symlink %s", got-2, name)
			}
		})
	}
}

func TestUnpackLostBlock(t *testing.T) {
	data := treetest.Random(4, 2*block.Size+9)
	m, mem := treetest.Build(t, block.Zstd, treetest.File{Path: "d/whole", Data: data[:7]}, treetest.File{Path: "d/holed", Data: data})
	ino, err := m.Find("d/holed")
	if err != nil {
		t.Fatal(err)
	}
	src := without{mem, m.Blocks(ino)[1].ID}
	dir := t.TempDir()
	_, _, err = Unpack(t.Context(), tree.New(m, src, nil), dir, nil)
	if !errors.Is(err, store.ErrNotFound) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "unpack d/holed: ") {
		t.Errorf("Unpack with a lost block = %v, want store.ErrNotFound for d/holed", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "d/holed")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lstat of the file with the lost block = %v, want fs.ErrNotExist", err)
	}
}

// without is a store that has lost an object.
type without struct {
	store.Reader
	lost block.ID
}

func (w without) Get(ctx context.Context, id block.ID) ([]byte, error) {
	if id == w.lost {
		return nil, store.ErrNotFound
	}
	return w.Reader.Get(ctx, id)
}

func TestUnpackIsParallelAndStops(t *testing.T) {
	var files []treetest.File
	for i := range 8 {
		files = append(files, treetest.File{Path: fmt.Sprint(i), Data: treetest.Random(uint64(i), 100)})
	}
	m, mem := treetest.Build(t, block.Zstd, files...)
	f, gate := storetest.NewFaulty(mem), storetest.NewGate()
	f.Always(storetest.Through(gate))
	ctx, cancel := context.WithCancel(soon(t))
	go func() {
		for range 4 {
			<-gate.Arrived()
		}
		cancel()
	}()
	dir := t.TempDir()
	_, _, err := Unpack(ctx, tree.New(m, f, nil), dir, &UnpackOptions{Files: 4})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Unpack = %v, want context.Canceled while four files wait for their content", err)
	}
	if got := len(look(t, dir)); got != 1 {
		t.Errorf("after a cancelled Unpack the directory holds %d nodes, want none", got-1)
	}
}

func TestUnpackProgress(t *testing.T) {
	tr, want := packed(t, Dir(small(t)), nil)
	seen := make(chan Summary, 100)
	got, _, err := Unpack(t.Context(), tr, filepath.Join(t.TempDir(), "new", "dir"), &UnpackOptions{Files: 1, Progress: func(s Summary) { seen <- s }})
	if err != nil {
		t.Fatal(err)
	}
	if got.Files != want.Files || got.Others != want.Others || got.Bytes != want.Bytes || got.DoneFile != want.Files || got.DoneByte != want.Bytes {
		t.Errorf("Unpack = %+v, want as packed, %+v", got, want)
	}
	close(seen)
	last := Summary{}
	for s := range seen {
		if s.DoneFile <= last.DoneFile || s.DoneByte < last.DoneByte {
			t.Errorf("progress went from %+v to %+v", last, s)
		}
		last = s
	}
	if last != got {
		t.Errorf("the last progress = %+v, want the result, %+v", last, got)
	}
}

// Who is not root gets all but what only root can make, and is told how much that
// is.
func TestUnpackForUsers(t *testing.T) {
	testenv.Root(t, "making devices, owners and trusted attributes")
	src := t.TempDir()
	write(t, src, allKinds())
	objects, path := filepath.Join(t.TempDir(), "objects"), filepath.Join(t.TempDir(), "m.fl")
	if _, err := Run(t.Context(), Dir(src), store.NewDir(objects), path, nil); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "overmount-pack-") // unlike t.TempDir, others can be let in
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	out, err := helper(t, "unpack", path, objects, dir).CombinedOutput()
	if err != nil || string(out) != "skipped 4\n" {
		t.Fatalf("unpacking printed %q, error %v; want that two devices and two attributes were skipped", out, err)
	}
	want := look(t, src)
	for name, s := range want {
		if s.Rdev != 0 {
			delete(want, name)
			continue
		}
		s.UID, s.GID = nobody, nobody
		if name == "trusted" {
			s.Xattrs = ""
		}
		want[name] = s
	}
	sameTree(t, want, look(t, dir))
}

const nobody = 65534

// helperUnpack unpacks MANIFEST with OBJECTS to DIR as a user who is not root. The
// objects are read before, where only root may.
func helperUnpack(args []string) error {
	ctx := context.Background()
	m, err := manifest.Open(ctx, args[0])
	if err != nil {
		return err
	}
	mem, dir := &store.Mem{}, store.NewDir(args[1])
	for _, r := range m.AllBlocks() {
		object, err := dir.Get(ctx, r.ID)
		if err != nil {
			return err
		}
		if _, err := mem.Put(ctx, r.ID, object); err != nil {
			return err
		}
	}
	// A process that changes its user may not look at its own /proc, unlike one
	// that was started by that user.
	err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody), unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
	if err != nil {
		return err
	}
	_, skipped, err := Unpack(ctx, tree.New(m, mem, nil), args[2], nil)
	fmt.Println("skipped", skipped)
	return err
}
