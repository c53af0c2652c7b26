package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
)

// A Store is one of those that a manifest's objects must be in.
type Store struct {
	// Name is the store for people, as [StoreName] makes it of a URL.
	Name string
	// First and Last are the first bytes of the IDs that the store is meant for.
	First, Last byte
	// Reader gives objects that match their IDs, and block.ErrCorrupt for others.
	Reader store.Reader
	// Prober, if set, is asked whether an object is there where its content is
	// not wanted.
	Prober store.Prober
	// Layout, if set, returns the name of the layout that objects turned out to
	// have, empty as long as it is not known.
	Layout func() string
}

func (s *Store) covers(id block.ID) bool { return s.First <= id[0] && id[0] <= s.Last }

// An Amount says how many objects are checked.
type Amount int

// The amounts beside a [Sample].
const (
	All  Amount = 0
	None Amount = -1
)

// DefaultSample is the amount that [ParseAmount] takes for "sample".
const DefaultSample Amount = 64

// Sample is n objects, spread evenly over the sorted IDs, and a few more where the
// range of a store would have too few. It is the same ones each time.
func Sample(n int) Amount { return Amount(max(n, 1)) }

// ParseAmount reads all, none, sample or sample=N.
func ParseAmount(s string) (Amount, error) {
	switch s {
	case "all":
		return All, nil
	case "none":
		return None, nil
	case "sample":
		return DefaultSample, nil
	}
	number, ok := strings.CutPrefix(s, "sample=")
	if n, err := strconv.ParseUint(number, 10, 31); ok && err == nil && n > 0 {
		return Sample(int(n)), nil
	}
	return 0, fmt.Errorf("%q is no amount of objects: want all, none, sample or sample=N", s)
}

func (a Amount) String() string {
	switch {
	case a == All:
		return "all"
	case a < 0:
		return "none"
	}
	return fmt.Sprintf("sample=%d", int(a))
}

// ObjectsOptions change how objects are checked. Nil and zero mean the defaults.
type ObjectsOptions struct {
	// Amount is how many objects are checked; the default is All.
	Amount Amount

	// ExistenceOnly asks stores whether they have the objects, and fetches only
	// the first of each store, to notice those that say yes to everything.
	// Stores without a Prober are read as usual.
	ExistenceOnly bool

	// Everywhere says that every store has to have all objects that it is meant
	// for: then it is an error, too, that one lacks what another one has.
	Everywhere bool

	// Parallel is how many requests there are at a time; the default is 32.
	Parallel int

	// Budget is the longest time that one object takes at one store, with the
	// tries after temporary failures. The default is 30 s.
	Budget time.Duration

	// Progress, if set, is told how many of all requests are done. It is called
	// from several goroutines.
	Progress func(done, all int)

	// Known, if set, says that a store needs not be asked for an object again;
	// Done is told of each that was found to be right, and ends the check with
	// its error. They are those of a [Journal]. Known is asked by one goroutine, in
	// the order of the objects.
	Known func(storeName string, id block.ID) bool
	Done  func(storeName string, id block.ID) error
}

func (o *ObjectsOptions) withDefaults() ObjectsOptions {
	d := ObjectsOptions{}
	if o != nil {
		d = *o
	}
	if d.Parallel <= 0 {
		d.Parallel = 32
	}
	if d.Budget <= 0 {
		d.Budget = 30 * time.Second
	}
	if d.Known == nil {
		d.Known = func(string, block.ID) bool { return false }
	}
	if d.Done == nil {
		d.Done = func(string, block.ID) error { return nil }
	}
	return d
}

// Objects asks every store for the objects of the manifest that it is meant for.
// Each is fetched, compared with its ID, and opened under the key that the
// manifest has for it.
//
// Errors are wrong bytes, an object that no store gives, or that does not open, a
// store that refuses or does not answer, and bytes that no store is meant for. An
// object that one store lacks and another has is a warning. There is one finding
// for each kind at each store; Names has the IDs, Text some of the files that need
// them. For each store that answers there is information on what was asked and,
// if it is known, the layout.
//
// A store that did not answer three times in a row is left alone from then on.
//
// Objects that the manifest carries itself are opened, and asked of the stores
// only if their codec is that of rfs, which does not look into the manifest for
// them: to lack them is a warning.
//
// The error is that of ctx or of Done.
func Objects(ctx context.Context, m *manifest.Manifest, stores []Store, o *ObjectsOptions) ([]Finding, error) {
	c := &objectCheck{m: m, o: o.withDefaults(), whole: map[int]bool{}}
	for _, s := range stores {
		c.stores = append(c.stores, newStoreCheck(s, c.o.Budget))
	}
	c.gather()
	if err := c.run(ctx, c.pick()); err != nil {
		return nil, err
	}
	c.report()
	return c.sorted(), nil
}

