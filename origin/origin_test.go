package origin_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"overmount/block"
	"overmount/manifest"
	"overmount/origin"
	"overmount/signature"
)

// flist returns a manifest of a tree with nothing in it.
func flist(t *testing.T, tags map[string]string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x.fl")
	w, err := manifest.Create(t.Context(), file, block.Zstd, tags, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(manifest.Entry{Path: ".", Attr: manifest.Attr{Mode: 0o40755}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return read(t, file)
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

var tags = map[string]string{manifest.TagKind: "modules", manifest.TagKver: "6.1.0"}

// A site serves files by their names, and counts.
type site struct {
	*httptest.Server
	mu       sync.Mutex
	files    map[string][]byte
	encoding string // of all but signatures
	asked    []string
	before   func(name string) // called before each answer, without the lock
}

func newSite(t *testing.T) *site {
	s := &site{files: map[string][]byte{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *site) put(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = data
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if s.before != nil {
		s.before(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.files[name]
	tag := fmt.Sprintf(`"%x"`, block.Sum(data))
	switch {
	case !ok:
		s.asked = append(s.asked, name+" 404")
		http.NotFound(w, r)
		return
	case r.Header.Get("If-None-Match") == tag:
		s.asked = append(s.asked, name+" 304")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	s.asked = append(s.asked, name+" 200")
	w.Header().Set("ETag", tag)
	if s.encoding != "" && strings.Contains(r.Header.Get("Accept-Encoding"), s.encoding) {
		w.Header().Set("Content-Encoding", s.encoding)
		data = compressed(s.encoding, data)
	}
	_, _ = w.Write(data)
}

func compressed(encoding string, data []byte) []byte {
	var b bytes.Buffer
	if encoding == "gzip" {
		w := gzip.NewWriter(&b)
		_, _ = w.Write(data)
		_ = w.Close()
		return b.Bytes()
	}
	w, err := zstd.NewWriter(&b)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(data)
	_ = w.Close()
	return b.Bytes()
}

// requests returns what was asked for since the last call.
func (s *site) requests() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := strings.Join(s.asked, ", ")
	s.asked = nil
	return asked
}

func fetcher(t *testing.T) *origin.Fetcher {
	f := origin.NewFetcher(nil)
	t.Cleanup(f.Close)
	return f
}

func TestUnchangedIsNotFetchedAgain(t *testing.T) {
	s, f, dir := newSite(t), fetcher(t), t.TempDir()
	s.put("m.fl", flist(t, tags))
	want := origin.Trust{Kind: "modules", Kver: "6.1.0"}
	for _, step := range []struct {
		state origin.State
		asked string
	}{{origin.Fetched, "m.fl 200"}, {origin.Unchanged, "m.fl 304"}} {
		c, err := f.Fetch(t.Context(), s.URL+"/m.fl", dir, want)
		if err != nil {
			t.Fatal(err)
		}
		if asked := s.requests(); c.State != step.state || asked != step.asked {
			t.Errorf("Fetch: %s with requests %q, want %s with %q", c.State, asked, step.state, step.asked)
		}
		if !bytes.Equal(read(t, c.Path), s.files["m.fl"]) {
			t.Error("Fetch kept other bytes than those that were sent")
		}
	}
	s.put("m.fl", flist(t, map[string]string{manifest.TagKind: "modules", manifest.TagKver: "6.1.0", "more": "yes"}))
	if c, err := f.Fetch(t.Context(), s.URL+"/m.fl", dir, want); err != nil || c.State != origin.Fetched {
		t.Errorf("Fetch of a new one = %v, %v, want it fetched", c, err)
	}
}

func TestCompressed(t *testing.T) {
	for _, encoding := range []string{"gzip", "zstd"} {
		s := newSite(t)
		s.encoding = encoding
		data := flist(t, tags)
		s.put("m.fl", data)
		c, err := fetcher(t).Fetch(t.Context(), s.URL+"/m.fl", t.TempDir(), origin.Trust{})
		if err != nil {
			t.Fatalf("%s: %v", encoding, err)
		}
		if !bytes.Equal(read(t, c.Path), data) {
			t.Errorf("%s: other bytes were kept", encoding)
		}
	}
}

// signer makes signatures of the manifests at a site.
type signer struct {
	t   *testing.T
	key signature.PrivateKey
}

func newSigner(t *testing.T) signer {
	key, err := signature.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return signer{t, key}
}

func (s signer) sign(data []byte, serial uint64) []byte {
	s.t.Helper()
	sig, err := signature.Sign(s.key, bytes.NewReader(data), signature.Claims{Kind: "modules", Kver: "6.1.0", Serial: serial})
	if err != nil {
		s.t.Fatal(err)
	}
	return sig
}

func (s signer) trust() origin.Trust {
	key := s.key.Public()
	return origin.Trust{Key: &key, Kind: "modules", Kver: "6.1.0"}
}

// fetchTwice fetches what has a signature of serial 5, which the second time says that
// nothing has changed.
func fetchTwice(t *testing.T, s *site, f *origin.Fetcher, name, dir string, key signer) {
	t.Helper()
	for _, step := range []struct {
		state origin.State
		asked string
	}{{origin.Fetched, "m.fl.minisig 200, " + name + " 200"}, {origin.Unchanged, "m.fl.minisig 200"}} {
		c, err := f.Fetch(t.Context(), s.URL+"/"+name, dir, key.trust())
		if err != nil {
			t.Fatal(err)
		}
		if asked := s.requests(); c.State != step.state || asked != step.asked || c.Claims.Serial != 5 {
			t.Errorf("Fetch: %s, serial %d, requests %q, want %s, 5, %q", c.State, c.Claims.Serial, asked, step.state, step.asked)
		}
	}
}

func TestSignatureSaysWhetherThereIsAnother(t *testing.T) {
	s, f, dir, key := newSite(t), fetcher(t), t.TempDir(), newSigner(t)
	data := flist(t, tags)
	s.put("m.fl", data)
	s.put("m.fl.minisig", key.sign(data, 5))
	fetchTwice(t, s, f, "m.fl", dir, key)
	c, err := origin.Open(t.Context(), dir, "m.fl", key.trust())
	if err != nil || c.State != origin.Kept || c.Claims.Serial != 5 {
		t.Errorf("Open = %+v, %v, want what was kept", c, err)
	}
}

func TestRefused(t *testing.T) {
	key, other := newSigner(t), newSigner(t)
	data := flist(t, tags)
	firmware := flist(t, map[string]string{manifest.TagKind: "firmware"})
	newer := flist(t, map[string]string{manifest.TagKind: "modules", manifest.TagKver: "6.1.0", "more": "yes"})
	for _, tt := range []struct {
		name      string
		file, sig []byte
		trust     origin.Trust
		want      string
	}{
		{"without a signature", data, nil, key.trust(), "not signed"},
		{"signed by another", data, other.sign(data, 9), key.trust(), "another key"},
		{"changed", append(bytes.Clone(newer), 0), key.sign(newer, 9), key.trust(), "not the one that was signed"},
		{"too old", data, key.sign(data, 4), key.trust(), "older"},
		{"of another kind", firmware, key.sign(firmware, 9), key.trust(), "firmware"},
		{"of another kind, unsigned", firmware, nil, origin.Trust{Kind: "modules"}, "firmware"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, f, dir := newSite(t), fetcher(t), t.TempDir()
			if tt.trust.Key != nil { // what was kept stays, and is the least
				s.put("m.fl", data)
				s.put("m.fl.minisig", key.sign(data, 5))
				if _, err := f.Fetch(t.Context(), s.URL+"/m.fl", dir, tt.trust); err != nil {
					t.Fatal(err)
				}
			}
			delete(s.files, "m.fl.minisig")
			s.put("m.fl", tt.file)
			if tt.sig != nil {
				s.put("m.fl.minisig", tt.sig)
			}
			_, err := f.Fetch(t.Context(), s.URL+"/m.fl", dir, tt.trust)
			if !errors.Is(err, origin.ErrRefused) || !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Errorf("Fetch: %v, want ErrRefused with %q", err, tt.want)
			}
			if tt.trust.Key == nil {
				return
			}
			if c, err := origin.Open(t.Context(), dir, "m.fl", tt.trust); err != nil || c.Claims.Serial != 5 {
				t.Errorf("afterwards Open = %+v, %v, want what was kept before", c, err)
			}
		})
	}
}

// TestReplacedBetweenRequests replaces manifest and signature when the first
// signature has been sent.
func TestReplacedBetweenRequests(t *testing.T) {
	s, key := newSite(t), newSigner(t)
	older, newer := flist(t, tags), flist(t, map[string]string{manifest.TagKind: "modules", manifest.TagKver: "6.1.0", "more": "yes"})
	s.put("m.fl", older)
	s.put("m.fl.minisig", key.sign(older, 5))
	var once sync.Once
	s.before = func(name string) {
		if name == "m.fl" {
			once.Do(func() {
				s.put("m.fl", newer)
				s.put("m.fl.minisig", key.sign(newer, 6))
			})
		}
	}
	c, err := fetcher(t).Fetch(t.Context(), s.URL+"/m.fl", t.TempDir(), key.trust())
	if err != nil || c.Claims.Serial != 6 {
		t.Errorf("Fetch = %+v, %v, want the new one", c, err)
	}
}

func TestCutOrNoManifestLeavesNothing(t *testing.T) {
	data := flist(t, tags)
	for name, answer := range map[string]http.HandlerFunc{
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:len(data)/2])
		},
		"a web page": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>welcome</html>")) },
		"500":        func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"spoiled zstd": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "zstd")
			_, _ = w.Write(data)
		},
		"brotli": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			_, _ = w.Write(data)
		},
		"304 for no tag": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) },
	} {
		server := httptest.NewServer(answer)
		defer server.Close()
		dir := t.TempDir()
		if c, err := fetcher(t).Fetch(t.Context(), server.URL+"/m.fl", dir, origin.Trust{}); err == nil {
			t.Errorf("%s: Fetch = %+v, want an error", name, c)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%s: it left %v, %v", name, entries, err)
		}
	}
}

