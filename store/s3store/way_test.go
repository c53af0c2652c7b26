package s3store_test

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"overmount/store"
	"overmount/store/s3store"
	"overmount/store/storetest"
)

// What can go wrong between a client and a server that works: each operation ends
// in bounded time with an error that is temporary and has no secret in it, or does
// what it should; and it does when the fault is over.
func TestFaultsOnTheWay(t *testing.T) {
	var cases sync.WaitGroup // they wait more than they work
	for name, c := range map[string]struct {
		fault storetest.ProxyFault
		says  string // of a Get
	}{
		"refuse":            {storetest.ProxyFault{Refuse: true}, "refused"},
		"hang":              {storetest.ProxyFault{Hang: true}, "timeout awaiting response headers"},
		"black hole":        {storetest.ProxyFault{Swallow: true}, "timeout awaiting response headers"},
		"1 KiB a second":    {storetest.ProxyFault{Rate: 1 << 10}, "too slow"},
		"reset at once":     {storetest.ProxyFault{ResetAfter: 1}, "no answer from"},
		"reset in mid-body": {storetest.ProxyFault{ResetAfter: 10_000}, "connection reset"},
	} {
		cases.Go(func() {
			t.Run(name, func(t *testing.T) {
				f := newFake(t, fakeOptions{region: "us-east-1"})
				_, bytes := object(0)
				f.Put(key(store.Sharded, 0), bytes)
				f.Put("g", []byte("abc"))
				address := f.server.Listener.Addr().String()
				p := storetest.NewProxy(t, address)
				opts := hasty
				opts.MinRate = 4 << 10
				opts.Credentials = &s3store.Credentials{KeyID: keyID, Secret: secret}
				s := open(t, strings.Replace(f.URL, address, p.Addr, 1), &opts)
				for _, err := range atOnce(t.Context(), s, slices.Repeat(operations()[:1], len(operations()))) { // for connections to begin with
					if err != nil {
						t.Errorf("Get before the fault = %v", err)
					}
				}
				p.Set(c.fault)
				start := time.Now()
				errs := atOnce(t.Context(), s, operations())
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("the operations took %v", took)
				}
				p.Set(storetest.ProxyFault{})
				again := atOnce(t.Context(), s, operations())
				for i, op := range operations() {
					if errs[i] != nil {
						checkFault(t, op.name, errs[i], "temporary", "")
					}
					if op.name == "Get" && (errs[i] == nil || !strings.Contains(errs[i].Error(), c.says)) {
						t.Errorf("Get = %v, want an error that says %q", errs[i], c.says)
					}
					if again[i] != nil {
						t.Errorf("%s after the fault = %v", op.name, again[i])
					}
				}
			})
		})
	}
	cases.Wait()
}

// A server whose certificate nobody known has signed, and one whose name is none.
func TestStrangers(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1", tls: true})
	_, port, err := net.SplitHostPort(f.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for text, says := range map[string]string{
		f.with(keyID, secret): "certificate",
		// Two dots make it a name that no name server is asked for.
		"s3://" + keyID + ":other@no..invalid:" + port + "/b": "no such host",
	} {
		s := open(t, text, nil)
		for _, op := range operations() {
			err := op.do(t.Context(), s)
			if err == nil {
				t.Errorf("%s at %s = nil, want an error", op.name, f.URL)
				continue
			}
			checkFault(t, op.name, err, "temporary", says)
		}
	}
}
