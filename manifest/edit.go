package manifest

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/ncruces/go-sqlite3"
	"golang.org/x/sys/unix"

	"overmount/internal/atomicfile"
)

// An Editor changes tags and routes. It is valid within the function that Edit
// calls.
type Editor struct {
	db *sqlite3.Conn
}

// Edit changes the tags and routes of the manifest in a file, all or nothing:
// change works on a copy, which takes the file's place when change returns nil.
// Whoever has the file open goes on with the old one. Edits by several
// processes follow each other. If path is a symlink, the file it points to is
// replaced. Owner and mode stay.
func Edit(ctx context.Context, path string, change func(*Editor) error) error {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		err = edit(ctx, real, real, change)
	}
	if err != nil {
		return fmt.Errorf("edit manifest %s: %w", path, err)
	}
	return nil
}

// EditCopy is Edit for a copy: the manifest in the file from stays as it is, and
// the changed one appears at to, in place of what is there.
func EditCopy(ctx context.Context, from, to string, change func(*Editor) error) error {
	if err := edit(ctx, from, to, change); err != nil {
		return fmt.Errorf("edit manifest %s to become %s: %w", from, to, err)
	}
	return nil
}

func edit(ctx context.Context, path, to string, change func(*Editor) error) error {
	if _, err := open(ctx, path); err != nil {
		return err
	}
	old, err := lockFile(path)
	if err != nil {
		return err
	}
	defer old.Close()
	for _, file := range []string{path, to} {
		if hasHotJournal(file) {
			return fmt.Errorf("the file %s-journal beside it says that a writer was killed or is at work; wait for it, or pack the tree again", filepath.Base(file))
		}
	}
	copied, err := copyForEdit(to, old)
	if err != nil {
		return err
	}
	defer copied.Abort()
	if err := editDB(ctx, copied.Name(), change); err != nil {
		return err
	}
	if _, err := open(ctx, copied.Name()); err != nil {
		return err
	}
	return copied.Commit()
}

// lockFile opens a file and locks it against other editors. The lock is on the
// file, not the name, so it asks again if an editor put another one there.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
		mine, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return f, nil
		}
		f.Close()
		if err2 != nil {
			return nil, err2
		}
	}
}

// copyForEdit starts the file that will appear at path, with what old holds.
func copyForEdit(path string, old *os.File) (*atomicfile.File, error) {
	info, err := old.Stat()
	if err != nil {
		return nil, err
	}
	f, err := atomicfile.Create(path, info.Mode().Perm())
	if err != nil {
		return nil, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		// Only root may give files away; for others the editor becomes the owner.
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
	if err := f.Chmod(info.Mode().Perm()); err != nil {
		f.Abort()
		return nil, err
	}
	if _, err := io.Copy(f, old); err != nil {
		f.Abort()
		return nil, err
	}
	// Of a file in WAL mode, whose log was empty, this makes one without.
	if _, err := f.WriteAt([]byte{1, 1}, offWriteFormat); err != nil {
		f.Abort()
		return nil, err
	}
	return f, nil
}

func editDB(ctx context.Context, path string, change func(*Editor) error) error {
	db, err := openDB(ctx, path, sqlite3.OPEN_READWRITE, "nolock=1")
	if err != nil {
		return err
	}
	defer db.Close()
	// Only what Editor says is done, whatever the file would add to it.
	if _, err := db.Config(sqlite3.DBCONFIG_ENABLE_TRIGGER, false); err != nil {
		return err
	}
	// What is deleted, a password perhaps, must not stay in the file. The copy
	// has no name yet, so nothing needs to be rolled back.
	if err := db.Exec(`PRAGMA secure_delete = ON; PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; BEGIN`); err != nil {
		return err
	}
	if err := change(&Editor{db: db}); err != nil {
		return err
	}
	if err := db.Exec(`COMMIT; PRAGMA journal_mode = DELETE`); err != nil {
		return err
	}
	return db.Close()
}

// SetTag adds a tag or changes its value.
func (e *Editor) SetTag(key, value string) error {
	return execute(e.db, `INSERT OR REPLACE INTO tag (key, value) VALUES (?, ?)`, key, value)
}

// DeleteTag removes a tag. It reports whether there was one.
func (e *Editor) DeleteTag(key string) (bool, error) {
	err := execute(e.db, `DELETE FROM tag WHERE key = ?`, key)
	return e.db.Changes() > 0, err
}

// DeleteTags removes all tags but those without which the blocks could not be
// read, TagCodec and TagBlockSize.
func (e *Editor) DeleteTags() error {
	return execute(e.db, `DELETE FROM tag WHERE key NOT IN (?, ?)`, TagCodec, TagBlockSize)
}

// Routes returns the routes as they are now, in their order.
func (e *Editor) Routes() ([]Route, error) {
	var routes []Route
	err := each(e.db, `SELECT start, "end", url FROM route ORDER BY rowid`, func(s *sqlite3.Stmt) error {
		routes = append(routes, Route{First: byte(s.ColumnInt64(0)), Last: byte(s.ColumnInt64(1)), URL: s.ColumnText(2)})
		return nil
	})
	return routes, err
}

// AddRoute adds a route behind the others.
func (e *Editor) AddRoute(r Route) error {
	return execute(e.db, insertRoute, int64(r.First), int64(r.Last), r.URL)
}

// DeleteRoute removes all routes to a store, named by the very text of its URL.
// It reports whether there was one.
func (e *Editor) DeleteRoute(url string) (bool, error) {
	err := execute(e.db, `DELETE FROM route WHERE url = ?`, url)
	return e.db.Changes() > 0, err
}

// SetRoutes puts routes in place of all there are, in their order.
func (e *Editor) SetRoutes(routes []Route) error {
	if err := e.DeleteRoutes(); err != nil {
		return err
	}
	for _, r := range routes {
		if err := e.AddRoute(r); err != nil {
			return err
		}
	}
	return nil
}

// DeleteRoutes removes all routes.
func (e *Editor) DeleteRoutes() error { return execute(e.db, `DELETE FROM route`) }
