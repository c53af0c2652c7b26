package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/block"
)

func TestEdit(t *testing.T) {
	path := small(t)
	tree := dump(mustOpen(t, path))
	for _, step := range []struct {
		name   string
		change func(*Editor) error
		tags   map[string]string
		routes []Route
	}{
		{"set", func(e *Editor) error { return e.SetTag("k", "w") }, map[string]string{"k": "w"}, someRoutes},
		{"add", func(e *Editor) error { return e.SetTag("l", "ü'\"") }, map[string]string{"k": "w", "l": "ü'\""}, someRoutes},
		{"delete", func(e *Editor) error { return deleted(e.DeleteTag("k")) }, map[string]string{"l": "ü'\""}, someRoutes},
		{"delete all", (*Editor).DeleteTags, nil, someRoutes},
		{"add a route", func(e *Editor) error { return e.AddRoute(Route{1, 2, "dir:///b"}) }, nil, append(someRoutes[:2:2], Route{1, 2, "dir:///b"})},
		{"delete a route", func(e *Editor) error { return deleted(e.DeleteRoute("dir:///a")) }, nil, []Route{someRoutes[1], {1, 2, "dir:///b"}}},
		{"delete all routes", (*Editor).DeleteRoutes, nil, nil},
		{"nothing", func(*Editor) error { return nil }, nil, nil},
	} {
		var within []Route
		err := Edit(t.Context(), path, func(e *Editor) (err error) {
			if err = step.change(e); err == nil {
				within, err = e.Routes()
			}
			return err
		})
		if err != nil {
			t.Fatalf("%s: Edit = %v", step.name, err)
		}
		if diff := cmp.Diff(step.routes, within); diff != "" {
			t.Errorf("%s: Routes of the Editor differ (-want +got):\n%s", step.name, diff)
		}
		m := mustOpen(t, path)
		tags := map[string]string{TagCodec: "zstd", TagBlockSize: strconv.Itoa(block.Size)}
		maps.Copy(tags, step.tags)
		if diff := cmp.Diff(tags, m.Tags()); diff != "" {
			t.Errorf("%s: tags differ (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(step.routes, m.Routes()); diff != "" {
			t.Errorf("%s: routes differ (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(tree, dump(m)); diff != "" {
			t.Errorf("%s: the tree differs (-want +got):\n%s", step.name, diff)
		}
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("directory holds %v, want only m.fl", got)
	}
	if got := sqliteShell(t, path, "PRAGMA integrity_check; PRAGMA journal_mode"); got != "ok\ndelete\n" {
		t.Errorf("integrity_check and journal_mode = %q", got)
	}
}

func deleted(found bool, err error) error {
	if err == nil && !found {
		return errors.New("nothing was deleted")
	}
	return err
}

func TestEditCopy(t *testing.T) {
	from := small(t)
	before, want := read(t, from), mustOpen(t, from)
	dir := t.TempDir()
	to := filepath.Join(dir, "copy.fl")
	for _, url := range []string{"https://web.example.com/a", "https://web.example.com/b"} { // the second time it is there
		err := EditCopy(t.Context(), from, to, func(e *Editor) error {
			return errors.Join(e.DeleteRoutes(), e.AddRoute(Route{0, 255, url}))
		})
		if err != nil {
			t.Fatal(err)
		}
		m := mustOpen(t, to)
		if diff := cmp.Diff([]Route{{0, 255, url}}, m.Routes()); diff != "" {
			t.Errorf("routes of the copy differ (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(dump(want), dump(m)); diff != "" {
			t.Errorf("the tree of the copy differs (-want +got):\n%s", diff)
		}
	}
	if !bytes.Equal(read(t, from), before) {
		t.Error("the original changed")
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("directory holds %v, want only the copy", got)
	}

	there := read(t, to)
	wrong := errors.New("changed my mind")
	if err := EditCopy(t.Context(), from, to, func(*Editor) error { return wrong }); !errors.Is(err, wrong) || !bytes.Equal(read(t, to), there) {
		t.Errorf("EditCopy = %v, want what change returned, and the file as it was", err)
	}
	if err := EditCopy(t.Context(), from, filepath.Join(dir, "no", "copy.fl"), func(*Editor) error { return nil }); err == nil {
		t.Error("EditCopy to a directory that does not exist = nil, want an error")
	}
	journal := to + "-journal"
	if err := os.WriteFile(journal, append([]byte(journalMagic), make([]byte, 1000)...), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := EditCopy(t.Context(), from, to, func(*Editor) error { return nil }); err == nil || !strings.Contains(err.Error(), "copy.fl-journal") {
		t.Errorf("EditCopy to a file with a journal = %v, want an error that names it", err)
	}
}

func TestDeleteOfNothing(t *testing.T) {
	err := Edit(t.Context(), small(t), func(e *Editor) error {
		if found, err := e.DeleteTag("none"); found || err != nil {
			t.Errorf("DeleteTag(none) = %v, %v, want false", found, err)
		}
		if found, err := e.DeleteRoute("dir:///"); found || err != nil {
			t.Errorf("DeleteRoute(dir:///) = %v, %v, want false", found, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEditThatFailsLeavesTheFile(t *testing.T) {
	wrong := errors.New("changed my mind")
	for name, change := range map[string]func(*Editor) error{
		"an error":    func(e *Editor) error { return errors.Join(e.DeleteRoutes(), wrong) },
		"wrong codec": func(e *Editor) error { return e.SetTag(TagCodec, "lz9") },
		"too long":    func(e *Editor) error { return e.SetTag("k", strings.Repeat("x", maxRow)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := small(t)
			before := read(t, path)
			err := Edit(t.Context(), path, change)
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("Edit = %v, want an error that names %s", err, path)
			}
			if name == "an error" && !errors.Is(err, wrong) {
				t.Errorf("Edit = %v, want what change returned", err)
			}
			if !bytes.Equal(read(t, path), before) {
				t.Error("the file changed")
			}
			if got := names(t, filepath.Dir(path)); len(got) != 1 {
				t.Errorf("directory holds %v, want only m.fl", got)
			}
		})
	}
}

func TestEditOfWhatIsNoManifest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.fl")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	never := func(*Editor) error { t.Error("change was called"); return nil }
	if err := Edit(t.Context(), path, never); err == nil {
		t.Error("Edit of a text file succeeded")
	}
	if err := Edit(t.Context(), path+"none", never); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Edit of nothing = %v, want fs.ErrNotExist", err)
	}
}

// A trigger in the file must not run with our change.
func TestEditRunsNoTrigger(t *testing.T) {
	path := small(t)
	sql(t, path, `CREATE TRIGGER evil AFTER INSERT ON tag BEGIN INSERT INTO route VALUES (0, 255, 'http://evil/'); END`)
	if err := Edit(t.Context(), path, func(e *Editor) error { return e.SetTag("k", "w") }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(someRoutes, mustOpen(t, path).Routes()); diff != "" {
		t.Errorf("routes differ (-want +got):\n%s", diff)
	}
}

func TestEditOfWALFile(t *testing.T) {
	path := small(t)
	sql(t, path, `PRAGMA journal_mode = WAL; UPDATE tag SET value = 'wal' WHERE key = 'k'`)
	if err := Edit(t.Context(), path, func(e *Editor) error { return e.SetTag("l", "w") }); err != nil {
		t.Fatal(err)
	}
	m := mustOpen(t, path)
	if m.Tag("k") != "wal" || m.Tag("l") != "w" {
		t.Errorf("tags = %v, want k=wal and l=w", m.Tags())
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("directory holds %v, want only m.fl", got)
	}
}

func TestEditKeepsModeAndOwner(t *testing.T) {
	path := small(t)
	if err := os.Chmod(path, 0o620); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, 12, 34); err != nil {
			t.Fatal(err)
		}
	}
	was, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Edit(t.Context(), path, func(e *Editor) error { return e.SetTag("k", "w") }); err != nil {
		t.Fatal(err)
	}
	is, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	a, b := was.Sys().(*syscall.Stat_t), is.Sys().(*syscall.Stat_t)
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid {
		t.Errorf("mode %o, owner %d:%d, want %o, %d:%d", b.Mode, b.Uid, b.Gid, a.Mode, a.Uid, a.Gid)
	}
	if a.Ino == b.Ino {
		t.Error("the file was changed in place")
	}
}

func TestEditThroughSymlink(t *testing.T) {
	path := small(t)
	link := filepath.Join(t.TempDir(), "link.fl")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := Edit(t.Context(), link, func(e *Editor) error { return e.SetTag("k", "w") }); err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(link); err != nil || got != path {
		t.Errorf("Readlink = %q, %v, want %q", got, err, path)
	}
	if got := mustOpen(t, path).Tag("k"); got != "w" {
		t.Errorf("tag = %q, want w", got)
	}
}

// Who has the file open goes on with the old one.
func TestEditLeavesOpenFiles(t *testing.T) {
	path := small(t)
	before := read(t, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Edit(t.Context(), path, (*Editor).DeleteRoutes); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(before))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, before) {
		t.Errorf("the open file changed: %v", err)
	}
}

func TestEditsAtOnceAllSurvive(t *testing.T) {
	path := small(t)
	next, _ := child(t, "edit 10 times", path)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for j := range 5 {
				key := fmt.Sprintf("%d-%d", i, j)
				if err := Edit(t.Context(), path, func(e *Editor) error { return e.SetTag(key, "x") }); err != nil {
					t.Errorf("Edit(%s) = %v", key, err)
				}
			}
		})
	}
	wg.Wait()
	if got := next(); got != "done" {
		t.Fatalf("the child says %q, want done", got)
	}
	m := mustOpen(t, path)
	if got, want := len(m.Tags()), 6*5+3; got != want {
		t.Errorf("%d tags, want %d: %v", got, want, m.Tags())
	}
	if got, want := len(m.Routes()), 10+len(someRoutes); got != want {
		t.Errorf("%d routes, want %d", got, want)
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("directory holds %v, want only m.fl", got)
	}
}

func TestKilledEditLeavesTheOldFile(t *testing.T) {
	path := small(t)
	before := read(t, path)
	next, kill := child(t, "edit and stay", path)
	if got := next(); got != "ready" {
		t.Fatalf("the child says %q, want ready", got)
	}
	kill()
	if !bytes.Equal(read(t, path), before) {
		t.Error("the file changed")
	}
	if diff := cmp.Diff([]string{"temp", "m.fl"}, names(t, filepath.Dir(path))); diff != "" {
		t.Errorf("directory differs (-want +got):\n%s", diff)
	}
	if err := Edit(t.Context(), path, (*Editor).DeleteRoutes); err != nil {
		t.Errorf("Edit after the kill = %v", err)
	}
}

// A child is killed wherever it happens to be, and has told which edit it
// finished last.
func TestKilledEditLeavesOldOrNew(t *testing.T) {
	path := small(t)
	for round := range 10 {
		next, kill := child(t, "edit for ever", path)
		last := 0
		for range 2 + round {
			n, err := strconv.Atoi(next())
			if err != nil {
				t.Fatal(err)
			}
			last = n
		}
		kill()
		for line := next(); line != ""; line = next() { // what it said meanwhile
			n, err := strconv.Atoi(line)
			if err != nil {
				t.Fatal(err)
			}
			last = n
		}
		got, err := strconv.Atoi(mustOpen(t, path).Tag("state"))
		if err != nil || got != last && got != last+1 {
			t.Errorf("after the kill the state is %d, %v, want %d or one more", got, err, last)
		}
	}
}
