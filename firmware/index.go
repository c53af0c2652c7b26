package firmware

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// An Index says which packages have which firmware. The zero Index is empty.
// Concurrent use is safe once nothing is added any more, and Find or Match was called.
//
// What packages have can be a file or a symlink. Where a symlink leads is known if the
// packages themselves were read, and not from an index of names such as Debian's. Not
// known at all are links that scripts of packages make.
type Index struct {
	entries map[string][]entry // by path below the directory of firmware
	paths   []string           // of entries, sorted; nil if some were added since
}

// A Package is one that has firmware.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"` // empty if it is not known
}

func (p Package) String() string { return strings.TrimSpace(p.Name + " " + p.Version) }

// An entry is what a package has at a path.
type entry struct {
	Package
	// link is where a symlink leads: a path below the directory of firmware, or, with
	// a slash before it, one of the system. It is empty for a file, and unknown for
	// what may be either.
	link string
}

const unknown = "?"

// A Source is packages that bring a file.
type Source struct {
	// Packages are all needed: more than one if a link in one leads to a file of
	// another.
	Packages []Package
	// Perhaps says that it takes a link which the index does not show.
	Perhaps bool
}

// Places are where packages have firmware, below the root. The two are one.
func Places() []string { return []string{"lib/firmware", "usr/lib/firmware"} }

// inside returns the path below the directory of firmware of a path of the system.
func inside(name string) (string, bool) {
	for _, dir := range Places() {
		if name == dir {
			return ".", true
		}
		if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
			return rest, true
		}
	}
	return "", false
}

// AddFile notes that a package has a regular file. The path is that of the package,
// such as usr/lib/firmware/a.bin. What is not below one of Places, or could not be
// written down, is passed over; so it is for the other Adds.
func (x *Index) AddFile(name string, p Package) { x.add(name, entry{p, ""}) }

// AddPath notes that a package has a file or a symlink, and that nobody knows which.
func (x *Index) AddPath(name string, p Package) { x.add(name, entry{p, unknown}) }

// AddLink notes that a package has a symlink, and its target as the package has it.
func (x *Index) AddLink(name, target string, p Package) {
	if !path.IsAbs(target) {
		target = path.Join("/", path.Dir(name), target)
	}
	target = path.Clean(target)
	if in, ok := inside(target[1:]); ok {
		target = in
	}
	x.add(name, entry{p, target})
}

func (x *Index) add(name string, e entry) {
	if in, ok := inside(name); ok && in != "." && isText(in, maxText) && fs.ValidPath(in) && e.valid() {
		x.put(in, e)
	}
}

func (x *Index) put(name string, e entry) {
	if x.entries == nil {
		x.entries = map[string][]entry{}
	}
	if !slices.Contains(x.entries[name], e) {
		x.entries[name] = append(x.entries[name], e)
		x.paths = nil
	}
}

func (e entry) valid() bool {
	word := func(s string) bool { return isText(s, 255) && !strings.Contains(s, " ") }
	return word(e.Name) && (e.Version == "" || word(e.Version)) && (e.link == "" || e.link == unknown || validTarget(e.link))
}

func validTarget(target string) bool {
	return isText(target, maxText) && (path.IsAbs(target) && path.Clean(target) == target && utf8.ValidString(target) || fs.ValidPath(target))
}

const maxText = 4095 // bytes of a path, as in Linux

// isText reports whether a text can be written into a line of a file.
func isText(s string, most int) bool {
	return s != "" && len(s) <= most && strings.IndexFunc(s, unicode.IsControl) < 0
}

// Len returns the number of paths.
func (x *Index) Len() int { return len(x.entries) }

func (x *Index) sorted() []string {
	if x.paths == nil {
		x.paths = slices.Sorted(maps.Keys(x.entries))
	}
	return x.paths
}

// Find returns what brings the file that a kernel of a version takes for a name, plain
// or compressed, none if no package has it. Each Source alone will do.
func (x *Index) Find(kver, name string) []Source {
	s := search{steps: maxSteps}
	for c := range placesFor(kver).of(name) {
		x.walk(&s, ".", c.path, nil)
	}
	if len(s.found) == 0 {
		x.alternatives(&s, name)
	}
	return s.least()
}

// Match returns what brings the files that the names which a pattern matches may stand
// for: each Source some of them. Patterns are matched as by [Dir.Match].
func (x *Index) Match(kver, pattern string) []Source {
	var all search
	seen := map[string]bool{}
	for c := range placesFor(kver).matching(pattern, x.sorted()) {
		if seen[c.path] {
			continue
		}
		seen[c.path] = true
		s := search{steps: maxSteps}
		x.walk(&s, ".", c.path, nil)
		for _, source := range s.least() {
			all.add(source.Packages, source.Perhaps)
		}
	}
	return all.found
}

// maxLinks is how many symlinks a path may lead through, as in Linux. maxSteps bounds
// those of all packages that are followed for one name.
const (
	maxLinks = 40
	maxSteps = 1000
)

// A search gathers sources.
type search struct {
	found []Source
	steps int // that are left
}

