// Package depmod makes the indexes of a directory of kernel modules: from all
// modules in lib/modules/KVER, the files modules.dep, modules.alias and so on,
// which modprobe, udev and others read.
//
// [Build] makes them in memory, [Result.Write] puts them in a directory. They are
// those that kmod's depmod writes, byte for byte, of kmod 34 or in the layout of
// kmod 30, whatever machine this runs on and whichever the modules are for.
//
// It differs where kmod's depends on chance or passes over a failure:
//
//   - Of several modules with one name and priority, the first path wins, and it
//     is reported. With kmod it is the first that the file system names.
//   - A module that cannot be read, is cut short, or is none is an error, as are
//     all of them together. kmod lists it as one without dependencies or aliases.
//   - Files are written all or not at all, and every failure is an error.
//   - Where modules.builtin or modules.builtin.modinfo is missing, the index of it
//     is a valid empty one. kmod writes a file of 0 bytes, which its own readers
//     refuse.
//
// Modules are read in parallel, and of a plain one only what is needed. Memory:
// about 70 MB for the 4,000 modules of a kernel of Debian, of which a Result keeps
// 20; a compressed module is held unpacked while it is read, one for each worker.
package depmod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"overmount/kmod"
)

// Options change what is indexed, and how. The zero value is depmod without
// arguments.
type Options struct {
	Config *Config // nil is that of a host without configuration
	Kver   string  // what the kernel versions of Config are matched against
	Layout kmod.Layout

	// Parallel is how many modules are read at a time; 0 means GOMAXPROCS.
	Parallel int

	// Symbols of the kernel, if not nil, make Build report the symbols that
	// nobody exports. They change no index.
	Symbols *Symbols

	// SymbolPrefix is dropped from the names of symbols, once; 0 is none.
	SymbolPrefix byte

	// Externals are further directories with modules. The indexes name these by
	// absolute path. One that does not exist is passed over.
	Externals []External

	// Files, if not nil, are the only modules that are indexed: paths in the
	// directory, or absolute ones in one of Externals.
	Files []string

	// Progress, if set, is called when a module has been read, with the number
	// of modules read so far and of all. It is called from several goroutines.
	Progress func(done, all int)
}

// An External is a directory of modules outside of lib/modules/KVER.
type External struct {
	Dir string // absolute
	FS  fs.FS  // of that directory
}

// A Module is one that is in the indexes.
type Module struct {
	// What the file says, less Exports and Needs, which are nil.
	*kmod.Module

	Path    string    // in the directory; absolute if it is external
	Name    string    // with _ for -
	Depends []*Module // modules whose symbols it needs, in the order of need
	Closure []*Module // all that it depends on, in the order of modules.dep: load the last first
	Mtime   time.Time
	Size    int64 // of the file

	rank int      // in module order
	via  []string // for each of Depends, a symbol
}

// Via returns, for each of Depends, the first symbol that m needs of it.
func (m *Module) Via() []string { return m.via }

// maxModules is what kmod's counters hold.
const maxModules = 65534

// A Result is what Build made of a directory.
type Result struct {
	Modules  []*Module // in module order: as modules.order has it, then others
	Files    []File    // in the order in which depmod writes them
	Warnings []Warning // in an order that depends only on the directory
}

// A File is an index file.
type File struct {
	Name string // without directory
	Data []byte
}

// A Warning is something that is amiss, but keeps no index from being made.
type Warning struct {
	Kind Kind
	Path string // of the module, or the file
	Text string
}

// String is Path and Text; of symbols it is as kmod's depmod has it.
func (w Warning) String() string {
	switch w.Kind {
	case Unresolved, Disagrees:
		return w.Path + " " + w.Text
	}
	return w.Path + ": " + w.Text
}

// A Kind is what a Warning is about.
type Kind int

const (
	Other      Kind = iota
	Missing         // a file of the directory that is input is not there, or is broken
	Duplicate       // modules of one name and priority
	Unresolved      // a needed symbol that neither the kernel nor a module exports
	Disagrees       // the CRC of a needed symbol is not that of the exported one
	BadAlias        // an alias with a bracket that does not match
	Repeated        // a key and value that an index has already
	Refused         // a module that can be read, but a kernel would not load
)

