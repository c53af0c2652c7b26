package s3store_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/store"
	"overmount/store/s3store"
	"overmount/store/storetest"
)

func mustParse(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func open(t testing.TB, text string, opts *s3store.Options) *s3store.Store {
	t.Helper()
	s, err := s3store.New(mustParse(t, text), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// object returns the i-th test object.
func object(i int) (block.ID, []byte) { return storetest.Object(uint64(i), 20_000) }

func key(l store.Layout, i int) string {
	id, _ := object(i)
	return l.Key(id)
}

func put(t *testing.T, s store.Writer, i int) bool {
	t.Helper()
	id, bytes := object(i)
	stored, err := s.Put(t.Context(), id, bytes)
	if err != nil {
		t.Errorf("Put of object %d = %v", i, err)
	}
	return stored
}

func wantObject(t *testing.T, r store.Reader, i int) {
	t.Helper()
	id, want := object(i)
	if got, err := r.Get(t.Context(), id); err != nil || !bytes.Equal(got, want) {
		t.Errorf("Get of object %d = %d bytes, %v, want it", i, len(got), err)
	}
}

// wantRequests compares the requests since the last call, with the objects'
// numbers for their IDs.
func wantRequests(t *testing.T, f *fake, want ...string) {
	t.Helper()
	var got []string
	for _, r := range f.Requests() {
		for i := range 10 {
			r = strings.ReplaceAll(r, key(store.Sharded, i), fmt.Sprintf("sharded-%d", i))
			r = strings.ReplaceAll(r, key(store.Flat, i), fmt.Sprintf("flat-%d", i))
		}
		got = append(got, strings.ReplaceAll(r, "/"+bucket, ""))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got)\n%s", diff)
	}
}

func TestSuite(t *testing.T) {
	for name, o := range map[string]fakeOptions{
		"AWS":    {region: "us-east-1"},
		"Garage": {garage: true},
		"NoList": {noList: true},
		"TLS":    {tls: true},
	} {
		for _, suffix := range []string{"", "/a/b c+ü?layout=flat"} {
			t.Run(name+strings.ToUpper(suffix[max(0, len(suffix)-4):]), func(t *testing.T) {
				storetest.Run(t, func(t *testing.T) storetest.Subject {
					if o.noList && (strings.HasSuffix(t.Name(), "/NotFound") || strings.HasSuffix(t.Name(), "/PutCancelledBefore")) {
						t.Skip("this server never says that it has not an object: TestMisses")
					}
					f := newFake(t, o)
					var opts s3store.Options
					if o.tls {
						opts.TLS = f.trust()
					}
					s := open(t, f.with(keyID, secret)+suffix, &opts)
					return storetest.Subject{
						Reader: s,
						Writer: s,
						Checks: true,
						Stall: func(*testing.T) <-chan struct{} {
							arrived := make(chan struct{}, 16)
							f.Always(func(_ http.ResponseWriter, r *http.Request, _ block.ID, _ []byte) {
								arrived <- struct{}{}
								<-r.Context().Done()
							})
							return arrived
						},
					}
				})
			})
		}
	}
}

func (f *fake) trust() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(f.server.Certificate())
	return &tls.Config{RootCAs: pool}
}

func TestRequestsOnTheWire(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	s := open(t, f.with(keyID, secret)+"/a b/c+d/ü&=%24//", nil)
	if !put(t, s, 0) {
		t.Error("Put into an empty store reports that the object was there")
	}
	wantRequests(t, f,
		"HEAD /a%20b/c%2Bd/%C3%BC%26%3D%24/sharded-0",
		"PUT /a%20b/c%2Bd/%C3%BC%26%3D%24/sharded-0")
	for name, want := range map[string]string{
		"Content-Type":     "application/octet-stream",
		"Cache-Control":    "public, max-age=31536000, immutable",
		"Content-Length":   "20000",
		"User-Agent":       "overmount",
		"Content-Encoding": "", "X-Amz-Trailer": "", "If-None-Match": "", "Expect": "", "Idempotency-Key": "",
	} {
		if got := f.LastHeader().Get(name); got != want {
			t.Errorf("PUT has the header %s: %q, want %q", name, got, want)
		}
	}
	for range s.List(t.Context()) {
	}
	wantRequests(t, f, "GET ?encoding-type=url&list-type=2&max-keys=1000&prefix=a%20b%2Fc%2Bd%2F%C3%BC%26%3D%24%2F")
	wantObject(t, s, 0)
	if got, want := f.Keys(), []string{"a b/c+d/ü&=$/" + key(store.Sharded, 0)}; !slices.Equal(got, want) {
		t.Errorf("keys in the bucket = %q, want %q", got, want)
	}
}

func TestAnonymous(t *testing.T) {
	f := newFake(t, fakeOptions{public: true})
	_, bytes := object(0)
	f.Put(key(store.Sharded, 0), bytes)
	s := open(t, strings.Replace(f.URL, "://", "://"+keyID+"@", 1), nil) // as rfs strips passwords
	wantObject(t, s, 0)
	if got := f.LastHeader(); got.Get("Authorization") != "" || got.Get("X-Amz-Date") != "" {
		t.Errorf("a request without credentials has the header %v", got)
	}
	id, object := object(1)
	if _, err := s.Put(t.Context(), id, object); !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "this needs credentials, and there are none") {
		t.Errorf("Put without credentials = %v, want ErrForbidden", err)
	}
}

