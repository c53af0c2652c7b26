package testenv

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Build builds programs of this module, static and named as overmount/cmd/overmount,
// to out: a directory, or a file for one program.
//
// A program that a test runs is no part of the test, so that go test would not see
// that a result is old when the program has changed. It does see which files of the
// module a test looks at; so Build looks at all that programs are made of.
func Build(tb testing.TB, out, ldflags string, programs ...string) {
	tb.Helper()
	if err := lookAtSources(); err != nil {
		tb.Fatalf("look at the sources: %v", err)
	}
	args := append([]string{"build", "-buildvcs=false", "-trimpath", "-ldflags", ldflags, "-o", out}, programs...)
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %v: %v\n%s", programs, err, out)
	}
}

// lookAtSources looks at each file of the module's packages, but for tests.
func lookAtSources() error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			return fs.ErrNotExist
		}
		root = filepath.Dir(root)
	}
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		switch {
		case d.IsDir() && name != root && (base[0] == '.' || base == "bin" || base == "docs" || base == "testdata"):
			return fs.SkipDir
		case d.IsDir() || strings.HasSuffix(base, "_test.go"):
			return nil
		}
		switch filepath.Ext(base) {
		case ".go", ".sh", ".mod", ".sum":
			_, err = os.Stat(name)
		}
		return err
	})
}
