package storetest_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"overmount/store/storetest"
)

// echo starts a server that sends back what it gets, and returns its address.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, p *storetest.Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// first connects and reads a byte. A reset may come as early as in the connect.
func first(p *storetest.Proxy) error {
	c, err := net.Dial("tcp", p.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return err
}

// echoes checks that a connection brings back n bytes.
func echoes(t *testing.T, c net.Conn, n int) {
	t.Helper()
	want := bytes.Repeat([]byte("0123456789"), n/10+1)[:n]
	go c.Write(want)
	got := make([]byte, n)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if m, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes come back, %v; want the same %d", m, err, n)
	}
}

// silent checks that a connection brings nothing back. It has to wait for nothing.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	c.Write([]byte("x"))
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes, %v come back, want none and no end", n, err)
	}
}

func TestProxyPasses(t *testing.T) {
	p := storetest.NewProxy(t, echo(t))
	echoes(t, dial(t, p), 1<<20)
	p.Forward("127.0.0.1:1")
	if err := first(p); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection to a server that is not there: %v, want a reset", err)
	}
	if n := p.Conns(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestProxyRefuses(t *testing.T) {
	p := storetest.NewProxy(t, echo(t))
	c := dial(t, p)
	echoes(t, c, 10)
	p.Set(storetest.ProxyFault{Refuse: true})
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read of an open connection: %v, want a reset", err)
	}
	if _, err := net.Dial("tcp", p.Addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connect: %v, want it refused", err)
	}
	p.Set(storetest.ProxyFault{})
	echoes(t, dial(t, p), 10)
}

func TestProxyHangs(t *testing.T) {
	p := storetest.NewProxy(t, echo(t))
	before := dial(t, p)
	echoes(t, before, 10)
	p.Set(storetest.ProxyFault{Hang: true})
	during := dial(t, p)
	silent(t, before)
	silent(t, during)
	p.Set(storetest.ProxyFault{})
	for _, c := range []net.Conn{before, during} {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("after the fault %d bytes, %v come, want what was held back", n, err)
		}
	}
}

func TestProxySwallows(t *testing.T) {
	p := storetest.NewProxy(t, echo(t))
	before := dial(t, p)
	echoes(t, before, 10)
	p.Set(storetest.ProxyFault{Swallow: true})
	during := dial(t, p)
	silent(t, before)
	silent(t, during)
	// A busy machine may not have come to swallow anything yet.
	for end := time.Now().Add(10 * time.Second); p.Dead() < 2; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d connections are dead, want 2", p.Dead())
		}
	}
	p.Set(storetest.ProxyFault{})
	silent(t, before)
	silent(t, during)
	echoes(t, dial(t, p), 10)
}

func TestProxyResets(t *testing.T) {
	p := storetest.NewProxy(t, echo(t))
	p.Next(storetest.ProxyFault{}, storetest.ProxyFault{ResetAfter: 1000}, storetest.ProxyFault{Refuse: true})
	whole, cut := dial(t, p), dial(t, p)
	if err := first(p); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the third connection: %v, want a reset", err)
	}
	echoes(t, whole, 2000)
	go cut.Write(make([]byte, 2000))
	if b, err := io.ReadAll(cut); len(b) > 1000 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d bytes, %v come back, want a reset after 1000 at most", len(b), err)
	}
	echoes(t, dial(t, p), 2000)
}

func TestProxySlows(t *testing.T) {
	p := storetest.NewProxy(t, echo(t))
	for _, fault := range []storetest.ProxyFault{{Rate: 10_000}, {Delay: 200 * time.Millisecond}} {
		p.Set(fault)
		c := dial(t, p)
		start := time.Now()
		echoes(t, c, 3000)
		if took := time.Since(start); took < 150*time.Millisecond {
			t.Errorf("with %+v, 3000 bytes take %v", fault, took)
		}
	}
}
