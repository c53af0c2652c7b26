package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A tree is what the demo knows of the modules that it packs.
type tree struct {
	dir     string // absolute path of lib/modules/KVER
	kver    string
	files   int
	bytes   int64
	modules []module // some that any distribution's kernel has
}

// A module has a name, and a path below the tree's directory.
type module struct{ name, path string }

// popular are names of modules that most kernels for servers have.
var popular = []string{"e1000e", "xfs", "nvme", "virtio_net", "btrfs", "igb", "overlay"}

const (
	wantModules = 4
	minModules  = 100
)

// survey counts what is below dir and picks modules from its modules.dep.
func survey(dir string) (*tree, error) {
	t := &tree{dir: dir, kver: filepath.Base(dir)}
	var err error
	if t.files, t.bytes, err = count(dir); err != nil {
		return nil, err
	}
	paths, err := modulePaths(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	for _, name := range popular {
		if path, ok := paths[name]; ok && len(t.modules) < wantModules {
			t.modules = append(t.modules, module{name, path})
		}
	}
	if len(paths) < minModules || len(t.modules) == 0 {
		return nil, fmt.Errorf("%s has %d modules, and of %v it has %d: it is no distribution's kernel", dir, len(paths), popular, len(t.modules))
	}
	return t, nil
}

// modulePaths reads the names and paths of all modules from a modules.dep.
func modulePaths(name string) (map[string]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	paths := make(map[string]string)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		path, _, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			return nil, fmt.Errorf("%s: line %.80q has no colon", name, lines.Text())
		}
		base, _, _ := strings.Cut(filepath.Base(path), ".ko")
		paths[strings.ReplaceAll(base, "-", "_")] = path
	}
	return paths, lines.Err()
}

// count returns the number of regular files below dir, and their bytes.
func count(dir string) (files int, bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		files++
		bytes += info.Size()
		return nil
	})
	return files, bytes, err
}
