package fusefs

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"overmount/block"
	"overmount/manifest"
	"overmount/tree"
)

// Read is the only request that may wait. It answers with all that was asked for
// or up to the end of the file, or fails: the kernel would take a shorter answer
// for the end of the file and fill the rest with zeros.
func (f *rawFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	ino, err := f.node(in.NodeId)
	if err == nil && f.m.Attr(ino).IsDir() {
		err = errIsDir
	}
	if err != nil {
		return nil, status(err)
	}
	n, err := f.readAt(cancel, in.Pid, ino, buf, int64(in.Offset))
	if err != nil {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (f *rawFS) readAt(cancel <-chan struct{}, tid uint32, ino manifest.Ino, p []byte, off int64) (int, error) {
	ctx, stop := context.WithTimeout(context.Background(), f.opts.ReadTimeout)
	defer stop()
	go f.watch(ctx, stop, cancel, tid)
	n, err := f.t.ReadAt(ctx, ino, p, off)
	switch {
	case err == nil || err == io.EOF:
		return n, nil
	case errors.Is(ctx.Err(), context.Canceled):
		return 0, errDying
	}
	f.report(ctx, ino, off, err)
	return 0, err
}

// lookAgain is how often an interrupted caller is looked at. The kernel sends
// only one INTERRUPT for a request, whatever comes after it.
const lookAgain = 100 * time.Millisecond

// watch stops a read when it was interrupted and nobody waits for it any more.
func (f *rawFS) watch(ctx context.Context, stop context.CancelFunc, cancel <-chan struct{}, tid uint32) {
	select {
	case <-ctx.Done():
		return
	case <-cancel:
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for !f.dying(tid) && !f.conn.dead() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	stop()
}

// report logs why a read failed.
func (f *rawFS) report(ctx context.Context, ino manifest.Ino, off int64, err error) {
	var be *tree.BlockError
	var id block.ID
	if errors.As(err, &be) {
		id = be.ID
	}
	if !f.failures.first(id) {
		return
	}
	args := []any{"err", err, "offset", off}
	if ctx.Err() != nil {
		args = append(args, "gave up after", f.opts.ReadTimeout)
	}
	f.opts.Logger.Error("a read failed, and its caller got EIO", args...)
}

// failures keeps a program that reads a bad block again and again from filling
// the log.
type failures struct {
	mu   sync.Mutex
	when map[block.ID]time.Time
}

const (
	quiet       = time.Minute // between two messages about one block
	maxFailures = 10_000      // remembered
)

// first reports whether the failure of a block is news.
func (l *failures) first(id block.ID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last, ok := l.when[id]; ok && now.Sub(last) < quiet {
		return false
	}
	if l.when == nil || len(l.when) >= maxFailures {
		l.when = make(map[block.ID]time.Time)
	}
	l.when[id] = now
	return true
}
