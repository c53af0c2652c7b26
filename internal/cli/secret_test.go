package cli

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"overmount/internal/testenv"
	"overmount/store/storetest"
)

// The secrets of TestNoSecret begin with words that are found in each spelling of
// them, and go on with what the spellings differ in.
const (
	s3Secret     = "Ohnaeseph7ra/with+signs@and:more%41"
	wrongSecret  = "Xahshie9thoo/with+signs@and:more%41"
	webToken     = "Iequ4aeshoo8.of-one_word~"
	webPassword  = "Uphoh6aengei/with+signs@and:more%41 and space"
	zdbPassword  = "Eiyei3chahng/with+signs@and:more%41"
	urlPassword  = "Aith2iequahb/with+signs@and:more%41"
	queryToken   = "Zoh5iexaezah"
	wordLen      = 12
	s3Key        = "AKFLEET"
	basicWebUser = "fleet"
)

// A spy runs commands, and fails the test where a secret shows.
type spy struct {
	t     *testing.T
	work  string
	marks map[string]string // what may not show, and what it is
}

func newSpy(t *testing.T) *spy {
	t.Helper()
	s := &spy{t: t, work: t.TempDir(), marks: map[string]string{}}
	for _, secret := range []string{s3Secret, wrongSecret, webToken, webPassword, zdbPassword, urlPassword, queryToken} {
		for _, spelled := range spellings(secret[:wordLen]) {
			s.marks[spelled] = secret
		}
	}
	return s
}

// spellings returns how a word of letters and digits looks in plain and
// URL-escaped texts, in hex, and in base64, where that depends on how many bytes
// are before it.
func spellings(word string) []string {
	all := []string{word, hex.EncodeToString([]byte(word))}
	for before := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + word))
		// Less what the bytes before and after it have a part in.
		all = append(all, text[(before*8+5)/6:(before+len(word))*8/6])
	}
	return all
}

func (s *spy) look(where, text string) {
	s.t.Helper()
	for mark, secret := range s.marks {
		if i := strings.Index(text, mark); i >= 0 {
			s.t.Errorf("%s shows the secret %s, as in %q", where, secret, text[max(0, i-200):min(len(text), i+100)])
		}
	}
}

func (s *spy) lookAtFile(name string) {
	s.t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.look(name, string(text))
}

// run runs the program, and looks at all it says.
func (s *spy) run(code int, env []string, args ...string) string {
	s.t.Helper()
	all := append([]string{"XDG_CACHE_HOME=" + filepath.Join(s.work, "cache")}, env...)
	r := run(s.t, "env", append(append(all, "overmount"), args...)...)
	s.look(fmt.Sprintf("the output of %q", args), r.stdout+r.stderr)
	if r.code != code {
		s.t.Errorf("overmount %q: exit code %d, want %d: %s%s", args, r.code, code, r.stdout, r.stderr)
	}
	return r.stdout + r.stderr
}

// mount mounts, reads all, breaks what is to break, fails to read the rest, and
// looks at the daemon on the way.
func (s *spy) mount(env []string, breaks func(), args ...string) {
	s.t.Helper()
	work := s.t.TempDir()
	dir, log := filepath.Join(work, "target"), filepath.Join(work, "log")
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	args = append([]string{"mount", "-d", "-l", log, "--log-level", "debug", "-c", "none", "--timeout", "1s"}, args...)
	s.run(0, env, append(args, dir)...)
	unmountAfter(s.t, dir)
	pids := daemons(dir)
	if len(pids) != 1 {
		s.t.Fatalf("programs that serve %s: %v, want one", dir, pids)
	}
	for _, name := range []string{"cmdline", "comm", "mountinfo"} {
		s.lookAtFile(fmt.Sprintf("/proc/%d/%s", pids[0], name))
	}
	if got := mustRun(s.t, "cat", filepath.Join(dir, "a")); got != "hello\n" {
		s.t.Errorf("a file reads as %q, want hello", got)
	}
	breaks()
	if r := run(s.t, "cat", filepath.Join(dir, "b")); r.code != 1 {
		s.t.Errorf("a file of a store that is broken reads as %q, exit code %d", r.stdout, r.code)
	}
	s.run(0, nil, "umount", dir)
	if err := awaitEnd(pids[0]); err != nil {
		s.t.Fatal(err)
	}
	s.lookAtFile(log)
	if text, err := os.ReadFile(log); err != nil || !strings.Contains(string(text), "level=ERROR") {
		s.t.Errorf("the log does not say that a read failed: %s, %v", text, err)
	}
}

