// Package origin gets manifests from where they are published, for machines that
// go on using what they got.
//
// A place is a path or an http(s) URL. What comes from a URL is kept in a
// directory, under the last part of the URL's path; with its signature, if one is
// wanted, in NAME.minisig; and with the server's entity tag in NAME.etag. The next
// [Fetcher.Fetch] asks only whether there is another one: by the tag, or, where
// manifests are signed, by the signature, which is small and says as much. When
// the server does not answer, [Open] takes what was kept.
//
// Nothing is accepted that a [Trust] does not allow, wherever it lies: what was
// kept is checked as what comes. A manifest is never followed by an older one:
// the serial of the one that was kept is the least that is accepted.
//
// Servers may send a manifest compressed with gzip or zstd (Content-Encoding). It
// shrinks to half.
package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"overmount/manifest"
	"overmount/signature"
	"overmount/store"
)

// ErrRefused says that a manifest is there, and must not be used: it is unsigned,
// changed, too old, or another than was asked for. To ask again is of no use
// until someone publishes another one.
var ErrRefused = errors.New("is refused")

// A Trust says which manifests are accepted. The zero Trust accepts all.
type Trust struct {
	Key        *signature.PublicKey // that must have signed; nil: nobody has to
	MinSerial  uint64               // the least that the signature may have
	Kind, Kver string               // what the manifest must say of itself; empty: anything
}

// A State says where a manifest came from.
type State string

// The states.
const (
	Fetched   State = "fetched"   // from the place, just now
	Unchanged State = "unchanged" // kept from before, and the place has the same
	Kept      State = "kept"      // kept from before, and the place was not asked
	Local     State = "local"     // the place is a path
)

// A Copy is a manifest that may be used. Its bytes are those that were checked.
type Copy struct {
	Path   string
	State  State
	Claims signature.Claims // zero without a key
	// Manifest is what was checked, so that nobody has to open Path again.
	Manifest *manifest.Manifest
}

// IsURL reports whether a place is fetched.
func IsURL(place string) bool {
	return strings.HasPrefix(place, "http://") || strings.HasPrefix(place, "https://")
}

// Name returns the name of a manifest among those that are kept.
func Name(place string) (string, error) {
	if !IsURL(place) {
		return filepath.Base(place), nil
	}
	u, err := parse(place)
	if err != nil {
		return "", err
	}
	name := path.Base(u.Path)
	if name == "/" || name == "." || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("manifest %s: the URL does not end in a file's name", Shown(place))
	}
	return name, nil
}

// parse is url.Parse, whose errors would repeat a password.
func parse(place string) (*url.URL, error) {
	if _, err := store.ParseSpec(place); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	u, err := url.Parse(place)
	if err != nil {
		return nil, errors.New("manifest: the URL cannot be parsed")
	}
	return u, nil
}

// Shown is a place for people: a URL without user, password and query.
func Shown(place string) string {
	if !IsURL(place) {
		return place
	}
	u, err := parse(place)
	if err != nil {
		return "(a URL that cannot be parsed)"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// Open returns the manifest called name in a directory, as Fetch kept it or as
// someone put it there. It fails with fs.ErrNotExist if there is none, and with
// ErrRefused if it may not be used.
func Open(ctx context.Context, dir, name string, t Trust) (Copy, error) {
	file := filepath.Join(dir, name)
	m, c, err := t.check(ctx, file, readSignature(file))
	if err != nil {
		return Copy{}, fmt.Errorf("manifest %s: %w", file, err)
	}
	return Copy{file, Kept, c, m}, nil
}

func readSignature(file string) func() ([]byte, error) {
	return func() ([]byte, error) {
		f, err := os.Open(file + signature.Suffix)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: it is not signed", ErrRefused)
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, signature.MaxSize+1))
	}
}

// check reads the manifest in a file, and says whether it may be used.
func (t Trust) check(ctx context.Context, file string, sig func() ([]byte, error)) (m *manifest.Manifest, c signature.Claims, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, c, err
	}
	defer f.Close()
	if t.Key != nil {
		if c, err = t.verify(f, sig); err != nil {
			return nil, c, err
		}
	}
	if m, err = manifest.Open(ctx, file); err != nil {
		return nil, c, err
	}
	return m, c, t.wanted(m, c)
}

// verify checks the signature alone.
func (t Trust) verify(f *os.File, sig func() ([]byte, error)) (c signature.Claims, err error) {
	text, err := sig()
	if err != nil {
		return c, err
	}
	if c, err = signature.Verify(*t.Key, f, text); err == nil {
		err = c.CheckSerial(t.MinSerial)
	}
	if err != nil {
		return c, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return c, nil
}

// wanted refuses a manifest that is another than was asked for, or than its
// signature says.
func (t Trust) wanted(m *manifest.Manifest, c signature.Claims) error {
	kind, kver := m.Tag(manifest.TagKind), m.Tag(manifest.TagKver)
	if t.Key != nil && (c.Kind != kind || c.Kver != kver) {
		return fmt.Errorf("%w: it is of kind %q for kernel %q, and its signature says kind %q for kernel %q",
			ErrRefused, kind, kver, c.Kind, c.Kver)
	}
	switch {
	case t.Kind != "" && kind != t.Kind:
		return fmt.Errorf("%w: its kind is %q, not %q", ErrRefused, kind, t.Kind)
	case t.Kver != "" && kver != t.Kver:
		return fmt.Errorf("%w: its kver is %q, not %q", ErrRefused, kver, t.Kver)
	}
	return nil
}
