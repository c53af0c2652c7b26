package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

// A served tree is packed, and served by a web server.
type served struct {
	work, meta string
	data       []byte // of the file f
	web        *storetest.HTTPServer
}

func serveTree(t *testing.T) *served {
	t.Helper()
	s := &served{work: t.TempDir(), data: treetest.Random(1, 2*block.Size+17)}
	s.meta = filepath.Join(s.work, "x.fl")
	src, objects := filepath.Join(s.work, "src"), filepath.Join(s.work, "objects")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "f"), s.data, 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "overmount", "pack", "-m", s.meta, "-s", "dir://"+objects, src)
	s.web = storetest.NewHTTPServer(t, store.Sharded, store.NewDir(objects), nil)
	mustRun(t, "overmount", "config", "-m", s.meta, "store", "delete", "-a")
	mustRun(t, "overmount", "config", "-m", s.meta, "store", "add", "-s", s.web.URL)
	return s
}

// mount mounts the tree and returns the path of its file.
func (s *served) mount(t *testing.T, args ...string) string {
	t.Helper()
	dir := filepath.Join(s.work, "target")
	mountAt(t, dir, append([]string{"-m", s.meta, "--timeout", "5s"}, args...)...)
	return filepath.Join(dir, "f")
}

// A daemon that is killed while an object is on its way leaves nothing in the
// cache that its successor would serve.
func TestKillDuringFill(t *testing.T) {
	testenv.FUSE(t)
	for _, where := range []string{"in the body", "after one block"} {
		t.Run(where, func(t *testing.T) {
			s := serveTree(t)
			cache := filepath.Join(s.work, "cache")
			gate := storetest.NewGate()
			if where == "after one block" {
				s.web.Next(nil, nil) // with one for finding the layout
			}
			s.web.Always(storetest.HangInBody(gate))
			f := s.mount(t, "-c", cache)
			dir := filepath.Dir(f)

			reader := exec.CommandContext(t.Context(), "cat", f)
			if err := reader.Start(); err != nil {
				t.Fatal(err)
			}
			<-gate.Arrived()
			pids := daemons(dir)
			if len(pids) != 1 {
				t.Fatalf("programs that serve %s: %v, want one", dir, pids)
			}
			if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := awaitEnd(pids[0]); err != nil {
				t.Fatal(err)
			}
			if err := reader.Wait(); err == nil {
				t.Error("a reader whose daemon was killed ended well, want an error")
			}
			gate.Open()
			mustRun(t, "overmount", "umount", dir) // of a mount that is dead

			f = s.mount(t, "-c", cache)
			if got := mustRun(t, "cat", f); got != string(s.data) {
				t.Errorf("after a killed fill, %d bytes are read which differ from the file's %d", len(got), len(s.data))
			}
		})
	}
}

// SIGINT ends a pack with exit code 130 and no manifest.
func TestInterruptedPack(t *testing.T) {
	work := t.TempDir()
	src, objects, meta := filepath.Join(work, "src"), filepath.Join(work, "objects"), filepath.Join(work, "x.fl")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "a"), []byte("first"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "endless"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(src, "endless"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(meta, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "overmount", "pack", "-m", meta, "-s", "dir://"+objects, src)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitFile(t.Fatalf, objects)
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 130 || stderr.String() != "overmount: interrupted\n" {
		t.Errorf("an interrupted pack ends with %d and says %q, want 130 and that it was interrupted", got, &stderr)
	}
	if got, err := os.ReadFile(meta); err != nil || string(got) != "old" {
		t.Errorf("after an interrupted pack the manifest holds %q, %v; want it as it was", got, err)
	}
}
