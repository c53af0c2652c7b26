package pack

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"overmount/manifest"
)

// Excluding returns the tree src without what any of the patterns matches, and
// all below that; see Options.Exclude. It is for walking: what is left out is not
// listed, but could be opened.
func Excluding(src fs.FS, patterns []string) (fs.FS, error) {
	for _, pattern := range patterns {
		if !doublestar.ValidatePattern(pattern) {
			return nil, fmt.Errorf("exclude pattern %q is malformed", pattern)
		}
	}
	if len(patterns) == 0 {
		return src, nil
	}
	return excluding{src, func(name string) bool { return matches(patterns, name) }}, nil
}

// Without returns the tree src without the paths for which drop is true, and all
// below them. As with Excluding, what is left out is not listed, but could be
// opened.
func Without(src fs.FS, drop func(name string) bool) fs.FS { return excluding{src, drop} }

type excluding struct {
	fs.FS
	drop func(name string) bool
}

var (
	_ fs.ReadDirFS  = excluding{}
	_ fs.StatFS     = excluding{}
	_ fs.ReadLinkFS = excluding{}
	_ XattrFS       = excluding{}
	_ Follower      = excluding{}
)

func (e excluding) ReadDir(dir string) ([]fs.DirEntry, error) {
	list, err := fs.ReadDir(e.FS, dir)
	return slices.DeleteFunc(list, func(d fs.DirEntry) bool { return e.drop(path.Join(dir, d.Name())) }), err
}

func matches(patterns []string, name string) bool {
	for _, pattern := range patterns {
		subject := name
		if !strings.Contains(pattern, "/") {
			subject = path.Base(name)
		}
		// A leading slash means the root of the tree, where paths begin anyway.
		if doublestar.MatchUnvalidated(strings.TrimPrefix(pattern, "/"), subject) {
			return true
		}
	}
	return false
}

func (e excluding) Stat(name string) (fs.FileInfo, error)  { return fs.Stat(e.FS, name) }
func (e excluding) Lstat(name string) (fs.FileInfo, error) { return fs.Lstat(e.FS, name) }
func (e excluding) ReadLink(name string) (string, error)   { return fs.ReadLink(e.FS, name) }

func (e excluding) Xattrs(name string) ([]manifest.Xattr, error) {
	if x, ok := e.FS.(XattrFS); ok {
		return x.Xattrs(name)
	}
	return nil, nil
}

func (e excluding) Follow() fs.FS { return excluding{followed(e.FS), e.drop} }
