package zdbstore_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/google/go-cmp/cmp"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/store/zdbstore"
)

const secret = "pAsSw0rd-7f3a"

// open returns a store at a URL.
func open(t testing.TB, in string, opts *zdbstore.Options) *zdbstore.Store {
	t.Helper()
	u, err := url.Parse(in)
	if err != nil {
		t.Fatal(err)
	}
	s, err := zdbstore.New(u, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// with returns a URL with a password and a namespace.
func with(base, password, namespace string) string {
	u, err := url.Parse(base)
	if err != nil {
		panic(err)
	}
	if password != "" {
		u.User = url.UserPassword("", password)
	}
	switch {
	case namespace == "":
	case u.Host == "":
		u.RawQuery = "namespace=" + namespace
	default:
		u.Path = "/" + namespace
	}
	return u.String()
}

// object returns the i-th test object.
func object(i int) (block.ID, []byte) { return storetest.Object(uint64(i), 20_000) }

func put(t testing.TB, w store.Writer, objects ...int) {
	t.Helper()
	for _, i := range objects {
		id, bytes := object(i)
		if _, err := w.Put(t.Context(), id, bytes); err != nil {
			t.Fatal(err)
		}
	}
}

func wantObject(t testing.TB, r store.Reader, i int) {
	t.Helper()
	id, want := object(i)
	if got, err := r.Get(t.Context(), id); err != nil || !bytes.Equal(got, want) {
		t.Errorf("Get of object %d = %d bytes, %v, want it", i, len(got), err)
	}
}

// published starts a server with a namespace "ns" that has a password and is
// public, and returns URLs for writing and for reading.
func published(t testing.TB) (server *storetest.ZDBServer, write, read string) {
	server = storetest.NewZDBServer(t, &storetest.ZDBOptions{Admin: "root"})
	server.Do("NSNEW", "ns")
	server.Do("NSSET", "ns", "password", secret)
	return server, with(server.URL, secret, "ns"), with(server.URL, "", "ns")
}

func TestSuite(t *testing.T) {
	for name, namespace := range map[string]string{"Default": "default", "Published": "ns"} {
		for _, socket := range []bool{false, true} {
			t.Run(fmt.Sprintf("%sSocket=%v", name, socket), func(t *testing.T) {
				storetest.Run(t, func(t *testing.T) storetest.Subject {
					opts := new(storetest.ZDBOptions)
					if socket {
						opts.Socket = filepath.Join(shortDir(t), "zdb")
					}
					server := storetest.NewZDBServer(t, opts)
					password := ""
					if namespace != "default" {
						password = secret
						server.Do("NSNEW", namespace)
						server.Do("NSSET", namespace, "password", password)
					}
					t.Cleanup(func() {
						if n := server.Pipelined(); n != 0 {
							t.Errorf("%d requests were pipelined, want none", n)
						}
					})
					return storetest.Subject{
						Reader: store.Checked(open(t, with(server.URL, "", namespace), nil)),
						Writer: open(t, with(server.URL, password, namespace), nil),
						Seed: func(_ *testing.T, id block.ID, object []byte) {
							server.Seed(namespace, id, object)
						},
						Checks: true,
						Stall: func(*testing.T) <-chan struct{} {
							arrived := make(chan struct{}, 16)
							server.Fault(func(ctx context.Context, _ net.Conn, _ []string, _ string) {
								arrived <- struct{}{}
								<-ctx.Done()
							}, "GET", "SET")
							return arrived
						},
					}
				})
			})
		}
	}
}

// shortDir returns a directory whose name leaves room for that of a socket, 107
// bytes in all.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "zdb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Redis has neither namespaces nor modes, and does not tell an identical value
// from a new one. The rest of the protocol is the same, and not of our making.
func TestSuiteOnRedis(t *testing.T) {
	socket := startRedis(t)
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		if strings.HasSuffix(t.Name(), "/PutTwice") {
			t.Skip("redis answers OK to both")
		}
		c, err := redis.DialContext(t.Context(), "unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Do("FLUSHALL"); err != nil {
			t.Fatal(err)
		}
		s := open(t, "zdb://"+socket, nil)
		if err := s.Preflight(t.Context()); err != nil {
			t.Errorf("Preflight = %v", err)
		}
		return storetest.Subject{Reader: store.Checked(s), Writer: s, Checks: true}
	})
	s := open(t, "zdb://"+socket+"?namespace=ns", nil)
	if err := s.Preflight(t.Context()); err == nil || !strings.Contains(err.Error(), "the server says") {
		t.Errorf("Preflight of a namespace that redis cannot have = %v, want what it says", err)
	}
}

