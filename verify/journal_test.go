package verify

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"overmount/block"
	"overmount/manifest"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

func openJournal(t *testing.T, path string, m *manifest.Manifest, existence bool) *Journal {
	t.Helper()
	j, err := OpenJournal(path, m, existence)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// A check that is interrupted goes on where it was.
func TestResume(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(100)...)
	path := filepath.Join(t.TempDir(), "journal")
	ctx, cancel := context.WithCancel(t.Context())
	src := storetest.NewFaulty(mem)
	src.Always(func(ctx context.Context, _ block.ID, next func() ([]byte, error)) ([]byte, error) {
		if src.Total() > 40 {
			cancel()
			return nil, ctx.Err()
		}
		return next()
	})
	j := openJournal(t, path, m, false)
	_, err := Objects(ctx, m, []Store{at("a", src)}, &ObjectsOptions{Parallel: 1, Known: j.Known, Done: j.Done})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Objects = %v, want context.Canceled", err)
	}
	j.Close()

	j = openJournal(t, path, m, false)
	if j.Len() != 40 {
		t.Errorf("the journal has %d notes, want 40", j.Len())
	}
	rest := storetest.NewFaulty(mem)
	other := storetest.NewFaulty(mem)
	got := objects(t, m, &ObjectsOptions{Known: j.Known, Done: j.Done}, at("a", rest), at("b", other))
	if rest.Total() != 60 || other.Total() != 100 {
		t.Errorf("after the interruption %d and %d objects were asked for, want 60, and 100 at the other store", rest.Total(), other.Total())
	}
	if len(got) != 2 || got[0].Text != "100 of 100 objects that were asked for are right, 40 of them as noted before" {
		t.Errorf("findings %v, want all 100 counted", got)
	}
	if err := j.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Remove, Stat = %v, want that there is no journal", err)
	}
}

// What was wrong is not noted, and asked for again.
func TestJournalNotesOnlyWhatIsRight(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(10)...)
	j := openJournal(t, filepath.Join(t.TempDir(), "journal"), m, false)
	src := storetest.NewFaulty(without(t, m, mem, idOf(t, m, "f001")))
	src.Next(storetest.WrongBytes())
	objects(t, m, &ObjectsOptions{Parallel: 1, Known: j.Known, Done: j.Done}, at("a", src)) // one at a time, or the wrong bytes may be those of what is lost
	if j.Len() != 8 || j.Known("a", idOf(t, m, "f001")) {
		t.Errorf("%d notes, want 8", j.Len())
	}
}

