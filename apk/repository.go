package apk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"overmount/archive"
	"overmount/internal/refetch"
)

// A Repository is packages with their index.
type Repository struct {
	Index *Index

	opener Opener
	keys   Keys
	dir    string // where index and packages are; empty or an architecture
}

const indexName = "APKINDEX.tar.gz"

// Open reads the index of a repository: that of the architecture, or, if there is
// no such directory, that in the place itself. The architecture is Alpine's name
// for it, or empty.
//
// It fails with ErrUntrusted for an index that none of the keys has signed, and
// with ErrV3 for a repository that has only an index of the third version.
func Open(ctx context.Context, o Opener, keys Keys, arch string) (*Repository, error) {
	if arch != "" && checkWord("architecture", arch) != nil {
		return nil, checkWord("architecture", arch)
	}
	if len(keys) == 0 {
		return nil, errors.New("no key is given, without which nothing in the repository can be trusted; Alpine's are in /etc/apk/keys of an Alpine system, in the package alpine-keys and at https://alpinelinux.org/keys/")
	}
	dirs := []string{arch, ""}
	if arch == "" {
		dirs = dirs[1:]
	}
	var refused error // some servers refuse what is not there
	for _, dir := range dirs {
		r := &Repository{opener: o, keys: keys, dir: dir}
		err := r.open(ctx)
		if err == nil {
			return r, nil
		}
		named := fmt.Errorf("index %s: %w", r.path(indexName), err)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, fs.ErrPermission):
			refused = cmp.Or(refused, named)
		default:
			return nil, named
		}
	}
	if refused != nil {
		return nil, refused
	}
	for _, dir := range dirs {
		name := path.Join(dir, "Packages.adb")
		if f, err := o.Open(ctx, name); err == nil {
			f.Close()
			return nil, fmt.Errorf("index %s: %w", name, ErrV3)
		}
	}
	return nil, fmt.Errorf("there is no repository: neither %s nor %s is there: %w", path.Join(arch, indexName), indexName, fs.ErrNotExist)
}

func (r *Repository) path(name string) string { return path.Join(r.dir, name) }

func (r *Repository) open(ctx context.Context) error {
	return refetch.Read(ctx, opening(r.opener, r.path(indexName)), func(f io.Reader) (err error) {
		r.Index, err = ReadIndex(f, r.keys)
		return err
	})
}

// Options are the options of unpacking. Nil and zero mean the defaults.
type Options struct {
	Spool archive.Options // where the content is meanwhile, and what is kept
	// Parallel is how many packages are fetched and unpacked at a time. The
	// default is the number of processors, but at least 4.
	Parallel int
	// Done, if set, is told of each package that is unpacked, one at a time, in no
	// certain order.
	Done func(Unpacked)
}

// A Tree is the files of packages. It is to be closed.
type Tree struct {
	*archive.Tree
	Packages []Unpacked // in the order in which they were asked for

	spool *archive.Spool
}

// Close frees what the content takes.
func (t *Tree) Close() error { return t.spool.Close() }

// Unpack fetches packages of the index and unpacks them to one tree. It returns
// when all is verified.
//
// If two packages have the same path, "replaces" decides; without it, files that
// differ are an [*archive.ConflictError]. Other errors name the package.
func (r *Repository) Unpack(ctx context.Context, packages []*Package, o *Options) (*Tree, error) {
	return unpack(ctx, r.opener, r.jobs(packages), o)
}

func (r *Repository) jobs(packages []*Package) []job {
	jobs := make([]job, len(packages))
	for i, p := range packages {
		jobs[i] = job{file: r.path(p.String() + ".apk"), owner: p.String(), want: want{p, r.keys}}
	}
	return jobs
}

// A Listing is which files a package has.
type Listing struct {
	Unpacked
	Files []archive.File // sorted by path
}

// List fetches packages of the index, and verifies them as Unpack does, but keeps only
// the names of their files. Packages may have the same paths.
func (r *Repository) List(ctx context.Context, packages []*Package, o *Options) ([]Listing, error) {
	if o == nil {
		o = &Options{}
	}
	opts := o.Spool
	opts.NamesOnly = true
	spool, err := archive.NewSpool(&opts)
	if err != nil {
		return nil, err
	}
	defer spool.Close()
	outs, found, err := fetchAll(ctx, spool, r.opener, r.jobs(packages), o)
	if err != nil {
		return nil, err
	}
	list := make([]Listing, len(found))
	for i := range found {
		list[i] = Listing{found[i], outs[i].Files()}
	}
	return list, nil
}

// UnpackFiles does the same with single packages, which must be signed by one of
// the keys. The same package twice, also in two versions, is an error.
func UnpackFiles(ctx context.Context, opener Opener, files []string, keys Keys, o *Options) (*Tree, error) {
	jobs := make([]job, len(files))
	for i, file := range files {
		jobs[i] = job{file: file, owner: file, want: want{nil, keys}}
	}
	return unpack(ctx, opener, jobs, o)
}

// A job is a package to be unpacked.
type job struct {
	file, owner string
	want        want
	out         *archive.Package
}

func unpack(ctx context.Context, opener Opener, jobs []job, o *Options) (*Tree, error) {
	if o == nil {
		o = &Options{}
	}
	spool, err := archive.NewSpool(&o.Spool)
	if err != nil {
		return nil, err
	}
	t := &Tree{spool: spool}
	if err := t.fill(ctx, opener, jobs, o); err != nil {
		spool.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tree) fill(ctx context.Context, opener Opener, jobs []job, o *Options) (err error) {
	outs, found, err := fetchAll(ctx, t.spool, opener, jobs, o)
	if err != nil {
		return err
	}
	t.Packages = found
	infos, files := map[string]*Info{}, map[string]string{}
	for i, j := range jobs {
		name := found[i].Name
		if other, again := files[name]; again {
			return fmt.Errorf("%s and %s are the same package, %s: leave one of them out", other, j.file, name)
		}
		infos[j.owner], files[name] = &found[i].Info, j.file
	}
	t.Tree, err = t.spool.Tree(outs, func(winner, loser string) bool { return infos[winner].replaces(infos[loser]) })
	return err
}

// fetchAll has packages read into a spool, in parallel.
func fetchAll(ctx context.Context, spool *archive.Spool, opener Opener, jobs []job, o *Options) ([]*archive.Package, []Unpacked, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cmp.Or(o.Parallel, max(4, runtime.GOMAXPROCS(0))))
	var mu sync.Mutex
	outs, found := make([]*archive.Package, len(jobs)), make([]Unpacked, len(jobs))
	for i, j := range jobs {
		outs[i] = spool.Package(j.owner)
		j.out = outs[i]
		g.Go(func() error {
			u, err := j.fetch(ctx, opener)
			if err != nil {
				return fmt.Errorf("package %s: %w", j.file, err)
			}
			found[i] = *u
			mu.Lock()
			defer mu.Unlock()
			if o.Done != nil {
				o.Done(*u)
			}
			return nil
		})
	}
	return outs, found, g.Wait()
}

func (j *job) fetch(ctx context.Context, opener Opener) (u *Unpacked, err error) {
	err = refetch.Read(ctx, opening(opener, j.file), func(r io.Reader) (err error) {
		j.out.Discard()
		u, err = j.want.read(r, j.out)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) && j.want.index != nil {
		err = fmt.Errorf("%w: the index has it, so the mirror may be half updated: try again later, or another one", err)
	}
	if err != nil {
		return nil, err
	}
	u.File = j.file
	return u, nil
}

func opening(o Opener, name string) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) { return o.Open(ctx, name) }
}
