package bench

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"overmount/manifest"
	"overmount/pack"
	"overmount/store"
)

// A farStore serves a directory of objects over HTTP, each answer some time after
// its request, and counts.
type farStore struct {
	files           http.Handler
	delay           time.Duration
	requests, bytes atomic.Int64
}

func (s *farStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	time.Sleep(s.delay)
	s.files.ServeHTTP(&countedBody{w, &s.bytes}, r)
}

type countedBody struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *countedBody) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// BenchmarkLazyDepmod runs depmod on a fresh mount, with nothing in any cache and
// a store that is 20 ms away, in the three ways that a machine can at boot. Each
// is followed by a modprobe that names a device, as udev would.
func BenchmarkLazyDepmod(b *testing.B) {
	needsRoot(b, "mounting")
	needs(b, "go", "depmod", "modprobe", "mount")
	tree, dir := kernel(b), b.TempDir()
	bin, flist := program(b), packModules(b, tree, dir)
	far := &farStore{files: http.FileServer(http.Dir(filepath.Join(dir, "objects"))), delay: 20 * time.Millisecond}
	srv := httptest.NewServer(far)
	b.Cleanup(srv.Close)
	pointTo(b, flist, srv.URL)
	kver := filepath.Base(tree)
	for _, row := range []struct {
		name     string
		writable bool
		command  []string
	}{
		{"none", false, nil},
		{"depmod-A", false, []string{"depmod", "-A"}},
		{"depmod-a-over-a-writable-layer", true, []string{"depmod", "-a"}},
	} {
		b.Run(row.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				d := b.TempDir()
				modules := mkdir(b, d, filepath.Join("root/lib/modules", kver))
				mount(b, bin, flist, filepath.Join(d, "cache"), modules)
				if row.writable {
					layer(b, d, modules)
				}
				requests, bytes := far.requests.Load(), far.bytes.Load()
				b.StartTimer()
				if row.command != nil {
					run(b, exec.Command(row.command[0], append(row.command[1:], "-b", filepath.Join(d, "root"), kver)...))
				}
				run(b, exec.Command("modprobe", "-n", "-d", filepath.Join(d, "root"), "-S", kver, "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00"))
				b.ReportMetric(float64(far.requests.Load()-requests), "requests")
				b.ReportMetric(float64(far.bytes.Load()-bytes)/1e6, "MB")
			}
		})
	}
}

// packModules packs a directory as pack --kind modules does.
func packModules(b *testing.B, tree, dir string) (flist string) {
	b.Helper()
	objects := filepath.Join(dir, "objects")
	flist = filepath.Join(dir, "modules.fl")
	t, err := pack.PrepareModules(b.Context(), pack.Dir(tree), pack.ModulesOptions{Depmod: true})
	if err == nil {
		_, err = pack.Run(b.Context(), t.FS, store.NewDir(objects), flist, &pack.Options{Inline: pack.IsModuleIndex, Modules: t.Modules})
	}
	if err != nil {
		b.Fatal(err)
	}
	return flist
}

// pointTo makes a URL the only store of a manifest.
func pointTo(b *testing.B, flist, url string) {
	b.Helper()
	err := manifest.Edit(b.Context(), flist, func(e *manifest.Editor) error {
		if err := e.DeleteRoutes(); err != nil {
			return err
		}
		return e.AddRoute(manifest.Route{Last: 255, URL: url})
	})
	if err != nil {
		b.Fatal(err)
	}
}

// layer puts a directory that can be written over a mount.
func layer(b *testing.B, dir, over string) {
	b.Helper()
	tmpfs := mkdir(b, dir, "layer")
	run(b, exec.Command("mount", "-t", "tmpfs", "tmpfs", tmpfs))
	b.Cleanup(func() { run(b, exec.Command("umount", tmpfs)) })
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(tmpfs, name), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	run(b, exec.Command("mount", "-t", "overlay", "overlay", "-o",
		"lowerdir="+over+",upperdir="+filepath.Join(tmpfs, "upper")+",workdir="+filepath.Join(tmpfs, "work"), over))
	b.Cleanup(func() { run(b, exec.Command("umount", over)) })
}
