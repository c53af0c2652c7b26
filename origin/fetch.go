package origin

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"overmount/internal/atomicfile"
	"overmount/internal/httpclient"
	"overmount/signature"
)

// Options are the options of [NewFetcher]. Nil and zero mean the defaults.
type Options struct {
	// MaxBytes is the length of the longest manifest that is taken, in bytes. The
	// default is 512 MiB: a million files have 300.
	MaxBytes int64
	// Client is how servers are talked to. Its Wrap can bring credentials.
	Client httpclient.Options
}

// A Fetcher gets manifests. Concurrent use is safe, for different names.
type Fetcher struct {
	opts   Options
	client *httpclient.Client
}

// NewFetcher returns a Fetcher, to be closed.
func NewFetcher(o *Options) *Fetcher {
	f := &Fetcher{}
	if o != nil {
		f.opts = *o
	}
	if f.opts.MaxBytes <= 0 {
		f.opts.MaxBytes = 512 << 20
	}
	f.client = httpclient.New(f.opts.Client)
	return f
}

// Close closes idle connections.
func (f *Fetcher) Close() { f.client.Close() }

// A manifest and its signature are two files, and may be replaced between their
// requests. Then both are fetched again.
const (
	replacedTries = 3
	replacedPause = 500 * time.Millisecond
)

// Fetch gets the manifest at a place, and keeps it in dir, which it makes if need
// be. It is not tried again after a failure.
//
// The error is ErrRefused for a manifest that must not be used, fs.ErrNotExist
// for a place where none is, the context's, or another one if the place could not
// be asked. After an error what was kept before is as it was.
func (f *Fetcher) Fetch(ctx context.Context, place, dir string, t Trust) (Copy, error) {
	c, err := f.fetch(ctx, place, dir, t)
	if err != nil && ctx.Err() != nil {
		return Copy{}, ctx.Err()
	}
	if err != nil {
		return Copy{}, fmt.Errorf("manifest %s: %w", Shown(place), err)
	}
	return c, nil
}

func (f *Fetcher) fetch(ctx context.Context, place, dir string, t Trust) (Copy, error) {
	if !IsURL(place) {
		m, c, err := t.check(ctx, place, readSignature(place))
		return Copy{place, Local, c, m}, err
	}
	name, err := Name(place)
	if err != nil {
		return Copy{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Copy{}, err
	}
	for try := 1; ; try++ {
		d := download{Fetcher: f, url: place, file: filepath.Join(dir, name), t: t}
		c, err := d.run(ctx)
		if !errors.Is(err, signature.ErrChangedFile) || try == replacedTries {
			return c, err
		}
		select {
		case <-time.After(replacedPause):
		case <-ctx.Done():
			return Copy{}, ctx.Err()
		}
	}
}

// A download is one try to get a manifest.
type download struct {
	*Fetcher
	url, file string
	t         Trust

	kept *Copy
	sig  []byte
	etag string
}

func (d *download) run(ctx context.Context) (Copy, error) {
	if m, c, err := d.t.check(ctx, d.file, readSignature(d.file)); err == nil {
		d.kept = &Copy{d.file, Unchanged, c, m}
		d.t.MinSerial = max(d.t.MinSerial, c.Serial)
	}
	if d.t.Key != nil {
		if err := d.signature(ctx); err != nil {
			return Copy{}, err
		}
		if d.kept != nil && d.signed() == nil {
			return *d.kept, nil
		}
	}
	return d.manifest(ctx)
}

// signature gets the signature.
func (d *download) signature(ctx context.Context) error {
	u, err := parse(d.url)
	if err != nil {
		return err
	}
	u.Path += signature.Suffix
	if u.RawPath != "" {
		u.RawPath += signature.Suffix
	}
	resp, err := d.get(ctx, u.String(), "")
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it is not signed: %w", ErrRefused, err)
	}
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	defer resp.Body.Close()
	d.sig, err = io.ReadAll(io.LimitReader(resp.Body, signature.MaxSize+1))
	return err
}

