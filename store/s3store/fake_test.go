package s3store_test

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"overmount/block"
	"overmount/store/storetest"
)

const (
	keyID  = "GK31c2f218a2e44f485b94239e"
	secret = "b892c0665f/0ada8a4755dae98+baa3b133590e11dae"
	token  = "IQoJb3JpZ2luX2VjEHoaCXVzLWVhc3QtMSJHMEUCIQ"
	bucket = "objects.test"
)

// A fake is an S3 server with one bucket. It checks signatures from the
// specification alone: "Create a signed AWS API request" in AWS's documentation.
type fake struct {
	conns atomic.Int64 // connections that were opened

	URL string // s3://HOST/BUCKET, without credentials

	t *testing.T
	fakeOptions

	mu       sync.Mutex
	files    map[string]fakeFile
	requests []string // method, path and query as they were spelled
	headers  []http.Header
	always   storetest.HTTPFault
	next     []storetest.HTTPFault
	server   *httptest.Server
}

type fakeOptions struct {
	region  string        // default garage
	garage  bool          // codes and messages as Garage has them, else as AWS
	token   bool          // the key wants a session token
	noList  bool          // the key may not list, and so gets 403 for missing keys
	noWrite bool          // the key may read only
	hides   bool          // the bucket does not show itself to who may not list
	public  bool          // anyone may read
	ahead   time.Duration // of the server's clock
	page    int           // keys a page at most, default 1000
	plain   bool          // encoding-type is ignored
	tls     bool
}

type fakeFile struct {
	body     []byte
	header   http.Header
	modified time.Time
}

func newFake(t *testing.T, o fakeOptions) *fake {
	t.Helper()
	o.region = cmp.Or(o.region, "garage")
	o.page = cmp.Or(o.page, 1000)
	f := &fake{t: t, fakeOptions: o, files: make(map[string]fakeFile)}
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			f.conns.Add(1)
		}
	}
	f.server.Config.ErrorLog = log.New(io.Discard, "", 0) // of connections that clients drop
	scheme := "s3"
	if o.tls {
		scheme = "s3s"
		f.server.StartTLS()
	} else {
		f.server.Start()
	}
	t.Cleanup(func() {
		f.server.CloseClientConnections()
		f.server.Close()
	})
	f.URL = scheme + "://" + f.server.Listener.Addr().String() + "/" + bucket
	return f
}

// with returns the server's URL with our key.
func (f *fake) with(keyID, secret string) string {
	user := url.UserPassword(keyID, secret).String()
	return strings.Replace(f.URL, "://", "://"+user+"@", 1)
}

func (f *fake) Always(fault storetest.HTTPFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.always = fault
}

func (f *fake) Next(faults ...storetest.HTTPFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = append(f.next, faults...)
}

// Put puts a file behind everyone's back.
func (f *fake) Put(key string, body []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[key] = fakeFile{body: bytes.Clone(body), modified: time.Now()}
}

func (f *fake) File(key string) (fakeFile, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	file, ok := f.files[key]
	return file, ok
}

func (f *fake) Keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.files))
}

// Requests returns what was asked since the last call.
func (f *fake) Requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.requests
	f.requests = nil
	return r
}

// LastHeader returns the header of the last request.
func (f *fake) LastHeader() http.Header {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.headers[len(f.headers)-1]
}

func (f *fake) now() time.Time { return time.Now().Add(f.ahead) }

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Date", f.now().UTC().Format(http.TimeFormat))
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.RequestURI)
	f.headers = append(f.headers, r.Header.Clone())
	fault := f.always
	if len(f.next) > 0 {
		fault, f.next = f.next[0], f.next[1:]
	}
	f.mu.Unlock()
	// To the end: only then the server sees when the client leaves.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	name, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if fault != nil {
		file, _ := f.File(key)
		id, _ := block.ParseID(key[strings.LastIndex(key, "/")+1:])
		fault(w, r, id, file.body)
		return
	}
	if e := f.check(r, body); e != nil {
		f.fail(w, r, *e)
		return
	}
	if name != bucket {
		f.fail(w, r, failure{404, "NoSuchBucket", "The specified bucket does not exist"})
		return
	}
	f.answer(w, r, key, body)
}

