package storetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store"
)

// HTTPOptions are the options of [NewHTTPServer]. Nil and zero mean the defaults.
type HTTPOptions struct {
	Base    string           // path before every key, as "/a/b"; default none
	TLS     bool             // https, with [HTTPServer.Certificate]
	HTTP2   bool             // with TLS, also HTTP/2
	Cert    *tls.Certificate // with TLS; default one of httptest's, which nobody trusts
	Missing HTTPFault        // what a path without an object gets; default 404
}

// An HTTPServer is a web server on the loopback over a store. It fails as told,
// and counts. Requests that hang end when their client leaves, or with Stop.
// Concurrent use is safe.
type HTTPServer struct {
	URL string // with the base path, without a slash at the end

	t    testing.TB
	opts HTTPOptions
	addr string

	conns, sent atomic.Int64

	mu       sync.Mutex
	sources  map[store.Layout]store.Reader
	always   HTTPFault
	next     []HTTPFault
	requests []HTTPRequest
	server   *httptest.Server // nil while stopped
	stopping chan struct{}
}

// An HTTPRequest is what a server has seen of one request.
type HTTPRequest struct {
	Method, Path, Query string
	RequestURI          string // path and query as they were spelled
	Header              http.Header
}

// NewHTTPServer starts a server that serves the objects of src under one layout.
// It ends with the test.
func NewHTTPServer(t testing.TB, layout store.Layout, src store.Reader, opts *HTTPOptions) *HTTPServer {
	t.Helper()
	s := &HTTPServer{t: t, addr: testenv.Address(t), sources: map[store.Layout]store.Reader{layout: src}}
	if opts != nil {
		s.opts = *opts
	}
	scheme := "http://"
	if s.opts.TLS {
		scheme = "https://"
	}
	s.URL = scheme + s.addr + s.opts.Base
	if s.opts.Missing == nil {
		s.opts.Missing = Status(http.StatusNotFound)
	}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Add serves src under another layout as well.
func (s *HTTPServer) Add(layout store.Layout, src store.Reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sources[layout] = src
}

// Start starts a stopped server again, at the same address.
func (s *HTTPServer) Start() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatalf("start the test server: %v", err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	server.Listener.Close()
	server.Listener = &countingListener{l, s}
	server.EnableHTTP2 = s.opts.HTTP2
	if s.opts.TLS {
		if s.opts.Cert != nil {
			server.TLS = &tls.Config{Certificates: []tls.Certificate{*s.opts.Cert}}
		}
		server.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust it
		server.StartTLS()
	} else {
		server.Start()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server, s.stopping = server, make(chan struct{})
}

// Stop cuts every connection and refuses new ones. Stopping twice is fine.
func (s *HTTPServer) Stop() {
	s.mu.Lock()
	server := s.server
	s.server = nil
	if server != nil {
		close(s.stopping)
	}
	s.mu.Unlock()
	if server != nil {
		server.CloseClientConnections()
		server.Close()
	}
}

// Certificate returns the certificate of a server with TLS.
func (s *HTTPServer) Certificate() *x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server.Certificate()
}

// Always does fault with every request from now on; nil makes the server work.
func (s *HTTPServer) Always(fault HTTPFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.always = fault
}

// Next does one fault with each of the next requests, before what Always says; a
// nil in the list lets its request work.
func (s *HTTPServer) Next(faults ...HTTPFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = append(s.next, faults...)
}

// Requests returns what was asked so far, in order of arrival.
func (s *HTTPServer) Requests() []HTTPRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]HTTPRequest(nil), s.requests...)
}

// Conns returns the number of TCP connections so far.
func (s *HTTPServer) Conns() int64 { return s.conns.Load() }

// Sent returns the number of bytes sent so far, headers included.
func (s *HTTPServer) Sent() int64 { return s.sent.Load() }

func (s *HTTPServer) serve(w http.ResponseWriter, r *http.Request) {
	fault, source, stopping := s.begin(r)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		select {
		case <-stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	r = r.WithContext(ctx)
	id, object, err := s.find(r, source)
	switch {
	case fault != nil:
		fault(w, r, id, object)
	case errors.Is(err, store.ErrNotFound):
		s.opts.Missing(w, r, id, nil)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadGateway)
	default:
		ServeObject(w, r, id, object)
	}
	if ctx.Err() != nil {
		panic(http.ErrAbortHandler) // returning would end the answer as if it were whole
	}
}

// begin counts a request and returns what to do with it: the fault, if any, and
// the store for its path, if any.
func (s *HTTPServer) begin(r *http.Request) (HTTPFault, store.Reader, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, HTTPRequest{r.Method, r.URL.Path, r.URL.RawQuery, r.RequestURI, r.Header.Clone()})
	fault := s.always
	if len(s.next) > 0 {
		fault, s.next = s.next[0], s.next[1:]
	}
	for layout, source := range s.sources {
		if id, err := pathID(r); err == nil && r.URL.Path == s.opts.Base+"/"+layout.Key(id) {
			return fault, source, s.stopping
		}
	}
	return fault, nil, s.stopping
}

