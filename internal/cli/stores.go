package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"overmount/manifest"
	"overmount/store"
	"overmount/store/httpstore"
)

// writeStores opens the stores to pack to, and returns what the manifest shall
// say of them.
func writeStores(specs []string, keepPassword bool) (store.Routes, []manifest.Route, error) {
	var writers store.Routes
	var routes []manifest.Route
	for _, text := range specs {
		spec, err := parseSpec(text)
		if err != nil {
			return nil, nil, err
		}
		w, err := openWriter(spec.URL)
		if err != nil {
			return nil, nil, err
		}
		writers = append(writers, store.Route{First: spec.First, Last: spec.Last, Writer: w})
		written := store.StripPassword(spec.URL)
		if keepPassword {
			written = spec.URL
		}
		routes = append(routes, manifest.Route{First: spec.First, Last: spec.Last, URL: written.String()})
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

func openWriter(u *url.URL) (store.Writer, error) {
	switch u.Scheme {
	case "dir":
		dir, err := dirPath(u)
		if err != nil {
			return nil, err
		}
		return store.NewDir(dir), nil
	case "http", "https":
		return nil, fmt.Errorf("store %s: HTTP stores can only be read; pack to a directory that the server serves, dir:///path", u.Redacted())
	}
	return nil, unknownScheme(u)
}

func unknownScheme(u *url.URL) error {
	return fmt.Errorf("store %s: this version knows no scheme %q, only dir, http and https", store.Redact(u.String()), u.Scheme)
}

func dirPath(u *url.URL) (string, error) {
	if u.Host != "" || !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("store %s: a directory needs an absolute path and three slashes, as in dir:///srv/objects", u.Redacted())
	}
	return filepath.Clean(u.Path), nil
}

// covered checks that every object has a store.
func covered(routes []manifest.Route) error {
	var has [256]bool
	for _, r := range routes {
		for b := int(r.First); b <= int(r.Last); b++ {
			has[b] = true
		}
	}
	for b, ok := range has {
		if !ok {
			return fmt.Errorf("no store is given for objects that begin with %02x: add one, or widen a range", b)
		}
	}
	return nil
}

// readStores opens the stores of a manifest for reading. Routes that this
// program cannot read are left out with a warning, as long as others are left.
func readStores(routes []manifest.Route, budget time.Duration, log *slog.Logger) (store.Reader, error) {
	var readers store.Routes
	var failed []error
	opened := map[string]store.Reader{}
	for _, route := range routes {
		r, err := openReader(route.URL, opened)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		readers = append(readers, store.Route{First: route.First, Last: route.Last, Reader: r})
	}
	if len(readers) == 0 {
		if len(routes) == 0 {
			return nil, errors.New(`the manifest names no store; add one with "overmount config -m FILE store add -s URL"`)
		}
		return nil, fmt.Errorf("no store of the manifest can be read: %w", errors.Join(failed...))
	}
	for _, err := range failed {
		log.Warn("leaving out a store of the manifest", "reason", err)
	}
	return store.Retry(readers, &store.RetryOptions{Budget: budget, Logger: log}), nil
}

// openReader opens the store at a URL, once for all of its routes.
func openReader(text string, opened map[string]store.Reader) (store.Reader, error) {
	if r := opened[text]; r != nil {
		return r, nil
	}
	spec, err := store.ParseSpec(text)
	if err != nil {
		return nil, err
	}
	var r store.Reader
	switch u := spec.URL; u.Scheme {
	case "dir":
		dir, err := dirPath(u)
		if err != nil {
			return nil, err
		}
		r = store.Checked(store.NewDir(dir))
	case "http", "https":
		if r, err = httpstore.New(u, nil); err != nil { // checks objects itself
			return nil, err
		}
	default:
		return nil, unknownScheme(u)
	}
	opened[text] = r
	return r, nil
}
