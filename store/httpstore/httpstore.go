// Package httpstore reads objects from a web server.
//
// The store is read-only: any server will do that gives files by path, such as
// nginx, a bucket's public endpoint, or a content delivery network.
//
// # Layouts
//
// An object may be at base/ab/abcd… (sharded), base/abcd… (flat) or
// base/ab/cd/abcd… (sharded2), and one server may have some objects here and some
// there: rfs uploads flat to S3, others sharded to the same bucket. Get asks
// first under the layout that answered last, then under the others. An object
// that is there costs one request as soon as the layout is known. One that is
// missing costs one request for each layout, every time: to save them would mean
// to call an object missing that is not. Who knows the layout sets
// [Options.Layouts].
//
// A status of 404, 410, 403 or 400 means that the object is not at that path: S3
// says 403 for a missing key to who may not list. So do bytes with another ID:
// some servers answer every path with status 200 and a web page. A layout counts
// as known only after an object came whose bytes match its ID. For this reason
// the package checks IDs itself, and its Store needs no store.Checked.
//
// # What a failure means
//
//	404, 410 under every layout     store.ErrNotFound
//	403, 400 among them             store.ErrNotFound if the store ever gave an
//	                                object, else store.ErrForbidden
//	401, 407                        store.ErrForbidden
//	wrong bytes, impossible length  block.ErrCorrupt, unless another layout has
//	                                the object
//	any other status                temporary; a store.BusyError if the answer
//	                                has a Retry-After
//	no connection, cut, too slow    temporary
//
// # Limits
//
// Connecting, the wait for the headers, and the speed of the body have limits, so
// that Get always ends; see [Options]. No more than the longest possible object
// is ever read. Ten redirects are followed, never from https to http. Proxies are
// taken from the environment.
//
// # Credentials
//
// [Options.Auth] has credentials by server, which is where those belong that a
// manifest must not have. A user and password in the URL are sent as basic
// authentication where Auth has no line for the server. Errors show neither of
// these, nor the query; no server is told the URL that redirected to it.
package httpstore

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"overmount/block"
	"overmount/internal/httpclient"
	"overmount/store"
)

// Options are the options of [New]. Nil and zero mean the defaults.
type Options struct {
	// Conns is how many connections there are at most, busy and idle. The
	// default is 32. A Get that finds none free waits; its context is the limit.
	Conns int

	// ConnectTimeout is the limit for the connection, and again for the TLS
	// handshake. The default is 10 s.
	ConnectTimeout time.Duration

	// HeaderTimeout is the limit from the request to the end of the answer's
	// headers. The default is 15 s.
	HeaderTimeout time.Duration

	// MinRate is how fast a body must come, in bytes per second. The default is
	// 1024. A body that brings less than MinRate times RateWindow in a
	// RateWindow, and does not end in it, is given up.
	MinRate int

	// RateWindow is the time over which MinRate is measured. The default is
	// 10 s.
	RateWindow time.Duration

	// Layouts are the layouts to try, in the order for a start. The default is
	// sharded, flat, sharded2.
	Layouts []store.Layout

	// TLS is the configuration for https, as for a private authority. The
	// default trusts the system's.
	TLS *tls.Config

	// Auth has the credentials for servers that want some. The default is none.
	Auth *Auth
}

func (o *Options) withDefaults() Options {
	d := Options{}
	if o != nil {
		d = *o
	}
	d.Layouts = slices.Clone(d.Layouts)
	if len(d.Layouts) == 0 {
		d.Layouts = []store.Layout{store.Sharded, store.Flat, store.Sharded2}
	}
	return d
}

// A Store reads from one base URL. Concurrent use is safe.
type Store struct {
	opts   Options
	base   *url.URL // path without a slash at the end
	name   string   // base for people: no user, password or query
	client *httpclient.Client

	// known is the index in opts.Layouts of the layout that answered last, -1
	// before the first answer.
	known atomic.Int32
}

var _ store.Reader = (*Store)(nil)