// startRedis starts a redis-server that keeps nothing, and returns its socket.
func startRedis(t *testing.T) string {
	t.Helper()
	dir := shortDir(t)
	socket := filepath.Join(dir, "redis")
	cmd := exec.Command(testenv.Tool(t, "redis-server"), "--port", "0", "--unixsocket", socket, "--save", "", "--dir", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	said := new(strings.Builder)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(said, lines.Text())
		if strings.Contains(lines.Text(), "ready to accept connections") {
			go io.Copy(io.Discard, out)
			return socket
		}
	}
	t.Fatalf("redis-server did not start:\n%s", said)
	return ""
}

// A real 0-db, at a URL with a host and without a namespace, of which everyone is
// an administrator: ZDB_TEST_URL=zdb://127.0.0.1:9900.
func TestSuiteOnZDB(t *testing.T) {
	base := os.Getenv("ZDB_TEST_URL")
	if base == "" {
		t.Skip("ZDB_TEST_URL does not name a 0-db")
	}
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		c, err := redis.DialContext(t.Context(), "tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		namespace := fmt.Sprintf("overmount-test-%x", rand.Uint64())
		for _, args := range [][]any{{"NSNEW", namespace}, {"NSSET", namespace, "password", secret}, {"NSSET", namespace, "public", "1"}} {
			if _, err := c.Do(args[0].(string), args[1:]...); err != nil {
				t.Fatalf("%v = %v", args[:2], err)
			}
		}
		t.Cleanup(func() {
			c.Do("NSDEL", namespace)
			c.Close()
		})
		return storetest.Subject{
			Reader: store.Checked(open(t, with(base, "", namespace), nil)),
			Writer: open(t, with(base, secret, namespace), nil),
		}
	})
}

// What goes over the wire.
func TestRequests(t *testing.T) {
	server, write, read := published(t)
	put(t, open(t, write, nil), 0, 0)
	s := open(t, read, nil)
	wantObject(t, s, 0)
	wantObject(t, s, 0)
	server.Stop()
	server.Start()
	id, _ := object(0)
	s.Get(t.Context(), id) // fails
	wantObject(t, s, 0)
	key := string(id[:])
	want := [][]string{
		{"SELECT", "ns", secret}, {"NSINFO", "ns"}, {"SET", key}, {"SET", key},
		{"SELECT", "ns"}, {"NSINFO", "ns"}, {"GET", key}, {"GET", key},
		{"SELECT", "ns"}, {"GET", key}, // the mode is known
	}
	got := server.Requests()
	for i, r := range got {
		if r[0] == "SET" {
			got[i] = r[:2] // without the value
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got)\n%s", diff)
	}
	if got := server.Conns(); got != 3 {
		t.Errorf("two stores and a restart made %d connections, want 3", got)
	}
}

// The namespace "default" is never selected, as in rfs.
func TestDefaultNamespaceIsNotSelected(t *testing.T) {
	server := storetest.NewZDBServer(t, nil)
	put(t, open(t, server.URL, nil), 0)
	wantObject(t, open(t, with(server.URL, secret, "default"), nil), 0)
	for _, r := range server.Requests() {
		if r[0] == "SELECT" {
			t.Errorf("request %q, want no SELECT", r)
		}
	}
}

