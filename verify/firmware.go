package verify

import (
	"io/fs"
	"path"
	"strings"

	"overmount/kmod"
)

// firmware is a directory that will be at /lib/firmware, as the kernel searches
// it: drivers/base/firmware_loader/main.c of Linux.
type firmware struct {
	fsys fs.FS
	dirs []string // in the order of search
	all  []string // paths of all files, for patterns
}

func newFirmware(fsys fs.FS, kver string) (*firmware, error) {
	f := &firmware{fsys: fsys, dirs: []string{"updates", "."}}
	if fs.ValidPath(kver) && kver != "." {
		f.dirs = []string{"updates/" + kver, "updates", kver, "."}
	}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			f.all = append(f.all, name)
		}
		return err
	})
	return f, err
}

// find returns which of the names are not there, and those that are there only
// compressed, by suffix.
func (f *firmware) find(names []string) (missing []string, packed map[string][]string) {
	packed = map[string][]string{}
	for _, name := range names {
		suffix, ok := f.search(name)
		switch {
		case !ok:
			missing = append(missing, name)
		case suffix != "":
			packed[suffix] = append(packed[suffix], name)
		}
	}
	return missing, packed
}

// search looks for a name as the kernel does: plain in every place, then with
// .zst, then with .xz. Symlinks are followed within the tree.
func (f *firmware) search(name string) (suffix string, ok bool) {
	for _, suffix := range []string{"", ".zst", ".xz"} {
		for _, dir := range f.dirs {
			if f.has(path.Join(dir, name+suffix)) {
				return suffix, true
			}
		}
	}
	return "", false
}

// has reports whether there is a regular file of that name. Some declared names
// are patterns; the kernel takes none, but the driver then asks for a file that
// the pattern matches.
func (f *firmware) has(name string) bool {
	if strings.ContainsAny(name, "*?[") {
		for _, file := range f.all {
			if kmod.Match(name, file) {
				return true
			}
		}
		return false
	}
	if !fs.ValidPath(name) {
		return false
	}
	info, err := fs.Stat(f.fsys, name)
	return err == nil && info.Mode().IsRegular()
}
