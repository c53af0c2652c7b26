package s3store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store"
	"overmount/store/s3store"
	"overmount/store/storetest"
)

// preflights are what users get wrong, and the sentence that tells it. host is
// the server's, with the bucket of that name in the region rack-7.
func preflights(host string) map[string]struct{ url, want string } {
	user := func(id, secret string) string { return "s3://" + url.UserPassword(id, secret).String() + "@" + host }
	return map[string]struct{ url, want string }{
		"wrong key id":   {user("GKwrong", secret) + "/" + bucket, "the server does not know the key id"},
		"wrong secret":   {user(keyID, "wrong"+token) + "/" + bucket, "the secret key is wrong"},
		"wrong region":   {user(keyID, secret) + "/" + bucket + "?region=mars", `region "mars"`},
		"missing bucket": {user(keyID, secret) + "/other.test", `there is no bucket "other.test"`},
		"no credentials": {"s3://" + host + "/" + bucket, "this needs credentials, and there are none"},
	}
}

func TestPreflight(t *testing.T) {
	for name, o := range map[string]fakeOptions{"AWS": {region: "rack-7"}, "Garage": {region: "rack-7", garage: true}} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, o)
			if err := open(t, f.with(keyID, secret), nil).Preflight(t.Context()); err != nil {
				t.Errorf("Preflight = %v", err)
			}
			if err := open(t, f.with(keyID, secret)+"/a/prefix?region=rack-7", nil).Preflight(t.Context()); err != nil {
				t.Errorf("Preflight with prefix and region = %v", err)
			}
			for name, c := range preflights(f.server.Listener.Addr().String()) {
				want := c.want
				if name == "wrong region" {
					want = `the server's region is "rack-7", and the request is signed for "mars": give region=rack-7`
				}
				wantRefusal(t, name, open(t, c.url, nil).Preflight(t.Context()), want)
			}
		})
	}
}

func wantRefusal(t *testing.T, what string, err error, want string) {
	t.Helper()
	if !errors.Is(err, store.ErrForbidden) || store.Temporary(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("Preflight, %s = %v, want ErrForbidden, and that %s", what, err, want)
	}
	if !strings.Contains(fmt.Sprint(err), "LIST s3") || !strings.Contains(fmt.Sprint(err), "status ") {
		t.Errorf("Preflight, %s = %v, want an error that names URL and status", what, err)
	}
	wantNoSecret(t, what, fmt.Sprint(err))
}

func TestPreflightRights(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1", noList: true})
	if err := open(t, f.with(keyID, secret), nil).Preflight(t.Context()); err != nil {
		t.Errorf("Preflight where the bucket shows itself, but does not list = %v", err)
	}
	f = newFake(t, fakeOptions{region: "us-east-1", noList: true, hides: true})
	wantRefusal(t, "no right to list", open(t, f.with(keyID, secret), nil).Preflight(t.Context()), "the key has no right to list the bucket")
	f = newFake(t, fakeOptions{region: "us-east-1", noWrite: true})
	s := open(t, f.with(keyID, secret), nil)
	if err := s.Preflight(t.Context()); err != nil {
		t.Errorf("Preflight of a key that may read = %v", err)
	}
	id, bytes := object(0)
	if _, err := s.Put(t.Context(), id, bytes); !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "the key has no right to write") {
		t.Errorf("Put with a key that may read = %v, want ErrForbidden", err)
	}
}

