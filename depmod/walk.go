package depmod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"overmount/kmod"
)

// maxEntries ends a walk that symlinks make endless, or nearly.
const maxEntries = 1 << 20

// A file is a module file, not read yet.
type file struct {
	fsys fs.FS
	name string // in fsys
	path string // as the indexes have it
}

func (f file) module() string { return kmod.Name(f.name) }

// walker goes through a directory and finds module files, as kmod does: through
// symlinks, in all directories but build, source and those to exclude.
type walker struct {
	fsys    fs.FS
	exclude []string
	entries int

	// found is told of each file that is a module by its name; info is nil unless
	// a symlink leads there. If it returns false the walk ends.
	found func(name string, e fs.DirEntry, info fs.FileInfo) bool
	// failed is told what cannot be read. If it returns false the walk ends.
	failed func(name string, err error) bool
}

// run walks the whole; it reports false if there is nothing to walk.
func (w *walker) run() bool {
	top, err := fs.Stat(w.fsys, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err == nil && !top.IsDir() {
		err = errors.New("it is not a directory")
	}
	if err != nil {
		w.failed(".", err)
		return true
	}
	w.walk(".", []fs.FileInfo{top})
	return true
}

// walk goes through a directory in the order of names. up are the directories
// above it that the walk came to through symlinks, and the topmost.
func (w *walker) walk(dir string, up []fs.FileInfo) bool {
	entries, err := fs.ReadDir(w.fsys, dir)
	if err != nil {
		return w.failed(dir, err)
	}
	if w.entries += len(entries); w.entries > maxEntries {
		w.failed(dir, fmt.Errorf("the walk came over more than %d files", maxEntries))
		return false
	}
	for _, e := range entries {
		name := e.Name()
		if name == "build" || name == "source" || slices.Contains(w.exclude, name) {
			continue
		}
		if !w.entry(path.Join(dir, name), e, up) {
			return false
		}
	}
	return true
}

func (w *walker) entry(name string, e fs.DirEntry, up []fs.FileInfo) bool {
	module := kmod.Suffix(name) != ""
	switch {
	case e.IsDir():
		return w.walk(name, up)
	case e.Type()&fs.ModeSymlink == 0:
		return !module || !e.Type().IsRegular() || w.found(name, e, nil)
	}
	info, err := fs.Stat(w.fsys, name)
	switch {
	case err != nil:
		return !module || w.failed(name, err)
	case !info.IsDir():
		return !module || !info.Mode().IsRegular() || w.found(name, e, info)
	case slices.ContainsFunc(up, func(above fs.FileInfo) bool { return os.SameFile(above, info) }):
		return true
	}
	return w.walk(name, append(slices.Clone(up), info))
}

// pathless drops the paths of an error, where the file is named already.
func pathless(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}

// findModules walks the directory and the external ones. It passes by what it
// cannot read, and returns all reasons.
func findModules(ctx context.Context, fsys fs.FS, o *Options) ([]file, error) {
	var files []file
	var errs []error
	scan := func(fsys fs.FS, prefix string) bool {
		w := &walker{fsys: fsys, exclude: o.Config.Exclude}
		w.found = func(name string, _ fs.DirEntry, _ fs.FileInfo) bool {
			files = append(files, file{fsys, name, path.Join(prefix, name)})
			return ctx.Err() == nil
		}
		w.failed = func(name string, err error) bool {
			errs = append(errs, fmt.Errorf("read %s: %w", path.Join(prefix, name), pathless(err)))
			return ctx.Err() == nil
		}
		return w.run()
	}
	if !scan(fsys, "") {
		return nil, fmt.Errorf("read the modules: %w", fs.ErrNotExist)
	}
	for _, ext := range o.Externals {
		scan(ext.FS, path.Clean(ext.Dir))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return files, errors.Join(errs...)
}

// namedFiles are the files that the options name, instead of all.
func namedFiles(fsys fs.FS, o *Options) ([]file, error) {
	var files []file
	byName := map[string]string{}
	for _, p := range o.Files {
		f, err := namedFile(fsys, p, o.Externals)
		if err != nil {
			return nil, err
		}
		if other, ok := byName[f.module()]; ok && other != f.path {
			return nil, fmt.Errorf("%s and %s are both module %s", other, f.path, f.module())
		} else if !ok {
			files = append(files, f)
		}
		byName[f.module()] = f.path
	}
	return files, nil
}

func namedFile(fsys fs.FS, p string, externals []External) (file, error) {
	if kmod.Suffix(p) == "" {
		return file{}, fmt.Errorf("%s is no module: want .ko, .ko.gz, .ko.xz or .ko.zst", p)
	}
	if !path.IsAbs(p) {
		return file{fsys, path.Clean(p), path.Clean(p)}, nil
	}
	for _, ext := range externals {
		if name, ok := strings.CutPrefix(p, path.Clean(ext.Dir)+"/"); ok {
			return file{ext.FS, name, p}, nil
		}
	}
	return file{}, fmt.Errorf("%s is not in a directory that is known", p)
}

// choose keeps one file of each module name, that with the highest rank, and of
// several the first path. It reports those that only the path decided.
func choose(files []file, r ranks) ([]file, []Warning) {
	byName := map[string][]file{}
	var names []string
	for _, f := range files {
		name := f.module()
		if byName[name] == nil {
			names = append(names, name)
		}
		byName[name] = append(byName[name], f)
	}
	var warnings []Warning
	chosen := make([]file, 0, len(names))
	for _, name := range names {
		same := byName[name]
		if len(same) > 1 {
			slices.SortFunc(same, func(a, b file) int {
				return cmp.Or(r.compare(b.path, a.path), cmp.Compare(a.path, b.path))
			})
			for _, other := range same[1:] {
				if r.compare(same[0].path, other.path) == 0 {
					warnings = append(warnings, Warning{Kind: Duplicate, Path: same[0].path,
						Text: fmt.Sprintf("module %s is also %s, of the same priority, which is left out", name, other.path)})
				}
			}
		}
		chosen = append(chosen, same[0])
	}
	return chosen, warnings
}

// compare is positive if path a has the higher rank.
func (r ranks) compare(a, b string) int {
	x, y := r.of(a), r.of(b)
	return cmp.Or(cmp.Compare(x.override, y.override), cmp.Compare(x.search, y.search))
}
