package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

// A served tree is packed, and served by two web servers.
type served struct {
	work, meta string
	data       []byte // of the file f
	a, b       *storetest.HTTPServer
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
	s.a = storetest.NewHTTPServer(t, store.Sharded, store.NewDir(objects), nil)
	s.b = storetest.NewHTTPServer(t, store.Sharded, store.NewDir(objects), nil)
	mustRun(t, "overmount", "config", "-m", s.meta, "store", "delete", "-a")
	mustRun(t, "overmount", "config", "-m", s.meta, "store", "add", "-s", s.a.URL, "-s", s.b.URL)
	return s
}

// mount mounts the tree and returns the path of its file.
func (s *served) mount(t *testing.T, args ...string) string {
	t.Helper()
	dir := filepath.Join(s.work, "target")
	mountAt(t, dir, append([]string{"-m", s.meta, "--timeout", "5s"}, args...)...)
	return filepath.Join(dir, "f")
}

var faults = map[string]storetest.HTTPFault{
	"wrong bytes": storetest.SpoiledBody(), "a short body": storetest.TruncatedBody(), "a cut connection": storetest.ShortBody(),
	"a web page": storetest.HTMLPage(), "404": storetest.Status(404), "403": storetest.Status(403), "500": storetest.Status(500),
	"nothing": storetest.Body("application/octet-stream", ""),
}

func TestOneStoreFails(t *testing.T) {
	testenv.FUSE(t)
	for what, fault := range faults {
		t.Run(what, func(t *testing.T) {
			s := serveTree(t)
			s.a.Always(fault)
			f := s.mount(t, "-c", filepath.Join(s.work, "cache"))
			if got := mustRun(t, "cat", f); got != string(s.data) {
				t.Errorf("with one store that answers %s, %d bytes are read which differ from the file's %d", what, len(got), len(s.data))
			}
			if len(s.a.Requests()) == 0 {
				t.Error("the store that fails was not asked")
			}
		})
	}
}

// When no store has a block, the reader gets EIO, and right data once there is
// one again.
func TestAllStoresFail(t *testing.T) {
	testenv.FUSE(t)
	for what, fault := range faults {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := serveTree(t)
			s.a.Always(fault)
			s.b.Always(fault)
			f := s.mount(t, "-c", filepath.Join(s.work, "cache"), "--timeout", "1s")
			r := run(t, "cat", f)
			if r.code == 0 || r.stdout != "" || !strings.Contains(r.stderr, "Input/output error") {
				t.Errorf("with stores that answer %s, cat prints %d bytes and %q, exit code %d; want none, Input/output error, 1",
					what, len(r.stdout), r.stderr, r.code)
			}
			s.b.Always(nil)
			if got := mustRun(t, "cat", f); got != string(s.data) {
				t.Errorf("after a store works again, %d bytes are read which differ from the file's %d", len(got), len(s.data))
			}
		})
	}
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
				s.a.Next(nil, nil) // with one for finding the layout
			}
			s.a.Always(storetest.HangInBody(gate))
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
