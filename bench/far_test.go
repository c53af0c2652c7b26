package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"overmount/block"
	"overmount/cache"
	"overmount/store"
	"overmount/store/httpstore"
	"overmount/store/storetest"
)

// The network of BenchmarkFarObjects, and what is read over it: as many objects,
// and bytes, as the modules that a server loads at boot.
const (
	farRTT     = 100 * time.Millisecond
	farRate    = 12_500_000 // bytes a second, of each connection
	farObjects = 182
	farBytes   = 17_400_000
	farReaders = 32
)

// A farServer serves objects in the sharded layout: the answer begins a round trip
// after the request, on a new connection two, and has the rate of the connection.
type farServer struct {
	objects  map[string][]byte // by path
	requests atomic.Int64
}

type newConn struct{}

// start returns the server's URL.
func (s *farServer) start(b *testing.B) *url.URL {
	b.Helper()
	srv := httptest.NewUnstartedServer(s)
	srv.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, newConn{}, new(atomic.Bool))
	}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	b.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		b.Fatal(err)
	}
	return u
}

func (s *farServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	object, ok := s.objects[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if known := r.Context().Value(newConn{}).(*atomic.Bool); !known.Swap(true) {
		time.Sleep(farRTT) // the handshake
	}
	time.Sleep(farRTT)
	w.Header().Set("Content-Length", fmt.Sprint(len(object)))
	const piece = 64 << 10
	start, sent := time.Now(), 0
	for sent < len(object) {
		n := min(piece, len(object)-sent)
		w.Write(object[sent : sent+n])
		sent += n
		time.Sleep(time.Until(start.Add(time.Duration(sent) * time.Second / farRate)))
	}
}

// makeFar makes objects of many lengths, a few of them long.
func makeFar() (*farServer, []block.ID) {
	s := &farServer{objects: make(map[string][]byte)}
	var ids []block.ID
	var weights float64
	weight := func(i int) float64 { return 1 / (0.15 + float64(i)/farObjects) }
	for i := range farObjects {
		weights += weight(i)
	}
	for i := range farObjects {
		id, object := storetest.Object(uint64(i), int(farBytes*weight(i)/weights))
		s.objects["/"+store.Sharded.Key(id)] = object
		ids = append(ids, id)
	}
	for i := range ids { // no order of lengths
		j := i * 89 % len(ids)
		ids[i], ids[j] = ids[j], ids[i]
	}
	return s, ids
}

// readFar calls get for each object, from many goroutines.
func readFar(ids []block.ID, get func(block.ID) error) error {
	var next atomic.Int64
	errs := make([]error, farReaders)
	var wg sync.WaitGroup
	for w := range farReaders {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(ids)) && errs[w] == nil; i = next.Add(1) - 1 {
				errs[w] = get(ids[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// BenchmarkFarObjects reads 182 objects from 100 ms away as a mount does, 32 at a
// time, beside as many plain GETs of the same URLs that only read the bodies. The
// one checks each object, ranks its stores, and fills a cache on disk where the
// name says so; "warm" has connections at the start, "cold" has to make them. Of
// two stores, each has a server.
func BenchmarkFarObjects(b *testing.B) {
	for _, row := range []struct {
		name         string
		warm, cached bool
		stores       int
	}{
		{"warm", true, false, 1}, {"cold", false, false, 1},
		{"cold-cache", false, true, 1}, {"warm-two-stores", true, false, 2},
	} {
		b.Run(row.name, func(b *testing.B) {
			s, ids := makeFar()
			var bases []*url.URL
			for range row.stores {
				bases = append(bases, s.start(b))
			}
			ours := func() []float64 { return timeFar(b, ids, row.warm, newOurs(b, bases, row.cached)) }
			baseline := func() []float64 { return timeFar(b, ids, row.warm, newPlain(bases[0])) }
			before, rounds := s.requests.Load(), 0
			our, base := alternate(b, func() []float64 { rounds++; return ours() }, baseline)
			report(b, our[0], base[0], "ms")
			passes := int64(rounds) // of each side
			if row.warm {
				passes *= 2
			}
			b.ReportMetric(float64(s.requests.Load()-before-passes*farObjects)/float64(passes), "requests")
		})
	}
}

// A farReader is one side of the benchmark.
type farReader struct {
	get   func(block.ID) error
	reset func() // forgets what it has read
	close func()
}

// timeFar measures one pass over all objects, in milliseconds.
func timeFar(b *testing.B, ids []block.ID, warm bool, r farReader) []float64 {
	b.Helper()
	defer r.close()
	if warm {
		if err := readFar(ids, r.get); err != nil {
			b.Fatal(err)
		}
		r.reset()
	}
	return timed(b, func() error { return readFar(ids, r.get) })
}

// newPlain reads with net/http alone.
func newPlain(base *url.URL) farReader {
	transport := &http.Transport{MaxConnsPerHost: farReaders, MaxIdleConnsPerHost: farReaders, DisableCompression: true}
	client := &http.Client{Transport: transport}
	get := func(id block.ID) error {
		resp, err := client.Get(base.String() + "/" + store.Sharded.Key(id))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != resp.ContentLength {
			return fmt.Errorf("%d of %d bytes: %w", n, resp.ContentLength, err)
		}
		return nil
	}
	return farReader{get, func() {}, transport.CloseIdleConnections}
}

// newOurs reads as overmount mount does.
func newOurs(b *testing.B, bases []*url.URL, cached bool) farReader {
	b.Helper()
	var routes store.Routes
	var web []*httpstore.Store
	for _, base := range bases {
		s, err := httpstore.New(base, nil)
		if err != nil {
			b.Fatal(err)
		}
		web = append(web, s)
		routes = append(routes, store.Route{Last: 0xff, Reader: s})
	}
	source := store.Retry(store.Ranked(routes), nil)
	r := source
	var c *cache.Cache
	renew := func() {
		if !cached {
			return
		}
		if c != nil {
			c.Close()
		}
		var err error
		if c, err = cache.New(b.TempDir(), source, nil); err != nil {
			b.Fatal(err)
		}
		r = c
	}
	renew()
	return farReader{
		get: func(id block.ID) error {
			_, err := r.Get(b.Context(), id)
			return err
		},
		reset: renew,
		close: func() {
			if c != nil {
				c.Close()
			}
			for _, s := range web {
				s.Close()
			}
		},
	}
}
