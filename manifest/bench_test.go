package manifest

import (
	"fmt"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/block"
)

// writeFlat writes a manifest of n nodes, in directories of a hundred files of
// one block each.
func writeFlat(tb testing.TB, path string, n int) {
	tb.Helper()
	w, err := Create(tb.Context(), path, block.Zstd, nil, []Route{{Last: 255, URL: "dir:///objects"}})
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Abort()
	add := func(e Entry) {
		if err := w.Add(e); err != nil {
			tb.Fatal(err)
		}
	}
	add(Entry{Path: ".", Attr: Attr{Mode: unix.S_IFDIR | 0o755}})
	dir := ""
	for i := range n - 1 {
		if i%101 == 0 {
			dir = fmt.Sprintf("directory%06d", i)
			add(Entry{Path: dir, Attr: Attr{Mode: unix.S_IFDIR | 0o755}})
			continue
		}
		name := fmt.Sprintf("%s/module%06d.ko", dir, i)
		add(Entry{
			Path: name, Attr: Attr{Mode: unix.S_IFREG | 0o644, Size: 1000},
			Blocks: []block.Ref{{ID: block.Sum([]byte(name)), Key: block.KeyOf([]byte(name))}},
		})
	}
	if err := w.Commit(); err != nil {
		tb.Fatal(err)
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{5_000, 100_000, 1_000_000} {
		path := filepath.Join(b.TempDir(), "m.fl")
		writeFlat(b, path, n)
		b.Run(fmt.Sprintf("inodes=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			empty := liveHeap()
			var m *Manifest
			for b.Loop() {
				m = mustOpen(b, path)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/open")
			b.ReportMetric(float64(liveHeap()-empty)/float64(n), "live-B/inode")
			runtime.KeepAlive(m)
		})
	}
}

func liveHeap() int64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

func BenchmarkCreate(b *testing.B) {
	const n = 100_000
	path := filepath.Join(b.TempDir(), "m.fl")
	for b.Loop() {
		writeFlat(b, path, n)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/n, "µs/inode")
}

func BenchmarkLookup(b *testing.B) {
	path := filepath.Join(b.TempDir(), "m.fl")
	writeFlat(b, path, 100_000)
	m := mustOpen(b, path)
	dirs := m.Children(Root)
	i := 0
	for b.Loop() {
		dir := dirs[i%len(dirs)]
		m.Lookup(dir, "module000050.ko")
		i++
	}
}
