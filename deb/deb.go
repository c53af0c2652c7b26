// Package deb reads Debian packages and package indexes, as a source of files.
//
// A package is a file of ar (deb(5)) with three members: debian-binary, the
// version of the format; control.tar, what the package says of itself;
// data.tar, its files. The latter two are plain or compressed with gzip, xz,
// zstd, bzip2 or lzma. [Reader] reads one as a stream. Members behind data.tar
// that are not known are passed over, as are those before it whose name begins
// with an underscore. Anything else at another place is an error, also behind the
// end. Scripts of packages are never run.
//
// [Unpack] reads several packages into an [archive.Tree], in parallel:
//
//	spool, err := archive.NewSpool(nil)
//	tree, found, err := deb.Unpack(ctx, spool, []deb.Input{deb.File("firmware-realtek_20230210-5_all.deb")}, nil)
//
// [List] reads only which files they have. [Repository.Contents] asks a repository's index
// of that, where there is one, without reading any package.
//
// # Trust
//
// A package has no signature. Its own list of MD5 sums is compared, and says
// something about damage, and nothing about who made it. Trust comes from one of
// these, which give the SHA-256 of the whole file for [Input]:
//
//   - a [Repository], whose index is signed;
//   - the lists of apt, which has checked their signatures: [Lists];
//   - a SHA-256 that somebody noted, as in a lock file.
//
// # Limits
//
// The control member: 32 MiB, plain; the files: 32 GiB; an index of packages: 1 GiB; one of
// the files in packages: 4 GiB, of which 16 MiB are kept. A stream may look back 128 MiB.
// How many files and bytes the packages may have is up to the
// [archive.Spool].
package deb

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"overmount/archive"
	"overmount/internal/decompress"
)

const (
	maxControl = 32 << 20 // of control.tar, plain
	maxData    = 32 << 30 // of data.tar, plain, also of what is left out of a tree
	maxVersion = 4 << 10  // of debian-binary
)

// A Reader reads a package from a stream, in its order. It is used by one
// goroutine at a time.
type Reader struct {
	Control Control

	ar   *arReader
	sums map[string]string // MD5 in hex, by path
}

// NewReader reads a package up to its files. Errors do not name the package.
func NewReader(r io.Reader) (*Reader, error) {
	ar, err := newArReader(r)
	if err != nil {
		return nil, err
	}
	d := &Reader{ar: ar}
	if err := d.version(); err != nil {
		return nil, err
	}
	if err := d.find("control.tar", "data.tar"); err != nil {
		return nil, err
	}
	if err := d.control(); err != nil {
		return nil, fmt.Errorf("%s: %w", ar.name, err)
	}
	return d, d.find("data.tar", "control.tar")
}

func (d *Reader) version() error {
	if err := d.ar.next(); err == io.EOF {
		return errors.New("it has no members: debian-binary, control.tar and data.tar are missing")
	} else if err != nil {
		return err
	}
	if d.ar.name != "debian-binary" {
		return fmt.Errorf("its first member is %q, and a Debian package begins with debian-binary", d.ar.name)
	}
	if d.ar.size > maxVersion {
		return fmt.Errorf("debian-binary has %d bytes, over the limit of %d", d.ar.size, maxVersion)
	}
	text, err := io.ReadAll(d.ar)
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if major, _, ok := strings.Cut(line, "."); !ok || major != "2" {
		return fmt.Errorf("the format of the package is %q, and only 2.0 is supported", shorten(line))
	}
	return nil
}

// find goes to the member that is called want, with the end of a compressed file
// perhaps. wrong is one that must not come before it.
func (d *Reader) find(want, wrong string) error {
	for {
		after := d.ar.name
		if err := d.ar.next(); err == io.EOF {
			return fmt.Errorf("truncated: it ends behind %s, and %s is missing", after, want)
		} else if err != nil {
			return err
		}
		switch {
		case d.at(want):
			return nil
		case d.at(wrong) && wrong == "control.tar":
			return fmt.Errorf("it has a second control member, %s, before %s", d.ar.name, want)
		case d.at(wrong):
			return fmt.Errorf("its members are in the wrong order: %s comes before %s", d.ar.name, want)
		case !strings.HasPrefix(d.ar.name, "_"):
			return fmt.Errorf("it has a member %q before %s", shorten(d.ar.name), want)
		}
	}
}

// at reports whether the current member is the one of that name, compressed
// perhaps.
func (d *Reader) at(name string) bool {
	return d.ar.name == name || strings.HasPrefix(d.ar.name, name+".")
}

// untar reads an archive, and says of several errors the one that is the reason of the
// others.
func untar(member io.Reader, each func(archive.File, *tar.Header, io.Reader) error) error {
	noted := &notedReader{r: member}
	err := archive.Tar(noted, each)
	return cmp.Or(noted.err, err)
}

// A notedReader remembers what went wrong below.
type notedReader struct {
	r   io.Reader
	err error
}

func (n *notedReader) Read(p []byte) (int, error) {
	got, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		n.err = err
	}
	return got, err
}