func TestTooLong(t *testing.T) {
	s := newSite(t)
	s.encoding = "zstd"
	s.put("m.fl", make([]byte, 1<<20))
	f := origin.NewFetcher(&origin.Options{MaxBytes: 1 << 16})
	defer f.Close()
	if _, err := f.Fetch(t.Context(), s.URL+"/m.fl", t.TempDir(), origin.Trust{}); !errors.Is(err, origin.ErrRefused) {
		t.Errorf("Fetch of a long one: %v, want ErrRefused", err)
	}
}

func TestMissing(t *testing.T) {
	s := newSite(t)
	_, err := fetcher(t).Fetch(t.Context(), s.URL+"/m.fl", t.TempDir(), origin.Trust{})
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, origin.ErrRefused) {
		t.Errorf("Fetch: %v, want fs.ErrNotExist", err)
	}
	if _, err := origin.Open(t.Context(), t.TempDir(), "m.fl", origin.Trust{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v, want fs.ErrNotExist", err)
	}
}

func TestNoSecretInErrors(t *testing.T) {
	for _, place := range []string{
		"http://user:hunter2@127.0.0.1:1/m.fl?token=hunter2", "http://user:hunter2@127.0.0.1:1/", "http://user:hunter2@[::1/m.fl", "http://127.0.0.1:1/%zz?hunter2",
	} {
		_, err := fetcher(t).Fetch(context.Background(), place, t.TempDir(), origin.Trust{})
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Fetch(%s): %v, want an error without the password", place, err)
		}
	}
}

func TestLocal(t *testing.T) {
	key, dir := newSigner(t), t.TempDir()
	file, data := filepath.Join(dir, "m.fl"), flist(t, tags)
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := fetcher(t).Fetch(t.Context(), file, t.TempDir(), key.trust()); !errors.Is(err, origin.ErrRefused) {
		t.Errorf("Fetch of an unsigned file: %v, want ErrRefused", err)
	}
	if err := os.WriteFile(file+signature.Suffix, key.sign(data, 5), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := fetcher(t).Fetch(t.Context(), file, t.TempDir(), key.trust())
	if err != nil || c.State != origin.Local || c.Path != file {
		t.Errorf("Fetch = %+v, %v, want the file itself", c, err)
	}
}
