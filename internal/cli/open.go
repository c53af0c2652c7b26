package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overmount/cache"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/httpstore"
	"overmount/tree"
	"overmount/verify"
)

// maxManifest is the length of the longest manifest that is fetched from a URL,
// in bytes. A million files take 300 MB.
const maxManifest = 4 << 30

func isURL(file string) bool {
	return strings.HasPrefix(file, "http://") || strings.HasPrefix(file, "https://")
}

// shown is FILE for people to read: of a URL, without user, password and query,
// which may hold a token.
func shown(file string) string {
	if isURL(file) {
		return verify.StoreName(file)
	}
	return file
}

// openManifest opens FILE, a path or a URL, whoever made it.
func openManifest(ctx context.Context, file string) (*manifest.Manifest, error) {
	m, _, err := new(trust).open(ctx, file)
	return m, err
}

// copyTo writes what is in FILE, a path or a URL, to w. It fails for what is longer
// than limit bytes, and with fs.ErrNotExist for what is not there.
func copyTo(ctx context.Context, w io.Writer, file string, limit int64) error {
	return copyAs(ctx, w, file, limit, nil)
}

// copyAs is copyTo with credentials, which may be nil.
func copyAs(ctx context.Context, w io.Writer, file string, limit int64, auth *httpstore.Auth) error {
	if isURL(file) {
		return fetchTo(ctx, w, file, limit, auth)
	}
	info, err := os.Stat(file)
	if err != nil {
		return pathless(err)
	}
	if !info.Mode().IsRegular() { // opening a pipe may wait
		return errors.New("it is not a file")
	}
	f, err := os.Open(file)
	if err != nil {
		return pathless(err)
	}
	defer f.Close()
	_, err = copyLimited(w, f, limit)
	return err
}

// pathless is an error of a file without its path, for those who have said it.
func pathless(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

func copyLimited(w io.Writer, r io.Reader, limit int64) (int64, error) {
	n, err := io.Copy(w, io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("it is longer than %d bytes", limit)
	}
	return n, err
}

// A statusError is an answer of a server other than 200.
type statusError struct {
	code   int
	status string
}

func (e *statusError) Error() string { return "the server answers " + e.status }

func (e *statusError) Is(target error) bool {
	return target == fs.ErrNotExist && (e.code == http.StatusNotFound || e.code == http.StatusGone)
}

func fetchTo(ctx context.Context, w io.Writer, from string, limit int64, auth *httpstore.Auth) error {
	// The errors of net/url repeat what they cannot parse, with its password.
	if _, err := store.ParseSpec(from); err != nil {
		return err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 30 * time.Second
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "overmount")
	client := &http.Client{Transport: transport}
	if auth != nil {
		client.Transport = auth.Transport(transport)
	}
	resp, err := client.Do(req)
	if repeats, ok := errors.AsType[*url.Error](err); ok {
		return repeats.Err
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return &statusError{resp.StatusCode, resp.Status}
	}
	n, err := copyLimited(w, resp.Body, limit)
	if err == nil && resp.ContentLength >= 0 && n != resp.ContentLength {
		err = fmt.Errorf("%d of %d bytes came", n, resp.ContentLength)
	}
	return err
}

// treeFlags are the flags of verbs that read content.
type treeFlags struct {
	meta      string
	trust     trust
	cacheDir  string
	cacheSize size
	minFree   size
	timeout   time.Duration
	countEach bool // count requests for each object
}

func (f *treeFlags) add(cmd *cobra.Command, cacheHelp, cacheDefault string) {
	metaFlag(cmd, &f.meta, "manifest `FILE`, a path or an http(s) URL")
	f.trust.flags(cmd)
	f.trust.kindFlags(cmd)
	cmd.Flags().StringVarP(&f.cacheDir, "cache", "c", cacheDefault, cacheHelp)
	f.cacheSize = 4 << 30
	cmd.Flags().Var(&f.cacheSize, "cache-size", "most that the cache may hold")
	f.minFree = -1
	cmd.Flags().Var(&f.minFree, "cache-min-free", "least that the cache leaves free on its file system (default a twentieth, at most 1GiB)")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 90*time.Second, "how long a read waits for a store that does not answer before it fails")
}

// opened is a manifest with its content.
type opened struct {
	tree  *tree.Tree
	src   store.Reader // of the tree's objects
	count *tally
	cache *cache.Cache // nil without one
}

func (o *opened) close() error {
	if o.cache == nil {
		return nil
	}
	return o.cache.Close()
}

// open opens the manifest and its stores, and puts the cache before them.
func (f *treeFlags) open(ctx context.Context, a *app, log *slog.Logger) (*opened, error) {
	m, claims, err := f.trust.open(ctx, f.meta)
	if err != nil {
		return nil, err
	}
	if claims.Serial > 0 {
		log.Info("the signature is right", "manifest", shown(f.meta), "kind", claims.Kind, "kver", claims.Kver, "serial", claims.Serial)
	}
	return f.openContent(a, m, log)
}

// openContent opens the stores of a manifest, and puts the cache before them.
func (f *treeFlags) openContent(a *app, m *manifest.Manifest, log *slog.Logger) (*opened, error) {
	count := store.Count
	if f.countEach {
		count = store.CountEach
	}
	src, counter, err := a.countedStores(m.Routes(), f.timeout, count, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", shown(f.meta), err)
	}
	o := &opened{count: counter}
	if f.cacheDir != "" {
		opts := &cache.Options{MaxBytes: int64(f.cacheSize), Logger: log}
		switch {
		case f.minFree == 0:
			opts.MinFree = -1 // which means none
		case f.minFree > 0:
			opts.MinFree = int64(f.minFree)
		}
		if o.cache, err = cache.New(f.cacheDir, src, opts); err != nil {
			return nil, err
		}
		src = o.cache
	}
	o.src = src
	o.tree = tree.New(m, src, nil)
	return o, nil
}
