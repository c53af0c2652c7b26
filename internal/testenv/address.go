package testenv

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Address returns an address of the loopback, 127.0.0.1:PORT, that nobody else gets
// until the test ends. A server of the test may listen there, end, and listen again;
// while none does, connections are refused.
//
// A port that is only free for now will not do: as soon as nobody listens there, the
// kernel gives it to whoever asks for any.
func Address(tb testing.TB) string {
	tb.Helper()
	port, err := reserve(tb)
	if err != nil {
		tb.Fatalf("reserve a port of the loopback: %v", err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// reserve binds a socket to a port, and does not listen: that keeps the port from
// those who ask for any, and not from those who ask for this one with SO_REUSEADDR,
// as servers do.
func reserve(tb testing.TB) (port int, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	tb.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	in4, ok := name.(*unix.SockaddrInet4)
	if !ok {
		return 0, fmt.Errorf("a socket of IPv4 has the address %v", name)
	}
	return in4.Port, nil
}
