package depmod

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"

	"overmount/kmod"
)

// A Difference is an index file that is not what belongs to the modules beside it.
type Difference struct {
	Name string // of the file
	Text string // what is different, in a few words
}

func (d Difference) String() string { return d.Name + " " + d.Text }

// Compare compares the index files of a directory lib/modules/KVER with r, which
// [Build] has made of it, byte by byte. Files that depmod does not write are not
// looked at. An error is one of reading.
func (r *Result) Compare(fsys fs.FS) ([]Difference, error) {
	var all []Difference
	for _, want := range r.Files {
		got, err := fs.ReadFile(fsys, want.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			all = append(all, Difference{want.Name, "is missing"})
		case err != nil:
			return nil, err
		case !bytes.Equal(got, want.Data):
			all = append(all, Difference{want.Name, difference(want.Name, got, want.Data)})
		}
	}
	return all, nil
}

// difference says where two contents of an index file part.
func difference(name string, got, want []byte) string {
	if len(got) == 0 {
		return "is empty, and readers refuse or miss it"
	}
	if !strings.HasSuffix(name, ".bin") {
		return lineDifference(string(got), string(want))
	}
	have, err := kmod.OpenIndex(got)
	if err == nil {
		err = have.Check()
	}
	if err != nil {
		return fmt.Sprintf("is damaged: %v", err)
	}
	right, err := kmod.OpenIndex(want)
	if err != nil {
		return "differs"
	}
	return indexDifference(have, right)
}

func lineDifference(got, want string) string {
	nextGot, stopGot := iter.Pull(strings.Lines(got))
	defer stopGot()
	nextWant, stopWant := iter.Pull(strings.Lines(want))
	defer stopWant()
	for n := 1; ; n++ {
		g, okGot := nextGot()
		w, okWant := nextWant()
		switch {
		case !okGot && !okWant:
			return "differs"
		case !okGot:
			return fmt.Sprintf("ends before %s", shown(w))
		case !okWant:
			return fmt.Sprintf("has one line too many: %s", shown(g))
		case g != w:
			return fmt.Sprintf("has in line %d %s, where %s belongs", n, shown(g), shown(w))
		}
	}
}

func indexDifference(got, want *kmod.Index) string {
	nextGot, stopGot := iter.Pull2(got.All())
	defer stopGot()
	nextWant, stopWant := iter.Pull2(want.All())
	defer stopWant()
	for {
		gk, gv, okGot := nextGot()
		wk, wv, okWant := nextWant()
		switch {
		case !okGot && !okWant:
			return "has the right entries in another arrangement"
		case !okGot || okWant && gk > wk:
			return fmt.Sprintf("lacks %s", shown(wk))
		case !okWant || gk < wk:
			return fmt.Sprintf("has %s, which belongs to no module", shown(gk))
		case gv != wv:
			return fmt.Sprintf("has for %s %s with priority %d, where %s with priority %d belongs", shown(gk), shown(gv.Value), gv.Priority, shown(wv.Value), wv.Priority)
		}
	}
}

// shown quotes a text of an index, cut where it is long.
func shown(s string) string {
	const long = 60
	s = strings.TrimSuffix(s, "\n")
	if len(s) > long {
		return fmt.Sprintf("%q…", s[:long])
	}
	return fmt.Sprintf("%q", s)
}
