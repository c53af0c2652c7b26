package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/store"
	"overmount/store/storetest"
)

// A check of many objects that is interrupted goes on where it was.
func TestInterruptedVerify(t *testing.T) {
	work := t.TempDir()
	src, objects, meta := filepath.Join(work, "src"), filepath.Join(work, "objects"), filepath.Join(work, "x.fl")
	journal := filepath.Join(work, "journal")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(src, fmt.Sprint(i)), []byte(fmt.Sprint("file ", i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "overmount", "pack", "-m", meta, "-s", objects, src)
	server := storetest.NewHTTPServer(t, store.Sharded, store.NewDir(objects), nil)
	mustRun(t, "overmount", "config", "-m", meta, "store", "delete", "-a")
	mustRun(t, "overmount", "config", "-m", meta, "store", "add", "-s", server.URL)

	gate := storetest.NewGate()
	server.Next(make([]storetest.HTTPFault, 12)...)
	server.Always(storetest.HangInBody(gate))
	args := []string{"verify", "--objects", "all", "--parallel", "1", "--journal", journal, meta}
	cmd := exec.CommandContext(t.Context(), "overmount", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-gate.Arrived()
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 130 || stderr.String() != "overmount: interrupted\n" {
		t.Errorf("an interrupted verify ends with %d and says %q, want 130 and that it was interrupted", got, &stderr)
	}

	server.Always(nil)
	gate.Open()
	before := len(server.Requests())
	out := mustRun(t, "overmount", args...)
	if !strings.Contains(out, "20 of 20 objects that were asked for are right") {
		t.Errorf("verify says %q, want that all 20 objects are right", out)
	}
	if asked := len(server.Requests()) - before; asked != 8 {
		t.Errorf("after 12 of 20 objects, verify goes on with %d requests, want 8", asked)
	}
	if _, err := os.Stat(journal); !os.IsNotExist(err) {
		t.Errorf("after the check, Stat of the journal = %v, want that it is gone", err)
	}
}