func TestSessionToken(t *testing.T) {
	f := newFake(t, fakeOptions{token: true})
	wrong := &s3store.Credentials{KeyID: keyID, Secret: secret, SessionToken: "other"}
	if err := open(t, f.URL, &s3store.Options{Credentials: wrong}).Preflight(t.Context()); !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "session token") {
		t.Errorf("Preflight with a wrong token = %v, want ErrForbidden", err)
	}
	right := &s3store.Credentials{KeyID: keyID, Secret: secret, SessionToken: token}
	put(t, open(t, f.URL, &s3store.Options{Credentials: right}), 0)
	// The URL's key wins, and the other's token does not go with it.
	if err := open(t, f.with(keyID, secret), &s3store.Options{Credentials: right}).Preflight(t.Context()); err == nil {
		t.Error("Preflight with the URL's key used the token of the options")
	}
}

// The region that the server tells is kept, a given one is not replaced.
func TestRegion(t *testing.T) {
	for _, garage := range []bool{false, true} {
		f := newFake(t, fakeOptions{garage: garage, region: "rack-7"})
		s := open(t, f.with(keyID, secret), nil)
		put(t, s, 0)
		wantRequests(t, f, "HEAD /sharded-0", "PUT /sharded-0", "PUT /sharded-0")
		put(t, s, 1)
		wantRequests(t, f, "HEAD /sharded-1", "PUT /sharded-1")
		if has, err := open(t, f.with(keyID, secret), nil).Has(t.Context(), mustID(1)); !has || err != nil {
			t.Errorf("Has as the first request = %v, %v, want true", has, err)
		}
		wantRequests(t, f, "HEAD /sharded-1", "GET /sharded-1", "GET /sharded-1")

		for given, s := range map[string]*s3store.Store{
			"URL":     open(t, f.with(keyID, secret)+"?region=rack-7", &s3store.Options{Region: "other"}),
			"Options": open(t, f.with(keyID, secret), &s3store.Options{Region: "rack-7"}),
		} {
			if err := s.Preflight(t.Context()); err != nil {
				t.Errorf("Preflight with the region of the %s = %v", given, err)
			}
		}
		f.Requests()
		err := open(t, f.with(keyID, secret)+"?region=rack-8", nil).Preflight(t.Context())
		want := `the server's region is "rack-7", and the request is signed for "rack-8": give region=rack-7`
		if n := len(f.Requests()); n != 1 || !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), want) {
			t.Errorf("Preflight with a wrong region = %v after %d requests, want ErrForbidden, %q, after 1", err, n, want)
		}
	}
}

// A server that wants another region each time gets no third request.
func TestRegionThatChanges(t *testing.T) {
	f := newFake(t, fakeOptions{})
	n := 0
	f.Always(func(w http.ResponseWriter, _ *http.Request, _ block.ID, _ []byte) {
		n++
		w.WriteHeader(400)
		fmt.Fprintf(w, "<Error><Code>AuthorizationHeaderMalformed</Code><Region>r%d</Region></Error>", n)
	})
	err := open(t, f.with(keyID, secret), nil).Preflight(t.Context())
	if got := len(f.Requests()); got != 2 || !errors.Is(err, store.ErrForbidden) {
		t.Errorf("Preflight = %v after %d requests, want ErrForbidden after 2", err, got)
	}
}

