package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range entries {
		s = append(s, e.Name())
	}
	return s
}

func TestCommitReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, want := range []string{"old", "new"} {
		if err := Write(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("ReadFile = %q, %v, want %q", got, err, want)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("directory holds %v, want only f", got)
	}
}

func TestBeforeCommitOnlyATemporaryFileIsThere(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "f"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	got := names(t, dir)
	if len(got) != 1 || !IsTemp(got[0]) {
		t.Errorf("before Commit the directory holds %v, want one temporary file", got)
	}
	f.Abort()
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("after Abort the directory holds %v, want nothing", got)
	}
	f.Abort()
	if err := f.CommitUnsynced(); err == nil {
		t.Error("CommitUnsynced after Abort succeeded")
	}
}

func TestFailedRenameLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(path, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("x"), 0o644); err == nil {
		t.Fatal("Write over a directory succeeded")
	}
	if got := names(t, dir); len(got) != 1 || got[0] != "taken" {
		t.Errorf("directory holds %v, want only the directory that was there", got)
	}
}

// The error is about the name that the caller knows.
func TestErrorNamesTheFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "none", "file")
	_, err := Create(name, 0o644)
	if pe, ok := errors.AsType[*fs.PathError](err); !ok || pe.Path != name || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Create in no directory: %v, want an error that names %s", err, name)
	}
}

func TestSyncFS(t *testing.T) {
	if err := SyncFS(t.TempDir()); err != nil {
		t.Error(err)
	}
	if err := SyncFS(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("SyncFS of a missing directory succeeded")
	}
}
