package storetest

import (
	"bytes"
	"crypto/md5"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A BucketServer is a bucket in memory with its two sides: S3, as far as it takes
// to publish, for who has the key id, and a web server of the same files for
// everyone. Signatures are not checked.
type BucketServer struct {
	S3  string // URL of the bucket for a store, with a region
	Web string // URL of what is in the bucket

	keyID string
	delay time.Duration

	mu       sync.Mutex
	files    map[string][]byte
	requests []string
	fault    BucketFault
	at       int
}

// A BucketFault takes the place of an answer, which it may give all the same.
type BucketFault func(w http.ResponseWriter, r *http.Request, answer http.HandlerFunc)

// NewBucketServer starts a server for the time of the test, which thinks for a time
// about each request.
func NewBucketServer(t testing.TB, keyID string, delay time.Duration) *BucketServer {
	t.Helper()
	s := &BucketServer{keyID: keyID, delay: delay, files: map[string][]byte{}}
	server := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	s.S3 = strings.Replace(server.URL, "http", "s3", 1) + "/bucket?region=rack-7"
	s.Web = server.URL + "/web"
	return s
}

// Reset sets the files, and forgets the requests so far.
func (s *BucketServer) Reset(files map[string][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files, s.requests, s.at, s.fault = map[string][]byte{}, nil, 0, nil
	maps.Copy(s.files, files)
}

// FaultAt lets the fault have one of the requests that follow Reset, from 1.
func (s *BucketServer) FaultAt(n int, fault BucketFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.fault = n, fault
}

// Files returns what is in the bucket by its key.
func (s *BucketServer) Files() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.files)
}

// Requests returns the requests since the last call, as "GET /path".
func (s *BucketServer) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests := s.requests
	s.requests = nil
	return requests
}

func (s *BucketServer) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || int64(len(body)) != max(r.ContentLength, 0) {
		return // of an upload that was cut, nothing is kept
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	time.Sleep(s.delay)
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.RequestURI)
	fault := s.fault
	if len(s.requests) != s.at {
		fault = nil
	}
	s.mu.Unlock()
	if fault != nil {
		fault(w, r, s.answer)
		return
	}
	s.answer(w, r)
}

func (s *BucketServer) answer(w http.ResponseWriter, r *http.Request) {
	if key, ok := strings.CutPrefix(r.URL.Path, "/web/"); ok && r.Method == http.MethodGet {
		s.get(w, key)
		return
	}
	key, ok := strings.CutPrefix(r.URL.Path, "/bucket")
	key = strings.TrimPrefix(key, "/")
	switch {
	case !ok || !strings.Contains(r.Header.Get("Authorization"), "Credential="+s.keyID+"/"):
		refuse(w, http.StatusForbidden, "AccessDenied")
	case key == "" && r.Method == http.MethodGet:
		s.list(w, r)
	case key == "":
	case r.Method == http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.files[key] = body
		s.mu.Unlock()
		w.Header().Set("ETag", "put")
	default:
		s.get(w, key)
	}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
}

func (s *BucketServer) get(w http.ResponseWriter, key string) {
	s.mu.Lock()
	body, ok := s.files[key]
	s.mu.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, md5.Sum(body)))
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}

func (s *BucketServer) list(w http.ResponseWriter, r *http.Request) {
	type contents struct {
		Key, LastModified string
		Size              int
	}
	var result struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		Contents              []contents
	}
	query := r.URL.Query()
	most, err := strconv.Atoi(query.Get("max-keys"))
	if err != nil || most < 1 {
		refuse(w, http.StatusBadRequest, "InvalidArgument")
		return
	}
	files := s.Files()
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(files)), func(key string) bool {
		return !strings.HasPrefix(key, query.Get("prefix")) || key <= query.Get("continuation-token")
	})
	if len(keys) > most {
		keys = keys[:most]
		result.IsTruncated, result.NextContinuationToken = true, keys[most-1]
	}
	for _, key := range keys {
		result.Contents = append(result.Contents, contents{key, "2026-01-02T03:04:05.000Z", len(files[key])})
	}
	fmt.Fprint(w, xml.Header)
	xml.NewEncoder(w).Encode(result)
}