func TestLayouts(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	for i, l := range []store.Layout{store.Sharded, store.Sharded, store.Flat, store.Flat} {
		_, bytes := object(i)
		f.Put(l.Key(block.Sum(bytes)), bytes)
	}
	s := open(t, f.with(keyID, secret), nil)
	for i := range 4 {
		wantObject(t, s, i)
	}
	wantRequests(t, f, "GET /sharded-0", "GET /sharded-1", "GET /sharded-2", "GET /flat-2", "GET /flat-3")
	id, _ := object(4)
	if _, err := s.Get(t.Context(), id); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "(flat 404, sharded 404)") {
		t.Errorf("Get of a missing object = %v, want ErrNotFound", err)
	}
	wantRequests(t, f, "GET /flat-4", "GET /sharded-4")

	// Web readers look under one layout: Put does not count what is under the other.
	if !put(t, s, 3) || put(t, s, 3) {
		t.Error("Put of an object that is there under the other layout did not write it, or twice")
	}
	if has, err := s.Has(t.Context(), block.ID{}); has || err != nil {
		t.Errorf("Has of a missing object = %v, %v, want false", has, err)
	}
	if has, err := open(t, f.with(keyID, secret), nil).Has(t.Context(), mustID(2)); !has || err != nil {
		t.Errorf("Has of a flat object = %v, %v, want true", has, err)
	}

	s = open(t, f.with(keyID, secret)+"?layout=flat", nil)
	f.Requests()
	put(t, s, 5)
	wantRequests(t, f, "HEAD /flat-5", "PUT /flat-5")
	wantObject(t, s, 5)
	wantRequests(t, f, "GET /flat-5")
}

func mustID(i int) block.ID {
	id, _ := object(i)
	return id
}

// What has another length is no object of that name.
func TestPutReplacesWhatIsDamaged(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	f.Put(key(store.Sharded, 0), []byte("short"))
	f.Put(key(store.Sharded, 1), nil)
	s := open(t, f.with(keyID, secret), nil)
	if has, err := s.Has(t.Context(), mustID(1)); has || err != nil {
		t.Errorf("Has of an empty file = %v, %v, want false", has, err)
	}
	if _, err := s.Learn(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if !put(t, s, i) {
			t.Errorf("Put of object %d, which is damaged in the store, did not write it", i)
		}
		wantObject(t, s, i)
	}
}

func TestLearn(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1", page: 3})
	for i := range 5 {
		_, bytes := object(i)
		f.Put(key(store.Sharded, i), bytes)
	}
	_, bytes := object(5)
	f.Put(key(store.Flat, 5), bytes)
	f.Put("foreign", nil)
	s := open(t, f.with(keyID, secret), nil)
	if all, err := s.Learn(t.Context(), 1000); !all || err != nil {
		t.Fatalf("Learn = %v, %v, want all", all, err)
	}
	if got := len(f.Requests()); got != 3 {
		t.Errorf("Learn of 7 keys, 3 a page, made %d requests, want 3", got)
	}
	for i := range 7 {
		if there, known := s.Seen(mustID(i)); there != (i < 5) || !known {
			t.Errorf("Seen of object %d after Learn = %v, %v, want %v, true", i, there, known, i < 5)
		}
	}
	for i := range 7 {
		if got, want := put(t, s, i), i >= 5; got != want {
			t.Errorf("Put of object %d after Learn = %v, want %v", i, got, want)
		}
	}
	put(t, s, 6)
	wantRequests(t, f, "PUT /sharded-5", "PUT /sharded-6")
	if err := s.Delete(t.Context(), mustID(0)); err != nil {
		t.Fatal(err)
	}
	f.Requests()
	put(t, s, 0)
	wantRequests(t, f, "PUT /sharded-0")
}

