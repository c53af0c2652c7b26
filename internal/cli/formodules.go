package cli

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"overmount/firmware"
	"overmount/manifest"
	"overmount/pack"
)

// firmwareFor returns the part of a firmware tree that the modules of a manifest
// declare, and says what it leaves out. Declared names are hints, so all that lies in
// the directory of a declared file stays, too; of the files at the top, which belong
// to many drivers, only the declared ones. What a symlink that stays leads to stays.
func (a *app) firmwareFor(ctx context.Context, tree fs.FS, modules string) (fs.FS, error) {
	m, err := openManifest(ctx, modules)
	if err != nil {
		return nil, err
	}
	if !m.HasModules() {
		return nil, fmt.Errorf("%s does not say which firmware its modules declare: pack it with --kind modules", shown(modules))
	}
	s := selection{tree: tree, files: map[string]bool{}, dirs: map[string]bool{}}
	if err := s.declared(firmware.New(tree, m.Tag(manifest.TagKver)), m); err != nil {
		return nil, err
	}
	left, err := s.fill()
	if err != nil {
		return nil, err
	}
	a.warnf("--for-modules leaves out %d files, %s, in: %s", left.files, humanBytes(left.bytes), strings.Join(left.places(), ", "))
	return pack.Without(tree, s.drops), nil
}

// A selection is what of a tree of firmware stays.
type selection struct {
	tree  fs.FS
	files map[string]bool // paths of files that stay
	dirs  map[string]bool // and of the directories above them
	whole []string        // directories of which all files stay
}

// declared takes in what modules declare.
func (s *selection) declared(d *firmware.Dir, m *manifest.Manifest) error {
	for _, module := range m.Modules() {
		for _, name := range module.Firmware {
			var files []firmware.File
			var err error
			if firmware.IsPattern(name) {
				files, err = d.Match(name)
			} else if f, ok := d.Find(name); ok {
				files = append(files, f)
			}
			if err != nil {
				return err
			}
			for _, f := range files {
				s.keep(f.Path)
				if dir := path.Dir(f.Path); dir != "." && !slices.Contains(s.whole, dir) {
					s.whole = append(s.whole, dir)
				}
			}
		}
	}
	return nil
}

// keep keeps a file, and what it leads to if it is a symlink.
func (s *selection) keep(name string) {
	for range 40 { // as the kernel, which then says ELOOP
		if s.files[name] || !fs.ValidPath(name) {
			return
		}
		s.files[name] = true
		for dir := path.Dir(name); dir != "." && !s.dirs[dir]; dir = path.Dir(dir) {
			s.dirs[dir] = true
		}
		target, err := fs.ReadLink(s.tree, name)
		if err != nil {
			return
		}
		name = path.Join(path.Dir(name), target)
	}
}

// What is left out.
type leftOut struct {
	files int
	bytes int64
	at    map[string]bool
}

// places returns some of the directories, the first parts of their paths.
func (l *leftOut) places() []string {
	const most = 12
	var all []string
	for name := range l.at {
		all = append(all, name)
	}
	slices.Sort(all)
	if len(all) > most {
		all = append(all[:most], fmt.Sprintf("and %d more", len(all)-most))
	}
	return all
}

// fill takes in the directories of which all stays, and counts the rest.
func (s *selection) fill() (*leftOut, error) {
	left := &leftOut{at: map[string]bool{}}
	var sizes = map[string]int64{}
	err := fs.WalkDir(s.tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if slices.Contains(s.whole, path.Dir(name)) {
			s.keep(name)
			return nil
		}
		info, err := d.Info()
		if err == nil && info.Mode().IsRegular() {
			sizes[name] = info.Size()
		}
		return err
	})
	for name, size := range sizes {
		if !s.files[name] {
			left.files++
			left.bytes += size
			first, _, _ := strings.Cut(name, "/")
			left.at[first] = true
		}
	}
	return left, err
}

// drops reports whether a file or directory does not stay.
func (s *selection) drops(name string) bool { return name != "." && !s.files[name] && !s.dirs[name] }