func TestRefusals(t *testing.T) {
	id, bytes := object(0)
	server, write, read := published(t)
	for _, c := range []struct {
		name   string
		before []string // a property that the administrator sets
		after  []string // and what it was
		url    string
		get    error  // nil: works
		put    error  // nil: works
		says   string // by the errors
	}{
		{"no such namespace", nil, nil, with(server.URL, "", "missing"), store.ErrForbidden, store.ErrForbidden, `namespace "missing" does not exist: NSNEW`},
		{"read-only", nil, nil, read, nil, store.ErrForbidden, `namespace "ns" can only be read without its password: to write give it, as in zdb://:PASSWORD@`},
		{"wrong password", nil, nil, with(server.URL, "not-it", "ns"), store.ErrForbidden, store.ErrForbidden, `namespace "ns" has another password`},
		{"private", []string{"public", "0"}, []string{"public", "1"}, read, store.ErrForbidden, store.ErrForbidden, `namespace "ns" is private: give its password`},
		{"full", []string{"maxsize", "20100"}, []string{"maxsize", "0"}, write, nil, store.ErrForbidden, `namespace "ns" is full: raise its limit with NSSET ns maxsize`},
		{"locked", []string{"lock", "1"}, []string{"lock", "0"}, write, nil, errTemporary, "temporarily locked"},
		{"frozen", []string{"freeze", "1"}, []string{"freeze", "0"}, write, errTemporary, errTemporary, "temporarily frozen"},
	} {
		server.Seed("ns", id, bytes)
		if c.before != nil {
			server.Do(append([]string{"NSSET", "ns"}, c.before...)...)
		}
		s := open(t, c.url, nil)
		_, getErr := s.Get(t.Context(), id)
		check(t, c.name+": Get", getErr, c.get, c.says)
		other, bytes := object(1)
		stored, putErr := s.Put(t.Context(), other, bytes)
		check(t, c.name+": Put", putErr, c.put, c.says)
		if stored {
			t.Errorf("%s: Put = %v beside error %v", c.name, stored, putErr)
		}
		if c.before != nil {
			server.Do(append([]string{"NSSET", "ns"}, c.after...)...)
		}
	}
}

// errTemporary stands for any error that store.Temporary is true of.
var errTemporary = errors.New("a temporary error")

func check(t *testing.T, what string, err, want error, says string) {
	t.Helper()
	switch {
	case want == nil && err != nil:
		t.Errorf("%s = %v, want it to work", what, err)
	case want == nil:
	case want == errTemporary && !store.Temporary(err), want != errTemporary && !errors.Is(err, want):
		t.Errorf("%s = %v, want %v", what, err, want)
	case !strings.Contains(err.Error(), says):
		t.Errorf("%s: error %q does not say %q", what, err, says)
	}
	if err != nil && strings.Contains(err.Error(), secret) {
		t.Errorf("%s: error %q shows the password", what, err)
	}
}

func TestProtectedDefaultNamespace(t *testing.T) {
	server := storetest.NewZDBServer(t, &storetest.ZDBOptions{Admin: "root", Protect: true})
	id, bytes := object(0)
	_, err := open(t, server.URL, nil).Put(t.Context(), id, bytes)
	check(t, "Put", err, store.ErrForbidden, `namespace "default" can only be read on this server`)
}

func TestSequentialModeIsRefused(t *testing.T) {
	server := storetest.NewZDBServer(t, nil)
	server.Do("NSNEW", "seq")
	server.Do("NSSET", "seq", "mode", "seq")
	s := open(t, with(server.URL, "", "seq"), nil)
	id, bytes := object(0)
	_, getErr := s.Get(t.Context(), id)
	_, putErr := s.Put(t.Context(), id, bytes)
	for what, err := range map[string]error{"Get": getErr, "Put": putErr, "Preflight": s.Preflight(t.Context())} {
		check(t, what, err, store.ErrForbidden, `namespace "seq" is in sequential mode, in which the server makes up the keys: objects need one in user mode (NSSET seq mode user`)
	}

	// A server that does not tell its mode shows it when it is written.
	server.Fault(storetest.ZDBAnswer("-Command not supported\r\n"), "NSINFO")
	_, err := open(t, with(server.URL, "", "seq"), nil).Put(t.Context(), id, bytes)
	check(t, "Put without NSINFO", err, store.ErrForbidden, "is in sequential mode")
}

