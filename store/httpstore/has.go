package httpstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"overmount/block"
	"overmount/store"
)

var _ store.Prober = (*Store)(nil)

// Layout returns the layout of the object that came last. It reports false until
// one has come.
func (s *Store) Layout() (store.Layout, bool) {
	known := s.known.Load()
	if known < 0 {
		return 0, false
	}
	return s.opts.Layouts[known], true
}

// Has asks with HEAD where Get asks with GET. An answer without a body cannot be
// checked, so Layout learns nothing from it; a web page and a length that no
// object has are block.ErrCorrupt here too.
func (s *Store) Has(ctx context.Context, id block.ID) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	var m miss
	known := int(s.known.Load())
	for _, i := range s.order(known) {
		err := s.head(ctx, s.url(s.opts.Layouts[i], id))
		switch {
		case err == nil:
			return true, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case !m.add(s.opts.Layouts[i], err):
			return false, err
		}
	}
	if err := m.err(s.name, known >= 0); !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	return false, nil
}

// head makes one request. Nil means that there is what may be an object.
func (s *Store) head(ctx context.Context, u *url.URL) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, u.String(), nil)
	if err != nil {
		return errors.New("the URL cannot be requested")
	}
	req.Header.Set("User-Agent", "overmount")
	resp, err := s.client.Do(req)
	if err != nil {
		return fmt.Errorf("HEAD %s: %w", display(u), err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode != http.StatusOK:
		err = s.statusErr(resp)
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html"):
		err = fmt.Errorf("%w: the server has a web page there", block.ErrCorrupt)
	case resp.ContentLength >= 0:
		err = store.CheckSize(resp.ContentLength)
	}
	if err != nil {
		return fmt.Errorf("HEAD %s: %w", display(u), err)
	}
	return nil
}
