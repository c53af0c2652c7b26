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

	"overmount/internal/refetch"
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

// A DetachedVerifier is a [Verifier] for texts whose signature is a file of its
// own, too.
type DetachedVerifier interface {
	// VerifyDetached fails unless the signature is a good one of the text.
	VerifyDetached(ctx context.Context, text, signature []byte) error
}

// A Repository is laid out as Debian's: dists/SUITE/InRelease is signed, or
// dists/SUITE/Release by Release.gpg, and has the SHA-256 of the indexes
// dists/SUITE/COMPONENT/binary-ARCH/Packages, which have those of the packages. If
// it says Acquire-By-Hash, the indexes are read at by-hash/SHA256/SUM beside their
// names first, where they stay while a mirror is updated.
type Repository struct {
	Files        Opener
	Suite        string   // such as bookworm or bookworm/updates
	Components   []string // such as main; empty means all
	Architecture string   // as Debian calls it, such as amd64

	// Verifier checks the signature. Without one nothing is read. One that is no
	// [DetachedVerifier] is only good for repositories with InRelease.
	Verifier Verifier

	// At is the time at which the repository must be valid; zero means now.
	At time.Time

	// AnyDate lets a repository be of the past or the future, as a snapshot is.
	AnyDate bool
}

// ErrUnsigned is that nobody says who must have signed a repository.
var ErrUnsigned = errors.New("the repository cannot be trusted without a key: give the keyring of those who sign it " +
	"(Debian's is /usr/share/keyrings/debian-archive-keyring.gpg), or fetch the packages with apt-get download, which checks signatures, and use the files")

// ErrDate is that a repository is out of date, or not valid yet.
var ErrDate = errors.New("its date is not right")

// maxRelease bounds an InRelease, in bytes.
const maxRelease = 16 << 20

// Packages returns the newest version of each package whose name a pattern
// matches (path.Match), sorted by name. It fails for a pattern that matches none,
// for whatever is not signed or damaged, and with ErrDate for what is out of date.
func (r *Repository) Packages(ctx context.Context, patterns []string) ([]Entry, error) {
	dir := path.Join("dists", r.Suite)
	rel, err := r.release(ctx, dir)
	if err != nil {
		return nil, err
	}
	indexes := rel.indexes(r.Components, r.Architecture)
	if len(indexes) == 0 {
		return nil, fmt.Errorf("%s lists no packages for the architecture %s in %s: it has the architectures %s, and the components %s", dir,
			r.Architecture, cmp.Or(strings.Join(r.Components, " "), "any component"), rel.fields["architectures"], rel.fields["components"])
	}
	var all []Entry
	for _, index := range indexes {
		if err := r.index(ctx, rel, index, entriesTo(&all, patterns)); err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join(dir, index), err)
		}
	}
	return Newest(all, patterns)
}

// release reads what is signed in the directory of the suite.
func (r *Repository) release(ctx context.Context, dir string) (*release, error) {
	if r.Verifier == nil {
		return nil, ErrUnsigned
	}
	if strings.HasSuffix(r.Suite, "/") {
		return nil, fmt.Errorf("%q is a directory of a flat repository, which is not supported: fetch the packages with apt-get download, and use the files", r.Suite)
	}
	if !fs.ValidPath(dir) || dir == "dists" {
		return nil, fmt.Errorf("%q is no suite", r.Suite)
	}
	name := path.Join(dir, "InRelease")
	var text []byte
	signed, err := r.read(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		name = path.Join(dir, "Release")
		text, err = r.detached(ctx, name)
	} else if err == nil {
		text, err = r.Verifier.Verify(ctx, signed)
	}
	var rel *release
	if err == nil {
		rel, err = readRelease(text)
	}
	if err == nil {
		err = r.current(rel)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return rel, nil
}

// detached reads a release whose signature is in another file.
func (r *Repository) detached(ctx context.Context, name string) ([]byte, error) {
	text, err := r.read(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("it is not there, and no InRelease either: is %q one of the repository's suites?", r.Suite)
	}
	if err != nil {
		return nil, err
	}
	sig, err := r.read(ctx, name+".gpg")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("it is not signed: there is no Release.gpg, and no InRelease")
	}
	if err != nil {
		return nil, err
	}
	v, ok := r.Verifier.(DetachedVerifier)
	if !ok {
		return nil, errors.New("its signature is in another file, which cannot be checked here")
	}
	if err := v.VerifyDetached(ctx, text, sig); err != nil {
		return nil, fmt.Errorf("its signature %s.gpg: %w", path.Base(name), err)
	}
	return text, nil
}

