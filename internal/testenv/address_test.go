package testenv_test

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
)

func TestAddress(t *testing.T) {
	addr := testenv.Address(t)
	refused := func(when string) {
		t.Helper()
		if _, err := net.Dial("tcp", addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect %s: %v, want it refused", when, err)
		}
	}
	refused("before a server listens")
	for range 2 { // a server, and the same started again
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
		refused("after it has ended")
	}
	// Without SO_REUSEADDR, as who asks for any port, nobody gets it.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: n}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("another socket is bound to the port: %v, want EADDRINUSE", err)
	}
}
