// Package tree makes files of a manifest and a store.
//
// A [Tree] answers what a file system is asked, without a kernel: attributes,
// names and symlinks come from the [manifest.Manifest] and never wait; content
// is read with [Tree.ReadAt], which takes the blocks that it needs from the
// manifest itself or fetches them, opens them and checks them. [Tree.FS] is the same as an [fs.FS].
//
//	t := tree.New(m, src, nil)
//	ino, err := m.Find("kernel/fs/xfs/xfs.ko")
//	n, err := t.ReadAt(ctx, ino, buf, 0)
//
// Readers who want one block at the same time share one request and one opening
// of it; a few opened blocks are kept, because a file is read in smaller pieces
// than it is stored in. Everything else that remembers belongs around the store
// (package cache) or is the kernel's.
//
// Nothing wrong is ever returned: a block either opens under the manifest's key
// and has the length that the manifest says, or the read fails with a
// [*BlockError].
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"overmount/block"
	"overmount/internal/flight"
	"overmount/manifest"
	"overmount/store"
)

// Options are what a Tree can be told beyond what it needs.
type Options struct {
	// KeepBlocks is how many opened blocks are kept, each of up to 512 KiB; 0
	// means 8. It should be more than the number of files that are read in
	// sequence at the same time.
	KeepBlocks int
	// MaxRequests is how many requests Prefetch and readers may have under way
	// together for Prefetch to begin another; 0 means 16. Readers do not wait for
	// each other, nor for Prefetch.
	MaxRequests int
	// HoldBytes is how much Hold keeps, in bytes; 0 means 16 MiB.
	HoldBytes int64
}

// A Tree is a manifest's files. Its methods are safe for concurrent use.
type Tree struct {
	m       *manifest.Manifest
	src     store.Reader
	flights flight.Group[block.Ref, []byte]
	kept    lru
	held    shelf
	lanes   lanes

	opened, served atomic.Int64
}

// New returns the files that m describes, with their content from src. The
// source must check objects against their IDs ([store.Checked]) for the errors
// to say whose fault a bad block is; what is read is right in any case.
func New(m *manifest.Manifest, src store.Reader, o *Options) *Tree {
	var f Options
	if o != nil {
		f = *o
	}
	if f.KeepBlocks <= 0 {
		f.KeepBlocks = 8
	}
	if f.MaxRequests <= 0 {
		f.MaxRequests = 16
	}
	if f.HoldBytes <= 0 {
		f.HoldBytes = 16 << 20
	}
	return &Tree{m: m, src: src, kept: newLRU(f.KeepBlocks), held: shelf{limit: f.HoldBytes}, lanes: lanes{limit: f.MaxRequests}}
}

// Manifest returns the manifest that the tree was made of.
func (t *Tree) Manifest() *manifest.Manifest { return t.m }

// Stats are counts since New.
type Stats struct {
	BlocksOpened int64 // blocks fetched and decrypted
	BytesServed  int64 // bytes that reads have returned
}

// Stats returns the counts so far.
func (t *Tree) Stats() Stats {
	return Stats{BlocksOpened: t.opened.Load(), BytesServed: t.served.Load()}
}

// A BlockError says which block of which file could not be read, and why. The
// reason is store.ErrNotFound, block.ErrCorrupt, the context's error, or what
// else the store answered.
type BlockError struct {
	Path string // the file's first name
	ID   block.ID
	Err  error
}

func (e *BlockError) Error() string {
	return fmt.Sprintf("read block %v of %s: %v", e.ID, e.Path, e.Err)
}

// Unwrap returns the reason.
func (e *BlockError) Unwrap() error { return e.Err }

// ReadAt reads into p what the regular file ino holds from off on. As io.ReaderAt
// has it, it returns less than len(p) only with an error, which is io.EOF at the
// end of the file. Blocks that are not at hand are fetched at the same time.
//
// The error is a [*BlockError] if a block could not be read. Then the others are
// not waited for, and n counts the bytes that are right from p's beginning on.
// When ReadAt returns, nothing writes to p any more.
func (t *Tree) ReadAt(ctx context.Context, ino manifest.Ino, p []byte, off int64) (n int, err error) {
	size := t.m.Attr(ino).Size
	switch {
	case !t.m.Attr(ino).IsRegular():
		return 0, fmt.Errorf("read %s: it is not a regular file", t.m.Path(ino))
	case off < 0:
		return 0, fmt.Errorf("read %s at %d: the offset is negative", t.m.Path(ino), off)
	case off >= size:
		return 0, io.EOF
	}
	if rest := size - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	n, blockErr := t.read(ctx, ino, p, off)
	t.served.Add(int64(n))
	if blockErr != nil {
		err = blockErr
	}
	return n, err
}

