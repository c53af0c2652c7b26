package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/blake2b"

	"overmount/block"
	"overmount/pack"
	"overmount/store"
	"overmount/store/s3store"
	"overmount/store/zdbstore"
	"overmount/verify"
)

// upload copies to each store what it lacks. The stores of the manifest are opened
// only if something is missing.
func (p *publication) upload(ctx context.Context) (pack.CopySummary, error) {
	ids := pack.ObjectIDs(p.m)
	for _, s := range p.stocks {
		if err := s.learn(ctx, ids, p.f.recheck); err != nil {
			return pack.CopySummary{}, err
		}
	}
	from := readerFunc(sync.OnceValues(func() (store.Reader, error) { return p.readStores(p.old, p.f.timeout, p.log) }))
	bar := p.progress("uploading")
	defer bar.finish()
	return pack.Copy(ctx, p.m, from, target{p.to}, &pack.CopyOptions{
		Parallel: 32, // as many as a store has connections
		Progress: func(s pack.CopySummary) { bar.count(int(s.Done), int(s.Objects)) },
	})
}

// A readerFunc is a reader that is opened when it is asked for something. That it
// cannot be opened means that nobody has the object, as far as one knows here.
type readerFunc func() (store.Reader, error)

func (open readerFunc) Get(ctx context.Context, id block.ID) ([]byte, error) {
	r, err := open()
	if err != nil {
		return nil, err
	}
	return r.Get(ctx, id)
}

// A stock is a store to write to, and what it is known to have.
type stock struct {
	store.Writer
	name    string          // in the journal
	routes  []store.Route   // what it is meant for
	journal *verify.Journal // nil: none

	mu       sync.Mutex
	has      map[block.ID]bool
	complete bool // what is not in has is not there
}

var (
	_ store.Prober = (*stock)(nil)
	_ store.Syncer = (*stock)(nil)
)

// A lister is a store that tells what it has learned.
type lister interface {
	store.Learner
	Seen(id block.ID) (there, known bool)
}

// learn finds out what the store has of the objects that it is meant for: from the
// journal if that has them all, else from a list, if the store can be listed and
// is not too large. A list is believed rather than the journal.
func (s *stock) learn(ctx context.Context, all []block.ID, recheck bool) error {
	const each = 300 // keys that are listed, at most, for each object that is to be found
	ids := slices.DeleteFunc(slices.Clone(all), func(id block.ID) bool { return !s.covers(id) })
	if s.journal != nil {
		if recheck {
			if err := s.journal.Forget(s.name); err != nil {
				return err
			}
		}
		for _, id := range ids {
			if s.journal.Known(s.name, id) {
				s.has[id] = true
			}
		}
	}
	missing := len(ids) - len(s.has)
	l, ok := s.Writer.(lister)
	if missing == 0 || !ok {
		return nil
	}
	complete, err := l.Learn(ctx, missing*each)
	if err == nil {
		return s.listed(l, ids, complete)
	}
	return ctx.Err() // without one, it is asked for each object instead
}

// listed takes over what a list has told.
func (s *stock) listed(l lister, ids []block.ID, complete bool) error {
	if complete {
		s.complete, s.has = true, map[block.ID]bool{}
		if s.journal != nil {
			if err := s.journal.Forget(s.name); err != nil {
				return err
			}
		}
	}
	for _, id := range ids {
		if there, _ := l.Seen(id); there {
			s.note(id)
		}
	}
	return nil
}

func (s *stock) covers(id block.ID) bool {
	return slices.ContainsFunc(s.routes, func(r store.Route) bool { return r.First <= id[0] && id[0] <= r.Last })
}

// note remembers that the object is there. A journal that cannot be written costs
// time the next time, and nothing else.
func (s *stock) note(id block.ID) {
	s.mu.Lock()
	s.has[id] = true
	s.mu.Unlock()
	if s.journal != nil {
		_ = s.journal.Done(s.name, id)
	}
}