func TestPreflight(t *testing.T) {
	server, write, read := published(t)
	for _, u := range []string{write, read, server.URL} {
		if err := open(t, u, nil).Preflight(t.Context()); err != nil {
			t.Errorf("Preflight of %s = %v", store.Redact(u), err)
		}
	}
	check(t, "Preflight", open(t, with(server.URL, "", "no"), nil).Preflight(t.Context()), store.ErrForbidden, "does not exist")
	server.Fault(storetest.ZDBAnswer("$4\r\nPONG\r\n"), "PING")
	check(t, "Preflight", open(t, read, nil).Preflight(t.Context()), errTemporary, "as no 0-db does")
	server.Stop()
	check(t, "Preflight", open(t, read, nil).Preflight(t.Context()), errTemporary, "connection refused")

	missing := filepath.Join(t.TempDir(), "socket")
	err := open(t, "zdb://"+missing, nil).Preflight(t.Context())
	check(t, "Preflight", err, errTemporary, missing)
	if errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Preflight without a socket = %v, which is fs.ErrNotExist", err)
	}
}

func TestWorm(t *testing.T) {
	server, write, _ := published(t)
	server.Do("NSSET", "ns", "worm", "1")
	s := open(t, write, nil)
	id, object0 := object(0)
	for _, want := range []bool{true, false} {
		if stored, err := s.Put(t.Context(), id, object0); stored != want || err != nil {
			t.Errorf("Put = %v, %v, want %v", stored, err, want)
		}
	}
	for name, there := range map[string][]byte{"other bytes": object0[1:], "nothing": {}} {
		server.Seed("ns", id, there)
		stored, err := s.Put(t.Context(), id, object0)
		check(t, name+": Put", err, store.ErrForbidden, "worm mode keeps from being replaced")
		if stored {
			t.Errorf("%s: Put = %v, want false", name, stored)
		}
	}
}

// What a manifest's reader may meet instead of an object.
func TestValues(t *testing.T) {
	server, _, read := published(t)
	id, want := object(0)
	s := open(t, read, nil)
	for name, value := range map[string][]byte{"empty": {}, "too long": make([]byte, block.MaxObject+1), "8 MiB": make([]byte, 8<<20)} {
		server.Seed("ns", id, value)
		got, err := s.Get(t.Context(), id)
		if got != nil {
			t.Errorf("%s: Get = %d bytes beside %v", name, len(got), err)
		}
		check(t, name+": Get", err, block.ErrCorrupt, "GET "+read)
	}
	server.Seed("ns", id, want)
	wantObject(t, s, 0)
}

// short are limits for tests that wait for them to pass. What is no fault keeps them
// on a busy machine, too.
var short = zdbstore.Options{ConnectTimeout: time.Second, AnswerTimeout: time.Second}

func TestFaults(t *testing.T) {
	silence := func(ctx context.Context, _ net.Conn, _ []string, _ string) { <-ctx.Done() }
	for name, c := range map[string]struct {
		fault storetest.ZDBFault
		is    error
		says  string
	}{
		"cut":           {storetest.ZDBCut(), errTemporary, "closed the connection"},
		"silence":       {silence, errTemporary, "no answer within 1s"},
		"strange error": {storetest.ZDBAnswer("-Internal Error\r\n"), errTemporary, `the server says "Internal Error"`},
		"echo":          {storetest.ZDBAnswer("-no " + secret + " here\r\n"), errTemporary, `the server says "no … here"`},
		"login":         {storetest.ZDBAnswer("-NOAUTH Authentication required.\r\n"), store.ErrForbidden, "behind a login"},
		"web server":    {storetest.ZDBAnswer("HTTP/1.1 400 Bad Request\r\n\r\n"), errTemporary, "no answer of a 0-db"},
		"huge length":   {storetest.ZDBAnswer("$99999999999\r\n"), block.ErrCorrupt, "over the limit"},
		"array":         {storetest.ZDBAnswer("*99999999999\r\n"), errTemporary, "no answer of a 0-db"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, write, _ := published(t)
			var opts *zdbstore.Options
			if name == "silence" {
				opts = &short
			}
			s := open(t, write, opts)
			put(t, s, 0)
			server.Fault(c.fault, "GET", "SET")
			id, bytes := object(0)
			got, err := s.Get(t.Context(), id)
			if got != nil {
				t.Errorf("Get = %d bytes beside %v", len(got), err)
			}
			check(t, "Get", err, c.is, c.says)
			_, err = s.Put(t.Context(), id, bytes)
			check(t, "Put", err, c.is, c.says)
			server.Fault(nil, "GET", "SET")
			wantObject(t, s, 0)
		})
	}
}

