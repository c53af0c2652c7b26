package manifest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ncruces/go-sqlite3"
)

// Limits of what Open accepts.
const (
	// MaxNodes is the largest number of nodes.
	MaxNodes = 1 << 28
	// MaxNames is the largest sum of the lengths of all names and symlink
	// targets, in bytes.
	MaxNames = 1<<32 - 1
	// MaxDepth is the largest number of directories above a node: a path of
	// more could not be spelled within Linux's PATH_MAX.
	MaxDepth = 2048
	// maxFileSize is the size at which a regular file is called impossible.
	maxFileSize = 1 << 50
)

// ErrLegacy says that a file is a flist of the time before rfs, which nothing
// here reads.
var ErrLegacy = errors.New("this is a legacy .flist (a gzip archive in the 0-fs format), which is not supported: pack the tree again, or mount it with g8ufs")

// Open reads and checks the manifest in a file. It never writes: the file may
// be on read-only media, and may be replaced afterwards.
//
// Errors: that of the system if the file cannot be read, ErrLegacy, *InvalidError
// for what is not a sound manifest, ctx's error.
func Open(ctx context.Context, path string) (*Manifest, error) {
	m, err := open(ctx, path)
	if pe, ok := errors.AsType[*fs.PathError](err); ok && pe.Path == path {
		err = pe.Err // the path is said once
	}
	if err != nil {
		return nil, fmt.Errorf("open manifest %s: %w", path, err)
	}
	return m, nil
}

func open(ctx context.Context, path string) (*Manifest, error) {
	hot := hasHotJournal(path)
	if err := sniff(path, hot); err != nil {
		return nil, err
	}
	if hot {
		return openRecovered(ctx, path)
	}
	// immutable: take no locks and look for no journal, as read-only media
	// need it.
	db, err := openDB(ctx, path, sqlite3.OPEN_READONLY, "immutable=1")
	if err != nil {
		return nil, unreadable(ctx, err)
	}
	defer db.Close()
	m, err := load(db)
	if err != nil {
		return nil, unreadable(ctx, err)
	}
	return m, nil
}

// unreadable tells what an error of SQLite means for a manifest.
func unreadable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := errors.AsType[*InvalidError](err); ok {
		return err
	}
	return invalid("", 0, "not readable as a flist: %v", err)
}

// openRecovered opens a manifest beside which a killed writer left a journal. A
// copy is rolled back to the last whole transaction; the files stay as they are.
func openRecovered(ctx context.Context, path string) (*Manifest, error) {
	dir, err := os.MkdirTemp("", "overmount-recover-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "manifest.fl")
	for _, suffix := range []string{"", "-journal"} {
		if err := copyFile(copied+suffix, path+suffix); err != nil {
			return nil, err
		}
	}
	if namesAnotherJournal(copied + "-journal") {
		return nil, invalid("", 0, "the file %s-journal beside it belongs to a change of several databases: open them with sqlite3 first", filepath.Base(path))
	}
	db, err := openDB(ctx, copied, sqlite3.OPEN_READWRITE, "")
	if err != nil {
		return nil, unreadable(ctx, err)
	}
	defer db.Close()
	m, err := load(db)
	if err != nil {
		return nil, fmt.Errorf("%w; the file %s-journal beside it says that its writer was killed: pack the tree again", unreadable(ctx, err), filepath.Base(path))
	}
	return m, nil
}

// namesAnotherJournal reports whether a journal ends with the name of a
// super-journal. SQLite would delete the file of that name after it rolled the
// last journal back, whatever file that is.
func namesAnotherJournal(journal string) bool {
	f, err := os.Open(journal)
	if err != nil {
		return false
	}
	defer f.Close()
	tail := make([]byte, len(journalMagic))
	if _, err := f.Seek(-int64(len(tail)), io.SeekEnd); err != nil {
		return false
	}
	_, err = io.ReadFull(f, tail)
	return err == nil && string(tail) == journalMagic
}

func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// The parts of SQLite's file header that are looked at here:
// https://www.sqlite.org/fileformat2.html#the_database_header
const (
	sqliteMagic    = "SQLite format 3\x00"
	journalMagic   = "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
	headerSize     = 100
	offPageSize    = 16 // 2 bytes, 1 means 65536
	offWriteFormat = 18 // 1: rollback journal, 2: write-ahead log
	offReadFormat  = 19 // as above
	offChanges     = 24 // 4 bytes
	offPages       = 28 // 4 bytes, valid if offChanges equals offValidFor
	offValidFor    = 92 // 4 bytes
)

// sniff tells from a file's first bytes and its length whether it can be a
// manifest, and if not, what it is. With a hot journal beside it, its length
// means nothing.
func sniff(path string, hot bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return invalid("", 0, "not a regular file")
	}
	head := make([]byte, headerSize)
	n, err := io.ReadFull(f, head)
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return ErrLegacy
	case len(head) == 0 && errors.Is(err, io.EOF):
		return invalid("", 0, "the file is empty")
	case !bytes.HasPrefix(head, []byte(sqliteMagic)):
		return invalid("", 0, "not a flist: a flist is a SQLite database, and this file does not begin like one")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("", 0, "truncated: the file has %d bytes, less than a SQLite header", n)
	case err != nil:
		return err
	}
	if hot {
		return nil
	}
	return sniffHeader(path, head, info.Size())
}

func sniffHeader(path string, head []byte, size int64) error {
	be := binary.BigEndian
	pageSize := int64(be.Uint16(head[offPageSize:]))
	if pageSize == 1 {
		pageSize = 65536
	}
	want := pageSize * int64(be.Uint32(head[offPages:]))
	if be.Uint32(head[offChanges:]) == be.Uint32(head[offValidFor:]) && size < want {
		return invalid("", 0, "truncated: the file has %d bytes, its header says %d", size, want)
	}
	if wal, err := os.Stat(path + "-wal"); err == nil && wal.Size() > 0 && head[offReadFormat] == 2 {
		return invalid("", 0, `part of it is in the write-ahead log beside it: close the program that has it open, then run "PRAGMA journal_mode=DELETE" on it with sqlite3`)
	}
	return nil
}

// hasHotJournal reports whether a rollback journal beside the file waits to be
// applied: https://www.sqlite.org/fileformat2.html#the_rollback_journal
func hasHotJournal(path string) bool {
	f, err := os.Open(path + "-journal")
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, len(journalMagic))
	_, err = io.ReadFull(f, head)
	return err == nil && string(head) == journalMagic
}
