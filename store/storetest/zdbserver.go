package storetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"overmount/block"
	"overmount/internal/testenv"
)

// ZDBOptions are the options of [NewZDBServer]. Nil and zero mean the defaults.
type ZDBOptions struct {
	Socket  string // path of a Unix socket; default a TCP port of the loopback
	Admin   string // administrator's password; default none: everyone is one
	Protect bool   // the default namespace can only be read
}

// A ZDBServer is a 0-db in memory, which answers as zdb 2.0.7 does, with the same
// texts and limits. It fails as told, and counts. It does not know SCAN, HISTORY,
// WAIT, and the logins with a challenge. Concurrent use is safe.
type ZDBServer struct {
	URL string // zdb://host:port, or zdb:///path/of/socket

	t             testing.TB
	opts          ZDBOptions
	network, addr string

	mu         sync.Mutex
	namespaces map[string]*zdbNamespace
	faults     map[string]ZDBFault // by command, "" for all
	requests   [][]string
	conns      int
	pipelined  int
	listener   net.Listener // nil while stopped
	open       map[net.Conn]bool
	stopping   chan struct{}
	sessions   sync.WaitGroup
}

// A ZDBFault deals with one request in the server's place. answer is what a server
// that works would send; the request has had its effect. ctx ends when the server
// stops. A fault may close the connection.
type ZDBFault func(ctx context.Context, conn net.Conn, request []string, answer string)

// ZDBHang announces each request at the gate, and answers when it opens.
func ZDBHang(g *Gate) ZDBFault {
	return func(ctx context.Context, conn net.Conn, request []string, answer string) {
		var id block.ID
		if len(request) > 1 {
			copy(id[:], request[1])
		}
		if g.wait(ctx, id) == nil {
			io.WriteString(conn, answer)
		}
	}
}

// ZDBAnswer sends an answer of the test's own, as it stands.
func ZDBAnswer(answer string) ZDBFault {
	return func(_ context.Context, conn net.Conn, _ []string, _ string) { io.WriteString(conn, answer) }
}

// ZDBCut sends the first half of the answer, and closes the connection.
func ZDBCut() ZDBFault {
	return func(_ context.Context, conn net.Conn, _ []string, answer string) {
		io.WriteString(conn, answer[:len(answer)/2])
		conn.Close()
	}
}

const (
	zdbMaxKey       = 255
	zdbMaxValue     = 8 << 20
	zdbMaxNamespace = 128
	zdbMaxArgs      = 1024
)

// NewZDBServer starts a server with an empty default namespace. It ends with the
// test.
func NewZDBServer(t testing.TB, opts *ZDBOptions) *ZDBServer {
	t.Helper()
	s := &ZDBServer{
		t:          t,
		namespaces: map[string]*zdbNamespace{"default": newZDBNamespace("default")},
		faults:     map[string]ZDBFault{},
	}
	if opts != nil {
		s.opts = *opts
	}
	u := url.URL{Scheme: "zdb"}
	if s.opts.Socket != "" {
		s.network, s.addr, u.Path = "unix", s.opts.Socket, s.opts.Socket
	} else {
		s.network, s.addr = "tcp", testenv.Address(t)
		u.Host = s.addr
	}
	s.URL = u.String()
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Start starts a stopped server again, at the same address and with what it holds.
func (s *ZDBServer) Start() {
	s.t.Helper()
	l, err := net.Listen(s.network, s.addr)
	if err != nil {
		s.t.Fatalf("start the fake 0-db: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener, s.open, s.stopping = l, map[net.Conn]bool{}, make(chan struct{})
	s.sessions.Go(func() { s.accept(l) })
}

// Stop cuts every connection and refuses new ones. Stopping twice is fine.
func (s *ZDBServer) Stop() {
	s.mu.Lock()
	if s.listener != nil {
		s.listener.Close()
		s.listener = nil
		close(s.stopping)
		for c := range s.open {
			c.Close()
		}
	}
	s.mu.Unlock()
	s.sessions.Wait()
}

// Do runs a command as an administrator, and fails the test if the answer is an
// error.
func (s *ZDBServer) Do(args ...string) {
	s.t.Helper()
	s.mu.Lock()
	admin := &zdbSession{s: s, ns: s.namespaces["default"], admin: true}
	s.mu.Unlock()
	if answer, _ := admin.run(args); strings.HasPrefix(answer, "-") {
		s.t.Fatalf("fake 0-db: %q: %s", args, strings.TrimSpace(answer[1:]))
	}
}

// Seed puts a value under an object's name behind the protocol's back.
func (s *ZDBServer) Seed(namespace string, id block.ID, value []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.namespaces[namespace].values[string(id[:])] = string(value)
}

// Fault does fault with every later request of these commands, of all if none is
// given; nil makes them work.
func (s *ZDBServer) Fault(fault ZDBFault, commands ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(commands) == 0 {
		commands = []string{""}
	}
	for _, c := range commands {
		s.faults[c] = fault
	}
}

// Requests returns what was asked so far, in order of arrival: the command as it
// was spelled and its arguments, of which long ones are cut.
func (s *ZDBServer) Requests() [][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Conns returns the number of connections so far.
func (s *ZDBServer) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// Pipelined returns how often a request came before the last one was answered.
func (s *ZDBServer) Pipelined() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pipelined
}

func (s *ZDBServer) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.listener != l {
			s.mu.Unlock()
			c.Close()
			return
		}
		s.conns++
		s.open[c] = true
		session := &zdbSession{s: s, ns: s.namespaces["default"], writable: !s.opts.Protect, admin: s.opts.Admin == ""}
		stopping := s.stopping
		s.sessions.Go(func() { session.serve(c, stopping) })
		s.mu.Unlock()
	}
}

func (s *ZDBServer) fault(command string) ZDBFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.faults[strings.ToUpper(command)]; f != nil {
		return f
	}
	return s.faults[""]
}