func (f *fake) answer(w http.ResponseWriter, r *http.Request, key string, body []byte) {
	signed := r.Header.Get("Authorization") != ""
	denied := failure{403, "AccessDenied", "Access Denied."}
	if f.garage {
		denied.message = "Forbidden: Operation is not allowed for this key."
	}
	file, ok := f.File(key)
	switch {
	case key == "" && r.Method == http.MethodGet && f.noList, key == "" && r.Method == http.MethodHead && f.hides:
		f.fail(w, r, denied)
	case key == "" && r.Method == http.MethodHead:
	case key == "" && r.Method == http.MethodGet:
		f.list(w, r)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		switch {
		case !ok && f.noList:
			f.fail(w, r, denied)
		case !ok:
			f.fail(w, r, failure{404, "NoSuchKey", "The specified key does not exist."})
		default:
			maps.Copy(w.Header(), file.header)
			w.Header().Set("ETag", etag(file.body))
			http.ServeContent(w, r, "", file.modified, bytes.NewReader(file.body))
		}
	case f.noWrite || !signed:
		f.fail(w, r, denied)
	case r.Method == http.MethodPut:
		header := http.Header{"Content-Type": r.Header["Content-Type"], "Cache-Control": r.Header["Cache-Control"]}
		f.mu.Lock()
		f.files[key] = fakeFile{body, header, f.now()}
		f.mu.Unlock()
		w.Header().Set("ETag", etag(body))
	case r.Method == http.MethodDelete:
		f.mu.Lock()
		delete(f.files, key)
		f.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	default:
		f.fail(w, r, failure{405, "MethodNotAllowed", "The specified method is not allowed."})
	}
}

func etag(body []byte) string { return fmt.Sprintf(`"%x"`, md5.Sum(body)) }

func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	type contents struct {
		Key, LastModified string
		Size              int
	}
	var result struct {
		XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
		EncodingType          string   `xml:",omitempty"`
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		Contents              []contents
	}
	query := r.URL.Query()
	most, err := strconv.Atoi(query.Get("max-keys"))
	if err != nil || query.Get("list-type") != "2" {
		f.fail(w, r, failure{400, "InvalidArgument", "Not the list that we want"})
		return
	}
	keys := slices.DeleteFunc(f.Keys(), func(key string) bool {
		return !strings.HasPrefix(key, query.Get("prefix")) || key <= strings.TrimPrefix(query.Get("continuation-token"), "after /&+ ")
	})
	if n := min(most, f.page); len(keys) > n {
		keys = keys[:n]
		result.IsTruncated, result.NextContinuationToken = true, "after /&+ "+keys[n-1]
	}
	for _, key := range keys {
		file, _ := f.File(key)
		if !f.plain && query.Get("encoding-type") == "url" {
			result.EncodingType = "url"
			key = url.QueryEscape(key)
		}
		result.Contents = append(result.Contents, contents{key, file.modified.UTC().Format("2006-01-02T15:04:05.000Z"), len(file.body)})
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprint(w, xml.Header)
	if err := xml.NewEncoder(w).Encode(result); err != nil {
		f.t.Error(err)
	}
}

type failure struct {
	status        int
	code, message string
}