// member returns the content of the current member.
func (d *Reader) member() (io.ReadCloser, error) {
	name, format := decompress.OfName(d.ar.name)
	if !strings.HasSuffix(name, ".tar") {
		return nil, errors.New("it is compressed in a way that is not supported: unpack the package with dpkg-deb -x, and use the directory")
	}
	return decompress.NewReader(format, d.ar)
}

func (d *Reader) control() error {
	member, err := d.member()
	if err != nil {
		return err
	}
	defer member.Close()
	found, sums := false, []byte(nil)
	err = untar(limited(member, maxControl), func(f archive.File, _ *tar.Header, content io.Reader) error {
		var err error
		switch name := strings.TrimPrefix(f.Name, "./"); {
		case name == "control" && found:
			return errors.New("it has two files called control")
		case name == "control" && f.Mode.IsRegular():
			found = true
			d.Control, err = readControl(content)
		case name == "md5sums" && f.Mode.IsRegular():
			sums, err = io.ReadAll(content)
		}
		return err
	})
	if err == nil && !found {
		err = errors.New("it has no file called control")
	}
	if err == nil {
		d.sums, err = md5sums(sums)
	}
	return cmp.Or(d.ar.err, err)
}

func readControl(r io.Reader) (Control, error) {
	var c Control
	for s, err := range stanzas(r) {
		if err == nil && c.Package != "" {
			err = errors.New("it has several paragraphs")
		}
		if err == nil {
			c, err = s.control()
		}
		if err != nil {
			return c, fmt.Errorf("control: %w", err)
		}
	}
	if c.Package == "" {
		return c, errors.New("control: it is empty")
	}
	return c, nil
}

// md5sums reads lines with a sum, two spaces and a path.
func md5sums(text []byte) (map[string]string, error) {
	sums := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		sum, name, ok := strings.Cut(lines.Text(), "  ")
		if _, err := hex.DecodeString(sum); !ok || err != nil || len(sum) != 2*md5.Size {
			return nil, fmt.Errorf("md5sums: the line %q is none", shorten(lines.Text()))
		}
		sums[strings.TrimPrefix(name, "./")] = strings.ToLower(sum)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("md5sums: %w", err)
	}
	return sums, nil
}

// Unpack adds the files of the package to p, and reads the stream to its end. It
// is called once. It fails for what p refuses, for a file whose MD5 sum is not
// that of the package's list, or that is missing, and for whatever follows the
// package.
func (d *Reader) Unpack(p *archive.Package) error {
	if err := d.unpack(p); err != nil {
		return fmt.Errorf("%s: %w", d.ar.name, err)
	}
	return d.end()
}

func (d *Reader) unpack(p *archive.Package) error {
	member, err := d.member()
	if err != nil {
		return err
	}
	member = decompress.Ahead(member)
	err = d.files(limited(member, maxData), p)
	member.Close()
	return cmp.Or(d.ar.err, err)
}

func (d *Reader) files(r io.Reader, p *archive.Package) error {
	left := maps.Clone(d.sums)
	err := untar(r, func(f archive.File, _ *tar.Header, content io.Reader) error {
		name := strings.TrimPrefix(f.Name, "./")
		want, listed := left[name]
		if !listed || !f.Mode.IsRegular() || f.Link != "" {
			delete(left, name)
			return p.Add(f, content)
		}
		delete(left, name)
		return addChecked(p, f, content, want)
	})
	if err != nil || len(left) == 0 {
		return err
	}
	return fmt.Errorf("%q is missing, which md5sums lists", shorten(slices.Sorted(maps.Keys(left))[0]))
}

// addChecked adds a file, also compares one that p leaves out.
func addChecked(p *archive.Package, f archive.File, content io.Reader, want string) error {
	h := md5.New()
	if err := p.Add(f, io.TeeReader(content, h)); err != nil {
		return err
	}
	if _, err := io.Copy(h, content); err != nil {
		return fmt.Errorf("%q: %w", shorten(f.Name), err)
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != want {
		return fmt.Errorf("%q is damaged: its MD5 sum is %s, and md5sums says %s", shorten(f.Name), sum, want)
	}
	return nil
}

// end reads what follows data.tar: members that nobody knows.
func (d *Reader) end() error {
	for {
		data := d.ar.name
		if err := d.ar.next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if d.at("data.tar") || d.at("control.tar") || d.at("debian-binary") {
			return fmt.Errorf("it has a second member %s, behind %s", d.ar.name, data)
		}
	}
}

// A limitedReader fails when it has given n bytes, and there are more.
type limitedReader struct {
	r    io.Reader
	n    int64
	over error
}

// limited limits what is plain.
func limited(r io.Reader, most int64) io.Reader {
	return &limitedReader{r, most, fmt.Errorf("its plain form has over the limit of %d bytes", most)}
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if int64(len(p)) > l.n+1 {
		p = p[:l.n+1]
	}
	n, err := l.r.Read(p)
	if int64(n) > l.n {
		n, err = int(l.n), l.over
	}
	l.n -= int64(n)
	return n, err
}