// A piece is what one read wants of one block.
type piece struct {
	p    []byte
	i    int // which block of the file
	from int // where in the block
	done bool
}

// read fills p, all of which lies in the file.
func (t *Tree) read(ctx context.Context, ino manifest.Ino, p []byte, off int64) (n int, err error) {
	pieces := cut(p, off)
	if len(pieces) == 1 {
		err = t.readPiece(ctx, ino, &pieces[0])
	} else {
		g, gctx := errgroup.WithContext(ctx)
		for i := range pieces {
			g.Go(func() error { return t.readPiece(gctx, ino, &pieces[i]) })
		}
		err = g.Wait()
	}
	for _, c := range pieces {
		if !c.done {
			break
		}
		n += len(c.p)
	}
	return n, err
}

// cut divides p at the borders of blocks.
func cut(p []byte, off int64) []piece {
	pieces := make([]piece, 0, len(p)/block.Size+2)
	for len(p) > 0 {
		from := int(off % block.Size)
		n := min(len(p), block.Size-from)
		pieces = append(pieces, piece{p: p[:n], i: int(off / block.Size), from: from})
		p, off = p[n:], off+int64(n)
	}
	return pieces
}

func (t *Tree) readPiece(ctx context.Context, ino manifest.Ino, c *piece) error {
	ref := t.m.Blocks(ino)[c.i]
	plain, err := t.block(ctx, ref)
	if err == nil {
		err = t.fits(ino, c.i, plain)
	}
	if err != nil {
		return t.blockError(ino, ref, err)
	}
	copy(c.p, plain[c.from:])
	c.done = true
	return nil
}

// fits checks that a block has the length that the manifest says.
func (t *Tree) fits(ino manifest.Ino, i int, plain []byte) error {
	want := min(block.Size, t.m.Attr(ino).Size-int64(i)*block.Size)
	if int64(len(plain)) != want {
		return fmt.Errorf("%w: it holds %d bytes, and the manifest says %d", block.ErrCorrupt, len(plain), want)
	}
	return nil
}

func (t *Tree) blockError(ino manifest.Ino, ref block.Ref, err error) error {
	return &BlockError{Path: t.m.Path(t.m.FirstName(ino)), ID: ref.ID, Err: err}
}

// block returns a plain block, which is shared and must not be modified.
func (t *Tree) block(ctx context.Context, ref block.Ref) ([]byte, error) {
	if plain := t.kept.get(ref); plain != nil {
		return plain, nil
	}
	t.lanes.readerComes()
	defer t.lanes.readerGoes()
	for {
		plain, err := t.share(ctx, ref, t.fetchAndKeep)
		if err == nil {
			t.kept.add(ref, plain) // which one that Prefetch fetched is not
		}
		if _, once := errors.AsType[*onceError](err); !once {
			return plain, err
		}
		// What this reader joined was Prefetch's, which does not try again.
	}
}

// share has fetch get a block, unless somebody does already, or it is at hand.
func (t *Tree) share(ctx context.Context, ref block.Ref, fetch func(context.Context, block.Ref) ([]byte, error)) ([]byte, error) {
	return t.flights.Do(ctx, ref, func(ctx context.Context) ([]byte, error) {
		// It may have come since the caller looked.
		if plain := t.kept.get(ref); plain != nil {
			return plain, nil
		}
		if plain := t.held.take(ref); plain != nil {
			t.kept.add(ref, plain)
			return plain, nil
		}
		return fetch(ctx, ref)
	})
}

func (t *Tree) fetchAndKeep(ctx context.Context, ref block.Ref) ([]byte, error) {
	plain, err := t.fetch(ctx, ref)
	if err == nil {
		t.kept.add(ref, plain)
	}
	return plain, err
}

// fetch gets and opens a block. If it does not open, a source with a memory is
// asked for another copy.
func (t *Tree) fetch(ctx context.Context, ref block.Ref) ([]byte, error) {
	plain, err := t.fetchOnce(ctx, ref)
	forgetter, ok := t.src.(store.Forgetter)
	if !ok || !errors.Is(err, block.ErrCorrupt) {
		return plain, err
	}
	forgetter.Forget(ref.ID)
	return t.fetchOnce(ctx, ref)
}

func (t *Tree) fetchOnce(ctx context.Context, ref block.Ref) ([]byte, error) {
	object, ok := t.m.Object(ref.ID)
	if !ok {
		var err error
		if object, err = t.src.Get(ctx, ref.ID); err != nil {
			return nil, err
		}
	}
	plain, err := block.Open(nil, t.m.Codec(), ref.Key, object)
	if err != nil {
		return nil, err
	}
	t.opened.Add(1)
	return plain, nil
}
