package storetest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"overmount/block"
	"overmount/store"
	"overmount/store/storetest"
)

func TestObjectIsReproducible(t *testing.T) {
	id, object := storetest.Object(7, 100)
	again, same := storetest.Object(7, 100)
	other, _ := storetest.Object(8, 100)
	if id != again || !bytes.Equal(object, same) || id == other || id != block.Sum(object) {
		t.Errorf("Object(7) = %v, then %v; Object(8) = %v; want two equal and one other", id, again, other)
	}
}

func TestFaultyPassesTheSuite(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Subject {
		f := storetest.NewFaulty(new(store.Mem))
		return storetest.Subject{Reader: f, Writer: f}
	})
}

func TestFaulty(t *testing.T) {
	mem := new(store.Mem)
	id, object := storetest.Object(1, 100)
	f := storetest.NewFaulty(mem)
	boom := errors.New("boom")
	f.Next(storetest.Fail(boom), nil, storetest.NotFound(), nil)
	if stored, err := f.Put(t.Context(), id, object); stored || err != boom || mem.Len() != 0 {
		t.Errorf("first Put = %v, %v, want boom and nothing stored", stored, err)
	}
	if stored, err := f.Put(t.Context(), id, object); !stored || err != nil {
		t.Errorf("second Put = %v, %v, want it stored", stored, err)
	}
	if _, err := f.Get(t.Context(), id); err != store.ErrNotFound {
		t.Errorf("first Get = %v, want ErrNotFound", err)
	}
	if got, err := f.Get(t.Context(), id); err != nil || !bytes.Equal(got, object) {
		t.Errorf("second Get = %d bytes, %v, want the object", len(got), err)
	}
	f.Always(storetest.WrongBytes())
	if got, err := f.Get(t.Context(), id); err != nil || len(got) != len(object) || bytes.Equal(got, object) {
		t.Errorf("Get of wrong bytes = %d bytes, %v, want as many others", len(got), err)
	}
	f.Always(storetest.Truncated())
	if got, err := f.Get(t.Context(), id); err != nil || len(got) != 50 {
		t.Errorf("Get of a truncated object = %d bytes, %v, want 50", len(got), err)
	}
	f.Always(nil)
	if got, err := f.Get(t.Context(), id); err != nil || !bytes.Equal(got, object) {
		t.Errorf("last Get = %d bytes, %v, want the object: the faults have not touched it", len(got), err)
	}
	if f.Requests(id) != 7 || f.Total() != 7 || f.MaxConcurrent() != 1 {
		t.Errorf("counted %d, %d, %d at a time, want 7, 7, 1", f.Requests(id), f.Total(), f.MaxConcurrent())
	}
	if _, err := storetest.NewFaulty(store.Checked(mem)).Put(t.Context(), id, object); err == nil {
		t.Error("Put to a store that is no Writer succeeded")
	}
}

func TestGateAndHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := new(store.Mem)
		id, object := storetest.Object(1, 100)
		mem.Put(t.Context(), id, object)
		f := storetest.NewFaulty(mem)
		gate := storetest.NewGate()
		f.Next(storetest.Through(gate), storetest.Through(gate), storetest.Hang())
		ctx, cancel := context.WithCancel(t.Context())
		passed, ended := make(chan error, 1), make(chan error, 3)
		go func() {
			_, err := f.Get(t.Context(), id)
			passed <- err
		}()
		synctest.Wait()
		for range 2 {
			go func() {
				_, err := f.Get(ctx, id)
				ended <- err
			}()
			synctest.Wait()
		}
		if got := <-gate.Arrived(); got != id {
			t.Errorf("at the gate arrived %v, want %v", got, id)
		}
		if f.MaxConcurrent() != 3 || len(passed)+len(ended) != 0 {
			t.Errorf("%d at a time, %d ended, want 3 and none", f.MaxConcurrent(), len(passed)+len(ended))
		}
		cancel()
		for range 2 {
			if err := <-ended; err != context.Canceled {
				t.Errorf("Get at a gate or hanging, cancelled = %v, want context.Canceled", err)
			}
		}
		gate.Open()
		gate.Open()
		if err := <-passed; err != nil {
			t.Errorf("Get through the opened gate = %v", err)
		}
	})
}

func get(t *testing.T, c *http.Client, url string) (int, []byte, error) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

func TestHTTPServer(t *testing.T) {
	mem := new(store.Mem)
	id, object := storetest.Object(1, 50_000)
	mem.Put(t.Context(), id, object)
	s := storetest.NewHTTPServer(t, store.Sharded2, mem, &storetest.HTTPOptions{Base: "/base"})
	var dialed atomic.Int64
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialed.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}}
	url := s.URL + "/" + store.Sharded2.Key(id)

	if code, body, err := get(t, c, url); code != 200 || err != nil || !bytes.Equal(body, object) {
		t.Errorf("GET = %d, %d bytes, %v, want the object", code, len(body), err)
	}
	for _, wrong := range []string{s.URL + "/" + store.Flat.Key(id), s.URL + "//" + store.Sharded2.Key(id), s.URL + "/"} {
		if code, _, err := get(t, c, wrong); code != 404 || err != nil {
			t.Errorf("GET %s = %d, %v, want 404", wrong, code, err)
		}
	}
	if n, want, sent := s.Conns(), dialed.Load(), s.Sent(); n != want || sent < 50_000 || sent > 52_000 {
		t.Errorf("%d connections, %d bytes sent, want %d and a little more than 50000", n, sent, want)
	}
	if got := s.Requests(); len(got) != 4 || got[0].Path != "/base/"+store.Sharded2.Key(id) || got[0].Method != "GET" {
		t.Errorf("requests = %v, want 4", got)
	}

	s.Add(store.Flat, mem)
	s.Next(storetest.ShortBody(), nil)
	if _, body, err := get(t, c, url); err != io.ErrUnexpectedEOF || len(body) != 25_000 {
		t.Errorf("GET of a short body = %d bytes, %v, want half and io.ErrUnexpectedEOF", len(body), err)
	}
	if code, body, err := get(t, c, s.URL+"/"+store.Flat.Key(id)); code != 200 || err != nil || len(body) != 50_000 {
		t.Errorf("GET under the second layout = %d, %d bytes, %v, want the object", code, len(body), err)
	}

	s.Stop()
	if _, _, err := get(t, c, url); err == nil {
		t.Error("GET from a stopped server succeeded")
	}
	s.Start()
	if code, _, err := get(t, c, url); code != 200 || err != nil {
		t.Errorf("GET after a restart = %d, %v, want 200 at the same address", code, err)
	}
}

// Stop ends requests that hang.
func TestHTTPServerStopsWhileRequestsHang(t *testing.T) {
	s := storetest.NewHTTPServer(t, store.Flat, new(store.Mem), nil)
	gate := storetest.NewGate()
	s.Always(storetest.HangBeforeHeaders(gate))
	ended := make(chan error)
	id, _ := storetest.Object(1, 1)
	go func() {
		_, _, err := get(t, &http.Client{Transport: new(http.Transport)}, s.URL+"/"+store.Flat.Key(id))
		ended <- err
	}()
	<-gate.Arrived()
	s.Stop()
	if err := <-ended; err == nil {
		t.Error("GET that hung while the server stopped succeeded")
	}
}
