// Package firmware finds firmware files as the kernel does, in a directory that
// is or will be at /lib/firmware.
//
// The order is that of drivers/base/firmware_loader/main.c of Linux: the name as
// it is in updates/KVER, updates, KVER, and at last by itself; then the same places
// with .zst, then with .xz, which only kernels that can decompress it look for.
//
// An [Index] says the same of what packages have: which of them bring a file.
package firmware

import (
	"io/fs"
	"iter"
	"path"
	"strings"
	"sync"

	"overmount/kmod"
)

// A Dir is a directory of firmware. Concurrent use is safe.
type Dir struct {
	fsys   fs.FS
	places places
	all    func() ([]string, error)
}

// A File is a firmware file.
type File struct {
	Path   string // below the directory
	Size   int64  // of the file, in bytes, as it is there
	Suffix string // .zst or .xz if it is there only compressed, else empty
}

// New returns a directory, for a kernel of the version kver; without one the places
// that are named after a version are left out. Symlinks are followed as fsys does.
func New(fsys fs.FS, kver string) *Dir {
	d := &Dir{fsys: fsys, places: placesFor(kver)}
	d.all = sync.OnceValues(func() ([]string, error) { return list(fsys) })
	return d
}

// places are directories, in the order of search.
type places []string

func placesFor(kver string) places {
	if fs.ValidPath(kver) && kver != "." {
		return places{"updates/" + kver, "updates", kver, "."}
	}
	return places{"updates", "."}
}

// A candidate is a path at which the kernel looks for a name.
type candidate struct {
	path, name string
	suffix     string // that name has not, and path has
}

// of gives the paths of a name, in the order of search.
func (p places) of(name string) iter.Seq[candidate] {
	return func(yield func(candidate) bool) {
		for _, suffix := range []string{"", ".zst", ".xz"} {
			for _, dir := range p {
				file := path.Join(dir, name+suffix)
				if fs.ValidPath(name) && fs.ValidPath(file) && !yield(candidate{file, name, suffix}) {
					return
				}
			}
		}
	}
}

// matching gives those of some paths that may stand for names which a pattern matches,
// in the order of search. It may give several for a name, and a path several times.
func (p places) matching(pattern string, all []string) iter.Seq[candidate] {
	return func(yield func(candidate) bool) {
		for _, suffix := range []string{"", ".zst", ".xz"} {
			for _, dir := range p {
				for _, file := range all {
					name, ok := below(dir, file)
					name, packed := strings.CutSuffix(name, suffix)
					if ok && packed && kmod.Match(pattern, name) && !yield(candidate{file, name, suffix}) {
						return
					}
				}
			}
		}
	}
}

// list returns the paths of all files.
func list(fsys fs.FS) ([]string, error) {
	var all []string
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, name)
		}
		return err
	})
	return all, err
}

// Find returns the file that the kernel takes for a name, or false if there is
// none.
func (d *Dir) Find(name string) (File, bool) {
	for c := range d.places.of(name) {
		if f, ok := d.file(c.path); ok {
			f.Suffix = c.suffix
			return f, true
		}
	}
	return File{}, false
}

func (d *Dir) file(name string) (File, bool) {
	if !fs.ValidPath(name) {
		return File{}, false
	}
	info, err := fs.Stat(d.fsys, name)
	if err != nil || !info.Mode().IsRegular() {
		return File{}, false
	}
	return File{Path: name, Size: info.Size()}, true
}

// IsPattern reports whether what a module declares is a pattern. The kernel takes
// none: the driver then asks for some name that the pattern matches.
func IsPattern(name string) bool { return strings.ContainsAny(name, "*?[") }

// Match returns the files that the names which a pattern matches may stand for, in
// the order of search, each name once. The first call for a pattern walks the
// whole directory; what fails there is the error.
func (d *Dir) Match(pattern string) ([]File, error) {
	all, err := d.all()
	if err != nil {
		return nil, err
	}
	var found []File
	seen := map[string]bool{}
	for c := range d.places.matching(pattern, all) {
		if seen[c.name] || seen[c.path] {
			continue
		}
		if f, ok := d.file(c.path); ok {
			seen[c.name], seen[c.path] = true, true
			f.Suffix = c.suffix
			found = append(found, f)
		}
	}
	return found, nil
}

// below returns the name of a file as seen from a directory above it.
func below(dir, file string) (string, bool) {
	if dir == "." {
		return file, true
	}
	return strings.CutPrefix(file, dir+"/")
}
