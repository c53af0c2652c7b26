package httpstore

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// The names under which people give credentials to the program. Errors mention
// them; this package does not read the environment.
const (
	AuthEnv     = "OVERMOUNT_AUTH"      // lines for ReadAuth
	AuthFileEnv = "OVERMOUNT_AUTH_FILE" // path for ReadAuth, as the flag --auth-file
)

// maxAuth is the length in bytes of the longest file of credentials.
const maxAuth = 1 << 20

// An Auth is what to show to web servers that want to know who asks. It is made of
// lines, each for one server:
//
//	# a comment
//	HOST[:PORT] bearer TOKEN
//	HOST[:PORT] basic USER:PASSWORD
//
// Host and port are those of https. A line that begins with http://HOST[:PORT]
// is for plain http, where everyone on the way reads the secret; https://HOST is
// the same as HOST. A token is one word; a password goes to the end of the line,
// less white space there.
//
// Credentials go to the server of their line and to no other: scheme, host and
// port are compared for each request, also after a redirect, and a request to
// which another host has redirected gets none at all.
//
// Nil is no credentials. Printing an Auth shows no secret. Concurrent use is safe.
type Auth struct{ lines map[origin]credential }

// An origin is a server: "https://host:port", in lower case and always with the
// port.
type origin string

type credential struct {
	header string // the value of Authorization
	place  string // where the line is, for people
}

// ReadAuth reads the lines of the file at path, which others than its owner may
// not read, and those of text, which come from AuthEnv. Where both have a line for
// one server, that of text counts. An empty path or text is none.
//
// Errors name the place of a bad line, never its content.
func ReadAuth(path, text string) (*Auth, error) {
	a := &Auth{lines: map[origin]credential{}}
	if path != "" {
		content, err := readPrivate(path)
		if err != nil {
			return nil, fmt.Errorf("credentials: %w", err)
		}
		if a.lines, err = parseAuth(path, content); err != nil {
			return nil, err
		}
	}
	lines, err := parseAuth(AuthEnv, text)
	if err != nil {
		return nil, err
	}
	maps.Copy(a.lines, lines)
	return a, nil
}

// readPrivate reads a file that only its owner may use.
func readPrivate(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", fmt.Errorf("%s has mode %04o, so others than its owner may use it: chmod 600 %s", path, mode, path)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxAuth+1))
	if err == nil && len(content) > maxAuth {
		err = fmt.Errorf("%s is over the limit of %d bytes", path, maxAuth)
	}
	return string(content), err
}

// parseAuth reads lines; source is where they come from, for people.
func parseAuth(source, text string) (map[origin]credential, error) {
	lines := map[origin]credential{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		place := fmt.Sprintf("line %d of %s", n, source)
		o, header, err := parseLine(line)
		if err == nil && lines[o].header != "" {
			err = fmt.Errorf("%s is for the same server", lines[o].place)
		}
		if err != nil {
			return nil, fmt.Errorf("credentials: %s: %w", place, err)
		}
		lines[o] = credential{header, place}
	}
	return lines, nil
}

func parseLine(line string) (origin, string, error) {
	server, rest := cutSpace(line)
	kind, secret := cutSpace(rest)
	o, ok := parseOrigin(server)
	switch {
	case !ok:
		return "", "", errors.New("its first word is no HOST, HOST:PORT or http://HOST[:PORT]")
	case strings.ContainsFunc(secret, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", "", errors.New("it has a control character in it")
	}
	switch kind {
	case "bearer":
		if secret == "" || strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return "", "", errors.New("want HOST bearer TOKEN, with a token of one word in ASCII")
		}
		return o, "Bearer " + secret, nil
	case "basic":
		if user, _, ok := strings.Cut(secret, ":"); !ok || user == "" {
			return "", "", errors.New("want HOST basic USER:PASSWORD")
		}
		return o, "Basic " + base64.StdEncoding.EncodeToString([]byte(secret)), nil
	}
	return "", "", errors.New("its second word is not bearer or basic")
}

// cutSpace cuts s after its first word.
func cutSpace(s string) (word, rest string) {
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], strings.TrimLeft(s[i:], " \t")
	}
	return s, ""
}

func parseOrigin(s string) (origin, bool) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return "", false
	}
	o := originOf(u)
	// Nothing but a server: no user, path or query.
	return o, strings.EqualFold(s, u.Scheme+"://"+u.Host) || strings.EqualFold(s, u.Scheme+"://"+u.Host+"/")
}

func originOf(u *url.URL) origin {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return origin(u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port)
}

// String says how many lines there are.
func (a *Auth) String() string {
	if a == nil {
		return "no credentials"
	}
	return fmt.Sprintf("credentials for %d servers", len(a.lines))
}

// GoString is String.
func (a *Auth) GoString() string { return a.String() }

// find returns the credential for a request, if there is one.
func (a *Auth) find(req *http.Request) (credential, bool) {
	if a == nil || foreign(req) {
		return credential{}, false
	}
	c, ok := a.lines[originOf(req.URL)]
	return c, ok
}

// foreign reports whether another host has redirected to this request. A client
// links each request to the answer that led to it.
func foreign(req *http.Request) bool {
	for r := req; r.Response != nil && r.Response.Request != nil; r = r.Response.Request {
		if !strings.EqualFold(r.URL.Hostname(), r.Response.Request.URL.Hostname()) {
			return true
		}
	}
	return false
}

// Hint says what a server's refusal of a request means for who keeps the lines.
func (a *Auth) Hint(req *http.Request) string {
	server := req.URL.Host
	if c, sent := a.find(req); sent {
		return fmt.Sprintf("%s does not take the credentials in %s", server, c.place)
	}
	if foreign(req) {
		return fmt.Sprintf("no credentials were sent to %s, because another host redirected there: if it wants them, use its URL for the store", server)
	}
	line := server
	if req.URL.Scheme == "http" {
		line = "http://" + server
	}
	return fmt.Sprintf("if %s wants credentials, %s or the file that %s or --auth-file names needs a line %q or %q",
		server, AuthEnv, AuthFileEnv, line+" bearer TOKEN", line+" basic USER:PASSWORD")
}

// Transport returns rt with credentials: each request that has a line goes with it,
// whatever Authorization the request or its URL has.
func (a *Auth) Transport(rt http.RoundTripper) http.RoundTripper { return authTransport{a, rt} }

type authTransport struct {
	auth *Auth
	http.RoundTripper
}

func (t authTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if c, ok := t.auth.find(req); ok {
		req = req.Clone(req.Context()) // a RoundTripper modifies no request
		req.Header.Set("Authorization", c.header)
	}
	return t.RoundTripper.RoundTrip(req)
}

// CloseIdleConnections is for http.Client's.
func (t authTransport) CloseIdleConnections() {
	if c, ok := t.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
