package pack

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/manifest"
	"overmount/store"
	"overmount/tree"
	"overmount/tree/treetest"
)

func TestRoundTrip(t *testing.T) {
	for _, codec := range codecs {
		t.Run(codec.String(), func(t *testing.T) {
			src := t.TempDir()
			write(t, src, allKinds())
			want := look(t, src)
			tr, s := packed(t, Dir(src), &Options{Codec: codec})
			got := look(t, unpacked(t, tr))
			sameTree(t, want, got)
			if int(s.Files+s.Others) != len(want) || s.DoneFile != s.Files || s.DoneByte != s.Bytes {
				t.Errorf("Summary = %+v, want %d nodes and all of them done", s, len(want))
			}
			if got := got["e/second"].SameAs; got != "d/first" {
				t.Errorf("e/second is the same file as %q, want d/first", got)
			}
		})
	}
}

// The tree must hold what its name promises, whoever tests.
func TestAllKindsHasThem(t *testing.T) {
	testenv.Root(t, "making devices, owners and trusted attributes")
	types := map[uint32]int{}
	for _, f := range allKinds() {
		types[f.Mode&unix.S_IFMT]++
	}
	for _, want := range []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK} {
		if types[want] == 0 {
			t.Errorf("allKinds has none of type %#o", want)
		}
	}
}

// Two copies of a tree that differ in place, file system and order of making
// give one manifest.
func TestReproducible(t *testing.T) {
	var tmpfs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &tmpfs); err != nil || tmpfs.Type != unix.TMPFS_MAGIC {
		testenv.Need(t, "/dev/shm is not a tmpfs")
	}
	other, err := os.MkdirTemp("/dev/shm", "overmount-pack-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(other) })
	files := allKinds()
	for i := range files { // tmpfs takes attributes of users only since Linux 6.6
		files[i].Xattrs = slices.DeleteFunc(slices.Clone(files[i].Xattrs), func(x manifest.Xattr) bool { return strings.HasPrefix(x.Name, "user.") })
	}
	first := t.TempDir()
	write(t, first, files)
	slices.Reverse(files)
	// The first name of a hard link must be made first, whatever the order.
	slices.SortStableFunc(files, func(a, b treetest.File) int { return len(a.LinkTo) - len(b.LinkTo) })
	write(t, other, files)

	opts := &Options{Tags: map[string]string{"b": "2", "a": "1"}, Routes: []manifest.Route{{Last: 255, URL: "dir:///srv"}}}
	if !bytes.Equal(bytesOf(t, Dir(first), opts), bytesOf(t, Dir(other), opts)) {
		t.Errorf("two copies of a tree give different manifests")
	}
}

func TestNewest(t *testing.T) {
	src := t.TempDir()
	write(t, src, []treetest.File{
		{Path: "old", Mtime: 1000}, {Path: "new", Mtime: 3000}, {Path: ".", Mode: unix.S_IFDIR | 0o755, Mtime: 4000},
	})
	tr, _ := packed(t, Dir(src), &Options{Newest: time.Unix(2000, 0)})
	got := map[string]int64{}
	for name, ino := range tr.Manifest().Walk(manifest.Root) {
		got[name] = tr.Manifest().Attr(ino).Mtime
	}
	if diff := cmp.Diff(map[string]int64{".": 2000, "old": 1000, "new": 2000}, got); diff != "" {
		t.Errorf("times differ (-want +got):\n%s", diff)
	}
}

const sample = "../manifest/testdata/rfs-sample"

// What rfs packed unpacks to what rfs was given; and packing that with snappy
// gives the objects that rfs made.
func TestRfsSample(t *testing.T) {
	testenv.Root(t, "making devices, owners and trusted attributes")
	for _, name := range []string{"sample.fl", "ranges.fl"} {
		t.Run(name, func(t *testing.T) {
			tr := tree.New(open(t, filepath.Join(sample, name)), store.Checked(store.NewDir(filepath.Join(sample, "objects"))), nil)
			dir := unpacked(t, tr)
			got := look(t, dir)
			want := map[string]seen{}
			for _, s := range treetest.Sample(t, sample) {
				a := s.Attr(t)
				want[s.Path] = seen{
					Mode: a.Mode, UID: a.UID, GID: a.GID, Rdev: a.Rdev, Mtime: a.Mtime, Size: a.Size,
					SHA256: s.SHA256, Target: s.Target,
				}
			}
			sameTree(t, want, got)
			sameObjects(t, dir)
		})
	}
}

func sameObjects(t *testing.T, dir string) {
	t.Helper()
	objects := filepath.Join(t.TempDir(), "objects")
	if _, err := Run(t.Context(), Dir(dir), store.NewDir(objects), filepath.Join(t.TempDir(), "m.fl"), &Options{Codec: block.Snappy}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(regular(t, filepath.Join(sample, "objects")), regular(t, objects)); diff != "" {
		t.Errorf("objects differ from those of rfs (-rfs +ours):\n%s", diff)
	}
}

// regular returns the regular files below dir, with the hash of each.
func regular(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for name, s := range look(t, dir) {
		if s.SHA256 != "" {
			files[name] = s.SHA256
		}
	}
	return files
}
