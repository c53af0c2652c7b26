package httpclient

import (
	"net"
	"net/http"
	"sync"
	"time"

	"overmount/internal/pulse"
)

// lines are the connections to servers. Requests that want a new one ([pulse.Anew])
// get it at once, however many there are already: those of half a second have new
// lines of their own, with the same limit. When one of them is answered, the new
// lines take the place of the old ones, which were silent. No later request meets
// a connection that is dead, or waits for one that is to be free.
type lines struct {
	opts Options

	mu      sync.Mutex
	current *http.Transport
	fresh   *http.Transport // the newest; nil, or current, if there is none beside it
	made    time.Time       // when fresh was
}

// freshFor is how long lines are new.
const freshFor = 500 * time.Millisecond

func newLines(o Options) *lines { return &lines{opts: o, current: newTransport(o)} }

func newTransport(o Options) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: o.ConnectTimeout}).DialContext,
		TLSHandshakeTimeout:   o.ConnectTimeout,
		TLSClientConfig:       o.TLS.Clone(),
		ResponseHeaderTimeout: o.HeaderTimeout,
		MaxConnsPerHost:       o.Conns,
		MaxIdleConnsPerHost:   o.Conns,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true,
		ForceAttemptHTTP2:     true,
		// One HTTP/2 connection carries all requests, and must not be kept when
		// it is dead.
		HTTP2: &http.HTTP2Config{SendPingTimeout: o.HeaderTimeout / 3, PingTimeout: o.HeaderTimeout / 3},
	}
}

// RoundTrip implements http.RoundTripper.
func (l *lines) RoundTrip(req *http.Request) (*http.Response, error) {
	t := l.choose(pulse.Anew(req.Context()))
	resp, err := t.RoundTrip(req)
	if err == nil {
		l.answered(t)
	}
	return resp, err
}

func (l *lines) choose(anew bool) *http.Transport {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !anew {
		return l.current
	}
	if now := time.Now(); l.fresh == nil || now.Sub(l.made) >= freshFor {
		if l.fresh != nil && l.fresh != l.current {
			l.fresh.CloseIdleConnections() // also what is being made
		}
		l.fresh, l.made = newTransport(l.opts), now
	}
	return l.fresh
}

// answered puts the newest lines in the place of the old ones.
func (l *lines) answered(t *http.Transport) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t == l.fresh && t != l.current {
		l.current.CloseIdleConnections()
		l.current = t
	}
}

// CloseIdleConnections is for http.Client's.
func (l *lines) CloseIdleConnections() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current.CloseIdleConnections()
	if l.fresh != nil {
		l.fresh.CloseIdleConnections()
	}
}