func TestPreflightClock(t *testing.T) {
	clock := regexp.MustCompile(`this machine's clock is (\S+) (behind|ahead of) the server's`)
	for _, garage := range []bool{false, true} {
		for ahead, want := range map[time.Duration]string{3 * time.Hour: "behind", -3 * time.Hour: "ahead of"} {
			f := newFake(t, fakeOptions{region: "us-east-1", garage: garage, ahead: ahead})
			err := open(t, f.with(keyID, secret), nil).Preflight(t.Context())
			wantRefusal(t, fmt.Sprintf("server ahead by %v", ahead), err, want+" the server's")
			// A date has whole seconds, and was sent some time ago.
			said := clock.FindStringSubmatch(fmt.Sprint(err))
			if said == nil {
				t.Fatalf("Preflight of a server ahead by %v = %v, want it to tell by how much", ahead, err)
			}
			if d, err := time.ParseDuration(said[1]); err != nil || (d-3*time.Hour).Abs() > time.Minute {
				t.Errorf("a clock that differs by 3h is told to differ by %s, %v", said[1], err)
			}
		}
	}
}

// What is at the address is no S3 server, or speaks the other scheme.
func TestPreflightNoS3(t *testing.T) {
	f := newFake(t, fakeOptions{})
	s := open(t, f.with(keyID, secret), nil)
	for _, fault := range []storetest.HTTPFault{storetest.Status(404), storetest.Status(403), storetest.Status(400)} {
		f.Next(fault)
		wantRefusal(t, "a website", s.Preflight(t.Context()), "does not speak S3")
	}
	f.Next(storetest.HTMLPage())
	if err := s.Preflight(t.Context()); !strings.Contains(fmt.Sprint(err), "does not speak S3") {
		t.Errorf("Preflight of a website = %v, want an error that says so", err)
	}
	tls := newFake(t, fakeOptions{tls: true})
	wantRefusal(t, "s3 to a TLS port", open(t, strings.Replace(tls.with(keyID, secret), "s3s:", "s3:", 1), nil).Preflight(t.Context()), "s3s:// instead of s3://")
	err := open(t, strings.Replace(f.with(keyID, secret), "s3:", "s3s:", 1), nil).Preflight(t.Context())
	if !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "s3:// instead of s3s://") {
		t.Errorf("Preflight, s3s to a plain port = %v, want ErrForbidden and a hint", err)
	}
	err = open(t, tls.with(keyID, secret), nil).Preflight(t.Context())
	if !strings.Contains(fmt.Sprint(err), "certificate") {
		t.Errorf("Preflight of a server with an unknown authority = %v, want an error that says so", err)
	}
}

// A gateway is a running versitygw with our bucket, in the region rack-7.
type gateway struct{ host, dir string }

