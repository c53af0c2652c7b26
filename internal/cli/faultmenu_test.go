package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

// What can go wrong between a mount and a store, and what the log says of it; empty
// is any reason.
var menu = []struct {
	name   string
	bring  func(*testing.T, *kitchen, *way)
	reason string
}{
	{"refuse", onTheWay(storetest.ProxyFault{Refuse: true}), "connection refused"},
	{"black hole", onTheWay(storetest.ProxyFault{Swallow: true}), ""},
	{"hang", onTheWay(storetest.ProxyFault{Hang: true}), ""},
	{"1 KiB a second", onTheWay(storetest.ProxyFault{Rate: 1 << 10}), ""},
	{"reset in mid-body", onTheWay(storetest.ProxyFault{ResetAfter: 100_000}), "connection reset"},
	{"cut in mid-body", answering(storetest.ShortBody()), "unexpected EOF"},
	{"short body", answering(storetest.TruncatedBody()), "do not have its ID"},
	{"empty body", answering(storetest.Body("application/octet-stream", "")), ""},
	{"wrong bytes", answering(storetest.SpoiledBody()), "do not have its ID"},
	{"web page", answering(storetest.HTMLPage()), "web page"},
	{"403", answering(storetest.Status(403)), "forbids reading"},
	{"404", answering(storetest.Status(404)), "404"},
	{"500", answering(storetest.Status(500)), "status 500"},
	{"503", answering(storetest.Status(503, "Retry-After", "1")), "status 503"},
	{"flapping", answering(flapping()), ""},
	{"redirect loop", answering(redirectLoop), ""}, // too many for a busy machine to follow while a read waits
	{"no such name", unresolved(net.IPv4zero), "no such host"},
	{"no name server", unresolved(nil), ""},
	{"one object missing", missingOne, "404"},
	{"unknown authority", untrusted, "certificate"},
}

// A kitchen is what the tests of the menu share: a packed tree, its objects, and
// what clients trust and ask for names.
type kitchen struct {
	meta    string
	objects store.Reader
	files   map[string][]byte
	lost    block.ID // the first of the file "large"
	names   *names
	ca      *authority
	good    *storetest.HTTPServer
}

