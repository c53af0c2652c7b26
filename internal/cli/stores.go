package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/httpstore"
	"overmount/store/s3store"
	"overmount/store/zdbstore"
	"overmount/verify"
)

// storeHelp tells what a STORE is, for the help of verbs that write to some.
const storeHelp = `STORE is [xx-yy=]URL. The range says which objects go there, by the first byte
of their names in hex; the default is 00-ff. Several stores with one range are
replicas of each other. A URL is one of

  dir:///absolute/path
  s3://HOST[:PORT]/BUCKET[/PREFIX][?region=R&layout=sharded|flat]     s3s:// with TLS
  zdb://[:PASSWORD@]HOST[:PORT][/NAMESPACE]

Credentials for S3 come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from
--credentials FILE or the files of AWS's tools, or from the URL
(s3://KEY:SECRET@HOST/BUCKET, with / in them as %2F), which other users of this
host can see.`

// storeFlags say with which credentials stores are opened.
type storeFlags struct {
	credentials string
	authFile    string
}

func (f *storeFlags) add(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&f.authFile, "auth-file", "", "`FILE` with tokens and passwords for HTTP servers (default: "+httpstore.AuthFileEnv+")")
}

// addS3 adds the flags for stores that only the whole program knows.
func (f *storeFlags) addS3(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&f.credentials, "credentials", "", "`FILE` with credentials for S3, like AWS's (default: AWS's environment variables and files)")
}

// writeStores opens the stores to write to, and returns what the manifest shall
// say of them. Each is asked whether it will do before anything is written.
func (a *app) writeStores(ctx context.Context, specs []string, keepPassword bool) (store.Routes, []manifest.Route, error) {
	var writers store.Routes
	var routes []manifest.Route
	opened := map[string]store.Writer{}
	for _, text := range specs {
		spec, err := parseSpec(text)
		if err != nil {
			return nil, nil, err
		}
		w := opened[spec.URL.String()]
		if w == nil {
			if w, err = a.openWriter(ctx, spec.URL); err != nil {
				return nil, nil, err
			}
			opened[spec.URL.String()] = w
		}
		writers = append(writers, store.Route{First: spec.First, Last: spec.Last, Writer: w})
		routes = append(routes, routeTo(spec, keepPassword))
	}
	return writers, routes, covered(routes)
}

// parseSpec takes a store specification or, for convenience, the path of a
// directory.
func parseSpec(text string) (store.Spec, error) {
	if !strings.Contains(text, "://") && strings.ContainsRune(text, '/') && !strings.ContainsRune(text, '=') {
		dir, err := filepath.Abs(text)
		if err != nil {
			return store.Spec{}, err
		}
		return store.Spec{Last: 255, URL: &url.URL{Scheme: "dir", Path: dir}}, nil
	}
	return store.ParseSpec(text)
}

// preflight is what stores can do that tell early why they will not work.
type preflight interface {
	Preflight(ctx context.Context) error
}

// preflightLimit is how long a store may take to answer the first question.
const preflightLimit = 30 * time.Second

func (a *app) openWriter(ctx context.Context, u *url.URL) (store.Writer, error) {
	var s interface {
		store.Writer
		preflight
	}
	var err error
	switch u.Scheme {
	case "dir":
		dir, err := dirPath(u)
		if err != nil {
			return nil, err
		}
		return store.NewDir(dir), nil
	case "s3", "s3s":
		s, err = a.openS3(u)
	case "zdb":
		s, err = zdbstore.New(u, nil)
	case "http", "https":
		return nil, fmt.Errorf("store %s: HTTP stores can only be read; write to a directory that the server serves, dir:///path, or to the bucket behind it, s3://", redacted(u))
	default:
		return nil, a.unknownScheme(u)
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, preflightLimit)
	defer cancel()
	if err := s.Preflight(ctx); err != nil {
		return nil, fmt.Errorf("store %s: %w", redacted(u), err)
	}
	if s3, ok := s.(*s3store.Store); ok {
		return bucket{s3, store.RetryWriter(s3, nil)}, nil
	}
	return store.RetryWriter(s, nil), nil
}

// A bucket is a store in S3 whose writes are tried again.
type bucket struct {
	*s3store.Store
	retried store.Writer
}

func (b bucket) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	return b.retried.Put(ctx, id, object)
}

func (a *app) openS3(u *url.URL) (*s3store.Store, error) {
	opts := &s3store.Options{Region: s3store.LoadRegion(a.Getenv)}
	if u.User == nil {
		var err error
		if opts.Credentials, err = s3store.LoadCredentials(a.Getenv, a.stores.credentials); err != nil {
			return nil, err
		}
	}
	return s3store.New(u, opts)
}

