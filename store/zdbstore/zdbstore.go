// Package zdbstore keeps objects in a 0-db, a key-value server that speaks a part
// of the Redis protocol (github.com/threefoldtech/0-db).
//
// # URLs
//
//	zdb://[USER][:PASSWORD]@HOST[:PORT][/NAMESPACE]             port 9900
//	zdb://[:PASSWORD@]/PATH/OF/SOCKET[?namespace=NAMESPACE]     a Unix socket
//
// The form with a host is that of rfs, and means the same: the user is ignored,
// and each new connection selects the namespace with the password, unless there
// is none or it is "default". In that one a password has no use. An object's key
// is its ID, 32 raw bytes.
//
// # Passwords
//
// A namespace without a password may be written by anyone who reaches the server,
// and a new one has none. To publish, the administrator gives it a password and
// leaves it public (NSSET NAMESPACE password …, NSSET NAMESPACE public 1). Then
// it is written through a URL with the password, and read through the one that
// manifests have, without.
//
// # What a failure means
//
//	GET answers nil                  store.ErrNotFound
//	a value that is empty or longer  block.ErrCorrupt
//	than any object
//	no such namespace, wrong or      store.ErrForbidden, with the way out
//	missing password, read-only,
//	full, sequential mode
//	namespace locked or frozen, any  temporary
//	other error answer
//	no connection, cut, no answer    temporary
//	in time
//
// Get does not compare objects with their IDs: wrap the Store with store.Checked.
//
// # Limits
//
// A request has a connection of its own while it runs, and requests are never
// pipelined: that makes a 0-db wait 40 ms for each batch. Connecting and answering
// have limits, see [Options]. A 0-db takes values of up to 8 MiB, which is more
// than the longest object; Put refuses what is longer than an object before it
// sends anything. No answer longer than an object is ever read.
package zdbstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"overmount/block"
	"overmount/internal/pulse"
	"overmount/store"
)

// Options are the options of [New]. Nil and zero mean the defaults.
type Options struct {
	// Conns is how many connections there are at most, busy and idle. The
	// default is 16. A request that finds none free waits; its context is the
	// limit.
	Conns int

	// ConnectTimeout is the limit for a new connection, until its namespace is
	// selected. The default is 5 s.
	ConnectTimeout time.Duration

	// AnswerTimeout is the limit from the request to the end of the answer. The
	// default is 15 s.
	AnswerTimeout time.Duration
}

func (o *Options) withDefaults() Options {
	d := Options{}
	if o != nil {
		d = *o
	}
	setDefault(&d.Conns, 16)
	setDefault(&d.ConnectTimeout, 5*time.Second)
	setDefault(&d.AnswerTimeout, 15*time.Second)
	return d
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// A Store is one namespace of a 0-db. Concurrent use is safe.
type Store struct {
	address
	opts Options
	pool *redis.Pool

	// era grows with each connection that breaks. Idle connections of an
	// earlier era are not used again: when one has died without a word, as in a
	// change of network, the others have too, and each would cost a time limit.
	era atomic.Int64

	// userKeys is whether the server has said that callers choose their keys.
	userKeys atomic.Bool
}

var (
	_ store.Reader = (*Store)(nil)
	_ store.Writer = (*Store)(nil)
)

// New returns the store at u. It makes no connection. Its errors show neither the
// user nor the password.
func New(u *url.URL, opts *Options) (*Store, error) {
	a, err := parse(u)
	if err != nil {
		return nil, err
	}
	s := &Store{address: a, opts: opts.withDefaults()}
	s.pool = &redis.Pool{
		DialContext:  s.dial,
		TestOnBorrow: s.check,
		MaxActive:    s.opts.Conns,
		MaxIdle:      s.opts.Conns,
		IdleTimeout:  90 * time.Second,
		Wait:         true,
	}
	return s, nil
}

// Close closes the idle connections. The store cannot be used after it.
func (s *Store) Close() error { return s.pool.Close() }

// Preflight finds out whether the server answers, lets us into the namespace, and
// lets callers choose their keys. It writes nothing, so it does not see that a
// namespace is read-only or full.
func (s *Store) Preflight(ctx context.Context) error {
	reply, err := s.do(ctx, "PING")
	if err == nil && reply != "PONG" {
		err = s.strange("PING", reply)
	}
	return err
}

// Get returns the object, which it has not compared with its ID. The package
// comment lists its errors.
func (s *Store) Get(ctx context.Context, id block.ID) ([]byte, error) {
	reply, err := s.do(ctx, "GET", id[:])
	if err != nil {
		return nil, err
	}
	switch object := reply.(type) {
	case nil:
		return nil, fmt.Errorf("%w in %s", store.ErrNotFound, s.name)
	case []byte:
		if err := store.CheckSize(int64(len(object))); err != nil {
			return nil, fmt.Errorf("GET %s: %w", s.name, err)
		}
		return object, nil
	}
	return nil, s.strange("GET", reply)
}

// Put writes an object, and replaces what is there under its name if that has
// another CRC-32, by which a 0-db tells values apart. In a namespace in worm mode
// nothing can be replaced; there Put returns store.ErrForbidden if the name has
// other bytes. It returns block.ErrCorrupt for a length that no object has.
func (s *Store) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := store.CheckSize(int64(len(object))); err != nil {
		return false, err
	}
	reply, err := s.do(ctx, "SET", id[:], object)
	if errors.Is(err, errWorm) {
		return false, s.holds(ctx, id, object)
	}
	// The answer is the key, or nil where the value was the same. A server that
	// only resembles a 0-db says "OK" to both.
	return err == nil && reply != nil, err
}

