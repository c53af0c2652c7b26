package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
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
	"overmount/manifest"
	"overmount/origin"
	"overmount/signature"
	"overmount/store/storetest"
)

const (
	fleetKey    = "AKFLEET"
	fleetSecret = "hunter2/with+signs@and:more"
)

// refuse answers as rude servers do, which repeat what they should not.
func refuse(w http.ResponseWriter, r *http.Request, _ http.HandlerFunc) {
	message := "Who are you?"
	if strings.Contains(r.Header.Get("Authorization"), fleetKey) {
		message = "not with " + fleetSecret
	}
	w.WriteHeader(http.StatusForbidden)
	fmt.Fprintf(w, "<Error><Code>AccessDenied</Code><Message>%s</Message></Error>", message)
}

// A publisher runs publish in this process, with an environment of its own, and
// keeps what it says.
type publisher struct {
	env  map[string]string
	said strings.Builder
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	return &publisher{env: map[string]string{
		"AWS_ACCESS_KEY_ID": fleetKey, "AWS_SECRET_ACCESS_KEY": fleetSecret, "XDG_CACHE_HOME": t.TempDir(), "HOME": "/nonexistent",
	}}
}

func (p *publisher) run(ctx context.Context, args ...string) ran {
	var stdout, stderr bytes.Buffer
	code := Run(ctx, Env{Args: args, Stdout: &stdout, Stderr: &stderr, Getenv: func(name string) string { return p.env[name] }})
	p.said.WriteString(stdout.String() + stderr.String())
	return ran{stdout.String(), stderr.String(), code}
}