func TestJournalAfterACrash(t *testing.T) {
	m, _ := treetest.Build(t, block.Zstd, filesOf(3)...)
	ids := []block.ID{idOf(t, m, "f000"), idOf(t, m, "f001"), idOf(t, m, "f002")}
	path := filepath.Join(t.TempDir(), "journal")
	j := openJournal(t, path, m, false)
	for _, id := range ids {
		for range 2 { // the second time there is nothing to note
			if err := j.Done("a", id); err != nil {
				t.Fatal(err)
			}
		}
	}
	j.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	header := strings.Index(string(whole), "\n") + 1
	note := (len(whole) - header) / 3
	for cut := range len(whole) + 1 {
		if err := os.WriteFile(path, whole[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		j := openJournal(t, path, m, false)
		want := max(0, cut-header) / note
		if j.Len() != want {
			t.Fatalf("cut after %d of %d bytes, the journal has %d notes, want %d", cut, len(whole), j.Len(), want)
		}
		if err := j.Done("a", ids[2]); err != nil {
			t.Fatal(err)
		}
		j.Close()
		if j = openJournal(t, path, m, false); !j.Known("a", ids[2]) || j.Known("b", ids[2]) || j.Len() < want {
			t.Fatalf("cut after %d bytes, then noted again: Known = %v, %d notes", cut, j.Known("a", ids[2]), j.Len())
		}
		j.Close()
	}

	// Zeros, as some file systems leave them, and all behind them are dropped.
	spoiled := append([]byte(nil), whole...)
	clear(spoiled[header+note : header+note+10])
	if err := os.WriteFile(path, spoiled, 0o644); err != nil {
		t.Fatal(err)
	}
	if j := openJournal(t, path, m, false); j.Len() != 1 || !j.Known("a", ids[0]) {
		t.Errorf("a spoiled journal has %d notes, want the one before", j.Len())
	}
}

func TestJournalIsBound(t *testing.T) {
	m, _ := treetest.Build(t, block.Zstd, filesOf(3)...)
	again, _ := treetest.Build(t, block.Zstd, append(filesOf(3), treetest.File{Path: "empty"})...)
	other, _ := treetest.Build(t, block.Zstd, filesOf(4)...)
	codec, _ := treetest.Build(t, block.Snappy, filesOf(3)...)
	id := idOf(t, m, "f000")
	for name, c := range map[string]struct {
		m         *manifest.Manifest
		existence bool
		want      int
	}{
		"the same":          {m, false, 1},
		"the same objects":  {again, false, 1},
		"other objects":     {other, false, 0},
		"another codec":     {codec, false, 0},
		"another way to it": {m, true, 0},
	} {
		path := filepath.Join(t.TempDir(), "journal")
		j := openJournal(t, path, m, false)
		if err := j.Done("a", id); err != nil {
			t.Fatal(err)
		}
		j.Close()
		for range 2 { // also when it has been begun anew
			if j = openJournal(t, path, c.m, c.existence); j.Len() != c.want {
				t.Errorf("%s: %d notes, want %d", name, j.Len(), c.want)
			}
			j.Close()
		}
	}
}

func TestJournalThatIsNone(t *testing.T) {
	m, _ := treetest.Build(t, block.Zstd, filesOf(1)...)
	path := filepath.Join(t.TempDir(), "precious")
	for _, text := range []string{"precious\n", "overmount verify journal 2 abc\n", "\x00"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenJournal(path, m, false); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("OpenJournal of %q = %v, want an error that names the file", text, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("after OpenJournal the file has %q, %v, want it as it was", got, err)
		}
	}
	if _, err := OpenJournal(filepath.Join(path, "x"), m, false); err == nil {
		t.Error("OpenJournal below a file = nil, want an error")
	}
}

func TestJournalIsConcurrent(t *testing.T) {
	m, _ := treetest.Build(t, block.Zstd, filesOf(200)...)
	path := filepath.Join(t.TempDir(), "journal")
	j := openJournal(t, path, m, false)
	var wg sync.WaitGroup
	for _, ref := range m.AllBlocks() {
		wg.Go(func() {
			if err := j.Done("a", ref.ID); err != nil || !j.Known("a", ref.ID) {
				t.Errorf("Done = %v", err)
			}
		})
	}
	wg.Wait()
	j.Close()
	if j := openJournal(t, path, m, false); j.Len() != 200 {
		t.Errorf("the journal has %d notes, want 200", j.Len())
	}
}

func FuzzParseNote(f *testing.F) {
	f.Add(noteOf("a", block.ID{1}).line())
	f.Add("0011223344556677 ")
	f.Fuzz(func(t *testing.T, line string) {
		if n, ok := parseNote(line); ok && n.line() != line {
			t.Errorf("parseNote(%q) = %v, which is the line %q", line, n, n.line())
		}
	})
}

// A journal of stores is good for any manifest, and forgets one store at a time.
func TestStoreJournal(t *testing.T) {
	m, _ := treetest.Build(t, block.Zstd, filesOf(3)...)
	id, other := idOf(t, m, "f000"), idOf(t, m, "f001")
	path := filepath.Join(t.TempDir(), "journal")
	open := func() *Journal {
		t.Helper()
		j, err := OpenStoreJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { j.Close() })
		return j
	}
	j := open()
	for _, store := range []string{"a", "b"} {
		for _, id := range []block.ID{id, other} {
			if err := j.Done(store, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 { // the second time there is nothing to forget
		if err := j.Forget("a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Done("a", other); err != nil {
		t.Fatal(err)
	}
	j.Close()
	j = open()
	if j.Len() != 3 || j.Known("a", id) || !j.Known("a", other) || !j.Known("b", id) || !j.Known("b", other) {
		t.Errorf("after Forget, %d notes, Known(a, forgotten) = %v, want 3 and false", j.Len(), j.Known("a", id))
	}
	j.Close()
	// One of a manifest is another.
	if j := openJournal(t, path, m, false); j.Len() != 0 {
		t.Errorf("as a journal of a manifest it has %d notes, want none", j.Len())
	}
}