// A bucket with more keys than it is worth to list.
func TestLearnStops(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1", page: 2})
	_, bytes := object(0)
	f.Put("00/first", nil)
	f.Put(key(store.Sharded, 0), bytes)
	for i := range 10 {
		f.Put(fmt.Sprintf("z%d", i), nil)
	}
	s := open(t, f.with(keyID, secret), nil)
	if there, known := s.Seen(mustID(0)); there || known {
		t.Errorf("Seen before Learn = %v, %v, want false, false", there, known)
	}
	if all, err := s.Learn(t.Context(), 4); all || err != nil {
		t.Fatalf("Learn = %v, %v, want not all", all, err)
	}
	if got := len(f.Requests()); got != 2 {
		t.Errorf("Learn of at most 4 keys, 2 a page, made %d requests, want 2", got)
	}
	for i := range 2 {
		if there, known := s.Seen(mustID(i)); there != (i == 0) || known != (i == 0) {
			t.Errorf("Seen of object %d = %v, %v, want %v", i, there, known, i == 0)
		}
	}
	put(t, s, 0)
	put(t, s, 1)
	wantRequests(t, f, "HEAD /sharded-1", "PUT /sharded-1")
}

func TestList(t *testing.T) {
	for _, o := range []fakeOptions{{}, {page: 2}, {page: 1, plain: true}} {
		for _, prefix := range []string{"", "a/b c+&ü"} {
			f := newFake(t, o)
			below := strings.TrimPrefix(prefix+"/", "/")
			var want []store.Entry
			for i, l := range []store.Layout{store.Sharded, store.Flat, store.Sharded} {
				_, bytes := object(i)
				f.Put(below+l.Key(mustID(i)), bytes[:1+i])
				want = append(want, store.Entry{ID: mustID(i), Layout: l, Size: int64(1 + i)})
			}
			name := mustID(9).String()
			for _, foreign := range []string{
				"modules.fl", "a b&c", strings.ToUpper(name), "cd/" + name, name[:2] + "/" + name + "x", name[:2] + "/" + name[2:4] + "/" + name, "x/" + name,
			} {
				f.Put(below+foreign, nil)
			}
			f.Put("zz/"+name[:2]+"/"+name, nil)
			var got []store.Entry
			for e, err := range open(t, f.with(keyID, secret)+"/"+url.PathEscape(prefix), nil).List(t.Context()) {
				if err != nil {
					t.Fatalf("List = %v", err)
				}
				if age := time.Since(e.Modified); age.Abs() > time.Minute {
					t.Errorf("List says that %v was modified %v ago", e.ID, age)
				}
				e.Modified = time.Time{}
				got = append(got, e)
			}
			order := func(a, b store.Entry) int { return bytes.Compare(a.ID[:], b.ID[:]) }
			slices.SortFunc(got, order)
			slices.SortFunc(want, order)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("List of prefix %q (-want +got)\n%s", prefix, diff)
			}
		}
	}
}

func TestListStopsWhenTold(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1", page: 1})
	for i := range 3 {
		f.Put(key(store.Flat, i), nil)
	}
	for range open(t, f.with(keyID, secret), nil).List(t.Context()) {
		break
	}
	if got := len(f.Requests()); got != 1 {
		t.Errorf("List made %d requests for one entry, want 1", got)
	}
}

func TestBadLists(t *testing.T) {
	for body, want := range map[string]string{
		"":                          "no list of an S3 server",
		"<html>hello</html>":        "no list of an S3 server",
		"<ListBucketResult>":        "no list of an S3 server",
		"<ListAllMyBucketsResult/>": "no list of an S3 server",
		"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>":                                                                  "there is more, and not where",
		"<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>%zz</Key></Contents></ListBucketResult>":                              "cannot be decoded",
		"<ListBucketResult><Contents><Key>" + key(store.Flat, 0) + "</Key><Size>5</Size></Contents></ListBucketResult>":                         "no date and length",
		"<ListBucketResult><Contents><Key>" + key(store.Flat, 0) + "</Key><LastModified>yesterday</LastModified></Contents></ListBucketResult>": "no date and length",
		"<ListBucketResult>" + strings.Repeat("<Contents></Contents>", 1<<19) + "</ListBucketResult>":                                           "longer than",
	} {
		f := newFake(t, fakeOptions{})
		f.Always(storetest.Body("application/xml", body))
		s := open(t, f.with(keyID, secret), nil)
		var errs []error
		for e, err := range s.List(t.Context()) {
			if err == nil {
				t.Errorf("List of %.60q yields %v", body, e)
			}
			errs = append(errs, err)
		}
		if len(errs) != 1 || !strings.Contains(fmt.Sprint(errs), want) || !strings.Contains(fmt.Sprint(errs), "LIST "+f.URL) {
			t.Errorf("List of %.60q = %v, want one error that says %q and the URL", body, errs, want)
		}
		if all, err := s.Learn(t.Context(), 1<<30); all || err == nil {
			t.Errorf("Learn of %.60q = %v, %v, want an error", body, all, err)
		}
	}
}

