package main

import (
	"net"
	"net/http"
	"sync"
)

// A traffic is what a file server has sent.
type traffic struct {
	objects int   // whole answers
	bytes   int64 // of their bodies
	misses  int   // answers that a name is not there
}

func (t traffic) minus(u traffic) traffic {
	return traffic{t.objects - u.objects, t.bytes - u.bytes, t.misses - u.misses}
}

// A fileServer serves a directory on a loopback port and counts what it sends.
type fileServer struct {
	url    string
	server *http.Server
	done   chan struct{}

	mu   sync.Mutex
	sent traffic
}

func serve(dir string) (*fileServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &fileServer{url: "http://" + l.Addr().String(), done: make(chan struct{})}
	files := http.FileServer(http.Dir(dir))
	s.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		files.ServeHTTP(&answer{w, s}, r)
	})}
	go func() {
		defer close(s.done)
		_ = s.server.Serve(l) // until it is closed
	}()
	return s, nil
}

// traffic returns what was sent so far. Concurrent use is safe.
func (s *fileServer) traffic() traffic {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

func (s *fileServer) close() {
	s.server.Close()
	<-s.done
}

// An answer counts before it sends, so that who has the answer finds it counted.
type answer struct {
	http.ResponseWriter
	server *fileServer
}

func (a *answer) WriteHeader(status int) {
	a.server.mu.Lock()
	if status == http.StatusOK {
		a.server.sent.objects++
	} else {
		a.server.sent.misses++
	}
	a.server.mu.Unlock()
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	a.server.mu.Lock()
	a.server.sent.bytes += int64(len(p))
	a.server.mu.Unlock()
	return a.ResponseWriter.Write(p)
}
