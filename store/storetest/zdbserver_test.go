package storetest_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"overmount/store/storetest"
)

// A zdbClient speaks to a 0-db without a library.
type zdbClient struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

func dialZDB(t *testing.T, s *storetest.ZDBServer) *zdbClient {
	t.Helper()
	network, addr := "tcp", strings.TrimPrefix(s.URL, "zdb://")
	if filepath.IsAbs(addr) {
		network = "unix"
	}
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &zdbClient{t, c, bufio.NewReader(c)}
}

// ask sends a request and returns the answer: its line, with what follows.
func (c *zdbClient) ask(args ...string) string {
	request := fmt.Sprintf("*%d\r\n", len(args))
	for _, a := range args {
		request += fmt.Sprintf("$%d\r\n%s\r\n", len(a), a)
	}
	io.WriteString(c.c, request)
	return c.answer()
}

func (c *zdbClient) answer() string {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	line = strings.TrimSuffix(line, "\r\n")
	var n int
	switch line[0] {
	case '$':
		if fmt.Sscan(line[1:], &n); n >= 0 {
			value := make([]byte, n+2)
			io.ReadFull(c.r, value)
			return "$" + string(value[:n])
		}
	case '*':
		fmt.Sscan(line[1:], &n)
		for range n {
			line += " " + c.answer()
		}
	}
	return line
}

func (c *zdbClient) want(request []string, want string) {
	c.t.Helper()
	if got := c.ask(request...); got != want {
		c.t.Errorf("%.80q = %.80q, want %q", request, got, want)
	}
}

func words(s string) []string { return strings.Split(s, " ") }

// One client, from top to bottom.
func TestZDBServer(t *testing.T) {
	c := dialZDB(t, storetest.NewZDBServer(t, nil))
	for _, step := range []string{
		"PING = +PONG",
		"ping = +PONG",
		"HELLO 3 = -Command not supported",
		"CLIENT SETINFO = -Command not supported",
		"GET k = $-1",
		"SET k v = $k",
		"SET k v = $-1",
		"SET k w = $k",
		"GET k = $w",
		"GET a b = -Unexpected arguments",
		"GET  = -Invalid argument",
		"EXISTS k = :1",
		"EXISTS no = :0",
		"EXISTS k k = -Unexpected arguments",
		"LENGTH k = :1",
		"LENGTH no = $-1",
		"CHECK k = :1",
		"MGET k no = *2 $w $-1",
		"DBSIZE = :1",
		"DEL k = +OK",
		"DEL k = -Key not found",
		"SET  v = -Invalid argument, key needed",
		"SET e  = $e",
		"GET e = $",
		"SELECT no = -Namespace not found",
		"NSNEW ns = +OK",
		"NSNEW ns = -This namespace is not available",
		"NSLIST = *2 $default $ns",
		"NSSET default password x = -Cannot update default namespace",
		"NSSET no public 1 = -Namespace not found",
		"NSSET ns colour blue = -Invalid property",
		"SELECT ns = +OK",
		"GET e = $-1",
		"SET k v = $k",
		"NSSET ns mode seq = -Cannot change mode of used namespace",
		"NSSET ns worm 1 = +OK",
		"SET k v = -Namespace is protected by worm mode",
		"SET l v = $l",
		"DEL k = -Cannot delete a key when namespace is in worm mode",
		"NSSET ns worm 0 = +OK",
		"NSSET ns maxsize 3 = +OK",
		"SET k vvv = -No space left on this namespace",
		"SET k vv = $k",
		"NSSET ns lock 1 = +OK",
		"SET k v = -Namespace is temporarily locked (read-only)",
		"GET k = $vv",
		"NSSET ns freeze 1 = +OK",
		"GET k = -Namespace is temporarily frozen (read-write disabled)",
		"NSDEL ns = -Cannot remove namespace you're currently using.",
		"NSNEW seq = +OK",
		"NSSET seq mode other = -Invalid property value (expected: user, seq)",
		"NSSET seq mode seq = +OK",
		"SELECT seq = +OK",
		"SET k v = -Invalid key, only update authorized",
		"SET  v = $\x00\x00\x00\x00",
		"SET  w = $\x01\x00\x00\x00",
		"GET \x01\x00\x00\x00 = $w",
		"NSNEW gone = +OK",
		"NSDEL gone = +OK",
		"NSDEL gone = -This namespace doesn't exists",
	} {
		request, want, _ := strings.Cut(step, " = ")
		c.want(words(request), want)
	}
	if got := c.ask("NSINFO", "seq"); !strings.Contains(got, "\nmode: sequential\n") || !strings.Contains(got, "\nentries: 2\n") {
		t.Errorf("NSINFO = %q, want mode and entries", got)
	}
}

