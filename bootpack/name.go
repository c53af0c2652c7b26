package bootpack

import (
	"encoding/hex"
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

// IsClass reports whether a text is what Class can return. It becomes a part of a
// file's name, and under another name no machine would look for a pack.
func IsClass(text string) bool {
	const digits = "0123456789abcdef"
	return text == AnyClass || len(text) == 16 && strings.Trim(text, digits) == ""
}

// Name returns what a pack is published as, in the directory of its manifest, whose
// file name and kernel version are given; without a version, "any" stands there.
func Name(manifest, kver, class string) string {
	if kver == "" {
		kver = "any"
	}
	return manifest + "." + strings.ReplaceAll(kver, "/", "_") + "." + class + ".pack"
}