// holds returns nil if the object is there.
func (s *Store) holds(ctx context.Context, id block.ID, want []byte) error {
	have, err := s.Get(ctx, id)
	if err == nil && !bytes.Equal(have, want) || errors.Is(err, block.ErrCorrupt) {
		return fmt.Errorf("SET %s: %w: the object's name has other bytes, which worm mode keeps from being replaced", s.name, store.ErrForbidden)
	}
	return err
}

// do makes one request. Its errors are those that the package promises.
func (s *Store) do(ctx context.Context, command string, args ...any) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	reply, err := s.ask(ctx, command, args...)
	if err == nil {
		return reply, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if answer, ok := errors.AsType[redis.Error](err); ok {
		err = s.refusal(string(answer))
	} else if store.Temporary(err) {
		s.era.Add(1)
		err = lost(err)
	}
	return nil, fmt.Errorf("%s %s: %w", command, s.name, err)
}

func (s *Store) ask(ctx context.Context, command string, args ...any) (any, error) {
	anew := pulse.Anew(ctx)
	connect := s.pool.GetContext
	if anew {
		connect = s.dial
	}
	c, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, s.opts.AnswerTimeout, fmt.Errorf("no answer within %v", s.opts.AnswerTimeout))
	defer cancel()
	reply, err := redis.DoContext(c, ctx, command, args...)
	if anew && err == nil {
		s.era.Add(1) // the older connections were silent
	}
	return reply, err
}

// lost says why there was no answer.
func lost(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the server closed the connection")
	case errors.Is(err, fs.ErrNotExist):
		return errors.New(err.Error()) // a missing socket must not look like a missing file
	}
	return err
}

func (s *Store) strange(command string, reply any) error {
	return fmt.Errorf("%s %s: the server answers with a %T, as no 0-db does", command, s.name, reply)
}

var errWorm = errors.New("the namespace is in worm mode")

// refusal returns what an error answer means. The texts are those of 0-db's
// zdbd/commands*.c; the one about a login is that of Redis and of tfstor.
func (s *Store) refusal(answer string) error {
	says := func(text string) bool { return strings.Contains(answer, text) }
	forbidden := func(format string, args ...any) error {
		return fmt.Errorf("%w: namespace %q "+format, append([]any{store.ErrForbidden, s.namespace}, args...)...)
	}
	switch {
	case says("Namespace not found"):
		return forbidden("does not exist: NSNEW makes it")
	case says("Access denied"):
		return forbidden("has another password")
	case says("Namespace protected and private"):
		return forbidden("is private: give its password, as in %s", s.example)
	case says("Namespace is in read-only mode") && s.namespace == defaultNamespace:
		return forbidden("can only be read on this server: write to another one")
	case says("Namespace is in read-only mode"):
		return forbidden("can only be read without its password: to write give it, as in %s", s.example)
	case says("No space left on this namespace"):
		return forbidden("is full: raise its limit with NSSET %s maxsize", s.namespace)
	case says("Invalid key, only update authorized"):
		return s.sequential()
	case says("Authentication required"), says("NOAUTH"):
		return forbidden("is behind a login, which a zdb store does not have")
	case says("Namespace is protected by worm mode"):
		return errWorm
	}
	if s.password != "" {
		answer = strings.ReplaceAll(answer, s.password, "…")
	}
	return fmt.Errorf("the server says %.200q", answer)
}

func (s *Store) sequential() error {
	return fmt.Errorf("%w: namespace %q is in sequential mode, in which the server makes up the keys: objects need one in user mode (NSSET %s mode user, while it is empty)",
		store.ErrForbidden, s.namespace, s.namespace)
}
