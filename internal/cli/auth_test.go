package cli

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Credentials for servers are those for manifests, too, whatever the kind; and they
// are in nothing that is said.
func TestManifestBehindCredentials(t *testing.T) {
	t.Parallel()
	const secret = "hunter2+token"
	dir := t.TempDir()
	file, key, pub := signedManifest(t, dir)
	for kind, c := range map[string]struct{ line, header string }{
		"bearer": {"bearer " + secret, "Bearer " + secret},
		"basic":  {"basic fleet:" + secret, "Basic " + base64.StdEncoding.EncodeToString([]byte("fleet:"+secret))},
	} {
		files := http.FileServer(http.Dir(dir))
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != c.header {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			files.ServeHTTP(w, r)
		}))
		t.Cleanup(server.Close)
		other := httptest.NewServer(http.RedirectHandler(strings.Replace(server.URL, "127.0.0.1", "localhost", 1)+"/m.fl", http.StatusFound))
		t.Cleanup(other.Close)
		auth := filepath.Join(dir, kind+".auth")
		write(t, auth, fmt.Appendf(nil, "%s %s\n%s %s\n", server.URL, c.line, other.URL, c.line))
		wrong := filepath.Join(dir, kind+".wrong")
		write(t, wrong, fmt.Appendf(nil, "%s bearer hunter2+wrong\n", server.URL))
		host := strings.TrimPrefix(server.URL, "http://")

		mustRun(t, "overmount", "publish", "-m", file, "--to", filepath.Join(dir, kind), "--public", server.URL+"/"+kind, "--auth-file", auth,
			"--sign", key, "-o", filepath.Join(dir, kind+".fl"))
		for _, c := range []struct {
			args []string
			want string // on stderr; empty: all is well
		}{
			{[]string{"flist", "ls", "--auth-file", auth, server.URL + "/m.fl"}, ""},
			{[]string{"flist", "ls", "--auth-file", auth, "--pubkey", pub, server.URL + "/" + kind + "/m.fl.zst"}, ""},
			{[]string{"unpack", "--auth-file", auth, "--pubkey", pub, "-m", server.URL + "/" + kind + "/m.fl", filepath.Join(dir, kind+".out")}, ""},
			{[]string{"config", "--auth-file", auth, "-m", server.URL + "/m.fl", "tag", "list"}, ""},
			{[]string{"gc", "--auth-file", auth, "-s", filepath.Join(dir, "objects"), server.URL + "/m.fl"}, ""},
			{[]string{"flist", "ls", server.URL + "/m.fl"}, "401 Unauthorized; if " + host + " wants credentials"},
			{[]string{"flist", "ls", "--pubkey", pub, server.URL + "/m.fl"}, "fetch signature " + server.URL + "/m.fl.minisig: the server answers 401"},
			{[]string{"flist", "ls", "--auth-file", wrong, server.URL + "/m.fl?token=" + secret}, "does not take the credentials in line 1 of " + wrong},
			{[]string{"flist", "ls", "--auth-file", auth, other.URL + "/m.fl"}, "no credentials were sent to localhost"},
			{[]string{"flist", "ls", strings.Replace(server.URL, "://", "://fleet:hunter2+wrong@", 1) + "/m.fl"}, "401 Unauthorized"},
		} {
			r := run(t, "overmount", c.args...)
			if (r.code == 0) != (c.want == "") || !strings.Contains(r.stderr, c.want) {
				t.Errorf("%s: %q: exit code %d, %s, want %q", kind, c.args, r.code, r.stderr, c.want)
			}
			if strings.Contains(r.stdout+r.stderr, "hunter2") {
				t.Errorf("%s: %q shows the secret: %s%s", kind, c.args, r.stdout, r.stderr)
			}
		}
		if err := os.Remove(auth); err != nil {
			t.Fatal(err)
		}
	}
}
