// Package pack turns a file tree into objects in a store and a manifest, and
// back.
//
// The tree is an fs.FS whose files say more than their name and content. [Dir]
// is one for a directory. Any other does as well, if fs.FileInfo.Sys gives a
// *syscall.Stat_t or a *tar.Header; without, owner and group are 0. Symlinks
// need fs.ReadLinkFS, extended attributes need [XattrFS].
//
// [Run] walks the tree once, then works on blocks in parallel: read, hash,
// compress, encrypt, hash, put. A block that occurred before in the run is not
// sealed again; an object that the store has is not written again. When every
// object is in the store, and lasts, the manifest appears, whole. When anything
// goes wrong before that, it does not appear.
//
// The same tree and options give the same manifest, on every file system and
// host: entries are sorted, and what depends on the place of packing is left
// out (times of inode changes, sizes of directories, inode numbers).
//
// [Unpack] writes the tree of a manifest to a directory. [Copy] copies its objects,
// sealed as they are, to another store.
//
// Memory: about 600 KiB for each block under way, some dozens, and about 300
// bytes for each file of the tree.
package pack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"overmount/block"
	"overmount/internal/atomicfile"
	"overmount/manifest"
	"overmount/store"
)

// Options change how a tree is packed. The zero value packs everything with
// zstd.
type Options struct {
	Codec  block.Codec
	Tags   map[string]string
	Routes []manifest.Route // where readers of the manifest will look

	// Exclude leaves out what any of these patterns matches, and all below it.
	// Patterns are those of doublestar: "*" within a name, "**" across
	// directories. One without a slash is matched against each name, others
	// against the path from the root of the tree.
	Exclude []string

	// Newest, if not zero, is the latest time of modification that is written;
	// later ones become it. It is what SOURCE_DATE_EPOCH asks for.
	Newest time.Time

	// Inline, if set, says of which regular files the manifest carries the
	// content itself, beside the store. It is for small files that are needed
	// where no store can be reached.
	Inline func(name string) bool

	// Modules are the kernel modules among the files, by path, to be noted in
	// the manifest.
	Modules map[string]*manifest.Module

	// Puts is how many objects are on their way to the store at a time; 0
	// means 16.
	Puts int

	// Progress, if set, is told of the state of work whenever a file is done
	// and when the whole is. It is called from several goroutines.
	Progress func(Summary)
}

// A Summary tells what was done, or how far the work is.
type Summary struct {
	Files    int64 // regular files; hard links to them are not counted again
	Others   int64 // directories, symlinks, devices and further names of files
	Bytes    int64 // content of the regular files
	DoneFile int64 // of Files
	DoneByte int64 // of Bytes

	Blocks      int64 // blocks of the regular files
	NewObjects  int64 // objects that the store did not have
	NewBytes    int64 // their length
	Objects     int64 // different objects of the tree
	ObjectBytes int64 // their length
}

// Run packs src: objects go to dst, the manifest to the file at path.
//
// It fails for a name that is not UTF-8, for a file that cannot be read or
// changes while it is read, and for whatever the store or the disk refuses. The
// error names the file or the object.
func Run(ctx context.Context, src fs.FS, dst store.Writer, path string, opts *Options) (Summary, error) {
	if opts == nil {
		opts = &Options{}
	}
	if err := writable(path); err != nil {
		return Summary{}, fmt.Errorf("create manifest %s: %w", path, pathless(err))
	}
	src, err := Excluding(src, opts.Exclude)
	if err != nil {
		return Summary{}, err
	}
	p := &packer{src: src, dst: dst, opts: opts, known: map[block.Key]*sealed{}}
	if err := p.walk(ctx); err != nil {
		return p.summary(), err
	}
	if err := p.learn(ctx); err != nil {
		return p.summary(), err
	}
	if err := p.content(ctx); err != nil {
		return p.summary(), err
	}
	return p.summary(), p.finish(ctx, path)
}

// finish makes the objects last, and writes the manifest meanwhile. The manifest
// gets its name after that.
func (p *packer) finish(ctx context.Context, path string) error {
	synced := make(chan error, 1)
	go func() { synced <- p.sync(ctx) }()
	w, err := p.writeManifest(ctx, path)
	if serr := <-synced; serr != nil {
		err = errors.Join(fmt.Errorf("make the objects last: %w", serr), err)
	}
	if w == nil {
		return err
	}
	defer w.Abort()
	if err != nil {
		return err
	}
	return w.Commit()
}

