package httpstore_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/block"
	"overmount/store"
	"overmount/store/httpstore"
	"overmount/store/storetest"
)

const secret = "pAsSw0rd-7f3a"

// open returns a store on a server.
func open(t testing.TB, base string, opts *httpstore.Options) *httpstore.Store {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	s, err := httpstore.New(u, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// object returns the i-th test object.
func object(i int) (block.ID, []byte) { return storetest.Object(uint64(i), 20_000) }

// holding returns a store in memory with the given objects.
func holding(t testing.TB, objects ...int) *store.Mem {
	t.Helper()
	m := new(store.Mem)
	for _, i := range objects {
		id, bytes := object(i)
		if _, err := m.Put(t.Context(), id, bytes); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func wantObject(t *testing.T, r store.Reader, i int) {
	t.Helper()
	id, want := object(i)
	if got, err := r.Get(t.Context(), id); err != nil || !bytes.Equal(got, want) {
		t.Errorf("Get of object %d = %d bytes, %v, want it", i, len(got), err)
	}
}

// paths returns what was asked, with the object's number for its ID.
func paths(s *storetest.HTTPServer) (paths []string) {
	for _, r := range s.Requests() {
		p := r.Path
		for i := range 10 {
			id, _ := object(i)
			name := id.String()
			p = strings.ReplaceAll(p, name[:2]+"/"+name[2:4]+"/"+name, fmt.Sprintf("sharded2-%d", i))
			p = strings.ReplaceAll(p, name[:2]+"/"+name, fmt.Sprintf("sharded-%d", i))
			p = strings.ReplaceAll(p, name, fmt.Sprintf("flat-%d", i))
		}
		paths = append(paths, p)
	}
	return paths
}

func trust(s *storetest.HTTPServer) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return &tls.Config{RootCAs: pool}
}

func TestSuite(t *testing.T) {
	for _, layout := range []store.Layout{store.Sharded, store.Flat, store.Sharded2} {
		for name, opts := range map[string]storetest.HTTPOptions{
			"Plain":     {Base: "/some/prefix"},
			"HTTP2":     {TLS: true, HTTP2: true},
			"Forbids":   {Missing: storetest.Status(http.StatusForbidden)},
			"CatchAll":  {Missing: storetest.HTMLPage()},
			"EmptyPage": {Missing: storetest.Body("text/plain", "")},
		} {
			t.Run(layout.String()+name, func(t *testing.T) {
				storetest.Run(t, func(t *testing.T) storetest.Subject {
					if opts.Missing != nil && strings.HasSuffix(t.Name(), "/NotFound") {
						t.Skip("this server never says that it has not an object: TestMisses")
					}
					mem := new(store.Mem)
					server := storetest.NewHTTPServer(t, layout, mem, &opts)
					var o httpstore.Options
					if opts.TLS {
						o.TLS = trust(server)
					}
					return storetest.Subject{
						Reader: open(t, server.URL, &o),
						Seed: func(t *testing.T, id block.ID, object []byte) {
							if _, err := mem.Put(t.Context(), id, object); err != nil {
								t.Fatal(err)
							}
						},
						Checks: true,
						Stall: func(*testing.T) <-chan struct{} {
							arrived := make(chan struct{}, 16)
							server.Always(func(_ http.ResponseWriter, r *http.Request, _ block.ID, _ []byte) {
								arrived <- struct{}{}
								<-r.Context().Done()
							})
							return arrived
						},
					}
				})
			})
		}
	}
}

func TestRequests(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0), &storetest.HTTPOptions{Base: "/a b/c/d"})
	host := strings.TrimSuffix(strings.TrimPrefix(server.URL, "http://"), "/a b/c/d")
	base := "http://user:" + secret + "@" + host + "/a%20b/c%2Fd//?token=t#x"
	wantObject(t, open(t, base, nil), 0)

	got := server.Requests()[0]
	if got.Query != "token=t" || got.Path != "/a b/c/d/"+pathOf(0) {
		t.Errorf("asked for path %q, query %q, want one slash after the base and its query", got.Path, got.Query)
	}
	if got.RequestURI != "/a%20b/c%2Fd/"+pathOf(0)+"?token=t" {
		t.Errorf("request URI = %q, want the base's spelling", got.RequestURI)
	}
	if _, password, _ := (&http.Request{Header: got.Header}).BasicAuth(); password != secret {
		t.Errorf("basic authentication has password %q, want that of the URL", password)
	}
	for name, want := range map[string]string{"User-Agent": "overmount", "Accept-Encoding": ""} {
		if got := got.Header.Get(name); got != want {
			t.Errorf("header %s = %q, want %q", name, got, want)
		}
	}
}

func pathOf(i int) string {
	id, _ := object(i)
	return store.Sharded.Key(id)
}

func TestLayoutIsRemembered(t *testing.T) {
	for layout, want := range map[store.Layout][]string{
		store.Sharded:  {"/sharded-0", "/sharded-1"},
		store.Flat:     {"/sharded-0", "/flat-0", "/flat-1"},
		store.Sharded2: {"/sharded-0", "/flat-0", "/sharded2-0", "/sharded2-1"},
	} {
		for name, missing := range map[string]storetest.HTTPFault{
			"404":            nil,
			"410":            storetest.Status(http.StatusGone),
			"403":            storetest.Status(http.StatusForbidden),
			"400":            storetest.Status(http.StatusBadRequest),
			"web page":       storetest.HTMLPage(),
			"empty":          storetest.Body("", ""),
			"other bytes":    storetest.Body("application/octet-stream", "hello"),
			"too long":       storetest.Announce(block.MaxObject + 1),
			"without length": storetest.LongBody(10),
		} {
			server := storetest.NewHTTPServer(t, layout, holding(t, 0, 1), &storetest.HTTPOptions{Missing: missing})
			s := open(t, server.URL, nil)
			wantObject(t, s, 0)
			wantObject(t, s, 1)
			if diff := cmp.Diff(want, paths(server)); diff != "" {
				t.Errorf("%v, %s for the others: requests (-want +got)\n%s", layout, name, diff)
			}
		}
	}
}

// rfs wrote flat and others sharded into one bucket.
func TestMixedLayouts(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0, 1), nil)
	server.Add(store.Flat, holding(t, 2, 3))
	s := open(t, server.URL, nil)
	for i := range 4 {
		wantObject(t, s, i)
	}
	id, _ := object(4)
	if _, err := s.Get(t.Context(), id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of a missing object = %v, want ErrNotFound", err)
	}
	want := []string{"/sharded-0", "/sharded-1", "/sharded-2", "/flat-2", "/flat-3", "/flat-4", "/sharded-4", "/sharded2-4"}
	if diff := cmp.Diff(want, paths(server)); diff != "" {
		t.Errorf("requests (-want +got)\n%s", diff)
	}
}

