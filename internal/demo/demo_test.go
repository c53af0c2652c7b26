package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestModulePaths(t *testing.T) {
	name := filepath.Join(t.TempDir(), "modules.dep")
	write(t, name, "kernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz\nkernel/crypto/twofish-x86_64.ko:\n")
	got, err := modulePaths(name)
	want := map[string]string{"xfs": "kernel/fs/xfs/xfs.ko.xz", "twofish_x86_64": "kernel/crypto/twofish-x86_64.ko"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("modulePaths: %v, (-want +got)\n%s", err, diff)
	}
	write(t, name, "no module here\n")
	if got, err := modulePaths(name); err == nil {
		t.Errorf("modulePaths of a line without a colon = %v, want an error", got)
	}
}

func TestFileServerCounts(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "object"), strings.Repeat("x", 100_000))
	s, err := serve(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, path := range []string{"/object", "/object", "/missing"} {
		get(t, s.url+path)
	}
	got := s.traffic()
	if got.objects != 2 || got.misses != 1 || got.bytes < 200_000 || got.bytes > 201_000 {
		t.Errorf("traffic after two gets of 100000 bytes and one of nothing = %+v", got)
	}
}

// A process that a command has left behind, with a session and streams of its
// own, is found by the mark in its environment.
func TestShellFindsWhatIsLeft(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH")) // newShell changes it
	s, err := newShell(io.Discard, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(s.dir)
	// It waits for a writer who never comes, and before that it says that it is there:
	// while a program is replaced by another, its environment is not to be seen.
	const left = `mkfifo here never && { setsid sh -c 'echo started >here; read x <never' >/dev/null 2>&1 </dev/null & } && cat here`
	printed, err := s.run(t.Context(), 1, "sh", "-c", left)
	if printed != "started\n" || err != nil {
		t.Fatalf("run = %q, %v, want %q", printed, err, "started\n")
	}
	pids := s.processes()
	if len(pids) != 1 {
		t.Fatalf("processes = %v, want one", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.endProcesses(); err != nil {
		t.Error(err)
	}
}

func TestShellEndsInterruptedCommand(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH"))
	s, err := newShell(io.Discard, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(s.dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.run(ctx, 1, "sleep", "600"); err == nil {
		t.Error("run of an interrupted command succeeded")
	}
	if left := s.processes(); len(left) != 0 {
		t.Errorf("processes = %v, want none", left)
	}
}

func get(t *testing.T, url string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
