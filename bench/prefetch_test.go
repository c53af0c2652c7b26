package bench

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"overmount/bootpack"
	"overmount/cache"
	"overmount/fusefs"
	"overmount/kmod"
	"overmount/manifest"
	"overmount/prefetch"
	"overmount/store"
	"overmount/store/httpstore"
	"overmount/tree"
)

// drivers are what a few servers and virtual machines need; with what these need,
// about a hundred modules.
var drivers = []string{
	"e1000e", "igb", "ixgbe", "i40e", "ice", "tg3", "bnxt_en", "bnx2x", "mlx5_core", "r8169", "virtio_net", "vmxnet3", "nvme", "ahci",
	"megaraid_sas", "mpt3sas", "sd_mod", "usb_storage", "xhci_pci", "usbhid", "i2c_i801", "ipmi_si", "snd_hda_intel", "ast", "mgag200",
	"bochs", "kvm_intel", "kvm_amd", "dm_crypt", "raid456", "xfs", "ext4", "btrfs", "overlay", "nf_tables", "bridge", "bonding", "8021q", "vhost_net", "iTCO_wdt",
}

// BenchmarkPrefetch reads what drivers need, one file after the other as modprobe
// does, or the module itself first, or ten at a time as udev's workers do, with empty caches and a store some way off: from
// the moment when the mount is there and prefetching begins, to the last byte.
func BenchmarkPrefetch(b *testing.B) {
	needsRoot(b, "mounting")
	needs(b, "xargs", "cat")
	source, dir := kernel(b), b.TempDir()
	flist := packModules(b, source, dir)
	far := &farStore{files: http.FileServer(http.Dir(filepath.Join(dir, "objects")))}
	srv := httptest.NewServer(far)
	b.Cleanup(srv.Close)
	depsFirst := wanted(b, source, false)
	b.Logf("%d modules", len(depsFirst))
	pack := bootPack(b, flist, srv.URL, depsFirst)
	b.Logf("boot pack of %d bytes", len(pack))
	for _, delay := range []time.Duration{20 * time.Millisecond, 80 * time.Millisecond} {
		far.delay = delay
		for _, row := range []struct {
			name    string
			files   []string
			options prefetch.Options
			readers string
			ahead   func(context.Context, *prefetch.Prefetcher)
		}{
			{"lazy", depsFirst, prefetch.Options{}, "1", nil},
			{"lazy-ten-readers", depsFirst, prefetch.Options{}, "10", nil},
			{"closure-as-modprobe-reads", depsFirst, prefetch.Options{Closure: true}, "1", nil},
			{"closure-module-first", wanted(b, source, true), prefetch.Options{Closure: true}, "1", nil},
			{"closure-ten-readers", depsFirst, prefetch.Options{Closure: true}, "10", nil},
			{"closure-module-first-ten-readers", wanted(b, source, true), prefetch.Options{Closure: true}, "10", nil},
			{"list", depsFirst, prefetch.Options{}, "1", func(ctx context.Context, p *prefetch.Prefetcher) { p.Files(ctx, depsFirst) }},
			{"pack", depsFirst, prefetch.Options{Closure: true}, "1", func(ctx context.Context, p *prefetch.Prefetcher) {
				time.Sleep(delay) // the request
				p.Pack(ctx, bytes.NewReader(pack))
			}},
		} {
			b.Run(delay.String()+"/"+row.name, func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					w := mountAhead(b, flist, srv.URL, row.options)
					requests := far.requests.Load()
					b.StartTimer()
					done := make(chan struct{})
					go func() {
						defer close(done)
						if row.ahead != nil {
							row.ahead(w.ctx, w.p)
						}
					}()
					cmd := exec.Command("xargs", "-P", row.readers, "-n", "1", "cat")
					cmd.Dir, cmd.Stdin = w.dir, strings.NewReader(strings.Join(row.files, "\n"))
					run(b, cmd)
					b.StopTimer()
					<-done
					s := w.p.Stats()
					b.ReportMetric(float64(far.requests.Load()-requests), "requests")
					b.ReportMetric(float64(s.Reads), "READs")
					b.ReportMetric(float64(s.Waited.Milliseconds()), "ms-waited")
					w.end()
					b.StartTimer()
				}
			})
		}
	}
}