func TestLayoutsOption(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Flat, holding(t, 0), nil)
	id, _ := object(0)
	if _, err := open(t, server.URL, &httpstore.Options{Layouts: []store.Layout{store.Sharded}}).Get(t.Context(), id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get under the wrong layout only = %v, want ErrNotFound", err)
	}
	wantObject(t, open(t, server.URL, &httpstore.Options{Layouts: []store.Layout{store.Flat}}), 0)
	if diff := cmp.Diff([]string{"/sharded-0", "/flat-0"}, paths(server)); diff != "" {
		t.Errorf("requests (-want +got)\n%s", diff)
	}
}

// A spoiled object under the known layout may be sound under another.
func TestSoundCopyUnderAnotherLayout(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0, 1), nil)
	server.Add(store.Flat, holding(t, 1))
	s := open(t, server.URL, nil)
	wantObject(t, s, 0)
	server.Next(storetest.SpoiledBody())
	wantObject(t, s, 1)
}

func TestMisses(t *testing.T) {
	status := storetest.Status
	for _, c := range []struct {
		name          string
		missing       storetest.HTTPFault
		before, after error // a first object came
		says          string
	}{
		{"404", status(404), store.ErrNotFound, store.ErrNotFound, "sharded 404, flat 404, sharded2 404"},
		{"410", status(410), store.ErrNotFound, store.ErrNotFound, "410"},
		{"403", status(403), store.ErrForbidden, store.ErrNotFound, "403"},
		{"400", status(400), store.ErrForbidden, store.ErrNotFound, "400"},
		{"401", status(401), store.ErrForbidden, store.ErrForbidden, "credentials"},
		{"407", status(407), store.ErrForbidden, store.ErrForbidden, "credentials"},
		{"web page", storetest.HTMLPage(), block.ErrCorrupt, block.ErrCorrupt, "web page"},
	} {
		server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0), &storetest.HTTPOptions{Missing: c.missing})
		s := open(t, server.URL, nil)
		for _, want := range []error{c.before, c.after} {
			id, _ := object(1)
			got, err := s.Get(t.Context(), id)
			if got != nil || !errors.Is(err, want) || store.Temporary(err) {
				t.Errorf("%s: Get of a missing object = %d bytes, %v, want %v", c.name, len(got), err, want)
			}
			if want != store.ErrNotFound && errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: Get = %v, which is ErrNotFound", c.name, err)
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), server.URL) {
				t.Errorf("%s: error %v does not say %q and %s", c.name, err, c.says, server.URL)
			}
			wantObject(t, s, 0)
		}
	}
}

