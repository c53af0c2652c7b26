package deb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// An Opener opens files of a repository.
type Opener interface {
	// Open opens a file by its path below the root, as in fs.ValidPath. It fails
	// with fs.ErrNotExist for one that is not there. Concurrent use is safe.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
}

// A Dir is a repository, or files of packages, in a directory. No name or symlink
// leads out of it.
type Dir string

// Open implements [Opener].
func (d Dir) Open(_ context.Context, name string) (io.ReadCloser, error) {
	return os.OpenInRoot(string(d), name)
}

// A Verifier tells whether a file is signed by somebody who is trusted.
type Verifier interface {
	// Verify returns the text of a clear-signed file (RFC 9580, section 7), of
	// which all that is not covered by a good signature has been taken away.
	Verify(ctx context.Context, signed []byte) ([]byte, error)
}

// A Repository is laid out as Debian's: dists/SUITE/InRelease is signed, and has
// the SHA-256 of the indexes dists/SUITE/COMPONENT/binary-ARCH/Packages, which
// have those of the packages.
type Repository struct {
	Files        Opener
	Suite        string   // such as bookworm or bookworm/updates
	Components   []string // such as main; empty means all
	Architecture string   // as Debian calls it, such as amd64

	// Verifier checks the signature. Without one nothing is read.
	Verifier Verifier

	// At is the time at which the repository must be valid; zero means now.
	At time.Time
}

// ErrUnsigned is that nobody says who must have signed a repository.
var ErrUnsigned = errors.New("the repository cannot be trusted without a key: give the keyring of those who sign it " +
	"(Debian's is /usr/share/keyrings/debian-archive-keyring.gpg), or fetch the packages with apt-get download, which checks signatures, and use the files")

// maxRelease bounds an InRelease, in bytes.
const maxRelease = 16 << 20

// Packages returns the newest version of each package whose name a pattern
// matches (path.Match), sorted by name. It fails for a pattern that matches none,
// and for whatever is not signed, damaged or out of date.
func (r *Repository) Packages(ctx context.Context, patterns []string) ([]Entry, error) {
	name := path.Join("dists", r.Suite, "InRelease")
	rel, err := r.release(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("repository: %s: %w", name, err)
	}
	indexes := rel.indexes(r.Components, r.Architecture)
	if len(indexes) == 0 {
		return nil, fmt.Errorf("repository: %s lists no packages for the architecture %s in %s: it has the architectures %s, and the components %s", name,
			r.Architecture, cmp.Or(strings.Join(r.Components, " "), "any component"), rel.fields["architectures"], rel.fields["components"])
	}
	var all []Entry
	for _, index := range indexes {
		if err := r.index(ctx, rel, index, entriesTo(&all, patterns)); err != nil {
			return nil, fmt.Errorf("repository: %s: %w", path.Join("dists", r.Suite, index), err)
		}
	}
	return Newest(all, patterns)
}

func (r *Repository) release(ctx context.Context, name string) (*release, error) {
	if r.Verifier == nil {
		return nil, ErrUnsigned
	}
	if !fs.ValidPath(name) {
		return nil, fmt.Errorf("%q is no suite", r.Suite)
	}
	signed, err := r.read(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the repository has no such file: is %q one of its suites? Repositories without InRelease are not supported", r.Suite)
	} else if err != nil {
		return nil, pathless(err)
	}
	text, err := r.Verifier.Verify(ctx, signed)
	if err != nil {
		return nil, err
	}
	rel, err := readRelease(text)
	if err != nil {
		return nil, err
	}
	return rel, r.current(rel)
}

func (r *Repository) read(ctx context.Context, name string) ([]byte, error) {
	f, err := r.Files.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(&limitedReader{f, maxRelease, fmt.Errorf("it has over the limit of %d bytes", maxRelease)})
}

// current checks that a release is of the suite that was asked for, and not one
// that has been kept back.
func (r *Repository) current(rel *release) error {
	suite, codename := rel.fields["suite"], rel.fields["codename"]
	base, _, _ := strings.Cut(r.Suite, "/")
	if !slices.Contains([]string{suite, codename}, r.Suite) && !slices.Contains([]string{suite, codename}, base) {
		return fmt.Errorf("it is of the suite %s (%s), not of %s: the repository has been mixed up, or somebody serves another suite in its place",
			suite, codename, r.Suite)
	}
	until := rel.fields["valid-until"]
	if until == "" {
		return nil
	}
	end, err := parseDate(until)
	if err != nil {
		return fmt.Errorf("the field Valid-Until is %q: %w", shorten(until), err)
	}
	at := r.At
	if at.IsZero() {
		at = time.Now()
	}
	if at.After(end) {
		return fmt.Errorf("it was valid until %s: the mirror is out of date, or somebody keeps updates back", until)
	}
	return nil
}

// parseDate reads a date of a release, which is in UTC.
func parseDate(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC1123, s)
	if err == nil && t.Location() != time.UTC {
		return t, errors.New("it is not in UTC")
	}
	return t, err
}

var errAbsent = errors.New("the release lists it, but the repository has it not, compressed or plain")

func (r *Repository) index(ctx context.Context, rel *release, plain string, how reading) error {
	for _, suffix := range indexSuffixes {
		name := plain + suffix
		if _, ok := rel.files[name]; !ok {
			continue
		}
		f, err := r.Files.Open(ctx, path.Join("dists", r.Suite, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return pathless(err)
		}
		defer f.Close()
		return rel.readListed(name, plain, &contextReader{ctx, f}, how, true)
	}
	return errAbsent
}

// Input returns the file of a package of the repository, for [Unpack].
func (r *Repository) Input(e Entry) Input {
	return Input{
		Name: e.Filename, SHA256: e.SHA256, Size: e.Size,
		Open: func(ctx context.Context) (io.ReadCloser, error) { return r.Files.Open(ctx, e.Filename) },
	}
}
