package archive_test

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/archive"
)

// TestNamesOnly lists files of packages that could not be one tree, and takes no disk
// for them: the directory of the spool is not there.
func TestNamesOnly(t *testing.T) {
	s := newSpool(t, &archive.Options{Dir: "/nonexistent", NamesOnly: true, MaxBytes: 1, Map: archive.Below("lib/firmware")})
	p, q := s.Package("p"), s.Package("q")
	addFile(t, p, "lib/firmware/dir/a", "content")
	add(t, p, symlink("lib/firmware/b", "dir/a"), "")
	add(t, p, archive.File{Name: "lib/firmware/c", Link: "lib/firmware/dir/a"}, "")
	addFile(t, p, "lib/other", "content")
	addFile(t, q, "lib/firmware/b", "another")
	var got []string
	for _, f := range append(p.Files(), q.Files()...) {
		line := f.Name
		if f.Mode&fs.ModeSymlink != 0 {
			line += " -> " + f.Link
		}
		got = append(got, line)
	}
	if diff := cmp.Diff([]string{"b -> dir/a", "c", "dir/a", "b"}, got); diff != "" {
		t.Errorf("Files (-want +got):\n%s", diff)
	}
	if n := p.Files()[2].Size; n != 7 {
		t.Errorf("the size is %d, want 7", n)
	}
	if err := q.Add(archive.File{Name: "lib/firmware/b"}, nil); err == nil {
		t.Error("a name twice is no error")
	}
	if tree, err := s.Tree([]*archive.Package{p}, nil); err == nil || tree != nil {
		t.Errorf("Tree = %v, %v, want an error", tree, err)
	}
	p.Discard()
	if got := p.Files(); got != nil {
		t.Errorf("after Discard, Files = %v", got)
	}
	many := newSpool(t, &archive.Options{NamesOnly: true, MaxFiles: 2})
	p = many.Package("p")
	addFile(t, p, "a", "")
	addFile(t, p, "b", "")
	if err := p.Add(archive.File{Name: "c"}, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "over the limit of 2 files") {
		t.Errorf("Add of too many names: %v, want that they are over the limit", err)
	}
}
