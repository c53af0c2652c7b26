package verify

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/httpstore"
	"overmount/store/storetest"
	"overmount/tree/treetest"
)

// filesOf returns n files of one block each, f000 to f….
func filesOf(n int) []treetest.File {
	var files []treetest.File
	for i := range n {
		files = append(files, treetest.File{Path: fmt.Sprintf("f%03d", i), Data: treetest.Random(uint64(i), 100)})
	}
	return files
}

// idOf returns the object of a file of one block.
func idOf(t *testing.T, m *manifest.Manifest, name string) block.ID {
	t.Helper()
	ino, err := m.Find(name)
	if err != nil {
		t.Fatal(err)
	}
	return m.Blocks(ino)[0].ID
}

// at returns a store for all objects.
func at(name string, r store.Reader) Store {
	return Store{Name: name, First: 0x00, Last: 0xff, Reader: store.Checked(r)}
}

// without returns a copy of a store that lacks some objects.
func without(t *testing.T, m *manifest.Manifest, from *store.Mem, lack ...block.ID) *store.Mem {
	t.Helper()
	to := &store.Mem{}
	for _, ref := range m.AllBlocks() {
		object, err := from.Get(t.Context(), ref.ID)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(lack, ref.ID) {
			continue
		}
		if _, err := to.Put(t.Context(), ref.ID, object); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func objects(t *testing.T, m *manifest.Manifest, o *ObjectsOptions, stores ...Store) []Finding {
	t.Helper()
	all, err := Objects(t.Context(), m, stores, o)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// lines returns findings as text, with names for the IDs of files.
func lines(t *testing.T, m *manifest.Manifest, all []Finding) []string {
	t.Helper()
	list := []string{}
	for _, f := range all {
		line := f.String()
		for path, ino := range m.Walk(manifest.Root) {
			for _, ref := range m.Blocks(ino) {
				line = strings.ReplaceAll(line, ref.ID.String(), "<"+path+">")
				line = strings.ReplaceAll(line, ref.ID.String()[:12]+"…", "<"+path+">")
			}
		}
		list = append(list, line)
	}
	return list
}

func TestObjectsThatAreRight(t *testing.T) {
	files := append(filesOf(20),
		treetest.File{Path: "empty"}, treetest.File{Path: "again", Data: filesOf(1)[0].Data},
		treetest.File{Path: "long", Data: treetest.Random(99, 2*block.Size+1)}, treetest.File{Path: "zeros", Data: make([]byte, 3*block.Size)},
		treetest.File{Path: "other", LinkTo: "long"})
	for _, codec := range []block.Codec{block.Zstd, block.Snappy} {
		m, mem := treetest.Build(t, codec, files...)
		src := storetest.NewFaulty(mem)
		var calls, last atomic.Int64
		got := objects(t, m, &ObjectsOptions{Progress: func(done, all int) {
			calls.Add(1)
			if done == all {
				last.Store(int64(all))
			}
		}}, at("a", src), at("b", mem))
		want := []string{
			"info: objects: a: 24 of 24 objects that were asked for are right",
			"info: objects: b: 24 of 24 objects that were asked for are right",
		}
		if diff := cmp.Diff(want, lines(t, m, got)); diff != "" {
			t.Errorf("%v: findings differ (-want +got):\n%s", codec, diff)
		}
		if src.Total() != 24 {
			t.Errorf("%v: the store was asked %d times for 24 objects", codec, src.Total())
		}
		if calls.Load() != 48 || last.Load() != 48 {
			t.Errorf("%v: Progress was told %d times, at last of %d, want 48 and 48", codec, calls.Load(), last.Load())
		}
	}
}

func TestObjectsThatAReplicaLacks(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, append(filesOf(6), treetest.File{Path: "second/f001", Data: filesOf(2)[1].Data})...)
	first, second := idOf(t, m, "f001"), idOf(t, m, "f002")
	a, b := without(t, m, mem, first, second), without(t, m, mem, second)
	want := []string{
		"error: objects: a: it lacks 1 of 6 objects, which no other store gives either: object not found in memory; object <f002>, in f002",
		"error: objects: b: it lacks 1 of 6 objects, which no other store gives either: object not found in memory; object <f002>, in f002",
		"warning: objects: a: it lacks 1 of 6 objects, which another store has: object not found in memory; object <second/f001>, in f001, second/f001",
		"info: objects: a: 4 of 6 objects that were asked for are right",
		"info: objects: b: 5 of 6 objects that were asked for are right",
	}
	got := objects(t, m, nil, at("a", a), at("b", b))
	for i, line := range lines(t, m, got) {
		if i < len(want) && line != want[i] && strings.ReplaceAll(line, "<f001>", "<second/f001>") != want[i] {
			t.Errorf("finding %d: %s\nwant %s", i, line, want[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d findings, want %d", len(got), len(want))
	}
	if diff := cmp.Diff([]string{first.String()}, got[2].Names); diff != "" || got[2].Store != "a" {
		t.Errorf("names of the warning at %q differ (-want +got):\n%s", got[2].Store, diff)
	}
	for i, f := range objects(t, m, &ObjectsOptions{Everywhere: true}, at("a", a), at("b", b)) {
		if i < 3 && f.Severity != Error {
			t.Errorf("with Everywhere, finding %d is %v, want an error", i, f)
		}
	}
}

// Many objects are one finding, which names a few and has all.
func TestObjectsAreGathered(t *testing.T) {
	m, _ := treetest.Build(t, block.Zstd, filesOf(50)...)
	got := objects(t, m, nil, at("a", &store.Mem{}))
	if len(got) != 1 || len(got[0].Names) != 50 || !slices.IsSorted(got[0].Names) {
		t.Fatalf("findings %v, want one about 50 objects, sorted", got)
	}
	if line := got[0].String(); !strings.Contains(line, " and 47 more, in f000, f001, f002 and 47 more") || len(line) > 400 {
		t.Errorf("text %q, want a few objects and files", line)
	}
}

func TestObjectsThatAreWrong(t *testing.T) {
	for name, fault := range map[string]storetest.Fault{"flipped": storetest.WrongBytes(), "cut": storetest.Truncated()} {
		m, mem := treetest.Build(t, block.Zstd, filesOf(8)...)
		bad := storetest.NewFaulty(mem)
		bad.Next(nil, fault)
		got := lines(t, m, objects(t, m, &ObjectsOptions{Parallel: 1}, at("a", bad), at("b", mem)))
		if len(got) != 3 || !strings.HasPrefix(got[0], "error: objects: a: it has wrong bytes for 1 of 8 objects, the first: object is corrupt") {
			t.Errorf("%s: findings %q, want one error", name, got)
		}
	}
}

// The bytes have their ID, but the manifest's key or length is not theirs.
func TestObjectsThatDoNotOpen(t *testing.T) {
	mem := &store.Mem{}
	right := treetest.Put(t, mem, block.Zstd, []byte("content"))
	wrongKey := treetest.Put(t, mem, block.Zstd, []byte("other"))
	wrongKey.Key[0] ^= 1
	file := func(name string, size int64, ref block.Ref) manifest.Entry {
		return manifest.Entry{Path: name, Attr: manifest.Attr{Mode: unix.S_IFREG | 0o644, Size: size}, Blocks: []block.Ref{ref}}
	}
	m := create(t, nil, file("good", 7, right), file("key", 5, wrongKey), file("length", 8, right))
	done := func(string, block.ID) error { return errors.New("noted as right") }
	got := objects(t, m, &ObjectsOptions{Done: done}, at("a", mem), at("b", mem))
	if len(got) != 3 || got[0].Severity != Error || len(got[0].Names) != 2 || got[0].Store != "" {
		t.Fatalf("findings %v, want one error about two objects", got)
	}
	if text := got[0].Text; !strings.Contains(text, "2 objects are not what the manifest says") || !strings.HasSuffix(text, ", in good, key, length") {
		t.Errorf("text %q, want the files", text)
	}
}

// create writes a manifest with routes, and opens it.
func create(t *testing.T, routes []manifest.Route, entries ...manifest.Entry) *manifest.Manifest {
	t.Helper()
	name := filepath.Join(t.TempDir(), "m.fl")
	w, err := manifest.Create(t.Context(), name, block.Zstd, nil, routes)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, e := range append([]manifest.Entry{{Path: ".", Attr: manifest.Attr{Mode: unix.S_IFDIR | 0o755}}}, entries...) {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestStoreThatIsDown(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(200)...)
	synctest.Test(t, func(t *testing.T) {
		down := storetest.NewFaulty(mem)
		down.Always(storetest.Hang())
		up := storetest.NewFaulty(mem)
		got := objects(t, m, &ObjectsOptions{Parallel: 8}, at("down", down), at("up", up))
		if len(got) != 2 || got[0].Severity != Error || len(got[0].Names) != 200 || got[1].Severity != Info {
			t.Fatalf("findings %v, want one error about all 200, and one information", got)
		}
		want := "it does not answer, so that 200 of 200 objects were not checked there: gave up at try 1"
		if !strings.HasPrefix(got[0].Text, want) || strings.Contains(got[0].Text, "f000") {
			t.Errorf("text %q, want it to begin with %q, and to name no files", got[0].Text, want)
		}
		if down.Total() > 8+2 {
			t.Errorf("the store that is down was asked %d times, want a few", down.Total())
		}
		if up.Total() != 200 {
			t.Errorf("the store that is up was asked %d times, want 200", up.Total())
		}
	})
}

// A store that fails now and then is asked again, and nothing is found.
func TestStoreThatFlaps(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(40)...)
	synctest.Test(t, func(t *testing.T) {
		flaps := storetest.NewFaulty(mem)
		for range 20 {
			flaps.Next(storetest.Fail(errors.New("reset")), nil)
		}
		got := objects(t, m, nil, at("a", flaps))
		if len(got) != 1 || got[0].Text != "40 of 40 objects that were asked for are right" {
			t.Errorf("findings %v, want none but the count", got)
		}
	})
}

// One object that is never answered is an error, and does not stop the rest.
func TestObjectWithoutAnswer(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(40)...)
	bad := idOf(t, m, "f007")
	synctest.Test(t, func(t *testing.T) {
		src := storetest.NewFaulty(mem)
		src.Always(func(_ context.Context, id block.ID, next func() ([]byte, error)) ([]byte, error) {
			if id == bad {
				return nil, errors.New("status 500")
			}
			return next()
		})
		got := lines(t, m, objects(t, m, nil, at("a", src)))
		if len(got) != 2 || !strings.HasPrefix(got[0], "error: objects: a: it gave no answer for 1 of 40 objects, the first time: gave up at try ") ||
			!strings.HasSuffix(got[0], ": status 500; object <f007>, in f007") {
			t.Errorf("findings %q, want the one without an answer", got)
		}
	})
}

// A store that answers now and then is not left alone: every object is asked for.
func TestStoreThatAnswersSometimes(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(12)...)
	for name, answer := range map[string]storetest.Fault{"right": nil, "missing": storetest.NotFound(), "wrong": storetest.WrongBytes()} {
		synctest.Test(t, func(t *testing.T) {
			asked := map[block.ID]int{} // the number of each object, by the order of asking
			src := storetest.NewFaulty(mem)
			src.Always(func(ctx context.Context, id block.ID, next func() ([]byte, error)) ([]byte, error) {
				if asked[id] == 0 {
					asked[id] = len(asked) + 1
				}
				switch {
				case asked[id]%2 == 0:
					return nil, errors.New("status 500")
				case answer != nil:
					return answer(ctx, id, next)
				}
				return next()
			})
			got := objects(t, m, &ObjectsOptions{Parallel: 1}, at("a", src))
			if len(asked) != 12 {
				t.Errorf("%s: %d of 12 objects were asked for", name, len(asked))
			}
			if line := fmt.Sprint(got); !strings.Contains(line, "it gave no answer for 6 of 12 objects") {
				t.Errorf("%s: findings %s, want 6 without an answer", name, line)
			}
		})
	}
}

func TestStoreThatRefuses(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(5)...)
	src := storetest.NewFaulty(mem)
	src.Always(storetest.Fail(fmt.Errorf("%w: status 403", store.ErrForbidden)))
	got := lines(t, m, objects(t, m, nil, at("a", src), at("b", mem)))
	if len(got) != 2 || !strings.HasPrefix(got[0], "error: objects: a: it refuses 5 of 5 objects, the first: store refuses access: status 403; object ") {
		t.Errorf("findings %q, want that it refuses", got)
	}
}

// A probed store counts how it is asked.
type probed struct {
	*store.Mem
	gets, asks atomic.Int64
	yes        bool // to everything
}

func (p *probed) Get(ctx context.Context, id block.ID) ([]byte, error) {
	p.gets.Add(1)
	object, err := p.Mem.Get(ctx, id)
	if err != nil && p.yes {
		return []byte("<html>"), nil
	}
	return object, err
}

func (p *probed) Has(ctx context.Context, id block.ID) (bool, error) {
	p.asks.Add(1)
	_, err := p.Mem.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return p.yes, nil
	}
	return err == nil, err
}

func TestExistence(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(30)...)
	lacking := &probed{Mem: without(t, m, mem, idOf(t, m, "f003"), idOf(t, m, "f004"))}
	catchAll := &probed{Mem: &store.Mem{}, yes: true}
	mute := storetest.NewFaulty(mem)
	stores := []Store{at("lacking", lacking), at("catch-all", catchAll), at("mute", mute)}
	stores[0].Prober, stores[1].Prober = lacking, catchAll
	got := lines(t, m, objects(t, m, &ObjectsOptions{ExistenceOnly: true}, stores...))
	want := []string{
		"error: objects: catch-all: it has wrong bytes for 1 of 30 objects, the first: object is corrupt: the 6 bytes received do not have its ID",
		"warning: objects: lacking: it lacks 2 of 30 objects, which another store has: ",
		"info: objects: lacking: 28 of 30 objects that were asked for are there",
		"info: objects: catch-all: 29 of 30 objects that were asked for are there",
		"info: objects: mute: 30 of 30 objects that were asked for are right",
	}
	for i, line := range got {
		if i >= len(want) || !strings.HasPrefix(line, want[i]) {
			t.Errorf("finding %d: %s", i, line)
		}
	}
	if lacking.gets.Load() != 1 || lacking.asks.Load() != 29 || mute.Total() != 30 {
		t.Errorf("%d and %d objects were fetched and %d asked for, want 1 and 30 and 29", lacking.gets.Load(), mute.Total(), lacking.asks.Load())
	}
}

