package notify

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen plays a service manager at a socket.
func listen(t *testing.T, name string) (*net.UnixConn, Manager) {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, FromEnv(func(variable string) string { return map[string]string{"NOTIFY_SOCKET": name}[variable] })
}

// heard returns the next datagram.
func heard(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4096)
	n, err := c.Read(data)
	if err != nil {
		t.Fatal(err)
	}
	return string(data[:n])
}

func TestMessages(t *testing.T) {
	for _, name := range []string{
		filepath.Join(t.TempDir(), "socket"),
		fmt.Sprintf("@overmount-notify-test-%d", os.Getpid()),
	} {
		c, m := listen(t, name)
		for _, message := range []struct {
			send func() error
			want string
		}{
			{func() error { return m.Status("fetching") }, "STATUS=fetching"},
			{func() error { return m.Ready("all there") }, "READY=1\nSTATUS=all there"},
			{func() error { return m.Ready("a\nREADY=0\r") }, "READY=1\nSTATUS=a READY=0 "},
			{m.Stopping, "STOPPING=1"},
		} {
			if err := message.send(); err != nil {
				t.Fatal(err)
			}
			if got := heard(t, c); got != message.want {
				t.Errorf("%s heard %q, want %q", name, got, message.want)
			}
		}
	}
}

func TestNobody(t *testing.T) {
	if err := (Manager{}).Ready("x"); err != nil {
		t.Errorf("Ready without a manager = %v", err)
	}
	for name, want := range map[string]string{
		filepath.Join(t.TempDir(), "none"): "no such file",
		"socket":                           "neither a path nor",
		"vsock:2:1":                        "neither a path nor",
		"/" + strings.Repeat("x", 200):     "invalid argument",
	} {
		if err := (Manager{name}).Ready("x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Ready at %.40s = %v, want an error that says %q", name, err, want)
		}
	}
}
