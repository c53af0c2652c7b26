package deb

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"overmount/archive"
	"overmount/internal/refetch"
)

// An Input is the file of a package.
type Input struct {
	Name   string // what people call it: a path, a URL without secrets
	SHA256 string // of the file, in hex; empty means that any will do
	Size   int64  // of the file, in bytes; 0 means that any will do

	// Open opens the file, from the beginning. It is called again if the file
	// fails on its way.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// File returns the file at a path, with the size that it has now.
func File(name string) Input {
	in := Input{Name: name, Open: func(context.Context) (io.ReadCloser, error) { return os.Open(name) }}
	if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
		in.Size = info.Size()
	}
	return in
}

// An Unpacked is a package that has been read.
type Unpacked struct {
	Control
	Name   string // of the Input
	SHA256 string // of the file, in hex
	Size   int64  // of the file, in bytes
	Files  int    // of any type, in the tree
}

// UnpackOptions are the options of [Unpack]. Nil and zero mean the defaults.
type UnpackOptions struct {
	Parallel int // packages at a time; the default is one for each processor

	// Done, if set, is told of each package when it has been read, from several
	// goroutines.
	Done func(Unpacked)
}

// Unpack reads packages into a spool, and returns the tree of all of them, and
// what they are, in the order of the inputs. Where two have different files at a
// path, that of the one which replaces the other is taken; if none does, the
// error is an [*archive.ConflictError]. The same package twice is an error.
//
// Memory: what decompression takes for each package under way, for xz -6 as
// Debian uses it about 9 MiB, beside what the spool needs.
func Unpack(ctx context.Context, spool *archive.Spool, inputs []Input, o *UnpackOptions) (*archive.Tree, []Unpacked, error) {
	packages, found, err := unpackAll(ctx, spool, inputs, o)
	if err != nil {
		return nil, nil, err
	}
	replaces, err := replacer(found)
	if err != nil {
		return nil, nil, err
	}
	tree, err := spool.Tree(packages, replaces)
	return tree, found, err
}

// A Listing is which files a package has.
type Listing struct {
	Unpacked
	Files []archive.File // sorted by path
}

// List reads packages as Unpack does, in the order of the inputs, but keeps only the
// names of files: those that keep wants, as the Map of [archive.Options] does. Packages
// may have the same paths.
func List(ctx context.Context, inputs []Input, keep func(name string) (string, bool), o *UnpackOptions) ([]Listing, error) {
	spool, err := archive.NewSpool(&archive.Options{Map: keep, NamesOnly: true})
	if err != nil {
		return nil, err
	}
	defer spool.Close()
	packages, found, err := unpackAll(ctx, spool, inputs, o)
	if err != nil {
		return nil, err
	}
	list := make([]Listing, len(found))
	for i := range found {
		list[i] = Listing{found[i], packages[i].Files()}
	}
	return list, nil
}

// unpackAll reads packages into a spool, in parallel.
func unpackAll(ctx context.Context, spool *archive.Spool, inputs []Input, o *UnpackOptions) ([]*archive.Package, []Unpacked, error) {
	if o == nil {
		o = &UnpackOptions{}
	}
	found := make([]Unpacked, len(inputs))
	packages := make([]*archive.Package, len(inputs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	if o.Parallel > 0 {
		g.SetLimit(o.Parallel)
	}
	for _, i := range largestFirst(inputs) {
		in := inputs[i]
		g.Go(func() (err error) {
			if err = ctx.Err(); err != nil {
				return err
			}
			if packages[i], found[i], err = unpackOne(ctx, spool, in); err != nil {
				return fmt.Errorf("unpack %s: %w", in.Name, err)
			}
			if o.Done != nil {
				o.Done(found[i])
			}
			return nil
		})
	}
	return packages, found, g.Wait()
}

// largestFirst returns the order in which processors are busy to the end.
func largestFirst(inputs []Input) []int {
	order := make([]int, len(inputs))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(inputs[b].Size, inputs[a].Size) })
	return order
}