// source returns a directory to pack.
func (s *spy) source() string {
	s.t.Helper()
	dir := filepath.Join(s.work, "src")
	err := os.MkdirAll(dir, 0o755)
	for name, text := range map[string]string{"a": "hello\n", "b": "another text\n"} {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return dir
}

func (s *spy) private(name, text string) string {
	s.t.Helper()
	file := filepath.Join(s.work, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// Nothing shows a secret of S3, however it was given.
func TestNoSecretOfS3(t *testing.T) {
	testenv.FUSE(t)
	t.Parallel()
	host, files, _ := startS3(t, s3Key, s3Secret)
	cut := cutUploads(t, host)
	web := httptest.NewServer(http.FileServer(http.Dir(files)))
	t.Cleanup(web.Close)
	for _, way := range []struct {
		name string
		give func(s *spy, secret, host string) (env, flags []string, user string)
	}{
		{"environment", func(_ *spy, secret, _ string) (env, flags []string, user string) {
			return []string{"AWS_ACCESS_KEY_ID=" + s3Key, "AWS_SECRET_ACCESS_KEY=" + secret}, nil, ""
		}},
		{"file", func(s *spy, secret, _ string) (env, flags []string, user string) {
			text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s3Key, secret)
			return nil, []string{"--credentials", s.private("credentials-"+secret[:wordLen-1], text)}, ""
		}},
		{"URL", func(_ *spy, secret, _ string) (env, flags []string, user string) {
			return nil, nil, url.UserPassword(s3Key, secret).String() + "@"
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			s := newSpy(t)
			src := s.source()
			env, flags, user := way.give(s, s3Secret, host)
			badEnv, badFlags, badUser := way.give(s, wrongSecret, host)
			at := func(user, host, path string) string { return "s3://" + user + host + "/" + path }
			meta, copied, failed := filepath.Join(s.work, "x.fl"), filepath.Join(s.work, "copy.fl"), filepath.Join(s.work, "failed.fl")
			bucket, public := at(user, host, "flists/"+way.name), web.URL+"/"+way.name
			published := filepath.Join(s.work, "published.fl")
			reads := []string{"AWS_ACCESS_KEY_ID=" + s3Key, "AWS_SECRET_ACCESS_KEY=" + s3Secret} // what x.fl names
			// What writes to S3, and how it ends. A verb that does, too, gets its
			// line here.
			for _, step := range []struct {
				code  int
				env   []string
				flags []string
				args  []string
			}{
				{0, env, flags, []string{"pack", "-m", meta, "-s", bucket, src}},
				{0, env, flags, []string{"pack", "--json", "-m", meta, "-s", bucket, src}},
				{1, badEnv, badFlags, []string{"pack", "-m", failed, "-s", at(badUser, host, "flists"), src}},
				{1, env, flags, []string{"pack", "-m", failed, "-s", at(user, host, "no-such-bucket"), src}},
				{1, env, flags, []string{"pack", "-m", failed, "-s", at(user, "127.0.0.1:1", "flists"), src}},
				{1, env, flags, []string{"pack", "-m", failed, "-s", at(user, cut, "flists/cut"), src}},
				{1, env, flags, []string{"pack", "-m", failed, "-s", bucket + "?region=nowhere", src}},
				{1, env, flags, []string{"pack", "-m", failed, "-s", bucket + "?nonsense=1", src}},
				{0, reads, flags, []string{"clone", "-m", meta, "-s", bucket + "/copy", "--set", bucket + "/copy", "-o", copied}},
				{1, reads, badFlags, []string{"clone", "-m", meta, "-s", at(badUser, host, "no-such-bucket")}},
				{0, reads, flags, []string{"publish", "--json", "-m", meta, "--to", bucket, "--public", public, "-o", published}},
				{1, reads, badFlags, []string{"publish", "-m", meta, "--to", at(badUser, host, "no-such-bucket"), "--public", public, "-o", failed}},
				{4, reads, flags, []string{"publish", "-m", meta, "--to", bucket, "--public", strings.Replace(public, "://", "://"+s3Key+":"+url.QueryEscape(s3Secret)+"@", 1), "-o", failed}},
				{4, reads, flags, []string{"publish", "-m", meta, "--to", bucket, "--public", public + "/wrong", "-o", failed}},
			} {
				s.run(step.code, step.env, append(slices.Clip(step.flags), step.args...)...)
			}
			s.lookAtFile(meta)
			s.lookAtFile(copied)
			s.lookAtFile(published)

			// Reading takes the URL from the manifest, where someone may have put a
			// secret.
			broken := storetest.NewProxy(t, host)
			readFrom := func(u string) {
				s.run(0, nil, "config", "-m", meta, "store", "delete", "-a")
				s.run(0, nil, "config", "-m", meta, "store", "add", "-s", u)
				s.lookAtFile(meta)
				s.run(0, nil, "config", "-m", meta, "store", "delete", "-a")
				s.run(0, nil, "config", "-m", meta, "store", "add", "--no-strip-password", "-s", u)
			}
			readFrom(at(user, broken.Addr, "flists/"+way.name))
			verified := 0
			if user != "" {
				verified = 4 // the secret is found
			}
			s.run(verified, env, append(flags, "verify", "--json", "--objects", "all", meta)...)
			s.run(0, env, append(flags, "flist", "inspect", "--json", meta)...)
			s.run(0, env, append(flags, "config", "-m", meta, "store", "list")...)
			s.mount(env, func() { broken.Set(storetest.ProxyFault{Refuse: true}) }, append(flags, "-m", meta)...)
			s.run(4, env, append(flags, "verify", "--timeout", "1s", "--objects", "all", meta)...)
			readFrom(at(badUser, host, "flists/"+way.name))
			s.run(4, badEnv, append(badFlags, "verify", "--objects", "all", meta)...)
			s.run(1, badEnv, append(badFlags, "unpack", "-m", meta, filepath.Join(s.work, "out"))...)
		})
	}
}

// cutUploads leads to a server, but for what is put there: the first connection
// is cut, and then it is forbidden.
func cutUploads(t *testing.T, host string) string {
	t.Helper()
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: host})
		r.Out.Host = r.In.Host // which is signed
	}}
	var puts atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			pass.ServeHTTP(w, r)
			return
		}
		if puts.Add(1)%2 == 1 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "<Error><Code>AccessDenied</Code><Message>%v</Message></Error>", r.Header)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// Nothing shows a token or password of a web server, however it was given.
