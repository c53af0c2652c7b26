package s3store

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"overmount/block"
	"overmount/store"
)

const (
	pageKeys = 1000
	// maxPage is the longest answer to LIST that is read: 1,000 keys of 1,024
	// bytes, all of them percent-encoded, and as much again around them.
	maxPage = 8 << 20
)

// List goes through the objects of the store, in no order that means anything. Keys
// that are no objects, or under a layout that the store does not read, are left
// out. It makes one request for each 1,000 keys in the bucket, or below the prefix,
// ours or not. An error is the last that it yields.
func (s *Store) List(ctx context.Context) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for page, err := range s.pages(ctx) {
			if err != nil {
				yield(store.Entry{}, err)
				return
			}
			for _, e := range page.entries {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// Preflight makes one request that proves, or tells apart: address, scheme, key id,
// secret key, clock, region, bucket, right to list. It learns the region, if that
// is to be learned. It does not prove the right to write.
//
// Where listing is not allowed, it is enough that the bucket shows itself. The
// package comment says which errors are definite.
func (s *Store) Preflight(ctx context.Context) error {
	_, err := s.page(ctx, "", 1)
	answer, ok := errors.AsType[*answerError](err)
	if !ok || !answer.denied() {
		return err
	}
	resp, headErr := s.do(ctx, request{method: http.MethodHead})
	if headErr != nil {
		return err // which has a body, and so more to say
	}
	resp.Body.Close()
	return nil
}

// A page is what one LIST gives.
type page struct {
	keys    int // ours or not
	entries []store.Entry
	more    bool
	next    string // token for the next page
}

// pages lists all that is below the prefix.
func (s *Store) pages(ctx context.Context) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		for token := ""; ; {
			p, err := s.page(ctx, token, pageKeys)
			if err == nil && p.more && (p.next == "" || p.next == token) {
				err = s.failed(ctx, request{list: true}, errors.New("the server says that there is more, and not where"))
			}
			if err != nil {
				yield(page{}, err)
				return
			}
			if !yield(p, nil) || !p.more {
				return
			}
			token = p.next
		}
	}
}

func (s *Store) page(ctx context.Context, token string, most int) (page, error) {
	r := request{method: http.MethodGet, list: true, query: url.Values{
		"list-type": {"2"}, "max-keys": {strconv.Itoa(most)}, "encoding-type": {"url"},
	}}
	if s.prefix != "" {
		r.query.Set("prefix", s.prefix+"/")
	}
	if token != "" {
		r.query.Set("continuation-token", token)
	}
	resp, err := s.do(ctx, r)
	if err != nil {
		return page{}, err
	}
	defer resp.Body.Close()
	body, err := s.read(ctx, r, resp, maxPage+1)
	if err != nil {
		return page{}, err
	}
	p, err := s.parsePage(body)
	if err != nil {
		return page{}, s.failed(ctx, r, err)
	}
	return p, nil
}

// parsePage reads the answer to LIST. Any bytes will do.
func (s *Store) parsePage(body []byte) (page, error) {
	var x struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		EncodingType          string
		IsTruncated           bool
		NextContinuationToken string
		Contents              []struct {
			Key, LastModified string
			Size              int64
		}
	}
	if len(body) > maxPage {
		return page{}, fmt.Errorf("the list is longer than %d bytes", maxPage)
	}
	if err := xml.Unmarshal(body, &x); err != nil {
		return page{}, errors.New("the answer is no list of an S3 server: " + s.noS3())
	}
	p := page{keys: len(x.Contents), more: x.IsTruncated, next: x.NextContinuationToken}
	for _, c := range x.Contents {
		key := c.Key
		if x.EncodingType == "url" {
			var err error
			if key, err = url.QueryUnescape(key); err != nil {
				return page{}, fmt.Errorf("the list has a key that cannot be decoded: %.100q", c.Key)
			}
		}
		id, layout, ok := s.parseKey(key)
		if !ok {
			continue
		}
		// Who deletes old objects must not take one without a time for old.
		modified, err := time.Parse(time.RFC3339, c.LastModified)
		if err != nil || c.Size < 0 {
			return page{}, fmt.Errorf("the list has no date and length of %s", key)
		}
		p.entries = append(p.entries, store.Entry{ID: id, Layout: layout, Size: c.Size, Modified: modified})
	}
	return p, nil
}

// parseKey reads the key of an object that this store would find.
func (s *Store) parseKey(key string) (id block.ID, l store.Layout, ok bool) {
	id, err := block.ParseID(key[strings.LastIndex(key, "/")+1:])
	if err != nil {
		return id, l, false
	}
	for _, l := range s.layouts {
		if key == s.key(l, id) {
			return id, l, true
		}
	}
	return id, l, false
}