func (r *Repository) read(ctx context.Context, name string) (text []byte, err error) {
	err = refetch.Read(ctx, r.opening(name), func(f io.Reader) (err error) {
		text, err = io.ReadAll(&limitedReader{f, maxRelease, fmt.Errorf("it has over the limit of %d bytes", maxRelease)})
		return err
	})
	if err != nil {
		return nil, pathless(err)
	}
	return text, nil
}

func (r *Repository) opening(name string) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) { return r.Files.Open(ctx, name) }
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
	if r.AnyDate {
		return nil
	}
	return rel.checkDate(cmp.Or(r.At, time.Now()))
}

// maxAhead is how far in the future the date of a release may be; as in apt
// (Acquire::Max-FutureTime), since clocks differ.
const maxAhead = 10 * time.Second

// checkDate fails with ErrDate unless a release is valid at a time.
func (r *release) checkDate(at time.Time) error {
	if date := r.fields["date"]; date != "" {
		made, err := parseDate(date)
		if err != nil {
			return fmt.Errorf("the field Date is %q: %w", shorten(date), err)
		}
		if made.After(at.Add(maxAhead)) {
			return fmt.Errorf("%w: it is of %s, and here it is %s: set the clock", ErrDate, date, at.UTC().Format(time.RFC1123))
		}
	}
	until := r.fields["valid-until"]
	if until == "" {
		return nil
	}
	end, err := parseDate(until)
	if err != nil {
		return fmt.Errorf("the field Valid-Until is %q: %w", shorten(until), err)
	}
	if at.After(end) {
		return fmt.Errorf("%w: it was valid until %s: the mirror is out of date, or somebody keeps updates back; try another mirror", ErrDate, until)
	}
	return nil
}

// parseDate reads a date of a release, which is in UTC, as apt does
// (RFC1123StrToTime in apt-pkg/contrib/strutl.cc).
func parseDate(s string) (time.Time, error) {
	i := strings.LastIndexByte(s, ' ') + 1
	date, zone := strings.TrimRight(s[:i], " "), s[i:]
	if !slices.Contains([]string{"UTC", "GMT", "Z", "+0000"}, zone) {
		return time.Time{}, errors.New("it is not in UTC")
	}
	return time.Parse("Mon, 2 Jan 2006 15:04:05", date)
}

var errAbsent = errors.New("the release lists it, but the repository has it not, compressed or plain: name the components that it has, or take another mirror")

// index reads an index that the release lists.
func (r *Repository) index(ctx context.Context, rel *release, plain string, how reading) error {
	for _, suffix := range indexSuffixes {
		name := plain + suffix
		if _, ok := rel.files[name]; !ok {
			continue
		}
		open := func(ctx context.Context) (io.ReadCloser, error) { return r.openIndex(ctx, rel, name) }
		err := refetch.Read(ctx, open, func(f io.Reader) error { return rel.readListed(name, plain, f, how, true) })
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return pathless(err)
		}
		return nil
	}
	return errAbsent
}

// openIndex opens an index that the release lists, under the name that is its hash
// if there are such.
func (r *Repository) openIndex(ctx context.Context, rel *release, name string) (io.ReadCloser, error) {
	full := path.Join("dists", r.Suite, name)
	if rel.fields["acquire-by-hash"] == "yes" {
		f, err := r.Files.Open(ctx, path.Join(path.Dir(full), "by-hash/SHA256", rel.files[name].sha256))
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return r.Files.Open(ctx, full)
}

// Input returns the file of a package of the repository, for [Unpack].
func (r *Repository) Input(e Entry) Input {
	open := r.opening(e.Filename)
	return Input{
		Name: e.Filename, SHA256: e.SHA256, Size: e.Size,
		Open: func(ctx context.Context) (io.ReadCloser, error) {
			f, err := open(ctx)
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w: the index has it, so the mirror may be half updated: try again later, or another one", pathless(err))
			}
			return f, err
		},
	}
}