func TestNoSecretOfTheWeb(t *testing.T) {
	testenv.FUSE(t)
	t.Parallel()
	s := newSpy(t)
	objects, meta := filepath.Join(s.work, "objects"), filepath.Join(s.work, "x.fl")
	s.run(0, nil, "pack", "-m", meta, "-s", "dir://"+objects, s.source())
	for _, who := range []struct{ name, authorization, line, wrong string }{
		{"bearer", "Bearer " + webToken, "bearer " + webToken, "bearer " + wrongSecret},
		{
			"basic", "Basic " + base64.StdEncoding.EncodeToString([]byte(basicWebUser+":"+webPassword)),
			"basic " + basicWebUser + ":" + webPassword, "basic " + basicWebUser + ":" + wrongSecret,
		},
	} {
		t.Run(who.name, func(t *testing.T) {
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != who.authorization {
					http.Error(w, fmt.Sprint("not with these: ", r.Header), http.StatusUnauthorized)
					return
				}
				http.FileServer(http.Dir(objects)).ServeHTTP(w, r)
			}))
			t.Cleanup(web.Close)
			proxy := storetest.NewProxy(t, strings.TrimPrefix(web.URL, "http://"))
			base := "http://" + proxy.Addr
			s := &spy{t, s.work, s.marks}
			s.run(0, nil, "config", "-m", meta, "store", "delete", "-a")
			s.run(0, nil, "config", "-m", meta, "store", "add", "-s", base)
			line, wrong := base+" "+who.line+"\n", base+" "+who.wrong+"\n"
			for _, way := range []struct {
				name            string
				env, flags, bad []string
			}{
				{"environment", []string{"OVERMOUNT_AUTH=" + line}, nil, []string{"OVERMOUNT_AUTH=" + wrong}},
				{"file", []string{"OVERMOUNT_AUTH_FILE=" + s.private("auth", line)}, nil, []string{"OVERMOUNT_AUTH_FILE=" + s.private("bad", wrong)}},
				{"flag", nil, []string{"--auth-file", s.private("auth", line)}, []string{"OVERMOUNT_AUTH=" + wrong}},
			} {
				proxy.Set(storetest.ProxyFault{})
				s.run(0, way.env, append(way.flags, "verify", "--json", "--objects", "all", meta)...)
				s.run(0, way.env, append(way.flags, "clone", "-m", meta, "-s", "dir://"+t.TempDir())...)
				s.run(4, way.bad, "verify", "--objects", "all", meta)
				s.run(1, way.bad, "clone", "-m", meta, "-s", "dir://"+t.TempDir())
				s.run(4, []string{"OVERMOUNT_AUTH=" + base + " " + wrongSecret}, "verify", meta)
				if who.name == "bearer" || way.name == "flag" {
					s.mount(way.env, func() { proxy.Set(storetest.ProxyFault{Refuse: true}) }, append(way.flags, "-m", meta)...)
				}
			}
		})
	}
	s.lookAtFile(meta)
}

