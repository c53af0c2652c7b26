package store

import (
	"errors"
	"fmt"
	"time"

	"overmount/block"
)

// ErrForbidden says that a store answered, and does not let this caller read or
// write: no rights, or no credentials.
var ErrForbidden = errors.New("store refuses access")

// ErrNoRoute says that no store of a [Routes] is meant for the object.
var ErrNoRoute = errors.New("no store for the object")

// Temporary reports whether a request that failed with err may succeed when it
// is made again. The definite answers are [ErrNotFound], [ErrForbidden],
// [ErrNoRoute] and [block.ErrCorrupt]; every other failure is temporary.
//
// An error of [Routes] is temporary if that of any of its stores is, and then
// it is none of the definite ones for errors.Is.
func Temporary(err error) bool {
	for _, definite := range []error{ErrNotFound, ErrForbidden, ErrNoRoute, block.ErrCorrupt} {
		if errors.Is(err, definite) {
			return false
		}
	}
	return err != nil
}

// A BusyError is a temporary failure that says when to ask again, as an HTTP
// answer with a Retry-After does. [Retry] obeys every error that has a method
// RetryAfter.
type BusyError struct {
	Err   error
	After time.Duration // how long the store wants to be left alone
}

func (e *BusyError) Error() string { return fmt.Sprintf("%v, ask again after %v", e.Err, e.After) }

func (e *BusyError) Unwrap() error { return e.Err }

// RetryAfter returns e.After.
func (e *BusyError) RetryAfter() time.Duration { return e.After }

// retryAfter returns how long err asks to wait, 0 if it does not say.
func retryAfter(err error) time.Duration {
	if busy, ok := errors.AsType[interface {
		RetryAfter() time.Duration
		error
	}](err); ok {
		return max(busy.RetryAfter(), 0)
	}
	return 0
}

// CheckSize returns block.ErrCorrupt, with the reason, unless n is a length in
// bytes that an object can have: 1 to [block.MaxObject]. A store calls it before
// it allocates, and before it keeps what nobody could read back.
func CheckSize(n int64) error {
	switch {
	case n <= 0:
		return fmt.Errorf("%w: it is empty", block.ErrCorrupt)
	case n > block.MaxObject:
		return fmt.Errorf("%w: %d bytes, over the limit of %d", block.ErrCorrupt, n, block.MaxObject)
	}
	return nil
}
