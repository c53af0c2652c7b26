package origin_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"overmount/manifest"
	"overmount/origin"
	"overmount/signature"
)

// small is the compressed copy of a manifest.
func small(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := origin.Compress(&b, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCompressIsReproducible(t *testing.T) {
	data := bytes.Repeat(flist(t, tags), 50)
	one, two := small(t, data), small(t, data)
	if !bytes.Equal(one, two) {
		t.Error("Compress twice gave other bytes")
	}
	var h zstd.Header
	if err := h.Decode(one); err != nil || h.FrameContentSize != uint64(len(data)) {
		t.Errorf("the copy says that it has %d bytes, %v, want %d", h.FrameContentSize, err, len(data))
	}
	if err := origin.Compress(io.Discard, bytes.NewReader(data), 1); err == nil {
		t.Error("Compress of another length than was said did not fail")
	}
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct{ place, plain, name string }{
		{"m.fl", "m.fl", "m.fl"},
		{"dir/m.fl.zst", "dir/m.fl", "m.fl"},
		{"http://h/a/m.fl", "http://h/a/m.fl", "m.fl"},
		{"http://h/a/m.fl.zst", "http://h/a/m.fl", "m.fl"},
		{"https://u:p@h/m.fl.zst?v=1.zst", "https://u:p@h/m.fl?v=1.zst", "m.fl"},
		{"https://h/m.fl?v=1.zst", "https://h/m.fl?v=1.zst", "m.fl"},
		{"https://h/a%2Fb/m.fl.zst", "https://h/a%2Fb/m.fl", "m.fl"},
	} {
		name, err := origin.Name(c.place)
		if plain := origin.Plain(c.place); plain != c.plain || name != c.name || err != nil {
			t.Errorf("%s: Plain %s, Name %s, %v, want %s and %s", c.place, plain, name, err, c.plain, c.name)
		}
		if got := origin.Compressed(c.place); got != (c.plain != c.place) {
			t.Errorf("Compressed(%s) = %v", c.place, got)
		}
	}
}

// A copy is fetched with one request, kept under the manifest's name, and asked for
// by its own tag.
func TestFetchCompressed(t *testing.T) {
	s, f, dir := newSite(t), fetcher(t), t.TempDir()
	s.encoding = "zstd" // the server would compress it once more
	data := flist(t, tags)
	s.put("m.fl", data)
	s.put("m.fl.zst", small(t, data))
	for _, step := range []struct {
		name  string
		state origin.State
		asked string
	}{
		{"m.fl.zst", origin.Fetched, "m.fl.zst 200"},
		{"m.fl.zst", origin.Unchanged, "m.fl.zst 304"},
		// The tag of the one is not asked of the other.
		{"m.fl", origin.Fetched, "m.fl 200"},
		{"m.fl", origin.Unchanged, "m.fl 304"},
		{"m.fl.zst", origin.Fetched, "m.fl.zst 200"},
	} {
		c, err := f.Fetch(t.Context(), s.URL+"/"+step.name, dir, origin.Trust{Kind: "modules", Kver: "6.1.0"})
		if err != nil {
			t.Fatal(err)
		}
		if asked := s.requests(); c.State != step.state || asked != step.asked || c.Path != filepath.Join(dir, "m.fl") {
			t.Errorf("Fetch %s: %s at %s with requests %q, want %s at m.fl with %q", step.name, c.State, c.Path, asked, step.state, step.asked)
		}
		if !bytes.Equal(read(t, c.Path), data) {
			t.Errorf("Fetch %s kept other bytes than those of the manifest", step.name)
		}
	}
	s.Close()
	if _, err := f.Fetch(t.Context(), s.URL+"/m.fl.zst", dir, origin.Trust{}); err == nil {
		t.Error("Fetch from a server that is away did not fail")
	}
	if c, err := origin.Open(t.Context(), dir, "m.fl", origin.Trust{}); err != nil || c.State != origin.Kept {
		t.Errorf("Open = %+v, %v, want what was kept", c, err)
	}
}

// One signature is for the manifest and its copy.
func TestFetchCompressedAndSigned(t *testing.T) {
	s, f, dir, key := newSite(t), fetcher(t), t.TempDir(), newSigner(t)
	data := flist(t, tags)
	s.put("m.fl.zst", small(t, data))
	s.put("m.fl.minisig", key.sign(data, 5))
	fetchTwice(t, s, f, "m.fl.zst", dir, key)
	// A copy of another manifest is refused, and what was kept stays.
	newer := flist(t, map[string]string{manifest.TagKind: "modules", manifest.TagKver: "6.1.0", "more": "yes"})
	s.put("m.fl.minisig", key.sign(newer, 6))
	if _, err := f.Fetch(t.Context(), s.URL+"/m.fl.zst", dir, key.trust()); !errors.Is(err, origin.ErrRefused) || !errors.Is(err, signature.ErrChangedFile) {
		t.Errorf("Fetch of a copy of another manifest: %v, want ErrRefused", err)
	}
	if c, err := origin.Open(t.Context(), dir, "m.fl", key.trust()); err != nil || c.Claims.Serial != 5 {
		t.Errorf("afterwards Open = %+v, %v, want what was kept before", c, err)
	}
	delete(s.files, "m.fl.minisig")
	_, err := f.Fetch(t.Context(), s.URL+"/m.fl.zst", dir, key.trust())
	if want := "manifest " + s.URL + "/m.fl.zst is refused: it is not signed: there is no " + s.URL + "/m.fl.minisig"; !errors.Is(err, origin.ErrUnsigned) || err.Error() != want {
		t.Errorf("Fetch without a signature: %v, want %s", err, want)
	}
	delete(s.files, "m.fl.zst")
	_, err = f.Fetch(t.Context(), s.URL+"/m.fl.zst", dir, key.trust())
	if want := "manifest " + s.URL + "/m.fl.zst: the server answers 404 Not Found"; !errors.Is(err, fs.ErrNotExist) || errors.Is(err, origin.ErrRefused) || err.Error() != want {
		t.Errorf("Fetch of what is not there: %v, want %s", err, want)
	}
}

// While a manifest is replaced, or after who did it was killed, its file of signatures
// has both. The old manifest goes on being used, and the new one is not missed.
func TestFetchWhileReplaced(t *testing.T) {
	key := newSigner(t)
	older, newer := flist(t, tags), flist(t, map[string]string{manifest.TagKind: "modules", manifest.TagKver: "6.1.0", "more": "yes"})
	both := signature.Join(key.sign(newer, 6), key.sign(older, 5))
	for _, name := range []string{"m.fl", "m.fl.zst"} {
		s, f, dir := newSite(t), fetcher(t), t.TempDir()
		put := func(data []byte) {
			if name == "m.fl.zst" {
				data = small(t, data)
			}
			s.put(name, data)
		}
		fetch := func(what string, serial uint64, state origin.State) {
			t.Helper()
			c, err := f.Fetch(t.Context(), s.URL+"/"+name, dir, key.trust())
			if err != nil || c.Claims.Serial != serial || c.State != state {
				t.Errorf("%s, %s: Fetch = serial %d, %s, %v, want %d, %s", name, what, c.Claims.Serial, c.State, err, serial, state)
			}
		}
		put(older)
		s.put("m.fl.minisig", both)
		fetch("the old one", 5, origin.Fetched)
		fetch("the old one again", 5, origin.Fetched)
		put(newer)
		fetch("the new one", 6, origin.Fetched)
		fetch("the new one again", 6, origin.Unchanged)
		s.put("m.fl.minisig", key.sign(newer, 6))
		fetch("all done", 6, origin.Unchanged)
		put(older)
		s.put("m.fl.minisig", both)
		if _, err := f.Fetch(t.Context(), s.URL+"/"+name, dir, key.trust()); err != nil {
			t.Errorf("%s, the new one is kept: %v", name, err)
		}
		s.put("m.fl.minisig", signature.Join(key.sign(older, 5), key.sign(newer, 6)))
		if _, err := f.Fetch(t.Context(), s.URL+"/"+name, dir, key.trust()); !errors.Is(err, signature.ErrOlder) {
			t.Errorf("%s, going back: %v, want ErrOlder", name, err)
		}
	}
}

// bomb is little that becomes a lot, of which it says nothing.
func bomb(t testing.TB, n int64) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(z, zeros{}, n); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestHostileCopies(t *testing.T) {
	const most = 1 << 20
	data := flist(t, tags)
	good := small(t, data)
	noise := make([]byte, 2*most)
	_, _ = rand.Read(noise)
	// A frame that looks back over more than is allowed.
	var wide bytes.Buffer
	z, err := zstd.NewWriter(&wide, zstd.WithWindowSize(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.CopyN(z, zeros{}, 65<<20)
	_ = z.Close()
	for _, c := range []struct {
		name    string
		body    []byte
		refused bool
	}{
		{"says that it is too long", small(t, make([]byte, most+1)), true},
		{"is too long", bomb(t, 1<<30), true},
		{"is too long in parts", bytes.Repeat(small(t, make([]byte, most/2)), 3), true},
		{"is too long compressed", small(t, noise), true},
		{"is empty parts without end", bytes.Repeat([]byte("\x50\x2a\x4d\x18\x00\x00\x00\x00"), most/4), true},
		{"looks back too far", wide.Bytes(), false},
		{"is cut", good[:len(good)/2], false},
		{"is spoiled", append(bytes.Clone(good[:len(good)-9]), "123456789"...), false},
		{"has something behind it", append(bytes.Clone(good), "more"...), false},
		{"is not compressed", data, false},
		{"is compressed twice", small(t, good), false},
		{"is empty", nil, false},
		{"is a web page", []byte("<html>welcome</html>"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, dir := newSite(t), t.TempDir()
			s.put("m.fl.zst", c.body)
			f := origin.NewFetcher(&origin.Options{MaxBytes: most, TempDir: t.TempDir()})
			defer f.Close()
			_, err := f.Fetch(t.Context(), s.URL+"/m.fl.zst", dir, origin.Trust{})
			if err == nil || errors.Is(err, origin.ErrRefused) != c.refused {
				t.Errorf("Fetch: %v, want an error, ErrRefused %v", err, c.refused)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
				t.Errorf("Fetch left %v, %v", entries, err)
			}
			file := filepath.Join(dir, "m.fl.zst")
			if err := os.WriteFile(file, c.body, 0o644); err != nil {
				t.Fatal(err)
			}
			if p, err := f.Open(t.Context(), file, origin.Trust{}); err == nil || p != nil || errors.Is(err, origin.ErrRefused) != c.refused {
				t.Errorf("Open: %v, want an error, ErrRefused %v", err, c.refused)
			}
		})
	}
}

// Some servers call a file that is compressed a manifest which they have compressed.
func TestCompressedByNameOfTheEncoding(t *testing.T) {
	data := flist(t, tags)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Accept-Encoding"); got != "" {
			t.Errorf("a compressed copy is asked for as %q, want nothing of that", got)
		}
		w.Header().Set("Content-Encoding", "zstd")
		_, _ = w.Write(small(t, data))
	}))
	defer server.Close()
	c, err := fetcher(t).Fetch(t.Context(), server.URL+"/m.fl.zst", t.TempDir(), origin.Trust{})
	if err != nil || !bytes.Equal(read(t, c.Path), data) {
		t.Errorf("Fetch = %+v, %v, want the manifest", c, err)
	}
}

