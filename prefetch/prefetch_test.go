package prefetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"overmount/block"
	"overmount/bootpack"
	"overmount/fusefs"
	"overmount/internal/testenv"
	"overmount/manifest"
	"overmount/prefetch"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree"
	"overmount/tree/treetest"
)

// A world is a mount with a prefetcher, on a store that can fail.
type world struct {
	*prefetch.Prefetcher
	tb  testing.TB
	t   *tree.Tree
	src *storetest.Faulty
	dir string
}

// mounted mounts files, and unmounts them when the test is over.
func mounted(tb testing.TB, o prefetch.Options, files ...treetest.File) *world {
	tb.Helper()
	testenv.FUSE(tb)
	m, mem := treetest.Build(tb, block.Zstd, files...)
	w := &world{tb: tb, dir: tb.TempDir(), src: storetest.NewFaulty(mem)}
	w.t = tree.New(m, store.Retry(w.src, nil), nil)
	w.Prefetcher = prefetch.New(w.t, &o)
	s, err := fusefs.Mount(tb.Context(), w.dir, w.t, &fusefs.Options{Watcher: w})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	w.Use(s)
	run.Go(func() { w.Run(ctx) })
	tb.Cleanup(func() {
		cancel()
		run.Wait()
		if err := s.Unmount(); err != nil {
			tb.Error(err)
			s.UnmountLazy()
		}
		s.Wait()
	})
	return w
}

// cat reads files with another program, and returns what it prints.
func (w *world) cat(names ...string) []byte {
	w.tb.Helper()
	ctx, cancel := context.WithTimeout(w.tb.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "cat", names...)
	cmd.Dir = w.dir
	out, err := cmd.Output()
	if err != nil {
		w.tb.Errorf("cat %v: %v", names, err)
	}
	return out
}

// await returns when the statistics are as wanted.
func (w *world) await(what string, done func(prefetch.Stats) bool) {
	w.tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !done(w.Stats()) {
		select {
		case <-tick.C:
		case <-deadline:
			w.tb.Fatalf("%s did not come about within 30 s: %+v", what, w.Stats())
		}
	}
}

func (w *world) requested(name string) int {
	w.tb.Helper()
	ino, err := w.t.Manifest().Find(name)
	if err != nil {
		w.tb.Fatal(err)
	}
	n := 0
	for _, ref := range w.t.Manifest().Blocks(ino) {
		n += w.src.Requests(ref.ID)
	}
	return n
}

// modules is a tree in which top needs mid, that needs base; top wants soft, and
// crc, which is an alias of crc32c; other has nothing to do with them.
func modules() []treetest.File {
	return []treetest.File{
		mod("base", 3000, manifest.Module{Firmware: []string{"base.fw"}}),
		mod("crc32c", 100, manifest.Module{Aliases: []string{"crypto-crc", "crc"}}),
		mod("mid", block.Size+1, manifest.Module{Depends: []string{"base"}}),
		mod("other", 2000, manifest.Module{}),
		mod("soft", 4096, manifest.Module{Softdeps: []string{"pre: top"}}), // a circle
		mod("top", 3*block.Size+5, manifest.Module{Depends: []string{"mid"}, Softdeps: []string{"post: other", "pre: soft crc nosuch"}, Firmware: []string{"top-1.fw", "top-2.fw"}}),
	}
}

func mod(name string, size int, m manifest.Module) treetest.File {
	m.Name = name
	return treetest.File{Path: "kernel/" + name + ".ko", Data: treetest.Random(uint64(name[0])+uint64(size), size), Module: &m}
}

type heard struct{ names chan []string }

func (h heard) Declared(names []string) { h.names <- names }

// Reading the first bytes of a module fetches the rest of it and what it needs, to
// where reading it makes no request; and tells of the firmware.
func TestReadingAModuleFetchesItsClosure(t *testing.T) {
	testenv.PageCache(t, func() error { return readClosure(t) })
}

