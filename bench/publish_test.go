package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"overmount/store"
	"overmount/store/storetest"
)

// publishFiles is how many files, each an object of its own, are published.
const publishFiles = 2000

// BenchmarkPublish publishes a tree of small files from a directory to a bucket in
// memory, and checks a sample of 64 from outside. The server thinks for a time about
// each request, as a network would. The baseline puts the same objects by plain
// requests, 32 at a time as publish does, and checks nothing. A round at 30 ms takes
// seconds, so there are as many rounds as -benchtime makes.
func BenchmarkPublish(b *testing.B) { forDelays(b, benchPublish) }

// BenchmarkRepublish publishes it again, without a change. The goal is 15 requests.
func BenchmarkRepublish(b *testing.B) { forDelays(b, benchRepublish) }

func forDelays(b *testing.B, bench func(*testing.B, *publishing)) {
	needs(b, "go")
	p := &publishing{program: program(b), dir: b.TempDir()}
	p.pack(b)
	for _, delay := range []time.Duration{0, 30 * time.Millisecond} {
		b.Run(fmt.Sprintf("delay=%v", delay), func(b *testing.B) {
			p := *p
			p.server = storetest.NewBucketServer(b, "KEY", delay)
			bench(b, &p)
		})
	}
}

// publishing is a tree that is packed, and where it is published.
type publishing struct {
	program, dir string
	server       *storetest.BucketServer
}

func (p *publishing) pack(b *testing.B) {
	src := mkdir(b, p.dir, "src")
	for i := range publishFiles {
		data := bytes.Repeat(fmt.Appendf(nil, "file %d ", i), 500)
		if err := os.WriteFile(filepath.Join(src, fmt.Sprint(i)), data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	run(b, exec.Command(p.program, "pack", "-m", filepath.Join(p.dir, "m.fl"), "-s", filepath.Join(p.dir, "objects"), src))
}

// publish publishes once, and returns the milliseconds that it took and the requests
// that the server has seen.
func (p *publishing) publish(b *testing.B, cache string) []float64 {
	b.Helper()
	p.server.Requests()
	cmd := exec.Command(p.program, "publish", "-m", filepath.Join(p.dir, "m.fl"), "--to", p.server.S3, "--public", p.server.Web, "--json")
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=KEY", "AWS_SECRET_ACCESS_KEY=SECRET", "XDG_CACHE_HOME="+cache)
	var out []byte
	took := timed(b, func() (err error) {
		out, err = cmd.Output()
		return err
	})
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var result struct{ Objects int }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &result); err != nil || result.Objects != publishFiles {
		b.Fatalf("publish of %d objects, %v, want %d", result.Objects, err, publishFiles)
	}
	return append(took, float64(len(p.server.Requests())))
}

// put makes the plain requests.
func (p *publishing) put(b *testing.B, objects map[string][]byte) []float64 {
	transport := &http.Transport{MaxConnsPerHost: 32, MaxIdleConnsPerHost: 32}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	bucket, _, _ := strings.Cut(strings.Replace(p.server.S3, "s3", "http", 1), "?")
	return timed(b, func() error {
		var g errgroup.Group
		g.SetLimit(32)
		for key, object := range objects {
			g.Go(func() error {
				req, err := http.NewRequest(http.MethodPut, bucket+"/"+key, bytes.NewReader(object))
				if err != nil {
					return err
				}
				req.Header.Set("Authorization", "Credential=KEY/")
				resp, err := client.Do(req)
				if err == nil && resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("the server answers %s", resp.Status)
				}
				if err != nil {
					return err
				}
				return resp.Body.Close()
			})
		}
		return g.Wait()
	})
}

// objects returns what is in the store by the key in a bucket.
func (p *publishing) objects(b *testing.B) map[string][]byte {
	dir := store.NewDir(filepath.Join(p.dir, "objects"))
	objects := map[string][]byte{}
	for e, err := range dir.List(b.Context()) {
		if err != nil {
			b.Fatal(err)
		}
		object, err := dir.Get(b.Context(), e.ID)
		if err != nil {
			b.Fatal(err)
		}
		objects[store.Sharded.Key(e.ID)] = object
	}
	return objects
}

func benchPublish(b *testing.B, p *publishing) {
	objects := p.objects(b)
	var ours, baseline [][]float64
	for b.Loop() {
		p.server.Reset(nil)
		baseline = append(baseline, p.put(b, objects))
		p.server.Reset(nil)
		ours = append(ours, p.publish(b, b.TempDir()))
	}
	b.ReportMetric(0, "ns/op") // of both together: it says nothing
	our, base := medians(ours), medians(baseline)
	report(b, our[0], base[0], "ms")
	b.ReportMetric(our[1], "requests")
}

func benchRepublish(b *testing.B, p *publishing) {
	cache := b.TempDir()
	p.publish(b, cache)
	var ours [][]float64
	for b.Loop() {
		ours = append(ours, p.publish(b, cache))
	}
	b.ReportMetric(0, "ns/op") // as above
	our := medians(ours)
	b.ReportMetric(our[0], "ms")
	b.ReportMetric(our[1], "requests")
	if most := slices.MaxFunc(ours, func(a, b []float64) int { return int(a[1] - b[1]) }); most[1] > 15 {
		b.Errorf("publish of what is published makes %v requests, want at most 15", most[1])
	}
}