func TestDelete(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	_, bytes := object(0)
	f.Put(key(store.Sharded, 0), bytes)
	f.Put(key(store.Flat, 0), bytes)
	f.Put(key(store.Flat, 1), bytes)
	s := open(t, f.with(keyID, secret), nil)
	for range 2 {
		if err := s.Delete(t.Context(), mustID(0)); err != nil {
			t.Errorf("Delete = %v", err)
		}
	}
	if got, want := f.Keys(), []string{key(store.Flat, 1)}; !slices.Equal(got, want) {
		t.Errorf("after Delete the bucket has %q, want %q", got, want)
	}
}

func TestFiles(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	s := open(t, f.with(keyID, secret)+"/p", nil)
	const name, content = "releases/modules latest.fl", "a manifest"
	if _, err := s.GetFile(t.Context(), name, 100); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("GetFile of a missing file = %v, want ErrNotFound", err)
	}
	for _, c := range []struct {
		opts *store.FileOptions
		want [2]string
	}{
		{nil, [2]string{"application/octet-stream", "no-cache"}},
		{&store.FileOptions{ContentType: "text/plain", CacheControl: "max-age=5"}, [2]string{"text/plain", "max-age=5"}},
	} {
		if err := s.PutFile(t.Context(), name, strings.NewReader(content), int64(len(content)), c.opts); err != nil {
			t.Fatalf("PutFile = %v", err)
		}
		file, _ := f.File("p/" + name)
		if got := [2]string{file.header.Get("Content-Type"), file.header.Get("Cache-Control")}; string(file.body) != content || got != c.want {
			t.Errorf("PutFile(%+v) left %q with the header %q, want %q", c.opts, file.body, got, c.want)
		}
	}
	if got, err := s.GetFile(t.Context(), name, int64(len(content))); err != nil || string(got) != content {
		t.Errorf("GetFile = %q, %v, want %q", got, err, content)
	}
	if got, err := s.GetFile(t.Context(), name, int64(len(content))-1); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("GetFile of a file over the limit = %q, %v, want an error", got, err)
	}
	f.Next(storetest.LongBody(1 << 30))
	if got, err := s.GetFile(t.Context(), name, 100); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("GetFile of an endless file = %q, %v, want an error", got, err)
	}
	if err := s.PutFile(t.Context(), "empty", strings.NewReader(""), 0, nil); err != nil {
		t.Errorf("PutFile of no bytes = %v", err)
	}
	if err := s.PutFile(t.Context(), "short", strings.NewReader(content), 1000, nil); err == nil || !strings.Contains(err.Error(), "ended after 10 of 1000 bytes") {
		t.Errorf("PutFile of a body that ends early = %v, want an error", err)
	}
	f.Requests()
	for _, bad := range []string{"", ".", "/a", "a/", "a//b", "../a", "a/./b"} {
		if err := s.PutFile(t.Context(), bad, strings.NewReader(content), 1, nil); err == nil {
			t.Errorf("PutFile(%q) succeeded", bad)
		}
		if _, err := s.GetFile(t.Context(), bad, 1); err == nil {
			t.Errorf("GetFile(%q) succeeded", bad)
		}
	}
	wantRequests(t, f)
}

