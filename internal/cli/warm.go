package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"overmount/bootpack"
	"overmount/coldplug"
	"overmount/internal/atomicfile"
	"overmount/prefetch"
	"overmount/tree"
)

// warmFlags say what a mount fetches before it is asked for, and what it notes for
// the next time.
type warmFlags struct {
	prefetch string
	record   string
	pack     string
	class    string // of this machine, before drivers have found more devices
}

func (f *warmFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.prefetch, "prefetch", "", "when a module is read, fetch what it needs: closure or none (default closure, for a manifest of kernel modules)")
	flags.StringVar(&f.record, "record", "", "write what was read to `FILE`, at SIGUSR1 and at the end; see \"overmount profile\"")
	flags.StringVar(&f.pack, "pack", "", "boot pack to begin with: a `FILE`, path or URL, or auto, for the one beside the manifest that is for this machine")
}

func (f *warmFlags) check(cmd *cobra.Command) error {
	switch f.prefetch {
	case "", "closure", "none":
	default:
		return usagef(cmd, "--prefetch %q: want closure or none", f.prefetch)
	}
	if f.record == "" {
		return nil
	}
	// The end of the mount may find another working directory.
	abs, err := filepath.Abs(f.record)
	if err != nil {
		return err
	}
	f.record = abs
	return recordable(abs)
}

// recordable fails for a record that could not be written in the end, when all has
// been read.
func recordable(file string) error {
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("record %s: it is no file", file)
	}
	if _, err := os.Stat(filepath.Dir(file)); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

func (f *warmFlags) prefetcher(t *tree.Tree) *prefetch.Prefetcher {
	return prefetch.New(t, &prefetch.Options{
		Closure: f.prefetch == "closure" || f.prefetch == "" && t.Manifest().HasModules(),
		Record:  f.record != "",
	})
}

// warm serves the prefetching of a mount, until stop is called, which returns when
// nothing of it runs any more.
func (f *warmFlags) warm(ctx context.Context, get getter, meta, kver string, p *prefetch.Prefetcher, kernel prefetch.PageCache, log *slog.Logger) (stop func() error) {
	f.class = class()
	ctx, cancel := context.WithCancel(ctx)
	p.Use(kernel)
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx) })
	if f.pack != "" {
		running.Go(func() { f.unpack(ctx, get, meta, kver, p, log) })
	}
	if f.record != "" {
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, unix.SIGUSR1)
		running.Go(func() {
			defer signal.Stop(asked)
			f.recordWhen(ctx, asked, p, log)
		})
	}
	return func() error {
		cancel()
		running.Wait()
		return f.writeRecord(p)
	}
}

// unpack takes a boot pack, the first there is, and returns how many blocks it had.
func (f *warmFlags) unpack(ctx context.Context, get getter, meta, kver string, p *prefetch.Prefetcher, log *slog.Logger) int {
	files := []string{f.pack}
	if f.pack == "auto" {
		files = packsOf(meta, kver, f.class)
	}
	for _, file := range files {
		blocks, err := takePack(ctx, get, file, p)
		switch {
		case err == nil:
			log.Info("the boot pack is in", "pack", shown(file), "blocks", blocks)
			return blocks
		case ctx.Err() != nil:
			return blocks
		case f.pack == "auto" && errors.Is(err, fs.ErrNotExist):
			log.Debug("there is no such boot pack", "pack", shown(file))
		default:
			log.Warn("the boot pack is of no further use", "pack", shown(file), "blocks", blocks, "err", err)
			return blocks
		}
	}
	return 0
}

// packIdle is how long a boot pack may pause on its way.
const packIdle = time.Minute

// takePack takes a boot pack while it comes in.
func takePack(ctx context.Context, get getter, file string, p *prefetch.Prefetcher) (blocks int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	defer r.Close()
	idle := time.AfterFunc(packIdle, cancel)
	defer idle.Stop()
	go func() { w.CloseWithError(get(ctx, &awaited{w, idle}, file, bootpack.MaxSize)) }()
	return p.Pack(ctx, r)
}

// awaited is where something is written for which a timer runs.
type awaited struct {
	io.Writer
	idle *time.Timer
}

func (a *awaited) Write(p []byte) (int, error) {
	a.idle.Reset(packIdle)
	return a.Writer.Write(p)
}

// recordWhen writes the record whenever it is asked to.
func (f *warmFlags) recordWhen(ctx context.Context, asked <-chan os.Signal, p *prefetch.Prefetcher, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
		}
		if err := f.writeRecord(p); err != nil {
			log.Error("the record could not be written", "err", err)
		}
	}
}

func (f *warmFlags) writeRecord(p *prefetch.Prefetcher) error {
	if f.record == "" {
		return nil
	}
	var b bytes.Buffer
	err := bootpack.WriteRecord(&b, f.class, p.Accesses())
	if err == nil {
		err = atomicfile.Write(f.record, b.Bytes(), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// class is that of this machine. As drivers find devices on their buses, it changes:
// the one that counts is that at the time of mounting.
func class() string {
	machine, err := coldplug.Scan(os.DirFS("/sys"))
	if err != nil {
		return bootpack.AnyClass
	}
	var modaliases []string
	for _, d := range machine.Devices {
		modaliases = append(modaliases, d.Modalias)
	}
	return bootpack.Class(modaliases)
}

// logWarmth says what prefetching was good for.
func logWarmth(p *prefetch.Prefetcher, log *slog.Logger) {
	s := p.Stats()
	log.Info("read", "files", s.Files, "blocks", s.Blocks, "bytes", s.ReadBytes, "failed", s.Failed, "waited", s.Waited, "hits", s.Hits,
		"prefetched", s.Prefetched, "stored", s.Stored, "given up", s.GivenUp)
}
