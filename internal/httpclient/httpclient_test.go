package httpclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		value, date string
		want        time.Duration
		ok          bool
	}{
		{"", "", 0, false},
		{"0", "", 0, true},
		{"120", "", 2 * time.Minute, true},
		{"-1", "", 0, false},
		{"1.5", "", 0, false},
		{"soon", "", 0, false},
		{"9223372036854775807", "", 9223372036 * time.Second, true},
		{"99999999999999999999", "", 0, false},
		{"Tue, 24 Nov 2026 12:00:30 GMT", "", 30 * time.Second, true},
		{"Tue, 24 Nov 2026 11:59:30 GMT", "", 0, true},
		// The server's clock counts, not that of a machine that boots.
		{"Tue, 24 Nov 2026 12:00:30 GMT", "Tue, 24 Nov 2026 12:00:20 GMT", 10 * time.Second, true},
		{"Tue, 24 Nov 2026 12:00:30 GMT", "garbage", 30 * time.Second, true},
	} {
		h := http.Header{}
		h.Set("Retry-After", c.value)
		h.Set("Date", c.date)
		if got, ok := RetryAfter(h, now); got != c.want || ok != c.ok {
			t.Errorf("RetryAfter(%q, Date %q) = %v, %v, want %v, %v", c.value, c.date, got, ok, c.want, c.ok)
		}
	}
}

// A body that comes in parts at intervals.
func TestDownload(t *testing.T) {
	for _, c := range []struct {
		name  string
		part  int
		every time.Duration
		parts int
		ok    bool
	}{
		{"just fast enough", 1024, 900 * time.Millisecond, 600, true},
		{"too slow", 1024, 1100 * time.Millisecond, 600, false},
		{"one byte at a time", 1, time.Second, 600, false},
		{"pauses of 9 s", 20 << 10, 9 * time.Second, 30, true},
		{"pauses of 11 s", 20 << 10, 11 * time.Second, 30, false},
		{"short, and done in the window", 1, time.Second, 9, true},
		{"short, and not", 1, time.Second, 12, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				r, w := io.Pipe()
				defer context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })()
				go func() {
					for range c.parts {
						select {
						case <-time.After(c.every): // the bubble's clock
						case <-ctx.Done():
							return
						}
						if _, err := w.Write(make([]byte, c.part)); err != nil {
							return
						}
					}
					w.Close()
				}()
				start := time.Now()
				body := New(Options{}).watchDownload(ctx, cancel, r)
				n, err := io.Copy(io.Discard, body)
				body.Close()
				if c.ok && (err != nil || n != int64(c.part*c.parts)) {
					t.Errorf("read %d bytes, %v after %v, want all %d", n, err, time.Since(start), c.part*c.parts)
				}
				if !c.ok && !errors.Is(err, errTooSlow) {
					t.Errorf("read %d bytes, %v after %v, want errTooSlow", n, err, time.Since(start))
				}
			})
		})
	}
}

// A body that the network takes in parts at intervals.
func TestUpload(t *testing.T) {
	for _, c := range []struct {
		name  string
		size  int
		part  int
		every time.Duration
		ok    bool
	}{
		{"just fast enough", 600 << 10, 1024, 900 * time.Millisecond, true},
		{"too slow", 600 << 10, 1024, 1100 * time.Millisecond, false},
		{"great buffers, pauses of 9 s", 600 << 10, 1 << 20, 9 * time.Second, true},
		{"great buffers, pauses of 11 s", 600 << 10, 1 << 20, 11 * time.Second, false},
		{"all in buffers, answer after 24 s", 100, 1 << 20, 24 * time.Second, true},
		{"all in buffers, answer after 26 s", 100, 1 << 20, 26 * time.Second, false},
		{"empty", 0, 1024, 9 * time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				client := New(Options{})
				p := client.newPace(cancel)
				req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://host/", bytes.NewReader(make([]byte, c.size)))
				if err != nil {
					t.Fatal(err)
				}
				client.watchUpload(req, p)
				for part := make([]byte, c.part); ctx.Err() == nil && err == nil; {
					_, err = io.ReadFull(req.Body, part[:min(c.part, p.quantum)])
					select {
					case <-time.After(c.every): // the bubble's clock
					case <-ctx.Done():
					}
				}
				p.stop()
				if got := context.Cause(ctx); c.ok && got != nil || !c.ok && !errors.Is(got, errTooSlow) {
					t.Errorf("the request's context says %v, want an error: %v", got, !c.ok)
				}
			})
		})
	}
}