// newKitchen packs files of these lengths.
func newKitchen(t *testing.T, files map[string]int) *kitchen {
	t.Helper()
	work := t.TempDir()
	k := &kitchen{meta: filepath.Join(work, "x.fl"), files: map[string][]byte{}, names: newNames(t), ca: newAuthority(t)}
	for name, n := range files {
		k.files[name] = treetest.Random(uint64(n), n)
	}
	src, objects := filepath.Join(work, "src"), filepath.Join(work, "objects")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range k.files {
		if err := os.WriteFile(filepath.Join(src, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "overmount", "pack", "-m", k.meta, "-s", "dir://"+objects, src)
	k.objects = store.NewDir(objects)
	k.good = storetest.NewHTTPServer(t, store.Sharded, k.objects, nil)
	t.Setenv(nameServer, k.names.conn.LocalAddr().String())
	t.Setenv("SSL_CERT_FILE", k.ca.file)
	t.Setenv("NO_PROXY", "*")
	return k
}

func (k *kitchen) open(t *testing.T) *manifest.Manifest {
	t.Helper()
	m, err := manifest.Open(t.Context(), k.meta)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// manifest writes a manifest that names these stores.
func (k *kitchen) manifest(t *testing.T, file string, urls ...string) {
	t.Helper()
	err := manifest.EditCopy(t.Context(), k.meta, file, func(e *manifest.Editor) error {
		err := e.DeleteRoutes()
		for _, u := range urls {
			if err == nil {
				err = e.AddRoute(manifest.Route{Last: 255, URL: u})
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A way leads to a store, through a proxy. Something is wrong with it, until over.
type way struct {
	url, host string // host is what the log calls it
	proxy     *storetest.Proxy
	server    *storetest.HTTPServer
	over      func()
}

func (k *kitchen) newWay(t *testing.T) *way {
	s := storetest.NewHTTPServer(t, store.Sharded, k.objects, nil)
	p := storetest.NewProxy(t, strings.TrimPrefix(s.URL, "http://"))
	return &way{url: "http://" + p.Addr, host: p.Addr, proxy: p, server: s}
}

func onTheWay(fault storetest.ProxyFault) func(*testing.T, *kitchen, *way) {
	return func(_ *testing.T, _ *kitchen, w *way) {
		w.proxy.Set(fault)
		w.over = func() { w.proxy.Set(storetest.ProxyFault{}) }
	}
}

func answering(fault storetest.HTTPFault) func(*testing.T, *kitchen, *way) {
	return func(_ *testing.T, _ *kitchen, w *way) {
		w.server.Always(fault)
		w.over = func() { w.server.Always(nil) }
	}
}

func missingOne(_ *testing.T, k *kitchen, w *way) {
	w.server.Always(func(rw http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
		if id == k.lost || object == nil {
			http.NotFound(rw, r)
			return
		}
		storetest.ServeObject(rw, r, id, object)
	})
	w.over = func() { w.server.Always(nil) }
}

// flapping is a server that answers each request otherwise.
func flapping() storetest.HTTPFault {
	var n atomic.Int64
	return func(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
		answers := []storetest.HTTPFault{storetest.Status(403), storetest.Status(404), storetest.Status(500), storetest.Status(503), nil}
		answer := answers[int(n.Add(1))%len(answers)]
		switch {
		case answer != nil:
			answer(w, r, id, object)
		case object == nil:
			http.NotFound(w, r)
		default:
			storetest.ServeObject(w, r, id, object)
		}
	}
}

func redirectLoop(w http.ResponseWriter, r *http.Request, _ block.ID, _ []byte) {
	http.Redirect(w, r, r.URL.Path, http.StatusFound)
}

// unresolved is a host name that nobody knows, or that the name server does not
// answer for if ip is nil.
func unresolved(ip net.IP) func(*testing.T, *kitchen, *way) {
	return func(_ *testing.T, k *kitchen, w *way) {
		host, port, _ := net.SplitHostPort(w.proxy.Addr)
		name := strings.ReplaceAll(host, ".", "-") + ".invalid"
		if ip == nil {
			k.names.set(name, nil)
		}
		w.host = net.JoinHostPort(name, port)
		w.url = "http://" + w.host
		w.over = func() { k.names.set(name, net.ParseIP(host)) }
	}
}

// untrusted is a server whose certificate nobody has signed whom the client knows.
func untrusted(t *testing.T, k *kitchen, w *way) {
	host, _, _ := net.SplitHostPort(w.proxy.Addr)
	tlsServer := func(ca *authority) string {
		s := storetest.NewHTTPServer(t, store.Sharded, k.objects, &storetest.HTTPOptions{TLS: true, Cert: ca.sign(t, net.ParseIP(host))})
		return strings.TrimPrefix(s.URL, "https://")
	}
	known := tlsServer(k.ca)
	w.proxy.Forward(tlsServer(newAuthority(t)))
	w.url = "https://" + w.host
	w.over = func() { w.proxy.Forward(known) }
}

// An authority signs certificates.
type authority struct {
	file string // its own certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "ca.pem"), cert: &x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SerialNumber: big.NewInt(1),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}}
	made := a.sign(t, nil)
	a.key, a.cert = made.PrivateKey.(*ecdsa.PrivateKey), made.Leaf
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made.Certificate[0]}), 0o644); err != nil {
		t.Fatal(err)
	}
	return a
}

// sign makes a certificate for a server, or its own if ip is nil.
func (a *authority) sign(t *testing.T, ip net.IP) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, signer := a.cert, key
	if ip != nil {
		signer = a.key
		cert = &x509.Certificate{
			SerialNumber: big.NewInt(2), IPAddresses: []net.IP{ip}, KeyUsage: x509.KeyUsageDigitalSignature,
			NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

const (
	patience = 3 * time.Second  // --timeout of the mounts
	slack    = 15 * time.Second // for a machine that does much else
)

// TestFaultMenu reads files through a mount while something is wrong with its
// store: either right data come or EIO, soon, and when it is over right data come.
// With another store that works, they come at once. What is then in the cache is
// all that is needed, and right.
func TestFaultMenu(t *testing.T) {
	testenv.FUSE(t)
	k := newKitchen(t, map[string]int{"large": 2*block.Size + 17, "small": 300})
	large, err := k.open(t).Find("large")
	if err != nil {
		t.Fatal(err)
	}
	k.lost = k.open(t).Blocks(large)[0].ID
	// They wait more than they work, so many do at once, whatever -parallel says.
	var cases errgroup.Group
	cases.SetLimit(16)
	for _, dish := range menu {
		run := func(name string, check func(*testing.T, *way)) {
			cases.Go(func() error {
				t.Run(dish.name+"/"+name, func(t *testing.T) {
					w := k.newWay(t)
					dish.bring(t, k, w)
					check(t, w)
				})
				return nil
			})
		}
		run("only store", func(t *testing.T, w *way) { k.onlyStore(t, w, dish.reason) })
		run("two stores", k.twoStores)
	}
	cases.Wait()
}

func (k *kitchen) onlyStore(t *testing.T, w *way, reason string) {
	m := k.mount(t, patience, w.url)
	for range 2 {
		k.readOrEIO(t, m)
	}
	m.checkLog(t, w.host, reason)
	w.over()
	for end := time.Now().Add(recovery + slack); !k.readOrEIO(t, m); {
		if time.Now().After(end) {
			t.Fatal("the fault is over, and reads still fail")
		}
	}
	k.checkCache(t, m)
}

func (k *kitchen) twoStores(t *testing.T, w *way) {
	m := k.mount(t, patience, w.url, k.good.URL)
	if !k.readOrEIO(t, m) {
		t.Error("with a second store that works, a read fails")
	}
	k.checkCache(t, m)
}

// A mounted tree has a cache and a log of its own.
type mounted struct {
	work, dir, cache, log string
	timeout               time.Duration
}

func (k *kitchen) mount(t *testing.T, timeout time.Duration, urls ...string) mounted {
	t.Helper()
	work := t.TempDir()
	m := mounted{work, filepath.Join(work, "target"), filepath.Join(work, "cache"), filepath.Join(work, "log"), timeout}
	k.manifest(t, filepath.Join(work, "x.fl"), urls...)
	m.start(t)
	return m
}

func (m mounted) start(t *testing.T) {
	t.Helper()
	mountAt(t, m.dir, "-m", filepath.Join(m.work, "x.fl"), "-c", m.cache, "-l", m.log, "--timeout", m.timeout.String())
}

// stop unmounts, and returns when the daemon has written what it has.
func (m mounted) stop(t *testing.T) {
	t.Helper()
	pids := daemons(m.dir)
	mustRun(t, "overmount", "umount", m.dir)
	for _, pid := range pids {
		if err := awaitEnd(pid); err != nil {
			t.Fatal(err)
		}
	}
}

// readOrEIO reads the files, all at once, and reports whether it could. Each must
// end in time with right data, or with EIO and nothing wrong before it.
func (k *kitchen) readOrEIO(t *testing.T, m mounted) bool {
	t.Helper()
	var failed, wrong atomic.Bool
	var reading sync.WaitGroup
	for name, data := range k.files {
		r, start := m.read(t, name), time.Now()
		reading.Go(func() {
			<-r.ended
			// Linux reads ahead first, and if that fails once more.
			if took := time.Since(start); took > 2*m.timeout+slack {
				t.Errorf("reading %s took %v, with a limit of %v", name, took, m.timeout)
			}
			got, code := r.stdout.String(), r.cmd.ProcessState.ExitCode()
			switch {
			case code == 0 && got == string(data):
			case code == 1 && strings.HasPrefix(string(data), got) && strings.Contains(r.stderr.String(), "Input/output error"):
				failed.Store(true)
			default:
				wrong.Store(true)
				t.Errorf("cat %s prints %d bytes and %q, exit code %d; want right data or EIO", name, len(got), &r.stderr, code)
			}
		})
	}
	reading.Wait()
	if wrong.Load() {
		t.FailNow()
	}
	return !failed.Load()
}

// anObject is an object's name in a text.
var anObject = regexp.MustCompile(`\b[0-9a-f]{64}\b`)

// checkLog checks that the log says what is the matter, and says it once: of many
// reads in one outage, the first warns, and one error comes for each object.
func (m mounted) checkLog(t *testing.T, host, reason string) {
	t.Helper()
	text, err := os.ReadFile(m.log)
	if err != nil {
		t.Fatal(err)
	}
	found, warnings, errors, answers := false, 0, map[string]int{}, 0
	for line := range strings.Lines(string(text)) {
		object := anObject.FindString(line)
		switch {
		case strings.Contains(line, "level=WARN"):
			warnings++
		case strings.Contains(line, "level=ERROR"):
			errors[object]++
		case strings.Contains(line, "store answers again"):
			answers++
			continue
		default:
			continue
		}
		found = found || object != "" && strings.Contains(line, host) && strings.Contains(line, reason)
	}
	if !found {
		t.Errorf("no line of the log has an object, the store %s and the reason %q:\n%s", host, reason, text)
	}
	if warnings > 1+answers {
		t.Errorf("%d warnings, where the store has answered %d times:\n%s", warnings, answers, text)
	}
	for object, n := range errors {
		if n > 1 {
			t.Errorf("%d errors of the object %s:\n%s", n, object, text)
		}
	}
}

// checkCache checks that the cache has every object, under its name, and that this
// is enough to read all files when no store is left.
func (k *kitchen) checkCache(t *testing.T, m mounted) {
	t.Helper()
	m.stop(t)
	have := map[block.ID]bool{}
	err := filepath.WalkDir(m.cache, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "lock" {
			return err
		}
		object, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		id := block.Sum(object)
		if id.String() != d.Name() {
			t.Errorf("the cache has %s, whose bytes are another object's: %v", name, id)
		}
		have[id] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[block.ID]bool{}
	for _, ref := range k.open(t).AllBlocks() {
		want[ref.ID] = true
	}
	if !maps.Equal(have, want) {
		t.Errorf("the cache has %d objects %v, want the %d of the files", len(have), have, len(want))
	}
	k.manifest(t, filepath.Join(m.work, "x.fl"), "http://127.0.0.1:1")
	m.start(t)
	if !k.readOrEIO(t, m) {
		t.Error("what is in the cache cannot be read without a store")
	}
}
