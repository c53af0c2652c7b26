package httpstore_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"overmount/block"
	"overmount/store"
	"overmount/store/httpstore"
	"overmount/store/storetest"
)

// lines returns an Auth with these lines.
func lines(t testing.TB, l ...string) *httpstore.Auth {
	t.Helper()
	a, err := httpstore.ReadAuth("", strings.Join(l, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// asking answers the object, or what else there is, to requests with this header,
// and status to others.
func asking(status int, header string) storetest.HTTPFault {
	return func(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
		switch {
		case r.Header.Get("Authorization") != header:
			storetest.Status(status)(w, r, id, object)
		case object == nil:
			storetest.Status(http.StatusNotFound)(w, r, id, object)
		default:
			storetest.ServeObject(w, r, id, object)
		}
	}
}

// secure starts a server with TLS that holds object 0.
func secure(t *testing.T, status int, header string) (server *storetest.HTTPServer, host string) {
	server = storetest.NewHTTPServer(t, store.Sharded, holding(t, 0), &storetest.HTTPOptions{TLS: true})
	server.Always(asking(status, header))
	return server, strings.TrimPrefix(server.URL, "https://")
}

func basic(userPassword string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(userPassword))
}

// sent returns what the requests to a server had as Authorization.
func sent(s *storetest.HTTPServer) (headers []string) {
	for _, r := range s.Requests() {
		headers = append(headers, r.Header.Get("Authorization"))
	}
	return headers
}

func TestAuth(t *testing.T) {
	for _, c := range []struct {
		line   string // with HOST for the server
		header string
	}{
		{"HOST bearer " + secret, "Bearer " + secret},
		{"https://HOST bearer " + secret, "Bearer " + secret},
		{"HTTPS://HOST/ bearer " + secret, "Bearer " + secret},
		{"  HOST \t bearer \t a.b-c_d~e+f/g== \r", "Bearer a.b-c_d~e+f/g=="},
		{"HOST basic user:" + secret, basic("user:" + secret)},
		{"HOST basic user:a b:c # d", basic("user:a b:c # d")},
		{"HOST basic user:", basic("user:")},
		{"HOST basic üser:pässwörd", basic("üser:pässwörd")},
		{"# comment\n\n  # another\nother.example bearer no\nHOST bearer " + secret, "Bearer " + secret},
	} {
		server, host := secure(t, http.StatusUnauthorized, c.header)
		auth := lines(t, strings.ReplaceAll(c.line, "HOST", host))
		wantObject(t, open(t, server.URL, &httpstore.Options{TLS: trust(server), Auth: auth}), 0)
		// It goes before what the URL has.
		base := strings.Replace(server.URL, "://", "://u:p@", 1)
		wantObject(t, open(t, base, &httpstore.Options{TLS: trust(server), Auth: auth}), 0)
	}
}

// A line is for one scheme, host and port.
func TestAuthGoesNowhereElse(t *testing.T) {
	server, host := secure(t, http.StatusUnauthorized, "")
	name, port, _ := strings.Cut(host, ":")
	for _, line := range []string{
		"http://" + host + " bearer " + secret,
		name + " bearer " + secret,
		"https://" + name + " bearer " + secret,
		name + ":1" + port + " bearer " + secret,
		"localhost:" + port + " bearer " + secret,
		"x" + host + " bearer " + secret,
	} {
		wantObject(t, open(t, server.URL, &httpstore.Options{TLS: trust(server), Auth: lines(t, line)}), 0)
	}

	plain := storetest.NewHTTPServer(t, store.Sharded, holding(t, 0), nil)
	plain.Always(asking(http.StatusUnauthorized, ""))
	plainHost := strings.TrimPrefix(plain.URL, "http://")
	wantObject(t, open(t, plain.URL, &httpstore.Options{Auth: lines(t, plainHost+" bearer "+secret)}), 0)
	plain.Always(asking(http.StatusUnauthorized, "Bearer "+secret))
	wantObject(t, open(t, plain.URL, &httpstore.Options{Auth: lines(t, "http://"+plainHost+" bearer "+secret)}), 0)
}

func TestAuthAndRedirects(t *testing.T) {
	id, _ := object(0)
	for _, c := range []struct {
		name  string
		lines func(front, back string) []string // hosts with ports
		back  string                            // what the back server gets
		says  string                            // by the error when it refuses
	}{
		{"another port without a line", func(front, _ string) []string { return []string{"http://" + front + " bearer " + secret} },
			"", `needs a line "http://127.0.0.1`},
		{"another port with a line", func(front, back string) []string {
			return []string{"http://" + front + " bearer " + secret, "http://" + back + " bearer other"}
		}, "Bearer other", "does not take the credentials in line 2 of OVERMOUNT_AUTH"},
	} {
		back := storetest.NewHTTPServer(t, store.Flat, holding(t, 0), nil)
		front := storetest.NewHTTPServer(t, store.Sharded, holding(t), nil)
		front.Always(storetest.Redirect(back.URL, store.Flat))
		auth := lines(t, c.lines(strings.TrimPrefix(front.URL, "http://"), strings.TrimPrefix(back.URL, "http://"))...)
		s := open(t, front.URL+"?token="+secret, &httpstore.Options{Auth: auth})
		wantObject(t, s, 0)
		if got := sent(front); len(got) != 1 || got[0] != "Bearer "+secret {
			t.Errorf("%s: the first server got %q, want its token once", c.name, got)
		}
		if got := sent(back); len(got) != 1 || got[0] != c.back {
			t.Errorf("%s: the second server got %q, want %q once", c.name, got, c.back)
		}
		if got := back.Requests()[0].Header; got.Get("Referer") != "" {
			t.Errorf("%s: the second server got Referer %q, want none", c.name, got.Get("Referer"))
		}
		back.Always(storetest.Status(http.StatusUnauthorized))
		_, err := s.Get(t.Context(), id)
		wantForbidden(t, c.name, err, c.says)
	}
}

// A host to which another redirects gets nothing, even what is meant for it.
func TestAuthAndRedirectsToAnotherHost(t *testing.T) {
	back := storetest.NewHTTPServer(t, store.Flat, holding(t, 0), nil)
	front := storetest.NewHTTPServer(t, store.Sharded, holding(t), nil)
	local := strings.Replace(back.URL, "127.0.0.1", "localhost", 1)
	front.Always(storetest.Redirect(local, store.Flat))
	s := open(t, front.URL, &httpstore.Options{Auth: lines(t, front.URL+" bearer "+secret, local+" bearer "+secret)})
	wantObject(t, s, 0)
	if got := sent(back); len(got) != 1 || got[0] != "" {
		t.Errorf("a host that was redirected to got %q, want nothing once", got)
	}
	back.Always(storetest.Status(http.StatusUnauthorized))
	id, _ := object(0)
	_, err := s.Get(t.Context(), id)
	wantForbidden(t, "Get", err, "no credentials were sent to localhost")
	back.Always(storetest.Redirect(front.URL+"/again", store.Flat)) // and back to the first
	front.Next(storetest.Redirect(local, store.Flat), storetest.Status(http.StatusUnauthorized))
	_, err = s.Get(t.Context(), id)
	wantForbidden(t, "Get", err, "no credentials were sent to 127.0.0.1")
}

// From http to https of the same host, the line of https counts.
func TestAuthAfterTheUsualRedirect(t *testing.T) {
	server, host := secure(t, http.StatusUnauthorized, "Bearer "+secret)
	plain := storetest.NewHTTPServer(t, store.Sharded, holding(t), nil)
	plain.Always(storetest.Redirect(server.URL, store.Sharded))
	wantObject(t, open(t, plain.URL, &httpstore.Options{TLS: trust(server), Auth: lines(t, host+" bearer "+secret)}), 0)
	if got := sent(plain); len(got) != 1 || got[0] != "" {
		t.Errorf("the server without TLS got %q, want nothing once", got)
	}
}

func wantForbidden(t *testing.T, what string, err error, says string) {
	t.Helper()
	if !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s = %v, want store.ErrForbidden that says %q", what, err, says)
	}
	if err != nil && strings.Contains(err.Error(), secret) {
		t.Errorf("%s: error %q shows a secret", what, err)
	}
}

func TestAuthHints(t *testing.T) {
	id, _ := object(0)
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		server, host := secure(t, status, "Bearer right")
		get := func(auth *httpstore.Auth) error {
			_, err := open(t, server.URL+"?token="+secret, &httpstore.Options{TLS: trust(server), Auth: auth}).Get(t.Context(), id)
			return err
		}
		needs := fmt.Sprintf("if %s wants credentials, OVERMOUNT_AUTH or the file that OVERMOUNT_AUTH_FILE or --auth-file names needs a line %q or %q", host, host+" bearer TOKEN", host+" basic USER:PASSWORD")
		wantForbidden(t, "Get without credentials", get(nil), needs)
		wantForbidden(t, "Get without credentials for this host", get(lines(t, "h bearer "+secret)), needs)
		wantForbidden(t, "Get with a wrong token", get(lines(t, "", host+" bearer "+secret)), host+" does not take the credentials in line 2 of OVERMOUNT_AUTH")
		path := filepath.Join(t.TempDir(), "auth")
		if err := os.WriteFile(path, []byte(host+" basic user:"+secret), 0o600); err != nil {
			t.Fatal(err)
		}
		auth, err := httpstore.ReadAuth(path, "")
		if err != nil {
			t.Fatal(err)
		}
		wantForbidden(t, "Get with a wrong password", get(auth), host+" does not take the credentials in line 1 of "+path)
	}
	plain := storetest.NewHTTPServer(t, store.Sharded, holding(t), &storetest.HTTPOptions{Missing: storetest.Status(http.StatusUnauthorized)})
	_, err := open(t, plain.URL, &httpstore.Options{Auth: lines(t, plain.URL[len("http://"):]+" bearer "+secret)}).Get(t.Context(), id)
	wantForbidden(t, "Get over plain http", err, fmt.Sprintf("needs a line %q", plain.URL+" bearer TOKEN"))
}

