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
	return debsIn(tb, "OVERMOUNT_TEST_DEBS", dir, "*.deb")
}

// Firmware returns the files of the firmware packages of Debian that are the most
// there is to test with: firmware-*.deb in the directory that
// OVERMOUNT_TEST_FIRMWARE names, for which "scripts/firmware-debs --large" makes
// one, or among those of [Debs].
func Firmware(tb testing.TB) []string {
	tb.Helper()
	if dir := os.Getenv("OVERMOUNT_TEST_FIRMWARE"); dir != "" {
		return debsIn(tb, "OVERMOUNT_TEST_FIRMWARE", dir, "firmware-*.deb")
	}
	return debsIn(tb, "OVERMOUNT_TEST_DEBS", filepath.Dir(Debs(tb)[0]), "firmware-*.deb")
}

func debsIn(tb testing.TB, variable, dir, pattern string) []string {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) == 0 {
		tb.Fatalf("%s: there are no packages %s in %s", variable, pattern, dir)
	}
	return files
}
