// Package kmod knows the facts of Linux kernel modules: what a module file says
// of itself, the index files that modprobe and udev read, how a device's alias
// finds its drivers, and in which order modprobe would load them.
//
// It follows libkmod, the library of modprobe and depmod, wherever that decides
// (https://git.kernel.org/pub/scm/utils/kernel/kmod/kmod.git), and is tested
// against its programs. It opens no file by itself: it reads what it is given as
// an [io.ReaderAt], bytes, or an [fs.FS] of a directory lib/modules/KVER.
//
// [ReadModule] reads a module. [OpenIndex] and [IndexBuilder] read and write the
// binary indexes (modules.*.bin), and there are parsers and writers of the text
// files beside them. [Match] is fnmatch(3). [ReadConfig] reads modprobe.d, and a
// [Resolver] gives the actions that modprobe would take for a name or alias.
//
// Making the indexes of a whole tree is the work of package depmod.
package kmod

import (
	"encoding/binary"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// A Layout is how a binary index arranges its nodes, and which index files there
// are. All readers read all layouts.
type Layout int

const (
	// Kmod34 is that of kmod 34 and later: a node before its children.
	Kmod34 Layout = iota
	// Kmod30 is that of kmod 27 to 32: a node after its children, and no
	// modules.weakdep.
	Kmod30
)

// ParseLayout reads "kmod34" or "kmod30"; "" is Kmod34.
func ParseLayout(s string) (Layout, error) {
	switch s {
	case "", "kmod34":
		return Kmod34, nil
	case "kmod30":
		return Kmod30, nil
	}
	return 0, fmt.Errorf("unknown layout %q of index files: want kmod34 or kmod30", s)
}

func (l Layout) String() string {
	if l == Kmod30 {
		return "kmod30"
	}
	return "kmod34"
}

// IsVersion reports whether a name is that of a kernel version, as depmod has it:
// it begins with digits, a dot and digits.
func IsVersion(name string) bool { return version.MatchString(name) }

var version = regexp.MustCompile(`^[0-9]+\.[0-9]+`)

// suffixes are those of files that are modules.
var suffixes = [...]string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"}

// Suffix returns the suffix that makes a file a module: .ko, .ko.gz, .ko.xz or
// .ko.zst; "" if the file is none. Like kmod, it believes the name; what the
// compression really is, ReadModule sees from the content.
func Suffix(name string) string {
	for _, s := range suffixes {
		if strings.HasSuffix(name, s) {
			return s
		}
	}
	return ""
}

// Name returns the name of the module in a file: the base of the path up to the
// first dot, with every - turned into _.
func Name(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(base, "-", "_")
}

// Normalize returns an alias, or the name of a module, as the binary indexes
// have it: every - outside of brackets turned into _. It reports false for one
// with a bracket that does not match, which the indexes do not hold.
func Normalize(alias string) (string, bool) {
	b := []byte(alias)
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '-':
			b[i] = '_'
		case ']':
			return "", false
		case '[':
			end := strings.IndexByte(alias[i:], ']')
			if end < 0 {
				return "", false
			}
			i += end
		}
	}
	return string(b), true
}

// LayoutOf returns the layout that a binary index is in. An empty index, which
// looks alike in both, is in Kmod34.
func LayoutOf(index []byte) Layout {
	const rootAt, offset, behindHeader = 8, 1<<28 - 1, 12
	if len(index) >= behindHeader && binary.BigEndian.Uint32(index[rootAt:])&offset != behindHeader {
		return Kmod30
	}
	return Kmod34
}