func (a *app) openHTTP(u *url.URL) (*httpstore.Store, error) {
	auth, err := a.httpAuth()
	if err != nil {
		return nil, err
	}
	return httpstore.New(u, &httpstore.Options{Auth: auth})
}

// httpAuth reads the credentials for HTTP servers.
func (a *app) httpAuth() (*httpstore.Auth, error) {
	file := a.stores.authFile
	if file == "" {
		file = a.Getenv(httpstore.AuthFileEnv)
	}
	return httpstore.ReadAuth(file, a.Getenv(httpstore.AuthEnv))
}

// redacted is a store's URL for people. The query may hold a token.
func redacted(u *url.URL) string { return verify.StoreName(u.String()) }

func (a *app) unknownScheme(u *url.URL) error {
	known := strings.Join(slices.Sorted(maps.Keys(a.readers)), ", ")
	if a.forBoot {
		return fmt.Errorf("store %s: the program for machines that boot reads no scheme %q, only %s", redacted(u), u.Scheme, known)
	}
	return fmt.Errorf("store %s: this version knows no scheme %q, only %s", redacted(u), u.Scheme, known)
}

func dirPath(u *url.URL) (string, error) {
	if u.Host != "" || !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("store %s: a directory needs an absolute path and three slashes, as in dir:///srv/objects", u.Redacted())
	}
	return filepath.Clean(u.Path), nil
}

// readStores opens the stores of a manifest for reading. Routes that this
// program cannot read are left out with a warning, as long as others are left.
func (a *app) readStores(routes []manifest.Route, budget time.Duration, log *slog.Logger) (store.Reader, error) {
	r, _, err := a.countedStores(routes, budget, store.Count, log)
	return r, err
}

// A tally counts what was wanted of stores, and what was tried for it.
type tally struct{ wanted, tried *store.Counter }

// retries are the requests after the first for an object. The counts are those of
// wanted and of tried, which are not taken at one moment.
func retries(wanted, tried store.Counts) int64 { return max(tried.Requests-wanted.Requests, 0) }

// countedStores is readStores, with what count has made to count the requests.
func (a *app) countedStores(routes []manifest.Route, budget time.Duration, count func(store.Reader) *store.Counter, log *slog.Logger) (store.Reader, *tally, error) {
	var readers store.Routes
	var failed []error
	opened := map[string]store.Reader{}
	for _, route := range routes {
		r, err := a.openReader(route.URL, opened)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		readers = append(readers, store.Route{First: route.First, Last: route.Last, Reader: r})
	}
	if len(readers) == 0 {
		if len(routes) == 0 {
			return nil, nil, errors.New(`the manifest names no store; add one with "overmount config -m FILE store add -s URL"`)
		}
		return nil, nil, fmt.Errorf("no store of the manifest can be read: %w", errors.Join(failed...))
	}
	for _, err := range failed {
		log.Warn("leaving out a store of the manifest", "reason", err)
	}
	log = log.With("stores", storeNames(routes))
	tried := count(store.Ranked(readers))
	wanted := count(store.Retry(tried, &store.RetryOptions{Budget: budget, Logger: log}))
	return wanted, &tally{wanted, tried}, nil
}

// storeNames names the stores of routes, for people.
func storeNames(routes []manifest.Route) string {
	var names []string
	for _, r := range routes {
		if name := verify.StoreName(r.URL); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// openReader opens the store at a URL, once for all of its routes.
func (a *app) openReader(text string, opened map[string]store.Reader) (store.Reader, error) {
	if r := opened[text]; r != nil {
		return r, nil
	}
	spec, err := store.ParseSpec(text)
	if err != nil {
		return nil, err
	}
	open := a.readers[spec.URL.Scheme]
	if open == nil {
		return nil, a.unknownScheme(spec.URL)
	}
	r, err := open(spec.URL)
	if err != nil {
		return nil, err
	}
	opened[text] = r
	return r, nil
}

// An opener opens a store for reading. The store checks what it reads.
type opener func(u *url.URL) (store.Reader, error)

func readDir(u *url.URL) (store.Reader, error) {
	dir, err := dirPath(u)
	if err != nil {
		return nil, err
	}
	return store.Checked(store.NewDir(dir)), nil
}

func readZDB(u *url.URL) (store.Reader, error) {
	s, err := zdbstore.New(u, nil)
	if err != nil {
		return nil, err
	}
	return store.Checked(s), nil
}

func (a *app) readHTTP(u *url.URL) (store.Reader, error) { return a.openHTTP(u) }
func (a *app) readS3(u *url.URL) (store.Reader, error)   { return a.openS3(u) }