// Nothing shows a password of a 0-db, unless the manifest was meant to.
func TestNoSecretOfZDB(t *testing.T) {
	testenv.FUSE(t)
	t.Parallel()
	s := newSpy(t)
	server := storetest.NewZDBServer(t, nil)
	server.Do("NSNEW", "objects")
	server.Do("NSSET", "objects", "password", zdbPassword)
	server.Do("NSSET", "objects", "public", "0")
	host := strings.TrimPrefix(server.URL, "zdb://")
	proxy := storetest.NewProxy(t, host)
	at := func(password, host, namespace string) string {
		return "zdb://" + url.UserPassword("", password).String() + "@" + host + "/" + namespace
	}
	meta, failed, src := filepath.Join(s.work, "x.fl"), filepath.Join(s.work, "failed.fl"), s.source()
	good := at(zdbPassword, proxy.Addr, "objects")
	s.run(0, nil, "pack", "-m", meta, "-s", good, src)
	s.lookAtFile(meta)
	s.run(1, nil, "clone", "-m", meta, "-s", good, "--set", good, "-o", failed) // x.fl has not the password to read
	s.run(1, nil, "pack", "-m", failed, "-s", at(wrongSecret, host, "objects"), src)
	s.run(1, nil, "pack", "-m", failed, "-s", at(zdbPassword, host, "none"), src)
	s.run(1, nil, "pack", "-m", failed, "-s", at(zdbPassword, "127.0.0.1:1", "objects"), src)
	s.run(1, nil, "pack", "-m", failed, "-s", good+"?password="+zdbPassword, src)
	s.run(0, nil, "pack", "--no-strip-password", "-m", meta, "-s", good, src)
	s.run(4, nil, "verify", "--json", "--objects", "all", meta)
	s.run(0, nil, "clone", "-m", meta, "-s", good, "--set", good, "-o", meta+".2")
	s.lookAtFile(meta + ".2")
	s.mount(nil, func() { proxy.Set(storetest.ProxyFault{Refuse: true}) }, "-m", meta)
	s.run(4, nil, "verify", "--timeout", "1s", "--objects", "all", meta)
}

// Nothing shows what the URL of a manifest has of secrets: not the daemon's
// arguments either, which everyone can read.
func TestNoSecretOfTheManifestURL(t *testing.T) {
	testenv.FUSE(t)
	t.Parallel()
	s := newSpy(t)
	objects := filepath.Join(s.work, "objects")
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); strings.HasSuffix(r.URL.Path, ".fl") && (user != basicWebUser || password != urlPassword || r.FormValue("token") != queryToken) {
			http.Error(w, fmt.Sprint("not with these: ", r.Header, r.URL), http.StatusUnauthorized)
			return
		}
		http.FileServer(http.Dir(s.work)).ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	proxy := storetest.NewProxy(t, strings.TrimPrefix(web.URL, "http://"))
	meta := filepath.Join(s.work, "x.fl")
	s.run(0, nil, "pack", "-m", meta, "-s", "dir://"+objects, s.source())
	s.run(0, nil, "config", "-m", meta, "store", "delete", "-a")
	s.run(0, nil, "config", "-m", meta, "store", "add", "-s", "http://"+proxy.Addr+"/objects")
	at := func(password, host, file string) string {
		return "http://" + url.UserPassword(basicWebUser, password).String() + "@" + host + "/" + file + "?token=" + queryToken
	}
	dir := filepath.Join(s.work, "target")
	for what, file := range map[string]string{
		"another password": at(wrongSecret, proxy.Addr, "x.fl"), "no manifest": at(urlPassword, proxy.Addr, "y.fl"),
		"no server": at(urlPassword, "127.0.0.1:1", "x.fl"), "no URL": strings.Replace(at(urlPassword, "host:port", "x.fl"), "%40", "%4", 1),
	} {
		for _, args := range [][]string{{"verify", file}, {"flist", "inspect", file}, {"mount", "-d", "-m", file, dir}, {"unpack", "-m", file, dir}} {
			if out := s.run(1, nil, args...); out == "" {
				t.Errorf("%q of a URL with %s says nothing", args, what)
			}
		}
	}
	good := at(urlPassword, proxy.Addr, "x.fl")
	for _, flags := range [][]string{{"-m", good}, {"-m" + good}, {"--meta", good}, {"--meta=" + good}} {
		public := withoutFile(append([]string{"mount"}, flags...), good)
		s.look("the daemon's arguments", strings.Join(public, " "))
		if !strings.HasSuffix(public[len(public)-1], "http://"+proxy.Addr+"/x.fl") {
			t.Errorf("of %q the daemon's arguments are %q, want the URL without its secrets", flags, public)
		}
	}
	s.run(0, nil, "verify", "--json", good)
	s.run(0, nil, "verify", good)
	s.run(0, nil, "flist", "inspect", "--json", good)
	s.run(0, nil, "flist", "inspect", good)
	s.run(1, nil, "verify", "--pubkey", "nonsense", good)
	s.mount(nil, func() { proxy.Set(storetest.ProxyFault{Refuse: true}) }, "-m", good)
}