// New returns a store below the base URL, http or https. Its query goes with every
// request. New makes no request.
func New(base *url.URL, opts *Options) (*Store, error) {
	if base.Scheme != "http" && base.Scheme != "https" {
		return nil, fmt.Errorf("web store %s: scheme is %q, want http or https", display(base), base.Scheme)
	}
	if base.Hostname() == "" {
		return nil, fmt.Errorf("web store %s: it has no host", display(base))
	}
	s := &Store{opts: opts.withDefaults(), base: trimSlash(base)}
	s.name = display(s.base)
	s.client = client(s.opts)
	s.known.Store(-1)
	return s, nil
}

func trimSlash(base *url.URL) *url.URL {
	u := *base
	u.RawPath = strings.TrimRight(base.EscapedPath(), "/")
	u.Path = strings.TrimRight(base.Path, "/")
	u.Fragment, u.RawFragment = "", ""
	return &u
}

func client(o Options) *httpclient.Client {
	return httpclient.New(httpclient.Options{
		Conns: o.Conns, ConnectTimeout: o.ConnectTimeout, HeaderTimeout: o.HeaderTimeout,
		MinRate: o.MinRate, RateWindow: o.RateWindow, TLS: o.TLS, Wrap: o.Auth.Transport,
	})
}

// display returns a URL for people. A query may hold a token.
func display(u *url.URL) string {
	d := *u
	d.User, d.RawQuery, d.ForceQuery, d.Fragment, d.RawFragment = nil, "", false, "", ""
	return d.String()
}

// Close closes the idle connections.
func (s *Store) Close() error {
	s.client.Close()
	return nil
}

// Get returns the object, whose ID it has checked. The package comment lists its
// errors.
func (s *Store) Get(ctx context.Context, id block.ID) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var m miss
	known := int(s.known.Load())
	for _, i := range s.order(known) {
		object, err := s.get(ctx, s.url(s.opts.Layouts[i], id), id)
		switch {
		case err == nil:
			if i != known {
				s.known.Store(int32(i))
			}
			return object, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !m.add(s.opts.Layouts[i], err):
			return nil, err
		}
	}
	return nil, m.err(s.name, s.known.Load() >= 0)
}

// order returns the indexes of the layouts, the known one first.
func (s *Store) order(known int) []int {
	order := make([]int, 0, len(s.opts.Layouts))
	if known >= 0 {
		order = append(order, known)
	}
	for i := range s.opts.Layouts {
		if i != known {
			order = append(order, i)
		}
	}
	return order
}

func (s *Store) url(l store.Layout, id block.ID) *url.URL {
	u := *s.base
	key := "/" + l.Key(id)
	u.Path, u.RawPath = u.Path+key, u.RawPath+key
	return &u
}

// A miss collects why the object is not under the layouts asked so far.
type miss struct {
	said    []string
	refused bool
	hint    string // what may help against refusal
	corrupt error
}

// add reports whether err means that the object is not at that path.
func (m *miss) add(l store.Layout, err error) bool {
	var status *statusError
	switch {
	case errors.Is(err, block.ErrCorrupt):
		if m.corrupt == nil {
			m.corrupt = err
		}
		return true
	case !errors.As(err, &status):
		return false
	}
	switch status.code {
	case http.StatusForbidden, http.StatusBadRequest:
		m.refused = true
		m.hint = cmp.Or(m.hint, status.hint)
	case http.StatusNotFound, http.StatusGone:
	default:
		return false
	}
	m.said = append(m.said, fmt.Sprintf("%v %d", l, status.code))
	return true
}

func (m *miss) err(name string, works bool) error {
	said := strings.Join(m.said, ", ")
	if m.hint != "" {
		m.hint = "; " + m.hint
	}
	switch {
	case m.corrupt != nil:
		return m.corrupt
	case m.refused && !works:
		return fmt.Errorf("%w: %s forbids reading, or has not one of the objects asked for so far (%s)%s", store.ErrForbidden, name, said, m.hint)
	}
	return fmt.Errorf("%w at %s (%s)", store.ErrNotFound, name, said)
}