// replacer returns what tells whose files may be put in the place of whose.
func replacer(found []Unpacked) (func(winner, loser string) bool, error) {
	byOwner, byName := map[string]*Unpacked{}, map[string]*Unpacked{}
	for i := range found {
		u := &found[i]
		name := u.Package + ":" + u.Architecture
		if other := byName[name]; other != nil {
			return nil, fmt.Errorf("%s and %s are the same package, %s: leave one of them out", other.Name, u.Name, u.Package)
		}
		byName[name], byOwner[u.String()] = u, u
	}
	return func(winner, loser string) bool {
		w, l := byOwner[winner], byOwner[loser]
		if w == nil || l == nil {
			return false
		}
		for _, r := range w.Replaces {
			if r.Includes(l.Package, l.Version) {
				return true
			}
		}
		return false
	}, nil
}

func unpackOne(ctx context.Context, spool *archive.Spool, in Input) (*archive.Package, Unpacked, error) {
	u := Unpacked{Name: in.Name}
	var p *archive.Package
	err := refetch.Read(ctx, in.Open, func(r io.Reader) (err error) {
		p, err = in.unpack(r, spool, &u)
		return err
	})
	return p, u, pathless(err)
}

// unpack reads the package, and fills in what it is.
func (in Input) unpack(r io.Reader, spool *archive.Spool, u *Unpacked) (*archive.Package, error) {
	sum := newSum(r, in.Size)
	p, c, err := unpackStream(sum, spool)
	// The whole file counts, and that it is another one explains what is wrong
	// in it.
	if e := sum.drain(); e != nil {
		err = e
	} else if e := in.check(sum); e != nil {
		err = e
	}
	if err != nil {
		if p != nil {
			p.Discard()
		}
		return nil, err
	}
	u.Control, u.SHA256, u.Size, u.Files = c, sum.hex(), sum.n, p.Len()
	return p, nil
}

func unpackStream(r io.Reader, spool *archive.Spool) (*archive.Package, Control, error) {
	d, err := NewReader(r)
	if err != nil {
		return nil, Control{}, err
	}
	p := spool.Package(d.Control.String())
	if err := d.Unpack(p); err != nil {
		p.Discard()
		return nil, d.Control, err
	}
	return p, d.Control, nil
}

// check compares the file that was read with the one that is wanted.
func (in Input) check(sum *summedReader) error {
	if in.Size > 0 && sum.n != in.Size {
		return fmt.Errorf("the file has %d bytes, and %d are expected: it is damaged, or another one", sum.n, in.Size)
	}
	if in.SHA256 != "" && !strings.EqualFold(sum.hex(), in.SHA256) {
		return fmt.Errorf("the SHA-256 of the file is %s, and %s is expected: it is damaged, or another one", sum.hex(), in.SHA256)
	}
	return nil
}

// A summedReader hashes and counts what it reads. It stops behind most bytes, if
// that is not 0.
type summedReader struct {
	r       io.Reader
	hash    hash.Hash
	n, most int64
	err     error // of r, or that it is too long
}

func newSum(r io.Reader, most int64) *summedReader {
	return &summedReader{r: r, hash: sha256.New(), most: most}
}

func (s *summedReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.hash.Write(p[:n])
	s.n += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	} else if s.most > 0 && s.n > s.most {
		err = fmt.Errorf("the file is longer than the %d bytes that are expected: it is damaged, or another one", s.most)
		s.err = err
	}
	return n, err
}

func (s *summedReader) hex() string { return hex.EncodeToString(s.hash.Sum(nil)) }

// drain reads the rest. Its error is that of the reader below.
func (s *summedReader) drain() error {
	if s.err != nil {
		return s.err
	}
	_, err := io.Copy(io.Discard, s)
	return err
}

// pathless takes off the path that an *os.PathError repeats. What an error around it says
// stays.
func pathless(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok && pe.Error() == err.Error() {
		return pe.Err
	}
	return err
}