func TestZDBServerPasswords(t *testing.T) {
	s := storetest.NewZDBServer(t, &storetest.ZDBOptions{Admin: "root", Protect: true})
	c := dialZDB(t, s)
	for _, step := range []string{
		"NSNEW ns = -Permission denied",
		"SET k v = -Namespace is in read-only mode",
		"SELECT default root = +OK",
		"SET k v = $k",
		"AUTH wrong = -Access denied",
		"AUTH root = +OK",
		"NSNEW ns = +OK",
		"NSSET ns password pw = +OK",
		"SELECT ns wrong = -Access denied",
		"SELECT ns = +OK",
		"SET k v = -Namespace is in read-only mode",
		"DEL k = -Namespace is in read-only mode",
		"SELECT ns pw = +OK",
		"SET k v = $k",
		"NSSET ns public 0 = +OK",
		"SELECT ns = -Namespace protected and private",
		"NSSET ns password * = +OK",
		"SELECT ns = +OK",
	} {
		request, want, _ := strings.Cut(step, " = ")
		c.want(words(request), want)
	}
	s.Do("NSDEL", "ns")
	c.want([]string{"GET", "k"}, "-Your active namespace is not available anymore (probably removed).")
	if got := c.answer(); got != "EOF" { // a request more could be answered by a reset
		t.Errorf("after that = %q, want EOF", got)
	}
}

func TestZDBServerLimits(t *testing.T) {
	s := storetest.NewZDBServer(t, &storetest.ZDBOptions{Socket: filepath.Join(t.TempDir(), "zdb")})
	c := dialZDB(t, s)
	key := strings.Repeat("k", 255)
	c.want([]string{"SET", key, strings.Repeat("v", 8<<20)}, "$"+key)
	c.want([]string{"SET", key + "k", "v"}, "-Key too large")
	c.want([]string{"GET", key + "k"}, "-Invalid key")
	c.want([]string{"SELECT", strings.Repeat("n", 129)}, "-Namespace too long")

	// The answer is often lost, with what it was about.
	if got := c.ask("SET", "k", strings.Repeat("v", 8<<20+1)); got != "-Payload too big" && !strings.Contains(got, "reset") && !strings.Contains(got, "broken pipe") {
		t.Errorf("SET of 8 MiB and a byte = %.80q, want a refusal or a lost connection", got)
	}
	if got := c.ask("PING"); strings.HasPrefix(got, "+") {
		t.Errorf("PING after that = %q, want no connection", got)
	}

	c = dialZDB(t, s)
	io.WriteString(c.c, "PING\r\n")
	if got := c.answer(); got != "-Malformed request, array expected" {
		t.Errorf("an inline command = %q, want it refused", got)
	}
	if got := c.answer(); got != "EOF" {
		t.Errorf("after that = %q, want EOF", got)
	}
}

func TestZDBServerSeesPipelining(t *testing.T) {
	s := storetest.NewZDBServer(t, nil)
	c := dialZDB(t, s)
	c.want([]string{"PING"}, "+PONG")
	if got := s.Pipelined(); got != 0 {
		t.Errorf("Pipelined after one request = %d, want 0", got)
	}
	io.WriteString(c.c, "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n")
	if got := c.answer() + c.answer(); got != "+PONG+PONG" || s.Pipelined() != 1 {
		t.Errorf("two requests at once = %q, Pipelined %d, want both answers and 1", got, s.Pipelined())
	}
}
