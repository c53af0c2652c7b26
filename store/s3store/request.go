package s3store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"overmount/internal/httpclient"
	"overmount/store"
)

const firstRegion = "us-east-1"

// A request is what is asked of the bucket, or of a key in it.
type request struct {
	method string
	list   bool
	key    string // empty: the bucket
	query  url.Values

	// For PUT:
	body                      io.ReaderAt
	size                      int64
	contentType, cacheControl string
}

// do makes a request, and a second one if the answer to the first one tells the
// region. It returns the answer to a request that succeeded; its body must be
// closed.
func (s *Store) do(ctx context.Context, r request) (*http.Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sum, err := r.sum()
	if err != nil {
		return nil, s.failed(ctx, r, err)
	}
	region := s.currentRegion()
	resp, err := s.send(ctx, r, sum, region)
	if s.learnRegion(err, region) {
		resp, err = s.send(ctx, r, sum, s.currentRegion())
	}
	if err != nil {
		return nil, s.failed(ctx, r, err)
	}
	return resp, nil
}

// failed says what was being done. Who has given up hears just that.
func (s *Store) failed(ctx context.Context, r request, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if r.list {
		return fmt.Errorf("LIST %s: %w", s, err)
	}
	return fmt.Errorf("%s %s: %w", r.method, s.display(r.key), err)
}

// sum returns the SHA-256 of the body in hex.
func (r *request) sum() (string, error) {
	hash := sha256.New()
	if r.body != nil {
		n, err := io.Copy(hash, io.NewSectionReader(r.body, 0, r.size))
		if err == nil && n != r.size {
			err = fmt.Errorf("it ended after %d of %d bytes", n, r.size)
		}
		if err != nil {
			return "", fmt.Errorf("read what is to be uploaded: %w", err)
		}
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func (s *Store) send(ctx context.Context, r request, sum, region string) (*http.Response, error) {
	req, err := s.newRequest(ctx, r)
	if err != nil {
		return nil, err
	}
	if s.creds != nil {
		req.Header.Set("X-Amz-Content-Sha256", sum)
		keys := aws.Credentials{AccessKeyID: s.creds.KeyID, SecretAccessKey: s.creds.Secret, SessionToken: s.creds.SessionToken}
		if err := s.signer.SignHTTP(ctx, keys, req, sum, "s3", region, time.Now()); err != nil {
			return nil, errors.New("the request cannot be signed")
		}
	}
	// To net/http, a request with this key may be sent again when the idle
	// connection that it took turns out to be dead. Without a value it is not
	// sent, and so must not be signed.
	req.Header["Idempotency-Key"] = nil
	resp, err := s.client.Do(req)
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return nil, fmt.Errorf("%w: the server does not speak TLS: want s3:// instead of s3s://, or another port", store.ErrForbidden)
	case err != nil:
		return nil, fmt.Errorf("no answer from %s: %w", s.host, err)
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusNoContent && r.method == http.MethodDelete:
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, s.refusal(r, resp, region)
}

func (s *Store) newRequest(ctx context.Context, r request) (*http.Request, error) {
	path := "/" + s.bucket
	if r.key != "" {
		path += "/" + r.key
	}
	u := &url.URL{Scheme: s.scheme, Host: s.host, Path: path, RawPath: escape(path)}
	u.RawQuery = strings.ReplaceAll(r.query.Encode(), "+", "%20")
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		return nil, errors.New("the URL cannot be requested")
	}
	req.URL = u
	req.Header.Set("User-Agent", "overmount")
	if r.method != http.MethodPut {
		return req, nil
	}
	req.Header.Set("Content-Type", r.contentType)
	req.Header.Set("Cache-Control", r.cacheControl)
	if req.ContentLength = r.size; r.size > 0 {
		req.GetBody = func() (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(r.body, 0, r.size)), nil
		}
		req.Body, err = req.GetBody()
	}
	return req, err
}

// escape encodes all but what S3 signs as it is: letters, digits, -, ., _, ~ and,
// as it stands between the parts of a path, the slash.
func escape(path string) string {
	var b strings.Builder
	for _, c := range []byte(path) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~/", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func (s *Store) currentRegion() string {
	if learned := s.learned.Load(); learned != nil {
		return *learned
	}
	return cmp.Or(s.region, firstRegion)
}

// learnRegion reports whether err tells another region than the one that was
// signed for, and keeps it. A region that was given is never replaced.
func (s *Store) learnRegion(err error, signed string) bool {
	answer, ok := errors.AsType[*answerError](err)
	if !ok || s.creds == nil || s.region != "" || answer.status != http.StatusBadRequest || answer.region == "" || answer.region == signed {
		return false
	}
	s.learned.Store(&answer.region)
	return true
}

// read reads the body of an answer, at most most bytes of it.
func (s *Store) read(ctx context.Context, r request, resp *http.Response, most int64) ([]byte, error) {
	body, err := httpclient.ReadAll(resp.Body, resp.ContentLength, most)
	if err != nil {
		return nil, s.failed(ctx, r, err)
	}
	return body, nil
}