// signed reports, with nil, that the signature that just came is that of the
// manifest that was kept. It is noted beside it: its serial may be a new one.
func (d *download) signed() error {
	_, c, err := d.t.check(context.Background(), d.file, func() ([]byte, error) { return d.sig, nil })
	if err != nil {
		return err
	}
	d.kept.Claims = c
	return atomicfile.Write(d.file+signature.Suffix, d.sig, 0o644)
}

// manifest gets the manifest, checks it, and keeps it.
func (d *download) manifest(ctx context.Context) (Copy, error) {
	etag := ""
	if d.kept != nil && d.t.Key == nil {
		etag = d.readETag()
	}
	resp, err := d.get(ctx, d.url, etag)
	if err != nil {
		return Copy{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified {
		return *d.kept, nil
	}
	d.etag = resp.Header.Get("ETag")
	out, err := atomicfile.Create(d.file, 0o644)
	if err != nil {
		return Copy{}, err
	}
	defer out.Abort()
	if err := d.body(out, resp); err != nil {
		return Copy{}, err
	}
	m, c, err := d.t.check(ctx, out.Name(), func() ([]byte, error) { return d.sig, nil })
	if err != nil {
		return Copy{}, err
	}
	return Copy{d.file, Fetched, c, m}, d.keep(out)
}

// keep puts the manifest and what goes with it in place. The tag goes first and
// comes last, so that it never stands beside another manifest.
func (d *download) keep(out *atomicfile.File) error {
	if err := os.Remove(d.file + ".etag"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := out.Commit(); err != nil {
		return err
	}
	if d.sig != nil {
		if err := atomicfile.Write(d.file+signature.Suffix, d.sig, 0o644); err != nil {
			return err
		}
	}
	if d.etag == "" || len(d.etag) > maxETag {
		return nil
	}
	return atomicfile.Write(d.file+".etag", []byte(d.etag), 0o644)
}

// maxETag is the length of the longest entity tag that is kept, in bytes.
const maxETag = 1024

func (d *download) readETag() string {
	f, err := os.Open(d.file + ".etag")
	if err != nil {
		return ""
	}
	defer f.Close()
	tag, err := io.ReadAll(io.LimitReader(f, maxETag+1))
	if err != nil || len(tag) > maxETag || strings.ContainsAny(string(tag), "\r\n\x00") {
		return ""
	}
	return string(tag)
}

// get makes a request. An answer other than 200, and 304 if there is a tag, is an
// error.
func (d *download) get(ctx context.Context, from, etag string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, errors.New("the URL cannot be used")
	}
	req.Header.Set("User-Agent", "overmount")
	if !strings.HasSuffix(from, signature.Suffix) {
		req.Header.Set("Accept-Encoding", "zstd, gzip")
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, err
	}
	switch code := resp.StatusCode; {
	case code == http.StatusOK, code == http.StatusNotModified && etag != "":
		return resp, nil
	case code == http.StatusNotFound, code == http.StatusGone:
		err = fmt.Errorf("the server answers %s (%w)", resp.Status, fs.ErrNotExist)
	default:
		err = fmt.Errorf("the server answers %s", resp.Status)
	}
	resp.Body.Close()
	return nil, err
}

// body writes an answer's body, decompressed, and refuses what is too long or cut.
func (d *download) body(w io.Writer, resp *http.Response) error {
	r, err := decoded(resp)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, d.opts.MaxBytes+1))
	switch {
	case err != nil:
		return fmt.Errorf("after %d bytes: %w", n, err)
	case n > d.opts.MaxBytes:
		return fmt.Errorf("%w: it is longer than %d bytes", ErrRefused, d.opts.MaxBytes)
	}
	return nil
}

func decoded(resp *http.Response) (io.ReadCloser, error) {
	switch encoding := resp.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
		return io.NopCloser(resp.Body), nil
	case "gzip":
		return gzip.NewReader(resp.Body)
	case "zstd":
		r, err := zstd.NewReader(resp.Body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(16<<20))
		if err != nil {
			return nil, err
		}
		return r.IOReadCloser(), nil
	default:
		return nil, fmt.Errorf("the server sends it as %.20q, which was not asked for", encoding)
	}
}