func TestMisses(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1", noList: true})
	s := open(t, f.with(keyID, secret), nil)
	for _, want := range []error{store.ErrForbidden, store.ErrNotFound} {
		got, err := s.Get(t.Context(), mustID(0))
		if got != nil || !errors.Is(err, want) || store.Temporary(err) || want != store.ErrNotFound && errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get of a missing object from a server that says 403 = %v, want %v", err, want)
		}
		if has, err := s.Has(t.Context(), mustID(0)); has || !errors.Is(err, want) && want != store.ErrNotFound || want == store.ErrNotFound && err != nil {
			t.Errorf("Has of a missing object from a server that says 403 = %v, %v, want %v", has, err, want)
		}
		put(t, s, 1)
		wantObject(t, s, 1)
	}
	// A key that is refused altogether is not a missing object, ever.
	f.Next(answer(403, "InvalidAccessKeyId", "revoked"))
	f.Requests()
	if _, err := s.Get(t.Context(), mustID(1)); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("Get with a revoked key = %v, want ErrForbidden", err)
	}
	wantRequests(t, f, "GET /sharded-1")
	f.Next(answer(403, "", ""), answer(403, "InvalidAccessKeyId", "revoked"))
	if has, err := s.Has(t.Context(), mustID(1)); has || !errors.Is(err, store.ErrForbidden) {
		t.Errorf("Has with a revoked key = %v, %v, want ErrForbidden", has, err)
	}
}

// answer is a failure as S3 servers write it.
func answer(status int, code, message string, header ...string) storetest.HTTPFault {
	return func(w http.ResponseWriter, r *http.Request, _ block.ID, _ []byte) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			fmt.Fprintf(w, "<?xml version='1.0'?><Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
		}
	}
}

// hasty are limits for tests that wait for them to pass. What is no fault keeps them
// on a busy machine, too.
var hasty = s3store.Options{HeaderTimeout: 2 * time.Second, RateWindow: 2 * time.Second}

type operation struct {
	name string
	do   func(context.Context, *s3store.Store) error
}

func operations() []operation {
	return []operation{
		{"Get", func(ctx context.Context, s *s3store.Store) error { _, err := s.Get(ctx, mustID(0)); return err }},
		{"Has", func(ctx context.Context, s *s3store.Store) error { _, err := s.Has(ctx, mustID(0)); return err }},
		{"Put", func(ctx context.Context, s *s3store.Store) error {
			id, bytes := object(1)
			_, err := s.Put(ctx, id, bytes)
			return err
		}},
		{"Delete", func(ctx context.Context, s *s3store.Store) error { return s.Delete(ctx, mustID(2)) }},
		{"List", func(ctx context.Context, s *s3store.Store) error {
			for _, err := range s.List(ctx) {
				if err != nil {
					return err
				}
			}
			return nil
		}},
		{"Learn", func(ctx context.Context, s *s3store.Store) error { _, err := s.Learn(ctx, 10); return err }},
		{"Preflight", func(ctx context.Context, s *s3store.Store) error { return s.Preflight(ctx) }},
		{"PutFile", func(ctx context.Context, s *s3store.Store) error {
			return s.PutFile(ctx, "f", strings.NewReader("abc"), 3, nil)
		}},
		{"GetFile", func(ctx context.Context, s *s3store.Store) error { _, err := s.GetFile(ctx, "g", 10); return err }},
	}
}

// atOnce does operations at the same time, and returns their errors in order.
func atOnce(ctx context.Context, s *s3store.Store, ops []operation) []error {
	errs := make([]error, len(ops))
	var wg sync.WaitGroup
	for i, op := range ops {
		wg.Go(func() { errs[i] = op.do(ctx, s) })
	}
	wg.Wait()
	return errs
}

