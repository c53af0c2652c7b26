package kmod

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
)

// A Config is what modprobe.d and the kernel's command line say: aliases,
// options, softdeps, blacklist, install and remove commands. A file is a list of
// lines, each a directive:
//
//	alias PATTERN MODULE
//	options MODULE PARAMETER[=VALUE]...
//	softdep MODULE [pre: MODULE...] [post: MODULE...]
//	weakdep MODULE MODULE...
//	blacklist MODULE
//	install MODULE COMMAND
//	remove MODULE COMMAND
//
// A line that starts with # is a comment. A backslash at the end of a line joins
// it to the next; before any other character it is dropped. In names, a - is
// a _. Lines that are none of these are left out, as modprobe leaves them out,
// and [Config.Warnings] tells of them.
//
// The zero Config is empty. A Config must not be changed while it is in use.
type Config struct {
	files    []rules // by name of the file
	cmdline  rules
	warnings []string
}

// rules are the directives of a file, each kind in the order of the file.
type rules struct {
	file string // its name without the directory

	aliases, options, softdeps, weakdeps, install, remove []rule

	blacklist []string
}

// A rule is the name of a module, or a pattern, and what is said of it.
type rule struct{ name, value string }

// ReadConfig reads the configuration below a root file system. The dirs are
// directories, of which the files named *.conf are read, or files. Without any
// they are the usual directories: etc/modprobe.d, run/modprobe.d,
// usr/local/lib/modprobe.d, usr/lib/modprobe.d, lib/modprobe.d, as far as they
// exist. Of files with the same name, that of the first directory counts; all
// are read in the order of their names, whatever their directory.
//
// A name that leads nowhere is an empty file, and so is a link to /dev/null, with
// which administrators hide files of later directories. Everything else that
// cannot be read is an error, where modprobe would go on without it.
func ReadConfig(fsys fs.FS, dirs ...string) (*Config, error) {
	given := len(dirs) > 0
	if !given {
		dirs = []string{"etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"}
	}
	c := &Config{}
	for _, dir := range dirs {
		dir = cmp.Or(strings.TrimPrefix(path.Clean("/"+dir), "/"), ".")
		info, err := fs.Stat(fsys, dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !given:
		case err != nil:
			return nil, fmt.Errorf("read modprobe configuration: %w", err)
		case info.IsDir():
			if err := c.readDir(fsys, dir); err != nil {
				return nil, fmt.Errorf("read modprobe configuration: %w", err)
			}
		default:
			if err := c.readFile(fsys, dir); err != nil {
				return nil, fmt.Errorf("read modprobe configuration: %w", err)
			}
		}
	}
	slices.SortFunc(c.files, func(a, b rules) int { return cmp.Compare(a.file, b.file) })
	return c, nil
}

