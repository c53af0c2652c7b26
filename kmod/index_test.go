package kmod

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"overmount/internal/testenv"
)

var binaries = []string{"modules.dep.bin", "modules.alias.bin", "modules.symbols.bin", "modules.builtin.bin", "modules.builtin.alias.bin"}

func kernelFile(tb testing.TB, name string) []byte {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join(testenv.Kernel(tb), name))
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func mustOpen(tb testing.TB, data []byte) *Index {
	tb.Helper()
	x, err := OpenIndex(data)
	if err != nil {
		tb.Fatal(err)
	}
	return x
}

func mustInsert(tb testing.TB, b *IndexBuilder, key, value string, priority uint32) {
	tb.Helper()
	if _, err := b.Insert(key, value, priority); err != nil {
		tb.Fatal(err)
	}
}

func mustBytes(tb testing.TB, b *IndexBuilder, l Layout) []byte {
	tb.Helper()
	data, err := b.Bytes(l)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// A pair is a key with one of its values.
type pair struct {
	Key string
	Value
}

func collect(x *Index) []pair {
	var all []pair
	for k, v := range x.All() {
		all = append(all, pair{k, v})
	}
	return all
}

// rebuild inserts all backwards: among equals, what was inserted later comes
// first.
func rebuild(tb testing.TB, all []pair) *IndexBuilder {
	tb.Helper()
	var b IndexBuilder
	for _, p := range slices.Backward(all) {
		mustInsert(tb, &b, p.Key, p.Value.Value, p.Priority)
	}
	return &b
}

var layouts = []Layout{Kmod34, Kmod30}

func TestEmptyIndex(t *testing.T) {
	want := []byte{0xb0, 0x07, 0xf4, 0x57, 0, 2, 0, 1, 0, 0, 0, 12}
	for _, l := range layouts {
		data := mustBytes(t, new(IndexBuilder), l)
		if !bytes.Equal(data, want) {
			t.Errorf("Bytes(%v) of nothing = %x, want %x", l, data, want)
		}
		x := mustOpen(t, data)
		if err := x.Check(); err != nil {
			t.Error(err)
		}
		if v, ok := x.Lookup(""); ok || len(collect(x)) > 0 || len(x.Search("a")) > 0 {
			t.Errorf("the empty index has %q, %v or more", v, ok)
		}
	}
}

// The bytes of a small index, written by hand.
func TestIndexBytes(t *testing.T) {
	var b IndexBuilder
	mustInsert(t, &b, "abc", "one", 7)
	mustInsert(t, &b, "abe", "two", 0x01020304)
	mustInsert(t, &b, "ab", "early", 3)
	mustInsert(t, &b, "abc", "same", 7)
	head := "\xb0\x07\xf4\x57\x00\x02\x00\x01"
	root := "aa"                                            // children, at 'a'
	ab := "b\x00ce"                                         // prefix, children from c to e
	abValues := "\x00\x00\x00\x01\x00\x00\x00\x03early\x00" // behind the references
	c := "\x00\x00\x00\x02\x00\x00\x00\x07same\x00\x00\x00\x00\x07one\x00"
	e := "\x00\x00\x00\x01\x01\x02\x03\x04two\x00"
	for l, want := range map[Layout]string{
		Kmod34: head + "\x20\x00\x00\x0c" +
			root + "\xe0\x00\x00\x12" +
			ab + "\x40\x00\x00\x30" + "\x00\x00\x00\x00" + "\x40\x00\x00\x45" + abValues + c + e,
		Kmod30: head + "\x20\x00\x00\x4b" + c + e +
			ab + "\x40\x00\x00\x0c" + "\x00\x00\x00\x00" + "\x40\x00\x00\x21" + abValues +
			root + "\xe0\x00\x00\x2d",
	} {
		if got := mustBytes(t, &b, l); string(got) != want {
			t.Errorf("Bytes(%v) =\n%x, want\n%x", l, got, want)
		}
	}
}

func TestInsertSaysWhatExisted(t *testing.T) {
	var b IndexBuilder
	for _, c := range []struct {
		key, value string
		want       bool
	}{
		{"spi:at45", "mtd_dataflash", false},
		{"spi:at45", "mtd_dataflash", true},
		{"spi:at45", "other", false},
		{"spi:at4", "mtd_dataflash", false},
		{"spi:at45", "other", true},
	} {
		if got, err := b.Insert(c.key, c.value, 1); err != nil || got != c.want {
			t.Errorf("Insert(%q, %q) = %v, %v, want %v", c.key, c.value, got, err, c.want)
		}
	}
	if got := len(collect(mustOpen(t, mustBytes(t, &b, Kmod34)))); got != 5 {
		t.Errorf("index has %d values, want all 5", got)
	}
	for i := range 120 {
		value := fmt.Sprint(i % 60)
		if got, err := b.Insert("cpu:type:x86", value, uint32(i)); err != nil || got != (i >= 60) {
			t.Errorf("Insert of %q as value number %d = %v, %v, want %v", value, i, got, err, i >= 60)
		}
	}
}

func TestInsertRefuses(t *testing.T) {
	var b IndexBuilder
	mustInsert(t, &b, strings.Repeat("k", 4095), "kernel/\xc3\xa9.ko:", 0)
	before := mustBytes(t, &b, Kmod34)
	for _, c := range []struct{ key, value string }{
		{"caf\xc3\xa9", "a"}, {"\xff", "a"}, {"a\x00b", "a"}, {"a", "a\x00b"}, {strings.Repeat("k", 4096), "a"},
	} {
		if _, err := b.Insert(c.key, c.value, 0); err == nil {
			t.Errorf("Insert(%.20q, %q) succeeded", c.key, c.value)
		}
	}
	if !bytes.Equal(mustBytes(t, &b, Kmod34), before) {
		t.Error("a refused Insert changed the index")
	}
}

func TestIndexOver256MiB(t *testing.T) {
	var b IndexBuilder
	big := strings.Repeat("x", 1<<20)
	for i := range uint32(256) {
		mustInsert(t, &b, "key", big, i)
	}
	if data, err := b.Bytes(Kmod34); err == nil {
		t.Errorf("Bytes = %d bytes, want an error", len(data))
	}
}

func TestOpenIndexRefuses(t *testing.T) {
	good := string(mustBytes(t, new(IndexBuilder), Kmod34))
	for _, data := range []string{"", good[:11], "\x7fELF" + good[4:], good[:5] + "\x01" + good[6:], good[:5] + "\x03" + good[6:]} {
		if _, err := OpenIndex([]byte(data)); err == nil {
			t.Errorf("OpenIndex(%x) succeeded", data)
		}
	}
	if _, err := OpenIndex([]byte(good[:7] + "\x05" + good[8:])); err != nil {
		t.Errorf("OpenIndex of version 2.5 = %v, want none, as kmod", err)
	}
}

func TestOpenIndexCopies(t *testing.T) {
	data := mustBytes(t, rebuild(t, []pair{{"key", Value{"value", 1}}}), Kmod34)
	x := mustOpen(t, data)
	clear(data)
	if v, ok := x.Lookup("key"); v != "value" || !ok {
		t.Errorf("Lookup after data changed = %q, %v, want the value", v, ok)
	}
}

func TestLookup(t *testing.T) {
	var b IndexBuilder
	for i, key := range []string{"ext4", "ext2", "ex", "", "ext4"} {
		mustInsert(t, &b, key, fmt.Sprint(key, i), uint32(i))
	}
	for _, l := range layouts {
		x := mustOpen(t, mustBytes(t, &b, l))
		for key, want := range map[string]string{"ext4": "ext40", "ext2": "ext21", "ex": "ex2", "": "3"} {
			if got, ok := x.Lookup(key); got != want || !ok {
				t.Errorf("%v: Lookup(%q) = %q, %v, want %q", l, key, got, ok, want)
			}
		}
		for _, key := range []string{"e", "ext", "ext3", "ext44", "x", "\x00", "ext4\x00", "\xff", strings.Repeat("e", 5000)} {
			if got, ok := x.Lookup(key); got != "" || ok {
				t.Errorf("%v: Lookup(%.10q) = %q, %v, want none", l, key, got, ok)
			}
		}
	}
}

func TestAllStopsWhenTold(t *testing.T) {
	x := mustOpen(t, mustBytes(t, rebuild(t, []pair{{"a", Value{"1", 1}}, {"a", Value{"2", 2}}, {"b", Value{"3", 3}}}), Kmod34))
	for stop := 1; stop <= 3; stop++ {
		n := 0
		for range x.All() {
			if n++; n == stop {
				break
			}
		}
		if n != stop {
			t.Errorf("All went on to %d, want to stop at %d", n, stop)
		}
	}
}

// The indexes of a real kernel, by kmod 30.

func TestRebuildKernelIndexes(t *testing.T) {
	for _, name := range binaries {
		t.Run(name, func(t *testing.T) {
			data := kernelFile(t, name)
			x := mustOpen(t, data)
			if err := x.Check(); err != nil {
				t.Error(err)
			}
			all := collect(x)
			if !slices.IsSortedFunc(all, func(a, b pair) int { return cmp.Compare(a.Key, b.Key) }) {
				t.Error("All is not in order of the keys")
			}
			b := rebuild(t, all)
			if old := mustBytes(t, b, Kmod30); !bytes.Equal(old, data) {
				t.Errorf("Bytes(Kmod30) of its %d values = %d bytes, want the %d of kmod", len(all), len(old), len(data))
			}
			now := mustBytes(t, b, Kmod34)
			if len(now) != len(data) || bytes.Equal(now, data) {
				t.Errorf("Bytes(Kmod34) = %d bytes, want %d in another order", len(now), len(data))
			}
			y := mustOpen(t, now)
			if err := y.Check(); err != nil {
				t.Error(err)
			}
			if !slices.Equal(collect(y), all) {
				t.Error("All of the Kmod34 layout gives other values")
			}
		})
	}
}

func TestLookupKernel(t *testing.T) {
	for _, name := range binaries {
		x := mustOpen(t, kernelFile(t, name))
		before := ""
		for key, v := range x.All() {
			if got, ok := x.Lookup(key); key != before && (got != v.Value || !ok) {
				t.Errorf("%s: Lookup(%q) = %q, %v, want the first value %q", name, key, got, ok, v.Value)
			}
			before = key
		}
	}
}

// A modprobe runs kmod's modprobe over a directory of indexes.
type modprobe struct{ path, root, kver, conf string }

func newModprobe(tb testing.TB, kver string, files map[string][]byte) modprobe {
	tb.Helper()
	m := modprobe{path: testenv.Tool(tb, "modprobe"), root: tb.TempDir(), kver: kver, conf: tb.TempDir()}
	dir := filepath.Join(m.root, "lib/modules", kver)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		tb.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o666); err != nil {
			tb.Fatal(err)
		}
	}
	return m
}

