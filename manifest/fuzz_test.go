package manifest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
)

// FuzzOpen changes bytes of real manifests. Most changes make SQLite refuse the
// file; what it accepts must hold together.
func FuzzOpen(f *testing.F) {
	bases := [][]byte{read(f, small(f)), read(f, "testdata/rfs-sample/ranges.fl")}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{})
	for _, page := range []uint16{0, 1, 2, 5, 9} { // a page's first bytes, its cells, its end
		for _, at := range []uint16{0, 3, 8, 100, 4090} {
			f.Add(uint8(page), binary.BigEndian.AppendUint16(nil, page<<12|at))
			f.Add(uint8(page), append(binary.BigEndian.AppendUint16(nil, page<<12|at), 0xff, 0x80, 0))
		}
	}
	f.Fuzz(func(t *testing.T, base uint8, changes []byte) {
		data := slices.Clone(bases[int(base)%len(bases)])
		// Each change is a place of two bytes and a value.
		for ; len(changes) >= 3; changes = changes[3:] {
			at := int(binary.BigEndian.Uint16(changes))
			data[at%len(data)] = changes[2]
		}
		if len(changes) == 2 { // or a cut
			data = data[:int(binary.BigEndian.Uint16(changes))%len(data)]
		}
		path := filepath.Join(t.TempDir(), "m.fl")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		openHostile(t, path)
	})
}

// openHostile opens a file that may be anything, and checks what it gives and
// what that costs.
func openHostile(t *testing.T, path string) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m, err := Open(ctx, path)
	runtime.ReadMemStats(&after)
	if ctx.Err() != nil {
		t.Fatal("Open did not end")
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
		t.Errorf("Open took %d bytes of memory", n)
	}
	if err != nil {
		_, invalid := errors.AsType[*InvalidError](err)
		if m != nil || !invalid && !errors.Is(err, ErrLegacy) {
			t.Errorf("Open = %v, %T, want an InvalidError", m, err)
		}
		return
	}
	checkTree(t, m)
}

// FuzzWriteRead writes the tree that the fuzz bytes describe, and reads it.
func FuzzWriteRead(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("directories, files and links of all kinds"))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 0, 1, 1, 9, 9, 9, 4, 4, 4, 255, 254, 128})
	f.Fuzz(func(t *testing.T, data []byte) {
		want := growTree(data)
		path := filepath.Join(t.TempDir(), "m.fl")
		create(t, path, block.Codec(len(data)%2), map[string]string{"k": string(data[:min(len(data), 100)])}, nil, want)
		m := mustOpen(t, path)
		checkTree(t, m)
		got := dump(m)
		for i := range got { // what is not written
			got[i].Attr.Nlink, got[i].Attr.Ctime = 0, 0
			if got[i].Attr.IsDir() {
				got[i].Attr.Size = 0
			}
		}
		for i := range want {
			want[i].Attr.Nlink = 0
		}
		slices.SortFunc(want, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
		slices.SortFunc(got, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("what was written and what was read differ (-want +got):\n%s", diff)
		}
	})
}

// growTree makes a tree from bytes, in the order that Add wants.
func growTree(data []byte) []Entry {
	next := func() byte {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return b
	}
	dirs := []string{"."}
	all := []Entry{dir(".")}
	seen := map[string]bool{}
	for len(data) > 0 && len(all) < 500 {
		path := fmt.Sprintf("%s/%c%d", dirs[int(next())%len(dirs)], "ab-.ü"[next()%4], next()%16)
		path = strings.TrimPrefix(path, "./")
		if seen[path] {
			continue
		}
		seen[path] = true
		e := growNode(path, next)
		if e.Attr.IsDir() {
			dirs = append(dirs, path)
		}
		all = append(all, e)
	}
	slices.SortFunc(all[1:], func(a, b Entry) int { return comparePaths(a.Path, b.Path) })
	linkSome(all)
	return all
}

func growNode(path string, next func() byte) Entry {
	a := Attr{
		Mode: uint32(next())<<4 | uint32(next())&0o17, UID: uint32(next()) << 24, GID: uint32(next()),
		Mtime: int64(int8(next())) << 33,
	}
	e := Entry{Path: path, Attr: a}
	switch next() % 8 {
	case 0:
		e.Attr.Mode |= unix.S_IFDIR
	case 1:
		e.Attr.Mode |= unix.S_IFLNK
		e.Target = strings.Repeat(string(next()|1), 1+int(next()))
		e.Attr.Size = int64(len(e.Target))
	case 2:
		e.Attr.Mode |= unix.S_IFCHR
		e.Attr.Rdev = uint64(next())<<56 | uint64(next())
	case 3:
		e.Attr.Mode |= unix.S_IFSOCK
	default:
		e.Attr.Mode |= unix.S_IFREG
		e.Attr.Size = int64(next()) << (next() % 15)
		e.Blocks = refs(path, e.Attr.Size)
	}
	for i := range next() % 3 {
		e.Xattrs = append(e.Xattrs, Xattr{Name: fmt.Sprintf("user.%d", i), Value: []byte{next()}})
	}
	return e
}

// linkSome makes every regular file after one of the same last letter a link
// to that.
func linkSome(all []Entry) {
	first := map[byte]int{}
	for i := range all {
		e := &all[i]
		if !e.Attr.IsRegular() {
			continue
		}
		e.Attr.Nlink = 2
		letter := e.Path[len(e.Path)-1]
		if f, ok := first[letter]; ok {
			e.LinkTo, e.Attr, e.Blocks = all[f].Path, all[f].Attr, all[f].Blocks
		} else {
			first[letter] = i
		}
	}
}
