package httpstore_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/block"
	"overmount/store"
	"overmount/store/httpstore"
	"overmount/store/storetest"
)

func TestHas(t *testing.T) {
	here, _ := object(1)
	gone, _ := object(2)
	for _, layout := range []store.Layout{store.Sharded, store.Flat, store.Sharded2} {
		server := storetest.NewHTTPServer(t, layout, holding(t, 1), nil)
		s := open(t, server.URL, nil)
		if has, err := s.Has(t.Context(), here); !has || err != nil {
			t.Errorf("%v: Has = %v, %v, want true", layout, has, err)
		}
		if has, err := s.Has(t.Context(), gone); has || err != nil {
			t.Errorf("%v: Has of what is not there = %v, %v, want false", layout, has, err)
		}
		for _, r := range server.Requests() {
			if r.Method != http.MethodHead {
				t.Errorf("%v: Has sends %s, want HEAD alone", layout, r.Method)
			}
		}
		if l, known := s.Layout(); known {
			t.Errorf("Layout after HEAD alone = %v, true, want that it is not known", l)
		}
	}
}

// After a Get, Has begins with the layout that Get has found.
func TestHasUsesTheLayoutThatIsKnown(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Flat, holding(t, 1, 2), nil)
	s := open(t, server.URL, nil)
	wantObject(t, s, 1)
	id, _ := object(2)
	if has, err := s.Has(t.Context(), id); !has || err != nil {
		t.Errorf("Has = %v, %v, want true", has, err)
	}
	if diff := cmp.Diff([]string{"/sharded-1", "/flat-1", "/flat-2"}, paths(server)); diff != "" {
		t.Errorf("requests differ (-want +got):\n%s", diff)
	}
	if l, known := s.Layout(); l != store.Flat || !known {
		t.Errorf("Layout = %v, %v, want flat, true", l, known)
	}
}

// tooLong says that there is more than an object can have.
func tooLong(w http.ResponseWriter, _ *http.Request, _ block.ID, _ []byte) {
	w.Header().Set("Content-Length", "99999999")
}

func TestHasFaults(t *testing.T) {
	id, _ := object(1)
	for name, c := range map[string]struct {
		fault storetest.HTTPFault
		want  error // nil: any that is temporary
	}{
		"a web page":  {storetest.HTMLPage(), block.ErrCorrupt},
		"too long":    {tooLong, block.ErrCorrupt},
		"forbidden":   {storetest.Status(http.StatusForbidden), store.ErrForbidden},
		"credentials": {storetest.Status(http.StatusUnauthorized), store.ErrForbidden},
		"busy":        {storetest.Status(http.StatusServiceUnavailable, "Retry-After", "7"), nil},
		"no HEAD":     {storetest.Status(http.StatusMethodNotAllowed), nil},
		"reset":       {storetest.Reset(), nil},
	} {
		server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 1), nil)
		server.Always(c.fault)
		base := strings.Replace(server.URL, "http://", "http://user:"+secret+"@", 1) + "?token=" + secret
		has, err := open(t, base, nil).Has(t.Context(), id)
		switch {
		case has || err == nil:
			t.Errorf("%s: Has = %v, %v, want an error", name, has, err)
		case c.want != nil && !errors.Is(err, c.want), c.want == nil && !store.Temporary(err):
			t.Errorf("%s: Has = %v, want %v", name, err, c.want)
		case strings.Contains(err.Error(), secret):
			t.Errorf("%s: the error %q shows the secret", name, err)
		}
	}
}

func TestHasCancelled(t *testing.T) {
	server := storetest.NewHTTPServer(t, store.Sharded, holding(t, 1), nil)
	gate := storetest.NewGate()
	server.Always(storetest.HangBeforeHeaders(gate))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-gate.Arrived()
		cancel()
	}()
	id, _ := object(1)
	for range 2 { // on its way, then before it
		if _, err := open(t, server.URL, &httpstore.Options{}).Has(ctx, id); !errors.Is(err, context.Canceled) {
			t.Errorf("Has = %v, want context.Canceled", err)
		}
	}
}
