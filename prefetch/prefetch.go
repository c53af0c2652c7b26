// Package prefetch fetches content of a mount before it is asked for.
//
//	p := prefetch.New(t, &prefetch.Options{Closure: true})
//	s, err := fusefs.Mount(ctx, dir, t, &fusefs.Options{Watcher: p})
//	p.Use(s)
//	go p.Run(ctx)
//	…
//	p.Files(ctx, []string{"kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko"})
//
// # What is fetched
//
// What [Prefetcher.Files] is told, in that order; what a boot pack holds
// ([Prefetcher.Pack]); and, with Options.Closure, what a kernel module needs when
// the kernel begins to read it: the rest of its file, the modules that it depends
// on, those that it asks to be loaded before it, and the firmware that all these
// declare, as far as it is little. The sign is the first READ of a module, because
// opening a file makes no request, and looking one up is what find does, too. Each
// module counts once, so that reading a whole tree does not cost twice.
//
// # Who goes first
//
// A reader never waits for prefetch: see [tree.Tree.Prefetch]. A block that cannot
// be had at the first try, or within half a minute, is left to its reader, and
// counted.
//
// # Where it goes
//
// Each block is checked, and then put into the kernel's page cache; who reads it
// then makes no request. What the kernel does not take is held in memory for its
// first reader, as far as there is room, and the cache on disk has it in any case.
package prefetch

import (
	"context"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"overmount/block"
	"overmount/bootpack"
	"overmount/manifest"
	"overmount/tree"
)

// patience is how long one block may take, with all its waiting.
const patience = 30 * time.Second

// maxJob is how many blocks are fetched for one module: 256 MiB. The largest closures
// of a real kernel have a tenth of that.
const maxJob = 512

// A PageCache takes content ahead of its readers: a [overmount/fusefs.Server].
type PageCache interface {
	// Store takes plain as what the file ino holds from off on, which is the
	// beginning of a block; or it fails, and somebody else will read the file.
	// Concurrent use is safe.
	Store(ino manifest.Ino, off int64, plain []byte) error
}

// Firmware is told what modules declare: usually the Prefetcher of another tree.
type Firmware interface {
	// Declared is called with the names that one module declares. It must not
	// wait.
	Declared(names []string)
}

// Options are what a Prefetcher can be told beyond what it needs.
type Options struct {
	// Closure fetches what a module needs when the module begins to be read.
	Closure bool
	// Firmware hears what the modules of a closure declare. Nil means nobody.
	Firmware Firmware
	// MaxFirmwareFiles and MaxFirmwareBytes are how much Declared fetches for one
	// module; 0 means 4 files and 1 MiB. Of a module that declares more, nothing
	// is fetched: a driver for many devices uses one file of many.
	MaxFirmwareFiles int
	MaxFirmwareBytes int64
	// Workers is how many blocks are fetched at a time; 0 means 16. How many of
	// them are requested at a time, the tree limits.
	Workers int
	// Record keeps which blocks were read, for Accesses. Then nothing is put into
	// the page cache: what is read from there makes no request, and would not be
	// seen.
	Record bool
}

// A Prefetcher fetches for one mount. Its methods are safe for concurrent use.
type Prefetcher struct {
	t    *tree.Tree
	m    *manifest.Manifest
	opts Options
	wake chan struct{} // something is in the queue

	mu       sync.Mutex
	cache    PageCache // nil before Use
	queue    []job
	packs    int                   // that come in
	begun    map[manifest.Ino]bool // modules whose closure was fetched, or will be
	had      map[place]bool        // fetched ahead
	read     map[place]int         // asked for by readers: where in accesses
	accesses []bootpack.Access
	files    map[manifest.Ino]*FileStats
	opened   []manifest.Ino // those of files that were read, in order
	ahead    []manifest.Ino // those that were fetched ahead, in order
	stats    Stats
}

// A place is one block of one file.
type place struct {
	ino manifest.Ino
	i   int32
}

// A job is a file to fetch, or a module to fetch the closure of.
type job struct {
	ino     manifest.Ino
	closure bool
}