// fail answers an error in XML, as servers do but for HEAD.
func (f *fake) fail(w http.ResponseWriter, r *http.Request, e failure) {
	var region string
	if f.garage || e.code == "AuthorizationHeaderMalformed" {
		region = "<Region>" + f.region + "</Region>"
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(e.status)
	if r.Method != http.MethodHead {
		fmt.Fprint(w, xml.Header+"<Error><Code>"+e.code+"</Code><Message>")
		xml.EscapeText(w, []byte(e.message))
		fmt.Fprint(w, "</Message>"+region+"<Resource>"+r.URL.EscapedPath()+"</Resource></Error>")
	}
}

// check is what a server does before it looks at a request: nil if it is good.
func (f *fake) check(r *http.Request, body []byte) *failure {
	authorization, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		if f.public && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			return nil
		}
		return &failure{403, "AccessDenied", "Access Denied."}
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(authorization, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[name] = value
	}
	id, scope, _ := strings.Cut(fields["Credential"], "/")
	date := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", date)
	if err != nil || len(r.Header.Values("Authorization")) != 1 {
		return &failure{400, "InvalidRequest", "no date, or several signatures"}
	}
	want := at.Format("20060102") + "/" + f.region + "/s3/aws4_request"
	switch {
	case f.now().Sub(at).Abs() > 15*time.Minute && f.garage:
		return &failure{400, "InvalidRequest", "Bad request: Date is too old"}
	case f.now().Sub(at).Abs() > 15*time.Minute:
		return &failure{403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."}
	case scope != want && f.garage:
		return &failure{400, "AuthorizationHeaderMalformed", "Authorization header malformed, unexpected scope: " + scope}
	case scope != want:
		return &failure{400, "AuthorizationHeaderMalformed", "The authorization header is malformed; the region is wrong; expecting '" + f.region + "'"}
	case id != keyID && f.garage:
		return &failure{403, "AccessDenied", "Forbidden: No such key: " + id}
	case id != keyID:
		return &failure{403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."}
	case f.token && r.Header.Get("X-Amz-Security-Token") != token:
		return &failure{403, "InvalidToken", "The provided token is malformed or otherwise invalid."}
	}
	names := strings.Split(fields["SignedHeaders"], ";")
	canonical := canonicalRequest(r, names)
	if sign(secret, date, scope, canonical) != fields["Signature"] {
		if f.garage {
			return &failure{403, "AccessDenied", "Forbidden: Invalid signature"}
		}
		return &failure{403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided."}
	}
	for name := range r.Header {
		name = strings.ToLower(name)
		if must := strings.HasPrefix(name, "x-amz-") || name == "content-type" || name == "cache-control"; must && !slices.Contains(names, name) {
			return &failure{403, "AccessDenied", "not signed: " + name}
		}
	}
	if !slices.Contains(names, "host") || !slices.IsSorted(names) {
		return &failure{403, "AccessDenied", "signed headers are not in order, or without host"}
	}
	if sum := sha256.Sum256(body); r.Header.Get("X-Amz-Content-Sha256") != hex.EncodeToString(sum[:]) {
		return &failure{400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."}
	}
	return nil
}

// canonicalRequest is step 1 of the specification. The path is the decoded one,
// encoded as the specification says, however the client has spelled it.
func canonicalRequest(r *http.Request, signedHeaders []string) string {
	path, query, _ := strings.Cut(r.RequestURI, "?")
	var lines []string
	for pair := range strings.SplitSeq(query, "&") {
		if pair != "" {
			name, value, _ := strings.Cut(pair, "=")
			lines = append(lines, uriEncode(unescape(name), false)+"="+uriEncode(unescape(value), false))
		}
	}
	slices.Sort(lines)
	out := []string{r.Method, uriEncode(unescape(path), true), strings.Join(lines, "&")}
	for _, name := range signedHeaders {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = strconv.FormatInt(r.ContentLength, 10)
		}
		out = append(out, name+":"+strings.Join(strings.Fields(value), " "))
	}
	out = append(out, "", strings.Join(signedHeaders, ";"), r.Header.Get("X-Amz-Content-Sha256"))
	return strings.Join(out, "\n")
}

// sign is steps 2 to 4.
func sign(secret, date, scope, canonical string) string {
	sum := sha256.Sum256([]byte(canonical))
	key := []byte("AWS4" + secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hex.EncodeToString(sum[:])))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// unescape decodes %XX alone: in S3 a + is a +.
func unescape(s string) string {
	u, err := url.PathUnescape(s)
	if err != nil {
		return "(bad escape)"
	}
	return u
}

func uriEncode(s string, path bool) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~", c) >= 0 || path && c == '/' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// The examples of AWS's documentation, "Authenticating Requests: Using the
// Authorization Header".
func TestFakeKnowsTheSpecification(t *testing.T) {
	const nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, c := range []struct{ method, uri, header, value, sum, want string }{
		{"GET", "/test.txt", "Range", "bytes=0-9", nothing, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		{"PUT", "/test$file.text", "X-Amz-Storage-Class", "REDUCED_REDUNDANCY", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
		{"GET", "/?lifecycle", "", "", nothing, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		{"GET", "/?prefix=J&max-keys=2", "", "", nothing, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
	} {
		r := httptest.NewRequest(c.method, c.uri, nil)
		r.Host = "examplebucket.s3.amazonaws.com"
		names := []string{"host", "x-amz-content-sha256", "x-amz-date"}
		if c.header != "" {
			r.Header.Set(c.header, c.value)
			names = append(names, strings.ToLower(c.header))
		}
		if c.method == "PUT" {
			r.Header.Set("Date", "Fri, 24 May 2013 00:00:00 GMT")
			names = append(names, "date")
		}
		slices.Sort(names)
		r.Header.Set("X-Amz-Date", "20130524T000000Z")
		r.Header.Set("X-Amz-Content-Sha256", c.sum)
		got := sign("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524T000000Z", "20130524/us-east-1/s3/aws4_request", canonicalRequest(r, names))
		if got != c.want {
			t.Errorf("signature of the example %s %s = %s, want %s", c.method, c.uri, got, c.want)
		}
	}
}
