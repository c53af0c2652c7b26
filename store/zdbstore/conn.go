package zdbstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"overmount/internal/pulse"
	"overmount/store"
)

// A conn is one connection in the namespace, used by one request at a time.
type conn struct {
	redis.ConnWithContext
	raw net.Conn
	era int64
}

// DoContext makes one request, until ctx ends. It replaces redigo's, which returns
// while it still sends args: the caller may then have other bytes in them, which
// would reach the store under the object's name.
func (c *conn) DoContext(ctx context.Context, command string, args ...any) (any, error) {
	stop := context.AfterFunc(ctx, func() { c.raw.Close() })
	if g, ok := c.raw.(*guard); ok {
		g.came = func() { pulse.Beat(ctx) }
	}
	reply, err := c.Do(command, args...)
	if !stop() {
		c.Close() // tells the pool
		return nil, context.Cause(ctx)
	}
	return reply, err
}

// dial makes a connection, and enters the namespace.
func (s *Store) dial(ctx context.Context) (redis.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.opts.ConnectTimeout, fmt.Errorf("no connection within %v", s.opts.ConnectTimeout))
	defer cancel()
	era := s.era.Load()
	raw, err := new(net.Dialer).DialContext(ctx, s.network, s.addr)
	if err != nil {
		return nil, err
	}
	g := newGuard(raw)
	c := &conn{redis.NewConn(g, 0, 0).(redis.ConnWithContext), g, era}
	if err := s.enter(ctx, c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// check keeps the pool from using a connection of an earlier era.
func (s *Store) check(c redis.Conn, _ time.Time) error {
	if c.(*conn).era != s.era.Load() {
		return errors.New("another connection has died since this one was made")
	}
	return nil
}

// enter selects the namespace and, once, looks at its mode.
func (s *Store) enter(ctx context.Context, c *conn) error {
	if s.namespace != defaultNamespace {
		args := []any{s.namespace}
		if s.password != "" {
			args = append(args, s.password)
		}
		if _, err := c.DoContext(ctx, "SELECT", args...); err != nil {
			return err
		}
	}
	if s.userKeys.Load() {
		return nil
	}
	reply, err := c.DoContext(ctx, "NSINFO", s.namespace)
	if _, answered := errors.AsType[redis.Error](err); err != nil && !answered {
		return err
	}
	// A server that does not know NSINFO has no modes.
	if info, ok := reply.([]byte); ok && sequential(string(info)) {
		return s.sequential()
	}
	s.userKeys.Store(true)
	return nil
}

// sequential reports whether an answer to NSINFO, lines of "name: value", says
// another mode than "userkey".
func sequential(info string) bool {
	for line := range strings.Lines(info) {
		if mode, ok := strings.CutPrefix(line, "mode:"); ok {
			return strings.TrimSpace(mode) != "userkey"
		}
	}
	return false
}

// A guard stands between the server and redigo, which makes room for as many
// bytes as a length asks for. It lets one answer through for each request, and no
// answer that is an array, or longer than an object.
type guard struct {
	net.Conn
	r     *bufio.Reader
	asked bool   // for an answer that has not begun
	left  int    // of the answer that has
	came  func() // if not nil, is told that bytes have
}

// maxLine is the length in bytes of the longest line that is read: a status, an
// error, a length.
const maxLine = 1024

func newGuard(c net.Conn) *guard { return &guard{Conn: c, r: bufio.NewReaderSize(c, 32<<10)} }

func (g *guard) Write(p []byte) (int, error) {
	if g.left > 0 || g.r.Buffered() > 0 {
		return 0, errors.New("the server sends more than one answer")
	}
	g.asked = true
	return g.Conn.Write(p)
}

func (g *guard) Read(p []byte) (int, error) {
	if g.left == 0 {
		if err := g.begin(); err != nil {
			return 0, err
		}
	}
	n, err := g.r.Read(p[:min(len(p), g.left)])
	g.left -= n
	if g.came != nil && n > 0 {
		g.came()
	}
	return n, err
}

// begin looks at the first line of an answer.
func (g *guard) begin() error {
	if !g.asked {
		return errors.New("the answer is not what its first line says")
	}
	line, err := g.line()
	if err != nil {
		return err
	}
	g.asked, g.left = false, len(line)
	switch line[0] {
	case '+', '-', ':':
		return nil
	case '$':
		n, err := strconv.Atoi(string(bytes.TrimSpace(line[1:])))
		if err != nil || n < -1 {
			return fmt.Errorf("the server sends a length of %.40q", line[1:])
		}
		if n <= 0 {
			g.left += 2 * (n + 1) // "\r\n" behind an empty value, nothing behind nil
			return nil
		}
		g.left += n + 2
		return store.CheckSize(int64(n))
	}
	return fmt.Errorf("the server sends what is no answer of a 0-db: %.40q", line)
}

// line returns the line that comes next, and leaves it to be read.
func (g *guard) line() ([]byte, error) {
	for n := 1; n <= maxLine; n = g.r.Buffered() + 1 {
		if _, err := g.r.Peek(n); err != nil {
			return nil, err
		}
		line, _ := g.r.Peek(min(g.r.Buffered(), maxLine))
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			return line[:end+1], nil
		}
	}
	return nil, fmt.Errorf("the server sends a line of more than %d bytes", maxLine)
}