func TestFaultsOnTheWayIn(t *testing.T) {
	silence := func(ctx context.Context, _ net.Conn, _ []string, _ string) { <-ctx.Done() }
	for _, command := range []string{"SELECT", "NSINFO"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			server, write, _ := published(t)
			s := open(t, write, &short)
			id, _ := object(0)
			server.Fault(silence, command)
			_, err := s.Get(t.Context(), id)
			check(t, "Get", err, errTemporary, "no connection within 1s")
			server.Fault(storetest.ZDBCut(), command)
			_, err = s.Get(t.Context(), id)
			check(t, "Get", err, errTemporary, "closed the connection")
			server.Fault(nil, command)
			put(t, s, 0)
			wantObject(t, s, 0)
		})
	}
}

// The caller's deadline is the caller's error; the store's own limit is not.
func TestDeadlines(t *testing.T) {
	server, _, read := published(t)
	gate := storetest.NewGate()
	server.Fault(storetest.ZDBHang(gate), "GET")
	id, _ := object(0)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := open(t, read, nil).Get(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get past its deadline = %v, want context.DeadlineExceeded", err)
	}
	if _, err := open(t, read, &short).Get(t.Context(), id); errors.Is(err, context.DeadlineExceeded) || !store.Temporary(err) {
		t.Errorf("Get past the store's limit = %v, want a temporary error that is not context.DeadlineExceeded", err)
	}
}

// A request that finds no free connection waits, as long as its context.
func TestConnectionsAreLimited(t *testing.T) {
	const limit, readers = 3, 12
	server, write, read := published(t)
	put(t, open(t, write, nil), 0, 1, 2, 3)
	before := server.Conns()
	gate := storetest.NewGate()
	server.Fault(storetest.ZDBHang(gate), "GET")
	s := open(t, read, &zdbstore.Options{Conns: limit})
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() { wantObject(t, s, i%4) })
	}
	for range limit {
		<-gate.Arrived()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	id, _ := object(0)
	if _, err := s.Get(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get while all connections are busy = %v, want context.DeadlineExceeded", err)
	}
	gate.Open()
	wg.Wait()
	for range 4 {
		for i := range readers {
			wg.Go(func() { wantObject(t, s, i%4) })
		}
		wg.Wait()
	}
	if got := server.Conns() - before; got != limit {
		t.Errorf("%d readers used %d connections, want %d, kept", readers, got, limit)
	}
	if got := server.Pipelined(); got != 0 {
		t.Errorf("%d requests were pipelined, want none", got)
	}
}

// After a restart of the server every idle connection is dead; finding out costs
// one request, not one for each.
func TestIdleConnectionsAreDroppedAfterAFailure(t *testing.T) {
	const conns = 4
	server, write, read := published(t)
	put(t, open(t, write, nil), 0, 1, 2, 3)
	s := open(t, read, &zdbstore.Options{Conns: conns})
	gate := storetest.NewGate()
	server.Fault(storetest.ZDBHang(gate), "GET")
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() { wantObject(t, s, i) })
	}
	for range conns {
		<-gate.Arrived()
	}
	gate.Open()
	wg.Wait()
	server.Stop()
	server.Start()
	id, _ := object(0)
	if _, err := s.Get(t.Context(), id); !store.Temporary(err) {
		t.Errorf("first Get after a restart = %v, want a temporary error", err)
	}
	for i := range conns {
		wantObject(t, s, i)
	}
}

// A read that began in an outage ends well soon after it.
func TestOutage(t *testing.T) {
	server, write, read := published(t)
	put(t, open(t, write, nil), 0)
	s := open(t, read, nil)
	wantObject(t, s, 0)
	server.Stop()
	waits := make(chan struct{})
	r := store.Retry(tap{s, sync.OnceFunc(func() { close(waits) })}, nil)
	done := make(chan time.Time)
	go func() {
		wantObject(t, r, 0)
		done <- time.Now()
	}()
	<-waits // the first try has failed
	server.Start()
	up := time.Now()
	if late := (<-done).Sub(up); late > 2*time.Second {
		t.Errorf("Get returned %v after the server came back, want at most 2 s", late)
	}
}

