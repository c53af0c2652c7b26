package deb

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// A Content is a path at which packages have something that is no directory: a
// file or a symlink, which an index of contents does not tell apart.
type Content struct {
	Path     string   // as in fs.ValidPath
	Packages []string // their names
}

// ErrNoContents is that a repository, or apt's lists of it, do not say which files
// its packages have. The packages themselves do; see [List].
var ErrNoContents = errors.New("there is no index of the files in packages (Contents-ARCH)")

// Limits of an index of contents. The largest of Debian 12 has 520 MB, its longest line
// 329 bytes; of firmware, all have 2,849 lines.
const (
	maxContents     = 4 << 30  // bytes, plain
	maxContentsLine = 1 << 20  // bytes
	maxContentsKept = 16 << 20 // bytes of what is kept
)

// Contents returns which packages have what is below some directories, of all
// components. It reads the indexes of contents, which are large, as streams. Those that
// the release lists and the repository lacks, as mirrors of some components do, are
// named in absent. It fails with ErrNoContents if there is none at all.
func (r *Repository) Contents(ctx context.Context, dirs []string) (list []Content, absent []string, err error) {
	dir := path.Join("dists", r.Suite)
	rel, err := r.release(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	indexes := rel.contents(r.Components, r.Architecture)
	for _, index := range indexes {
		err := r.index(ctx, rel, index, contentsTo(&list, dirs))
		if errors.Is(err, errAbsent) {
			absent = append(absent, index)
		} else if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path.Join(dir, index), err)
		}
	}
	if len(absent) == len(indexes) {
		return nil, nil, fmt.Errorf("%s: %w", dir, ErrNoContents)
	}
	return list, absent, nil
}

// ListsContents does the same with the lists of apt, which has indexes of contents
// where apt-file is installed, of the components that the host uses. As for [Lists], apt has checked the signatures.
func ListsContents(dir fs.FS, arch string, dirs []string) ([]Content, error) {
	var all []Content
	read, err := eachList(dir, func(rel *release) []string { return rel.contents(nil, arch) }, contentsTo(&all, dirs))
	if err == nil && read == 0 {
		err = fmt.Errorf("%w for the architecture %s: install apt-file, and run apt-get update", ErrNoContents, arch)
	}
	if err != nil {
		return nil, fmt.Errorf("lists of apt: %w", err)
	}
	return all, nil
}

// contentsTo is how an index of contents is read.
func contentsTo(all *[]Content, dirs []string) reading {
	return reading{maxContents, func(in io.Reader) (func(), error) {
		some, err := ReadContents(in, dirs)
		return func() { *all = append(*all, some...) }, err
	}}
}

// contents returns the paths of the plain indexes of contents of an architecture.
func (r *release) contents(components []string, arch string) []string {
	var list []string
	for _, c := range append(r.components(components), "") { // some have one for all components
		for _, a := range slices.Compact([]string{arch, "all"}) {
			if name := path.Join(c, "Contents-"+a); r.lists(name) {
				list = append(list, name)
			}
		}
	}
	return list
}

// ReadContents reads an index of contents, a file called Contents-ARCH, plain, and
// returns what is about paths below some directories.
//
// A line is a path, which may have spaces, white space, and names of packages with
// commas between them, each perhaps with its section and a slash before it. What has
// not that form is passed over, as Debian's description of repositories asks for:
// there may be text for people at the beginning.
func ReadContents(r io.Reader, dirs []string) ([]Content, error) {
	var found []Content
	kept := 0
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxContentsLine)
	for lines.Scan() {
		line := bytes.TrimPrefix(bytes.TrimPrefix(lines.Bytes(), []byte(".")), []byte("/"))
		if !isBelow(line, dirs) {
			continue
		}
		if kept += len(line); kept > maxContentsKept {
			return nil, fmt.Errorf("it has over the limit of %d bytes about %s", maxContentsKept, strings.Join(dirs, " and "))
		}
		if c, ok := contentOf(string(line)); ok {
			found = append(found, c)
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fmt.Errorf("a line has over the limit of %d bytes", maxContentsLine)
	} else if err != nil {
		return nil, err
	}
	return found, nil
}

func isBelow(line []byte, dirs []string) bool {
	for _, dir := range dirs {
		if len(line) > len(dir) && line[len(dir)] == '/' && string(line[:len(dir)]) == dir {
			return true
		}
	}
	return false
}

func contentOf(line string) (Content, bool) {
	const space = " \t\r"
	line = strings.TrimRight(line, space)
	at := strings.LastIndexAny(line, space)
	if at < 0 {
		return Content{}, false
	}
	c := Content{Path: strings.TrimRight(line[:at], space)}
	for location := range strings.SplitSeq(line[at+1:], ",") {
		name := path.Base(location)
		if !isWord(name, "+-.") {
			return Content{}, false
		}
		c.Packages = append(c.Packages, name)
	}
	return c, fs.ValidPath(c.Path)
}
