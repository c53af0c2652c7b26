// Package refetch reads files that come over a line, and again if the line fails.
package refetch

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"
)

// How often a file is fetched, and how long the pause is after the first time; it
// grows by as much.
const (
	tries = 3
	pause = time.Second
)

// Read opens a file and has it read. If opening or what comes from the file fails, it
// does both again, twice at most; not if there is no such file, or the server refuses
// it (fs.ErrPermission), for an error of a local file (fs.PathError), or if only read
// is not content. read gets the file from its
// start each time.
func Read(ctx context.Context, open func(context.Context) (io.ReadCloser, error), read func(io.Reader) error) error {
	for try := 1; ; try++ {
		again, err := once(ctx, open, read)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !again || try == tries {
			return err
		}
		select {
		case <-time.After(time.Duration(try) * pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// once reads a file. With an error, again says whether it may come right the next
// time.
func once(ctx context.Context, open func(context.Context) (io.ReadCloser, error), read func(io.Reader) error) (again bool, err error) {
	f, err := open(ctx)
	if err != nil {
		return passing(err), err
	}
	defer f.Close()
	way := &noted{read: func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return f.Read(p)
	}}
	err = read(way)
	if way.err != nil {
		return passing(way.err), way.err
	}
	return false, err
}

// passing reports whether an error may be gone the next time.
func passing(err error) bool {
	_, local := errors.AsType[*fs.PathError](err)
	return !local && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission)
}

// A noted is a reader that keeps its error.
type noted struct {
	read func([]byte) (int, error)
	err  error
}

func (n *noted) Read(p []byte) (int, error) {
	got, err := n.read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		n.err = err
	}
	return got, err
}