func (p *publisher) mustRun(t *testing.T, args ...string) string {
	t.Helper()
	r := p.run(t.Context(), args...)
	if r.code != 0 {
		t.Fatalf("%q: exit code %d: %s%s", args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// silent fails the test if anything that was said, or a file, holds the secret.
func (p *publisher) silent(t *testing.T, files ...string) {
	t.Helper()
	texts := map[string]string{"output": p.said.String()}
	for _, name := range files {
		texts[name] = string(read(t, name))
		if strings.Contains(texts[name], fleetKey) {
			t.Errorf("%s holds the key id", name)
		}
	}
	for what, text := range texts {
		for line := range strings.Lines(text) {
			if strings.Contains(line, "hunter2") || strings.Contains(line, "with+signs") {
				t.Errorf("%s holds the secret: %q", what, line)
			}
		}
	}
}

// tinyTree makes a directory of n files, each an object of its own.
func tinyTree(t *testing.T, dir string, n int) string {
	t.Helper()
	for i := range n {
		file := filepath.Join(dir, fmt.Sprint(i%50), fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, file, fmt.Appendf(nil, "this is file %d", i))
	}
	return dir
}

// lastJSON is the last line of an output.
func lastJSON(t *testing.T, out string) map[string]any {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var last map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatalf("%v in %q", err, lines[len(lines)-1])
	}
	return last
}

// An unchanged tree costs a few requests to publish again, however many objects it
// has. So it does without notes, as on a new host.
func TestRepublish(t *testing.T) {
	t.Parallel()
	const files = 3000
	e := storetest.NewBucketServer(t, fleetKey, 0)
	p := newPublisher(t)
	work := t.TempDir()
	meta, key := filepath.Join(work, "m.fl"), filepath.Join(work, "k")
	p.mustRun(t, "pack", "-m", meta, "-s", filepath.Join(work, "private"), tinyTree(t, filepath.Join(work, "src"), files))
	p.mustRun(t, "key", "generate", "-s", key, "-p", key+".pub", "--no-password")
	publish := []string{"publish", "-m", meta, "--to", e.S3, "--public", e.Web, "--sign", key, "--latest", "latest.fl", "--json"}
	again := func(what string, most int, want map[string]any, args ...string) {
		t.Helper()
		got := lastJSON(t, p.mustRun(t, append(publish, args...)...))
		asked := e.Requests()
		if len(asked) > most {
			t.Errorf("%s takes %d requests, want at most %d: %q", what, len(asked), most, asked[:min(len(asked), 30)])
		}
		if got["requests"] != float64(len(asked)) {
			t.Errorf("%s says that it made %v requests, and made %d", what, got["requests"], len(asked))
		}
		for name, v := range want {
			if got[name] != v {
				t.Errorf("%s: %s is %v, want %v", what, name, got[name], v)
			}
		}
	}
	all, none := map[string]any{"new_objects": float64(files), "objects": float64(files)}, map[string]any{"new_objects": 0.0, "objects": float64(files)}
	again("the first time", files+64+25, all)
	again("the second time", 15, none)
	p.env["XDG_CACHE_HOME"] = t.TempDir()
	again("without notes", 4+64+15, none)
	again("with notes again", 15, none)
	again("--recheck", 4+64+15, none, "--recheck")
	again("after --recheck", 15, none)
	p.mustRun(t, "flist", "ls", "--pubkey", key+".pub", e.Web+"/latest.fl")

	// A few new files cost a few requests more.
	tinyTree(t, filepath.Join(work, "src"), files+5)
	p.mustRun(t, "pack", "-m", meta, "-s", filepath.Join(work, "private"), filepath.Join(work, "src"))
	e.Requests()
	again("with five new objects", 15+4+5+8+64+6, map[string]any{"new_objects": 5.0})

	// Objects that are lost although it is noted that they are there, among them
	// those that are always looked at, are found, and come back.
	kept := e.Files()
	before := len(kept)
	maps.DeleteFunc(kept, func(key string, _ []byte) bool { return len(key) > 64 && key[0] == '0' })
	lost := before - len(kept)
	e.Reset(kept)
	r := p.run(t.Context(), publish...)
	if r.code != exitFindings || !strings.Contains(r.stdout, "it lacks ") {
		t.Errorf("with %d objects lost: exit code %d, %s; want findings", lost, r.code, r.stdout)
	}
	e.Requests()
	again("after the loss", lost+4+64+15, map[string]any{"new_objects": float64(lost)})
	p.silent(t, filepath.Join(work, "m-public.fl"))
}

// A change is two manifests that are published one after the other.
type change struct {
	oldFiles, newFiles map[string][]byte // of the bucket
	old, new           []byte            // manifests
	journal            []byte            // after the old one
	args               []string          // publish the new one
	pub                string
}

const (
	fileName   = "m.fl"
	latestName = "latest.fl"
)

func newChange(t *testing.T, e *storetest.BucketServer, p *publisher) *change {
	t.Helper()
	work := t.TempDir()
	src, private := filepath.Join(work, "src"), filepath.Join(work, "private")
	key, journal := filepath.Join(work, "k"), filepath.Join(work, "journal")
	c := &change{pub: key + ".pub"}
	p.mustRun(t, "key", "generate", "-s", key, "-p", c.pub, "--no-password")
	publish := func(meta, serial string) []string {
		return []string{"publish", "-m", meta, "--to", e.S3, "--public", e.Web, "--name", "m.fl", "--latest", "latest.fl",
			"--sign", key, "--serial", serial, "--journal", journal, "--timeout", "5s", "--objects", "all"}
	}
	oldMeta, newMeta := filepath.Join(work, "old.fl"), filepath.Join(work, "new.fl")
	p.mustRun(t, "pack", "-m", oldMeta, "-s", private, tinyTree(t, src, 1))
	p.mustRun(t, "pack", "-m", newMeta, "-s", private, tinyTree(t, src, 3))
	p.mustRun(t, publish(oldMeta, "1")...)
	c.oldFiles, c.journal = e.Files(), read(t, journal)
	c.old = c.oldFiles[fileName]
	c.args = publish(newMeta, "2")
	p.mustRun(t, c.args...)
	c.newFiles = e.Files()
	c.new = c.newFiles[fileName]
	p.silent(t, filepath.Join(work, "old-public.fl"), filepath.Join(work, "new-public.fl"))
	return c
}

// reset goes back to before the change.
func (c *change) reset(t *testing.T, e *storetest.BucketServer, files map[string][]byte, at int, fault storetest.BucketFault) {
	t.Helper()
	e.Reset(files)
	e.FaultAt(at, fault)
	write(t, c.args[slices.Index(c.args, "--journal")+1], c.journal)
}

// check fails the test if anything is half published: a name, also that of a
// compressed copy, has the old manifest or the new one, its signature, and, of the new
// one, all objects.
func (c *change) check(t *testing.T, e *storetest.BucketServer, what string, before map[string][]byte) {
	t.Helper()
	files := e.Files()
	for _, name := range []string{fileName, latestName} {
		for _, suffix := range []string{"", origin.Suffix} {
			c.checkName(t, what, files, before, name, suffix)
		}
	}
	for _, name := range []string{fileName, latestName} {
		if bytes.Equal(files[name], c.new) && !bytes.Equal(files[name+origin.Suffix], c.newFiles[fileName+origin.Suffix]) {
			t.Fatalf("%s: %s is new, and its compressed copy is not", what, name)
		}
	}
	if bytes.Equal(files[latestName], c.new) && !bytes.Equal(files[fileName], c.new) {
		t.Fatalf("%s: the second name is new, and the first is not", what)
	}
}

func (c *change) checkName(t *testing.T, what string, files, before map[string][]byte, name, suffix string) {
	t.Helper()
	got := files[name+suffix]
	if got == nil && before[name+suffix] == nil {
		return
	}
	old := before[name+suffix]
	if !bytes.Equal(got, old) && !bytes.Equal(got, c.newFiles[name+suffix]) {
		t.Fatalf("%s: %s has %d bytes, which are neither the old nor the new manifest", what, name+suffix, len(got))
	}
	isNew := bytes.Equal(got, c.newFiles[name+suffix])
	if isNew {
		for key, body := range c.newFiles {
			if len(key) > 64 && !bytes.Equal(files[key], body) {
				t.Fatalf("%s: %s is the new manifest, and the object %s is not there", what, name+suffix, key)
			}
		}
	}
	plain := before[name]
	if isNew {
		plain = c.new
	}
	if !c.signed(t, plain, files[name+signature.Suffix]) {
		t.Fatalf("%s: %s does not have its signature", what, name+suffix)
	}
}

func (c *change) signed(t *testing.T, manifest, sig []byte) bool {
	t.Helper()
	key, err := signature.ReadPublicKey(c.pub)
	if err != nil {
		t.Fatal(err)
	}
	_, err = signature.Verify(key, bytes.NewReader(manifest), sig)
	return err == nil
}

// complete publishes once more.
func (c *change) complete(t *testing.T, e *storetest.BucketServer, p *publisher, what string) {
	t.Helper()
	e.Reset(e.Files())
	if r := p.run(t.Context(), c.args...); r.code != 0 {
		t.Fatalf("%s: publish again: exit code %d: %s%s", what, r.code, r.stdout, r.stderr)
	}
	if files := e.Files(); !maps.EqualFunc(files, c.newFiles, bytes.Equal) {
		t.Fatalf("%s: publish again left other files than publish at once", what)
	}
}

// Whatever request publish is interrupted at, before or after the server has done
// it, or is refused: what machines see is the old manifest or the new one, with its
// signature and its objects, and to publish again completes it.
func TestInterruptedPublish(t *testing.T) {
	t.Parallel()
	e := storetest.NewBucketServer(t, fleetKey, 0)
	p := newPublisher(t)
	c := newChange(t, e, p)
	hang := func(r *http.Request) {
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	// What is there before, and a fault of which publish hears, or who runs it.
	for what, situation := range map[string]struct {
		before map[string][]byte
		fault  func(interrupt func()) storetest.BucketFault
	}{
		"interrupted before": {nil, func(interrupt func()) storetest.BucketFault {
			return func(_ http.ResponseWriter, r *http.Request, _ http.HandlerFunc) {
				interrupt()
				hang(r)
			}
		}},
		"interrupted after": {c.oldFiles, func(interrupt func()) storetest.BucketFault {
			return func(_ http.ResponseWriter, r *http.Request, answer http.HandlerFunc) {
				answer(httptest.NewRecorder(), r)
				interrupt()
				hang(r)
			}
		}},
		"refused": {c.oldFiles, func(func()) storetest.BucketFault { return refuse }},
	} {
		reached := 0
		for at := 1; ; at++ {
			ctx, cancel := context.WithCancel(t.Context())
			c.reset(t, e, situation.before, at, situation.fault(cancel))
			r := p.run(ctx, c.args...)
			cancel()
			if len(e.Requests()) < at {
				break // it was done before
			}
			reached = at
			name := fmt.Sprintf("%s request %d", what, at)
			if what != "refused" && (r.code != exitInterrupted || !strings.HasSuffix(r.stderr, "overmount: interrupted\n")) {
				t.Errorf("%s: exit code %d, %s", name, r.code, r.stderr)
			}
			c.check(t, e, name, situation.before)
			c.complete(t, e, p, name)
		}
		if reached < 15 {
			t.Errorf("%s: publish made %d requests, want more to interrupt", what, reached)
		}
	}
	p.silent(t)
}

// So it is when publish is killed.
func TestKilledPublish(t *testing.T) {
	e := storetest.NewBucketServer(t, fleetKey, 0)
	p := newPublisher(t)
	c := newChange(t, e, p)
	for name, value := range p.env {
		t.Setenv(name, value)
	}
	t.Setenv("TMPDIR", t.TempDir()) // who is killed leaves things
	for at := 1; ; at++ {
		cmd := exec.Command("overmount", c.args...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		process := make(chan *os.Process, 1)
		c.reset(t, e, c.oldFiles, at, func(_ http.ResponseWriter, r *http.Request, _ http.HandlerFunc) {
			(<-process).Kill()
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		})
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		process <- cmd.Process
		err := cmd.Wait()
		p.said.Write(out.Bytes())
		if err == nil {
			if at < 15 {
				t.Errorf("publish made %d requests, want more to be killed at", at-1)
			}
			break
		}
		name := fmt.Sprintf("killed at request %d", at)
		c.check(t, e, name, c.oldFiles)
		c.complete(t, e, p, name)
	}
	p.silent(t)
}

// A proxy that has kept the old manifest makes publish fail, and the second name
// stays.
func TestPublishBehindACache(t *testing.T) {
	t.Parallel()
	e := storetest.NewBucketServer(t, fleetKey, 0)
	p := newPublisher(t)
	c := newChange(t, e, p)
	c.reset(t, e, c.oldFiles, 0, nil)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if key := strings.TrimPrefix(r.URL.Path, "/"); c.oldFiles[key] != nil {
			w.Write(c.oldFiles[key])
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer proxy.Close()
	r := p.run(t.Context(), append(c.args, "--manifest-public", proxy.URL)...)
	if r.code != exitFailed || !strings.Contains(r.stderr, "it is not what was uploaded") || !strings.Contains(r.stderr, "A proxy or cache") {
		t.Errorf("behind a stale cache: exit code %d, %s; want it to say that a proxy may have kept the old one", r.code, r.stderr)
	}
	if files := e.Files(); !bytes.Equal(files[latestName], c.old) {
		t.Error("the second name has moved although the first is not right from outside")
	}
}

// A manifest that is replaced while it is read is read again.
func TestReadWhileReplaced(t *testing.T) {
	t.Parallel()
	e := storetest.NewBucketServer(t, fleetKey, 0)
	c := newChange(t, e, newPublisher(t))
	sigOf := func(files map[string][]byte) []byte { return files[fileName+signature.Suffix] }
	for what, answers := range map[string]struct {
		sigs, manifests [][]byte
		code            int
		asks            int
	}{
		"the old signature, the new manifest": {[][]byte{sigOf(c.oldFiles), sigOf(c.newFiles)}, [][]byte{c.new}, 0, 4},
		"the new signature, the old manifest": {[][]byte{sigOf(c.newFiles)}, [][]byte{c.old, c.old, c.new}, 0, 6},
		"a signature that stays wrong":        {[][]byte{sigOf(c.newFiles)}, [][]byte{c.old}, 1, 6},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			asked, next := 0, func(list *[][]byte) []byte {
				first := (*list)[0]
				if len(*list) > 1 {
					*list = (*list)[1:]
				}
				return first
			}
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				asked++
				if strings.HasSuffix(r.URL.Path, signature.Suffix) {
					w.Write(next(&answers.sigs))
				} else {
					w.Write(next(&answers.manifests))
				}
			}))
			defer server.Close()
			r := run(t, "overmount", "flist", "inspect", "--pubkey", c.pub, server.URL+"/m.fl")
			if r.code != answers.code || asked != answers.asks {
				t.Errorf("exit code %d after %d requests, %s; want %d after %d", r.code, asked, r.stderr, answers.code, answers.asks)
			}
			if r.code != 0 && !strings.Contains(r.stderr, "is refused: the file is not the one that was signed") {
				t.Errorf("it says %q", r.stderr)
			}
		})
	}
}