// learn lets the store list what it has, unless that would cost more than to ask
// for each object: a list has about a thousand for the price of one.
func (p *packer) learn(ctx context.Context) error {
	const each = 100
	l, ok := p.dst.(store.Learner)
	if !ok || p.blocks == 0 {
		return nil
	}
	_, err := l.Learn(ctx, int(min(p.blocks, 1<<20))*each)
	return err
}

func (p *packer) sync(ctx context.Context) error {
	if s, ok := p.dst.(store.Syncer); ok {
		return s.Sync(ctx)
	}
	return nil
}

// writable tells early whether the manifest can be made at its place.
func writable(path string) error {
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return err
	}
	f.Abort()
	return nil
}

type packer struct {
	src  fs.FS
	dst  store.Writer
	opts *Options

	entries []*entry

	mu    sync.Mutex
	known map[block.Key]*sealed

	files, others, bytes, blocks         int64
	doneFiles, doneBytes                 atomic.Int64
	newObjects, newBytes, objects, total atomic.Int64
}

// entry is a node of the tree. blocks are filled in while content is read.
type entry struct {
	manifest.Entry
	info   fs.FileInfo
	blocks []sealed
	first  *entry // of which it is another name
}

// sealed is a block of the tree. Its ref is known once it is sealed, or that of
// the same one is which occurred before.
type sealed struct {
	ref  block.Ref
	same *sealed
}

func (p *packer) summary() Summary {
	return Summary{
		Files: p.files, Others: p.others, Bytes: p.bytes, Blocks: p.blocks,
		DoneFile: p.doneFiles.Load(), DoneByte: p.doneBytes.Load(),
		NewObjects: p.newObjects.Load(), NewBytes: p.newBytes.Load(),
		Objects: p.objects.Load(), ObjectBytes: p.total.Load(),
	}
}

func (p *packer) progress() {
	if p.opts.Progress != nil {
		p.opts.Progress(p.summary())
	}
}

// plain is a block on its way from a file to be sealed, object one on its way to
// the store.
type plain struct {
	to  *sealed
	buf *[]byte
}

type object struct {
	id  block.ID
	buf *[]byte
}