// One forbidden path among unknown ones is not a plain "not found".
func TestForbiddenAmongMissing(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Sharded, holding(t), nil)
	server.Next(storetest.Status(404), storetest.Status(403))
	id, _ := object(0)
	if _, err := open(t, server.URL, nil).Get(t.Context(), id); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("Get = %v, want ErrForbidden", err)
	}
}

// short are limits for tests that wait for them to pass. What is no fault keeps them
// on a busy machine, too.
var short = httpstore.Options{HeaderTimeout: time.Second, RateWindow: time.Second}

type fault struct {
	fault storetest.HTTPFault
	is    error // nil: temporary
	says  string
	opts  *httpstore.Options // nil: it needs no limit to end
}

func faults() map[string]fault {
	return map[string]fault{
		"wrong bytes":        {storetest.SpoiledBody(), block.ErrCorrupt, "20000 bytes", nil},
		"truncated object":   {storetest.TruncatedBody(), block.ErrCorrupt, "10000 bytes", nil},
		"long body":          {storetest.LongBody(1), block.ErrCorrupt, "20001 bytes", nil},
		"endless body":       {storetest.LongBody(1 << 40), block.ErrCorrupt, "over the limit", nil},
		"huge length":        {storetest.Announce(1 << 40), block.ErrCorrupt, "over the limit", nil},
		"no bytes":           {storetest.Body("", ""), block.ErrCorrupt, "empty", nil},
		"web page":           {storetest.HTMLPage(), block.ErrCorrupt, "web page", nil},
		"body cut":           {storetest.ShortBody(), nil, "10000 of 20000 bytes", nil},
		"connection reset":   {storetest.Reset(), nil, "reset", nil},
		"silence":            {storetest.HangBeforeHeaders(storetest.NewGate()), nil, "timeout awaiting response headers", &short},
		"silence in body":    {storetest.HangInBody(storetest.NewGate()), nil, "too slow: less than", &short},
		"trickle":            {storetest.Trickle(10 * time.Millisecond), nil, "too slow: less than", &short},
		"500":                {storetest.Status(500), nil, "500 Internal Server Error", nil},
		"503":                {storetest.Status(503), nil, "503 Service Unavailable", nil},
		"206":                {storetest.Status(206), nil, "206 Partial Content", nil},
		"204":                {storetest.Status(204), nil, "204 No Content", nil},
		"299":                {storetest.Status(299), nil, "status 299", nil},
		"redirect to itself": {redirectToItself, nil, "more than 10 redirects", nil},
		"404":                {storetest.Status(404), store.ErrNotFound, "not found", nil},
	}
}

func redirectToItself(w http.ResponseWriter, r *http.Request, _ block.ID, _ []byte) {
	http.Redirect(w, r, r.URL.String(), http.StatusFound)
}

