package cli

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store"
	"overmount/store/storetest"
)

// A mount test that waits for a store ends at once when it is interrupted, and
// leaves neither a mount nor a program nor a file.
func TestInterruptedVerifyMount(t *testing.T) {
	testenv.FUSE(t)
	work := t.TempDir()
	src, objects, meta, tmp := filepath.Join(work, "src"), filepath.Join(work, "objects"), filepath.Join(work, "x.fl"), filepath.Join(work, "tmp")
	for _, dir := range []string{src, tmp} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(src, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "overmount", "pack", "-m", meta, "-s", objects, src)
	server := storetest.NewHTTPServer(t, store.Sharded, store.NewDir(objects), nil)
	mustRun(t, "overmount", "flist", "edit-store", "-m", meta, "--set", server.URL)

	// The first request is that of the comparison, which is made before the mount.
	gate := storetest.NewGate()
	defer gate.Open()
	hang := storetest.HangInBody(gate)
	server.Always(func(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
		mounts, _ := filepath.Glob(filepath.Join(tmp, "overmount-verify-*/mount")) // fails only for a bad pattern
		switch {
		case object == nil:
			http.NotFound(w, r)
		case len(mounts) == 1 && isMounted(mounts[0]):
			hang(w, r, id, object)
		default:
			storetest.ServeObject(w, r, id, object)
		}
	})
	cmd := exec.CommandContext(t.Context(), "overmount", "verify", "--objects", "none", "--mount", "--timeout", "1h", meta)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-gate.Arrived()
	mounts, err := filepath.Glob(filepath.Join(tmp, "overmount-verify-*/mount"))
	if err != nil || len(mounts) != 1 || !isMounted(mounts[0]) {
		t.Fatalf("while verify reads, there is no mount below TMPDIR: %v, %v", mounts, err)
	}
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 130 || stderr.String() != "overmount: interrupted\n" {
		t.Errorf("an interrupted verify ends with %d and says %q, want 130 and that it was interrupted", got, &stderr)
	}
	if isMounted(mounts[0]) {
		t.Errorf("after verify, %s is still mounted", mounts[0])
	}
	if pids := daemons(mounts[0]); len(pids) > 0 {
		t.Errorf("after verify, processes %v still serve the mount", pids)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("after verify, TMPDIR holds %v, %v, want nothing", left, err)
	}
}
