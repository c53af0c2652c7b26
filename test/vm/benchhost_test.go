package vm_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/origin"
	"overmount/pack"
	"overmount/store"
	"overmount/test/vm"
)

// benchHost is the host's address on the network of a timed guest, which is
// testdata/bench-guest.sh's, too.
const benchHost = "10.64.0.1"

// A cable is a network of one guest and this host, in a network namespace of its
// own: QEMU's own network lets a connection have 64 KiB on the way, which is slower
// than the line that is to be measured.
type cable struct {
	t   *testing.T
	tap *os.File // the guest's end
	run chan func()
}

// newCable makes a cable, which ends with the test.
func newCable(t *testing.T) *cable {
	t.Helper()
	c := &cable{t: t, run: make(chan func())}
	ready := make(chan error)
	go func() {
		// A thread that has changed its namespace ends with its goroutine.
		runtime.LockOSThread()
		ready <- c.open()
		for f := range c.run {
			f()
		}
	}()
	t.Cleanup(func() { close(c.run) })
	if err := <-ready; err != nil {
		t.Fatalf("make a network for the guest: %v", err)
	}
	t.Cleanup(func() { c.tap.Close() })
	return c
}

// open makes the namespace of this thread and what is in it.
func (c *cable) open() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare the network: %w", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	c.tap = os.NewFile(uintptr(fd), "tap")
	ifr, err := unix.NewIfreq("guest")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make a TAP: %w", err)
	}
	// Cubic measures the line while it starts, and with this host's clock, which is
	// not that of the guest. Reno does not.
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte("reno"), 0); err != nil {
		return err
	}
	for _, args := range []string{"link set lo up", "addr add " + benchHost + "/24 dev guest", "link set guest up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return nil
}

// inside calls a function on the thread that is in the namespace. Sockets that it
// opens and programs that it starts are there.
func (c *cable) inside(f func()) {
	done := make(chan struct{})
	c.run <- func() {
		defer close(done)
		f()
	}
	<-done
}

// A depot is what a server for timed boots has: manifests and objects.
type depot struct {
	t    *testing.T
	dir  string
	kver string
}

// newDepot packs the modules of a kernel, and firmware.
func newDepot(t *testing.T, modules, firmware string) *depot {
	t.Helper()
	d := &depot{t: t, dir: t.TempDir(), kver: filepath.Base(modules)}
	src, err := pack.PrepareModules(t.Context(), pack.Dir(modules), pack.ModulesOptions{Name: d.kver})
	if err != nil {
		t.Fatal(err)
	}
	d.pack("modules", src.FS, &pack.Options{
		Codec: block.Zstd, Inline: pack.IsModuleIndex, Modules: src.Modules,
		Tags: map[string]string{manifest.TagKind: "modules", manifest.TagKver: src.Kver},
	})
	d.pack("firmware", pack.Dir(firmware), &pack.Options{Codec: block.Zstd, Tags: map[string]string{manifest.TagKind: "firmware"}})
	return d
}

func (d *depot) pack(kind string, src fs.FS, o *pack.Options) {
	d.t.Helper()
	o.Routes = []manifest.Route{{First: 0, Last: 255, URL: "http://" + benchHost + "/objects"}}
	if _, err := pack.Run(d.t.Context(), src, store.NewDir(filepath.Join(d.dir, "objects")), d.manifest(kind), o); err != nil {
		d.t.Fatal(err)
	}
	data, err := os.ReadFile(d.manifest(kind))
	if err != nil {
		d.t.Fatal(err)
	}
	var small bytes.Buffer
	if err := origin.Compress(&small, bytes.NewReader(data), int64(len(data))); err != nil {
		d.t.Fatal(err)
	}
	vm.WriteFile(d.t, d.manifest(kind)+origin.Suffix, small.Bytes())
}

// manifest returns the file of a manifest. That of the modules has the kernel in
// its name, as overmount boot wants it.
func (d *depot) manifest(kind string) string {
	if kind == "modules" {
		kind += "-" + d.kver
	}
	return filepath.Join(d.dir, kind+".fl")
}

// A seen request is one that the server has answered.
type seen struct {
	path  string
	bytes int64
	found bool
}

// A counter serves a depot to one guest, and counts.
type counter struct {
	t      *testing.T
	depot  *depot
	packs  string // directory with boot packs; empty for none
	server http.Server

	mu       sync.Mutex
	requests []seen
	posts    map[string][]byte // by the end of their path
}

// serve begins to serve on the cable, until stop is called.
func serve(c *cable, d *depot, packs string) (s *counter, stop func()) {
	c.t.Helper()
	s = &counter{t: c.t, depot: d, packs: packs, posts: map[string][]byte{}}
	s.server.Handler = s
	var l net.Listener
	var err error
	c.inside(func() { l, err = net.Listen("tcp", benchHost+":80") })
	if err != nil {
		c.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.server.Serve(l) }) // it ends with Close
	return s, func() {
		s.server.Close()
		wg.Wait()
	}
}

// ServeHTTP serves files, and keeps what is posted.
func (s *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		body, err := io.ReadAll(io.LimitReader(r.Body, 16<<20))
		if err != nil {
			s.t.Errorf("what the guest posts: %v", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.posts[path.Base(r.URL.Path)] = body
		return
	}
	counted := &countedWriter{ResponseWriter: w}
	name, dir := strings.TrimPrefix(r.URL.Path, "/"), s.depot.dir
	if strings.HasSuffix(name, ".pack") {
		dir = s.packs
	}
	if dir == "" {
		http.NotFound(counted, r)
	} else {
		http.ServeFileFS(counted, r, os.DirFS(dir), name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, seen{r.URL.Path, counted.n, !counted.missing})
}

// countedWriter counts the bytes of a body.
type countedWriter struct {
	http.ResponseWriter
	n       int64
	missing bool
}

func (w *countedWriter) WriteHeader(code int) {
	w.missing = code == http.StatusNotFound
	w.ResponseWriter.WriteHeader(code)
}

func (w *countedWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// objects returns how many objects were asked for, and how long all bodies were.
func (s *counter) objects() (n int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		bytes += r.bytes
		if strings.HasPrefix(r.path, "/objects/") {
			n++
		}
	}
	return n, bytes
}

// packed returns how many boot packs were fetched.
func (s *counter) packed() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if strings.HasSuffix(r.path, ".pack") && r.found {
			n++
		}
	}
	return n
}

// report returns what the guest has reported.
func (s *counter) report() vm.Report {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := vm.ReadReport(bytes.NewReader(s.posts["report"]))
	if err != nil {
		s.t.Error(err)
	}
	return r
}

// post returns what was posted.
func (s *counter) post(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.posts[name]
}
