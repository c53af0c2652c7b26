package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

// Debs returns the files of real Debian packages, *.deb in the directory that
// OVERMOUNT_TEST_DEBS names. "scripts/firmware-debs" makes one.
func Debs(tb testing.TB) []string {
	tb.Helper()
	dir := os.Getenv("OVERMOUNT_TEST_DEBS")
	if dir == "" {
		Need(tb, "OVERMOUNT_TEST_DEBS names no directory with Debian packages; scripts/firmware-debs makes one")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("OVERMOUNT_TEST_DEBS: there are no packages *.deb in %s", dir)
	}
	return files
}