func TestReadAuth(t *testing.T) {
	server, host := secure(t, http.StatusUnauthorized, "Bearer right")
	path := filepath.Join(t.TempDir(), "auth")
	for _, c := range []struct {
		file, text string
		works      bool
	}{
		{host + " bearer right\n", "", true},
		{"", host + " bearer right", true},
		{host + " bearer wrong\n", host + " bearer right", true},
		{host + " bearer right\n", host + " bearer wrong", false},
		{host + " bearer right\n", "h bearer other", true},
		{"", "", false},
	} {
		if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		auth, err := httpstore.ReadAuth(path, c.text)
		if err != nil {
			t.Errorf("ReadAuth of %q and %q = %v", c.file, c.text, err)
			continue
		}
		id, _ := object(0)
		if _, err := open(t, server.URL, &httpstore.Options{TLS: trust(server), Auth: auth}).Get(t.Context(), id); (err == nil) != c.works {
			t.Errorf("with the lines %q and %q, Get = %v, want it to work: %v", c.file, c.text, err, c.works)
		}
	}
}

func TestReadAuthWantsAPrivateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth")
	if err := os.WriteFile(path, []byte("h bearer "+secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, ok := range map[fs.FileMode]bool{0o600: true, 0o400: true, 0o700: true, 0o640: false, 0o604: false, 0o620: false, 0o644: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		a, err := httpstore.ReadAuth(path, "")
		if (err == nil) != ok || (a == nil) == ok {
			t.Errorf("ReadAuth of a file with mode %o = %v, %v, want ok %v", mode, a, err, ok)
		}
		if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("mode %04o", mode)) || err != nil && !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("ReadAuth of a file with mode %o = %v, want the mode and what to do", mode, err)
		}
	}
	os.Chmod(path, 0o600)
	os.Truncate(path, 1<<20+1)
	if a, err := httpstore.ReadAuth(path, ""); a != nil || err == nil || !strings.Contains(err.Error(), "over the limit") {
		t.Errorf("ReadAuth of a file of 1 MiB and a byte = %v, %v, want an error", a, err)
	}
	if a, err := httpstore.ReadAuth(path+"x", ""); a != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadAuth of a missing file = %v, %v, want fs.ErrNotExist", a, err)
	}
}

