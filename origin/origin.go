// Package origin gets manifests from where they are published.
//
// A place is a path or an http(s) URL. [Fetcher.Open] is for who needs a manifest
// once; [Fetcher.Fetch] for a machine that goes on using what it got. What Fetch gets
// from a URL is kept in a directory, under the last part of the URL's path; with its
// signature, if one is wanted, in NAME.minisig; and with the server's entity tag in
// NAME.etag. The next Fetch asks only whether there is another one: by the tag, or,
// where manifests are signed, by the signature, which is small and says as much. When
// the server does not answer, [Open] takes what was kept.
//
// Nothing is accepted that a [Trust] does not allow, wherever it lies: what was
// kept is checked as what comes. A manifest is never followed by an older one:
// the serial of the one that was kept is the least that is accepted.
//
// # Compressed copies
//
// A manifest shrinks to half with zstd. Beside NAME may lie NAME.zst ([Suffix]): the
// same manifest in the format of RFC 8878, with frames that look back over at most 16
// MiB. Who names that place gets it, with one request as for any other; it is kept
// under NAME, and its signature is that of NAME, in NAME.minisig, over the manifest
// itself. Nobody is asked for a place that was not named. A copy that says that it
// is longer than [Options.MaxBytes], or is, is refused, as is one that is longer than
// that when compressed. Servers may also compress by themselves, with gzip or zstd
// (Content-Encoding).
//
// # Replacing
//
// A signature and a manifest are two files, a compressed copy a third. Who replaces
// them puts first both signatures where that of the old manifest was
// ([signature.Join]), then the copies, and then the new signature alone. Who reads in
// between has what it needs at any moment, except that it may have read the old
// signature just before, and the new manifest just after: then both are fetched again.
package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"overmount/manifest"
	"overmount/signature"
)

// ErrRefused says that a manifest is there, and must not be used: it is unsigned,
// changed, too old, or another than was asked for. To ask again is of no use
// until someone publishes another one.
var ErrRefused = errors.New("is refused")

// ErrUnsigned is an ErrRefused: a signature is wanted, and there is none.
var ErrUnsigned = fmt.Errorf("%w: it is not signed", ErrRefused)

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

// Open returns the manifest called name in a directory, as Fetch kept it or as
// someone put it there. It fails with fs.ErrNotExist if there is none, and with
// ErrRefused if it may not be used.
func Open(ctx context.Context, dir, name string, t Trust) (Copy, error) {
	file := filepath.Join(dir, name)
	m, c, err := t.keptCheck(ctx, file)
	if errors.Is(err, ErrRefused) {
		return Copy{}, refused(file, err)
	}
	if err != nil {
		return Copy{}, fmt.Errorf("manifest %s: %w", file, err)
	}
	return Copy{file, Kept, c, m}, nil
}

// keptCheck reads the manifest in a file where manifests are kept, with the signature
// beside it.
func (t Trust) keptCheck(ctx context.Context, file string) (*manifest.Manifest, signature.Claims, error) {
	in, err := os.Open(file)
	if err != nil {
		return nil, signature.Claims{}, err
	}
	defer in.Close()
	var sig []byte
	if t.Key != nil {
		if err := noJournal(file); err != nil {
			return nil, signature.Claims{}, err
		}
		if sig, err = keptSignature(file); err != nil {
			return nil, signature.Claims{}, err
		}
	}
	return t.check(ctx, in, sig)
}

// noJournal refuses a file beside which lies what would make another one of it, and
// is not signed.
func noJournal(file string) error {
	for _, suffix := range []string{"-journal", "-wal"} {
		if info, err := os.Stat(file + suffix); err == nil && info.Size() > 0 {
			return fmt.Errorf("%w: beside it lies %s, a change that is not in it as a whole", ErrRefused, filepath.Base(file)+suffix)
		}
	}
	return nil
}

func keptSignature(file string) ([]byte, error) {
	f, err := os.Open(file + signature.Suffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrUnsigned
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, signature.MaxSize+1))
}

// check reads the manifest in a file, and says whether it may be used. Errors do not
// name the file.
func (t Trust) check(ctx context.Context, file *os.File, sig []byte) (m *manifest.Manifest, c signature.Claims, err error) {
	if t.Key != nil {
		if c, err = t.verify(file, sig); err != nil {
			return nil, c, err
		}
	}
	if m, err = manifest.Open(ctx, file.Name()); err != nil {
		if reason := errors.Unwrap(err); reason != nil {
			err = reason
		}
		return nil, c, err
	}
	return m, c, t.wanted(m, c)
}

// verify checks the signature alone.
func (t Trust) verify(file io.Reader, sig []byte) (signature.Claims, error) {
	c, err := signature.Verify(*t.Key, file, sig)
	if err == nil {
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
