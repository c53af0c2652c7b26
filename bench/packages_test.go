package bench

import (
	"crypto"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/apk"
	"overmount/apk/apktest"
	"overmount/block"
	"overmount/manifest"
	"overmount/pack"
	"overmount/store"
)

// BenchmarkPackages packs a kernel's modules for networks, 110 MB, from packages of Alpine, beside
// unpacking them with tar, one after the other, and packing the directory.
//
// Goal: not slower.
func BenchmarkPackages(b *testing.B) {
	needs(b, "tar")
	tree, dir := kernel(b), b.TempDir()
	repo, files := repository(b, tree, filepath.Join(dir, "repo"))
	round := 0
	packTo := func(src fs.FS) error {
		objects := filepath.Join(dir, fmt.Sprintf("objects-%d", round))
		round++
		_, err := pack.Run(b.Context(), src, store.NewDir(objects), objects+".fl", &pack.Options{
			Codec: block.Zstd, Routes: []manifest.Route{{Last: 255, URL: "dir:///objects"}},
		})
		return err
	}
	ours := func() []float64 {
		unix.Sync()
		return withCPU(b, unix.RUSAGE_SELF, func() error {
			t, err := repo.Unpack(b.Context(), repo.Index.Packages, nil)
			if err != nil {
				return err
			}
			defer t.Close()
			return packTo(t)
		})
	}
	baseline := func() []float64 {
		unix.Sync()
		to := filepath.Join(dir, fmt.Sprintf("unpacked-%d", round))
		if err := os.Mkdir(to, 0o755); err != nil {
			b.Fatal(err)
		}
		unpack := withCPU(b, unix.RUSAGE_CHILDREN, func() error {
			for _, file := range files {
				run(b, exec.Command("tar", "-xzf", file, "-C", to, "--warning=no-unknown-keyword"))
			}
			return nil
		})
		packed := withCPU(b, unix.RUSAGE_SELF, func() error { return packTo(pack.Dir(to)) })
		return []float64{unpack[0] + packed[0], unpack[1] + packed[1]}
	}
	our, base := alternate(b, ours, baseline)
	report(b, our[0], base[0], "ms")
	b.ReportMetric(our[1], "cpu-ms")
	b.ReportMetric(base[1], "baseline-cpu-ms")
}

// repository makes a package of each directory of network drivers, and one of the
// protocols.
func repository(b *testing.B, tree, dir string) (*apk.Repository, []string) {
	b.Helper()
	s := apktest.NewSigner(b, "bench.rsa.pub", crypto.SHA256)
	var packages []apktest.Package
	var files []string
	found, err := filepath.Glob(filepath.Join(tree, "kernel/drivers/net/*"))
	if err != nil {
		b.Fatal(err)
	}
	for i, from := range append(found, filepath.Join(tree, "kernel/net")) {
		p := apktest.Package{Name: fmt.Sprintf("modules-%d", i), Origin: "modules", Signer: s, Files: entries(b, tree, from)}
		packages = append(packages, p)
		files = append(files, filepath.Join(dir, "x86_64", p.File()))
	}
	apktest.Repository(b, dir, s, packages...)
	keys := apk.Keys{}
	if err := keys.Add(s.Name, s.Public(b)); err != nil {
		b.Fatal(err)
	}
	repo, err := apk.Open(b.Context(), apk.Dir(dir), keys, "x86_64")
	if err != nil {
		b.Fatal(err)
	}
	return repo, files
}

func entries(b *testing.B, tree, from string) []apktest.Entry {
	b.Helper()
	var list []apktest.Entry
	err := filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tree, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			list = append(list, apktest.Entry{Name: rel + "/"})
			return nil
		}
		content, err := os.ReadFile(name)
		list = append(list, apktest.Entry{Name: rel, Content: content})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return list
}
