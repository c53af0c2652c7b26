package coldplug

import (
	"fmt"
	"io/fs"
	"path"

	"overmount/kmod"
	"overmount/manifest"
)

// Facts are what a plan says of a module's file.
type Facts struct {
	Size     int64
	Firmware []string // names that it declares; hints, some are patterns
}

// A Source tells of module files.
type Source interface {
	// Facts returns those of a file, whose path is relative to lib/modules/KVER. It
	// returns fs.ErrNotExist if there is none. Callers do not call it concurrently.
	Facts(file string) (Facts, error)
}

// FromManifest returns a source that asks a manifest, and never a store. It knows
// the firmware of modules that were packed as such (manifest.HasModules).
func FromManifest(m *manifest.Manifest) Source { return manifestSource{m} }

type manifestSource struct{ m *manifest.Manifest }

func (s manifestSource) Facts(file string) (Facts, error) {
	ino, err := s.find(file)
	if err != nil {
		return Facts{}, err
	}
	note, _ := s.m.Module(s.m.FirstName(ino))
	return Facts{s.m.Attr(ino).Size, note.Firmware}, nil
}

// find follows symlinks within the tree, as many as Linux does.
func (s manifestSource) find(file string) (manifest.Ino, error) {
	for range 40 {
		ino, err := s.m.Find(file)
		if err != nil {
			return 0, err
		}
		target := s.m.Target(ino)
		switch {
		case target == "" && !s.m.Attr(ino).IsRegular():
			return 0, fmt.Errorf("%s is not a regular file", file)
		case target == "":
			return ino, nil
		case path.IsAbs(target):
			return 0, fmt.Errorf("%s leads out of the tree: %w", file, fs.ErrNotExist)
		}
		file = path.Join(path.Dir(file), target)
	}
	return 0, fmt.Errorf("%s: too many levels of symbolic links", file)
}

// FromFiles returns a source that reads the modules in a directory lib/modules/KVER.
func FromFiles(fsys fs.FS) Source { return fileSource{fsys} }

type fileSource struct{ fsys fs.FS }

func (s fileSource) Facts(file string) (Facts, error) {
	m, info, err := kmod.ReadModuleFile(s.fsys, file)
	if err != nil {
		return Facts{}, fmt.Errorf("read module %s: %w", file, err)
	}
	return Facts{info.Size(), m.Info.All("firmware")}, nil
}