func TestSample(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(400)...)
	half := func(src store.Reader, first, last byte) Store {
		s := at(fmt.Sprintf("%02x", first), src)
		s.First, s.Last = first, last
		return s
	}
	asked := func(amount Amount) (ids []string, narrow, wide int) {
		n, w := storetest.NewFaulty(mem), storetest.NewFaulty(mem)
		objects(t, m, &ObjectsOptions{Amount: amount}, half(n, 0x10, 0x17), half(w, 0x00, 0xff))
		for _, ref := range m.AllBlocks() {
			if w.Requests(ref.ID) > 0 {
				ids = append(ids, ref.ID.String())
			}
		}
		slices.Sort(ids)
		return ids, n.Total(), w.Total()
	}
	// A range that has enough of the sample gets no more.
	src := storetest.NewFaulty(mem)
	if objects(t, m, &ObjectsOptions{Amount: Sample(20)}, at("all", src)); src.Total() != 20 {
		t.Errorf("Sample(20) asks the only store for %d objects", src.Total())
	}
	ids, narrow, wide := asked(Sample(20))
	again, _, _ := asked(Sample(20))
	if !slices.Equal(ids, again) {
		t.Error("two samples of one manifest differ")
	}
	if wide < 20 || wide > 24 || narrow < 4 || narrow > 6 {
		t.Errorf("Sample(20) asks for %d objects, and %d of the narrow range; want 20 and at least four of each range", wide, narrow)
	}
	if ids[0][0] != '0' || ids[len(ids)-1][0] != 'f' {
		t.Errorf("the sample reaches from %s to %s, want it over all IDs", ids[0], ids[len(ids)-1])
	}
	if _, _, wide := asked(Sample(1000)); wide != 400 {
		t.Errorf("Sample(1000) of 400 objects asks for %d", wide)
	}
	if _, _, wide := asked(None); wide != 0 {
		t.Errorf("None asks for %d objects", wide)
	}
}

