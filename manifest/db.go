package manifest

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/ncruces/go-sqlite3"

	"overmount/block"
)

// maxCell is the longest value of an extended attribute, in bytes.
const maxCell = 64 << 10

// maxRow is the longest row, and so the longest value, that is read or written:
// the longest is an object.
const maxRow = block.MaxObject + 4<<10

// openDB opens a database file. The schema in it is not trusted: no function
// with side effects runs from it, and nothing over maxRow is built.
func openDB(ctx context.Context, path string, flags sqlite3.OpenFlag, query string) (*sqlite3.Conn, error) {
	if strings.HasPrefix(path, "//") { // would name a host
		path = "/" + strings.TrimLeft(path, "/")
	}
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
	db.Limit(sqlite3.LIMIT_LENGTH, maxRow)
	return db, nil
}

// each runs a query and calls row for each row of the answer.
func each(db *sqlite3.Conn, query string, row func(*sqlite3.Stmt) error) error {
	stmt, _, err := db.Prepare(query)
	if err != nil {
		return err
	}
	defer stmt.Close() // says nothing that Err does not
	for stmt.Step() {
		if err := row(stmt); err != nil {
			return err
		}
	}
	return stmt.Err()
}

// execute runs one statement with values.
func execute(db *sqlite3.Conn, query string, values ...any) error {
	stmt, _, err := db.Prepare(query)
	if err != nil {
		return err
	}
	defer stmt.Close()
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