// New returns a Prefetcher for what t holds.
func New(t *tree.Tree, o *Options) *Prefetcher {
	var f Options
	if o != nil {
		f = *o
	}
	if f.MaxFirmwareFiles <= 0 {
		f.MaxFirmwareFiles = 4
	}
	if f.MaxFirmwareBytes <= 0 {
		f.MaxFirmwareBytes = 1 << 20
	}
	if f.Workers <= 0 {
		f.Workers = 16
	}
	return &Prefetcher{
		t: t, m: t.Manifest(), opts: f, wake: make(chan struct{}, 1),
		begun: map[manifest.Ino]bool{}, had: map[place]bool{}, read: map[place]int{}, files: map[manifest.Ino]*FileStats{},
	}
}

// Stats are counts since New. A read of what is in the page cache makes no request
// and is not counted.
type Stats struct {
	Files     int64         // that were read
	Blocks    int64         // that were read, each once
	Reads     int64         // requests of the kernel
	ReadBytes int64         // that these asked for
	Hits      int64         // Blocks that had been fetched ahead and were not in the page cache
	Failed    int64         // Reads that failed
	Waited    time.Duration // of all Reads together

	Closures      int64 // modules that closures were of, each once
	Prefetched    int64 // blocks that were fetched ahead
	PrefetchBytes int64 // their size
	Stored        int64 // those of them that the page cache took
	GivenUp       int64 // blocks that were not had at the first try
}

// Stats returns the counts so far.
func (p *Prefetcher) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Files, s.Blocks = int64(len(p.opened)), int64(len(p.read))
	return s
}

// FileStats are the counts of one file, with the meaning that they have in Stats.
type FileStats struct {
	Ino manifest.Ino

	Reads, ReadBytes, Failed int64
	Waited                   time.Duration
	Blocks                   int64 // that were read, each once
	Hits                     int64 // Blocks that had been fetched ahead
	Prefetched               int64 // blocks that were fetched ahead
}

// ByFile returns the counts of each file: first of those that were read, in the order
// in which that began, then of those that were only fetched ahead. The kernel has not
// opened these, or has had them in its page cache.
func (p *Prefetcher) ByFile() []FileStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]FileStats, 0, len(p.files))
	for _, ino := range p.opened {
		all = append(all, *p.files[ino])
	}
	for _, ino := range p.ahead {
		if f := p.files[ino]; f.Reads == 0 {
			all = append(all, *f)
		}
	}
	return all
}

// file returns the counts of a file, to be changed. p.mu is held.
func (p *Prefetcher) file(ino manifest.Ino) *FileStats {
	f := p.files[ino]
	if f == nil {
		f = &FileStats{Ino: ino}
		p.files[ino] = f
	}
	return f
}

// Use puts what is fetched from now on into cache.
func (p *Prefetcher) Use(cache PageCache) {
	if p.opts.Record {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cache = cache
}

// Run fetches what readers set off, until the context ends. It is called once.
func (p *Prefetcher) Run(ctx context.Context) {
	var modules *graph
	var g errgroup.Group
	defer func() { _ = g.Wait() }() // nobody returns an error
	g.SetLimit(p.opts.Workers)
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		for _, j := range p.take() {
			if j.closure && modules == nil {
				modules = newGraph(p.m) // takes some milliseconds, which no reader waits for
			}
			p.do(ctx, &g, modules, j)
		}
	}
}

// do fetches what a job wants.
func (p *Prefetcher) do(ctx context.Context, g *errgroup.Group, modules *graph, j job) {
	files := []manifest.Ino{j.ino}
	if j.closure {
		var firmware [][]string
		files, firmware = modules.closure(j.ino, p.begin)
		for _, names := range firmware {
			if p.opts.Firmware != nil {
				p.opts.Firmware.Declared(names)
			}
		}
	}
	budget := maxJob
	for _, ino := range files {
		for i := range p.m.Blocks(ino) {
			if budget--; budget < 0 {
				return
			}
			if at := (place{ino, int32(i)}); !p.settled(at) {
				g.Go(func() error { p.fetch(ctx, at); return nil })
			}
		}
	}
}

// begin reports whether the closure of a module was not begun before.
func (p *Prefetcher) begin(ino manifest.Ino) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun[ino] {
		return false
	}
	p.begun[ino] = true
	p.stats.Closures++
	return true
}

func (p *Prefetcher) push(jobs ...job) {
	p.mu.Lock()
	p.queue = append(p.queue, jobs...)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take returns what is in the queue, nothing while a pack comes in.
func (p *Prefetcher) take() []job {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.packs > 0 {
		return nil
	}
	jobs := p.queue
	p.queue = nil
	return jobs
}

// settled reports whether there is no use in fetching a block ahead.
func (p *Prefetcher) settled(at place) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, read := p.read[at]
	return read || p.had[at]
}