// Who is over cannot be cancelled by what the transport still reads.
func TestUploadAfterTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		p := New(Options{}).newPace(cancel)
		p.moved(0)
		p.stop()
		p.moved(1 << 20)
		p.rest(time.Second)
		<-time.After(time.Hour) // the bubble's clock
		if ctx.Err() != nil {
			t.Errorf("a request that was answered is cancelled: %v", context.Cause(ctx))
		}
	})
}

// A server that takes the connection and reads nothing.
func TestUploadToSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := New(Options{RateWindow: 200 * time.Millisecond, HeaderTimeout: 200 * time.Millisecond})
	defer c.Close()
	body := bytes.NewReader(make([]byte, 64<<20)) // more than all buffers
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+l.Addr().String(), body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err == nil {
		resp.Body.Close()
	}
	if !errors.Is(err, errTooSlow) {
		t.Errorf("Do = %v, want errTooSlow", err)
	}
}

// A connection that died while idle costs the request nothing, its body is sent
// again, and under the same limits.
func TestUploadOnADeadConnection(t *testing.T) {
	const size = 100_000
	var mu sync.Mutex
	var got []int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, len(body))
		if len(got) == 2 {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			conn.Close()
		}
	}))
	defer server.Close()
	c := New(Options{})
	defer c.Close()
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, server.URL, strings.NewReader(strings.Repeat("x", size)))
		if err != nil {
			t.Fatal(err)
		}
		// Idempotent for net/http, which then sends the request again.
		req.Header.Set("Idempotency-Key", "1")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("Do = %v", err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	if len(got) != 3 || got[2] != size {
		t.Errorf("the server read bodies of %v bytes, want three of %d", got, size)
	}
}

func TestReadAll(t *testing.T) {
	for _, c := range []struct {
		body         string
		length, most int64
		want         string
		ok           bool
	}{
		{"", 0, 3, "", true},
		{"abc", 3, 3, "abc", true},
		{"abc", -1, 3, "abc", true},
		{"abcd", -1, 3, "abc", true},
		{"abcd", 4, 3, "abc", true},
		{"abcd", 1 << 60, 3, "abc", true},
		{"ab", 3, 3, "", false},
	} {
		got, err := ReadAll(strings.NewReader(c.body), c.length, c.most)
		if string(got) != c.want || (err == nil) != c.ok {
			t.Errorf("ReadAll(%q, %d, %d) = %q, %v, want %q, an error: %v", c.body, c.length, c.most, got, err, c.want, !c.ok)
		}
	}
}

// The usual way to follow redirects: not from https to http, and without a word of the
// URL that redirected.
func TestRedirects(t *testing.T) {
	asked := make(chan string, 1)
	end := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Header.Get("Referer") }))
	defer end.Close()
	plain, secure := httptest.NewServer(http.RedirectHandler(end.URL, http.StatusFound)), httptest.NewTLSServer(http.RedirectHandler(end.URL, http.StatusFound))
	defer plain.Close()
	defer secure.Close()
	c := New(Options{TLS: secure.Client().Transport.(*http.Transport).TLSClientConfig})
	defer c.Close()
	get := func(from string) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, from+"/?token=hunter2", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := get(plain.URL); err != nil {
		t.Fatal(err)
	}
	if referer := <-asked; referer != "" {
		t.Errorf("the server that was redirected to hears of %q", referer)
	}
	if err := get(secure.URL); err == nil || !strings.Contains(err.Error(), "from https to http") {
		t.Errorf("redirected from https to http: %v, want an error", err)
	}
}
