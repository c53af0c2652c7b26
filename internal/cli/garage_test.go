package cli

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
)

// garageConfig is a Garage of one node. A bucket's website has the bucket's name
// as host, so that of a bucket "localhost" needs no DNS.
const garageConfig = `
metadata_dir = "%[1]s/meta"
data_dir = "%[1]s/data"
db_engine = "sqlite"
replication_factor = 1
compression_level = "none"
rpc_bind_addr = "%[2]s"
rpc_public_addr = "%[2]s"
rpc_secret = "6f7665726d6f756e74206f7665726d6f756e74206f7665726d6f756e74206f76"

[s3_api]
s3_region = "rack-7"
api_bind_addr = "%[3]s"
root_domain = ".s3.example.com"

[s3_web]
bind_addr = "%[4]s"
root_domain = ".web.example.com"
`

// A garage is a Garage with a private bucket, a key that may read and write it,
// and a public website of it.
type garage struct {
	program, config string

	store      string // the bucket, as a STORE
	web        string // the URL of its website
	id, secret string // of the key
}

const garageBucket = "localhost"

func startGarage(t *testing.T) *garage {
	t.Helper()
	g := &garage{program: testenv.Garage(t)}
	dir := t.TempDir()
	rpc, s3, web := testenv.Address(t), testenv.Address(t), testenv.Address(t)
	_, port, err := net.SplitHostPort(web)
	if err != nil {
		t.Fatal(err)
	}
	g.store, g.web = "s3://"+s3+"/"+garageBucket, "http://localhost:"+port
	g.config = filepath.Join(dir, "garage.toml")
	if err := os.WriteFile(g.config, fmt.Appendf(nil, garageConfig, dir, rpc, s3, web), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(g.program, "-c", g.config, "server")
	cmd.Env = append(os.Environ(), "RUST_LOG=warn")
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("garage: %v", err)
		}
	})
	for end := time.Now().Add(limit); run(t, g.program, "-c", g.config, "status").code != 0; time.Sleep(20 * time.Millisecond) { // it has no way to say that it is ready
		if time.Now().After(end) {
			t.Fatal("Garage does not answer")
		}
	}
	node, _, _ := strings.Cut(g.run(t, "node", "id", "-q"), "@")
	g.run(t, "layout", "assign", "-z", "rack", "-c", "1G", node)
	g.run(t, "layout", "apply", "--version", "1")
	g.run(t, "bucket", "create", garageBucket)
	key := g.run(t, "key", "create", "builder")
	g.id, g.secret = field(t, key, "Key ID:"), field(t, key, "Secret key:")
	g.run(t, "bucket", "allow", "--read", "--write", garageBucket, "--key", "builder")
	g.run(t, "bucket", "website", "--allow", garageBucket)
	return g
}

func (g *garage) run(t *testing.T, args ...string) string {
	t.Helper()
	return mustRun(t, g.program, append([]string{"-c", g.config}, args...)...)
}

