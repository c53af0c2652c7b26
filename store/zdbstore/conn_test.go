package zdbstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/google/go-cmp/cmp"

	"overmount/block"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]address{
		"zdb://h":                     {"tcp", "h:9900", "default", "", "zdb://h", "zdb://:PASSWORD@h"},
		"zdb://h:1/ns":                {"tcp", "h:1", "ns", "", "zdb://h:1/ns", "zdb://:PASSWORD@h:1/ns"},
		"zdb://:p%2Fw@h/n%20s":        {"tcp", "h:9900", "n s", "p/w", "zdb://h/n%20s", "zdb://:PASSWORD@h/n%20s"},
		"zdb://user:pw@[::1]/ns":      {"tcp", "[::1]:9900", "ns", "pw", "zdb://[::1]/ns", "zdb://:PASSWORD@[::1]/ns"},
		"zdb://user@h/default":        {"tcp", "h:9900", "default", "", "zdb://h/default", "zdb://:PASSWORD@h/default"},
		"zdb:///run/zdb":              {"unix", "/run/zdb", "default", "", "zdb:///run/zdb", "zdb://:PASSWORD@/run/zdb"},
		"zdb:///run/zdb?namespace=ns": {"unix", "/run/zdb", "ns", "", "zdb:///run/zdb?namespace=ns", "zdb://:PASSWORD@/run/zdb?namespace=ns"},
		"zdb://:pw@/a?namespace=a%26": {"unix", "/a", "a&", "pw", "zdb:///a?namespace=a%26", "zdb://:PASSWORD@/a?namespace=a%26"},
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(u)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(address{})); err != nil || diff != "" {
			t.Errorf("parse(%q): error %v (-want +got)\n%s", in, err, diff)
		}
	}
}

func TestSequential(t *testing.T) {
	for info, want := range map[string]bool{
		"# namespace\nname: x\nmode: userkey\nx: y\n": false,
		"# namespace\nmode: sequential\n":             true,
		"mode: unknown":                               true,
		"mode: userkey":                               false,
		"name: mode: sequential\n":                    false,
		"":                                            false,
	} {
		if got := sequential(info); got != want {
			t.Errorf("sequential(%q) = %v, want %v", info, got, want)
		}
	}
}

// A caller reuses the object's memory as soon as Put returns.
func TestCancelledRequestHasLetGoOfItsArguments(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	raw := &slowSender{begun: cancel, closed: make(chan struct{})}
	c := &conn{redis.NewConn(raw, 0, 0).(redis.ConnWithContext), raw, 0}
	object := bytes.Repeat([]byte("x"), 100_000)
	if _, err := c.DoContext(ctx, "SET", "key", object); !errors.Is(err, context.Canceled) {
		t.Errorf("DoContext, cancelled while it sends = %v, want context.Canceled", err)
	}
	clear(object) // the race detector looks on
	if !raw.ended.Load() {
		t.Error("DoContext has returned, and its arguments are still being sent")
	}
}

// A slowSender sends nothing until it is closed, and then what it had begun, as a
// system call does.
type slowSender struct {
	net.Conn
	begun  func()
	closed chan struct{}
	once   sync.Once
	ended  atomic.Bool
}

func (s *slowSender) Write(p []byte) (int, error) {
	s.begun()
	<-s.closed
	bytes.Count(p, []byte("x")) // reads p
	s.ended.Store(true)
	return 0, net.ErrClosed
}

func (s *slowSender) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// A script is a connection to a server that sends what it does whatever it is
// asked, and hangs up.
type script struct {
	net.Conn
	io.Reader
}

func (s script) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s script) Write(p []byte) (int, error) { return len(p), nil }
func (s script) Close() error                { return nil }

func (s script) SetReadDeadline(time.Time) error { return nil }

func dialScript(r io.Reader) redis.Conn { return redis.NewConn(newGuard(script{Reader: r}), 0, 0) }

// answers makes two requests.
func answers(sent string) (first, second any, err error) {
	c := dialScript(strings.NewReader(sent))
	if first, err = c.Do("GET", "k"); err != nil {
		return nil, nil, err
	}
	second, err = c.Do("GET", "k")
	return first, second, err
}

