package httpstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"overmount/block"
	"overmount/store"
)

// A statusError is an answer other than 200.
type statusError struct {
	code int
	hint string // what may help
}

func (e *statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("status %d %s", e.code, http.StatusText(e.code)))
}

// get makes one request and checks what comes.
func (s *Store) get(ctx context.Context, u *url.URL, id block.ID) ([]byte, error) {
	object, err := s.fetch(ctx, u)
	if err == nil {
		err = store.Check(id, object.bytes)
	}
	if errors.Is(err, block.ErrCorrupt) && object.html {
		err = fmt.Errorf("%w; the server sent a web page", err)
	}
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", display(u), err)
	}
	return object.bytes, nil
}

type answer struct {
	bytes []byte
	html  bool
}

func (s *Store) fetch(ctx context.Context, u *url.URL) (a answer, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return a, errors.New("the URL cannot be requested")
	}
	req.Header.Set("User-Agent", "overmount")
	resp, err := s.client.Do(req)
	if err != nil {
		return a, s.broken(ctx, err)
	}
	defer resp.Body.Close()
	body := watch(resp.Body, s.opts, cancel)
	defer body.stop()
	if resp.StatusCode != http.StatusOK {
		// A short body that is read to its end leaves the connection for the
		// next request.
		io.CopyN(io.Discard, body, 16<<10)
		return a, s.statusErr(resp)
	}
	a.html = strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html")
	a.bytes, err = readObject(body, resp.ContentLength)
	if err != nil && !errors.Is(err, block.ErrCorrupt) {
		err = s.broken(ctx, err)
	}
	return a, err
}

// broken gives the reason why a request got no answer, or not all of it. It also
// drops the idle connections: when one has died without a word, as in a change
// of network, the others have too, and each would cost a time limit.
func (s *Store) broken(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errTooSlow) {
		err = cause
	}
	if ctx.Err() == nil || errors.Is(err, errTooSlow) {
		s.client.CloseIdleConnections()
	}
	// The client's error repeats the URL, after redirects a foreign one.
	if withURL, ok := errors.AsType[*url.Error](err); ok {
		return withURL.Err
	}
	return err
}

// readObject reads a body of length bytes, -1 if it is not known.
func readObject(body io.Reader, length int64) ([]byte, error) {
	if length < 0 {
		object, err := io.ReadAll(io.LimitReader(body, block.MaxObject+1))
		if err != nil {
			return nil, fmt.Errorf("body ended after %d bytes: %w", len(object), err)
		}
		return object, store.CheckSize(int64(len(object)))
	}
	if err := store.CheckSize(length); err != nil {
		return nil, err
	}
	object := make([]byte, length)
	if n, err := io.ReadFull(body, object); err != nil {
		return nil, fmt.Errorf("body ended after %d of %d bytes: %w", n, length, err)
	}
	return object, nil
}

// statusErr returns the error for an answer other than 200.
func (s *Store) statusErr(resp *http.Response) error {
	status := &statusError{code: resp.StatusCode}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return fmt.Errorf("%w: %s (%w)", store.ErrForbidden, s.opts.Auth.hint(resp.Request), status)
	case http.StatusProxyAuthRequired:
		return fmt.Errorf("%w: the proxy wants other credentials than it got (%w)", store.ErrForbidden, status)
	case http.StatusForbidden:
		status.hint = s.opts.Auth.hint(resp.Request)
	}
	if after, ok := retryAfter(resp.Header, time.Now()); ok {
		return &store.BusyError{Err: status, After: after}
	}
	return status
}

// retryAfter reads the header Retry-After, RFC 9110, section 10.2.3: seconds or a
// date. A date counts from the server's own Date where there is one, because the
// clock of a booting machine may be wrong.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
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

var errTooSlow = errors.New("too slow")

// A watched body cancels its request when it does not come fast enough: each
// quantum of bytes, or the rest, has one window of time.
type watched struct {
	body    io.Reader
	timer   *time.Timer
	window  time.Duration
	quantum int
	got     int // since the timer was set
}

func watch(body io.Reader, o Options, cancel context.CancelCauseFunc) *watched {
	quantum := max(int(float64(o.MinRate)*o.RateWindow.Seconds()), 1)
	tooSlow := fmt.Errorf("%w: less than %d bytes in %v", errTooSlow, quantum, o.RateWindow)
	return &watched{
		body:    body,
		timer:   time.AfterFunc(o.RateWindow, func() { cancel(tooSlow) }),
		window:  o.RateWindow,
		quantum: quantum,
	}
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.body.Read(p)
	if w.got += n; w.got >= w.quantum {
		w.got = 0
		w.timer.Reset(w.window)
	}
	return n, err
}

func (w *watched) stop() { w.timer.Stop() }