// Every operation, under everything that a server or what stands for one may do:
// an error of the right kind, in bounded time, without a secret; and all is well
// afterwards.
func TestFaults(t *testing.T) {
	const temporary, forbidden = "temporary", "forbidden"
	for name, c := range map[string]struct {
		fault storetest.HTTPFault
		kind  string // empty: several
		says  string // empty: several
		fine  string // operations to which this is no failure
	}{
		"500":             {answer(500, "InternalError", "We encountered an internal error."), temporary, "500", ""},
		"503":             {answer(503, "SlowDown", "Please reduce your request rate.", "Retry-After", "7"), temporary, "ask again after 7s", ""},
		"429":             {answer(429, "TooManyRequests", "", "Retry-After", "7"), temporary, "ask again after 7s", ""},
		"SlowDown":        {answer(400, "SlowDown", "", "Retry-After", "7"), "", "", ""},
		"page with 502":   {storetest.Status(502), temporary, "502", ""},
		"401":             {storetest.Status(401), forbidden, "401", ""},
		"405":             {answer(405, "MethodNotAllowed", ""), forbidden, "405", ""},
		"407":             {storetest.Status(407), forbidden, "the proxy wants credentials", ""},
		"redirect":        {answer(307, "TemporaryRedirect", "", "Location", "http://192.0.2.1/"), forbidden, "redirects", ""},
		"moved":           {answer(301, "PermanentRedirect", "", "X-Amz-Bucket-Region", "eu-west-3"), forbidden, `"eu-west-3"`, ""},
		"page":            {storetest.HTMLPage(), "", "", "Delete GetFile"},
		"no bytes":        {storetest.Body("", ""), "", "", "Delete GetFile"},
		"206":             {storetest.Status(206), temporary, "206", ""},
		"silence":         {storetest.HangBeforeHeaders(storetest.NewGate()), temporary, "timeout awaiting response headers", ""},
		"reset":           {storetest.Reset(), temporary, "no answer from", ""},
		"echo":            {echo, forbidden, "(hidden)", ""},
		"garbage":         {answer(403, "<<<&", "\x00\x1b[31m"), forbidden, "403", "Has"},
		"hostile message": {answer(403, "AccessDenied", strings.Repeat("\n&#x202e;\x7fx", 10_000)), forbidden, "403", "Has"},
		"endless error":   {endlessError, forbidden, "403", "Has"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, fakeOptions{region: "us-east-1"})
			_, bytes := object(0)
			f.Put(key(store.Sharded, 0), bytes)
			f.Put("g", []byte("abc"))
			opts, together := s3store.Options{}, 1
			if name == "silence" {
				opts, together = hasty, len(operations()) // they wait for the limit together
			}
			opts.Credentials = &s3store.Credentials{KeyID: keyID, Secret: secret, SessionToken: token}
			s := open(t, f.URL, &opts)
			for ops := range slices.Chunk(operations(), together) {
				f.Always(c.fault)
				errs := atOnce(t.Context(), s, ops)
				f.Always(nil)
				again := atOnce(t.Context(), s, ops)
				for i, op := range ops {
					if errs[i] != nil {
						checkFault(t, op.name, errs[i], c.kind, c.says)
					} else if !strings.Contains(c.fine, op.name) {
						t.Errorf("%s = nil, want an error", op.name)
					}
					if again[i] != nil {
						t.Errorf("%s after the fault = %v", op.name, again[i])
					}
				}
			}
		})
	}
}

func checkFault(t *testing.T, name string, err error, kind, says string) {
	t.Helper()
	text := err.Error()
	if !strings.Contains(text, says) {
		t.Errorf("%s = %v, want an error that says %q", name, err, says)
	}
	if is := store.Temporary(err); kind == "temporary" && !is || kind == "forbidden" && !errors.Is(err, store.ErrForbidden) {
		t.Errorf("%s = %v, Temporary: %v, want a %s error", name, err, is, kind)
	}
	if len(text) > 1000 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == '\u202e' || r == 0x7f }) {
		t.Errorf("%s: error of %d bytes is not fit to print: %.1000q", name, len(text), text)
	}
	wantNoSecret(t, name, text)
}

func wantNoSecret(t *testing.T, what, text string) {
	t.Helper()
	for _, s := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), token} {
		if strings.Contains(text, s) {
			t.Errorf("%s shows a secret: %s", what, text)
		}
	}
}

// echo answers what a hostile server, or one that debugs, may know.
func echo(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
	answer(403, "SignatureDoesNotMatch", secret+" "+r.Header.Get("X-Amz-Security-Token"))(w, r, id, object)
}

