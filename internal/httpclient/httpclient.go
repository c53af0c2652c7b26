// Package httpclient is the HTTP client of the stores: all that it waits for has a
// limit.
//
// Connecting, the TLS handshake and the wait for an answer's headers have a time
// each. A body has a rate, whether it goes or comes: a small fixed time would fail
// a long body on a thin line, and a large one would make a dead line cost as much.
//
// The package knows nothing of stores. What an answer means, and how much of its
// body may be read, is its users' business.
package httpclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"overmount/internal/pulse"
)

// Options are the options of [New]. Zero means the default.
type Options struct {
	// Conns is how many connections to one server there are at most, busy and
	// idle. The default is 32.
	Conns int

	// ConnectTimeout is the limit for the connection, and again for the TLS
	// handshake. The default is 10 s.
	ConnectTimeout time.Duration

	// HeaderTimeout is the limit from the end of the request to the end of the
	// answer's headers. The default is 15 s.
	HeaderTimeout time.Duration

	// MinRate is how fast a body must move, in bytes per second, and RateWindow
	// the time over which that is measured: a body of which less than MinRate
	// times RateWindow moves in a RateWindow, and which does not end in it, is
	// given up. The defaults are 1024 and 10 s.
	MinRate    int
	RateWindow time.Duration

	// TLS is the configuration for https. The default trusts the system's
	// authorities.
	TLS *tls.Config

	// Wrap, if set, is put around the transport. What it returns closes idle
	// connections, too.
	Wrap func(http.RoundTripper) http.RoundTripper

	// CheckRedirect is that of http.Client. The default follows ten redirects,
	// never from https to http, and tells no server the URL that redirected to it.
	CheckRedirect func(next *http.Request, via []*http.Request) error
}

func (o Options) withDefaults() Options {
	if o.CheckRedirect == nil {
		o.CheckRedirect = checkRedirect
	}
	setDefault(&o.Conns, 32)
	setDefault(&o.ConnectTimeout, 10*time.Second)
	setDefault(&o.HeaderTimeout, 15*time.Second)
	setDefault(&o.MinRate, 1024)
	setDefault(&o.RateWindow, 10*time.Second)
	return o
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > 10 {
		return errors.New("more than 10 redirects")
	}
	if via[len(via)-1].URL.Scheme == "https" && next.URL.Scheme != "https" {
		return errors.New("redirected from https to http")
	}
	next.Header.Del("Referer") // its query may hold a token
	return nil
}

// A Client makes requests. Concurrent use is safe.
type Client struct {
	opts Options
	http *http.Client
}

// New returns a client. Proxies are taken from the environment; bodies come as
// the server sends them, never decompressed.
func New(opts Options) *Client {
	o := opts.withDefaults()
	var transport http.RoundTripper = newLines(o)
	if o.Wrap != nil {
		transport = o.Wrap(transport)
	}
	return &Client{o, &http.Client{CheckRedirect: o.CheckRedirect, Transport: transport}}
}

// Close closes the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Do makes a request. An answer of any status is no error. Its body must be
// closed; reading it fails when it comes too slowly. Errors, also those of the
// body, do not name the URL.
//
// The request's context ends the waits that have no limit of their own: that for
// a free connection, and that of a caller who does not read.
func (c *Client) Do(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	up := c.newPace(cancel)
	defer up.stop()
	resp, err := c.http.Do(c.watchUpload(req.WithContext(ctx), up))
	if err != nil {
		err = c.broken(ctx, err)
		cancel(nil)
		return nil, err
	}
	pulse.Beat(ctx)
	resp.Body = c.watchDownload(ctx, cancel, resp.Body)
	return resp, nil
}

// watchDownload puts an answer's body under a pace. cancel ends ctx, the context
// of its request.
func (c *Client) watchDownload(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser) io.ReadCloser {
	p := c.newPace(cancel)
	p.moved(0)
	return &download{ReadCloser: body, c: c, ctx: ctx, cancel: cancel, pace: p}
}

// watchUpload puts a request's body, and what it is read from again after a
// connection has died, under a pace.
func (c *Client) watchUpload(req *http.Request, p *pace) *http.Request {
	if req.Body == nil || req.Body == http.NoBody {
		return req
	}
	last := c.opts.RateWindow + c.opts.HeaderTimeout
	req.Body = &upload{req.Body, p, last}
	if again := req.GetBody; again != nil {
		req.GetBody = func() (io.ReadCloser, error) {
			body, err := again()
			if err != nil {
				return nil, err
			}
			p.rest(last) // until there is a new connection
			return &upload{body, p, last}, nil
		}
	}
	return req
}