// gc takes what publish has noted of the store.
func TestGCForgetsPublished(t *testing.T) {
	t.Parallel()
	var a app
	a.Getenv = func(name string) string { return map[string]string{"XDG_CACHE_HOME": "/c", "HOME": "/h"}[name] }
	if got := a.publishDir(); got != "/c/overmount/publish" {
		t.Errorf("publishDir() = %q", got)
	}
	a.Getenv = func(name string) string { return map[string]string{"XDG_CACHE_HOME": "c", "HOME": "/h"}[name] }
	if got := a.publishDir(); got != "/h/.cache/overmount/publish" {
		t.Errorf("publishDir() = %q with a relative XDG_CACHE_HOME", got)
	}

	e := storetest.NewBucketServer(t, fleetKey, 0)
	p := newPublisher(t)
	work := t.TempDir()
	meta := filepath.Join(work, "m.fl")
	p.mustRun(t, "pack", "-m", meta, "-s", filepath.Join(work, "private"), tinyTree(t, filepath.Join(work, "src"), 3))
	withSecret := strings.Replace(e.S3, "://", "://"+fleetKey+":hunter2%2Fwith%2Bsigns%40and%3Amore@", 1)
	p.mustRun(t, "publish", "-m", meta, "--to", withSecret, "--public", e.Web)
	notes := func() int {
		files, err := filepath.Glob(filepath.Join(p.env["XDG_CACHE_HOME"], "overmount/publish/*"))
		if err != nil {
			t.Fatal(err)
		}
		p.silent(t, files...)
		return len(files)
	}
	if n := notes(); n != 2 {
		t.Errorf("publish left %d journals, want one of each side", n)
	}
	p.mustRun(t, "gc", "-s", e.S3, meta)
	if n := notes(); n != 2 {
		t.Errorf("gc without --delete left %d journals, want 2", n)
	}
	p.mustRun(t, "gc", "-s", e.S3, "--delete", meta)
	if n := notes(); n != 1 {
		t.Errorf("gc --delete left %d journals, want that of the public side", n)
	}
	p.mustRun(t, "publish", "-m", meta, "--to", e.S3, "--public", e.Web, "--journal", "none")
	if n := notes(); n != 1 {
		t.Errorf("--journal none left %d journals, want 1 as before", n)
	}
}

