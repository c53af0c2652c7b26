package s3store_test

import (
	"testing"

	"overmount/block"
	"overmount/store"
)

func TestLayout(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	for i, l := range []store.Layout{store.Sharded, store.Flat} {
		_, bytes := object(i)
		f.Put(l.Key(block.Sum(bytes)), bytes)
	}
	for _, query := range []string{"", "?layout=flat"} {
		s := open(t, f.with(keyID, secret)+query, nil)
		if l, known := s.Layout(); known {
			t.Errorf("Layout before any answer = %v, true, want that it is not known", l)
		}
		for i, want := range []store.Layout{store.Sharded, store.Flat} {
			wantObject(t, s, i)
			if l, known := s.Layout(); l != want || !known {
				t.Errorf("with %q, Layout after object %d = %v, %v, want %v", query, i, l, known, want)
			}
		}
	}
}
