// Package webdir reads files below a URL, such as those of a repository of
// packages.
package webdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"

	"overmount/internal/httpclient"
)

// A Dir is what is below a URL. Concurrent use is safe.
type Dir struct {
	base   *url.URL
	client *httpclient.Client
	hint   func(*http.Request) string
}

// Options are the options of [New]. Zero means the default.
type Options struct {
	Client httpclient.Options

	// Hint, if set, says what may help where a server refuses a request with 401 or
	// 403; it is a part of the error.
	Hint func(*http.Request) string
}

// New returns what is below an http or https URL, to be closed. User, password and
// query of the URL are sent with each request, and are in no error.
func New(base string, o Options) (*Dir, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, errors.New("the URL cannot be parsed")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%s: want http://HOST/PATH or https://HOST/PATH", shown(u))
	}
	return &Dir{u, httpclient.New(o.Client), o.Hint}, nil
}

// Close closes idle connections.
func (d *Dir) Close() { d.client.Close() }

// String is the URL for people: without user, password and query.
func (d *Dir) String() string { return shown(d.base) }

func shown(u *url.URL) string {
	v := *u
	v.User, v.RawQuery, v.Fragment = nil, "", ""
	return v.String()
}

// Open gets a file. The name is a path as in fs.ValidPath, relative to the URL. The
// error is fs.ErrNotExist if the server says that there is none. Reading fails if
// the file comes too slowly, or ends before the length that the server stated.
func (d *Dir) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	escaped := (&url.URL{Path: name}).EscapedPath()
	body, err := d.get(ctx, d.base.JoinPath(escaped).String())
	if err != nil {
		return nil, fmt.Errorf("get %s from %s: %w", name, d, err)
	}
	return body, nil
}

func (d *Dir) get(ctx context.Context, from string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, errors.New("the URL cannot be used")
	}
	req.Header.Set("User-Agent", "overmount")
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	resp.Body.Close()
	return nil, d.refused(resp)
}

func (d *Dir) refused(resp *http.Response) error {
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		return fmt.Errorf("the server answers %s (%w)", resp.Status, fs.ErrNotExist)
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		err := fmt.Errorf("the server answers %s (%w)", resp.Status, fs.ErrPermission)
		if d.hint != nil {
			err = fmt.Errorf("%w: %s", err, d.hint(resp.Request))
		}
		return err
	}
	return fmt.Errorf("the server answers %s", resp.Status)
}
