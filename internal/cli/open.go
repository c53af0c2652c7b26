package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	"overmount/tree"
)

// maxManifest is the length of the longest manifest that is fetched from a URL,
// in bytes. A million files take 300 MB.
const maxManifest = 4 << 30

func isURL(file string) bool {
	return strings.HasPrefix(file, "http://") || strings.HasPrefix(file, "https://")
}

// shown is FILE for people to read: of a URL, without its password.
func shown(file string) string {
	if isURL(file) {
		return store.Redact(file)
	}
	return file
}

// openManifest opens FILE, a path or a URL.
func openManifest(ctx context.Context, file string) (*manifest.Manifest, error) {
	if !isURL(file) {
		return manifest.Open(ctx, file)
	}
	// The errors of net/url repeat what they cannot parse, with its password.
	if _, err := store.ParseSpec(file); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	tmp, err := os.CreateTemp("", "overmount-*.fl")
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := fetchManifest(ctx, file, tmp); err != nil {
		return nil, fmt.Errorf("fetch manifest %s: %w", store.Redact(file), err)
	}
	m, err := manifest.Open(ctx, tmp.Name())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", store.Redact(file), err)
	}
	return m, nil
}

func fetchManifest(ctx context.Context, from string, to io.Writer) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 30 * time.Second
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "overmount")
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if repeats, ok := errors.AsType[*url.Error](err); ok {
		return repeats.Err
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answers %s", resp.Status)
	}
	n, err := io.Copy(to, io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return err
	}
	if n > maxManifest {
		return fmt.Errorf("it is longer than %d bytes", int64(maxManifest))
	}
	if resp.ContentLength >= 0 && n != resp.ContentLength {
		return fmt.Errorf("%d of %d bytes came", n, resp.ContentLength)
	}
	return nil
}

// treeFlags are the flags of verbs that read content.
type treeFlags struct {
	meta      string
	cacheDir  string
	cacheSize size
	minFree   size
	timeout   time.Duration
}

func (f *treeFlags) add(cmd *cobra.Command, cacheHelp, cacheDefault string) {
	metaFlag(cmd, &f.meta, "manifest `FILE`, a path or an http(s) URL")
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
	cache *cache.Cache // nil without one
}

func (o *opened) close() error {
	if o.cache == nil {
		return nil
	}
	return o.cache.Close()
}

// open opens the manifest and its stores, and puts the cache before them.
func (f *treeFlags) open(ctx context.Context, log *slog.Logger) (*opened, error) {
	m, err := openManifest(ctx, f.meta)
	if err != nil {
		return nil, err
	}
	src, err := readStores(m.Routes(), f.timeout, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", shown(f.meta), err)
	}
	o := &opened{}
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
	o.tree = tree.New(m, src, nil)
	return o, nil
}