// run returns the lines that modprobe prints. It fails with none if there is no
// module of that name.
func (m modprobe) run(tb testing.TB, args ...string) []string {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), m.path, append([]string{"-d", m.root, "-S", m.kver, "-C", m.conf}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && !strings.Contains(stderr.String(), "not found in directory") {
		tb.Fatalf("modprobe %q: %v: %s", args, err, &stderr)
	}
	return slices.Collect(strings.FieldsFuncSeq(string(out), func(r rune) bool { return r == '\n' }))
}

// kernelIndexes returns the binary indexes of the kernel, and the same in the
// other layout.
func kernelIndexes(tb testing.TB) (old, now map[string][]byte) {
	old, now = make(map[string][]byte), make(map[string][]byte)
	for _, name := range binaries {
		old[name] = kernelFile(tb, name)
		now[name] = mustBytes(tb, rebuild(tb, collect(mustOpen(tb, old[name]))), Kmod34)
	}
	return old, now
}

// modprobe -c prints all aliases and symbols that it reads in the indexes.
func TestModprobeReadsBothLayouts(t *testing.T) {
	old, now := kernelIndexes(t)
	var want []string
	for _, name := range []string{"modules.alias.bin", "modules.symbols.bin"} {
		for key, v := range mustOpen(t, old[name]).All() {
			want = append(want, "alias "+key+" "+v.Value)
		}
	}
	slices.Sort(want)
	dump := func(files map[string][]byte) (all, aliases []string) {
		all = newModprobe(t, "6.1.0", files).run(t, "-c")
		aliases = slices.DeleteFunc(slices.Clone(all), func(s string) bool { return !strings.HasPrefix(s, "alias ") })
		slices.Sort(aliases)
		return all, aliases
	}
	oldAll, oldAliases := dump(old)
	nowAll, _ := dump(now)
	if !slices.Equal(oldAliases, want) {
		t.Errorf("modprobe -c prints %d aliases, All has %d", len(oldAliases), len(want))
	}
	if !slices.Equal(oldAll, nowAll) {
		t.Errorf("modprobe -c prints %d lines of the Kmod34 layout, other than the %d of Kmod30", len(nowAll), len(oldAll))
	}
}

