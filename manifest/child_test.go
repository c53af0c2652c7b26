package manifest

import (
	"context"
	"fmt"
	"strconv"

	"github.com/ncruces/go-sqlite3"

	"overmount/block"
)

// children are what this binary does as the child of a test.
var children = map[string]func(path string){
	"begin and stay":  beginAndStay,
	"create and stay": createAndStay,
	"edit and stay":   editAndStay,
	"edit for ever":   editForEver,
	"edit 10 times":   editTenTimes,
}

// beginAndStay leaves a transaction open, part of which is in the file.
func beginAndStay(path string) {
	db, err := sqlite3.Open(path)
	must(err)
	must(db.Exec(`PRAGMA cache_size = 5; PRAGMA cache_spill = 1; BEGIN;
		UPDATE inode SET name = 'spoilt' || ino, mtime = 1 WHERE ino > 1; UPDATE block SET id = zeroblob(32)`))
	say("ready")
	stay()
}

func createAndStay(path string) {
	w, err := Create(context.Background(), path, block.Zstd, nil, nil)
	must(err)
	must(w.Add(dir(".")))
	for i := range 5000 {
		must(w.Add(file(fmt.Sprintf("%05d", i), 1)))
	}
	say("ready")
	stay()
}

func editAndStay(path string) {
	must(Edit(context.Background(), path, func(e *Editor) error {
		must(e.SetTag("state", "new"))
		must(e.DeleteRoutes())
		say("ready")
		stay()
		return nil
	}))
}

func editForEver(path string) {
	for i := 1; ; i++ {
		must(Edit(context.Background(), path, func(e *Editor) error { return e.SetTag("state", strconv.Itoa(i)) }))
		say(i)
	}
}

func editTenTimes(path string) {
	for i := range 10 {
		must(Edit(context.Background(), path, func(e *Editor) error {
			return e.AddRoute(Route{Last: 255, URL: fmt.Sprintf("dir:///child-%d", i)})
		}))
	}
	say("done")
}
