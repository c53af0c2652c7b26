package bench

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/pack"
	"overmount/store"
)

// BenchmarkPack packs a kernel's modules into a new directory store, with all
// processors and with one, beside tar and zstd with as many. Both write to the
// same file system and read a tree that is in memory; only pack waits until what
// it wrote lasts.
//
// Goals: with all processors at most twice the time of tar and zstd; with one at
// least 150 MB/s with zstd and 250 with snappy.
func BenchmarkPack(b *testing.B) {
	needs(b, "tar", "zstd")
	tree, dir := kernel(b), b.TempDir()
	for _, procs := range []int{runtime.GOMAXPROCS(0), 1} {
		for _, codec := range []block.Codec{block.Zstd, block.Snappy} {
			b.Run(fmt.Sprintf("%v,procs=%d", codec, procs), func(b *testing.B) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
				benchPack(b, tree, dir, codec, procs)
			})
		}
	}
}

func benchPack(b *testing.B, tree, dir string, codec block.Codec, procs int) {
	var size int64
	round := 0
	// Nothing is removed between the rounds: ext4 looks long for an inode after
	// many were freed.
	ours := func() []float64 {
		round++
		objects := filepath.Join(dir, fmt.Sprintf("%v-%d-%d", codec, procs, round))
		unix.Sync() // what was written before is not ours to wait for
		return withCPU(b, unix.RUSAGE_SELF, func() error {
			sum, err := pack.Run(b.Context(), pack.Dir(tree), store.NewDir(objects), objects+".fl", &pack.Options{
				Codec: codec, Routes: []manifest.Route{{Last: 255, URL: "dir://" + objects}},
			})
			size = sum.Bytes
			return err
		})
	}
	baseline := func() []float64 {
		file := filepath.Join(dir, fmt.Sprintf("%v-%d-%d.tar.zst", codec, procs, round))
		script := fmt.Sprintf(`tar -C "$1" -cf - . | zstd -q -1 -T%d >"$2"`, procs)
		unix.Sync()
		return withCPU(b, unix.RUSAGE_CHILDREN, exec.Command("sh", "-c", script, "sh", tree, file).Run)
	}
	our, base := alternate(b, ours, baseline)
	report(b, our[0], base[0], "ms")
	b.ReportMetric(our[1], "cpu-ms")
	b.ReportMetric(base[1], "baseline-cpu-ms")
	b.ReportMetric(float64(size)/1e3/our[0], "MB/s")
}

// withCPU measures how long f takes, and the processor time of who does it, both
// in milliseconds.
func withCPU(b *testing.B, who int, f func() error) []float64 {
	before := cpuTime(b, who)
	t := timed(b, f)
	return append(t, ms(cpuTime(b, who)-before))
}

func cpuTime(b *testing.B, who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