func TestObjectsWithoutAStore(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(60)...)
	low := at("low", mem)
	low.Last = 0x7f
	want := 0
	for _, ref := range m.AllBlocks() {
		if ref.ID[0] > 0x7f {
			want++
		}
	}
	for _, amount := range []Amount{All, Sample(3), None} {
		got := objects(t, m, &ObjectsOptions{Amount: amount}, low)
		if got[0].Severity != Error || len(got[0].Names) != want || !strings.Contains(got[0].Text, "bytes for which there is no store") {
			t.Errorf("%v: first finding %v, want the %d objects without a store", amount, got[0], want)
		}
	}
}

// What a manifest carries is read from there, but not by rfs.
func TestObjectsThatTheManifestCarries(t *testing.T) {
	for codec, want := range map[block.Codec][]string{
		block.Zstd: {"info: objects: a: 3 of 3 objects that were asked for are right"},
		block.Snappy: {
			"warning: objects: a: it lacks 1 of 4 objects, which the manifest has itself, but rfs looks only here: object not found in memory; object <index>, in index",
			"info: objects: a: 3 of 4 objects that were asked for are right",
		},
	} {
		m, mem := treetest.Build(t, codec, append(filesOf(3), treetest.File{Path: "index", Data: []byte("text"), Inline: true})...)
		if diff := cmp.Diff(want, lines(t, m, objects(t, m, nil, at("a", mem)))); diff != "" {
			t.Errorf("%v: findings differ (-want +got):\n%s", codec, diff)
		}
	}
}