// broken gives the reason why a request got no answer, or not all of it. It also
// drops the idle connections: when one has died without a word, as in a change
// of network, the others have too, and each would cost a time limit.
func (c *Client) broken(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errTooSlow) {
		err = cause
	}
	if ctx.Err() == nil || errors.Is(err, errTooSlow) {
		c.http.CloseIdleConnections()
	}
	// The client's error repeats the URL, after redirects a foreign one.
	if withURL, ok := errors.AsType[*url.Error](err); ok {
		return withURL.Err
	}
	return err
}

var errTooSlow = errors.New("too slow")

// A pace cancels a request of which a body does not move fast enough: each
// quantum of bytes, or the rest, has one window of time.
type pace struct {
	cancel  context.CancelCauseFunc
	window  time.Duration
	quantum int
	tooSlow error

	mu    sync.Mutex
	timer *time.Timer // nil until the body begins
	since int         // bytes moved since the timer was set
	over  bool
}

func (c *Client) newPace(cancel context.CancelCauseFunc) *pace {
	quantum := max(int(float64(c.opts.MinRate)*c.opts.RateWindow.Seconds()), 1)
	return &pace{
		cancel:  cancel,
		window:  c.opts.RateWindow,
		quantum: quantum,
		tooSlow: fmt.Errorf("%w: less than %d bytes in %v", errTooSlow, quantum, c.opts.RateWindow),
	}
}

// moved says that n more bytes have moved. The first call starts the clock.
func (p *pace) moved(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since += n; p.since >= p.quantum || p.timer == nil {
		p.since = 0
		p.set(p.window)
	}
}

// rest says that all has moved but what lies in buffers, and gives that a time.
func (p *pace) rest(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(d)
}

func (p *pace) set(d time.Duration) {
	switch {
	case p.over:
	case p.timer == nil:
		p.timer = time.AfterFunc(d, func() { p.cancel(p.tooSlow) })
	default:
		p.timer.Reset(d)
	}
}

// stop ends the pace. What the transport still reads or writes after that does
// not count.
func (p *pace) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if p.timer != nil {
		p.timer.Stop()
	}
}

// An upload is a request's body. The transport reads it as fast as it can write.
type upload struct {
	io.ReadCloser
	pace *pace
	last time.Duration // for what is read and not yet written at the end
}

// Read gives no more than a quantum: a longer piece would have to be written
// within one window.
func (u *upload) Read(b []byte) (int, error) {
	u.pace.moved(0)
	n, err := u.ReadCloser.Read(b[:min(len(b), u.pace.quantum)])
	u.pace.moved(n)
	if err == io.EOF {
		u.pace.rest(u.last)
	}
	return n, err
}

// A download is an answer's body.
type download struct {
	io.ReadCloser
	c      *Client
	ctx    context.Context // of the one request
	cancel context.CancelCauseFunc
	pace   *pace
}

func (d *download) Read(b []byte) (int, error) {
	n, err := d.ReadCloser.Read(b)
	d.pace.moved(n)
	if n > 0 {
		pulse.Beat(d.ctx)
	}
	if err != nil && err != io.EOF {
		err = d.c.broken(d.ctx, err)
	}
	return n, err
}

func (d *download) Close() error {
	d.pace.stop()
	err := d.ReadCloser.Close()
	d.cancel(nil)
	return err
}

// ReadAll reads a body of length bytes, -1 if that is not known. It never reads, or
// makes room for, more than most bytes: a longer body is cut there, so that most
// is one more than what the caller accepts.
func ReadAll(body io.Reader, length, most int64) ([]byte, error) {
	if length < 0 || length > most {
		b, err := io.ReadAll(io.LimitReader(body, most))
		if err != nil {
			return nil, fmt.Errorf("body ended after %d bytes: %w", len(b), err)
		}
		return b, nil
	}
	b := make([]byte, length)
	if n, err := io.ReadFull(body, b); err != nil {
		return nil, fmt.Errorf("body ended after %d of %d bytes: %w", n, length, err)
	}
	return b, nil
}

// RetryAfter reads the header Retry-After, RFC 9110, section 10.2.3: seconds or a
// date. A date counts from the server's own Date where there is one, because the
// clock of a booting machine may be wrong.
func RetryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 64); err == nil {
		const most = math.MaxInt64 / uint64(time.Second)
		return time.Duration(min(n, most)) * time.Second, true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return max(at.Sub(now), 0), true
}
