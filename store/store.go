// Package store defines where objects live.
//
// A store is anything that is a [Reader], a [Writer], or both. The package has
// two stores of its own, a directory ([Dir]) and memory ([Mem]), and wrappers
// that give any store what it lacks:
//
//	Checked  an object's bytes match its ID, or it is not returned
//	Routes   several stores as one: byte ranges, replicas, ordered fallback
//	Ranked   routes for reading, in the order of what their stores did lately,
//	         where no read waits long for a store that hangs
//	Retry    asks again, with growing pauses, within a budget of time
//	Limit    at most so many requests at a time
//	Once     readers of one object share one request
//
// A reader of a flist is put together from the inside out:
//
//	Once(Retry(Ranked(Routes{
//		{First: 0x00, Last: 0xff, Reader: Checked(NewDir("/srv/objects"))},
//		{First: 0x00, Last: 0xff, Reader: NewLimit(32).Reader(httpstore)},
//	}), nil))
//
// Each object is hashed once, where it comes in: by Checked, or by a store that
// says it does so itself, as httpstore.
//
// Every failure is either a definite answer of a store or temporary
// ([Temporary]). Routes and Ranked go on to the next store after either; Retry
// goes on only after a temporary one. [ParseSpec] reads how users and manifests write a
// store.
//
// Nothing in here decrypts. Objects go in and out as [overmount/block] sealed them.
package store

import (
	"context"
	"errors"

	"overmount/block"
)

// ErrNotFound says that a store answered, and does not have the object. It is
// deliberately not fs.ErrNotExist: a lost block must never look like a missing
// file.
var ErrNotFound = errors.New("object not found")

// A Reader gives objects by name.
type Reader interface {
	// Get returns the whole object. The slice may be shared with other callers
	// and must not be modified.
	//
	// Get returns ErrNotFound if the store says that it has no such object,
	// block.ErrCorrupt if what came is not that object, the context's error if
	// the caller gave up, and another error if the store could not answer.
	// Concurrent use is safe.
	Get(ctx context.Context, id block.ID) ([]byte, error)
}

// A Writer keeps objects.
type Writer interface {
	// Put keeps the object under id, which the caller has computed with
	// block.Sum. It reports whether the store had to write: false means that the
	// same object was there before. When Put returns without error the object
	// can be read by anyone; it outlives a power cut only after Sync, where the
	// store is a Syncer.
	//
	// Putting one object from several places at once is safe. Put does not
	// keep or modify object.
	Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error)
}

// A Syncer is a Writer whose objects need one more step to last.
type Syncer interface {
	// Sync returns when every object put before it survives a power cut.
	Sync(ctx context.Context) error
}

// A Forgetter is a Reader with a memory of its own, a cache.
type Forgetter interface {
	// Forget drops what the reader remembers of id, so that the next Get asks
	// the source again. Who finds that an object does not open calls it.
	Forget(id block.ID)
}
