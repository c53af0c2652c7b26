package httpstore_test

import (
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"overmount/block"
	"overmount/store"
	"overmount/store/httpstore"
	"overmount/store/storetest"
)

// A hole is a TCP proxy. While it is black it swallows all bytes, and connections
// that were there meanwhile stay dead.
type hole struct {
	addr  string
	to    string
	black atomic.Bool
	dead  atomic.Pointer[chan struct{}] // closed when the connections of now die

	mu    sync.Mutex
	conns []net.Conn
}

func newHole(t *testing.T, to string) *hole {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hole{addr: l.Addr().String(), to: to}
	h.set(false)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h.keep(c)
			all.Go(func() { h.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		h.mu.Lock()
		for _, c := range h.conns {
			c.Close()
		}
		h.mu.Unlock()
		all.Wait()
	})
	return h
}

func (h *hole) keep(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, c)
}

// set makes the hole black, or not. Either kills the connections that there are.
func (h *hole) set(black bool) {
	h.black.Store(black)
	alive := make(chan struct{})
	if old := h.dead.Swap(&alive); old != nil {
		close(*old)
	}
}

func (h *hole) serve(c net.Conn) {
	dead := *h.dead.Load()
	if h.black.Load() {
		io.Copy(io.Discard, c)
		return
	}
	server, err := net.Dial("tcp", h.to)
	if err != nil {
		c.Close()
		return
	}
	h.keep(server)
	go pump(server, c, dead)
	pump(c, server, dead)
}

// pump copies until the connection dies. What comes after that is swallowed, and
// an end is not passed on.
func pump(to, from net.Conn, dead <-chan struct{}) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-dead:
			io.Copy(io.Discard, from)
			return
		default:
		}
		if err != nil {
			to.Close()
			return
		}
		to.Write(buf[:n])
	}
}

// outage is how long an outage takes: long enough for all that is done about it to
// be done several times, or what the goal says.
func outage() time.Duration {
	if os.Getenv("OVERMOUNT_TEST_LONG") == "1" {
		return 60 * time.Second
	}
	return 3 * time.Second
}

// lateness returns how long after the end of an outage the reads of it may last: 2 s,
// and half a second for a machine that does other things, and what the machine takes
// just now to read the objects at the same time from a server that works, three times:
// a read in an outage makes as many requests.
func lateness(t *testing.T, src store.Reader, ids []block.ID) time.Duration {
	t.Helper()
	s := open(t, storetest.NewHTTPServer(t, store.Sharded, src, nil).URL, nil)
	start := time.Now()
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if _, err := s.Get(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return 2500*time.Millisecond + 3*time.Since(start)
}

// Reads during an outage in which the server, or all on the way to it, takes
// connections and requests and says nothing, and lets go of none afterwards.
func TestReadsEndAfterAnOutage(t *testing.T) {
	const readers = 40 // more than there are connections
	src := new(store.Mem)
	var ids []block.ID
	for i := range readers {
		id, bytes := storetest.Object(uint64(i), 100_000)
		if _, err := src.Put(t.Context(), id, bytes); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	type network struct {
		server *storetest.HTTPServer
		hole   *hole
	}
	for name, c := range map[string]struct {
		begin, end func(network)
	}{
		"hanging server": {
			func(n network) { n.server.Always(storetest.HangBeforeHeaders(storetest.NewGate())) },
			func(n network) { n.server.Always(nil) },
		},
		"server that hangs in bodies": {
			func(n network) { n.server.Always(storetest.HangInBody(storetest.NewGate())) },
			func(n network) { n.server.Always(nil) },
		},
		"black hole": {
			func(n network) { n.hole.set(true) },
			func(n network) { n.hole.set(false) },
		},
		"refusing server": {
			func(n network) { n.server.Stop() },
			func(n network) { n.server.Start() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := storetest.NewHTTPServer(t, store.Sharded, src, nil)
			n := network{server, newHole(t, strings.TrimPrefix(server.URL, "http://"))}
			s, err := httpstore.New(&url.URL{Scheme: "http", Host: n.hole.addr}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			r := store.Retry(store.Ranked(store.Routes{{Last: 0xff, Reader: s}}), nil)
			readAll := func(i int) {
				id, want := storetest.Object(uint64(i), 100_000)
				if got, err := r.Get(t.Context(), id); err != nil || string(got) != string(want) {
					t.Errorf("Get = %d bytes, %v, want the object", len(got), err)
				}
			}
			var warm sync.WaitGroup
			for i := range readers / 2 {
				warm.Go(func() { readAll(i) })
			}
			warm.Wait() // and leave idle connections, which will die

			c.begin(n)
			length := outage()
			end := time.Now().Add(length)
			var wg sync.WaitGroup
			var mu sync.Mutex
			var latest time.Duration
			for i := range readers {
				wg.Go(func() {
					<-time.After(length * time.Duration(i) / readers) // readers come one after the other
					readAll(i)
					mu.Lock()
					defer mu.Unlock()
					latest = max(latest, time.Since(end))
				})
			}
			<-time.After(time.Until(end))
			c.end(n)
			most := lateness(t, src, ids)
			wg.Wait()
			t.Logf("the last read ended %v after the outage", latest)
			if latest > most {
				t.Errorf("the last read ended %v after an outage of %v, want within %v", latest, length, most)
			}
		})
	}
}

// Connections that died while nobody used them.
func TestIdleConnectionsDie(t *testing.T) {
	src := new(store.Mem)
	id, bytes := storetest.Object(1, 100_000)
	if _, err := src.Put(t.Context(), id, bytes); err != nil {
		t.Fatal(err)
	}
	server := storetest.NewHTTPServer(t, store.Sharded, src, nil)
	h := newHole(t, strings.TrimPrefix(server.URL, "http://"))
	s, err := httpstore.New(&url.URL{Scheme: "http", Host: h.addr}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := store.Ranked(store.Routes{{Last: 0xff, Reader: s}})
	read := func(n int) time.Duration {
		start := time.Now()
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if _, err := r.Get(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return time.Since(start)
	}
	read(20)
	h.set(false)
	took := make(chan time.Duration, 1)
	go func() { took <- read(20) }()
	most := lateness(t, src, slices.Repeat([]block.ID{id}, 20))
	if d := <-took; d > most {
		t.Errorf("20 reads over dead connections took %v, want at most %v", d, most)
	}
	if d := read(1); d > time.Second {
		t.Errorf("one more read took %v: the dead connections are still in use", d)
	}
}