// Build reads all modules of a directory lib/modules/KVER and makes its indexes.
// Nothing is written. The files should be io.ReaderAt, as those of os.DirFS are;
// others are read whole.
//
// It fails if the directory or any module cannot be read, with all reasons
// joined, each naming the file; with a [*CycleError] if modules depend on each
// other in circles; and for what an index cannot hold: more than 65,534 modules,
// names and aliases that are not ASCII.
func Build(ctx context.Context, fsys fs.FS, o *Options) (*Result, error) {
	var opts Options
	if o != nil {
		opts = *o
	}
	if opts.Config == nil {
		opts.Config = &Config{}
	}
	if opts.Parallel <= 0 {
		opts.Parallel = runtime.GOMAXPROCS(0)
	}
	b := &builder{fsys: fsys, o: &opts}
	if err := b.find(ctx); err != nil {
		return nil, err
	}
	if err := b.read(ctx); err != nil {
		return nil, err
	}
	b.table = newTable(b.o.Symbols, b.Modules, b.o.SymbolPrefix)
	b.warn(b.table.connect(b.Modules, b.o.Symbols)...)
	if err := closures(b.Modules); err != nil {
		return nil, err
	}
	for _, m := range b.Modules {
		m.Exports, m.Needs = nil, nil
	}
	var err error
	if b.builtin, _, err = b.input("modules.builtin", "no module counts as built in"); err != nil {
		return nil, err
	}
	if b.builtinInfo, _, err = b.input("modules.builtin.modinfo", "aliases of built-in modules are not known"); err != nil {
		return nil, err
	}
	if err := b.index(); err != nil {
		return nil, err
	}
	return &b.Result, nil
}

// builder is the state of a Build.
type builder struct {
	Result
	fsys  fs.FS
	o     *Options
	files []file // of Modules
	table *table

	exported    []symbol // of all modules
	builtin     []byte   // modules.builtin
	builtinInfo []byte   // modules.builtin.modinfo
}

func (b *builder) warn(w ...Warning) { b.Warnings = append(b.Warnings, w...) }

// find lists the module files, in module order.
func (b *builder) find(ctx context.Context) error {
	var err error
	if b.o.Files != nil {
		b.files, err = namedFiles(b.fsys, b.o)
	} else {
		b.files, err = findModules(ctx, b.fsys, b.o)
	}
	if err != nil {
		return err
	}
	files, duplicates := choose(b.files, b.o.Config.ranks(b.o.Kver))
	if len(files) > maxModules {
		return fmt.Errorf("there are %d modules, the indexes hold at most %d", len(files), maxModules)
	}
	b.files = files
	b.warn(duplicates...)
	order, err := b.order()
	if err != nil {
		return err
	}
	sortModules(b.files, order, b.o.Layout)
	return nil
}

// order returns the lines of modules.order. Like kmod, it takes none of a file
// whose last line is not whole.
func (b *builder) order() ([]string, error) {
	data, ok, err := b.input("modules.order", "modules get an order of their own")
	if err != nil || !ok {
		return nil, err
	}
	if n := len(data); n > 0 && data[n-1] != '\n' {
		b.warn(Warning{Kind: Missing, Path: "modules.order", Text: "its last line is not whole, so it is not used"})
		return nil, nil
	}
	var lines []string
	for line := range bytes.Lines(data) {
		lines = append(lines, string(line[:len(line)-1]))
	}
	return lines, nil
}

// input reads a file of the directory beside the modules. If it is missing, that
// is reported.
func (b *builder) input(name, consequence string) (data []byte, ok bool, err error) {
	data, err = fs.ReadFile(b.fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		b.warn(Warning{Kind: Missing, Path: name, Text: "it is missing: " + consequence})
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read %s: %w", name, pathless(err))
	}
	return data, true, nil
}

// read reads the modules, several at a time.
func (b *builder) read(ctx context.Context) error {
	b.Modules = make([]*Module, len(b.files))
	errs := make([]error, len(b.files))
	var next, done atomic.Int64
	work := func() {
		for ctx.Err() == nil {
			i := int(next.Add(1)) - 1
			if i >= len(b.files) {
				return
			}
			b.Modules[i], errs[i] = readModule(b.files[i])
			if b.o.Progress != nil {
				b.o.Progress(int(done.Add(1)), len(b.files))
			}
		}
	}
	var wg sync.WaitGroup
	for range min(b.o.Parallel, len(b.files)) {
		wg.Go(work)
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.joined(errs); err != nil {
		return err
	}
	for i, m := range b.Modules {
		m.rank = i
		for _, text := range m.Warnings {
			b.warn(Warning{Kind: Refused, Path: m.Path, Text: text})
		}
	}
	return nil
}

// joined joins the errors of reading the files, in the order of paths.
func (b *builder) joined(errs []error) error {
	var failed []int
	for i, err := range errs {
		if err != nil {
			failed = append(failed, i)
		}
	}
	slices.SortFunc(failed, func(i, k int) int { return strings.Compare(b.files[i].path, b.files[k].path) })
	var sorted []error
	for _, i := range failed {
		sorted = append(sorted, errs[i])
	}
	return errors.Join(sorted...)
}

func readModule(f file) (*Module, error) {
	m, info, err := kmod.ReadModuleFile(f.fsys, f.name)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", f.path, pathless(err))
	}
	return &Module{Module: m, Path: f.path, Name: f.module(), Mtime: info.ModTime(), Size: info.Size()}, nil
}

// LayoutOf returns the layout of the indexes that a directory lib/modules/KVER
// has, and Kmod34 if it has none that can be read.
func LayoutOf(fsys fs.FS) kmod.Layout {
	data, err := fs.ReadFile(fsys, "modules.dep.bin")
	if err != nil {
		return kmod.Kmod34
	}
	return kmod.LayoutOf(data)
}