func TestFaults(t *testing.T) {
	for name, c := range faults() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0), nil)
			s := open(t, strings.Replace(server.URL, "://", "://user:"+secret+"@", 1)+"?token="+secret, c.opts)
			server.Always(c.fault)
			id, _ := object(0)
			got, err := s.Get(t.Context(), id)
			if got != nil || err == nil || store.Temporary(err) != (c.is == nil) || (c.is != nil && !errors.Is(err, c.is)) {
				t.Errorf("Get = %d bytes, %v, want %v (nil: a temporary error)", len(got), err, c.is)
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), server.URL) {
				t.Errorf("error %v does not say %q and %s", err, c.says, server.URL)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("error %q shows a secret", err)
			}
			server.Always(nil)
			wantObject(t, s, 0)
		})
	}
}

// Whatever one replica does, the other one gives the right bytes.
func TestRoutesSurviveAnyFault(t *testing.T) {
	for name, c := range faults() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0), nil)
			good := storetest.NewHTTPServer(t, store.Flat, holding(t, 0), nil)
			bad.Always(c.fault)
			wantObject(t, store.Routes{
				{First: 0x00, Last: 0xff, Reader: open(t, bad.URL, c.opts)},
				{First: 0x00, Last: 0xff, Reader: open(t, good.URL, nil)},
			}, 0)
			if len(bad.Requests()) == 0 {
				t.Error("the bad replica was not asked first")
			}
		})
	}
}

func TestRetryAfterReachesTheCaller(t *testing.T) {
	for _, code := range []int{429, 503} {
		server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0), nil)
		server.Next(storetest.Status(code, "Retry-After", "7"))
		id, _ := object(0)
		_, err := open(t, server.URL, nil).Get(t.Context(), id)
		var busy *store.BusyError
		if !errors.As(err, &busy) || busy.After != 7*time.Second || !store.Temporary(err) {
			t.Errorf("status %d with Retry-After: Get = %v, want a BusyError of 7 s", code, err)
		}
	}
}

func TestRedirects(t *testing.T) {
	target := storetest.NewHTTPServer(t, store.Flat, holding(t, 0), nil)
	secure := storetest.NewHTTPServer(t, store.Flat, holding(t, 0), &storetest.HTTPOptions{TLS: true})
	id, _ := object(0)

	plain := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0), nil)
	plain.Always(storetest.Redirect(target.URL, store.Flat))
	wantObject(t, open(t, plain.URL, nil), 0)
	plain.Always(storetest.Redirect(secure.URL, store.Flat))
	wantObject(t, open(t, plain.URL, &httpstore.Options{TLS: trust(secure)}), 0)

	secure.Always(storetest.Redirect(target.URL, store.Flat))
	before := len(target.Requests())
	_, err := open(t, secure.URL, &httpstore.Options{TLS: trust(secure)}).Get(t.Context(), id)
	if err == nil || !strings.Contains(err.Error(), "redirected from https to http") || len(target.Requests()) != before {
		t.Errorf("Get = %v after %d plain requests, want an error before any", err, len(target.Requests())-before)
	}

	secure.Always(storetest.Redirect("http://user:"+secret+"@"+strings.TrimPrefix(target.URL, "http://"), store.Flat))
	if _, err := open(t, secure.URL, &httpstore.Options{TLS: trust(secure)}).Get(t.Context(), id); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("Get = %v, want an error without the password in the redirect", err)
	}
}

func TestUntrustedServer(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Flat, holding(t, 0), &storetest.HTTPOptions{TLS: true})
	id, _ := object(0)
	if got, err := open(t, server.URL, nil).Get(t.Context(), id); got != nil || err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Get from a server with an unknown certificate = %d bytes, %v, want an error that says so", len(got), err)
	}
}

// dropped is how many connections a busy machine may cost: net/http does not keep one
// if 50 ms after the answer it has not noticed yet that the request was sent.
const dropped = 2

