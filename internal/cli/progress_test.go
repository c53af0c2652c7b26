package cli

import (
	"path/filepath"
	"regexp"
	"testing"

	"overmount/internal/testenv"
)

// On a terminal, long work shows how far it is, how fast it goes and how long it
// will take. Elsewhere it is quiet, which the scripts check.
func TestProgress(t *testing.T) {
	script := testenv.Tool(t, "script") // gives a program a terminal
	src := kernelTree(t)
	dir := t.TempDir()
	out := mustRun(t, script, "-qec",
		"stty cols 80; overmount pack -m "+filepath.Join(dir, "x.fl")+" -s "+filepath.Join(dir, "objects")+" "+src,
		filepath.Join(dir, "typescript"))
	if want := regexp.MustCompile(`packing +[0-9]+% .* [KM]iB/s\) \[[0-9ms]+s:[0-9ms]+s\]`); !want.MatchString(out) {
		t.Errorf("on a terminal pack printed %q, want a match of %v", out, want)
	}
}
