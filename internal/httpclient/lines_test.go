package httpclient

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"overmount/internal/pulse"
)

// A request that wants a new connection gets one although all are taken, and those
// that come after it use the new ones.
func TestAnew(t *testing.T) {
	var conns atomic.Int32
	hang, release := make(chan struct{}, 2), make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			hang <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		io.WriteString(w, r.RemoteAddr)
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	c := New(Options{Conns: 2})
	defer c.Close()
	var beats atomic.Int32
	get := func(ctx context.Context, path string, anew bool) string {
		ctx = pulse.With(ctx, func() { beats.Add(1) }, anew)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		return string(body)
	}

	var wg sync.WaitGroup
	for range 2 { // all that there may be
		wg.Go(func() { get(t.Context(), "/hang", false) })
		<-hang
	}
	if beats.Load() != 0 {
		t.Errorf("%d beats before anything came, want 0", beats.Load())
	}
	first := get(t.Context(), "/", true)
	if conns.Load() != 3 || beats.Load() < 2 {
		t.Errorf("%d connections and %d beats, want 3, and at least one for the headers and one for the body", conns.Load(), beats.Load())
	}
	if again := get(t.Context(), "/", false); again != first || conns.Load() != 3 {
		t.Errorf("the next request came from %s over one of %d connections, want it from %s", again, conns.Load(), first)
	}
	close(release)
	wg.Wait()
	if again := get(t.Context(), "/", false); again != first || conns.Load() != 3 {
		t.Errorf("a later request came from %s over one of %d connections, want it from %s", again, conns.Load(), first)
	}
}

// A request for a new connection that fails changes nothing.
func TestAnewFails(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
		}
		io.WriteString(w, r.RemoteAddr)
	}))
	defer server.Close()
	c := New(Options{})
	defer c.Close()
	get := func(ctx context.Context, path string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	first, err := get(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(pulse.With(t.Context(), func() { t.Error("a beat where nothing came") }, true))
	cancel()
	if _, err := get(ctx, "/hang"); err == nil {
		t.Error("a request whose context has ended succeeds")
	}
	if again, err := get(t.Context(), "/"); again != first || err != nil {
		t.Errorf("the next request came from %s, %v, want %s: the connection was good", again, err, first)
	}
}