// readClosure reads a module and then its closure, and fails if the latter made
// requests.
func readClosure(t *testing.T) error {
	t.Helper()
	h := heard{make(chan []string, 10)}
	files := modules()
	w := mounted(t, prefetch.Options{Closure: true, Firmware: h}, files...)
	exec.Command("find", w.dir, "-ls").Run()
	if s := w.Stats(); s != (prefetch.Stats{}) {
		t.Errorf("Stats after find = %+v, want nothing", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := exec.CommandContext(ctx, "head", "-c", "1", filepath.Join(w.dir, "kernel/top.ko")).Run(); err != nil {
		t.Fatal(err)
	}
	// base, crc32c, mid's two, soft; and of top what the kernel has not read ahead.
	w.await("the closure", func(s prefetch.Stats) bool { return s.Prefetched+s.Blocks == 9 })
	if got := [][]string{<-h.names, <-h.names}; !slices.ContainsFunc(got, func(n []string) bool { return len(n) == 2 }) {
		t.Errorf("declared firmware %v, want that of top and of base", got)
	}
	if got := w.requested("kernel/other.ko"); got != 0 {
		t.Errorf("a module that is not needed was requested %d times", got)
	}
	for _, f := range files[:5] {
		if got, want := w.requested(f.Path), (len(f.Data)+block.Size-1)/block.Size; got > want {
			t.Errorf("%s was requested %d times, want %d, each block once", f.Path, got, want)
		}
	}
	reads, requests := w.Stats().Reads, w.src.Total()
	for _, f := range files {
		if f.Path == "kernel/other.ko" || f.Path == "kernel/top.ko" {
			continue
		}
		if !bytes.Equal(w.cat(f.Path), f.Data) {
			t.Errorf("%s has other content than was packed", f.Path)
		}
	}
	s, asked := w.Stats(), w.src.Total()-requests
	if !bytes.Equal(w.cat("kernel/top.ko"), files[5].Data) {
		t.Error("top.ko has other content than was packed")
	}
	if s.Closures != 5 {
		t.Errorf("Stats = %+v, want 5 closures", s)
	}
	if got := w.src.MaxConcurrent(); got > 18 {
		t.Errorf("%d requests at a time, want the limit of 16 and readers", got)
	}
	if s.Reads != reads || asked != 0 {
		return fmt.Errorf("reading the closure made %d READs and %d requests, want none; Stats %+v", s.Reads-reads, asked, s)
	}
	return nil
}

func TestNoClosureUnlessAsked(t *testing.T) {
	w := mounted(t, prefetch.Options{}, modules()...)
	w.cat("kernel/top.ko")
	if s := w.Stats(); s.Prefetched != 0 || s.Closures != 0 || s.Files != 1 || s.Blocks != 4 {
		t.Errorf("Stats = %+v, want only the file that was read", s)
	}
}

func TestFiles(t *testing.T) {
	testenv.PageCache(t, func() error { return readFiles(t) })
}

// readFiles fetches files and then reads them, and fails if the latter made READs.
func readFiles(t *testing.T) error {
	t.Helper()
	files := append(modules(), treetest.File{Path: "kernel/zlink.ko", Mode: 0o120777, Target: "other.ko"})
	w := mounted(t, prefetch.Options{}, files...)
	names := []string{"kernel/zlink.ko", "kernel/top.ko", "kernel/nosuch.ko", "kernel", "../etc/passwd", "kernel/./mid.ko"}
	got, err := w.Files(t.Context(), names)
	if want := (prefetch.Result{Files: 3, Bytes: 2000 + 3*block.Size + 5 + block.Size + 1, Missing: 3}); got != want || err != nil {
		t.Errorf("Files = %+v, %v, want %+v", got, err, want)
	}
	if s := w.Stats(); s.Stored != 7 || w.src.Total() != 7 {
		t.Errorf("after Files: %+v, %d requests, want 7 blocks stored", s, w.src.Total())
	}
	if !bytes.Equal(w.cat("kernel/top.ko", "kernel/mid.ko", "kernel/zlink.ko"), slices.Concat(files[5].Data, files[2].Data, files[3].Data)) {
		t.Error("what was fetched ahead is not what was packed")
	}
	s, requests := w.Stats(), w.src.Total()
	if got, err := w.Files(t.Context(), names); err != nil || got.Failed != 0 || w.src.Total() != requests {
		t.Errorf("Files again = %+v, %v with %d requests, want none", got, err, w.src.Total()-requests)
	}
	if s.Reads != 0 || requests != 7 {
		return fmt.Errorf("reading what Files fetched: %+v, %d requests, want no READ", s, requests-7)
	}
	return nil
}

// With the store gone, prefetch gives up at once, and silently; readers do not.
func TestFilesGivesUp(t *testing.T) {
	w := mounted(t, prefetch.Options{}, modules()...)
	down := storetest.Fail(errors.New("connection refused"))
	w.src.Always(down)
	start := time.Now()
	got, err := w.Files(t.Context(), []string{"kernel/top.ko", "kernel/mid.ko"})
	if took := time.Since(start); err != nil || got.Failed != 6 || w.src.Total() != 6 || took > 10*time.Second {
		t.Errorf("Files = %+v, %v after %d requests in %v, want 6 failures, with one request each", got, err, w.src.Total(), took)
	}
	if s := w.Stats(); s.GivenUp != 6 || s.Prefetched != 0 {
		t.Errorf("Stats = %+v, want 6 given up", s)
	}
	w.src.Always(nil)
	w.src.Next(down, down)
	if got := w.cat("kernel/base.ko"); len(got) != 3000 {
		t.Errorf("cat after the outage = %d bytes, want all", len(got))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Files(ctx, []string{"kernel/other.ko"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Files under a context that has ended = %v, want context.Canceled", err)
	}
}

func TestDeclared(t *testing.T) {
	var files []treetest.File
	for i, size := range []int{100, 200, 300, 400, 500, 1 << 20} {
		files = append(files, treetest.File{Path: fmt.Sprintf("v/%d.fw", i), Data: treetest.Random(uint64(i), size)})
	}
	files = append(files, treetest.File{Path: "v/x.bin.zst", Data: []byte("packed")}, treetest.File{Path: "w", Mode: 0o120777, Target: "v/0.fw"})
	w := mounted(t, prefetch.Options{}, files...)
	w.Declared([]string{"v/1.fw", "v/2.fw", "v/3.fw", "v/4.fw", "v/0.fw"}) // too many
	w.Declared([]string{"v/5.fw", "v/4.fw"})                               // too much
	w.Declared([]string{"v/*.fw", "nosuch", "../../v/1.fw"})
	w.Declared([]string{"v/0.fw", "w", "v/x.bin", "v/1.fw", "v/2.fw", "v/nosuch"})
	w.await("the firmware", func(s prefetch.Stats) bool { return s.Stored == 4 })
	if got := w.src.Total(); got != 4 {
		t.Errorf("%d requests, want 4", got)
	}
}

// A record has what was read, in order; to see it all, nothing may be read past the
// mount.
func TestRecord(t *testing.T) {
	w := mounted(t, prefetch.Options{Closure: true, Record: true}, modules()...)
	if _, err := w.Files(t.Context(), []string{"kernel/mid.ko"}); err != nil {
		t.Fatal(err)
	}
	w.cat("kernel/other.ko", "kernel/mid.ko")
	got := w.Accesses()
	type short struct {
		path  string
		block int
		bytes int64
		hit   bool
	}
	var seen []short
	for _, a := range got {
		seen = append(seen, short{a.Path, a.Block, a.Bytes, a.Hit})
	}
	want := []short{{"kernel/other.ko", 0, 2000, false}, {"kernel/mid.ko", 0, block.Size, true}, {"kernel/mid.ko", 1, 1, true}}
	if !slices.Equal(seen, want) {
		t.Errorf("Accesses = %v, want %v", seen, want)
	}
	if s := w.Stats(); s.Stored != 0 || s.Hits != 2 || s.Waited == 0 || w.requested("kernel/mid.ko") != 2 {
		t.Errorf("Stats = %+v, want 2 hits, and nothing stored", s)
	}
}

// What each file has cost: first those that were read, in order, then the others.
func TestByFile(t *testing.T) {
	// With a record nothing is put into the page cache, so that all reads are seen.
	w := mounted(t, prefetch.Options{Record: true}, modules()...)
	if _, err := w.Files(t.Context(), []string{"kernel/soft.ko", "kernel/mid.ko"}); err != nil {
		t.Fatal(err)
	}
	w.cat("kernel/other.ko", "kernel/mid.ko")
	var got []prefetch.FileStats
	var names []string
	var waited time.Duration
	for _, f := range w.ByFile() {
		names = append(names, w.t.Manifest().Name(f.Ino))
		waited += f.Waited
		if f.Reads > 1 {
			f.Reads = 1 // how many the kernel makes of one is its own affair
		}
		f.Ino, f.Waited = 0, 0
		got = append(got, f)
	}
	if want := []string{"other.ko", "mid.ko", "soft.ko"}; !slices.Equal(names, want) {
		t.Errorf("ByFile has %q, want %q", names, want)
	}
	want := []prefetch.FileStats{
		{Reads: 1, ReadBytes: 2000, Blocks: 1}, {Reads: 1, ReadBytes: block.Size + 1, Blocks: 2, Hits: 2, Prefetched: 2}, {Prefetched: 1},
	}
	if !slices.Equal(got, want) {
		t.Errorf("ByFile = %+v, want %+v", got, want)
	}
	if s := w.Stats(); s.Files != 2 || s.Waited != waited || waited == 0 {
		t.Errorf("Stats = %+v, want two files, and %v of waiting", s, waited)
	}
}

// A pack of one boot's record makes the next one read nothing.
func TestPack(t *testing.T) {
	files := append(modules(), treetest.File{Path: "kernel/twin.ko", Data: modules()[3].Data})
	first := mounted(t, prefetch.Options{Record: true}, files...)
	first.cat("kernel/top.ko", "kernel/other.ko")
	var pack bytes.Buffer
	s, err := bootpack.Write(t.Context(), &pack, first.t.Manifest(), first.Accesses(), first.t.Prefetch)
	if err != nil || s.Members != 5 {
		t.Fatalf("Write = %+v, %v, want 5 members", s, err)
	}
	testenv.PageCache(t, func() error { return readPacked(t, pack.Bytes(), files) })
}

// readPacked takes a pack of files and then reads them, and fails if that made READs.
func readPacked(t *testing.T, pack []byte, files []treetest.File) error {
	t.Helper()
	w := mounted(t, prefetch.Options{Closure: true}, files...)
	if n, err := w.Pack(t.Context(), bytes.NewReader(pack)); n != 5 || err != nil {
		t.Errorf("Pack = %d, %v, want 5 blocks", n, err)
	}
	if s := w.Stats(); s.Stored != 6 || w.src.Total() != 0 {
		t.Errorf("after Pack: %+v, %d requests, want 6 blocks stored and no request", s, w.src.Total())
	}
	if !bytes.Equal(w.cat("kernel/top.ko", "kernel/other.ko", "kernel/twin.ko"), slices.Concat(files[5].Data, files[3].Data, files[3].Data)) {
		t.Error("what came with the pack is not what was packed")
	}
	if s := w.Stats(); s.Reads != 0 || w.src.Total() != 0 {
		return fmt.Errorf("reading what was in the pack: %+v, %d requests, want no READ and no request", s, w.src.Total())
	}
	return nil
}

// What comes before a pack is cut short is of use, and what waited for it goes on.
func TestPackCutShort(t *testing.T) {
	files := modules()
	first := mounted(t, prefetch.Options{Record: true}, files...)
	first.cat("kernel/other.ko", "kernel/top.ko")
	var pack bytes.Buffer
	if _, err := bootpack.Write(t.Context(), &pack, first.t.Manifest(), first.Accesses(), first.t.Prefetch); err != nil {
		t.Fatal(err)
	}
	w := mounted(t, prefetch.Options{Closure: true}, files...)
	r, feed := io.Pipe()
	type result struct {
		blocks int
		err    error
	}
	done := make(chan result)
	go func() {
		n, err := w.Pack(t.Context(), r)
		done <- result{n, err}
	}()
	if _, err := feed.Write(pack.Bytes()[:pack.Len()/2]); err != nil {
		t.Fatal(err)
	}
	w.cat("kernel/mid.ko") // whose closure waits
	requests := w.src.Total()
	feed.Close()
	if got := <-done; got.blocks == 0 || !errors.Is(got.err, bootpack.ErrCorrupt) {
		t.Errorf("Pack cut short = %+v, want some blocks and ErrCorrupt", got)
	}
	w.await("the closure of mid", func(prefetch.Stats) bool { return w.requested("kernel/base.ko") == 1 })
	if requests != 2 {
		t.Errorf("%d requests while the pack came in, want the 2 of the reader", requests)
	}
	if !bytes.Equal(w.cat("kernel/top.ko", "kernel/other.ko"), slices.Concat(files[5].Data, files[3].Data)) {
		t.Error("what came with the pack is not what was packed")
	}
}
