package manifest

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ncruces/go-sqlite3"
)

// killedWriter gives a manifest whose writer was killed within a transaction,
// and what the manifest was before.
func killedWriter(t *testing.T) (path string, before *Manifest) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "m.fl")
	writeFlat(t, path, 3000)
	before = mustOpen(t, path)
	old := read(t, path)
	next, kill := child(t, "begin and stay", path)
	if got := next(); got != "ready" {
		t.Fatalf("child says %q, want ready", got)
	}
	kill()
	if bytes.Equal(read(t, path), old) || !hasHotJournal(path) {
		t.Fatal("the killed writer left no trace in the file, or no journal")
	}
	return path, before
}

func TestOpenBesideHotJournal(t *testing.T) {
	path, before := killedWriter(t)
	file, journal := read(t, path), read(t, path+"-journal")
	m := mustOpen(t, path)
	if diff := cmp.Diff(dump(before), dump(m)); diff != "" {
		t.Errorf("it does not read as of the last commit (-want +got):\n%s", diff)
	}
	if !bytes.Equal(read(t, path), file) || !bytes.Equal(read(t, path+"-journal"), journal) {
		t.Error("Open changed the file or its journal")
	}
	if got, want := names(t, filepath.Dir(path)), []string{"m.fl", "m.fl-journal"}; !cmp.Equal(got, want) {
		t.Errorf("directory holds %v, want %v", got, want)
	}
	called := false
	err := Edit(t.Context(), path, func(*Editor) error { called = true; return nil })
	if err == nil || called || !strings.Contains(err.Error(), "m.fl-journal") {
		t.Errorf("Edit = %v, called %v, want it to refuse and to name the journal", err, called)
	}
	if !bytes.Equal(read(t, path), file) {
		t.Error("Edit changed the file")
	}
}

// The journal of a first transaction holds no page: rolled back, the file is
// empty.
func TestOpenBesideJournalOfNothing(t *testing.T) {
	path, _ := killedWriter(t)
	journal := read(t, path+"-journal")
	binary.BigEndian.PutUint32(journal[8:], 0)  // records
	binary.BigEndian.PutUint32(journal[16:], 0) // pages before the transaction
	if err := os.WriteFile(path+"-journal", journal[:512], 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), path)
	if err == nil || !strings.Contains(err.Error(), "its writer was killed") {
		t.Errorf("Open = %v, want it to say that the writer was killed", err)
	}
}

// SQLite deletes the file that the end of a journal names: this must not be
// left to whoever made the journal.
func TestJournalThatNamesAVictim(t *testing.T) {
	path, _ := killedWriter(t)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := uint32(0)
	for _, c := range []byte(victim) {
		sum += uint32(int8(c))
	}
	be := binary.BigEndian
	// https://www.sqlite.org/fileformat2.html#the_rollback_journal
	end := be.AppendUint32(nil, 1<<30/4096+1)
	end = append(end, victim...)
	end = be.AppendUint32(end, uint32(len(victim)))
	end = be.AppendUint32(end, sum)
	end = append(end, journalMagic...)
	if err := os.WriteFile(path+"-journal", append(read(t, path+"-journal"), end...), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), path)
	if err == nil || !strings.Contains(err.Error(), "several databases") {
		t.Errorf("Open = %v, want it to refuse a journal that names another", err)
	}
	if _, err := os.Stat(victim); err != nil {
		t.Fatal("Open deleted a file that the journal named:", err)
	}
}

func TestJournalsThatAreNotHot(t *testing.T) {
	for name, journal := range map[string][]byte{"empty": nil, "zeroed": make([]byte, 4096), "short": []byte(journalMagic[:5])} {
		path := small(t)
		if err := os.WriteFile(path+"-journal", journal, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), path); err != nil {
			t.Errorf("Open beside a journal that is %s = %v", name, err)
		}
	}
}

func TestWriteAheadLog(t *testing.T) {
	path := small(t)
	db, err := sqlite3.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Exec(`PRAGMA journal_mode = WAL; UPDATE route SET url = 'dir:///wal'`); err != nil {
		t.Fatal(err)
	}
	broken{text: "write-ahead log beside it"}.check(t, path)
	if err := db.Exec(`PRAGMA journal_mode = DELETE`); err != nil {
		t.Fatal(err)
	}
	if got := mustOpen(t, path).Routes()[0].URL; got != "dir:///wal" {
		t.Errorf("route = %q, want dir:///wal", got)
	}
}
