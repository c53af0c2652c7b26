package prefetch

import (
	"context"
	"io"
	"sync"
	"time"

	"overmount/block"
	"overmount/bootpack"
	"overmount/manifest"
)

// packPatience is how long closures wait for the next block of a pack.
const packPatience = 3 * time.Second

// Pack takes the blocks of a boot pack as they come in, and returns when it is at its
// end. What closures want waits meanwhile, because most of it will be in the pack,
// unless no block comes for some seconds.
// The error is what reading the pack failed with, bootpack.ErrCorrupt or the
// context's; what came before it is of use. Blocks is how many there were.
func (p *Prefetcher) Pack(ctx context.Context, pack io.Reader) (blocks int, err error) {
	release := p.hold()
	defer release()
	stalled := time.AfterFunc(packPatience, release)
	defer stalled.Stop()
	r, err := bootpack.NewReader(p.m, pack)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	places := places(p.m)
	for ctx.Err() == nil {
		key, plain, err := r.Next()
		if err == io.EOF {
			return blocks, nil
		}
		if err != nil {
			return blocks, err
		}
		blocks++
		stalled.Reset(packPatience)
		for _, at := range places[key] {
			if !p.settled(at) {
				p.deliver(at, plain)
			}
		}
	}
	return blocks, ctx.Err()
}

// maxCopies is in how many places one block of a pack is put: a manifest may have a
// file of terabytes that is one block over and over.
const maxCopies = 16

// places returns where each block is.
func places(m *manifest.Manifest) map[block.Key][]place {
	all := make(map[block.Key][]place, m.BlockCount())
	for i := range m.Len() {
		ino := manifest.Ino(i + 1)
		if m.FirstName(ino) != ino {
			continue
		}
		for i, ref := range m.Blocks(ino) {
			if at := all[ref.Key]; len(at) < maxCopies {
				all[ref.Key] = append(at, place{ino, int32(i)})
			}
		}
	}
	return all
}

// hold keeps closures waiting until the function that it returns is called, which
// may be called again.
func (p *Prefetcher) hold() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.packs++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		p.packs--
		p.mu.Unlock()
		p.push()
	})
}
