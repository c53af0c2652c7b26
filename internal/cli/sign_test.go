package cli

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"overmount/internal/testenv"
)

// signedManifest packs a tree in dir and signs it.
func signedManifest(t *testing.T, dir string) (file, key, pub string) {
	t.Helper()
	src := filepath.Join(dir, "src")
	if err := os.MkdirAll(src, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(src, "a"), []byte("hello\n"))
	file, key, pub = filepath.Join(dir, "m.fl"), filepath.Join(dir, "a.key"), filepath.Join(dir, "a.pub")
	mustRun(t, "overmount", "pack", "-m", file, "-s", "dir://"+filepath.Join(dir, "objects"), src)
	mustRun(t, "overmount", "config", "-m", file, "tag", "add", "-t", "maker=good")
	mustRun(t, "overmount", "key", "generate", "-s", key, "-p", pub, "--no-password")
	mustRun(t, "overmount", "sign", "-m", file, "--key", key)
	return file, key, pub
}

// minisign is the judge of what overmount signs, with a key that is encrypted as
// keys are, and signs with it.
func TestMinisign(t *testing.T) {
	minisign := testenv.Tool(t, "minisign")
	dir := t.TempDir()
	file, _, _ := signedManifest(t, dir)
	key, pub, password := filepath.Join(dir, "e.key"), filepath.Join(dir, "e.pub"), filepath.Join(dir, "password")
	write(t, password, []byte("correct horse\n"))
	mustRun(t, "overmount", "key", "generate", "-s", key, "-p", pub, "--password-file", password)
	mustRun(t, "overmount", "sign", "-m", file, "--key", key, "--password-file", password, "--serial", "17")
	if got := mustRun(t, minisign, "-V", "-Q", "-p", pub, "-m", file); got != "overmount kind=tree serial=17\n" {
		t.Errorf("minisign -V prints %q", got)
	}
	sign := exec.Command(minisign, "-S", "-s", key, "-m", file, "-t", "overmount kind=tree serial=18")
	sign.Stdin = strings.NewReader("correct horse\n")
	if out, err := sign.CombinedOutput(); err != nil {
		t.Fatalf("minisign -S: %v: %s", err, out)
	}
	mustRun(t, "overmount", "flist", "ls", "--pubkey", pub, "--min-serial", "18", file)
}

// What the signature says of a manifest has to be what it says itself: else one
// that was signed by hand would get past a pin for another series.
func TestMinisignWithOtherClaims(t *testing.T) {
	minisign := testenv.Tool(t, "minisign")
	file, key, pub := signedManifest(t, t.TempDir())
	for comment, want := range map[string]string{
		"overmount kind=tree serial=2":            "",
		"overmount kind=modules serial=2":         `it is of kind "tree" for kernel "", and its signature says kind "modules" for kernel ""`,
		"overmount kind=tree kver=6.1 serial=2":   `says kind "tree" for kernel "6.1"`,
		"a manifest that I made on a Friday":      "does not say which manifest it is for",
		"overmount kind=tree serial=2 serial=200": "says serial twice",
	} {
		mustRun(t, minisign, "-S", "-s", key, "-m", file, "-t", comment)
		r := run(t, "overmount", "flist", "ls", "--pubkey", pub, file)
		if (r.code == 0) != (want == "") || !strings.Contains(r.stderr, want) {
			t.Errorf("signed as %q: exit code %d, %s, want %q", comment, r.code, r.stderr, want)
		}
	}
}

// rollback is a journal as a killed writer leaves it, which takes a manifest back
// to the bytes of before: https://www.sqlite.org/fileformat2.html#the_rollback_journal
func rollback(before []byte) []byte {
	const sector, nonce = 512, 7
	be := binary.BigEndian
	size := int(be.Uint16(before[16:]))
	j := []byte("\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
	for _, n := range []int{len(before) / size, nonce, len(before) / size, sector, size} {
		j = be.AppendUint32(j, uint32(n))
	}
	j = append(j, make([]byte, sector-len(j))...)
	n := uint32(0)
	for page := range slices.Chunk(before, size) {
		n++
		sum := uint32(nonce)
		for i := size - 200; i > 0; i -= 200 {
			sum += uint32(page[i])
		}
		j = be.AppendUint32(j, n)
		j = append(j, page...)
		j = be.AppendUint32(j, sum)
	}
	return j
}

// A journal beside a manifest makes another manifest of it, and no signature
// covers the journal.
func TestSignedManifestBesideAJournal(t *testing.T) {
	dir := t.TempDir()
	file, _, pub := signedManifest(t, dir)
	evil := filepath.Join(dir, "evil.fl")
	write(t, evil, read(t, file))
	mustRun(t, "overmount", "config", "-m", evil, "tag", "add", "-t", "maker=evil")
	write(t, file+"-journal", rollback(read(t, evil)))
	if got := mustRun(t, "overmount", "flist", "inspect", "--summary", file); !strings.Contains(got, "maker=evil") {
		t.Fatalf("the journal of this test does nothing: %s", got)
	}
	if got := mustRun(t, "overmount", "flist", "inspect", "--summary", "--pubkey", pub, file); !strings.Contains(got, "maker=good") {
		t.Errorf("with --pubkey, inspect prints %s, want what was signed", got)
	}
}

// The signature is asked for first, each only once, and one that never ends is
// left.
func TestSignatureFromAServer(t *testing.T) {
	file, _, pub := signedManifest(t, t.TempDir())
	manifest, sig := read(t, file), read(t, file+".minisig")
	var mu sync.Mutex
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		got = append(got, r.URL.String())
		mu.Unlock()
		switch r.URL.Path {
		case "/m.fl":
			w.Write(manifest)
		case "/m.fl.minisig":
			w.Write(sig)
		case "/endless.fl.minisig":
			for chunk := bytes.Repeat([]byte("x"), 1<<16); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		case "/busy.fl.minisig":
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	for _, c := range []struct {
		path string
		want string // on stderr; empty: all is well
		asks []string
	}{
		{"/m.fl", "", []string{"/m.fl.minisig", "/m.fl"}},
		{"/m.fl?v=1", "", []string{"/m.fl.minisig?v=1", "/m.fl?v=1"}},
		{"/m%2Efl", "", []string{"/m%2Efl.minisig", "/m%2Efl"}},
		{"/endless.fl", "longer than 16384 bytes", []string{"/endless.fl.minisig"}},
		{"/busy.fl", "the server answers 503", []string{"/busy.fl.minisig"}},
		{"/none.fl", "it is not signed", []string{"/none.fl.minisig"}},
	} {
		r := run(t, "overmount", "flist", "ls", "--pubkey", pub, server.URL+c.path)
		if (r.code == 0) != (c.want == "") || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: exit code %d, %s, want %q", c.path, r.code, r.stderr, c.want)
		}
		mu.Lock()
		if !slices.Equal(got, c.asks) {
			t.Errorf("%s: asked for %q, want %q", c.path, got, c.asks)
		}
		got = nil
		mu.Unlock()
	}
}
