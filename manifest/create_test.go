package manifest

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
)

func TestKilledWriterLeavesTheOldFile(t *testing.T) {
	for name, old := range map[string]bool{"over an old one": true, "new": false} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.fl")
			want := []string{"temp"}
			var before []byte
			if old {
				create(t, path, block.Zstd, nil, nil, allKinds())
				before = read(t, path)
				want = append(want, "m.fl")
			}
			next, kill := child(t, "create and stay", path)
			if got := next(); got != "ready" {
				t.Fatalf("the child says %q, want ready", got)
			}
			kill()
			if diff := cmp.Diff(want, names(t, filepath.Dir(path))); diff != "" {
				t.Errorf("directory differs (-want +got):\n%s", diff)
			}
			if old && !bytes.Equal(read(t, path), before) {
				t.Error("the old file changed")
			}
		})
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	d := t.TempDir()
	w, err := Create(t.Context(), filepath.Join(d, "m.fl"), block.Zstd, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(dir(".")); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	w.Abort()
	if got := names(t, d); len(got) != 0 {
		t.Errorf("directory holds %v, want nothing", got)
	}
	if err := w.Add(dir("a")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Add after Abort = %v, want fs.ErrClosed", err)
	}
	if err := w.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Commit after Abort = %v, want fs.ErrClosed", err)
	}
	if got := names(t, d); len(got) != 0 {
		t.Errorf("directory holds %v, want nothing", got)
	}
}

func TestCommitEndsTheWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	w, err := Create(t.Context(), path, block.Zstd, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(dir(".")); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if err := w.Add(dir("a")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Add after Commit = %v, want fs.ErrClosed", err)
	}
	if err := w.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Commit = %v, want fs.ErrClosed", err)
	}
	mustOpen(t, path)
}

func TestCommitOfNothing(t *testing.T) {
	d := t.TempDir()
	w, err := Create(t.Context(), filepath.Join(d, "m.fl"), block.Zstd, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil {
		t.Error("Commit without a root succeeded")
	}
	if got := names(t, d); len(got) != 0 {
		t.Errorf("directory holds %v, want nothing", got)
	}
}

func TestCreateWhereItCannot(t *testing.T) {
	if _, err := Create(t.Context(), filepath.Join(t.TempDir(), "none", "m.fl"), block.Zstd, nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Create in a directory that is not there = %v, want fs.ErrNotExist", err)
	}
	w, err := Create(t.Context(), t.TempDir(), block.Zstd, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(dir(".")); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil {
		t.Error("Commit over a directory succeeded")
	}
}

func TestAddRefuses(t *testing.T) {
	with := func(e Entry, change func(*Entry)) Entry { change(&e); return e }
	several := with(file("h", 5), func(e *Entry) { e.Attr.Nlink = 2 })
	link := with(several, func(e *Entry) { e.Path, e.LinkTo = "i", "h" })
	before := []Entry{dir("."), dir("d"), file("d/f", 1), several}
	for _, c := range []struct {
		name  string
		entry Entry
		text  string
	}{
		{"a second root", dir("."), "entries must be sorted"},
		{"wrong order", file("a", 1), "it comes after h"},
		{"the same again", several, "it comes after h"},
		{"back in a directory that is done", file("d/g", 1), "it comes after h"},
		{"missing directory", file("none/f", 1), "its directory none has not been added"},
		{"below a file", file("h/f", 1), "its directory h has not been added"},
		{"absolute", file("/x", 1), "its directory / has not been added"},
		{"dot dot", file("..", 1), ""},
		{"out of the tree", file("../x", 1), "its directory .. has not been added"},
		{"not UTF-8", file("x\xff", 1), "is not UTF-8"},
		{"NUL", file("x\x00", 1), "NUL"},
		{"no name", file("x/", 1), ""},
		{"long name", file(strings.Repeat("x", 256), 1), "over the limit of 255"},
		{"too few blocks", with(file("x", 6e5), func(e *Entry) { e.Blocks = e.Blocks[:1] }), "600000 bytes need 2 blocks, not 1"},
		{"too many blocks", with(file("x", 5), func(e *Entry) { e.Attr.Size = 0 }), "0 bytes need 0 blocks, not 1"},
		{"blocks of a directory", with(dir("x"), func(e *Entry) { e.Blocks = refs("x", 1) }), "only a regular file has blocks"},
		{"no type", with(file("x", 1), func(e *Entry) { e.Attr.Mode = 0o644 }), "not a Linux file mode"},
		{"size", with(file("x", 1), func(e *Entry) { e.Attr.Size = -1 }), "size -1 is impossible"},
		{"no target", symlink("x", ""), "a symlink's target"},
		{"long target", symlink("x", strings.Repeat("t", unix.PathMax)), "a symlink's target"},
		{"target of a file", with(file("x", 1), func(e *Entry) { e.Target = "t" }), "only a symlink has a target"},
		{"link of nothing", with(link, func(e *Entry) { e.LinkTo = "g" }), "which is not an earlier entry"},
		{"link of a directory", with(link, func(e *Entry) { e.LinkTo = "d" }), "which is not an earlier entry"},
		{"link with another mode", with(link, func(e *Entry) { e.Attr.Mode ^= 1 }), "its content differ"},
		{"link with other blocks", with(link, func(e *Entry) { e.Blocks = refs("x", 5) }), "its content differ"},
		{"xattr without a name", with(file("x", 1), func(e *Entry) { e.Xattrs = []Xattr{{}} }), "is impossible"},
		{"xattr too long", with(file("x", 1), func(e *Entry) { e.Xattrs = []Xattr{{"user.a", make([]byte, maxCell+1)}} }), "over the limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := t.TempDir()
			w, err := Create(t.Context(), filepath.Join(d, "m.fl"), block.Zstd, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			for _, e := range before {
				if err := w.Add(e); err != nil {
					t.Fatal(err)
				}
			}
			err = w.Add(c.entry)
			if err == nil || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), " to the manifest: ") {
				t.Errorf("Add = %v, want it to say %q", err, c.text)
			}
		})
	}
}

func TestFirstEntryIsTheRoot(t *testing.T) {
	for _, e := range []Entry{file(".", 0), dir("a"), dir("/"), dir("")} {
		w, err := Create(t.Context(), filepath.Join(t.TempDir(), "m.fl"), block.Zstd, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		if err := w.Add(e); err == nil || !strings.Contains(err.Error(), "first entry must be the root") {
			t.Errorf("Add(%q) = %v, want it to ask for the root", e.Path, err)
		}
	}
}

// What Add takes, Open takes: at the limit of depth too.
func TestDeepestTree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	w, err := Create(t.Context(), path, block.Zstd, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	name := "."
	for range MaxDepth + 1 {
		if err := w.Add(dir(name)); err != nil {
			t.Fatal(err)
		}
		name = strings.TrimPrefix(name+"/d", "./")
	}
	if err := w.Add(dir(name)); err == nil {
		t.Errorf("Add of a directory below %d succeeded", MaxDepth)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if m := mustOpen(t, path); m.Len() != MaxDepth+1 {
		t.Errorf("Len = %d, want %d", m.Len(), MaxDepth+1)
	}
}