func TestLayoutsOfWebServers(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(10)...)
	for _, layout := range []store.Layout{store.Sharded, store.Flat} {
		server := storetest.NewHTTPServer(t, layout, mem, nil)
		u, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		web, err := httpstore.New(u, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer web.Close()
		s := Store{Name: "web", Last: 0xff, Reader: web, Prober: web, Layout: func() string {
			l, known := web.Layout()
			if !known {
				return ""
			}
			return l.String()
		}}
		for _, existence := range []bool{false, true} {
			want := "10 of 10 objects that were asked for are right; their layout is " + layout.String()
			if existence {
				want = strings.Replace(want, "right", "there", 1)
			}
			if got := objects(t, m, &ObjectsOptions{ExistenceOnly: existence}, s); len(got) != 1 || got[0].Text != want {
				t.Errorf("findings %v, want %q", got, want)
			}
		}
	}
	server := storetest.NewHTTPServer(t, store.Sharded, &store.Mem{}, &storetest.HTTPOptions{Missing: storetest.Status(http.StatusForbidden)})
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	web, err := httpstore.New(u, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	got := objects(t, m, nil, Store{Name: "web", Last: 0xff, Reader: web, Layout: func() string { return "" }})
	if len(got) != 1 || !strings.HasPrefix(got[0].Text, "it refuses 10 of 10 objects") {
		t.Errorf("findings of a private server %v, want that it refuses", got)
	}
}

func TestObjectsCancelled(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, filesOf(100)...)
	src := storetest.NewFaulty(mem)
	gate := storetest.NewGate()
	src.Always(storetest.Through(gate))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-gate.Arrived()
		cancel()
	}()
	if got, err := Objects(ctx, m, []Store{at("a", src)}, nil); !errors.Is(err, context.Canceled) || got != nil {
		t.Errorf("Objects = %v, %v, want context.Canceled", got, err)
	}
	full := errors.New("disk full")
	_, err := Objects(t.Context(), m, []Store{at("a", mem)}, &ObjectsOptions{Done: func(string, block.ID) error { return full }})
	if !errors.Is(err, full) {
		t.Errorf("Objects whose Done fails = %v, want its error", err)
	}
}

func TestParseAmount(t *testing.T) {
	for text, want := range map[string]Amount{"all": All, "none": None, "sample": DefaultSample, "sample=1": 1, "sample=4000": 4000} {
		got, err := ParseAmount(text)
		if got != want || err != nil {
			t.Errorf("ParseAmount(%q) = %v, %v, want %v", text, got, err, want)
		}
		if back, err := ParseAmount(got.String()); back != want || err != nil {
			t.Errorf("ParseAmount(%q) = %v, %v, want %v", got, back, err, want)
		}
	}
	for _, text := range []string{"", "All", "64", "sample=", "sample=0", "sample=-1", "sample=x", "sample=99999999999", "sample =1"} {
		if got, err := ParseAmount(text); err == nil {
			t.Errorf("ParseAmount(%q) = %v, want an error", text, got)
		}
	}
}
