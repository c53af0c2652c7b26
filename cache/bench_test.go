package cache

import (
	"fmt"
	"testing"
)

// 128 KiB is a usual object: half a megabyte of module text, packed.
var benchSizes = []int{16 << 10, 128 << 10, 512 << 10}

func BenchmarkHit(b *testing.B) {
	for _, size := range benchSizes {
		src := newSource(8, size)
		dir := b.TempDir()
		fill(b, dir, src)
		for _, known := range []bool{true, false} {
			name := fmt.Sprintf("%dKiB/known", size>>10)
			if !known {
				name = fmt.Sprintf("%dKiB/first", size>>10)
			}
			b.Run(name, func(b *testing.B) {
				c := open(b, dir, nil, Options{})
				b.SetBytes(int64(size))
				i := 0
				for b.Loop() {
					if !known {
						clear(c.verified) // nobody else is at it
					}
					if _, err := c.Get(b.Context(), src.ids[i%8]); err != nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}

// A miss, up to the answer; the disk follows behind.
func BenchmarkMiss(b *testing.B) {
	src := newSource(64, 128<<10)
	c := open(b, b.TempDir(), src, Options{QueueBytes: 1})
	b.SetBytes(128 << 10)
	i := 0
	for b.Loop() {
		id := src.ids[i%64]
		b.StopTimer()
		c.remove(id)
		b.StartTimer()
		if _, err := c.Get(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// Misses, up to the disk.
func BenchmarkMissAndFill(b *testing.B) {
	for _, on := range []string{"disk", "tmpfs"} {
		b.Run(on, func(b *testing.B) {
			dir := b.TempDir()
			if on == "tmpfs" {
				dir = tmpfs(b, 64<<20, 0)
			}
			src := newSource(64, 128<<10)
			c := open(b, dir, src, Options{})
			b.SetBytes(64 * 128 << 10)
			for b.Loop() {
				for _, id := range src.ids {
					if _, err := c.Get(b.Context(), id); err != nil {
						b.Fatal(err)
					}
				}
				if err := c.Flush(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				for _, id := range src.ids {
					c.remove(id)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkNewWith100kEntries(b *testing.B) {
	dir := b.TempDir()
	populate(b, dir, 100000)
	for b.Loop() {
		c, err := New(dir, nil, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSweep100kEntries(b *testing.B) {
	dir := b.TempDir()
	populate(b, dir, 100000)
	c := open(b, dir, nil, Options{MaxBytes: 1 << 40})
	<-c.swept
	for b.Loop() {
		c.sweepNow()
	}
}