func (s *stock) Has(ctx context.Context, id block.ID) (bool, error) {
	s.mu.Lock()
	has, known := s.has[id], s.complete
	s.mu.Unlock()
	if has || known {
		return has, nil
	}
	has, err := holds(ctx, s.Writer, id)
	if has && err == nil {
		s.note(id)
	}
	return has, err
}

func (s *stock) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	s.mu.Lock()
	has := s.has[id]
	s.mu.Unlock()
	if has {
		return false, nil
	}
	if stored, err = s.Writer.Put(ctx, id, object); err == nil {
		s.note(id)
	}
	return stored, err
}

func (s *stock) Sync(ctx context.Context) error {
	if w, ok := s.Writer.(store.Syncer); ok {
		return w.Sync(ctx)
	}
	return nil
}

// mostCheck is the longest that a public URL is waited for, for one object.
const mostCheck = 30 * time.Second

// fewAgain is how many objects that were right at a public URL before are fetched
// again each time.
const fewAgain = 2

// checkObjects checks objects through the public URLs.
func (p *publication) checkObjects(ctx context.Context) ([]verify.Finding, error) {
	if p.f.objects.Amount == verify.None {
		return nil, nil
	}
	stores, err := p.publicStores()
	if err != nil {
		return nil, err
	}
	notes := map[string]*verify.Journal{}
	for _, s := range stores {
		j := p.journals.open(p.app, s.Name)
		if j != nil && p.f.recheck {
			if err := j.Forget(s.Name); err != nil {
				return nil, err
			}
		}
		notes[s.Name] = j
	}
	again := map[string]int{}
	bar := p.progress("checking")
	findings, err := verify.Objects(ctx, p.m, stores, &verify.ObjectsOptions{
		Amount: p.f.objects.Amount, Everywhere: true, Budget: min(p.f.timeout, mostCheck), Progress: bar.count,
		Known: func(name string, id block.ID) bool {
			if notes[name] == nil || !notes[name].Known(name, id) {
				return false
			}
			again[name]++ // the first ones of the sample, each time
			return again[name] > fewAgain
		},
		Done: func(name string, id block.ID) error {
			if notes[name] != nil {
				_ = notes[name].Done(name, id) // as in note
			}
			return nil
		},
	})
	bar.finish()
	findings = append(findings, layoutFindings(p.m.Codec(), stores)...)
	if err == nil && verify.Worst(findings) == verify.Error {
		findings = append(findings, p.doubt(findings, notes)...)
	}
	return findings, err
}

// layoutFindings tells of layouts in which rfs does not find objects that it could
// read.
func layoutFindings(codec block.Codec, stores []verify.Store) []verify.Finding {
	if codec != block.Snappy {
		return nil
	}
	var found []verify.Finding
	add := func(s verify.Severity, at, text string) {
		found = append(found, verify.Finding{Severity: s, Check: "objects", Store: at, Text: text})
	}
	for _, s := range stores {
		if s.Layout == nil {
			continue
		}
		isS3 := strings.HasPrefix(s.Name, "s3")
		switch layout := s.Layout(); {
		case isS3 && layout == store.Sharded.String():
			add(verify.Error, s.Name, "rfs, which can read this manifest, does not look in S3 under the layout sharded: write with layout=flat, or pack with --codec zstd")
		case !isS3 && layout == store.Sharded2.String():
			add(verify.Error, s.Name, "rfs, which can read this manifest, does not look on web servers under the layout sharded2: publish to a store, which gets the layout sharded, or pack with --codec zstd")
		case !isS3 && layout == store.Flat.String():
			add(verify.Warning, s.Name, "under the layout flat, rfs makes two requests for each object")
		}
	}
	return found
}

