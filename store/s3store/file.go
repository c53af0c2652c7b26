package s3store

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"

	"overmount/store"
)

// PutFile writes size bytes of body, a manifest or what goes with it, under a name
// below the store's prefix. It appears there whole, at once, in place of what was
// there. Name is a path as [fs.ValidPath] wants it.
//
// The body is read twice, and again if a connection turns out to be dead. It must
// not change meanwhile.
func (s *Store) PutFile(ctx context.Context, name string, body io.ReaderAt, size int64, opts *store.FileOptions) error {
	if err := s.checkName(name); err != nil {
		return err
	}
	o := store.FileOptions{}
	if opts != nil {
		o = *opts
	}
	return s.put(ctx, request{
		method: http.MethodPut, key: s.below(name), body: body, size: size,
		contentType: cmp.Or(o.ContentType, octets), cacheControl: cmp.Or(o.CacheControl, "no-cache"),
	})
}

// GetFile returns a file that is at most most bytes long. Its errors are those of
// Get; ErrNotFound means that there is no such file. The bytes are not checked:
// S3 has no name for them.
func (s *Store) GetFile(ctx context.Context, name string, most int64) ([]byte, error) {
	if err := s.checkName(name); err != nil {
		return nil, err
	}
	r := request{method: http.MethodGet, key: s.below(name)}
	resp, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.ContentLength > most {
		return nil, s.failed(ctx, r, fmt.Errorf("it is %d bytes long, over the limit of %d", resp.ContentLength, most))
	}
	file, err := s.read(ctx, r, resp, most+1)
	if err != nil {
		return nil, err
	}
	if int64(len(file)) > most {
		return nil, s.failed(ctx, r, fmt.Errorf("it is over the limit of %d bytes", most))
	}
	return file, nil
}

func (s *Store) checkName(name string) error {
	if name == "." || !fs.ValidPath(name) {
		return fmt.Errorf("file %q in %s: want a path like a/b, without empty parts and dots", name, s)
	}
	return nil
}