func TestReadAuthErrors(t *testing.T) {
	for line, want := range map[string]string{
		"h":                                   "second word",
		secret:                                "second word",
		"h " + secret:                         "second word",
		"h Bearer " + secret:                  "second word",
		"h bearer":                            "HOST bearer TOKEN",
		"h bearer a " + secret:                "HOST bearer TOKEN",
		"h bearer ä" + secret:                 "HOST bearer TOKEN",
		"h basic " + secret:                   "HOST basic USER:PASSWORD",
		"h basic :" + secret:                  "HOST basic USER:PASSWORD",
		"h basic u:" + secret + "\x01":        "control character",
		"h bearer " + secret + "\x7f":         "control character",
		"u:" + secret + "@h bearer t":         "first word",
		"https://u:" + secret + "@h bearer t": "first word",
		"h/" + secret + " bearer t":           "first word",
		"h?" + secret + " bearer t":           "first word",
		"h:" + secret + " bearer t":           "first word",
		"ftp://h bearer " + secret:            "first word",
		":443 bearer " + secret:               "first word",
		"https:// bearer " + secret:           "first word",
	} {
		a, err := httpstore.ReadAuth("", "# first\n"+line)
		if a != nil || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "line 2 of OVERMOUNT_AUTH") {
			t.Errorf("ReadAuth of %q = %v, %v, want an error about line 2 that says %q", line, a, err, want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("ReadAuth of %q: error %q shows a secret", line, err)
		}
	}
	if a, err := httpstore.ReadAuth("", "h bearer "+secret+"\nHTTPS://H:443/ basic u:p"); a != nil || err == nil || !strings.Contains(err.Error(), "line 1 of OVERMOUNT_AUTH is for the same server") {
		t.Errorf("ReadAuth of two lines for one server = %v, %v, want an error that names both", a, err)
	}
}

func TestAuthPrintsNoSecret(t *testing.T) {
	a := lines(t, "h bearer "+secret, "g basic u:"+secret)
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "auth", a, "options", httpstore.Options{Auth: a})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "auth", a)
	fmt.Fprintf(&log, "%v %+v %#v %s %v %+v %#v", a, a, a, a, httpstore.Options{Auth: a}, &httpstore.Options{Auth: a}, httpstore.Options{Auth: a})
	for _, s := range []string{secret, basic("u:" + secret)[len("Basic "):]} {
		if strings.Contains(log.String(), s) {
			t.Errorf("an Auth prints %q", log.String())
		}
	}
	if want := "credentials for 2 servers"; a.String() != want {
		t.Errorf("String = %q, want %q", a, want)
	}
}

func FuzzReadAuth(f *testing.F) {
	f.Add("h bearer ", "")
	f.Add("https://h:1/ basic u:", "\nh bearer x")
	f.Add("http://[::1]:80 basic ", ":p # x")
	f.Fuzz(func(t *testing.T, before, after string) {
		if strings.Contains(before+after, secret) {
			return
		}
		_, err := httpstore.ReadAuth("", before+secret+after)
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("ReadAuth(%q): error %q shows a secret", before+secret+after, err)
		}
	})
}
