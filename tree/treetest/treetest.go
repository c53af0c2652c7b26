// Package treetest packs small trees for tests: what package pack does, in a few
// lines and in memory.
package treetest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
)

// A File is one node of a tree. Its type follows from Mode; a mode without type
// bits is that of a regular file.
type File struct {
	Path   string // slash-separated, "." for the root
	Mode   uint32
	UID    uint32
	GID    uint32
	Mtime  int64
	Rdev   uint64
	Data   []byte // of a regular file
	Target string // of a symlink
	LinkTo string // another file's path, which sorts before this one; the rest is that file's
	Xattrs []manifest.Xattr
	Module *manifest.Module
	Inline bool // the manifest carries the content, and the store has it not
}

// Build packs the files, with directories of mode 0755 where they lack. It
// returns the manifest and the objects.
func Build(tb testing.TB, codec block.Codec, files ...File) (*manifest.Manifest, *store.Mem) {
	tb.Helper()
	mem, inline := &store.Mem{}, &store.Mem{}
	name := filepath.Join(tb.TempDir(), "tree.fl")
	w, err := manifest.Create(tb.Context(), name, codec, nil, nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Abort()
	entries := map[string]manifest.Entry{}
	for _, f := range complete(files) {
		to := mem
		if f.Inline {
			to = inline
		}
		e := entry(tb, to, codec, f)
		if f.Inline {
			carry(tb, w, inline, e.Blocks)
		}
		if f.LinkTo != "" {
			e = entries[f.LinkTo]
			e.Path, e.LinkTo = f.Path, f.LinkTo
		}
		entries[f.Path] = e
		if err := w.Add(e); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		tb.Fatal(err)
	}
	m, err := manifest.Open(tb.Context(), name)
	if err != nil {
		tb.Fatal(err)
	}
	return m, mem
}

// carry makes a manifest carry objects itself.
func carry(tb testing.TB, w *manifest.Writer, from *store.Mem, blocks []block.Ref) {
	tb.Helper()
	for _, b := range blocks {
		object, err := from.Get(tb.Context(), b.ID)
		if err != nil {
			tb.Fatal(err)
		}
		if err := w.AddObject(object); err != nil {
			tb.Fatal(err)
		}
	}
}

// complete adds directories and sorts as the manifest wants it.
func complete(files []File) []File {
	all := map[string]File{".": {Path: ".", Mode: unix.S_IFDIR | 0o755}}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all[dir] = File{Path: dir, Mode: unix.S_IFDIR | 0o755}
			}
		}
		if f.Mode&unix.S_IFMT == 0 {
			f.Mode |= unix.S_IFREG
		}
		all[f.Path] = f
	}
	sorted := make([]File, 0, len(all))
	for _, f := range all {
		sorted = append(sorted, f)
	}
	slices.SortFunc(sorted, func(a, b File) int { return strings.Compare(key(a.Path), key(b.Path)) })
	return sorted
}

// key sorts a directory before what it holds, and that before its next sibling.
func key(name string) string {
	if name == "." {
		return ""
	}
	return strings.ReplaceAll(name, "/", "\x00")
}

func entry(tb testing.TB, mem *store.Mem, codec block.Codec, f File) manifest.Entry {
	tb.Helper()
	e := manifest.Entry{
		Path: f.Path, Target: f.Target, Xattrs: f.Xattrs, Module: f.Module,
		Attr: manifest.Attr{
			Mode: f.Mode, UID: f.UID, GID: f.GID, Rdev: f.Rdev, Mtime: f.Mtime,
			Size: int64(len(f.Data)), Nlink: 2, // it may be linked to
		},
	}
	for plain := range slices.Chunk(f.Data, block.Size) {
		e.Blocks = append(e.Blocks, Put(tb, mem, codec, plain))
	}
	return e
}

// Put seals a block and stores it.
func Put(tb testing.TB, w store.Writer, codec block.Codec, plain []byte) block.Ref {
	tb.Helper()
	ref := block.Ref{Key: block.KeyOf(plain)}
	id, object, err := block.Seal(nil, codec, ref.Key, plain)
	if err != nil {
		tb.Fatal(err)
	}
	ref.ID = id
	if _, err := w.Put(tb.Context(), id, object); err != nil {
		tb.Fatal(err)
	}
	return ref
}

// Random returns n bytes that do not compress, always the same for one seed.
func Random(seed uint64, n int) []byte {
	var b [32]byte
	b[0], b[1], b[2], b[3] = byte(seed), byte(seed>>8), byte(seed>>16), byte(seed>>24)
	data := make([]byte, n)
	rand.NewChaCha8(b).Read(data)
	return data
}

// A Source is one line of an rfs sample's source.jsonl: a node of the tree before
// rfs packed it.
type Source struct {
	Path   string
	Mode   string // octal, with the type
	UID    uint32
	GID    uint32
	Mtime  int64
	Size   int64
	SHA256 string
	Target string
	Rdev   []uint32 // major, minor
}

// Attr returns what a manifest should say of the node, but Nlink and Ctime, and
// Size for what is not a regular file or a symlink.
func (s Source) Attr(tb testing.TB) manifest.Attr {
	tb.Helper()
	mode, err := strconv.ParseUint(s.Mode, 8, 32)
	if err != nil {
		tb.Fatal(err)
	}
	a := manifest.Attr{Mode: uint32(mode), UID: s.UID, GID: s.GID, Mtime: s.Mtime, Size: s.Size + int64(len(s.Target))}
	if len(s.Rdev) == 2 {
		a.Rdev = unix.Mkdev(s.Rdev[0], s.Rdev[1])
	}
	return a
}

// Sample reads source.jsonl of the rfs sample in dir.
func Sample(tb testing.TB, dir string) []Source {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "source.jsonl"))
	if err != nil {
		tb.Fatal(err)
	}
	var all []Source
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var s Source
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			tb.Fatal(err)
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		tb.Fatalf("%s: source.jsonl is empty", dir)
	}
	return all
}
