package storetest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// A ProxyFault is what a [Proxy] does to connections. The zero ProxyFault lets all
// pass.
type ProxyFault struct {
	// Refuse refuses new connections, and resets those that are open.
	Refuse bool

	// Hang accepts, and passes nothing on, both ways and also in mid-flow. What
	// came in the meantime is passed on when the fault is over.
	Hang bool

	// Swallow takes all and passes nothing on, as a way does that has gone. A
	// connection to which this happened stays dead when the fault is over, and
	// is not told.
	Swallow bool

	// Rate is how many bytes a second go to the client, for each connection. 0
	// is no limit.
	Rate int

	// ResetAfter resets a connection after so many bytes to the client. 0 is
	// never.
	ResetAfter int

	// Delay is the time that each piece of an answer waits before it goes on.
	Delay time.Duration
}

// A Proxy passes TCP connections on to a server, and does to them what can happen
// on the way. It has an address of the loopback of its own, so that nobody else
// gets its port while it refuses. Concurrent use is safe.
type Proxy struct {
	Addr string // host:port

	t testing.TB

	mu       sync.Mutex
	to       string
	fault    ProxyFault
	next     []ProxyFault
	changed  chan struct{} // closed when fault is another
	listener net.Listener  // nil while it refuses
	open     map[*proxied]bool
	conns    int
	ended    bool
	running  sync.WaitGroup
}

// NewProxy starts a proxy for the server at an address. It ends, with all its
// connections, when the test does.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	p := &Proxy{t: t, to: to, changed: make(chan struct{}), open: map[*proxied]bool{}}
	p.Addr = fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listen()
	p.Addr = p.listener.Addr().String()
	t.Cleanup(p.end)
	return p
}

// listen begins to accept. The caller holds p.mu.
func (p *Proxy) listen() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.Addr)
	if err != nil {
		p.t.Fatalf("start the test proxy: %v", err)
	}
	p.listener = l
	p.running.Go(func() { p.accept(l) })
}

// refuse ends accepting, and resets what is open. The caller holds p.mu.
func (p *Proxy) refuse() {
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	for c := range p.open {
		c.reset()
	}
}

func (p *Proxy) end() {
	p.mu.Lock()
	p.ended = true
	p.refuse()
	p.mu.Unlock()
	p.running.Wait()
}

// Set does fault to all connections from now on, to those that are open, too.
func (p *Proxy) Set(fault ProxyFault) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
	close(p.changed)
	p.changed = make(chan struct{})
	switch {
	case fault.Refuse || p.ended:
		p.refuse()
	case p.listener == nil:
		p.listen()
	}
}

// Next does one fault to each of the next connections, for as long as they last,
// instead of what Set says. Refuse is not for one connection: it is reset.
func (p *Proxy) Next(faults ...ProxyFault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = append(p.next, faults...)
}

// Forward leads new connections to another server.
func (p *Proxy) Forward(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
}

// Conns returns the number of connections that were accepted so far.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns
}

func (p *Proxy) accept(l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		c := &proxied{p: p, client: client, done: make(chan struct{})}
		p.mu.Lock()
		p.conns++
		if len(p.next) > 0 {
			c.own, p.next = &p.next[0], p.next[1:]
		}
		if p.listener != l || c.own != nil && c.own.Refuse {
			c.reset()
		} else {
			p.open[c] = true
			p.running.Go(c.run)
		}
		p.mu.Unlock()
	}
}

// A proxied is one connection.
type proxied struct {
	p      *Proxy
	own    *ProxyFault // instead of the proxy's; nil: none
	client net.Conn

	ending sync.Once
	done   chan struct{} // closed by reset
	dead   bool          // swallowed; under p.mu
}

// reset ends the connection to the client in the way of one that breaks.
func (c *proxied) reset() {
	c.ending.Do(func() {
		close(c.done)
		if tcp, ok := c.client.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		c.client.Close()
	})
}

// wait returns when the connection may pass something on, with the fault that it
// has to be done with; or false if nothing is to be passed on.
func (c *proxied) wait() (ProxyFault, bool) {
	for {
		c.p.mu.Lock()
		fault, changed := c.p.fault, c.p.changed
		if c.own != nil {
			fault = *c.own
		}
		c.dead = c.dead || fault.Swallow
		dead := c.dead
		c.p.mu.Unlock()
		if dead || !fault.Hang {
			return fault, !dead
		}
		select {
		case <-changed:
		case <-c.done:
			return fault, false
		}
	}
}

// pause waits, and reports whether the connection is still there after it.
func (c *proxied) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.done:
		return false
	}
}

func (c *proxied) run() {
	defer func() {
		c.p.mu.Lock()
		delete(c.p.open, c)
		c.p.mu.Unlock()
		c.client.Close()
	}()
	if _, ok := c.wait(); !ok {
		io.Copy(io.Discard, c.client)
		return
	}
	c.p.mu.Lock()
	to := c.p.to
	c.p.mu.Unlock()
	server, err := net.DialTimeout("tcp", to, 10*time.Second)
	if err != nil {
		c.reset()
		return
	}
	c.p.running.Go(func() {
		c.answers(server)
		server.Close()
	})
	c.requests(server)
	server.Close()
}

// requests passes on what the client sends until it leaves.
func (c *proxied) requests(server net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.client.Read(buf)
		if n > 0 {
			if _, ok := c.wait(); ok {
				server.Write(buf[:n]) // if it fails, answers ends the connection
			}
		}
		if err != nil {
			return
		}
	}
}

// answers passes on what the server sends, and closes the connection to the
// client when the server does.
func (c *proxied) answers(server net.Conn) {
	buf := make([]byte, 64<<10)
	for sent := 0; ; {
		n, err := server.Read(buf)
		for piece := buf[:n]; len(piece) > 0; {
			m, ok := c.answer(piece, sent)
			if !ok {
				return
			}
			piece, sent = piece[m:], sent+m
		}
		if err != nil {
			if _, ok := c.wait(); ok {
				c.client.Close()
			}
			return
		}
	}
}

// answer passes on a part of piece, of which it returns the length, after sent
// bytes before it; or false if nothing more is to be passed on.
func (c *proxied) answer(piece []byte, sent int) (int, bool) {
	fault, ok := c.wait()
	if !ok || fault.Delay > 0 && !c.pause(fault.Delay) {
		return 0, false
	}
	n := len(piece)
	if fault.Rate > 0 {
		n = min(n, max(fault.Rate/10, 1))
	}
	if fault.ResetAfter > 0 {
		if n = min(n, fault.ResetAfter-sent); n <= 0 {
			c.reset()
			return 0, false
		}
	}
	if n, err := c.client.Write(piece[:n]); err != nil {
		return n, false
	}
	if fault.Rate > 0 && !c.pause(time.Duration(n)*time.Second/time.Duration(fault.Rate)) {
		return n, false
	}
	return n, true
}