// The pool gets no connection back whose request ended with its context, even if
// the answer was there.
func TestCancelledRequestEndsTheConnection(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	raw := script{Reader: io.TeeReader(strings.NewReader("$-1\r\n"), canceller(cancel))}
	c := &conn{redis.NewConn(newGuard(raw), 0, 0).(redis.ConnWithContext), raw, 0}
	reply, err := c.DoContext(ctx, "GET", "k")
	if reply != nil || !errors.Is(err, context.Canceled) || c.Err() == nil {
		t.Errorf("DoContext, cancelled while the answer comes = %v, %v, and Err = %v, want context.Canceled and any error", reply, err, c.Err())
	}
}

// A canceller cancels when it is written to.
type canceller context.CancelFunc

func (c canceller) Write(p []byte) (int, error) {
	c()
	return len(p), nil
}

func TestGuard(t *testing.T) {
	long := strings.Repeat("x", 2*maxLine)
	for sent, want := range map[string]string{
		"$99999999999\r\n":             "over the limit",
		"$99999999999999999999\r\n":    "a length of",
		"$-2\r\n":                      "a length of",
		"$\r\n":                        "a length of",
		"$611718\r\n":                  "over the limit",
		"*99999999999\r\n":             "no answer of a 0-db",
		"*1\r\n$1\r\nx\r\n":            "no answer of a 0-db",
		"HTTP/1.1 400 Bad Request\r\n": "no answer of a 0-db",
		"\n":                           "no answer of a 0-db",
		"+" + long + "\r\n":            "more than 1024 bytes",
		"-" + long:                     "more than 1024 bytes",
		"+OK\r\n+OK\r\n":               "more than one answer",
		"$1\r\nx\r\n$99999999999\r\n":  "more than one answer",
		"$1\r\nxyz":                    "not what its first line says",
		"+OK\n":                        "bad response line terminator",
		"$2\r\nx\r\n":                  "bad response line terminator",
		"$5\r\nab":                     "EOF",
		"-Namespace not found\r\n":     "Namespace not found",
		":x\r\n":                       "illegal bytes",
		"$3\n" + "abc\r\n":             "bad response line terminator",
		"$611717\r\n" + strings.Repeat("x", 1000): "EOF",
	} {
		first, second, err := answers(sent)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("answer %.40q gives %v, %v, error %v, want an error that says %q", sent, first, second, err, want)
		}
	}
	if _, _, err := answers("$99999999999\r\n"); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("a length over the limit = %v, want block.ErrCorrupt", err)
	}
}

func TestGuardLetsAnswersThrough(t *testing.T) {
	longest := strings.Repeat("x", block.MaxObject)
	for sent, want := range map[string]any{
		"+PONG\r\n":                      "PONG",
		":1\r\n":                         int64(1),
		"$-1\r\n":                        nil,
		"$0\r\n\r\n":                     []byte{},
		"$4\r\n\r\n\r\n\r\n":             []byte("\r\n\r\n"),
		"$611717\r\n" + longest + "\r\n": []byte(longest),
		"+" + longest[:1000] + "\r\n":    longest[:1000],
	} {
		var r io.Reader = strings.NewReader(sent)
		if len(sent) <= 2*maxLine {
			r = iotest.OneByteReader(r) // cuts every line
		}
		got, err := dialScript(r).Do("GET", "k")
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("answer %.40q: error %v (-want +got)\n%.400s", sent, err, diff)
		}
	}
}

// Whatever a server sends, a request ends, and nothing longer than an object comes
// of it.
func FuzzAnswer(f *testing.F) {
	f.Add("$1\r\nx\r\n")
	f.Add("$-1\r\n$99999999999\r\n")
	f.Add("*3\r\n:1\r\n")
	f.Add("+OK\r\n-no\r\n")
	f.Fuzz(func(t *testing.T, sent string) {
		first, second, _ := answers(sent)
		for _, reply := range []any{first, second} {
			switch r := reply.(type) {
			case nil, string, int64:
			case []byte:
				if len(r) > block.MaxObject || !bytes.Contains([]byte(sent), r) {
					t.Errorf("answer %q gives %d bytes that it does not have", sent, len(r))
				}
			default:
				t.Errorf("answer %q gives a %T", sent, r)
			}
		}
	})
}