type objectCheck struct {
	findings
	m       *manifest.Manifest
	o       ObjectsOptions
	stores  []*storeCheck
	objects []*object // sorted by ID
	all     int       // requests
	done    atomic.Int64
	lost    []*object    // that no store is meant for
	whole   map[int]bool // findings by index that are about a store more than about objects
}

// An object is one of the manifest's, with what the check learns of it.
type object struct {
	id      block.ID
	uses    []use
	carried []byte // by the manifest itself

	good   atomic.Bool // a store gives it
	opened sync.Once
	shut   error // why it does not open
}

// use is what the manifest expects of an object: the key, and the length of the
// block. Mostly there is one use.
type use struct {
	key    block.Key
	length int
}

// gather lists the different objects of the manifest.
func (c *objectCheck) gather() {
	byID := map[block.ID]*object{}
	for ino := manifest.Root; c.m.Has(ino); ino++ {
		left := c.m.Attr(ino).Size
		for _, ref := range c.m.Blocks(ino) {
			obj := byID[ref.ID]
			if obj == nil {
				obj = &object{id: ref.ID}
				obj.carried, _ = c.m.Object(ref.ID)
				byID[ref.ID] = obj
				c.objects = append(c.objects, obj)
			}
			u := use{ref.Key, int(min(left, block.Size))}
			if !slices.Contains(obj.uses, u) {
				obj.uses = append(obj.uses, u)
			}
			left -= block.Size
		}
	}
	slices.SortFunc(c.objects, func(a, b *object) int { return slices.Compare(a.id[:], b.id[:]) })
}

// pick returns the objects that stores are asked for, and opens those that need
// none.
func (c *objectCheck) pick() []*object {
	var asked []*object
	for _, obj := range c.objects {
		switch {
		case obj.carried != nil:
			obj.open(c.m.Codec(), obj.carried)
			if c.m.Codec() != block.Snappy {
				continue
			}
		case !slices.ContainsFunc(c.stores, func(s *storeCheck) bool { return s.covers(obj.id) }):
			c.lost = append(c.lost, obj)
			continue
		}
		asked = append(asked, obj)
	}
	switch n := int(c.o.Amount); {
	case c.o.Amount == All:
		return asked
	case n < 0:
		return nil
	default:
		return sample(asked, c.stores, n)
	}
}

// sample takes n objects, and some of the range of each store.
func sample(sorted []*object, stores []*storeCheck, n int) []*object {
	const few = 4
	chosen := map[*object]bool{}
	spread(sorted, n, chosen)
	for _, s := range stores {
		covered := slices.DeleteFunc(slices.Clone(sorted), func(obj *object) bool { return !s.covers(obj.id) })
		have := 0
		for _, obj := range covered {
			if chosen[obj] {
				have++
			}
		}
		if have < min(few, n) {
			spread(covered, min(few, n), chosen)
		}
	}
	return slices.DeleteFunc(slices.Clone(sorted), func(obj *object) bool { return !chosen[obj] })
}

// spread chooses n of the objects, the middle one of n parts each.
func spread(sorted []*object, n int, chosen map[*object]bool) {
	n = min(n, len(sorted))
	for i := range n {
		chosen[sorted[(2*i+1)*len(sorted)/(2*n)]] = true
	}
}

