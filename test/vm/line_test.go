package vm_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// slowLine listens on the loopback, and hands what comes to another address there
// and back, as over a line with this round trip. It returns its own address. There
// is no limit to what the line takes at a time.
func slowLine(t *testing.T, to string, rtt time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { carry(near, to, rtt) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// carry serves one connection. Both ends close when one has.
func carry(near net.Conn, to string, rtt time.Duration) {
	defer near.Close()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	<-time.After(rtt) // of the handshake
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		wg.Go(func() {
			delay(way[1], way[0], rtt/2)
			near.Close()
			far.Close()
		})
	}
	wg.Wait()
}

// A chunk is on its way until it is due.
type chunk struct {
	data []byte
	due  time.Time
}

// delay copies until the source ends, each chunk late by d.
func delay(to io.Writer, from io.Reader, d time.Duration) {
	line := make(chan chunk, 1<<14)
	go func() {
		defer close(line)
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if n > 0 {
				line <- chunk{b[:n], time.Now().Add(d)}
			}
			if err != nil {
				return
			}
		}
	}()
	var failed error
	for c := range line {
		<-time.After(time.Until(c.due))
		if failed == nil {
			_, failed = to.Write(c.data)
			if closer, ok := from.(io.Closer); ok && failed != nil && !errors.Is(failed, io.EOF) {
				closer.Close() // nobody is there to read it
			}
		}
	}
}
