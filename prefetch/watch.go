package prefetch

import (
	"slices"
	"strings"
	"time"

	"overmount/block"
	"overmount/bootpack"
	"overmount/manifest"
)

// Read is called when the kernel begins to read a part of a file, and what it
// returns when that ended: see [overmount/fusefs.Watcher].
func (p *Prefetcher) Read(ino manifest.Ino, off int64, n int) (done func(error)) {
	first, last := p.span(ino, off, n)
	if first > last {
		return func(error) {}
	}
	start := time.Now()
	news := p.noteRead(ino, first, last, off, int64(n))
	if first == 0 && p.opts.Closure && strings.Contains(p.m.Name(ino), ".ko") {
		p.startClosure(ino)
	}
	return func(err error) { p.noteDone(ino, news, time.Since(start), err) }
}

// span returns the first and the last block of a part of a file.
func (p *Prefetcher) span(ino manifest.Ino, off int64, n int) (first, last int32) {
	end := min(off+int64(n), p.m.Attr(ino).Size)
	if off < 0 || end <= off {
		return 0, -1
	}
	return int32(off / block.Size), int32((end - 1) / block.Size)
}

// noteRead counts a read, and returns which of its blocks were not read before, as
// places in accesses. Those of them that were fetched ahead are hits.
func (p *Prefetcher) noteRead(ino manifest.Ino, first, last int32, off, n int64) (news []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Reads++
	f := p.file(ino)
	if f.Reads == 0 {
		p.opened = append(p.opened, ino)
	}
	f.Reads++
	for i := first; i <= last; i++ {
		at := place{ino, i}
		begin := int64(i) * block.Size
		bytes := min(off+n, begin+block.Size, p.m.Attr(ino).Size) - max(off, begin)
		p.stats.ReadBytes += bytes
		f.ReadBytes += bytes
		index, again := p.read[at]
		if !again {
			f.Blocks++
			if p.had[at] {
				f.Hits++
				p.stats.Hits++
			}
			index = p.firstRead(at)
			news = append(news, index)
		}
		if index < len(p.accesses) {
			p.accesses[index].Bytes += bytes
		}
	}
	return news
}

// firstRead notes the first read of a block, and returns its place in accesses.
// Without a record the place is beyond its end. p.mu is held.
func (p *Prefetcher) firstRead(at place) int {
	index := len(p.accesses)
	p.read[at] = index
	if p.opts.Record && index < bootpack.MaxMembers {
		p.accesses = append(p.accesses, bootpack.Access{Path: p.m.Path(at.ino), Block: int(at.i), Hit: p.had[at]})
	}
	return index
}

func (p *Prefetcher) noteDone(ino manifest.Ino, news []int, waited time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.file(ino)
	p.stats.Waited += waited
	f.Waited += waited
	if err != nil {
		p.stats.Failed++
		f.Failed++
	}
	for _, index := range news {
		if index < len(p.accesses) {
			p.accesses[index].Waited = waited
		}
	}
}

// startClosure has Run fetch the closure of a module, if it was not done before.
func (p *Prefetcher) startClosure(ino manifest.Ino) {
	p.mu.Lock()
	begun := p.begun[ino]
	p.mu.Unlock()
	if !begun {
		p.push(job{ino: ino, closure: true})
	}
}

// Accesses returns which blocks were read, in the order of their first reading, the
// first bootpack.MaxMembers of them. It is empty without Options.Record.
func (p *Prefetcher) Accesses() []bootpack.Access {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.accesses)
}
