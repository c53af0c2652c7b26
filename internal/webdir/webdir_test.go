package webdir_test

import (
	"crypto"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"overmount/apk"
	"overmount/apk/apktest"
	"overmount/internal/webdir"
)

var _ apk.Opener = (*webdir.Dir)(nil)

func open(t *testing.T, base string) *webdir.Dir {
	t.Helper()
	d, err := webdir.New(base, webdir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// TestRepository is a repository of Alpine behind HTTP.
func TestRepository(t *testing.T) {
	s := apktest.NewSigner(t, "k.rsa.pub", crypto.SHA256)
	dir := t.TempDir()
	p := apktest.Package{Name: "g++-fw", Version: "1_rc2~0a1b-r3", Signer: s, Files: []apktest.Entry{{Name: "lib/a", Content: []byte("content")}}}
	apktest.Repository(t, dir, s, p)
	srv := httptest.NewServer(http.StripPrefix("/alpine/main", http.FileServer(http.Dir(dir))))
	defer srv.Close()
	keys := apk.Keys{}
	if err := keys.Add(s.Name, s.Public(t)); err != nil {
		t.Fatal(err)
	}
	for base, arch := range map[string]string{"/alpine/main/": "x86_64", "/alpine/main": "x86_64", "/alpine/main/x86_64": ""} {
		web := open(t, srv.URL+base)
		repo, err := apk.Open(t.Context(), web, keys, arch)
		if err != nil {
			t.Fatalf("%s: %v", base, err)
		}
		tree, err := repo.Unpack(t.Context(), repo.Index.Packages, nil)
		if err != nil {
			t.Fatalf("%s: %v", base, err)
		}
		if b, err := fs.ReadFile(tree, "lib/a"); string(b) != "content" || err != nil {
			t.Errorf("%s: lib/a = %q, %v, want its content", base, b, err)
		}
		tree.Close()
	}
}

// TestOpen also holds that no secret is in an error.
func TestOpen(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case user != "me" || password != "secret" || r.URL.Query().Get("token") != "secret":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/d/a b/%2e%2e":
			io.WriteString(w, "content")
		case r.URL.Path == "/d/short":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "content")
		case r.URL.Path == "/d/broken":
			w.WriteHeader(http.StatusInternalServerError)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer srv.Close()
	d := open(t, strings.Replace(srv.URL, "//", "//me:secret@", 1)+"/d?token=secret")
	f, err := d.Open(t.Context(), "a b/%2e%2e")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); string(b) != "content" || err != nil {
		t.Errorf("content %q, %v", b, err)
	}
	for name, want := range map[string]error{"none": fs.ErrNotExist, "broken": nil, "../e": fs.ErrInvalid, "short": io.ErrUnexpectedEOF} {
		f, err := d.Open(t.Context(), name)
		if err == nil {
			_, err = io.ReadAll(f)
			f.Close()
		}
		if err == nil || want != nil && !errors.Is(err, want) || want == nil && errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%q) = %v, want the error %v", name, err, want)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("Open(%q) = %v, with a secret", name, err)
		}
	}
	d, err = webdir.New(srv.URL+"/d", webdir.Options{Hint: func(r *http.Request) string { return "try a password for " + r.URL.Path }})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Open(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "401 Unauthorized (permission denied): try a password for /d/x") || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("without a password, Open = %v, want the hint", err)
	}
	for _, base := range []string{"ftp://me:secret@host/?secret", "http://me:secret@[::1", "/dir"} {
		if _, err := webdir.New(base, webdir.Options{}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("New(%q) = %v, want an error without a secret", base, err)
		}
	}
}