// What is wrong with the store is said without its secret, and before anything is
// written.
func TestPublishFailures(t *testing.T) {
	t.Parallel()
	e := storetest.NewBucketServer(t, fleetKey, 0)
	p := newPublisher(t)
	work := t.TempDir()
	meta := filepath.Join(work, "m.fl")
	p.mustRun(t, "pack", "-m", meta, "-s", filepath.Join(work, "private"), tinyTree(t, filepath.Join(work, "src"), 3))
	wrong := strings.Replace(e.S3, "://", "://OTHER:hunter2%2Fwith%2Bsigns@", 1)
	for what, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"another key":   {[]string{"--to", wrong, "--public", e.Web}, exitFailed, "AccessDenied"},
		"no web server": {[]string{"--to", e.S3, "--public", "http://127.0.0.1:1/hunter3", "--timeout", "1s"}, exitFindings, "connection refused"},
		// The bucket itself is private.
		"a private public bucket": {[]string{"--to", e.S3, "--public", e.S3}, exitFindings, "error: objects: s3://"},
		"a store of no kind":      {[]string{"--to", "ftp://u:hunter2@h/", "--public", e.Web}, exitFailed, `knows no scheme "ftp"`},
		"a secret to write with": {[]string{"--to", e.S3, "--public",
			strings.Replace(e.S3, "://", "://"+fleetKey+":hunter2%2Fwith%2Bsigns%40and%3Amore@", 1)}, exitFindings, "the URL has a password"},
		"a manifest of 0-db": {[]string{"--to", e.S3, "--public", e.Web, "--manifest-to", "http://u:hunter2@h/"}, exitFailed, "HTTP stores can only be read"},
	} {
		r := p.run(t.Context(), append([]string{"publish", "-m", meta}, c.args...)...)
		if r.code != c.code || !strings.Contains(r.stdout+r.stderr, c.want) {
			t.Errorf("%s: exit code %d, %s%s; want %d and %q", what, r.code, r.stdout, r.stderr, c.code, c.want)
		}
		for key := range e.Files() {
			if strings.HasSuffix(key, ".fl") {
				t.Errorf("%s: there is %s", what, key)
			}
		}
		if _, err := os.Stat(filepath.Join(work, "m-public.fl")); err == nil {
			t.Errorf("%s: there is a manifest", what)
		}
	}
	p.silent(t)
}