// content reads, seals and puts the content of all files. Three stages run at
// the same time, so that a slow disk or store does not keep the processor idle:
// readers, sealers and putters.
func (p *packer) content(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var (
		files   = make(chan *entry)
		plains  = make(chan plain, runtime.GOMAXPROCS(0))
		objects = make(chan object, runtime.GOMAXPROCS(0))
	)
	g.Go(func() error {
		defer close(files)
		for _, e := range p.entries {
			if !e.Attr.IsRegular() || e.first != nil {
				continue
			}
			select {
			case files <- e:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	stage(g, 2, func() { close(plains) }, func() error {
		for e := range files {
			if err := p.readFile(ctx, e, plains); err != nil {
				return err
			}
		}
		return nil
	})
	stage(g, runtime.GOMAXPROCS(0), func() { close(objects) }, func() error {
		for b := range plains {
			if err := p.seal(ctx, b, objects); err != nil {
				return err
			}
		}
		return nil
	})
	puts := p.opts.Puts
	if puts == 0 {
		puts = 16
	}
	stage(g, puts, func() {}, func() error {
		for o := range objects {
			if err := p.put(ctx, o); err != nil {
				return err
			}
		}
		return nil
	})
	err := g.Wait()
	p.progress()
	return err
}

// stage starts n workers and calls done when the last one has ended.
func stage(g *errgroup.Group, n int, done func(), work func() error) {
	var left atomic.Int64
	left.Store(int64(n))
	for range n {
		g.Go(func() error {
			defer func() {
				if left.Add(-1) == 0 {
					done()
				}
			}()
			return work()
		})
	}
}

var plainBufs = sync.Pool{New: func() any {
	b := make([]byte, block.Size)
	return &b
}}

var objectBufs = sync.Pool{New: func() any {
	b := make([]byte, 0, block.MaxObject)
	return &b
}}

// errChanged says that a file is not what it was when the tree was walked.
var errChanged = errors.New("it changed while it was being packed; pack again when nothing writes to it")

// readFile sends the blocks of a file to be sealed.
func (p *packer) readFile(ctx context.Context, e *entry, plains chan<- plain) error {
	f, err := p.src.Open(e.Path)
	if err != nil {
		return fmt.Errorf("read %s: %w", e.Path, pathless(err))
	}
	defer f.Close()
	if err := p.readBlocks(ctx, f, e, plains); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("read %s: %w", e.Path, pathless(err))
	}
	p.doneFiles.Add(1)
	p.progress()
	return nil
}

// pathless takes off the path that an *fs.PathError or *os.LinkError repeats.
func pathless(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	if le, ok := errors.AsType[*os.LinkError](err); ok {
		return le.Err
	}
	return err
}

func (p *packer) readBlocks(ctx context.Context, f fs.File, e *entry, plains chan<- plain) error {
	if err := unchanged(f, e.info); err != nil {
		return err
	}
	for i, left := 0, e.Attr.Size; left > 0; i++ {
		buf := plainBufs.Get().(*[]byte)
		*buf = (*buf)[:min(left, block.Size)]
		// These are ReadFull's own errors. One that wraps them is of what decompresses the file.
		if _, err := io.ReadFull(f, *buf); err == io.EOF || err == io.ErrUnexpectedEOF {
			return errChanged
		} else if err != nil {
			return err
		}
		left -= int64(len(*buf))
		select {
		case plains <- plain{to: &e.blocks[i], buf: buf}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var more [1]byte
	if n, err := f.Read(more[:]); n > 0 {
		return errChanged
	} else if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return unchanged(f, e.info)
}

// seal seals a block and sends the object to be put, unless the run has met the
// block before.
func (p *packer) seal(ctx context.Context, b plain, objects chan<- object) error {
	defer plainBufs.Put(b.buf)
	p.doneBytes.Add(int64(len(*b.buf)))
	key := block.KeyOf(*b.buf)
	if p.repeats(key, b.to) {
		return nil
	}
	buf := objectBufs.Get().(*[]byte)
	id, sealedBytes, err := block.Seal((*buf)[:0], p.opts.Codec, key, *b.buf)
	if err != nil {
		return err
	}
	*buf = sealedBytes
	b.to.ref = block.Ref{ID: id, Key: key}
	p.objects.Add(1)
	p.total.Add(int64(len(sealedBytes)))
	select {
	case objects <- object{id: id, buf: buf}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// repeats reports whether a block with this key is already being sealed, and
// notes where.
func (p *packer) repeats(key block.Key, b *sealed) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, ok := p.known[key]
	if ok {
		b.same = first
	} else {
		p.known[key] = b
	}
	return ok
}

func (p *packer) put(ctx context.Context, o object) error {
	defer objectBufs.Put(o.buf)
	stored, err := p.dst.Put(ctx, o.id, *o.buf)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("put object %v: %w", o.id, err)
	}
	if stored {
		p.newObjects.Add(1)
		p.newBytes.Add(int64(len(*o.buf)))
	}
	return nil
}

// writeManifest writes the manifest up to its name. With an error it returns nil.
func (p *packer) writeManifest(ctx context.Context, path string) (*manifest.Writer, error) {
	w, err := manifest.Create(ctx, path, p.opts.Codec, p.opts.Tags, p.opts.Routes)
	if err != nil {
		return nil, err
	}
	for _, e := range p.entries {
		content := e
		if e.first != nil {
			content = e.first
		}
		e.Blocks = refs(content.blocks)
		e.Module = p.opts.Modules[e.Path]
		if err := w.Add(e.Entry); err != nil {
			w.Abort()
			return nil, err
		}
		if p.opts.Inline == nil || !e.Attr.IsRegular() || !p.opts.Inline(e.Path) {
			continue
		}
		if err := p.carry(w, e); err != nil {
			w.Abort()
			return nil, fmt.Errorf("read %s: %w", e.Path, pathless(err))
		}
	}
	return w, nil
}

// carry puts the objects of a file into the manifest. It seals the blocks again,
// since they may have been sealed as another file's; the result is the same.
func (p *packer) carry(w *manifest.Writer, e *entry) error {
	f, err := p.src.Open(e.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, block.Size)
	for i, ref := range e.Blocks {
		plain := buf[:min(block.Size, e.Attr.Size-int64(i)*block.Size)]
		if _, err := io.ReadFull(f, plain); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		id, object, err := block.Seal(nil, p.opts.Codec, block.KeyOf(plain), plain)
		if err != nil {
			return err
		}
		if id != ref.ID {
			return errChanged
		}
		if err := w.AddObject(object); err != nil {
			return err
		}
	}
	return nil
}

func refs(blocks []sealed) []block.Ref {
	var r []block.Ref
	for i := range blocks {
		b := &blocks[i]
		if b.same != nil {
			b = b.same
		}
		r = append(r, b.ref)
	}
	return r
}