// concrete fills the wildcards of a pattern with what might stand there.
func concrete(r *rand.Rand, pattern string) string {
	var name strings.Builder
	for pattern != "" {
		switch pattern[0] {
		case '*':
			name.WriteString([]string{"", "", "00", "0000", "FF", "x,y/z", fmt.Sprintf("%08X", r.Uint32())}[r.IntN(7)])
		case '?':
			name.WriteByte("0123456789ABCDEF"[r.IntN(16)])
		case '[':
			end := strings.IndexByte(pattern, ']')
			name.WriteByte(pattern[1+r.IntN(end-1)])
			pattern = pattern[end:]
		default:
			name.WriteByte(pattern[0])
		}
		pattern = pattern[1:]
	}
	return name.String()
}

// A scanner finds patterns that match a name without the trie: it has them by
// what stands before the first wildcard, and tries each that can match.
type scanner map[string][]pair

func newScanner(all []pair) scanner {
	s := make(scanner)
	for _, p := range all {
		head := p.Key
		if i := strings.IndexAny(head, "*?["); i >= 0 {
			head = head[:i]
		}
		s[head] = append(s[head], p)
	}
	return s
}

func (s scanner) search(name string) []Value {
	var found []Value
	for i := range len(name) + 1 {
		for _, p := range s[name[:i]] {
			if Match(p.Key, name) {
				found = append(found, p.Value)
			}
		}
	}
	return found
}

