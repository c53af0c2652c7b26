package fusefs

import (
	"context"
	"errors"
	"io"
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
	off := int64(in.Offset)
	defer f.reads.begin(ino, off, len(buf))()
	done := func(error) {}
	if f.opts.Watcher != nil {
		done = f.opts.Watcher.Read(ino, off, len(buf))
	}
	n, err := f.readAt(cancel, in.Pid, ino, buf, off)
	done(err)
	if err != nil {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (f *rawFS) readAt(cancel <-chan struct{}, tid uint32, ino manifest.Ino, p []byte, off int64) (int, error) {
	wanted := f.blocks(ino, off, len(p))
	budget, again := f.opts.ReadTimeout, f.failures.justTimedOut(wanted)
	if again {
		budget = min(budget, secondBudget)
	}
	ctx, stop := context.WithTimeout(context.Background(), budget)
	defer stop()
	go f.watch(ctx, stop, cancel, tid)
	n, err := f.t.ReadAt(ctx, ino, p, off)
	switch {
	case err == nil || err == io.EOF:
		return n, nil
	case errors.Is(ctx.Err(), context.Canceled):
		return 0, errDying
	case ctx.Err() != nil && !again:
		f.failures.timedOut(wanted)
	}
	f.report(err, off, ctx.Err() != nil)
	return 0, err
}

// blocks returns the blocks that a read needs.
func (f *rawFS) blocks(ino manifest.Ino, off int64, n int) []block.Ref {
	all := f.m.Blocks(ino)
	if off < 0 || n == 0 || off/block.Size >= int64(len(all)) {
		return nil
	}
	first := int(off / block.Size)
	return all[first:min(len(all), first+(int(off%block.Size)+n-1)/block.Size+1)]
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
func (f *rawFS) report(err error, off int64, timeout bool) {
	var id block.ID
	if be, ok := errors.AsType[*tree.BlockError](err); ok {
		id = be.ID
	}
	if !f.failures.first(id) {
		return
	}
	args := []any{"err", err, "offset", off}
	if timeout {
		args = append(args, "gave up after", f.opts.ReadTimeout)
	}
	f.opts.Logger.Error("a read failed, and its caller got EIO", args...)
}
