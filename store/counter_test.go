package store_test

import (
	"testing"

	"overmount/block"
	"overmount/store"
	"overmount/store/storetest"
)

func TestCountEach(t *testing.T) {
	f := seeded(t, 2)
	f.Next(storetest.Fail(errRefused))
	tried := store.CountEach(f)
	wanted := store.CountEach(store.Retry(tried, nil))
	wantObject(t, wanted, 0)
	wantObject(t, wanted, 1)
	wantObject(t, wanted, 1)
	first, _ := object(0)
	second, bytes := object(1)
	n := int64(len(bytes))
	for _, tt := range []struct {
		what      string
		got, want store.Counts
	}{
		{"tried, the first", tried.Of(first), store.Counts{Requests: 2, Objects: 1, Bytes: n, Failed: 1}},
		{"wanted, the first", wanted.Of(first), store.Counts{Requests: 1, Objects: 1, Bytes: n}},
		{"tried, the second", tried.Of(second), store.Counts{Requests: 2, Objects: 2, Bytes: 2 * n}},
		{"all", tried.Counts(), tried.Of(first).Plus(tried.Of(second))},
		{"never asked for", tried.Of(block.ID{}), store.Counts{}},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.what, tt.got, tt.want)
		}
	}
	plain := store.Count(f)
	wantObject(t, plain, 0)
	if plain.Of(first) != (store.Counts{}) || plain.Counts().Objects != 1 {
		t.Errorf("Count: %+v of the object and %+v of all, want only the sum", plain.Of(first), plain.Counts())
	}
}
