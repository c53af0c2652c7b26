package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
)

var sizes = []struct {
	name  string
	nodes int
}{{"5k", 5_000}, {"100k", 100_000}, {"1M", 1_000_000}}

// BenchmarkOpen opens a manifest: what a mount waits for before it is there. The
// baseline is to read the file.
func BenchmarkOpen(b *testing.B) {
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "m.fl")
			writeFlat(b, path, size.nodes)
			ours := func() []float64 {
				return timed(b, func() error {
					m, err := manifest.Open(b.Context(), path)
					if err == nil && m.Len() != size.nodes {
						return fmt.Errorf("%d nodes, want %d", m.Len(), size.nodes)
					}
					return err
				})
			}
			baseline := func() []float64 {
				return timed(b, func() error {
					_, err := os.ReadFile(path)
					return err
				})
			}
			our, base := alternate(b, ours, baseline)
			report(b, our[0], base[0], "ms")
		})
	}
}

// BenchmarkMemory mounts a manifest and looks at the memory of the daemon when
// the mount is ready. The baseline is a manifest of a single directory.
func BenchmarkMemory(b *testing.B) {
	needsRoot(b, "mounting")
	needs(b, "go")
	program := program(b)
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			dir := b.TempDir()
			full, empty := filepath.Join(dir, "full.fl"), filepath.Join(dir, "empty.fl")
			writeFlat(b, full, size.nodes)
			writeFlat(b, empty, 1)
			target := mkdir(b, dir, "mount")
			memory := func(flist string) func() []float64 {
				return func() []float64 {
					d := start(b, program, flist, filepath.Join(dir, "cache"), target)
					defer d.unmount(b, program)
					return []float64{d.rss(b)}
				}
			}
			our, base := alternate(b, memory(full), memory(empty))
			report(b, our[0], base[0], "MB")
		})
	}
}

// writeFlat writes a manifest of n nodes, in directories of a hundred files of
// one block each.
func writeFlat(b *testing.B, path string, n int) {
	b.Helper()
	w, err := manifest.Create(b.Context(), path, block.Zstd, nil, []manifest.Route{{Last: 255, URL: "dir:///objects"}})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Abort()
	add := func(e manifest.Entry) {
		if err := w.Add(e); err != nil {
			b.Fatal(err)
		}
	}
	directory := manifest.Attr{Mode: unix.S_IFDIR | 0o755}
	add(manifest.Entry{Path: ".", Attr: directory})
	dir := ""
	for i := range n - 1 {
		if i%101 == 0 {
			dir = fmt.Sprintf("directory%06d", i)
			add(manifest.Entry{Path: dir, Attr: directory})
			continue
		}
		name := fmt.Sprintf("%s/module%06d.ko", dir, i)
		add(manifest.Entry{
			Path: name, Attr: manifest.Attr{Mode: unix.S_IFREG | 0o644, Size: 1000},
			Blocks: []block.Ref{{ID: block.Sum([]byte(name)), Key: block.KeyOf([]byte(name))}},
		})
	}
	if err := w.Commit(); err != nil {
		b.Fatal(err)
	}
}
