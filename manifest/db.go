package manifest

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/ncruces/go-sqlite3"
)

// maxCell is the longest value that a manifest can hold, in bytes: an xattr's.
const maxCell = 64 << 10

// openDB opens a database file. The schema in it is not trusted: no function
// with side effects runs from it, and no value over maxCell is built.
func openDB(ctx context.Context, path string, flags sqlite3.OpenFlag, query string) (*sqlite3.Conn, error) {
	// The path is escaped, so that ? and # in it stay part of the name.
	uri := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: query}).String()
	db, err := sqlite3.OpenFlags(uri, flags|sqlite3.OPEN_URI)
	if err != nil {
		return nil, err
	}
	db.SetInterrupt(ctx)
	if _, err := db.Config(sqlite3.DBCONFIG_DEFENSIVE, true); err != nil {
		db.Close()
		return nil, err
	}
	if _, err := db.Config(sqlite3.DBCONFIG_TRUSTED_SCHEMA, false); err != nil {
		db.Close()
		return nil, err
	}
	db.Limit(sqlite3.LIMIT_LENGTH, max(maxCell, 1<<20))
	return db, nil
}

// each runs a query and calls row for each row of the answer.
func each(db *sqlite3.Conn, query string, row func(*sqlite3.Stmt) error) (err error) {
	stmt, _, err := db.Prepare(query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	for stmt.Step() {
		if err := row(stmt); err != nil {
			return err
		}
	}
	return stmt.Err()
}

// exec runs one statement with values.
func exec(db *sqlite3.Conn, query string, values ...any) (err error) {
	stmt, _, err := db.Prepare(query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	return run(stmt, values...)
}

// run binds values to a statement, runs it to its end and makes it ready again.
func run(stmt *sqlite3.Stmt, values ...any) error {
	for i, v := range values {
		var err error
		switch v := v.(type) {
		case int64:
			err = stmt.BindInt64(i+1, v)
		case string:
			err = stmt.BindText(i+1, v)
		case []byte:
			err = stmt.BindBlob(i+1, v)
		default:
			err = fmt.Errorf("bind: unexpected %T", v)
		}
		if err != nil {
			return err
		}
	}
	return stmt.Exec()
}