// fetch fetches one block, and reports whether it is here.
func (p *Prefetcher) fetch(ctx context.Context, at place) bool {
	if p.settled(at) {
		return true
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	plain, err := p.t.Prefetch(within, at.ino, int(at.i))
	if err != nil {
		if ctx.Err() == nil {
			p.mu.Lock()
			p.stats.GivenUp++
			p.mu.Unlock()
		}
		return false
	}
	if !p.settled(at) { // its reader may have shared the request
		p.deliver(at, plain)
	}
	return true
}

// deliver puts a block that has its Key where its reader finds it.
func (p *Prefetcher) deliver(at place, plain []byte) {
	if int64(len(plain)) != min(block.Size, p.m.Attr(at.ino).Size-int64(at.i)*block.Size) {
		return // the manifest is at odds with itself: its reader gets the error
	}
	p.mu.Lock()
	cache := p.cache
	p.mu.Unlock()
	stored := cache != nil && cache.Store(at.ino, int64(at.i)*block.Size, plain) == nil
	if !stored {
		p.t.Hold(p.m.Blocks(at.ino)[at.i], plain)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.had[at] {
		return // somebody else fetched it, too
	}
	p.had[at] = true
	f := p.file(at.ino)
	if f.Prefetched == 0 {
		p.ahead = append(p.ahead, at.ino)
	}
	f.Prefetched++
	p.stats.Prefetched++
	p.stats.PrefetchBytes += int64(len(plain))
	if stored {
		p.stats.Stored++
	}
}

// A Result says what became of what was to be fetched.
type Result struct {
	Files   int   // found
	Bytes   int64 // of these
	Missing int   // names that are no regular file in the tree
	Failed  int   // blocks that could not be had
}

// Files fetches files of the tree, in order, and returns when they are there or
// were given up. Names are slash-separated paths from the root; symlinks are
// followed. What was read or fetched before is not fetched again. The only error
// is the context's.
func (p *Prefetcher) Files(ctx context.Context, names []string) (Result, error) {
	var r Result
	var failed sync.Map
	var g errgroup.Group
	g.SetLimit(p.opts.Workers)
	for _, name := range names {
		ino, ok := p.find(name)
		if !ok {
			r.Missing++
			continue
		}
		r.Files++
		r.Bytes += p.m.Attr(ino).Size
		for i := range p.m.Blocks(ino) {
			if ctx.Err() != nil {
				break
			}
			at := place{ino, int32(i)}
			g.Go(func() error {
				if !p.fetch(ctx, at) {
					failed.Store(at, true)
				}
				return nil
			})
		}
	}
	_ = g.Wait() // nobody returns an error
	failed.Range(func(any, any) bool { r.Failed++; return true })
	return r, ctx.Err()
}

// find returns the regular file of that name.
func (p *Prefetcher) find(name string) (manifest.Ino, bool) {
	info, err := fs.Stat(p.t.FS(context.Background()), path.Clean(name)) // which waits for nothing
	if err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return manifest.Ino(st.Ino), ok
}

// Declared fetches the firmware that a module declares, in the background, if it
// is in this tree and under the limits of Options. A compressed form will do.
// Names may be patterns, for devices of many names; these are passed over.
func (p *Prefetcher) Declared(names []string) {
	files := map[manifest.Ino]bool{}
	size := int64(0)
	for _, name := range names {
		ino, ok := p.findFirmware(name)
		if !ok || files[ino] {
			continue
		}
		files[ino] = true
		size += p.m.Attr(ino).Size
	}
	if len(files) == 0 || len(files) > p.opts.MaxFirmwareFiles || size > p.opts.MaxFirmwareBytes {
		return
	}
	var jobs []job
	for _, ino := range slices.Sorted(maps.Keys(files)) {
		jobs = append(jobs, job{ino: ino})
	}
	p.push(jobs...)
}

func (p *Prefetcher) findFirmware(name string) (manifest.Ino, bool) {
	if strings.ContainsAny(name, "*?[") {
		return 0, false
	}
	for _, suffix := range []string{"", ".zst", ".xz"} {
		if ino, ok := p.find(name + suffix); ok {
			return ino, true
		}
	}
	return 0, false
}