// field returns what stands behind a name in a table.
func field(t *testing.T, table, name string) string {
	t.Helper()
	for line := range strings.Lines(table) {
		if value, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("there is no %q in %q", name, table)
	return ""
}

// kernelPart copies some modules of a real kernel, for what need not be large.
func kernelPart(t *testing.T) string {
	t.Helper()
	src := testenv.Kernel(t)
	dir := filepath.Join(t.TempDir(), "lib/modules", filepath.Base(src))
	for _, part := range []string{"kernel/lib", "kernel/crypto", "kernel/block"} {
		if err := os.CopyFS(filepath.Join(dir, part), os.DirFS(filepath.Join(src, part))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		data, err := os.ReadFile(filepath.Join(src, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "overmount", "depmod", "-b", strings.TrimSuffix(dir, "/lib/modules/"+filepath.Base(src)), filepath.Base(src))
	return dir
}

// TestGarage packs a kernel's modules to a private bucket. Each way to let the
// manifest name the bucket's website ends in a mount of it, with the key deleted.
func TestGarage(t *testing.T) {
	g := startGarage(t)
	testenv.FUSE(t)
	src := kernelPart(t)
	t.Setenv("AWS_ACCESS_KEY_ID", g.id)
	t.Setenv("AWS_SECRET_ACCESS_KEY", g.secret)
	t.Setenv("AWS_REGION", "rack-7")
	work := t.TempDir()
	var said strings.Builder
	overmount := func(args ...string) string {
		r := run(t, "overmount", args...)
		said.WriteString(r.stdout + r.stderr)
		if r.code != 0 {
			t.Fatalf("overmount %q: exit code %d: %s%s", args, r.code, r.stdout, r.stderr)
		}
		return r.stdout
	}
	packed := filepath.Join(work, "packed.fl")
	overmount("pack", "-m", packed, "-s", g.store+"/blobs", "--kind", "modules", src)
	if out := overmount("pack", "-m", packed, "-s", g.store+"/blobs", "--kind", "modules", src); !strings.Contains(out, " 0 new") {
		t.Errorf("the second pack says %q, want that all objects were known", out)
	}
	overmount("verify", "--objects", "all", packed)
	g.refuses(t, src, &said)

	public := g.web + "/blobs"
	ways := map[string]string{}
	for _, way := range []string{"edit-store", "sqlite3", "publish"} {
		ways[way] = filepath.Join(work, way+".fl")
	}
	overmount("flist", "edit-store", "-m", packed, "-o", ways["edit-store"], "--replace", g.store+"/blobs="+public)
	data, err := os.ReadFile(packed)
	if err == nil {
		err = os.WriteFile(ways["sqlite3"], data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, testenv.Tool(t, "sqlite3"), ways["sqlite3"], "UPDATE stores SET uri='"+public+"' WHERE uri LIKE 's3://%';")
	local := filepath.Join(work, "local.fl")
	overmount("pack", "-m", local, "-s", filepath.Join(work, "objects"), "--kind", "modules", src)
	overmount("publish", "-m", local, "--to", g.store+"/published", "--public", g.web+"/published",
		"--manifest-to", g.store+"/flists", "--latest", "modules-latest.fl", "-o", ways["publish"])

	g.run(t, "key", "delete", "--yes", "builder")
	if r := run(t, "overmount", "pack", "-m", packed+".2", "-s", g.store, src); r.code != 1 || !strings.Contains(r.stderr, "does not know the key id") {
		t.Errorf("pack with a deleted key: exit code %d, %q", r.code, r.stderr)
	}
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} {
		t.Setenv(name, "")
	}
	ways["latest"] = g.web + "/flists/modules-latest.fl"
	want := manifestOf(t, src)
	for way, meta := range ways {
		t.Run(way, func(t *testing.T) {
			if out := overmount("verify", "--objects", "all", "--mount", meta); !strings.Contains(out, "info: mount: mounted") {
				t.Errorf("verify says %q, want that the mount was tested", out)
			}
			target := filepath.Join(work, "mnt-"+way)
			mountAt(t, target, "-m", meta, "-c", "none")
			same(t, "mounted", want, manifestOf(t, target))
		})
		if data, err := os.ReadFile(meta); err == nil && (strings.Contains(string(data), g.secret) || strings.Contains(string(data), g.id)) {
			t.Errorf("%s holds the key or its secret", meta)
		}
	}
	if strings.Contains(said.String(), g.secret) {
		t.Error("the output holds the secret")
	}
}

// refuses checks what is said of wrong keys, regions and buckets, and that the
// bucket is private.
func (g *garage) refuses(t *testing.T, src string, said *strings.Builder) {
	t.Helper()
	for _, c := range []struct{ env, value, store, want string }{
		{"AWS_SECRET_ACCESS_KEY", "wrong", g.store, "the secret key is wrong"},
		{"AWS_ACCESS_KEY_ID", "GK0123456789abcdef01234567", g.store, "does not know the key id"},
		{"AWS_REGION", "us-east-1", g.store, "rack-7"},
		{"AWS_REGION", "rack-7", strings.TrimSuffix(g.store, garageBucket) + "none", `there is no bucket "none"`},
	} {
		good := os.Getenv(c.env)
		t.Setenv(c.env, c.value)
		meta := filepath.Join(t.TempDir(), "x.fl")
		r := run(t, "overmount", "pack", "-m", meta, "-s", c.store, src)
		t.Setenv(c.env, good)
		said.WriteString(r.stderr)
		if r.code != 1 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("pack to %s with %s=%s: exit code %d, %q, want it to say %q", c.store, c.env, c.value, r.code, r.stderr, c.want)
		}
		if _, err := os.Stat(meta); !os.IsNotExist(err) {
			t.Errorf("a pack that failed left %s, %v", meta, err)
		}
	}
	resp, err := http.Get("http" + strings.TrimPrefix(g.store, "s3") + "?list-type=2")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("without a key, the bucket's list is answered with %s, want 403", resp.Status)
	}
}
