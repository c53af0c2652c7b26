package cli

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"overmount/internal/testenv"
)

// startS3 starts a private S3 server with one bucket, and returns its address, the
// directory that holds the bucket's files, and what ends it.
func startS3(t *testing.T, key, secret string) (host, files string, stop func()) {
	t.Helper()
	program := testenv.Program(t, "OVERMOUNT_TEST_VERSITYGW", "scripts/versitygw builds one")
	host = testenv.Address(t)
	dir := t.TempDir()
	files = filepath.Join(dir, "files/flists")
	for _, d := range []string{files, filepath.Join(dir, "attributes")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "--port", host, "--region", "rack-7", "--quiet", "--health", "/health",
		"posix", "--sidecar", filepath.Join(dir, "attributes"), filepath.Join(dir, "files"))
	cmd.Env = []string{"ROOT_ACCESS_KEY=" + key, "ROOT_SECRET_KEY=" + secret}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(stop)
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) { // it has no way to say that it is ready
		if resp, err := http.Get("http://" + host + "/health"); err == nil {
			resp.Body.Close()
			return host, files, stop
		}
		if time.Now().After(end) {
			t.Fatal("the S3 server does not answer")
		}
	}
}

// TestPrivateBucketPublicWeb packs to a private bucket, lets the manifest name an
// nginx that serves the same objects, and reads from there with the S3 server
// gone. The secret is nowhere.
func TestPrivateBucketPublicWeb(t *testing.T) {
	testenv.FUSE(t)
	const key, secret = "AKFLEET", "hunter2/with+signs@and:more"
	host, files, stop := startS3(t, key, secret)
	t.Setenv("AWS_ACCESS_KEY_ID", key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	work := t.TempDir()
	src, meta := filepath.Join(work, "src"), filepath.Join(work, "x.fl")
	if err := os.CopyFS(src, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	bucket := "s3://" + host + "/flists/blobs"
	var said strings.Builder
	overmount := func(args ...string) string {
		out := mustRun(t, "overmount", args...)
		said.WriteString(out)
		return out
	}
	if out := overmount("pack", "-m", meta, "-s", bucket, src); !strings.Contains(out, " 0 known") {
		t.Errorf("pack says %q, want that no object was known", out)
	}
	if out := overmount("pack", "-m", meta, "-s", bucket, src); !strings.Contains(out, " 0 new") {
		t.Errorf("the second pack says %q, want that all objects were known", out)
	}
	overmount("verify", "--objects", "all", meta)
	for name, env := range map[string]string{"secret key is wrong": "AWS_SECRET_ACCESS_KEY", "does not know the key id": "AWS_ACCESS_KEY_ID"} {
		good := os.Getenv(env)
		t.Setenv(env, "wrong")
		r := run(t, "overmount", "pack", "-m", meta+".2", "-s", bucket, src)
		t.Setenv(env, good)
		said.WriteString(r.stderr)
		if r.code != 1 || !strings.Contains(r.stderr, name) {
			t.Errorf("pack with a wrong %s: exit code %d, %q, want it to say %q", env, r.code, r.stderr, name)
		}
	}
	r := run(t, "overmount", "pack", "-m", meta+".2", "-s", fmt.Sprintf("s3://%s:%s@%s/none", key, "hunter2%2Fwith+signs%40and:more", host), src)
	said.WriteString(r.stderr)
	if r.code != 1 || !strings.Contains(r.stderr, `there is no bucket "none"`) {
		t.Errorf("pack to a bucket that is not there: exit code %d, %q", r.code, r.stderr)
	}

	// Nobody may read the bucket itself, and that others may not is told.
	if out := overmount("verify", "--objects", "none", "--mount", meta); !strings.Contains(out, "warning: mount: "+bucket+": it may have been read with the S3 credentials") {
		t.Errorf("verify --mount of a manifest that names the bucket says %q, want a warning of the credentials", out)
	}
	resp, err := http.Get("http://" + host + "/flists?list-type=2")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("without a key, the bucket's list is answered with %s, want 403", resp.Status)
	}

	web := startNginx(t, files)
	overmount("flist", "edit-store", "-m", meta, "--replace", bucket+"="+web+"/blobs")
	stop()
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	if out := overmount("verify", "--objects", "all", "--mount", meta); !strings.Contains(out, "info: mount: mounted") {
		t.Errorf("verify says %q, want that the mount was tested", out)
	}
	target := filepath.Join(work, "mnt")
	mountAt(t, target, "-m", meta)
	same(t, "mounted", manifestOf(t, src), manifestOf(t, target))

	data, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"manifest": string(data), "output": said.String()} {
		if strings.Contains(text, "hunter2") || where == "manifest" && strings.Contains(text, key) {
			t.Errorf("the %s holds the secret", where)
		}
	}
	err = filepath.WalkDir(work, func(name string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(name, ".fl.2") {
			t.Errorf("a pack that failed left %s", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKernelThroughS3 takes a kernel's modules the whole way: packed straight to a
// private bucket, published, every object checked from outside, and used from the
// public web server with the S3 server gone.
func TestKernelThroughS3(t *testing.T) {
	testenv.FUSE(t)
	dir := kernelTree(t)
	modprobe := testenv.Tool(t, "modprobe")
	const key, secret = "AKFLEET", "hunter2/with+signs@and:more"
	host, files, stop := startS3(t, key, secret)
	t.Setenv("AWS_ACCESS_KEY_ID", key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	work := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", filepath.Join(work, "cache"))
	meta, bucket, web := filepath.Join(work, "modules.fl"), "s3://"+host+"/flists/blobs", startNginx(t, files)+"/blobs"
	mustRun(t, "overmount", "pack", "-m", meta, "-s", bucket, "--kind", "modules", dir)
	publish := []string{"publish", "-m", meta, "--to", bucket, "--public", web, "--latest", "modules-latest.fl", "--json"}
	if r := lastJSON(t, mustRun(t, "overmount", publish...)); r["new_objects"] != 0.0 {
		t.Errorf("publish of what the bucket has copies %v objects", r["new_objects"])
	}
	again := lastJSON(t, mustRun(t, "overmount", publish...))
	if n, ok := again["requests"].(float64); !ok || n > 15 {
		t.Errorf("publishing it again makes %v requests, want at most 15", again["requests"])
	}
	stop()
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	latest := web + "/modules-latest.fl"
	mustRun(t, "overmount", "verify", "--objects", "all", "--mount", latest)

	kver := filepath.Base(dir)
	target := filepath.Join(work, "root/lib/modules", kver)
	mountAt(t, target, "-m", latest, "-c", "none")
	want := mustRun(t, modprobe, "-n", "-v", "-a", "-d", filepath.Dir(filepath.Dir(filepath.Dir(dir))), "-S", kver, "e1000e", "xfs", "kvm_intel")
	got := mustRun(t, modprobe, "-n", "-v", "-a", "-d", filepath.Join(work, "root"), "-S", kver, "e1000e", "xfs", "kvm_intel")
	if got = strings.ReplaceAll(got, filepath.Join(work, "root"), filepath.Dir(filepath.Dir(filepath.Dir(dir)))); got != want {
		t.Errorf("modprobe on the mount would do %q, want %q", got, want)
	}
	for line := range strings.Lines(want) {
		file := strings.TrimPrefix(strings.Fields(line)[1], dir)
		if !bytes.Equal(read(t, filepath.Join(target, file)), read(t, filepath.Join(dir, file))) {
			t.Errorf("%s has other bytes on the mount", file)
		}
	}
}
