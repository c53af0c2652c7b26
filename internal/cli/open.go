package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"overmount/cache"
	"overmount/internal/httpclient"
	"overmount/manifest"
	"overmount/origin"
	"overmount/store"
	"overmount/tree"
	"overmount/verify"
)

func isURL(file string) bool { return origin.IsURL(file) }

// shown is FILE for people to read: of a URL, without user, password and query,
// which may hold a token.
func shown(file string) string {
	if isURL(file) {
		return verify.StoreName(file)
	}
	return file
}

// baseName is the last part of FILE, a path or a URL, without the suffix of a
// compressed copy.
func baseName(file string) string {
	file = origin.Plain(file)
	if !isURL(file) {
		return filepath.Base(file)
	}
	u, err := url.Parse(file)
	if err != nil {
		return ""
	}
	return path.Base("/" + u.Path)
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// beside is another file in the directory of FILE, a path or a URL.
func beside(file, name string) string {
	if isURL(file) {
		if u, err := url.Parse(file); err == nil {
			u.Path, u.RawPath = path.Join(path.Dir(u.Path), name), ""
			return u.String()
		}
	}
	return filepath.Join(filepath.Dir(file), name)
}

// readLimited reads a file that may not be longer than a limit.
func readLimited(name string, limit int64) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("it has more than %d bytes", limit)}
	}
	return text, err
}

// copyTo writes what is in FILE, a path or a URL, to w. It fails for what is longer
// than limit bytes, and with fs.ErrNotExist for what is not there. What comes may
// pause for as long as a boot pack.
func (a *app) copyTo(ctx context.Context, w io.Writer, file string, limit int64) error {
	o := &origin.Options{}
	if isURL(file) {
		auth, err := a.httpAuth()
		if err != nil {
			return err
		}
		o = withAuth(auth, origin.Options{Client: httpclient.Options{RateWindow: packIdle}})
	}
	f := origin.NewFetcher(o)
	defer f.Close()
	return f.Get(ctx, w, file, limit)
}

// A getter gets files, as copyTo does.
type getter func(ctx context.Context, w io.Writer, file string, limit int64) error

// pathless is an error of a file without its path, for those who have said it.
func pathless(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
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
	m, claims, err := f.trust.open(ctx, a, f.meta)
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
