package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/depmod"
)

// BenchmarkDepmod makes the indexes of a kernel's modules with all processors,
// beside the packaged depmod, which uses one. A program writes the files, and
// ours waits until they last; the library makes them in memory, beside depmod -n.
// Modules are in memory, plain, all in zst, and those of file systems in xz.
//
// Goal: with two processors not longer than depmod for plain modules.
func BenchmarkDepmod(b *testing.B) {
	needs(b, "depmod", "cp", "find", "zstd", "xz")
	tree, program := kernel(b), program(b)
	for _, c := range []struct {
		name, part string
		compressor []string
	}{
		{"plain", "kernel", nil},
		{"zst", "kernel", []string{"zstd", "-q", "--rm"}},
		{"xz", "kernel/fs", []string{"xz", "--check=crc32", "--lzma2=preset=1,dict=1MiB"}},
	} {
		root, dir := indexable(b, tree, c.part, c.compressor)
		kver := filepath.Base(dir)
		b.Run(c.name+"/program", func(b *testing.B) {
			benchDepmod(b, unix.RUSAGE_CHILDREN, []string{"depmod", "-b", root, kver},
				func() error { return exec.Command(program, "depmod", "-b", root, kver).Run() })
		})
		b.Run(c.name+"/library", func(b *testing.B) {
			benchDepmod(b, unix.RUSAGE_SELF, []string{"depmod", "-n", "-b", root, kver}, func() error {
				_, err := depmod.Build(b.Context(), os.DirFS(dir), nil)
				return err
			})
		})
	}
}

func benchDepmod(b *testing.B, who int, baseline []string, ours func() error) {
	our, base := alternate(b,
		func() []float64 { return withCPU(b, who, ours) },
		func() []float64 {
			return withCPU(b, unix.RUSAGE_CHILDREN, exec.Command(baseline[0], baseline[1:]...).Run)
		})
	report(b, our[0], base[0], "ms")
	b.ReportMetric(our[1], "cpu-ms")
	b.ReportMetric(base[1], "baseline-cpu-ms")
}

// indexable copies a part of a tree of modules, compressed, into a root directory
// where indexes can be written.
func indexable(b *testing.B, tree, part string, compressor []string) (root, dir string) {
	b.Helper()
	root = b.TempDir()
	dir = filepath.Join(root, "lib/modules", filepath.Base(tree))
	if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, part)), 0o755); err != nil {
		b.Fatal(err)
	}
	run(b, exec.Command("cp", "-r", filepath.Join(tree, part), filepath.Join(dir, part)))
	for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		run(b, exec.Command("cp", filepath.Join(tree, name), dir))
	}
	if compressor != nil {
		find := append([]string{dir, "-name", "*.ko", "-exec"}, compressor...)
		run(b, exec.Command("find", append(find, "{}", "+")...))
	}
	unix.Sync()
	return root, dir
}