// BenchmarkBackup reads a whole tree with tar, where closures are fetched on the way
// and where they are not. It must not be slower.
func BenchmarkBackup(b *testing.B) {
	needsRoot(b, "mounting")
	needs(b, "sh", "tar", "cat")
	source, dir := kernel(b), b.TempDir()
	flist := packModules(b, source, dir)
	far := &farStore{files: http.FileServer(http.Dir(filepath.Join(dir, "objects")))}
	srv := httptest.NewServer(far)
	b.Cleanup(srv.Close)
	tar := func(closure bool) func() []float64 {
		return func() []float64 {
			w := mountAhead(b, flist, srv.URL, prefetch.Options{Closure: closure})
			defer w.end()
			return timed(b, func() error {
				return exec.Command("sh", "-c", `tar -cf - -C "$0" . | cat >/dev/null`, w.dir).Run()
			})
		}
	}
	our, base := alternate(b, tar(true), tar(false))
	report(b, our[0], base[0], "ms")
}

// An aheadMount is a mount with prefetching, and a cache of its own.
type aheadMount struct {
	dir string
	p   *prefetch.Prefetcher
	ctx context.Context
	end func()
}

func mountAhead(b *testing.B, flist, at string, o prefetch.Options) aheadMount {
	b.Helper()
	dir := b.TempDir()
	t, c := farTree(b, flist, at, filepath.Join(dir, "cache"))
	w := aheadMount{dir: mkdir(b, dir, "mount"), p: prefetch.New(t, &o)}
	s, err := fusefs.Mount(b.Context(), w.dir, t, &fusefs.Options{Watcher: w.p})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.ctx = ctx
	w.p.Use(s)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		w.p.Run(ctx)
	}()
	w.end = func() {
		cancel()
		<-ran
		if err := s.Unmount(); err != nil {
			b.Error(err)
			s.UnmountLazy()
		}
		s.Wait()
		if err := c.Close(); err != nil {
			b.Error(err)
		}
		os.RemoveAll(dir)
	}
	return w
}

// farTree opens a manifest as mount does, with its objects at a URL.
func farTree(b *testing.B, flist, at, cacheDir string) (*tree.Tree, *cache.Cache) {
	b.Helper()
	m, err := manifest.Open(b.Context(), flist)
	if err != nil {
		b.Fatal(err)
	}
	u, err := url.Parse(at)
	if err != nil {
		b.Fatal(err)
	}
	s, err := httpstore.New(u, nil)
	if err != nil {
		b.Fatal(err)
	}
	c, err := cache.New(cacheDir, store.Retry(s, nil), nil)
	if err != nil {
		b.Fatal(err)
	}
	return tree.New(m, c, nil), c
}

// wanted returns the files of drivers and of what they need, in the order in which
// modprobe reads them, or each driver before what it needs.
func wanted(b *testing.B, source string, moduleFirst bool) []string {
	b.Helper()
	t, err := kmod.OpenTree(os.DirFS(source))
	if err != nil {
		b.Fatal(err)
	}
	r := kmod.NewResolver(t, &kmod.Config{}, nil)
	var files []string
	for _, name := range drivers {
		needed, err := r.Closure(name)
		if err != nil {
			continue // part of this kernel
		}
		var list []string
		for _, n := range needed {
			if !slices.Contains(files, n.Path) && !strings.HasPrefix(n.Path, "/") {
				list = append(list, n.Path)
			}
		}
		if last := len(list) - 1; moduleFirst && last > 0 {
			list = slices.Insert(list[:last], 0, list[last])
		}
		files = append(files, list...)
	}
	return files
}

// bootPack packs files as the record of a boot would.
func bootPack(b *testing.B, flist, at string, files []string) []byte {
	b.Helper()
	t, c := farTree(b, flist, at, filepath.Join(b.TempDir(), "cache"))
	defer c.Close()
	var accesses []bootpack.Access
	for _, name := range files {
		ino, err := t.Manifest().Find(name)
		if err != nil {
			b.Fatal(err)
		}
		for i := range t.Manifest().Blocks(ino) {
			accesses = append(accesses, bootpack.Access{Path: name, Block: i})
		}
	}
	var pack bytes.Buffer
	if _, err := bootpack.Write(b.Context(), &pack, t.Manifest(), accesses, t.Prefetch); err != nil {
		b.Fatal(err)
	}
	return pack.Bytes()
}