// A read ends soon after a server that hung is back, although its first request,
// and all connections that there may be, hang on.
func TestOutageOfAServerThatHangs(t *testing.T) {
	server, write, read := published(t)
	put(t, open(t, write, nil), 0)
	s := open(t, read, &zdbstore.Options{Conns: 1})
	wantObject(t, s, 0)
	gate := storetest.NewGate()
	server.Fault(storetest.ZDBHang(gate), "GET")
	done := make(chan time.Time)
	go func() {
		wantObject(t, store.Ranked(store.Routes{{Last: 0xff, Reader: s}}), 0)
		done <- time.Now()
	}()
	<-gate.Arrived()
	<-gate.Arrived() // another connection
	server.Fault(nil, "GET")
	up := time.Now()
	if late := (<-done).Sub(up); late > 2*time.Second {
		t.Errorf("Get returned %v after the server came back, want at most 2 s", late)
	}
	wantObject(t, s, 0) // over a connection that is not dead
}

// A tap tells of failures.
type tap struct {
	store.Reader
	failed func()
}

func (c tap) Get(ctx context.Context, id block.ID) ([]byte, error) {
	object, err := c.Reader.Get(ctx, id)
	if err != nil {
		c.failed()
	}
	return object, err
}

func TestNamespaceGoesAway(t *testing.T) {
	server, write, _ := published(t)
	s := open(t, write, nil)
	put(t, s, 0)
	server.Do("NSDEL", "ns")
	id, _ := object(0)
	_, err := s.Get(t.Context(), id)
	check(t, "first Get", err, errTemporary, "not available anymore")
	_, err = s.Get(t.Context(), id)
	check(t, "second Get", err, errTemporary, "")
	_, err = s.Get(t.Context(), id)
	check(t, "third Get", err, store.ErrForbidden, "does not exist")
}

func TestClose(t *testing.T) {
	_, write, _ := published(t)
	s := open(t, write, nil)
	put(t, s, 0)
	if err := s.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	id, _ := object(0)
	if got, err := s.Get(t.Context(), id); got != nil || err == nil {
		t.Errorf("Get after Close = %d bytes, %v, want an error", len(got), err)
	}
}

func TestNewErrors(t *testing.T) {
	for in, want := range map[string]string{
		"s3://user:" + secret + "@h/b":                        `scheme is "s3"`,
		"zdb://user:" + secret + "@:80/b":                     "no host",
		"zdb://:" + secret + "@h/":                            "leave it out",
		"zdb://:" + secret + "@h/a/b":                         "a / in it",
		"zdb://:" + secret + "@h/a%2Fb":                       "a / in it",
		"zdb://h/ns?password=" + secret:                       "stands before an @",
		"zdb://h/ns?namespace=x":                              "for a socket",
		"zdb:///run/zdb?namespace=":                           "?namespace=NAME",
		"zdb:///run/zdb?namespace=a&namespace=b":              "?namespace=NAME",
		"zdb:///run/zdb?%zz" + secret:                         "cannot be parsed",
		"zdb:///?namespace=a":                                 "neither a host nor",
		"zdb://:" + secret + "@h/" + strings.Repeat("n", 129): "129 bytes, over the limit of 128",
		"zdb://:" + strings.Repeat("p", 256) + "@h/ns":        "256 bytes, over the limit of 255",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		s, err := zdbstore.New(u, nil)
		if s != nil || err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "user") {
			t.Errorf("New(%q) = %v, %v, want an error that says %q and no secret", in, s, err, want)
		}
	}
}

func BenchmarkZDBGet(b *testing.B) {
	server := storetest.NewZDBServer(b, nil)
	s := open(b, server.URL, nil)
	id, object := storetest.Object(1, 200<<10)
	if _, err := s.Put(b.Context(), id, object); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(object)))
	for b.Loop() {
		if _, err := s.Get(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}
