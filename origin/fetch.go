package origin

import (
	"cmp"
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

	"overmount/internal/atomicfile"
	"overmount/internal/httpclient"
	"overmount/manifest"
	"overmount/signature"
)

// Options are the options of [NewFetcher]. Nil and zero mean the defaults.
type Options struct {
	// MaxBytes is the length of the longest manifest that is taken, in bytes. The
	// default is 512 MiB: a million files have 300.
	MaxBytes int64
	// TempDir is where Copy and Open put what they copy. The default is that of the
	// system.
	TempDir string
	// Client is how servers are talked to. Its Wrap can bring credentials.
	Client httpclient.Options
	// Hint, if set, says what may help when a server refuses a request for want of
	// the right credentials. It must not name any.
	Hint func(*http.Request) string
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

// pauses are those before the tries to get a manifest that was replaced while it was
// fetched.
func pauses() []time.Duration { return []time.Duration{300 * time.Millisecond, time.Second} }

// again tries to get signature and manifest from a place, and tries again if they do
// not belong together.
func again(ctx context.Context, place string, try func() error) error {
	err := try()
	for _, pause := range pauses() {
		if !IsURL(place) || !errors.Is(err, signature.ErrChangedFile) {
			break
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		err = try()
	}
	return err
}

// Fetch gets the manifest at a place, and keeps it in dir, which it makes if need
// be. It is not tried again after a failure.
//
// The error is ErrRefused for a manifest that must not be used, fs.ErrNotExist
// for a place where none is, the context's, or another one if the place could not
// be asked. After an error what was kept before is as it was.
func (f *Fetcher) Fetch(ctx context.Context, place, dir string, t Trust) (c Copy, err error) {
	if !IsURL(place) {
		return f.local(ctx, place, t)
	}
	c, err = f.fetch(ctx, place, dir, t)
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return Copy{}, ctx.Err()
	case errors.Is(err, ErrRefused):
		return Copy{}, refused(place, err)
	}
	return Copy{}, fmt.Errorf("manifest %s: %w", Shown(place), err)
}

func (f *Fetcher) local(ctx context.Context, place string, t Trust) (Copy, error) {
	p, err := f.Open(ctx, place, t)
	if err != nil {
		return Copy{}, err
	}
	return Copy{place, Local, p.Claims, p.Manifest}, p.Close()
}

func (f *Fetcher) fetch(ctx context.Context, place, dir string, t Trust) (c Copy, err error) {
	name, err := Name(place)
	if err != nil {
		return Copy{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Copy{}, err
	}
	err = again(ctx, place, func() (err error) {
		d := download{Fetcher: f, place: place, file: filepath.Join(dir, name), t: t}
		c, err = d.run(ctx)
		return err
	})
	return c, err
}

// A download is one try to get a manifest.
type download struct {
	*Fetcher
	place, file string
	t           Trust

	kept *Copy
	sig  []byte
	etag string
}

func (d *download) run(ctx context.Context) (Copy, error) {
	if m, c, err := d.t.keptCheck(ctx, d.file); err == nil {
		d.kept = &Copy{d.file, Unchanged, c, m}
		d.t.MinSerial = max(d.t.MinSerial, c.Serial)
	}
	if d.t.Key != nil {
		var err error
		if d.sig, err = d.signature(ctx, d.place); errors.Is(err, ErrUnsigned) {
			return Copy{}, cmp.Or(d.absent(ctx), err)
		}
		if err != nil {
			return Copy{}, fmt.Errorf("signature: %w", err)
		}
		if d.kept != nil && d.signed() == nil {
			return *d.kept, nil
		}
	}
	return d.manifest(ctx)
}

// absent returns an error if the server says that there is no manifest either: whoever
// has not published it has not forgotten to sign it.
func (d *download) absent(ctx context.Context) error {
	resp, err := d.ask(ctx, d.place, accepting(d.place))
	if err == nil {
		resp.Body.Close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// signed reports, with nil, that the signature that just came is that of the
// manifest that was kept. It is noted beside it: its serial may be a new one. Of
// several only the first counts, which is that of the newest manifest.
func (d *download) signed() error {
	in, err := os.Open(d.file)
	if err != nil {
		return err
	}
	defer in.Close()
	c, err := d.t.verify(in, signature.First(d.sig))
	if err == nil {
		err = d.t.wanted(d.kept.Manifest, c)
	}
	if err != nil {
		return err
	}
	d.kept.Claims = c
	return atomicfile.Write(d.file+signature.Suffix, d.sig, 0o644)
}

// manifest gets the manifest, checks it, and keeps it.
func (d *download) manifest(ctx context.Context) (Copy, error) {
	header := accepting(d.place)
	if etag := d.readETag(); etag != "" && d.kept != nil && d.t.Key == nil {
		header.Set("If-None-Match", etag)
	}
	resp, err := d.ask(ctx, d.place, header)
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
	if err := d.body(out, resp, d.place); err != nil {
		return Copy{}, err
	}
	m, c, err := d.written(ctx, out)
	if err != nil {
		return Copy{}, err
	}
	return Copy{d.file, Fetched, c, m}, d.keep(out)
}

// written checks what came.
func (d *download) written(ctx context.Context, out *atomicfile.File) (*manifest.Manifest, signature.Claims, error) {
	in, err := os.Open(out.Name())
	if err != nil {
		return nil, signature.Claims{}, err
	}
	defer in.Close()
	return d.t.check(ctx, in, d.sig)
}

// keep puts the manifest and what goes with it in place. The tag goes first and
// comes last, so that it never stands beside another manifest.
func (d *download) keep(out *atomicfile.File) error {
	for _, name := range []string{d.file, d.file + Suffix} {
		if err := os.Remove(name + tagSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
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
	return atomicfile.Write(d.tagFile(), []byte(d.etag), 0o644)
}

const (
	tagSuffix = ".etag"
	// maxETag is the length of the longest entity tag that is kept, in bytes.
	maxETag = 1024
)

// tagFile is where the entity tag is. That of a compressed copy is another one.
func (d *download) tagFile() string {
	if Compressed(d.place) {
		return d.file + Suffix + tagSuffix
	}
	return d.file + tagSuffix
}

func (d *download) readETag() string {
	f, err := os.Open(d.tagFile())
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