// TestPublish publishes from a directory, and from a private bucket that a tree was
// packed to, to what a web server serves of that bucket; and reads it with the S3
// server gone.
func TestPublish(t *testing.T) {
	testenv.FUSE(t)
	host, files, stop := startS3(t, fleetKey, fleetSecret)
	web := httptest.NewServer(http.FileServer(http.Dir(files)))
	t.Cleanup(web.Close)
	work := t.TempDir()
	t.Setenv("AWS_ACCESS_KEY_ID", fleetKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", fleetSecret)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(work, "cache"))
	src, key := filepath.Join(work, "src"), filepath.Join(work, "k")
	if err := os.CopyFS(src, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	overmount := func(args ...string) string {
		t.Helper()
		out := mustRun(t, "overmount", args...)
		said.WriteString(out)
		return out
	}
	bucket := "s3://" + host + "/flists/"
	overmount("key", "generate", "-s", key, "-p", key+".pub", "--no-password")
	for name, from := range map[string]string{"dir": "dir://" + filepath.Join(work, "private"), "s3": bucket + "s3"} {
		meta := filepath.Join(work, name+".fl")
		overmount("pack", "-m", meta, "-s", from, src)
		args := []string{"publish", "-m", meta, "--to", bucket + name, "--public", web.URL + "/" + name, "--sign", key, "--latest", "latest.fl", "--objects", "all", "--json"}
		first := lastJSON(t, overmount(args...))
		if fresh := first["new_objects"] != 0.0; fresh != (name == "dir") {
			t.Errorf("publish of what was packed to %s copies %v objects", name, first["new_objects"])
		}
		again := lastJSON(t, overmount(args...))
		if n, ok := again["requests"].(float64); !ok || n > 15 {
			t.Errorf("the second publish makes %v requests, want at most 15", again["requests"])
		}
		for _, leak := range []string{fleetKey, "hunter2", host, "private"} {
			if bytes.Contains(read(t, filepath.Join(work, name+"-public.fl")), []byte(leak)) {
				t.Errorf("the public manifest holds %q", leak)
			}
		}
	}
	stop()
	for _, name := range []string{"dir", "s3"} {
		at := web.URL + "/" + name + "/latest.fl"
		overmount("verify", "--objects", "all", "--pubkey", key+".pub", at)
		overmount("flist", "diff", at, at+".zst")
		target := filepath.Join(work, name+"-mnt")
		mountAt(t, target, "-m", at+".zst", "--pubkey", key+".pub")
		same(t, "mounted", manifestOf(t, src), manifestOf(t, target))
		out := filepath.Join(work, name+"-out")
		overmount("unpack", "-m", web.URL+"/"+name+"/"+name+".fl", "--pubkey", key+".pub", out)
		same(t, "unpacked", manifestOf(t, src), manifestOf(t, out))
	}
	if strings.Contains(said.String(), "hunter2") {
		t.Error("the output holds the secret")
	}
}

// What rfs could read has to be where rfs looks.
func TestPublishedLayouts(t *testing.T) {
	t.Parallel()
	e := storetest.NewBucketServer(t, fleetKey, 0)
	p := newPublisher(t)
	work := t.TempDir()
	src := tinyTree(t, filepath.Join(work, "src"), 3)
	for _, c := range []struct {
		codec, layout string
		code          int
		want          string
	}{
		{"snappy", "sharded", 0, "0 warnings"},
		{"zstd", "flat", 0, "their layout is flat"},
		{"snappy", "flat", 0, "warning: objects: http://127.0.0.1"},
		{"snappy", "sharded2", exitFindings, "does not look on web servers under the layout sharded2"},
		{"zstd", "sharded2", 0, "their layout is sharded2"},
	} {
		e.Reset(nil)
		meta, args := filepath.Join(work, c.codec+".fl"), []string{"--journal", "none", "--public", e.Web}
		p.mustRun(t, "pack", "-m", meta, "--codec", c.codec, "-s", filepath.Join(work, "private"), src)
		if c.layout == "sharded2" {
			p.mustRun(t, "publish", "-m", meta, "--to", e.S3, "--public", e.Web)
			files := map[string][]byte{}
			for key, data := range e.Files() {
				if shard, name, ok := strings.Cut(key, "/"); ok {
					files[shard+"/"+name[2:4]+"/"+name] = data
				}
			}
			e.Reset(files)
			args = append(args, "--to", filepath.Join(work, "elsewhere"), "--manifest-to", e.S3)
		} else {
			args = append(args, "--to", e.S3+"&layout="+c.layout)
		}
		r := p.run(t.Context(), append([]string{"publish", "-m", meta}, args...)...)
		if r.code != c.code || !strings.Contains(r.stdout, c.want) && c.want != "0 warnings" {
			t.Errorf("%s, %s: exit code %d, %s%s; want %d and %q", c.codec, c.layout, r.code, r.stdout, r.stderr, c.code, c.want)
		}
		if c.want == "0 warnings" && strings.Contains(r.stdout, "rfs") {
			t.Errorf("%s, %s: it says of rfs: %s", c.codec, c.layout, r.stdout)
		}
	}
}

// Objects go to a 0-db with a password and come from it without; the manifest needs
// another place.
func TestPublishToZDB(t *testing.T) {
	t.Parallel()
	e := storetest.NewBucketServer(t, fleetKey, 0)
	z := storetest.NewZDBServer(t, nil)
	z.Do("NSNEW", "flists")
	z.Do("NSSET", "flists", "password", "hunter2+zdb")
	z.Do("NSSET", "flists", "public", "1")
	public := z.URL + "/flists"
	private := strings.Replace(public, "://", "://:hunter2+zdb@", 1)
	p := newPublisher(t)
	work := t.TempDir()
	meta, out := filepath.Join(work, "m.fl"), filepath.Join(work, "m-public.fl")
	p.mustRun(t, "pack", "-m", meta, "-s", private, "--no-strip-password", tinyTree(t, filepath.Join(work, "src"), 3))
	args := []string{"publish", "-m", meta, "--to", private, "--public", public}
	if r := p.run(t.Context(), args...); r.code != exitFailed || !strings.Contains(r.stderr, "cannot have a manifest: say with --manifest-to") {
		t.Errorf("without --manifest-to: exit code %d, %s", r.code, r.stderr)
	}
	args = append(args, "--manifest-to", e.S3, "--manifest-public", e.Web)
	if got := p.mustRun(t, args...); !strings.Contains(got, "machines have to be able to read it without credentials") || !strings.Contains(got, "3: 0 new") {
		t.Errorf("publish says %s", got)
	}
	before := len(z.Requests())
	p.mustRun(t, args...)
	var commands []string
	for _, r := range z.Requests()[before:] {
		commands = append(commands, r[0])
	}
	if n := len(slices.DeleteFunc(commands, func(c string) bool { return c != "GET" })); n != fewAgain {
		t.Errorf("the second publish gets %d objects, want %d", n, fewAgain)
	}
	p.silent(t, out)
	p.mustRun(t, "unpack", "-m", e.Web+"/m.fl", filepath.Join(work, "out"))
}

// One --journal serves for several stores.
func TestPublishJournalOfSeveralStores(t *testing.T) {
	t.Parallel()
	e := storetest.NewBucketServer(t, fleetKey, 0)
	p := newPublisher(t)
	work := t.TempDir()
	meta, journal := filepath.Join(work, "m.fl"), filepath.Join(work, "notes/journal")
	p.mustRun(t, "pack", "-m", meta, "-s", filepath.Join(work, "private"), tinyTree(t, filepath.Join(work, "src"), 30))
	a, b := strings.Replace(e.S3, "bucket", "bucket/a", 1), strings.Replace(e.S3, "bucket", "bucket/b", 1)
	args := []string{"publish", "-m", meta, "--to", a, "--to", "00-7f=" + b, "--to", "80-ff=" + b, "--public", e.Web + "/a", "--public", e.Web + "/b", "--journal", journal}
	p.mustRun(t, args...)
	for _, again := range []string{"at once", "after --recheck"} {
		e.Requests()
		p.mustRun(t, args...)
		if asked := e.Requests(); len(asked) > 15 || slices.ContainsFunc(asked, func(r string) bool { return strings.HasPrefix(r, "HEAD") }) {
			t.Errorf("%s, publish to two stores makes %d requests, want at most 15, none of them HEAD: %q", again, len(asked), asked)
		}
		p.mustRun(t, append(args, "--recheck")...)
	}
	if files, err := filepath.Glob(filepath.Join(p.env["XDG_CACHE_HOME"], "overmount/publish/*")); len(files) > 0 || err != nil {
		t.Errorf("with --journal there are %q, %v", files, err)
	}
	write(t, journal, []byte("something else"))
	if r := p.run(t.Context(), args...); r.code != 0 || !strings.Contains(r.stderr, "warning: what is found to be there is not noted: journal ") {
		t.Errorf("with a journal that is none: exit code %d, %s; want a warning", r.code, r.stderr)
	}
	if got := string(read(t, journal)); got != "something else" {
		t.Errorf("the file that is no journal has become %q", got)
	}
}

// Two publishes of one manifest are the same bytes.
func TestPublishIsReproducible(t *testing.T) {
	t.Parallel()
	e := storetest.NewBucketServer(t, fleetKey, 0)
	p := newPublisher(t)
	work := t.TempDir()
	meta := filepath.Join(work, "m.fl")
	p.mustRun(t, "pack", "-m", meta, "-s", filepath.Join(work, "private"), tinyTree(t, filepath.Join(work, "src"), 3))
	var outs [][]byte
	for _, name := range []string{"a.fl", "b.fl"} {
		out := filepath.Join(work, name)
		p.mustRun(t, "publish", "-m", meta, "--to", e.S3, "--public", e.Web, "-o", out)
		outs = append(outs, read(t, out))
		info, err := os.Stat(out)
		if err != nil || info.Mode() != fs.FileMode(0o644) {
			t.Errorf("the mode of %s is %v, %v, want 0644", name, info.Mode(), err)
		}
		m, err := manifest.Open(t.Context(), out)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Routes(); len(got) != 1 || got[0].URL != e.Web {
			t.Errorf("routes of %s: %v, want %s", name, got, e.Web)
		}
	}
	if !bytes.Equal(outs[0], outs[1]) {
		t.Error("two publishes of one manifest differ")
	}
}
