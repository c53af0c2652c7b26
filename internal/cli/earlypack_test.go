package cli

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"overmount/store/httpstore"
)

// The pack of any machine is taken where there is none of this one's class.
func TestEarlyPackOfAnyMachine(t *testing.T) {
	want := bytes.Repeat([]byte("pack"), 50_000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/modules.fl.6.1.any.pack") {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(want)
	}))
	t.Cleanup(server.Close)
	e := beginPack(t.Context(), anyone().copyTo, server.URL+"/modules.fl", "6.1", "0123456789abcdef")
	got, err := io.ReadAll(e.spool)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v, want the %d of the pack", len(got), err, len(want))
	}
	if file, err := e.end(); err != nil || !strings.HasSuffix(file, ".any.pack") || e.failed() {
		t.Errorf("the end is %s, %v, failed %v, want the pack of any machine", file, err, e.failed())
	}
}

// A server that wants credentials for the manifest wants them for its pack.
func TestPackWithCredentials(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer word" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte("pack"))
	}))
	t.Cleanup(server.Close)
	a := &app{Env: Env{Getenv: func(name string) string {
		return map[string]string{httpstore.AuthEnv: server.URL + " bearer word"}[name]
	}}}
	e := beginPack(t.Context(), a.copyTo, server.URL+"/modules.fl", "6.1", "0123456789abcdef")
	if got, err := io.ReadAll(e.spool); err != nil || string(got) != "pack" {
		t.Errorf("read %q, %v, want the pack", got, err)
	}
	e = beginPack(t.Context(), anyone().copyTo, server.URL+"/modules.fl", "6.1", "0123456789abcdef")
	if _, err := io.ReadAll(e.spool); err == nil {
		t.Error("without credentials there is a pack, too")
	}
}

func TestNoEarlyPack(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	e := beginPack(t.Context(), anyone().copyTo, server.URL+"/modules.fl", "6.1", "0123456789abcdef")
	if _, err := io.ReadAll(e.spool); !errors.Is(err, fs.ErrNotExist) || e.failed() {
		t.Errorf("where there is no pack: %v, failed %v, want fs.ErrNotExist, which does not pass", err, e.failed())
	}
	server.Close()
	e = beginPack(t.Context(), anyone().copyTo, server.URL+"/modules.fl", "6.1", "0123456789abcdef")
	if _, err := io.ReadAll(e.spool); err == nil {
		t.Error("reading from a server that is away did not fail")
	}
	if e.end(); !e.failed() {
		t.Error("that the server is away is taken for final")
	}
}

// A pack of which nobody reads the rest ends all the same.
func TestEarlyPackIsLeft(t *testing.T) {
	hold := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("begin"))
		w.(http.Flusher).Flush()
		<-hold
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(hold) })
	e := beginPack(t.Context(), anyone().copyTo, server.URL+"/modules.fl", "6.1", "0123456789abcdef")
	if _, err := io.ReadFull(e.spool, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.end(); err == nil {
		t.Error("a pack that was cut short ended well")
	}
}

func TestSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSpool(4)
		text := strings.Repeat("0123456789", 100)
		written := 0
		go func() {
			for i := range len(text) {
				if _, err := s.Write([]byte{text[i]}); err != nil {
					t.Error(err)
				}
				written++
			}
			s.end(nil)
			s.end(errors.New("too late"))
		}()
		synctest.Wait()
		if written != 4 {
			t.Errorf("%d bytes went into a spool for 4", written)
		}
		got, err := io.ReadAll(s)
		if err != nil || string(got) != text {
			t.Errorf("read %q, %v, want %q", got, err, text)
		}
		if _, err := s.Write([]byte("more")); err == nil {
			t.Error("writing after the end did not fail")
		}
	})
}

// anyone is a program without settings.
func anyone() *app { return &app{Env: Env{Getenv: func(string) string { return "" }}} }