func (s *ZDBServer) note(args []string, early bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var short []string
	for _, a := range args {
		short = append(short, a[:min(len(a), zdbMaxKey)])
	}
	s.requests = append(s.requests, short)
	if early {
		s.pipelined++
	}
}

// A zdbSession is what a server knows of one client.
type zdbSession struct {
	s               *ZDBServer
	ns              *zdbNamespace
	writable, admin bool
}

func (c *zdbSession) serve(conn net.Conn, stopping <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.s.sessions.Go(func() {
		select {
		case <-stopping:
			cancel()
		case <-ctx.Done():
		}
	})
	defer func() {
		conn.Close()
		c.s.mu.Lock()
		delete(c.s.open, conn)
		c.s.mu.Unlock()
	}()
	r := bufio.NewReader(conn)
	for {
		args, err := readRequest(r)
		if err != nil {
			if refused, ok := errors.AsType[zdbRefusal](err); ok {
				fmt.Fprintf(conn, "-%s\r\n", refused)
			}
			return
		}
		c.s.note(args, r.Buffered() > 0)
		answer, end := c.run(args)
		if f := c.s.fault(args[0]); f != nil {
			f(ctx, conn, args, answer)
		} else if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
		if end {
			return
		}
	}
}

// A zdbRefusal is an error answer after which the server hangs up.
type zdbRefusal string

func (e zdbRefusal) Error() string { return string(e) }

// readRequest reads an array of bulk strings, the only form of a request.
func readRequest(r *bufio.Reader) ([]string, error) {
	n, err := readLength(r, '*', "Malformed request, array expected")
	switch {
	case err != nil:
		return nil, err
	case n < 1:
		return nil, zdbRefusal("Missing arguments")
	case n > zdbMaxArgs:
		return nil, zdbRefusal("Too many arguments")
	}
	args := make([]string, n)
	for i := range args {
		n, err := readLength(r, '$', "Malformed query string")
		switch {
		case err != nil:
			return nil, err
		case n < 0 || n > zdbMaxValue:
			return nil, zdbRefusal("Payload too big")
		}
		arg := make([]byte, n+len("\r\n"))
		if _, err := io.ReadFull(r, arg); err != nil {
			return nil, err
		}
		args[i] = string(arg[:n])
	}
	return args, nil
}

func readLength(r *bufio.Reader, kind byte, refusal string) (int, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(line[1:]))
	if line[0] != kind || err != nil {
		return 0, zdbRefusal(refusal)
	}
	return n, nil
}