// Who needs a manifest once gets it from any place, and leaves nothing.
func TestOpen(t *testing.T) {
	s, key, dir, tmp := newSite(t), newSigner(t), t.TempDir(), t.TempDir()
	data := flist(t, tags)
	for name, content := range map[string][]byte{"m.fl": data, "m.fl.zst": small(t, data), "m.fl.minisig": key.sign(data, 5)} {
		s.put(name, content)
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f := origin.NewFetcher(&origin.Options{TempDir: tmp})
	defer f.Close()
	for _, place := range []string{s.URL + "/m.fl", s.URL + "/m.fl.zst", dir + "/m.fl", dir + "/m.fl.zst"} {
		for _, trust := range []origin.Trust{{}, key.trust()} {
			p, err := f.Open(t.Context(), place, trust)
			if err != nil {
				t.Errorf("Open(%s): %v", place, err)
				continue
			}
			if got := p.Manifest.Tag(manifest.TagKver); got != "6.1.0" || !bytes.Equal(read(t, p.Path), data) || (p.Claims.Serial == 5) != (trust.Key != nil) {
				t.Errorf("Open(%s): kver %q, serial %d, want that of the manifest, and its bytes", place, got, p.Claims.Serial)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		wrong := key.trust()
		wrong.Kind = "firmware"
		if _, err := f.Open(t.Context(), place, wrong); !errors.Is(err, origin.ErrRefused) || strings.Count(err.Error(), "manifest") != 1 {
			t.Errorf("Open(%s) as firmware: %v, want ErrRefused, said once", place, err)
		}
	}
	for _, place := range []string{s.URL + "/none.fl.zst", dir + "/none.fl.zst", dir + "/none.fl"} {
		if _, err := f.Open(t.Context(), place, origin.Trust{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%s): %v, want fs.ErrNotExist", place, err)
		}
	}
	if entries, err := os.ReadDir(tmp); err != nil || len(entries) > 0 {
		t.Errorf("it left %v, %v", entries, err)
	}
}

// A journal beside a kept manifest makes another one of it, which nobody has signed.
func TestKeptBesideAJournal(t *testing.T) {
	key, dir := newSigner(t), t.TempDir()
	data := flist(t, tags)
	for name, content := range map[string][]byte{"m.fl": data, "m.fl.minisig": key.sign(data, 5), "m.fl-journal": []byte("journal")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := origin.Open(t.Context(), dir, "m.fl", key.trust()); !errors.Is(err, origin.ErrRefused) {
		t.Errorf("Open: %v, want ErrRefused", err)
	}
}

// A server that stops in the middle is given up, and one that asks for credentials is
// shown them; what may help is said, and no secret.
func TestServersThatWantMore(t *testing.T) {
	data := small(t, flist(t, tags))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "u" || password != "hunter2" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(data)
	}))
	defer server.Close()
	o := &origin.Options{Hint: func(r *http.Request) string { return "ask " + r.URL.Host }}
	f := origin.NewFetcher(o)
	defer f.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	for _, password := range []string{"hunter2", "hunter3"} {
		place := fmt.Sprintf("http://u:%s@%s/m.fl.zst?token=hunter4", password, host)
		p, err := f.Open(t.Context(), place, origin.Trust{})
		if password == "hunter2" {
			if err != nil {
				t.Fatal(err)
			}
			p.Close()
			continue
		}
		var status *origin.StatusError
		if !errors.As(err, &status) || status.Code != 401 || !strings.Contains(err.Error(), "401 Unauthorized; ask "+host) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("Open with a wrong password: %v, want a StatusError with the hint and without secrets", err)
		}
	}
}

func FuzzDecompress(f *testing.F) {
	data := bytes.Repeat([]byte("not quite a manifest "), 100)
	f.Add(small(f, data))
	f.Add(data)
	f.Add(bomb(f, 1<<20))
	f.Add([]byte("\x50\x2a\x4d\x18\x00\x00\x00\x00"))
	const most = 1 << 16
	dir := f.TempDir()
	fetcher := origin.NewFetcher(&origin.Options{MaxBytes: most, TempDir: dir})
	f.Fuzz(func(t *testing.T, body []byte) {
		file := filepath.Join(dir, "m.fl.zst")
		if err := os.WriteFile(file, body, 0o644); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		p, err := fetcher.Copy(t.Context(), file)
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("%d bytes took %v", len(body), took)
		}
		if err != nil {
			return
		}
		info, err := p.File.Stat()
		if err != nil || info.Size() > most {
			t.Errorf("%d bytes became %d, %v, want %d at most", len(body), info.Size(), err, most)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}
