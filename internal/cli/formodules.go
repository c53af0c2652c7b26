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

// openDeclaring opens a manifest that says which firmware its modules declare.
func (a *app) openDeclaring(ctx context.Context, file string) (*manifest.Manifest, error) {
	m, err := a.openManifest(ctx, file)
	if err == nil && !m.HasModules() {
		err = fmt.Errorf("%s does not say which firmware its modules declare: pack it with --kind modules", shown(file))
	}
	return m, err
}

// firmwareFor returns the part of a firmware tree that the modules of a manifest
// declare, and says what it leaves out. Declared names are hints, so all that lies in
// the directory of a declared file stays, too; of the files at the top, which belong
// to many drivers, only the declared ones. What a symlink that stays leads to stays, and of a
// directory that one leads to, the files.
func (a *app) firmwareFor(tree fs.FS, m *manifest.Manifest) (fs.FS, error) {
	s := selection{tree: tree, files: map[string]bool{}, dirs: map[string]bool{}, whole: map[string]bool{}}
	if err := s.declared(firmware.New(tree, m.Tag(manifest.TagKver)), m); err != nil {
		return nil, err
	}
	left, err := s.fill()
	if err != nil {
		return nil, err
	}
	if left.files == 0 {
		return tree, nil
	}
	a.warnf("--for-modules leaves out %s, %s, in: %s", counted(left.files, "file"), humanBytes(left.bytes), strings.Join(left.places(), ", "))
	return pack.Without(tree, s.drops), nil
}

// A selection is what of a tree of firmware stays.
type selection struct {
	tree  fs.FS
	files map[string]bool // paths of files that stay
	dirs  map[string]bool // and of the directories above them
	whole map[string]bool // directories of which all files stay
	queue []string        // those of whole whose files are not in files yet
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
				s.keepAll(s.keep(f.Path))
			}
		}
	}
	return nil
}

// keepAll lets all files of a directory stay, unless that is the top.
func (s *selection) keepAll(dir string) {
	if dir != "." && !s.whole[dir] {
		s.whole[dir] = true
		s.queue = append(s.queue, dir)
	}
}

// keep keeps what is at a path, the symlinks on the way to it, and what it leads to. It
// returns the directory that it is in, also by way of symlinks.
func (s *selection) keep(name string) (dir string) {
	links, at, rest := 0, ".", name
	for last := false; ; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if rest == "" && !last {
			last, dir = true, at
		}
		next := path.Join(at, part)
		if !fs.ValidPath(next) {
			return dir // it leads out
		}
		target, err := fs.ReadLink(s.tree, next)
		if err == nil {
			s.mark(next)
			if links++; links > 40 || path.IsAbs(target) { // as the kernel, which then says ELOOP
				return dir
			}
			rest = strings.TrimSuffix(target+"/"+rest, "/")
			continue
		}
		if at = next; rest == "" {
			break
		}
	}
	if info, err := fs.Stat(s.tree, at); err == nil && info.IsDir() {
		s.keepAll(at)
	} else {
		s.mark(at)
	}
	return dir
}

// mark lets a path stay, and the directories above it.
func (s *selection) mark(name string) {
	s.files[name] = true
	for dir := path.Dir(name); dir != "." && !s.dirs[dir]; dir = path.Dir(dir) {
		s.dirs[dir] = true
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
	for ; len(s.queue) > 0; s.queue = s.queue[1:] {
		dir := s.queue[0]
		list, err := fs.ReadDir(s.tree, dir)
		if err != nil {
			return nil, err
		}
		for _, d := range list {
			if !d.IsDir() {
				s.keep(path.Join(dir, d.Name()))
			}
		}
	}
	left := &leftOut{at: map[string]bool{}}
	err := fs.WalkDir(s.tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || s.files[name] {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		left.files++
		if info.Mode().IsRegular() {
			left.bytes += info.Size()
		}
		first, _, _ := strings.Cut(name, "/")
		left.at[first] = true
		return nil
	})
	return left, err
}

// drops reports whether a file or directory does not stay.
func (s *selection) drops(name string) bool { return name != "." && !s.files[name] && !s.dirs[name] }
