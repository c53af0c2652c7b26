package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"overmount/bootpack"
)

// earlyBytes is how much of a boot pack may wait for its manifest, in memory. The pack
// of a server has a quarter of it.
const earlyBytes = 32 << 20

// An earlyPack is a boot pack that comes in while the manifest does that it belongs
// to: nobody needs the manifest to ask for the pack, and on a long line the time for
// two things at once is that for one.
type earlyPack struct {
	spool *spool
	stop  func()
	done  chan struct{} // closed when file and err say how it ended
	file  string
	err   error
}

// beginPack begins to fetch the boot pack of this machine beside a manifest, the
// first there is. It goes on until it is there, or nothing has come for a minute,
// or ctx ends.
func beginPack(ctx context.Context, get getter, meta, kver, class string) *earlyPack {
	ctx, cancel := context.WithCancel(ctx)
	e := &earlyPack{spool: newSpool(earlyBytes), stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		defer cancel()
		e.file, e.err = e.fetch(ctx, get, packsOf(meta, kver, class))
		e.spool.end(e.err)
	}()
	return e
}

func (e *earlyPack) fetch(ctx context.Context, get getter, files []string) (file string, err error) {
	defer context.AfterFunc(ctx, func() { e.spool.end(ctx.Err()) })()
	idle := time.AfterFunc(packIdle, e.stop)
	defer idle.Stop()
	for _, file = range files {
		err = get(ctx, &awaited{e.spool, idle}, file, bootpack.MaxSize)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return file, err
}

// end waits for the end, which it brings about, and says how it was.
func (e *earlyPack) end() (file string, err error) {
	e.stop()
	<-e.done
	return e.file, e.err
}

// failed reports whether it has ended without a pack, for a reason that may pass.
func (e *earlyPack) failed() bool {
	select {
	case <-e.done:
		return e.err != nil && !errors.Is(e.err, fs.ErrNotExist)
	default:
		return false
	}
}

// packsOf are the places where the boot pack of a machine may be, best first.
func packsOf(meta, kver, class string) (files []string) {
	for _, class := range slices.Compact([]string{class, bootpack.AnyClass}) {
		files = append(files, beside(meta, bootpack.Name(baseName(meta), kver, class)))
	}
	return files
}

// A spool holds what was written until it is read. Write waits while it is full, and
// Read while it is empty.
type spool struct {
	limit int

	mu      sync.Mutex
	changed sync.Cond
	held    bytes.Buffer
	err     error // after held; nil while more may come
}

func newSpool(limit int) *spool {
	s := &spool{limit: limit}
	s.changed.L = &s.mu
	return s
}

// Write fails once the spool has ended.
func (s *spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.held.Len() >= s.limit && s.err == nil {
		s.changed.Wait()
	}
	if s.err != nil {
		return 0, s.err
	}
	s.changed.Broadcast()
	return s.held.Write(p)
}

// Read returns what the spool ended with when all before it was read.
func (s *spool) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.held.Len() == 0 && s.err == nil {
		s.changed.Wait()
	}
	if s.held.Len() == 0 {
		return 0, s.err
	}
	s.changed.Broadcast()
	return s.held.Read(p)
}

// end says that nothing more comes: io.EOF, or a reason. Only the first one counts.
func (s *spool) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = io.EOF
	}
	if s.err == nil {
		s.err = err
	}
	s.changed.Broadcast()
}
