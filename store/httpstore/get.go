package httpstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"overmount/block"
	"overmount/internal/httpclient"
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
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return a, errors.New("the URL cannot be requested")
	}
	req.Header.Set("User-Agent", "overmount")
	resp, err := s.client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		// A short body that is read to its end leaves the connection for the
		// next request.
		io.CopyN(io.Discard, resp.Body, 16<<10)
		return a, s.statusErr(resp)
	}
	a.html = strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html")
	a.bytes, err = readObject(resp.Body, resp.ContentLength)
	return a, err
}

// readObject reads a body of length bytes, -1 if it is not known.
func readObject(body io.Reader, length int64) ([]byte, error) {
	if length >= 0 {
		if err := store.CheckSize(length); err != nil {
			return nil, err
		}
	}
	object, err := httpclient.ReadAll(body, length, block.MaxObject+1)
	if err != nil {
		return nil, err
	}
	return object, store.CheckSize(int64(len(object)))
}

// statusErr returns the error for an answer other than 200.
func (s *Store) statusErr(resp *http.Response) error {
	status := &statusError{code: resp.StatusCode}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return fmt.Errorf("%w: %s (%w)", store.ErrForbidden, s.opts.Auth.Hint(resp.Request), status)
	case http.StatusProxyAuthRequired:
		return fmt.Errorf("%w: the proxy wants other credentials than it got (%w)", store.ErrForbidden, status)
	case http.StatusForbidden:
		status.hint = s.opts.Auth.Hint(resp.Request)
	}
	if after, ok := httpclient.RetryAfter(resp.Header, time.Now()); ok {
		return &store.BusyError{Err: status, After: after}
	}
	return status
}