// run makes all requests.
func (c *objectCheck) run(ctx context.Context, objects []*object) error {
	for _, s := range c.stores {
		for _, obj := range objects {
			if s.covers(obj.id) {
				s.asked++
			}
		}
		c.all += s.asked
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.o.Parallel)
	for _, obj := range objects {
		for _, s := range c.stores {
			if !s.covers(obj.id) || gctx.Err() != nil {
				continue
			}
			whole := !c.o.ExistenceOnly || s.probe == nil || !s.begun
			s.begun = true
			known := c.o.Known(s.Name, obj.id)
			g.Go(func() error { return c.check(gctx, s, obj, whole, known) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// check asks one store for one object, unless that is known to be right.
func (c *objectCheck) check(ctx context.Context, s *storeCheck, obj *object, whole, known bool) error {
	defer c.step()
	if known {
		obj.good.Store(true)
		s.noted.Add(1)
		s.answered(obj, nil)
		return nil
	}
	if s.isDead() {
		s.answered(obj, errDead)
		return nil
	}
	sound, err := c.ask(ctx, s, obj, whole)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.answered(obj, err)
	if err != nil {
		return nil
	}
	obj.good.Store(true)
	if !sound {
		return nil
	}
	if err := c.o.Done(s.Name, obj.id); err != nil {
		return fmt.Errorf("note what has been checked: %w", err)
	}
	return nil
}

func (c *objectCheck) step() {
	if done := c.done.Add(1); c.o.Progress != nil {
		c.o.Progress(int(done), c.all)
	}
}

// ask makes one request. It reports whether there was nothing wrong with the
// object that came.
func (c *objectCheck) ask(ctx context.Context, s *storeCheck, obj *object, whole bool) (sound bool, err error) {
	if !whole {
		_, err := s.probe.Get(ctx, obj.id)
		return err == nil, err
	}
	data, err := s.read.Get(ctx, obj.id)
	if err != nil {
		return false, err
	}
	return obj.open(c.m.Codec(), data), nil
}

var plains = sync.Pool{New: func() any { return new([]byte) }}

// open opens the object, once for all stores: bytes with one ID are the same. It
// reports whether that went well.
func (obj *object) open(codec block.Codec, data []byte) bool {
	obj.opened.Do(func() {
		buf := plains.Get().(*[]byte)
		defer plains.Put(buf)
		for _, u := range obj.uses {
			plain, err := block.Open((*buf)[:0], codec, u.key, data)
			if err == nil && len(plain) != u.length {
				err = fmt.Errorf("it holds %d bytes, not the %d that the manifest says", len(plain), u.length)
			}
			if err != nil {
				obj.shut = err
				return
			}
			*buf = plain
		}
	})
	return obj.shut == nil
}

// A storeCheck is a store with what the check learns of it.
type storeCheck struct {
	Store
	read, probe store.Reader // probe may be nil
	asked       int
	begun       bool
	noted       atomic.Int64 // of asked, those that were Known

	mu     sync.Mutex
	right  int
	inRow  int // requests without an answer
	dead   bool
	failed map[failure][]*object
	first  map[failure]error
}

func newStoreCheck(s Store, budget time.Duration) *storeCheck {
	c := &storeCheck{Store: s, failed: map[failure][]*object{}, first: map[failure]error{}}
	again := &store.RetryOptions{Budget: budget}
	c.read = store.Retry(s.Reader, again)
	if s.Prober != nil {
		c.probe = store.Retry(probeReader{s.Prober}, again)
	}
	return c
}

// A probeReader asks whether objects are there, and gives none.
type probeReader struct{ store.Prober }

func (p probeReader) Get(ctx context.Context, id block.ID) ([]byte, error) {
	has, err := p.Has(ctx, id)
	if err == nil && !has {
		err = store.ErrNotFound
	}
	return nil, err
}

// A failure is the kind of an error.
type failure int

const (
	missing failure = iota
	wrong
	refused
	unanswered
)

func failureOf(err error) failure {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return missing
	case errors.Is(err, block.ErrCorrupt):
		return wrong
	case errors.Is(err, store.ErrForbidden):
		return refused
	}
	return unanswered
}

// errDead is the failure of what was not asked.
var errDead = errors.New("the store has not answered before")

// answered notes how a request ended.
func (s *storeCheck) answered(obj *object, err error) {
	const most = 3 // failures in a row
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.right++
		s.inRow = 0
		return
	}
	kind := failureOf(err)
	s.failed[kind] = append(s.failed[kind], obj)
	if s.first[kind] == nil {
		s.first[kind] = err
	}
	if kind != unanswered {
		s.inRow = 0
	} else if s.inRow++; s.inRow >= most {
		s.dead = true
	}
}

func (s *storeCheck) isDead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

// report turns what was learned into findings.
func (c *objectCheck) report() {
	if len(c.lost) > 0 {
		c.addObjects(Error, "", c.lost, "%d objects begin with bytes for which there is no store to ask", len(c.lost))
	}
	shut := slices.DeleteFunc(slices.Clone(c.objects), func(obj *object) bool { return obj.shut == nil })
	if len(shut) > 0 {
		c.addObjects(Error, "", shut, "%d objects are not what the manifest says, the first: %v", len(shut), shut[0].shut)
	}
	for _, s := range c.stores {
		c.reportStore(s)
	}
	c.addPaths()
}

func (c *objectCheck) reportStore(s *storeCheck) {
	var nowhere, elsewhere, spare []*object
	for _, obj := range s.failed[missing] {
		switch {
		case obj.carried != nil:
			spare = append(spare, obj)
		case obj.good.Load():
			elsewhere = append(elsewhere, obj)
		default:
			nowhere = append(nowhere, obj)
		}
	}
	lacking := Warning
	if c.o.Everywhere {
		lacking = Error
	}
	silent := "it gave no answer for %d of %d objects, the first time: %v"
	if s.dead {
		silent = "it does not answer, so that %d of %d objects were not checked there: %v"
	}
	for _, f := range []struct {
		severity Severity
		kind     failure
		objects  []*object
		format   string
	}{
		{Error, missing, nowhere, "it lacks %d of %d objects, which no other store gives either: %v"},
		{lacking, missing, elsewhere, "it lacks %d of %d objects, which another store has: %v"},
		{Warning, missing, spare, "it lacks %d of %d objects, which the manifest has itself, but rfs looks only here: %v"},
		{Error, wrong, s.failed[wrong], "it has wrong bytes for %d of %d objects, the first: %v"},
		{Error, refused, s.failed[refused], "it refuses %d of %d objects, the first: %v"},
		{Error, unanswered, s.failed[unanswered], silent},
	} {
		if len(f.objects) > 0 {
			c.whole[len(c.findings)] = f.kind == unanswered && s.dead
			c.addObjects(f.severity, s.Name, f.objects, f.format, len(f.objects), s.asked, s.first[f.kind])
		}
	}
	c.reportRight(s)
}

// reportRight tells of a store that answers.
func (c *objectCheck) reportRight(s *storeCheck) {
	if s.right == 0 {
		return
	}
	what := "right"
	if c.o.ExistenceOnly && s.probe != nil {
		what = "there"
	}
	text := fmt.Sprintf("%d of %d objects that were asked for are %s", s.right, s.asked, what)
	if n := s.noted.Load(); n > 0 {
		text += fmt.Sprintf(", %d of them as noted before", n)
	}
	if s.Layout != nil {
		if layout := s.Layout(); layout != "" {
			text += "; their layout is " + layout
		}
	}
	c.findings = append(c.findings, Finding{Severity: Info, Check: "objects", Store: s.Name, Text: text})
}

// addObjects adds a finding about objects.
func (c *objectCheck) addObjects(severity Severity, storeName string, objects []*object, format string, args ...any) {
	slices.SortFunc(objects, func(a, b *object) int { return slices.Compare(a.id[:], b.id[:]) })
	names := make([]string, len(objects))
	for i, obj := range objects {
		names[i] = obj.id.String()
	}
	c.findings = append(c.findings, Finding{
		Severity: severity, Check: "objects", Store: storeName, Text: fmt.Sprintf(format, args...), Names: names,
	})
}

// addPaths tells with each finding about objects which files need them.
func (c *objectCheck) addPaths() {
	files := map[string][]string{} // by the name of the object
	for _, f := range c.findings {
		for _, name := range f.Names {
			files[name] = nil
		}
	}
	if len(files) == 0 {
		return
	}
	for path, ino := range c.m.Walk(manifest.Root) {
		for _, ref := range c.m.Blocks(ino) {
			name := ref.ID.String()
			if paths, ok := files[name]; ok {
				files[name] = append(paths, path)
			}
		}
	}
	for i, f := range c.findings {
		if c.whole[i] {
			continue
		}
		var paths []string
		for _, name := range f.Names {
			paths = append(paths, files[name]...)
		}
		slices.Sort(paths)
		if paths = slices.Compact(paths); len(paths) > 0 {
			c.findings[i].Text += fmt.Sprintf("; object %s, in %s", some(short(f.Names)), some(paths))
		}
	}
}

// short leaves of several IDs what a person can tell apart.
func short(names []string) []string {
	if len(names) == 1 {
		return names
	}
	var cut []string
	for _, name := range names {
		cut = append(cut, name[:12]+"…")
	}
	return cut
}