func (c *Config) readDir(fsys fs.FS, dir string) error {
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); name[0] != '.' && strings.HasSuffix(name, ".conf") {
			if err := c.readFile(fsys, path.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// readFile reads a file, unless there was one of its name before.
func (c *Config) readFile(fsys fs.FS, name string) error {
	base := path.Base(name)
	if slices.ContainsFunc(c.files, func(r rules) bool { return r.file == base }) {
		return nil
	}
	info, err := fs.Stat(fsys, name)
	switch {
	case err == nil && info.IsDir():
		c.warnings = append(c.warnings, name+" is a directory")
		return nil
	case err == nil || isNull(fsys, name):
	case errors.Is(err, fs.ErrNotExist):
		c.warnings = append(c.warnings, name+" is a link that leads nowhere")
	default:
		return err
	}
	r := rules{file: base}
	if err == nil {
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		for _, w := range r.parse(string(text)) {
			c.warnings = append(c.warnings, name+" "+w)
		}
	}
	c.files = append(c.files, r)
	return nil
}

// isNull reports whether a file is a link to /dev/null, which may be missing in a
// file system that is not the host's.
func isNull(fsys fs.FS, name string) bool {
	target, err := fs.ReadLink(fsys, name)
	return err == nil && target == "/dev/null"
}

// Warnings returns what was left out, and why, in no order that matters.
func (c *Config) Warnings() []string { return c.warnings }

// AddCommandLine adds the parameters for modules that stand on a kernel command
// line: MODULE.PARAMETER[=VALUE], and modprobe.blacklist=MODULE,... A value may
// have spaces if it is in double quotes, or the whole word is. They come after
// all options of files.
//
// As for modprobe, a module to be blacklisted here must be spelled as the kernel
// does, with underscores.
func (c *Config) AddCommandLine(line string) {
	line, _, _ = strings.Cut(line, "\x00")
	for word := range CommandLine(line) {
		module, param, ok := parameter(word)
		if !ok {
			continue
		}
		if list, ok := strings.CutPrefix(param, "blacklist="); ok && module == "modprobe" {
			c.cmdline.blacklist = append(c.cmdline.blacklist, strings.Split(list, ",")...)
		} else if module, ok := Normalize(module); ok {
			c.cmdline.options = append(c.cmdline.options, rule{module, param})
		}
	}
}

// CommandLine splits a kernel command line at the spaces that are not in quotes. A last word
// whose quotes are not closed is dropped.
func CommandLine(line string) iter.Seq[string] {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := range len(line) + 1 {
			switch {
			case i < len(line) && line[i] == '"':
				quoted = !quoted
			case quoted || i < len(line) && !isSpace(line[i]):
			case !yield(line[start:i]):
				return
			default:
				start = i + 1
			}
		}
	}
}

// parameter splits a word of the command line into a module and what is to be
// passed to it. It reports false if the word is for somebody else.
func parameter(word string) (module, param string, ok bool) {
	inner, quoted := strings.CutPrefix(word, `"`)
	key, value, hasValue := strings.Cut(inner, "=")
	module, param, ok = strings.Cut(key, ".")
	if !ok || strings.ContainsAny(key, "\" \t\n\v\f\r") || strings.Contains(param, ".") {
		return "", "", false
	}
	switch {
	case quoted: // as boot loaders write it; the module wants it the other way
		param += `="` + value
	case hasValue:
		param += "=" + value
	}
	return module, param, true
}

// isSpace is isspace(3) in the C locale.
func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// merge returns all rules in the order in which modprobe applies them: files by
// name, among them those of the tree, then the command line.
func (c *Config) merge(tree []rules) rules {
	files := slices.Concat(tree, c.files)
	slices.SortStableFunc(files, func(a, b rules) int { return cmp.Compare(a.file, b.file) })
	var all rules
	for _, r := range append(files, c.cmdline) {
		all.aliases = append(all.aliases, r.aliases...)
		all.options = append(all.options, r.options...)
		all.softdeps = append(all.softdeps, r.softdeps...)
		all.weakdeps = append(all.weakdeps, r.weakdeps...)
		all.install = append(all.install, r.install...)
		all.remove = append(all.remove, r.remove...)
		all.blacklist = append(all.blacklist, r.blacklist...)
	}
	return all
}

// parse adds the directives of a text. It returns a warning for each line that it
// leaves out.
func (r *rules) parse(text string) (warnings []string) {
	for number, line := range lines(text) {
		// Where C reads, a NUL ends the line.
		line, _, _ = strings.Cut(line, "\x00")
		if strings.HasPrefix(line, "#") {
			continue
		}
		directive, rest := cutWord(line)
		if directive != "" && !r.add(directive, rest) {
			warnings = append(warnings, fmt.Sprintf("line %d: ignoring bad line starting with %.80q", number, directive))
		}
	}
	return warnings
}

// add adds a directive. It reports false if there is no such, or if it lacks
// something.
func (r *rules) add(directive, rest string) bool {
	name, rest := cutWord(rest)
	name, ok := Normalize(name)
	if !ok || name == "" {
		return false
	}
	switch directive {
	case "alias":
		target, _ := cutWord(rest)
		target, ok := Normalize(target)
		if !ok {
			return false
		}
		return push(&r.aliases, name, target)
	case "options":
		return push(&r.options, name, strings.ReplaceAll(rest, "\t", " "))
	case "softdep":
		return push(&r.softdeps, name, rest)
	case "weakdep":
		return push(&r.weakdeps, name, rest)
	case "install":
		return push(&r.install, name, rest)
	case "remove":
		return push(&r.remove, name, rest)
	case "blacklist":
		r.blacklist = append(r.blacklist, name)
		return true
	}
	return false
}

// push adds a rule unless it says nothing.
func push(list *[]rule, name, value string) bool {
	if value == "" {
		return false
	}
	*list = append(*list, rule{name, value})
	return true
}

// cutWord returns the first word, and what follows the blank that ends it.
func cutWord(s string) (word, rest string) {
	s = strings.TrimLeft(s, " \t")
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// lines yields the lines of a text, joined and without their backslashes, each
// with the number that its last part has in the file.
func lines(text string) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		var line strings.Builder
		number := 1
		for i := 0; i < len(text); i++ {
			c := text[i]
			if c == '\n' {
				if !yield(number, line.String()) {
					return
				}
				line.Reset()
				number++
				continue
			}
			if c == '\\' {
				if i++; i == len(text) {
					break
				}
				if c = text[i]; c == '\n' {
					number++
					continue
				}
			}
			line.WriteByte(c)
		}
		if line.Len() > 0 {
			yield(number, line.String())
		}
	}
}
