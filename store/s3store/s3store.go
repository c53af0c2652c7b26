// Package s3store keeps objects in a bucket of an S3 server: Garage, Ceph, MinIO,
// versitygw, AWS and others.
//
//	s3://KEY:SECRET@HOST[:PORT]/BUCKET[/PREFIX][?region=REGION&layout=LAYOUT]
//	s3s://…                                                        with TLS
//
// User and password, bucket and prefix are percent-decoded: a / in a secret is
// written %2F. The port is 80 or 443 unless it is given. The bucket is always in
// the path, never in the host name.
//
// # Requests
//
// An object is one request with a known length, signed with its SHA-256
// (AWS Signature Version 4): the form that every server takes, old ones too. There
// are no multipart uploads, no trailing checksums, no conditions. Objects say that
// they never change (Cache-Control: immutable), for the caches before a bucket's
// public endpoint; files (PutFile) say that they do.
//
// Requests without credentials are not signed. Redirects are not followed: a
// signature is good for one host.
//
// # Region
//
// A signature names the server's region. It is the query's region, else
// [Options.Region], which is then taken as given. If both are empty requests begin
// with us-east-1, and a server that wants another region says so once, in its
// answer to the first request that has a body: Garage, AWS and others do.
//
// # Layouts
//
// Objects are written as PREFIX/ab/abcd… (layout=sharded, the default), which web
// readers, rfs's too, find in one request through a public endpoint; or as
// PREFIX/abcd… (layout=flat), which is all that rfs's own S3 reader asks for. Get
// and Has ask under the layout that answered last, at first the given one, then
// under the other. Put and Learn look at the given one alone: an object that is
// there in the other form only is written again.
//
// # What a failure means
//
//	404 for a key                   store.ErrNotFound, after both layouts
//	403 for a key, in Get and Has   store.ErrNotFound if the store ever gave an
//	                                object, else store.ErrForbidden: S3 says so
//	                                of a missing key to who may not list
//	400, 401, 403, no bucket,       store.ErrForbidden, with the reason as far as
//	redirects, other 4xx            the server tells it: see Preflight
//	wrong bytes, impossible length  block.ErrCorrupt, unless the other layout has
//	                                the object
//	408, 409, 425, 429, 5xx, and    temporary; a store.BusyError if the answer has
//	bodies damaged on their way     a Retry-After
//	no connection, cut, too slow    temporary
//
// A Store checks the IDs of what it gets, and needs no store.Checked. It does not
// ask twice; store.Retry and store.RetryWriter do. The limits of each request are
// those of [Options].
//
// # Secrets
//
// Secret key and session token are in no error and not in what a Store,
// Credentials or Options print, whatever a server sends back.
package s3store

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"overmount/internal/httpclient"
	"overmount/store"
)

// Options are the options of [New]. Nil and zero mean the defaults.
type Options struct {
	// Credentials are used if the URL has none with a secret. Nil: requests are
	// not signed. Key id and session token go to the host of the URL, whoever
	// wrote it: who opens the URL of a foreign manifest gives credentials only
	// for hosts that they are meant for.
	Credentials *Credentials

	// Region is used if the URL has none; see the package comment.
	Region string

	// Conns is how many connections there are at most, busy and idle. The
	// default is 32. A request that finds none free waits; its context is the
	// limit.
	Conns int

	// ConnectTimeout is the limit for the connection, and again for the TLS
	// handshake. The default is 5 s.
	ConnectTimeout time.Duration

	// HeaderTimeout is the limit from the end of the request to the end of the
	// answer's headers. The default is 15 s.
	HeaderTimeout time.Duration

	// MinRate is how fast a body must come or go, in bytes per second. The
	// default is 1024. A body of which less than MinRate times RateWindow moves
	// in a RateWindow, and which does not end in it, is given up.
	MinRate int

	// RateWindow is the time over which MinRate is measured. The default is
	// 10 s.
	RateWindow time.Duration

	// TLS is the configuration for s3s, as for a private authority. The default
	// trusts the system's.
	TLS *tls.Config
}

func (o *Options) withDefaults() Options {
	d := Options{}
	if o != nil {
		d = *o
	}
	if d.ConnectTimeout <= 0 {
		d.ConnectTimeout = 5 * time.Second
	}
	return d
}

// A Store is a bucket, or what lies below a prefix in it. Concurrent use is safe.
type Store struct {
	client *httpclient.Client
	signer *v4.Signer
	creds  *Credentials // nil: none

	scheme, host string // of requests: http or https; without a default port
	base         string // URL of the bucket for people
	bucket       string
	prefix       string // without slashes around it, may be empty

	region  string                 // as given, or empty
	learned atomic.Pointer[string] // from an answer

	layouts [2]store.Layout // the one to write first
	// works is 1 + the index in layouts of the layout that answered last, 0
	// before the first answer.
	works atomic.Int32

	present inventory
}

var (
	_ store.Reader    = (*Store)(nil)
	_ store.Writer    = (*Store)(nil)
	_ store.Prober    = (*Store)(nil)
	_ store.Lister    = (*Store)(nil)
	_ store.Learner   = (*Store)(nil)
	_ store.Deleter   = (*Store)(nil)
	_ store.FileStore = (*Store)(nil)
)