// walk goes down from a directory, and through the symlinks of via to what is there.
// Packages may be of different opinions about what is at a path: then each is followed.
func (x *Index) walk(s *search, at, rest string, via []Package) {
	for rest != "" {
		if s.steps--; s.steps < 0 || len(via) > maxLinks {
			return
		}
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		at = path.Join(at, part)
		for _, e := range x.entries[at] {
			with := append(slices.Clip(via), e.Package)
			switch {
			case e.link == "" && rest != "": // a file has nothing below it
			case e.link == "":
				s.add(with, false)
			case e.link == unknown:
				s.add(with, rest != "")
			case path.IsAbs(e.link):
				s.add(with, true)
			default:
				x.walk(s, ".", path.Join(e.link, rest), with)
			}
		}
	}
}

// alternatives looks for what Debian's update-alternatives may make a link called name
// to: files that have a hyphen and a word more, such as regulatory.db-debian.
func (x *Index) alternatives(s *search, name string) {
	if path.Ext(name) == "" {
		return
	}
	paths := x.sorted()
	from, _ := slices.BinarySearch(paths, name+"-")
	for _, p := range paths[from:] {
		word, ok := strings.CutPrefix(p, name+"-")
		if !ok {
			return
		}
		for _, e := range x.entries[p] {
			if !strings.Contains(word, "/") {
				s.add([]Package{e.Package}, true)
			}
		}
	}
}

func (s *search) add(packages []Package, perhaps bool) {
	packages = slices.Clone(packages)
	slices.SortFunc(packages, comparePackages)
	packages = slices.Compact(packages)
	i := slices.IndexFunc(s.found, func(f Source) bool { return slices.Equal(f.Packages, packages) })
	if i < 0 {
		s.found = append(s.found, Source{packages, perhaps})
	} else if !perhaps {
		s.found[i].Perhaps = false
	}
}

// least returns the sources without those that other ones make needless: a guess where
// something is known, and packages of which fewer will do.
func (s *search) least() []Source {
	sure := slices.ContainsFunc(s.found, func(f Source) bool { return !f.Perhaps })
	return slices.DeleteFunc(slices.Clone(s.found), func(f Source) bool {
		return f.Perhaps && sure || slices.ContainsFunc(s.found, func(o Source) bool {
			return (!o.Perhaps || f.Perhaps) && len(o.Packages) < len(f.Packages) && includes(f.Packages, o.Packages)
		})
	})
}

func includes(all, some []Package) bool {
	return !slices.ContainsFunc(some, func(p Package) bool { return !slices.Contains(all, p) })
}

func comparePackages(a, b Package) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
}

const indexHead = "# overmount firmware index 1: path, package, version, link"

// maxIndex bounds the file of an index, and maxIndexLine a line, in bytes. That of all
// of Debian 12 has 144 KB.
const (
	maxIndex     = 64 << 20
	maxIndexLine = 16 << 10
)

// Write writes the index as text that [ReadIndex] reads: a line for each path and
// package, sorted, with tabs between path, package, version and, of a symlink, "-> "
// and where it leads, or "?" for what may be a file or a symlink. The same index gives
// the same text.
func (x *Index) Write(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, indexHead)
	for _, name := range x.sorted() {
		entries := slices.SortedFunc(slices.Values(x.entries[name]), func(a, b entry) int {
			return cmp.Or(comparePackages(a.Package, b.Package), cmp.Compare(a.link, b.link))
		})
		for _, e := range entries {
			fmt.Fprintf(b, "%s\t%s\t%s", name, e.Name, e.Version)
			switch e.link {
			case "":
			case unknown:
				fmt.Fprint(b, "\t?")
			default:
				fmt.Fprint(b, "\t-> ", e.link)
			}
			fmt.Fprintln(b)
		}
	}
	return b.Flush()
}

// ReadIndex reads what Write has written. Errors have the number of the line.
func ReadIndex(r io.Reader) (*Index, error) {
	x := &Index{}
	lines := bufio.NewScanner(io.LimitReader(r, maxIndex))
	lines.Buffer(nil, maxIndexLine)
	size := 0
	for number := 1; lines.Scan(); number++ {
		line := lines.Text()
		if size += len(line) + 1; size >= maxIndex {
			return nil, fmt.Errorf("it has over the limit of %d bytes", maxIndex)
		}
		if number == 1 && line != indexHead {
			return nil, errors.New("it is no index of firmware that --firmware-index has written")
		}
		if number == 1 {
			continue
		}
		name, e, ok := parseLine(line)
		if !ok {
			return nil, fmt.Errorf("line %d: %.80q has not path, package, version and perhaps a link, with tabs between them", number, line)
		}
		x.put(name, e)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, errors.New("it is empty")
	}
	return x, nil
}

func parseLine(line string) (name string, e entry, ok bool) {
	words := strings.Split(line, "\t")
	if len(words) != 3 && len(words) != 4 {
		return "", e, false
	}
	name, e.Name, e.Version = words[0], words[1], words[2]
	if len(words) == 4 {
		target, isLink := strings.CutPrefix(words[3], "-> ")
		if isLink == (target == unknown) {
			return "", e, false
		}
		e.link = target
	}
	return name, e, isText(name, maxText) && fs.ValidPath(name) && name != "." && e.valid()
}