// doubt forgets what was noted of the stores to write to, and of the public ones
// with errors.
func (p *publication) doubt(findings []verify.Finding, notes map[string]*verify.Journal) []verify.Finding {
	noted := false
	forget := func(j *verify.Journal, name string) {
		if j != nil {
			noted = noted || j.Len() > 0
			_ = j.Forget(name) // --recheck will do
		}
	}
	for _, s := range p.stocks {
		forget(s.journal, s.name)
	}
	for _, f := range findings {
		if f.Severity == verify.Error {
			forget(notes[f.Store], f.Store)
		}
	}
	if !noted {
		return nil
	}
	return []verify.Finding{{Severity: verify.Info, Check: "objects", Text: "what was noted of the stores is forgotten: publish again, and they will be asked what they have"}}
}

// publicStores opens the public URLs as machines will.
func (p *publication) publicStores() ([]verify.Store, error) {
	var stores []verify.Store
	for _, spec := range p.public {
		r, err := p.openPublic(spec.URL)
		if err != nil {
			return nil, err
		}
		prober, _ := r.(store.Prober)
		stores = append(stores, verify.Store{
			Name: verify.StoreName(spec.URL.String()), First: spec.First, Last: spec.Last,
			Reader: r, Prober: prober, Layout: layoutOf(r),
		})
	}
	return stores, nil
}

func (a *app) openPublic(u *url.URL) (store.Reader, error) {
	switch u.Scheme {
	case "s3", "s3s":
		return s3store.New(u, &s3store.Options{Region: s3store.LoadRegion(a.Getenv)})
	case "zdb":
		s, err := zdbstore.New(u, nil)
		if err != nil {
			return nil, err
		}
		return store.Checked(s), nil
	}
	return a.openHTTP(u)
}

// journals are where publish notes what stores have, and what they gave.
type journals struct {
	file   string // for all stores, or
	dir    string // for one file each; empty: nothing is noted
	opened map[string]*verify.Journal
}

// journals returns those in a file, none, or where the user's cache is.
func (a *app) journals(file string) *journals {
	j := &journals{opened: map[string]*verify.Journal{}}
	switch file {
	case "none":
	case "":
		j.dir = a.publishDir()
	default:
		j.file = file
	}
	return j
}

// publishDir is where journals are, empty if the user has no cache directory.
func (a *app) publishDir() string {
	if dir := a.Getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) { // others are to be ignored
		return filepath.Join(dir, "overmount/publish")
	}
	if home := a.Getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".cache/overmount/publish")
	}
	return ""
}

// journalFile is the name of the journal of a store. The store may have a name
// that is too long for a file, or that nobody needs to see.
func journalFile(name string) string {
	sum := blake2b.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// addressOf names a store to write to in journals: without secrets, with the
// layout. What the same store gives as a public one is another matter.
func addressOf(u *url.URL) string { return "to " + withoutSecrets(u).String() }

// open returns the journal of a store, nil if there is none. Without one publish
// takes longer, so that it is no reason to fail.
func (j *journals) open(a *app, name string) *verify.Journal {
	path := j.file
	if path == "" {
		if j.dir == "" {
			return nil
		}
		path = filepath.Join(j.dir, journalFile(name))
	}
	if opened, ok := j.opened[path]; ok {
		return opened
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	var opened *verify.Journal
	if err == nil {
		opened, err = verify.OpenStoreJournal(path)
	}
	if err != nil {
		a.warnf("what is found to be there is not noted: %v", err)
	}
	j.opened[path] = opened
	return opened
}

func (j *journals) close() {
	for _, opened := range j.opened {
		if opened != nil {
			_ = opened.Close() // nothing is waiting to be written
		}
	}
}

// forgetPublished removes the notes of what a store has, from which something is
// about to be deleted.
func (a *app) forgetPublished(u *url.URL) {
	dir := a.publishDir()
	if dir == "" {
		return
	}
	err := os.Remove(filepath.Join(dir, journalFile(addressOf(u))))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.warnf("publish will think that the store still has what is deleted: %v", err)
	}
}