func startGateway(t *testing.T) gateway {
	t.Helper()
	program := testenv.Program(t, "OVERMOUNT_TEST_VERSITYGW", "scripts/versitygw builds one")
	g := gateway{host: testenv.Address(t), dir: t.TempDir()}
	for _, dir := range []string{"files/" + bucket, "attributes"} {
		if err := os.MkdirAll(filepath.Join(g.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "--port", g.host, "--region", "rack-7", "--keep-alive", "--quiet", "--health", "/health",
		"posix", "--sidecar", filepath.Join(g.dir, "attributes"), filepath.Join(g.dir, "files"))
	cmd.Env = []string{"ROOT_ACCESS_KEY=" + keyID, "ROOT_SECRET_KEY=" + secret}
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !healthy(ctx, g.host) {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("versitygw ended: %v", err)
		case <-ctx.Done():
			t.Fatal("versitygw does not answer")
		case <-time.After(20 * time.Millisecond): // it has no way to say that it is ready
		}
	}
	return g
}

func healthy(ctx context.Context, host string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/health", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode == http.StatusOK
}

func (g gateway) url(suffix string) string {
	return "s3://" + url.UserPassword(keyID, secret).String() + "@" + g.host + "/" + bucket + suffix
}

// A server that others wrote.
func TestVersitygw(t *testing.T) {
	g := startGateway(t)
	t.Run("Suite", func(t *testing.T) {
		n := 0
		for _, layout := range []string{"sharded", "flat"} {
			t.Run(layout, func(t *testing.T) {
				storetest.Run(t, func(t *testing.T) storetest.Subject {
					n++
					s := open(t, g.url(fmt.Sprintf("/suite/%d b+c~ü&=$?region=rack-7&layout=%s", n, layout)), nil)
					return storetest.Subject{Reader: s, Writer: s, Checks: true}
				})
			})
		}
	})
	t.Run("Preflight", func(t *testing.T) {
		if err := open(t, g.url(""), &s3store.Options{Region: "rack-7"}).Preflight(t.Context()); err != nil {
			t.Errorf("Preflight = %v", err)
		}
		for name, c := range preflights(g.host) {
			o := &s3store.Options{Region: "rack-7"}
			if name == "wrong region" {
				c.want = `the server's region is "rack-7", and the request is signed for "mars": give region=rack-7`
			}
			wantRefusal(t, name, open(t, c.url, o).Preflight(t.Context()), c.want)
		}
	})
	t.Run("Region", func(t *testing.T) {
		if err := open(t, g.url(""), nil).Preflight(t.Context()); err != nil {
			t.Errorf("Preflight without a region = %v, want it to be learned", err)
		}
	})
	t.Run("Files", g.testFiles)
	t.Run("ListLearnDelete", g.testListLearnDelete)
}

func (g gateway) testFiles(t *testing.T) {
	s := open(t, g.url("/files?region=rack-7"), nil)
	const content = "a manifest"
	for range 2 {
		if err := s.PutFile(t.Context(), "a b/modules+ü.fl", strings.NewReader(content), int64(len(content)), nil); err != nil {
			t.Fatalf("PutFile = %v", err)
		}
	}
	if got, err := s.GetFile(t.Context(), "a b/modules+ü.fl", 100); err != nil || string(got) != content {
		t.Errorf("GetFile = %q, %v, want %q", got, err, content)
	}
	// What a web server beside it would give.
	if got, err := os.ReadFile(filepath.Join(g.dir, "files", bucket, "files/a b/modules+ü.fl")); err != nil || string(got) != content {
		t.Errorf("the file behind the server has %q, %v, want %q", got, err, content)
	}
	if _, err := s.GetFile(t.Context(), "missing", 100); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("GetFile of a missing file = %v, want ErrNotFound", err)
	}
}

// More objects than one page of the list has.
func (g gateway) testListLearnDelete(t *testing.T) {
	const objects = 1100
	s := open(t, g.url("/many, &+ü?region=rack-7"), nil)
	ids := map[block.ID]bool{}
	if all, err := s.Learn(t.Context(), 1); !all || err != nil {
		t.Fatalf("Learn of nothing = %v, %v, want all", all, err)
	}
	for i := range objects {
		id, bytes := storetest.Object(uint64(i), 1+i)
		if stored, err := s.Put(t.Context(), id, bytes); !stored || err != nil {
			t.Fatalf("Put = %v, %v, want it stored", stored, err)
		}
		ids[id] = true
	}
	n := 0
	for e, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("List = %v", err)
		}
		if age := time.Since(e.Modified); !ids[e.ID] || e.Layout != store.Sharded || age.Abs() > 10*time.Minute {
			t.Fatalf("List yields %+v, which was not put", e)
		}
		n++
	}
	if n != objects {
		t.Errorf("List yields %d objects, want %d", n, objects)
	}
	if all, err := s.Learn(t.Context(), 1000); all || err != nil {
		t.Errorf("Learn of at most 1000 keys = %v, %v, want not all", all, err)
	}
	id, object := storetest.Object(5, 6)
	if has, err := s.Has(t.Context(), id); !has || err != nil {
		t.Errorf("Has = %v, %v, want true", has, err)
	}
	for range 2 {
		if err := s.Delete(t.Context(), id); err != nil {
			t.Errorf("Delete = %v", err)
		}
	}
	if has, err := s.Has(t.Context(), id); has || err != nil {
		t.Errorf("Has after Delete = %v, %v, want false", has, err)
	}
	if stored, err := s.Put(t.Context(), id, object); !stored || err != nil {
		t.Errorf("Put after Delete = %v, %v, want it stored", stored, err)
	}
}
