package depmod

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A Config is what depmod.d says: which of several modules with one name counts,
// and where else modules are (depmod.d(5)). The zero value is that of a host
// without configuration, with "updates" before all other directories.
type Config struct {
	// Search holds the directories whose modules come first, and the words
	// "built-in", for all that no other directory matches, and "external"; the
	// first has the highest priority. Nil means "updates".
	Search []string

	Overrides []Override // the last one that matches counts
	Externals []ExternalDir
	Exclude   []string // names that the walk passes by, beside build and source

	// Problems are lines that were ignored, as "FILE:LINE: why".
	Problems []string
}

// An Override makes one module win over all others of its name.
type Override struct {
	Name string // as the file is spelled, up to the first dot
	Kver string // extended regular expression, or "*"
	Dir  string // relative to lib/modules/KVER
}

// An ExternalDir is a directory of modules outside of lib/modules.
type ExternalDir struct {
	Kver string // extended regular expression, or "*"
	Dir  string // absolute
}

// configDirs are the usual places of depmod.d, with precedence.
var configDirs = []string{"etc/depmod.d", "run/depmod.d", "usr/local/lib/depmod.d", "usr/lib/depmod.d", "lib/depmod.d"}

// ReadConfig reads the files and directories of paths, or without any the usual
// directories below base: etc, run, usr/local/lib, usr/lib and lib, each with
// depmod.d. Of a directory it takes *.conf. The first of several files with one
// name counts, and all are read in the order of their names.
//
// Unlike kmod's, it never reads the configuration of this host for a tree
// elsewhere, and a path that does not exist is an error.
func ReadConfig(base string, paths ...string) (*Config, error) {
	files := map[string]string{}
	for _, p := range paths {
		if err := addConfig(files, p); err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
	}
	if len(paths) == 0 {
		for _, dir := range configDirs {
			if err := addConfig(files, filepath.Join(base, dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("read the configuration: %w", err)
			}
		}
	}
	c := &Config{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data, err := os.ReadFile(files[name])
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		c.parse(files[name], data)
	}
	return c, nil
}

// addConfig notes a file, or the files of a directory, by name.
func addConfig(files map[string]string, p string) error {
	add := func(name, file string) {
		if _, ok := files[name]; !ok {
			files[name] = file
		}
	}
	info, err := os.Stat(p)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		add(filepath.Base(p), p)
		return nil
	}
	entries, err := os.ReadDir(p)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".conf") && name[0] != '.' {
			add(name, filepath.Join(p, name))
		}
	}
	return nil
}

// parse adds the lines of a file.
func (c *Config) parse(file string, data []byte) {
	for n, line := range logicalLines(data) {
		if line == "" || line[0] == '#' {
			continue
		}
		words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
		if len(words) == 0 {
			continue
		}
		if err := c.command(words[0], words[1:]); err != nil {
			c.Problems = append(c.Problems, fmt.Sprintf("%s:%d: %v", file, n, err))
		}
	}
}

func (c *Config) command(cmd string, args []string) error {
	switch {
	case cmd == "search":
		c.Search = append(c.Search, args...)
	case cmd == "override" && len(args) >= 3:
		c.Overrides = append(c.Overrides, Override{Name: args[0], Kver: args[1], Dir: args[2]})
		return checkKver(args[1])
	case cmd == "external" && len(args) >= 2:
		if !path.IsAbs(args[1]) {
			return fmt.Errorf("external directory %q is not absolute", args[1])
		}
		c.Externals = append(c.Externals, ExternalDir{Kver: args[0], Dir: args[1]})
		return checkKver(args[0])
	case cmd == "exclude":
		c.Exclude = append(c.Exclude, args...)
	case cmd == "include" || cmd == "make_map_files":
		return fmt.Errorf("%s has no effect", cmd)
	default:
		return fmt.Errorf("ignoring bad line starting with %q", cmd)
	}
	return nil
}

func checkKver(pattern string) error {
	if pattern == "*" {
		return nil
	}
	if _, err := regexp.CompilePOSIX(pattern); err != nil {
		return fmt.Errorf("%q matches no kernel version: %w", pattern, err)
	}
	return nil
}

// matchKver reports whether a pattern of an override or external line means a
// kernel version.
func matchKver(pattern, kver string) bool {
	if pattern == "*" {
		return true
	}
	re, err := regexp.CompilePOSIX(pattern)
	return err == nil && re.MatchString(kver)
}

// logicalLines yields lines with the number of their last one; a backslash at the
// end of one continues it, one elsewhere is dropped.
func logicalLines(data []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		n, whole := 0, ""
		for line := range strings.Lines(string(data)) {
			n++
			text, continued := unescape(strings.TrimSuffix(line, "\n"))
			whole += text
			if continued {
				continue
			}
			if !yield(n, whole) {
				return
			}
			whole = ""
		}
		if whole != "" {
			yield(n, whole)
		}
	}
}

func unescape(s string) (text string, continued bool) {
	if !strings.Contains(s, `\`) {
		return s, false
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			if i++; i == len(s) {
				return b.String(), true
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), false
}

// ExternalDirs returns the directories that hold modules for a kernel version
// outside of its own directory, in the order of the configuration, each once.
func (c *Config) ExternalDirs(kver string) []string {
	var dirs []string
	for _, e := range c.Externals {
		dir := path.Clean(e.Dir)
		if matchKver(e.Kver, kver) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// ranks compares modules of one name.
type ranks struct {
	search    []string
	overrides []string // DIR/NAME, those that match the kernel version
}

func (c *Config) ranks(kver string) ranks {
	r := ranks{search: c.Search}
	if r.search == nil {
		r.search = []string{"updates"}
	}
	for _, o := range c.Overrides {
		if matchKver(o.Kver, kver) {
			r.overrides = append(r.overrides, o.Dir+"/"+o.Name)
		}
	}
	return r
}

// A rank is the priority of a module among those of its name, more is higher:
// first by override, then by the directory.
type rank struct{ override, search int }

// of returns the rank of a module file; its path is absolute if it is external.
func (r ranks) of(file string) rank {
	dir, base := path.Split(file)
	spelled, _, _ := strings.Cut(base, ".")
	return rank{
		override: lastIndex(r.overrides, dir+spelled),
		search:   r.place(file),
	}
}

// place is how high the search list has a path: -1 is below all of it.
func (r ranks) place(file string) int {
	external := path.IsAbs(file)
	builtin := -1
	for i, word := range r.search {
		place := len(r.search) - 1 - i
		switch {
		case word == "built-in":
			builtin = max(builtin, place)
		case word == "external":
			if external {
				return place
			}
		case !external && len(file) > len(word) && file[:len(word)] == word && file[len(word)] == '/':
			return place
		}
	}
	return builtin
}

func lastIndex(list []string, s string) int {
	for i, x := range slices.Backward(list) {
		if x == s {
			return i
		}
	}
	return -1
}
