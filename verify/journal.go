package verify

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"sync"

	"golang.org/x/crypto/blake2b"

	"overmount/block"
	"overmount/manifest"
)

// A Journal notes in a file which objects were found to be right at which store,
// so that a check of many that was interrupted does not begin again. Its methods
// Known and Done are those that [ObjectsOptions] want. Concurrent use is safe, by
// one process; of several, each may miss what the others note at the same time.
//
// The file is text, and is only appended to:
//
//	overmount verify journal 1 BINDING
//	STORE ID
//	…
//
// BINDING is a digest, in 64 hex digits, of the objects that the manifest names
// and of whether they were fetched, or of a fixed text where the journal is about
// stores ([OpenStoreJournal]); STORE is 16 hex digits of a digest of the
// store's name; ID is the object's. Whatever follows the first line that is not
// whole, as a crash may leave, is dropped. After a power cut the last lines may be
// missing, so that their objects are asked for again.
type Journal struct {
	header string // the first line

	mu    sync.Mutex
	f     *os.File
	known map[note]bool
}

type note struct {
	store [8]byte
	id    block.ID
}

const journalMark = "overmount verify journal 1 "

// OpenJournal opens or makes the journal in a file. One that is about other
// objects, or another kind of check, is begun anew. A file that is no journal is
// an error, and left as it is.
func OpenJournal(path string, m *manifest.Manifest, existenceOnly bool) (*Journal, error) {
	return newJournal(path, binding(m, existenceOnly))
}

// OpenStoreJournal is OpenJournal for a journal of what stores have, whatever
// manifest names it: an object with a right ID is the same for all.
func OpenStoreJournal(path string) (*Journal, error) {
	return newJournal(path, digest("stores\n"))
}

func newJournal(path, binding string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	j := &Journal{f: f, known: map[note]bool{}, header: journalMark + binding + "\n"}
	if err := j.load(j.header); err != nil {
		f.Close()
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	return j, nil
}

// binding is the digest of what the journal is about.
func binding(m *manifest.Manifest, existenceOnly bool) string {
	h, err := blake2b.New256(nil)
	if err != nil {
		panic(err) // only for a key that is too long
	}
	fmt.Fprintf(h, "%v %v\n", m.Codec(), existenceOnly)
	for ino := manifest.Root; m.Has(ino); ino++ {
		blocks := m.Blocks(ino)
		if len(blocks) == 0 {
			continue
		}
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(m.Attr(ino).Size)))
		for _, ref := range blocks {
			h.Write(ref.ID[:])
			h.Write(ref.Key[:])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func digest(text string) string {
	sum := blake2b.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// load reads what the file has, and brings it to the end of a whole line.
func (j *Journal) load(header string) error {
	data, err := io.ReadAll(j.f)
	if err != nil {
		return err
	}
	text := string(data)
	rest, ours := strings.CutPrefix(text, header)
	if !ours {
		if !strings.HasPrefix(text, journalMark) && !strings.HasPrefix(journalMark, text) {
			return errors.New("the file is something else than a journal of verify")
		}
		if err := j.f.Truncate(0); err != nil {
			return err
		}
		_, err := j.f.WriteString(header)
		return err
	}
	whole := len(header)
	for line := range strings.Lines(rest) {
		n, ok := parseNote(line)
		if !ok {
			break
		}
		j.known[n] = true
		whole += len(line)
	}
	if whole == len(data) {
		return nil
	}
	return j.f.Truncate(int64(whole))
}

func noteOf(storeName string, id block.ID) note {
	sum := blake2b.Sum256([]byte(storeName))
	return note{[8]byte(sum[:8]), id}
}

func (n note) line() string { return hex.EncodeToString(n.store[:]) + " " + n.id.String() + "\n" }

func parseNote(line string) (note, bool) {
	var n note
	name, rest, ok := strings.Cut(line, " ")
	if !ok || len(name) != hex.EncodedLen(len(n.store)) {
		return n, false
	}
	if _, err := hex.Decode(n.store[:], []byte(name)); err != nil {
		return n, false
	}
	var err error
	n.id, err = block.ParseID(strings.TrimSuffix(rest, "\n"))
	return n, err == nil && n.line() == line
}

// Len returns how many notes there are.
func (j *Journal) Len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.known)
}

// Known reports whether the object has been found to be right at the store.
func (j *Journal) Known(storeName string, id block.ID) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.known[noteOf(storeName, id)]
}

// Done notes an object.
func (j *Journal) Done(storeName string, id block.ID) error {
	n := noteOf(storeName, id)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.known[n] {
		return nil
	}
	if _, err := j.f.WriteString(n.line()); err != nil {
		return err
	}
	j.known[n] = true
	return nil
}

// Forget drops the notes about a store. Notes that other processes have made of
// any store since the journal was opened are lost, too.
func (j *Journal) Forget(storeName string) error {
	of := noteOf(storeName, block.ID{}).store
	j.mu.Lock()
	defer j.mu.Unlock()
	before := len(j.known)
	maps.DeleteFunc(j.known, func(n note, _ bool) bool { return n.store == of })
	if len(j.known) == before {
		return nil
	}
	if err := j.f.Truncate(0); err != nil {
		return err
	}
	text := []byte(j.header)
	for n := range j.known {
		text = append(text, n.line()...)
	}
	_, err := j.f.Write(text)
	return err
}

// Close closes the file, which stays for another time.
func (j *Journal) Close() error { return j.f.Close() }

// Remove closes and removes the file, when the check is over.
func (j *Journal) Remove() error {
	return errors.Join(j.f.Close(), os.Remove(j.f.Name()))
}
