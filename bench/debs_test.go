package bench

import (
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/archive"
	"overmount/deb"
	"overmount/internal/testenv"
	"overmount/pack"
	"overmount/store"
	"overmount/sysroot"
)

// BenchmarkDebs packs the firmware of Debian packages, read as they are, beside
// dpkg-deb -x of all of them and packing the directory. Both write the same
// objects to a new directory store. "scripts/firmware-debs --all" is the set to
// measure with.
//
// Goals: not slower than the other way, and below 200 MB of memory.
func BenchmarkDebs(b *testing.B) {
	needs(b, "dpkg-deb")
	files, err := filepath.Glob(filepath.Join(filepath.Dir(testenv.Debs(b)[0]), "firmware-*.deb"))
	if err != nil || len(files) == 0 {
		b.Fatalf("%d firmware packages, %v", len(files), err)
	}
	dir, round := b.TempDir(), 0
	ours := func() []float64 {
		round++
		unix.Sync()
		return withCPU(b, unix.RUSAGE_SELF, func() error { return packDebs(b, files, filepath.Join(dir, fmt.Sprint(round))) })
	}
	baseline := func() []float64 {
		root := filepath.Join(dir, fmt.Sprintf("%d-root", round))
		unix.Sync()
		self := cpuTime(b, unix.RUSAGE_SELF)
		took := withCPU(b, unix.RUSAGE_CHILDREN, func() error {
			for _, file := range files {
				if err := exec.Command("dpkg-deb", "-x", file, root).Run(); err != nil {
					return err
				}
			}
			return packTo(b, filepath.Join(dir, fmt.Sprintf("%d-baseline", round)), pack.Dir(filepath.Join(root, "lib/firmware")))
		})
		took[1] += ms(cpuTime(b, unix.RUSAGE_SELF) - self)
		return took
	}
	our, base := alternate(b, ours, baseline)
	report(b, our[0], base[0], "ms")
	b.ReportMetric(our[1], "cpu-ms")
	b.ReportMetric(base[1], "baseline-cpu-ms")
}

func packDebs(b *testing.B, files []string, objects string) error {
	spool, err := archive.NewSpool(nil)
	if err != nil {
		return err
	}
	defer spool.Close()
	var in []deb.Input
	for _, file := range files {
		in = append(in, deb.File(file))
	}
	tree, _, err := deb.Unpack(b.Context(), spool, in, nil)
	if err != nil {
		return err
	}
	fw, err := sysroot.Firmware(b.Context(), tree, nil)
	if err != nil {
		return err
	}
	return packTo(b, objects, fw)
}

func packTo(b *testing.B, objects string, src fs.FS) error {
	_, err := pack.Run(b.Context(), src, store.NewDir(objects), objects+".fl", nil)
	return err
}