func byPriorityAndName(a, b Value) int {
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Value, b.Value))
}

func TestSearchKernel(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, name := range []string{"modules.alias.bin", "modules.builtin.alias.bin"} {
		old := kernelFile(t, name)
		all := collect(mustOpen(t, old))
		scan := newScanner(all)
		for step, data := range map[int][]byte{1: old, 10: mustBytes(t, rebuild(t, all), Kmod34)} {
			x := mustOpen(t, data)
			found := 0
			for i := 0; i < len(all); i += step {
				p := all[i]
				name := concrete(r, p.Key)
				got, want := x.Search(name), scan.search(name)
				found += len(got)
				if !slices.IsSortedFunc(got, func(a, b Value) int { return cmp.Compare(a.Priority, b.Priority) }) {
					t.Errorf("Search(%q) is not in order of priority: %v", name, got)
				}
				slices.SortFunc(got, byPriorityAndName)
				slices.SortFunc(want, byPriorityAndName)
				if !slices.Equal(got, want) {
					t.Errorf("Search(%q) of %q = %v, want %v", name, p.Key, got, want)
				}
			}
			if found < len(all)/step*9/10 {
				t.Errorf("%s: only %d values found for %d keys", name, found, len(all)/step)
			}
		}
	}
}

// The scanner's shortcut misses nothing.
func TestScannerKernel(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	all := collect(mustOpen(t, kernelFile(t, "modules.alias.bin")))
	scan := newScanner(all)
	for range 100 {
		name := concrete(r, all[r.IntN(len(all))].Key)
		var want []Value
		for _, p := range all {
			if Match(p.Key, name) {
				want = append(want, p.Value)
			}
		}
		got := scan.search(name)
		slices.SortFunc(got, byPriorityAndName)
		slices.SortFunc(want, byPriorityAndName)
		if !slices.Equal(got, want) {
			t.Errorf("scan for %q = %v, want %v", name, got, want)
		}
	}
}