func endlessError(w http.ResponseWriter, r *http.Request, _ block.ID, _ []byte) {
	w.WriteHeader(403)
	for chunk := bytes.Repeat([]byte("<Error>"), 1000); r.Method != http.MethodHead; {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// What no server answers is not definite.
func TestNoServer(t *testing.T) {
	host := testenv.Address(t)
	s := open(t, "s3://"+url.UserPassword(keyID, secret).String()+"@"+host+"/b", nil)
	for _, op := range operations() {
		err := op.do(t.Context(), s)
		if !store.Temporary(err) || !strings.Contains(err.Error(), "no answer from "+host) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s without a server = %v, want a temporary error that says so", op.name, err)
		}
		wantNoSecret(t, op.name, fmt.Sprint(err))
	}
}

func TestCancelled(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	s := open(t, f.with(keyID, secret), nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	for _, op := range operations() {
		if err := op.do(ctx, s); err != context.Canceled {
			t.Errorf("%s with a cancelled context = %v, want context.Canceled", op.name, err)
		}
	}
	wantRequests(t, f)
}

func TestRetryAfterReachesTheCaller(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	s := open(t, f.with(keyID, secret), nil)
	for _, status := range []int{429, 503} {
		f.Next(answer(status, "SlowDown", "", "Retry-After", "7"))
		_, err := s.Get(t.Context(), mustID(0))
		var busy *store.BusyError
		if !errors.As(err, &busy) || busy.After != 7*time.Second || !store.Temporary(err) {
			t.Errorf("status %d with Retry-After: Get = %v, want a BusyError of 7 s", status, err)
		}
	}
}

// RetryWriter around a store that fails twice.
func TestRetry(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	f.Next(answer(500, "InternalError", ""), nil, answer(503, "SlowDown", ""), nil, nil)
	w := store.RetryWriter(open(t, f.with(keyID, secret), nil), nil)
	if !put(t, w, 0) {
		t.Error("Put after two failures reports that the object was there")
	}
	wantRequests(t, f, "HEAD /sharded-0", "HEAD /sharded-0", "PUT /sharded-0", "HEAD /sharded-0", "PUT /sharded-0")
}

// A body that was damaged on its way is refused with 400, and is no reason to
// give up.
func TestDamagedUpload(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	f.Next(nil, answer(400, "XAmzContentSHA256Mismatch", ""))
	id, bytes := object(0)
	if _, err := open(t, f.with(keyID, secret), nil).Put(t.Context(), id, bytes); !store.Temporary(err) {
		t.Errorf("Put of a body that was damaged = %v, want a temporary error", err)
	}
}

// What answers 200 to all is no store: an upload to it is not done.
func TestPortalTakesNoUploads(t *testing.T) {
	f := newFake(t, fakeOptions{})
	f.Always(storetest.HTMLPage())
	id, bytes := object(0)
	stored, err := open(t, f.with(keyID, secret), nil).Put(t.Context(), id, bytes)
	if stored || err == nil || !strings.Contains(err.Error(), "not one of an S3 server") {
		t.Errorf("Put to a portal = %v, %v, want an error", stored, err)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	f := newFake(t, fakeOptions{region: "us-east-1"})
	s := open(t, f.with(keyID, secret), nil)
	for i := range 8 {
		put(t, s, i)
		wantObject(t, s, i)
		if _, err := s.Get(t.Context(), mustID(9)); !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
		if err := s.Preflight(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	f.server.Close()
	// On a busy machine net/http does not keep a connection if 50 ms after the answer
	// it has not noticed yet that the request was sent.
	const dropped = 2
	if conns := f.conns.Load(); conns > 1+dropped {
		t.Errorf("%d requests one after the other used %d connections, want 1", len(f.Requests()), conns)
	}
}

func TestNothingPrintsASecret(t *testing.T) {
	creds := &s3store.Credentials{KeyID: keyID, Secret: secret, SessionToken: token}
	opts := &s3store.Options{Credentials: creds}
	s := open(t, "s3://"+url.UserPassword(keyID, secret).String()+"@h:1/b", opts)
	anonymous := open(t, "s3://h:1/b", opts)
	anonymous.Preflight(t.Context()) // the signer keeps what it derives from a secret
	wrapped := struct {
		private *s3store.Store
		reader  store.Reader
		opts    *s3store.Options
	}{s, store.Retry(anonymous, nil), opts}
	for _, v := range []any{creds, *creds, opts, *opts, s, anonymous, wrapped, store.Retry(s, nil)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			wantNoSecret(t, fmt.Sprintf("%s of %T", verb, v), fmt.Sprintf(verb, v))
		}
	}
	text, err := json.Marshal(map[string]any{"a": creds, "b": opts.Credentials})
	if err != nil {
		t.Fatal(err)
	}
	wantNoSecret(t, "JSON", string(text))
	if got, want := s.String(), "s3://h:1/b"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}
