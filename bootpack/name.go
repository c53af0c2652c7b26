package bootpack

import (
	"encoding/hex"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/crypto/blake2b"
)

// AnyClass is the class of a pack for whatever hardware has none of its own.
const AnyClass = "any"

// Class returns a name for hardware of which these are the modaliases: 16 hex
// digits, from the hash of the distinct ones, sorted. Without any it is AnyClass.
func Class(modaliases []string) string {
	sorted := slices.Compact(slices.Sorted(slices.Values(modaliases)))
	if len(sorted) == 0 {
		return AnyClass
	}
	sum := blake2b.Sum256([]byte(strings.Join(sorted, "\n")))
	return hex.EncodeToString(sum[:8])
}

// Name returns what a pack is published as, in the directory of its manifest, whose
// file name and kernel version are given; without a version, "any" stands there.
func Name(manifest, kver, class string) string {
	if kver == "" {
		kver = "any"
	}
	return manifest + "." + strings.ReplaceAll(kver, "/", "_") + "." + class + ".pack"
}

// maxModalias is how much a file of sysfs holds at most: a page, in bytes.
const maxModalias = 4096

// Modaliases returns the modaliases of all devices in a sysfs. What cannot be read
// is left out: devices come and go.
func Modaliases(sysfs fs.FS) []string {
	var all []string
	fs.WalkDir(sysfs, "devices", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && path.Base(name) == "modalias" {
			if line := firstLine(sysfs, name); line != "" {
				all = append(all, line)
			}
		}
		return nil
	})
	return all
}

func firstLine(fsys fs.FS, name string) string {
	f, err := fsys.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxModalias))
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}