// modprobe -R prints the modules of an alias in the order in which it would try
// them.
func TestSearchAsModprobe(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	old, _ := kernelIndexes(t)
	m := newModprobe(t, "6.1.0", old)
	x := mustOpen(t, old["modules.alias.bin"])
	all := collect(x)
	builtin := collect(mustOpen(t, old["modules.builtin.alias.bin"]))
	several := 0
	for range 400 {
		name := concrete(r, all[r.IntN(len(all))].Key)
		testResolve(t, m, x, name)
		if len(x.Search(name)) > 1 {
			several++
		}
	}
	if several < 20 {
		t.Errorf("only %d names had several modules", several)
	}
	for _, p := range builtin[:20] {
		name := concrete(r, p.Key)
		if len(x.Search(name)) == 0 {
			testResolve(t, m, mustOpen(t, old["modules.builtin.alias.bin"]), name)
		}
	}
}

func testResolve(t *testing.T, m modprobe, x *Index, name string) {
	t.Helper()
	if !strings.Contains(name, ":") {
		return // it may be the name of a module
	}
	var got []string
	for _, v := range x.Search(name) {
		got = append(got, v.Value)
	}
	if want := m.run(t, "-R", "--", name); !slices.Equal(got, want) {
		t.Errorf("Search(%q) = %q, want modprobe's %q", name, got, want)
	}
}

