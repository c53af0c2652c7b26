package store

import (
	"context"
	"io"
	"iter"
	"time"

	"overmount/block"
)

// An Entry is an object in the list of a store.
type Entry struct {
	ID       block.ID
	Layout   Layout    // an object may be there under several
	Size     int64     // in bytes; no promise that an object can have it
	Modified time.Time // by the store's clock
}

// A Lister knows what it has.
type Lister interface {
	// List goes through all objects of the store, in no order that means
	// anything, and passes over what is none. An error is the last that it
	// yields.
	List(ctx context.Context) iter.Seq2[Entry, error]
}

// A Prober can say that it has an object without giving it.
type Prober interface {
	// Has reports whether the object is there. That it is right, only Get can
	// tell. Errors are those of Get, without ErrNotFound.
	Has(ctx context.Context, id block.ID) (bool, error)
}

// A Deleter takes objects away.
type Deleter interface {
	// Delete removes an object, under all its names. To remove what is not there
	// is no error.
	Delete(ctx context.Context, id block.ID) error
}

// A FileStore keeps files under names of their own beside the objects: manifests
// and what goes with them.
type FileStore interface {
	// PutFile writes size bytes of body. The file appears whole, at once, in
	// place of what had the name, which is a path as fs.ValidPath wants it. The
	// body may be read several times.
	PutFile(ctx context.Context, name string, body io.ReaderAt, size int64, opts *FileOptions) error
	// GetFile returns a file of at most most bytes. Errors are those of a
	// Reader's Get; ErrNotFound means that there is no such file.
	GetFile(ctx context.Context, name string, most int64) ([]byte, error)
}

// FileOptions say how a store serves a file, where it serves files itself. Nil and
// zero mean the defaults.
type FileOptions struct {
	ContentType string // default application/octet-stream

	// CacheControl is what caches before the store's public endpoint hear. The
	// default is no-cache: the name may get other content, so ask each time.
	CacheControl string
}

// A Learner is a Writer that can list what it has at once, so that Put need not
// ask for each object.
type Learner interface {
	// Learn lists the store, but no more than most objects. It reports whether
	// that was all. Without an error Put is right in any case.
	Learn(ctx context.Context, most int) (complete bool, err error)
}