func pathID(r *http.Request) (block.ID, error) {
	return block.ParseID(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
}

func (s *HTTPServer) find(r *http.Request, source store.Reader) (block.ID, []byte, error) {
	id, err := pathID(r)
	if err != nil || source == nil {
		return id, nil, store.ErrNotFound
	}
	object, err := source.Get(r.Context(), id)
	return id, object, err
}

// An HTTPFault answers one request. object is what the path names, nil for
// nothing. The request's context ends when the client leaves or the server stops.
type HTTPFault func(w http.ResponseWriter, r *http.Request, id block.ID, object []byte)

// ServeObject answers the object, as a server that works does.
func ServeObject(w http.ResponseWriter, r *http.Request, _ block.ID, object []byte) {
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(object))
}

// Status answers a status, with headers as pairs of name and value.
func Status(code int, header ...string) HTTPFault {
	return func(w http.ResponseWriter, _ *http.Request, _ block.ID, _ []byte) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		http.Error(w, http.StatusText(code), code)
	}
}

// HTMLPage answers 200 with a web page, as a portal or a catch-all site does.
func HTMLPage() HTTPFault {
	return Body("text/html; charset=utf-8", "<!doctype html><title>Welcome</title>")
}

// Body answers 200 with a body of the given type.
func Body(contentType, body string) HTTPFault {
	return func(w http.ResponseWriter, _ *http.Request, _ block.ID, _ []byte) {
		w.Header().Set("Content-Type", contentType)
		fmt.Fprint(w, body)
	}
}

// SpoiledBody answers the object with one bit flipped.
func SpoiledBody() HTTPFault {
	return func(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
		wrong := bytes.Clone(object)
		if len(wrong) > 0 {
			wrong[len(wrong)/2] ^= 1
		}
		ServeObject(w, r, id, wrong)
	}
}

// ShortBody announces the object's length, sends half, and cuts the connection.
func ShortBody() HTTPFault {
	return func(w http.ResponseWriter, _ *http.Request, _ block.ID, object []byte) {
		announce(w, object)
		w.Write(object[:len(object)/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// TruncatedBody answers the first half of the object, and says that this is all.
func TruncatedBody() HTTPFault {
	return func(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
		ServeObject(w, r, id, object[:len(object)/2])
	}
}

// LongBody answers the object and n bytes more, without saying the length.
func LongBody(n int) HTTPFault {
	return func(w http.ResponseWriter, _ *http.Request, _ block.ID, object []byte) {
		w.(http.Flusher).Flush() // from here on the length cannot be announced
		w.Write(object)
		chunk := make([]byte, 64<<10)
		for left := n; left > 0; {
			m, err := w.Write(chunk[:min(left, len(chunk))])
			if err != nil {
				return
			}
			left -= m
		}
	}
}

// Announce says that the body has n bytes, and hangs.
func Announce(n int64) HTTPFault {
	return func(w http.ResponseWriter, r *http.Request, _ block.ID, _ []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(n))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
}

// HangBeforeHeaders sends nothing. Each request is announced at the gate, and
// served when it opens.
func HangBeforeHeaders(g *Gate) HTTPFault {
	return func(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
		if g.wait(r.Context(), id) == nil {
			ServeObject(w, r, id, object)
		}
	}
}

// HangInBody sends half the object. Each request is then announced at the gate,
// and gets the rest when it opens.
func HangInBody(g *Gate) HTTPFault {
	return func(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
		announce(w, object)
		half := len(object) / 2
		w.Write(object[:half])
		w.(http.Flusher).Flush()
		if g.wait(r.Context(), id) == nil {
			w.Write(object[half:])
		}
	}
}

// Trickle sends the object one byte at a time.
func Trickle(every time.Duration) HTTPFault {
	return func(w http.ResponseWriter, r *http.Request, _ block.ID, object []byte) {
		announce(w, object)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := range object {
			w.Write(object[i : i+1])
			w.(http.Flusher).Flush()
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	}
}

// Reset ends the connection with a TCP reset before any answer. It needs HTTP/1.
func Reset() HTTPFault {
	return func(w http.ResponseWriter, _ *http.Request, _ block.ID, _ []byte) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		if c, ok := conn.(*countingConn); ok {
			if tcp, ok := c.Conn.(*net.TCPConn); ok {
				tcp.SetLinger(0)
			}
		}
		conn.Close()
	}
}

// Redirect sends the client to base, with the key that it asked for.
func Redirect(base string, layout store.Layout) HTTPFault {
	return func(w http.ResponseWriter, r *http.Request, id block.ID, _ []byte) {
		http.Redirect(w, r, base+"/"+layout.Key(id), http.StatusFound)
	}
}

func announce(w http.ResponseWriter, object []byte) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", fmt.Sprint(len(object)))
}

type countingListener struct {
	net.Listener
	s *HTTPServer
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.s.conns.Add(1)
	return &countingConn{c, l.s}, nil
}

type countingConn struct {
	net.Conn
	s *HTTPServer
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.s.sent.Add(int64(n))
	return n, err
}