// Equal priorities, patterns at every turn of the trie, names with wildcards:
// kmod says what comes of it.
func TestSearchOrderOfModprobe(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	text := func(pieces ...string) string {
		s := "t:"
		for range 1 + r.IntN(5) {
			s += pieces[r.IntN(len(pieces))]
		}
		return s
	}
	several := 0
	for i := range 10 {
		var b IndexBuilder
		for j := range 60 {
			mustInsert(t, &b, text("a", "b", "a", "b", "*", "?", "[ab]", "[!a]", `\a`, `\*`), fmt.Sprintf("m%d", j), r.Uint32N(3))
		}
		empty := mustBytes(t, new(IndexBuilder), Kmod30)
		data := mustBytes(t, &b, layouts[i%2])
		x := mustOpen(t, data)
		m := newModprobe(t, "6.1.0", map[string][]byte{
			"modules.alias.bin": data, "modules.dep.bin": empty, "modules.symbols.bin": empty, "modules.builtin.bin": empty, "modules.builtin.alias.bin": empty,
		})
		for range 30 {
			name := text("a", "b", "a", "b", "c", "*", "?", `\`)
			testResolve(t, m, x, name)
			if len(x.Search(name)) > 1 {
				several++
			}
		}
	}
	if several < 100 {
		t.Errorf("only %d of 300 names had several modules", several)
	}
}

// A name with stars leads below the same nodes several times.
func TestSearchStars(t *testing.T) {
	var b IndexBuilder
	for i := range 100 {
		mustInsert(t, &b, fmt.Sprintf("***%02d", i), fmt.Sprint(i), uint32(i))
	}
	mustInsert(t, &b, "*", "all", 100)
	// From the root, behind the first star, and at the second with the third.
	got := mustOpen(t, mustBytes(t, &b, Kmod34)).Search("***99")
	if want := []string{"99", "99", "99", "all"}; !slices.EqualFunc(got, want, func(v Value, s string) bool { return v.Value == s }) {
		t.Errorf("Search = %v, want %q", got, want)
	}
}

// Damaged and hostile files.

// smallIndex has every kind of node.
func smallIndex(tb testing.TB, l Layout) []byte {
	var b IndexBuilder
	for i, key := range []string{"", "a", "abc", "abcdef", "abcxyz", "pci:v*d[0-9]*", "pci:v*e", "pci:vw?", "z", "~"} {
		mustInsert(tb, &b, key, fmt.Sprint("module", i), uint32(i*300))
		if i%3 == 0 {
			mustInsert(tb, &b, key, "other", 70_000)
		}
	}
	return mustBytes(tb, &b, l)
}

// structure returns the offsets of all bytes that are neither part of a key, nor
// of a value with its number and end.
func structure(tb testing.TB, data []byte) (bones, prefixes map[int]bool) {
	tb.Helper()
	x := mustOpen(tb, data)
	bones, prefixes = make(map[int]bool), make(map[int]bool)
	for i := range data {
		bones[i] = true
	}
	var visit func(ref uint32)
	visit = func(ref uint32) {
		n, err := x.node(ref)
		if err != nil {
			tb.Fatal(err)
		}
		for i := range len(n.prefix) {
			delete(bones, n.start+i)
			prefixes[n.start+i] = true
		}
		at := n.values
		for range n.count {
			_, end, err := x.value(at)
			if err != nil {
				tb.Fatal(err)
			}
			for ; at < end; at++ {
				delete(bones, at)
			}
		}
		for i := 0; i < len(n.children); i += 4 {
			if ref := number(n.children[i:]); ref != 0 {
				visit(ref)
			}
		}
	}
	visit(x.root)
	return bones, prefixes
}

func checkBytes(data []byte) error {
	x, err := OpenIndex(data)
	if err != nil {
		return err
	}
	return x.Check()
}

func TestCheckNoticesEveryFlip(t *testing.T) {
	for _, l := range layouts {
		data := smallIndex(t, l)
		if err := checkBytes(data); err != nil {
			t.Fatal(err)
		}
		bones, prefixes := structure(t, data)
		if len(bones) < 100 || len(prefixes) < 10 || len(bones) > len(data)*9/10 {
			t.Errorf("of %d bytes %d are structure, %d of prefixes", len(data), len(bones), len(prefixes))
		}
		for at, was := range data {
			for v := range 256 {
				data[at] = byte(v)
				err := checkBytes(data)
				wrong := bones[at] || prefixes[at] && (v == 0 || v >= ascii)
				if wrong && byte(v) != was && err == nil {
					t.Errorf("%v: Check with byte %d changed from %#02x to %#02x = nil", l, at, was, v)
				}
				if prefixes[at] && v > 0 && v < ascii && err != nil {
					t.Errorf("%v: Check with byte %d of a key changed from %#02x to %#02x = %v", l, at, was, v, err)
				}
			}
			data[at] = was
		}
	}
}

func TestCheckNoticesFlipsKernel(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for name, tries := range map[string]int{"modules.builtin.alias.bin": 2000, "modules.builtin.bin": 2000, "modules.alias.bin": 60, "modules.dep.bin": 60} {
		old := kernelFile(t, name)
		for _, data := range [][]byte{old, mustBytes(t, rebuild(t, collect(mustOpen(t, old))), Kmod34)} {
			found, _ := structure(t, data)
			bones := slices.Sorted(maps.Keys(found))
			for range tries {
				at := bones[r.IntN(len(bones))]
				bit := byte(1 << r.IntN(8))
				data[at] ^= bit
				if err := checkBytes(data); err == nil {
					t.Errorf("%s: Check with byte %d ^ %#02x = nil", name, at, bit)
				}
				data[at] ^= bit
			}
		}
	}
}

func TestCheckNoticesCutAndGrown(t *testing.T) {
	for _, l := range layouts {
		data := smallIndex(t, l)
		for n := range data {
			if err := checkBytes(data[:n]); err == nil {
				t.Errorf("%v: Check of the first %d bytes = nil", l, n)
			}
		}
		if err := checkBytes(append(data, 0)); err == nil {
			t.Errorf("%v: Check of one byte more = nil", l)
		}
	}
}

func TestCheckNoticesDisorder(t *testing.T) {
	good := string(mustBytes(t, rebuild(t, []pair{{"k", Value{"one", 1}}, {"k", Value{"two", 2}}}), Kmod34))
	bad := strings.Replace(good, "\x00\x00\x00\x02two", "\x00\x00\x00\x00two", 1)
	if err := checkBytes([]byte(good)); err != nil {
		t.Error(err)
	}
	if err := checkBytes([]byte(bad)); err == nil {
		t.Error("Check of values out of order = nil")
	}
}

// hostile are indexes that lead in circles, or to the same nodes by many ways.
func hostile() map[string][]byte {
	head := func(root uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, indexMagic)
		b = binary.BigEndian.AppendUint32(b, indexVersion)
		return binary.BigEndian.AppendUint32(b, root)
	}
	ref := binary.BigEndian.AppendUint32
	files := map[string][]byte{
		"itself":       ref(append(head(hasChildren|12), "**"...), hasChildren|12),
		"none":         head(0),
		"no values":    binary.BigEndian.AppendUint32(head(hasValues|12), 0),
		"outside":      head(hasValues | 5000),
		"many values":  append(ref(head(hasValues|12), 1<<32-1), "\x00\x00\x00\x00a\x00"...),
		"long prefix":  append(head(hasPrefix|hasValues|12), bytes.Repeat([]byte("a"), 100_000)...),
		"backwards":    ref(append(head(hasChildren|12), "zq"...), hasChildren|12),
		"inside of it": append(ref(append(head(hasChildren|12), "aa"...), hasPrefix|hasValues|13), "a\x00\x00\x00\x00\x01\x00\x00\x00\x00v\x00"...),
	}
	// 2^40 ways lead to one value.
	lattice := head(hasChildren | 12)
	for i := range 40 {
		next := uint32(hasChildren | 12 + 10*(i+1))
		if i == 39 {
			next = hasValues | 12 + 400
		}
		lattice = ref(ref(append(lattice, "*+"...), next), next)
	}
	files["lattice"] = append(lattice, "\x00\x00\x00\x01\x00\x00\x00\x00v\x00"...)
	// A chain so long that recursion over all of it would not fit the stack.
	chain := head(hasChildren | 12)
	for i := range 1_000_000 {
		chain = ref(append(chain, "**"...), uint32(hasChildren|12+6*(i+1)))
	}
	files["chain"] = chain
	return files
}

func TestHostileIndexes(t *testing.T) {
	for name, data := range hostile() {
		x := mustOpen(t, data)
		if err := x.Check(); err == nil {
			t.Errorf("%s: Check = nil", name)
		}
		for range x.All() { // it ends
		}
		x.Search("abc")
		x.Search(strings.Repeat("*", 100))
		x.Lookup(strings.Repeat("*", 10_000))
		x.Lookup(strings.Repeat("*", 4000))
	}
}

func FuzzIndex(f *testing.F) {
	for _, l := range layouts {
		f.Add(smallIndex(f, l), "pci:v1d2")
	}
	for name, data := range hostile() {
		if name != "chain" {
			f.Add(data, "***")
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		x, err := OpenIndex(data)
		if err != nil {
			return
		}
		x.Lookup(name)
		sound := x.Check() == nil
		size := 0
		seen := make(map[string]bool)
		for key, v := range x.All() {
			if got, ok := x.Lookup(key); sound && !seen[key] && (got != v.Value || !ok) {
				t.Fatalf("Lookup(%q) = %q, %v, want %q", key, got, ok, v.Value)
			}
			seen[key] = true
			if size += 5 + len(v.Value); size > len(data) {
				t.Fatalf("All yields %d bytes of values, the file has %d", size, len(data))
			}
		}
		found := x.Search(name)
		if !sound || strings.ContainsAny(name, `*?[\`) {
			return
		}
		want := 0
		for key := range x.All() {
			if strings.Contains(key, `\`) {
				return
			}
			if Match(key, name) {
				want++
			}
		}
		if len(found) != want {
			t.Fatalf("Search(%q) = %v, want %d", name, found, want)
		}
	})
}

// What goes in comes out, in order, from both layouts.
func FuzzIndexBuilder(f *testing.F) {
	f.Add("abc 1 x\nabd 2 y\nabc 1 z\nab 0 x\n 7 root\nabc 1 x")
	f.Add("pci:v*d[0-9]* 300 m\npci:v*e 2 m\npci:vw? 70000 n")
	f.Fuzz(func(t *testing.T, script string) {
		var b IndexBuilder
		var want []pair
		for line := range strings.Lines(script) {
			words := append(strings.Split(strings.TrimSuffix(line, "\n"), " "), "", "")
			var priority uint32
			for _, c := range []byte(words[1]) {
				priority = priority<<4 + uint32(c&15)
			}
			p := pair{words[0], Value{words[2], priority}}
			had := slices.ContainsFunc(want, func(o pair) bool { return o.Key == p.Key && o.Value.Value == p.Value.Value })
			existed, err := b.Insert(p.Key, p.Value.Value, priority)
			if refused := !isASCII(p.Key) || strings.Contains(p.Key+p.Value.Value, "\x00") || len(p.Key) > maxKey; refused != (err != nil) {
				t.Fatalf("Insert(%q, %q) = %v", p.Key, p.Value.Value, err)
			}
			if existed != had {
				t.Fatalf("Insert(%q, %q) = %v, want %v", p.Key, p.Value.Value, existed, had)
			}
			if err == nil {
				want = append(want, p)
			}
		}
		slices.Reverse(want)
		slices.SortStableFunc(want, func(a, b pair) int {
			return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Priority, b.Priority))
		})
		sizes := make(map[int]bool)
		for _, l := range layouts {
			data := mustBytes(t, &b, l)
			sizes[len(data)] = true
			x := mustOpen(t, data)
			if err := x.Check(); err != nil {
				t.Fatalf("%v: %v", l, err)
			}
			if d := gocmp.Diff(want, collect(x)); d != "" {
				t.Fatalf("%v: All: -want +got\n%s", l, d)
			}
		}
		if len(sizes) != 1 {
			t.Fatalf("the layouts have sizes %v, want one", sizes)
		}
	})
}

func BenchmarkIndexBuild(b *testing.B) {
	all := collect(mustOpen(b, kernelFile(b, "modules.alias.bin")))
	b.ReportAllocs()
	for b.Loop() {
		mustBytes(b, rebuild(b, all), Kmod34)
	}
	b.ReportMetric(float64(len(all)), "values")
}

func BenchmarkSearch(b *testing.B) {
	x := mustOpen(b, kernelFile(b, "modules.alias.bin"))
	for what, name := range map[string]string{
		"pci":  "pci:v00008086d00002723sv00008086sd00000084bc02sc80i00",
		"usb":  "usb:v13FDp3940d0109dc00dsc00dp00ic08isc06ip50in00",
		"acpi": "acpi:PNP0C0A:PNP0C0B:",
		"none": "nonsense",
	} {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				x.Search(name)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	x := mustOpen(b, kernelFile(b, "modules.dep.bin"))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := x.Lookup("iwlwifi"); !ok {
			b.Fatal("there is no iwlwifi")
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	x := mustOpen(b, kernelFile(b, "modules.alias.bin"))
	for b.Loop() {
		if err := x.Check(); err != nil {
			b.Fatal(err)
		}
	}
}