// Objects and misses alike leave the connection for the next request.
func TestConnectionsAreKept(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Flat, holding(t, 0, 1, 2), nil)
	s := open(t, server.URL, nil)
	missing, _ := object(3)
	for range 5 {
		for i := range 3 {
			wantObject(t, s, i)
		}
		if _, err := s.Get(t.Context(), missing); !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if got := server.Conns(); got > 1+dropped {
		t.Errorf("%d requests one after the other used %d connections, want 1", len(server.Requests()), got)
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	const limit, readers = 3, 12
	server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0, 1, 2, 3), nil)
	gate := storetest.NewGate()
	server.Always(storetest.HangBeforeHeaders(gate))
	s := open(t, server.URL, &httpstore.Options{Conns: limit})
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() { wantObject(t, s, i%4) })
	}
	for range limit {
		<-gate.Arrived()
	}
	gate.Open()
	wg.Wait()
	for range 4 {
		for i := range readers {
			wg.Go(func() { wantObject(t, s, i%4) })
		}
		wg.Wait()
	}
	if got := server.Conns(); got > limit+dropped {
		t.Errorf("%d readers used %d connections, want at most %d, kept", readers, got, limit)
	}
}

// After a time limit, the idle connections are not trusted either.
func TestIdleConnectionsAreDroppedAfterAFailure(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0, 1), nil)
	gate := storetest.NewGate()
	server.Always(storetest.HangBeforeHeaders(gate))
	s := open(t, server.URL, &short)
	go func() {
		<-gate.Arrived()
		<-gate.Arrived() // over two connections
		gate.Open()
	}()
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() { wantObject(t, s, i) })
	}
	wg.Wait()
	server.Always(nil)
	wantObject(t, s, 0)
	server.Next(storetest.HangBeforeHeaders(storetest.NewGate()))
	id, _ := object(0)
	if _, err := s.Get(t.Context(), id); err == nil {
		t.Fatal("Get from a silent server succeeded")
	}
	before := server.Conns()
	wantObject(t, s, 0)
	if got := server.Conns(); got != before+1 {
		t.Errorf("after a time limit there were %d new connections, want 1", got-before)
	}
}

// A read that began in an outage ends well soon after it.
func TestOutage(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0, 1), nil)
	waits := make(chan struct{})
	s := open(t, server.URL, nil)
	wantObject(t, s, 0)
	server.Stop()
	r := store.Retry(tap{s, sync.OnceFunc(func() { close(waits) })}, nil)
	done := make(chan time.Time)
	go func() {
		wantObject(t, r, 1)
		done <- time.Now()
	}()
	<-waits // the first try has failed
	server.Start()
	up := time.Now()
	if late := (<-done).Sub(up); late > 2*time.Second {
		t.Errorf("Get returned %v after the server came back, want at most 2 s", late)
	}
}

// A tap tells of failures.
type tap struct {
	store.Reader
	failed func()
}

func (c tap) Get(ctx context.Context, id block.ID) ([]byte, error) {
	object, err := c.Reader.Get(ctx, id)
	if err != nil {
		c.failed()
	}
	return object, err
}

func TestCancelInBody(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0), nil)
	gate := storetest.NewGate()
	server.Always(storetest.HangInBody(gate))
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-gate.Arrived()
		cancel(errors.New("the reader was killed"))
	}()
	id, _ := object(0)
	if _, err := open(t, server.URL, nil).Get(ctx, id); !errors.Is(err, context.Canceled) {
		t.Errorf("Get cancelled in the body = %v, want context.Canceled", err)
	}
}

func TestNewErrors(t *testing.T) {
	for base, want := range map[string]string{
		"s3://user:" + secret + "@h/b":      `scheme is "s3"`,
		"http:///path?token=" + secret:      "no host",
		"https://user:" + secret + "@:80/b": "no host",
		"/srv":                              `scheme is ""`,
	} {
		u, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		s, err := httpstore.New(u, nil)
		if s != nil || err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("New(%q) = %v, %v, want an error that says %q and no secret", base, s, err, want)
		}
	}
}

func BenchmarkHTTPGet(b *testing.B) {
	mem := new(store.Mem)
	id, object := storetest.Object(1, 200<<10)
	if _, err := mem.Put(b.Context(), id, object); err != nil {
		b.Fatal(err)
	}
	server := storetest.NewHTTPServer(b, store.Sharded, mem, nil)
	s := open(b, server.URL, nil)
	b.Run("One", func(b *testing.B) {
		b.SetBytes(int64(len(object)))
		for b.Loop() {
			if _, err := s.Get(b.Context(), id); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Parallel", func(b *testing.B) {
		b.SetBytes(int64(len(object)))
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := s.Get(b.Context(), id); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