// New returns the store at a URL with the scheme s3 or s3s. It makes no request;
// see Preflight.
func New(u *url.URL, opts *Options) (*Store, error) {
	s, err := parse(u)
	if err != nil {
		return nil, err
	}
	o := opts.withDefaults()
	if s.creds == nil {
		s.creds = o.Credentials
	}
	if s.creds != nil && (s.creds.KeyID == "" || s.creds.Secret == "") {
		return nil, fmt.Errorf("store %s: the credentials want both a key id and a secret key", s)
	}
	if s.region == "" {
		s.region = o.Region
	}
	// S3 signs the path as it is sent.
	s.signer = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	s.client = httpclient.New(httpclient.Options{
		Conns: o.Conns, ConnectTimeout: o.ConnectTimeout, HeaderTimeout: o.HeaderTimeout,
		MinRate: o.MinRate, RateWindow: o.RateWindow, TLS: o.TLS,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	})
	return s, nil
}

// parse reads the URL. Its errors show nothing of a URL in which a secret may have
// gone astray.
func parse(u *url.URL) (*Store, error) {
	s := new(Store)
	port := map[string]string{"s3": "80", "s3s": "443"}[u.Scheme]
	switch u.Scheme {
	case "s3":
		s.scheme = "http"
	case "s3s":
		s.scheme = "https"
	default:
		return nil, fmt.Errorf("S3 store: scheme is %q, want s3 or s3s", u.Scheme)
	}
	if strings.Contains(u.EscapedPath()+u.RawQuery+u.Fragment, "@") {
		return nil, fmt.Errorf("store %s://…: there is an @ after the host: in key and secret write / as %%2F, ? as %%3F, @ as %%40", u.Scheme)
	}
	if err := s.parseHost(u, port); err != nil {
		return nil, err
	}
	if err := s.parsePath(u); err != nil {
		return nil, err
	}
	if err := s.parseQuery(u.RawQuery); err != nil {
		return nil, fmt.Errorf("store %s: %w", s, err)
	}
	secret, _ := u.User.Password()
	switch key := u.User.Username(); {
	case secret != "" && key == "":
		return nil, fmt.Errorf("store %s: it has a secret key and no key id", s)
	case secret != "":
		s.creds = &Credentials{KeyID: key, Secret: secret}
	}
	return s, nil
}

// parseHost takes host and port as they will be in the header Host, which is
// signed: net/http would change those that are refused here.
func (s *Store) parseHost(u *url.URL, defaultPort string) error {
	host := u.Hostname()
	switch {
	case host == "":
		return fmt.Errorf("store %s://…: it has no host: want %s://HOST/BUCKET", u.Scheme, u.Scheme)
	case strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '%' }):
		return fmt.Errorf("store %s://…: the host is not plain ASCII: write an international name as xn--…", u.Scheme)
	}
	s.host = strings.TrimSuffix(net.JoinHostPort(host, ""), ":")
	if p := u.Port(); p != "" && p != defaultPort {
		s.host = net.JoinHostPort(host, p)
	}
	return nil
}

func (s *Store) parsePath(u *url.URL) error {
	path := strings.TrimRight(strings.TrimPrefix(u.Path, "/"), "/")
	s.bucket, s.prefix, _ = strings.Cut(path, "/")
	s.base = u.Scheme + "://" + u.Host + "/" + escape(s.bucket)
	switch {
	case s.bucket == "":
		return fmt.Errorf("store %s://%s: it names no bucket: want %s://HOST/BUCKET", u.Scheme, u.Host, u.Scheme)
	case !fs.ValidPath(path):
		// Servers and proxies change such paths.
		return fmt.Errorf("store %s: bucket and prefix may have no empty parts, and no dots alone", s)
	}
	return nil
}

func (s *Store) parseQuery(raw string) error {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return errors.New("its query cannot be parsed")
	}
	s.layouts = [2]store.Layout{store.Sharded, store.Flat}
	for name, values := range query {
		v := values[len(values)-1]
		switch {
		case len(values) == 1 && name == "region" && (v == "" || validRegion(v)):
			s.region = v
		case len(values) == 1 && name == "layout" && v == store.Sharded.String():
		case len(values) == 1 && name == "layout" && v == store.Flat.String():
			s.layouts = [2]store.Layout{store.Flat, store.Sharded}
		case name == "region":
			return errors.New("its query has a region that is no region name")
		case name == "layout":
			return errors.New("its query has an unknown layout: want layout=sharded or layout=flat")
		default:
			return errors.New("its query may have region=REGION and layout=LAYOUT, and nothing else")
		}
	}
	return nil
}

// validRegion reports whether s can stand in the scope of a signature. Servers
// other than AWS have free names.
func validRegion(s string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	return s != "" && len(s) <= 64 && strings.Trim(s, chars) == ""
}

// String returns the URL without user, password and query.
func (s *Store) String() string { return s.display(s.prefix) }

// display returns the URL of a key for people.
func (s *Store) display(key string) string {
	if key == "" {
		return s.base
	}
	return s.base + "/" + escape(key)
}

// Close closes the idle connections.
func (s *Store) Close() error {
	s.client.Close()
	return nil
}

// below returns the key of a name below the prefix.
func (s *Store) below(name string) string {
	if s.prefix == "" {
		return name
	}
	return s.prefix + "/" + name
}
