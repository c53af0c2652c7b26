package s3store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"overmount/block"
	"overmount/store"
)

func (s *Store) key(l store.Layout, id block.ID) string { return s.below(l.Key(id)) }

// Get returns the object, whose ID it has checked. The package comment lists its
// errors.
func (s *Store) Get(ctx context.Context, id block.ID) (object []byte, err error) {
	err = s.probe(ctx, func(l store.Layout) error {
		object, err = s.get(ctx, s.key(l, id), id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return object, nil
}

func (s *Store) get(ctx context.Context, key string, id block.ID) ([]byte, error) {
	r := request{method: http.MethodGet, key: key}
	resp, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.ContentLength >= 0 {
		if err := store.CheckSize(resp.ContentLength); err != nil {
			return nil, s.failed(ctx, r, err)
		}
	}
	object, err := s.read(ctx, r, resp, block.MaxObject+1)
	if err != nil {
		return nil, err
	}
	if err := store.CheckSize(int64(len(object))); err != nil {
		return nil, s.failed(ctx, r, err)
	}
	if err := store.Check(id, object); err != nil {
		return nil, s.failed(ctx, r, err)
	}
	return object, nil
}

// Has reports whether the object is there, without reading it. Only its length is
// looked at: false if no object can have it. Its errors are those of Get.
func (s *Store) Has(ctx context.Context, id block.ID) (bool, error) {
	err := s.probe(ctx, func(l store.Layout) error {
		r := request{method: http.MethodHead, key: s.key(l, id)}
		size, err := s.head(ctx, r)
		if errors.Is(err, store.ErrForbidden) {
			// An answer to HEAD has no reason. One to GET has, and a region.
			r.method = http.MethodGet
			size, err = s.head(ctx, r)
		}
		if err == nil && store.CheckSize(size) != nil {
			err = s.failed(ctx, r, fmt.Errorf("%w: what is there has %d bytes", store.ErrNotFound, size))
		}
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// head returns the length of what is at a key. The method is HEAD, or GET, whose
// body it leaves.
func (s *Store) head(ctx context.Context, r request) (size int64, err error) {
	resp, err := s.do(ctx, r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.ContentLength, s.failedUnless(ctx, r, hasETag(resp))
}

// failedUnless is for answers with status 200 of something that is no S3 server,
// such as the portal of a network.
func (s *Store) failedUnless(ctx context.Context, r request, ok bool) error {
	if ok {
		return nil
	}
	return s.failed(ctx, r, fmt.Errorf("the answer is not one of an S3 server: it has status 200, and no ETag"))
}

func hasETag(resp *http.Response) bool { return resp.Header.Get("ETag") != "" }

// probe tries the layouts until one has the object.
func (s *Store) probe(ctx context.Context, try func(store.Layout) error) error {
	var m misses
	works := int(s.works.Load())
	order := []int{0, 1}
	if works == 2 {
		order = []int{1, 0}
	}
	for _, i := range order {
		err := try(s.layouts[i])
		switch {
		case err == nil:
			if works != i+1 {
				s.works.Store(int32(i + 1))
			}
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !m.add(s.layouts[i], err):
			return err
		}
	}
	return m.err(s.String(), s.works.Load() > 0)
}

// misses are the reasons why the object is not under the layouts asked so far.
type misses struct {
	said            []string
	denied, corrupt error
}

// add reports whether err means that the object is not there, and may be
// elsewhere.
func (m *misses) add(l store.Layout, err error) bool {
	answer, ok := errors.AsType[*answerError](err)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case errors.Is(err, block.ErrCorrupt):
		if m.corrupt == nil {
			m.corrupt = err
		}
	case ok && answer.denied():
		m.denied = err
	default:
		return false
	}
	if ok {
		m.said = append(m.said, fmt.Sprintf("%v %d", l, answer.status))
	}
	return true
}

func (m *misses) err(name string, works bool) error {
	switch {
	case m.corrupt != nil:
		return m.corrupt
	case m.denied != nil && !works:
		return m.denied
	}
	return fmt.Errorf("%w at %s (%s)", store.ErrNotFound, name, strings.Join(m.said, ", "))
}

// Put writes an object, unless one with its name and length is there. It asks for
// that first, with one small request, unless Learn has seen the answer. It returns
// block.ErrCorrupt for a length that no object has; the package comment lists its
// other errors.
func (s *Store) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	size := int64(len(object))
	if err := store.CheckSize(size); err != nil {
		return false, err
	}
	key := s.key(s.layouts[0], id)
	there, err := s.holds(ctx, id, key, size)
	if there || err != nil {
		return false, err
	}
	// net/http may read a body for a moment after it has failed.
	body := bytes.NewReader(bytes.Clone(object))
	err = s.put(ctx, request{
		method: http.MethodPut, key: key, body: body, size: size,
		contentType: octets, cacheControl: "public, max-age=31536000, immutable",
	})
	if err != nil {
		return false, err
	}
	s.present.add(id, size)
	return true, nil
}

// octets is the type of bytes that mean nothing to anyone between.
const octets = "application/octet-stream"

// holds reports whether Put has nothing to do. Whether a refusal is one, or what
// S3 says of a missing key, the upload will tell, and with a reason.
func (s *Store) holds(ctx context.Context, id block.ID, key string, size int64) (bool, error) {
	if there, known := s.present.has(id, size); known {
		return there, nil
	}
	have, err := s.head(ctx, request{method: http.MethodHead, key: key})
	switch {
	case err == nil:
		return have == size, nil
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrForbidden):
		return false, nil
	}
	return false, err
}

func (s *Store) put(ctx context.Context, r request) error {
	resp, err := s.do(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	drain(resp)
	return s.failedUnless(ctx, r, hasETag(resp))
}

// drain reads a short body to its end, which leaves the connection for the next
// request.
func drain(resp *http.Response) { io.CopyN(io.Discard, resp.Body, 16<<10) }

// Delete removes the object, under both layouts. Removing what is not there is no
// error.
func (s *Store) Delete(ctx context.Context, id block.ID) error {
	s.present.remove(id)
	for _, l := range s.layouts {
		resp, err := s.do(ctx, request{method: http.MethodDelete, key: s.key(l, id)})
		if err != nil {
			return err
		}
		drain(resp)
		resp.Body.Close()
	}
	return nil
}

// Learn lists what is in the store, so that Put need not ask for each object. It
// stops after most keys, ours or not, and reports whether that was all: if not,
// Put goes on asking for the objects that it has not seen.
//
// A list has 1,000 keys and takes about one round trip and a half, so that Learn
// is worth it for a bucket with fewer than some hundred times the keys that there
// are objects to put.
//
// From then on the Store believes what it has seen. Who deletes objects by other
// means, at the same time, must not use it.
func (s *Store) Learn(ctx context.Context, most int) (complete bool, err error) {
	seen := make(map[block.ID]int64)
	keys := 0
	for page, err := range s.pages(ctx) {
		if err != nil {
			return false, err
		}
		for _, e := range page.entries {
			if e.Layout == s.layouts[0] {
				seen[e.ID] = e.Size
			}
		}
		if keys += page.keys; keys >= most && page.more {
			s.present.learn(seen, false)
			return false, nil
		}
	}
	s.present.learn(seen, true)
	return true, nil
}

// Seen reports whether Learn has seen the object where Put would write it. It is
// not known where Learn did not come to the end of its list.
func (s *Store) Seen(id block.ID) (there, known bool) { return s.present.seen(id) }

// An inventory is what is known to be in the store under the layout that is
// written.
type inventory struct {
	mu       sync.Mutex
	sizes    map[block.ID]int64 // nil: nothing was learned
	complete bool               // what is not in sizes is not there
}

func (i *inventory) learn(sizes map[block.ID]int64, complete bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sizes, i.complete = sizes, complete
}

// has reports whether an object of that size is there, if that is known.
func (i *inventory) has(id block.ID, size int64) (there, known bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	have, ok := i.sizes[id]
	return ok && have == size, ok || i.complete
}

func (i *inventory) seen(id block.ID) (there, known bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	size, ok := i.sizes[id]
	return ok && store.CheckSize(size) == nil, ok || i.complete
}

func (i *inventory) add(id block.ID, size int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.sizes != nil {
		i.sizes[id] = size
	}
}

func (i *inventory) remove(id block.ID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.sizes, id)
}
