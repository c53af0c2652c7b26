package kmod_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/internal/testenv"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

var suffixes = []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"}

func read(data []byte) (*kmod.Module, error) {
	return kmod.ReadModule(bytes.NewReader(data), int64(len(data)))
}

func mustRead(tb testing.TB, data []byte) *kmod.Module {
	tb.Helper()
	m, err := read(data)
	if err != nil {
		tb.Fatalf("ReadModule(%d bytes) = %v", len(data), err)
	}
	return m
}

// symbol returns one with the CRC that kmodtest gives it.
func symbol(name string) kmod.Symbol { return kmodtest.Versions(name)[0] }

// all is a module with everything that is read.
var all = kmodtest.Module{
	Info:      []string{"alias=pci:v*", "alias=usb:v*", "license=GPL", "depends=", "flag"},
	Exports:   []string{"foo_open", "foo_close"},
	Needs:     []string{"printk", ".ppc_call"},
	WeakNeeds: []string{"maybe"},
	Versions:  kmodtest.Versions("module_layout", "printk", "only_in_versions"),
	Signer:    "A key of tests",
}

func wantAll(class int, order binary.ByteOrder, c kmod.Compression) *kmod.Module {
	return &kmod.Module{
		Compression: c,
		Class:       class,
		ByteOrder:   order,
		Info:        kmod.Info{{Key: "alias", Value: "pci:v*"}, {Key: "alias", Value: "usb:v*"}, {Key: "license", Value: "GPL"}, {Key: "depends"}, {Key: "flag"}},
		Exports:     []kmod.Symbol{symbol("foo_open"), symbol("foo_close")},
		Needs: []kmod.Symbol{
			symbol("printk"), {Name: "ppc_call"}, {Name: "maybe", Weak: true},
			symbol("module_layout"), symbol("only_in_versions"),
		},
		Signature: &kmod.Signature{
			IDType: "PKCS#7", Signer: "A key of tests", KeyID: []byte{1, 2, 3},
			HashAlgorithm: "sha256", Data: bytes.Repeat([]byte{0xab, 0xcd}, 16),
		},
	}
}

// Each module is compared only after all were read: nothing of it may lie in a
// buffer that the next one uses.
func TestReadModule(t *testing.T) {
	type result struct {
		name      string
		got, want *kmod.Module
	}
	var results []result
	for _, class := range []int{32, 64} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			for _, text := range []int{0, 300_000} { // read at once, and in parts
				for i, suffix := range suffixes {
					m := all
					m.Class, m.Order, m.Text = class, order, text
					got := mustRead(t, kmodtest.Compress(t, suffix, m.Bytes()))
					name := fmt.Sprintf("%d bits, %v, %d bytes of text, %s", class, order, text, suffix)
					results = append(results, result{name, got, wantAll(class, order, kmod.Compression(i))})
				}
			}
		}
	}
	for _, r := range results {
		if diff := cmp.Diff(r.want, r.got); diff != "" {
			t.Errorf("%s: ReadModule (-want +got):\n%s", r.name, diff)
		}
	}
}

func TestReadModuleConcurrently(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		class := []int{32, 64}[i%2]
		suffix := suffixes[i/2]
		m := all
		m.Class = class
		data := kmodtest.Compress(t, suffix, m.Bytes())
		want := wantAll(class, binary.LittleEndian, kmod.Compression(i/2))
		wg.Go(func() {
			for range 20 {
				got, err := read(data)
				if diff := cmp.Diff(want, got); err != nil || diff != "" {
					t.Errorf("ReadModule = %v, (-want +got):\n%s", err, diff)
				}
			}
		})
	}
	wg.Wait()
}

func TestExports(t *testing.T) {
	names := []string{"a", "b_longer"}
	with := []kmod.Symbol{symbol("a"), symbol("b_longer")}
	without := []kmod.Symbol{{Name: "a"}, {Name: "b_longer"}}
	for _, c := range []struct {
		name string
		m    kmodtest.Module
		want []kmod.Symbol
	}{
		{"none", kmodtest.Module{}, nil},
		{"CRCs in a section", kmodtest.Module{Exports: names}, with},
		{"CRCs absolute", kmodtest.Module{Exports: names, AbsoluteCRC: true}, with},
		{"no CRCs", kmodtest.Module{Exports: names, NoCRC: true}, without},
		// The compiler could not make a CRC: a need of that name, which is an
		// export, too, and then the only one, as with kmod.
		{"undefined CRC", kmodtest.Module{Exports: names, NoCRC: true, WeakNeeds: []string{"__crc_b_longer"}}, without[1:]},
	} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			c.m.Order = order
			if diff := cmp.Diff(c.want, mustRead(t, c.m.Bytes()).Exports); diff != "" {
				t.Errorf("%s, %v: Exports (-want +got):\n%s", c.name, order, diff)
			}
		}
	}
}

func TestNeeds(t *testing.T) {
	for _, c := range []struct {
		name string
		m    kmodtest.Module
		want []kmod.Symbol
	}{
		{"none", kmodtest.Module{}, nil},
		{"in the order of the symbol table, each once",
			kmodtest.Module{Needs: []string{"z", "a", "z", "m"}},
			[]kmod.Symbol{{Name: "z"}, {Name: "a"}, {Name: "m"}}},
		{"the dot of ppc64",
			kmodtest.Module{Needs: []string{".f", "f", "."}, Versions: kmodtest.Versions("f", ".g")},
			[]kmod.Symbol{symbol("f"), {Name: "g", CRC: uint64(kmodtest.CRC(".g")), HasCRC: true}}},
		{"only in __versions",
			kmodtest.Module{Versions: kmodtest.Versions("a", "b", "a")},
			[]kmod.Symbol{symbol("a"), symbol("b")}},
		{"the first version counts",
			kmodtest.Module{Needs: []string{"a"}, Versions: []kmod.Symbol{{Name: "a", CRC: 1}, {Name: "a", CRC: 2}}},
			[]kmod.Symbol{{Name: "a", CRC: 1, HasCRC: true}}},
	} {
		if diff := cmp.Diff(c.want, mustRead(t, c.m.Bytes()).Needs); diff != "" {
			t.Errorf("%s: Needs (-want +got):\n%s", c.name, diff)
		}
	}
}

// On SPARC an undefined symbol may be a register that a module claims.
func TestRegistersAreNoNeeds(t *testing.T) {
	const sparc, sparcv9, amd64, register = 2, 43, 62, 13
	for _, c := range []struct {
		machine uint16
		want    []kmod.Symbol
	}{
		{sparc, []kmod.Symbol{{Name: "a"}}},
		{sparcv9, []kmod.Symbol{{Name: "a"}}},
		{amd64, []kmod.Symbol{{Name: "g2"}, {Name: "a"}}},
	} {
		m := kmodtest.Module{Machine: c.machine, Order: binary.BigEndian, Needs: []string{"g2", "a"}}
		e := edit(t, m)
		e.file[e.section(".symtab").Offset+24+4] |= register
		if diff := cmp.Diff(c.want, mustRead(t, e.file).Needs); diff != "" {
			t.Errorf("machine %d: Needs (-want +got):\n%s", c.machine, diff)
		}
	}
}

func TestInfo(t *testing.T) {
	for _, c := range []struct {
		fields []string
		want   kmod.Info
	}{
		{nil, nil},
		{[]string{"", "", ""}, nil},
		{[]string{"", "a=1", "", "", "b=2=3", ""}, kmod.Info{{"a", "1"}, {"b", "2=3"}}},
		{[]string{"a", "b=", "=c"}, kmod.Info{{"a", ""}, {"b", ""}, {"", "c"}}},
	} {
		if diff := cmp.Diff(c.want, mustRead(t, kmodtest.Module{Info: c.fields}.Bytes()).Info); diff != "" {
			t.Errorf("Info of %q (-want +got):\n%s", c.fields, diff)
		}
	}
	e := edit(t, kmodtest.Module{Info: []string{"a=1", "b=2"}})
	e.put(e.header(".modinfo")+32, uint64(len("a=1\x00b=2"))) // no NUL at the end
	if diff := cmp.Diff(kmod.Info{{"a", "1"}, {"b", "2"}}, mustRead(t, e.file).Info); diff != "" {
		t.Errorf("Info without a last NUL (-want +got):\n%s", diff)
	}

	in := kmod.Info{{"a", "1"}, {"b", "2"}, {"a", "3"}}
	if got := in.Get("a"); got != "1" {
		t.Errorf("Get(a) = %q, want 1", got)
	}
	if got := in.Get("c"); got != "" {
		t.Errorf("Get(c) = %q, want nothing", got)
	}
	if got := in.All("a"); !slices.Equal(got, []string{"1", "3"}) {
		t.Errorf("All(a) = %q, want 1 and 3", got)
	}
}

// counting counts what is read.
type counting struct {
	io.ReaderAt
	calls, bytes int
}

func (c *counting) ReadAt(b []byte, off int64) (int, error) {
	c.calls++
	c.bytes += len(b)
	return c.ReaderAt.ReadAt(b, off)
}

func TestReadsFewPieces(t *testing.T) {
	for _, c := range []struct {
		text, calls, bytes int
	}{
		{1000, 1, 5000},       // the whole
		{10_000_000, 2, 5000}, // the header, and all behind the text
	} {
		m := all
		m.Text = c.text
		file := m.Bytes()
		r := &counting{ReaderAt: bytes.NewReader(file)}
		if _, err := kmod.ReadModule(r, int64(len(file))); err != nil {
			t.Fatal(err)
		}
		if r.calls > c.calls || r.bytes > c.bytes {
			t.Errorf("a module with %d bytes of text: %d bytes in %d reads, want at most %d in %d", c.text, r.bytes, r.calls, c.bytes, c.calls)
		}
	}
}

// failing fails at one offset.
type failing struct {
	io.ReaderAt
	err error
}

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestReadErrors(t *testing.T) {
	want := errors.New("the disk is gone")
	if _, err := kmod.ReadModule(failing{err: want}, 1000); !errors.Is(err, want) {
		t.Errorf("ReadModule from a failing reader = %v, want its error", err)
	}
	for _, suffix := range suffixes {
		data := kmodtest.Compress(t, suffix, all.Bytes())
		_, err := kmod.ReadModule(bytes.NewReader(data), int64(len(data))+1000)
		if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.HasPrefix(err.Error(), "truncated") {
			t.Errorf("%s: ReadModule of a file that is shorter than said = %v, want truncated", suffix, err)
		}
	}
	if _, err := kmod.ReadModule(bytes.NewReader(nil), -1); err == nil {
		t.Error("ReadModule of a file of -1 bytes succeeded")
	}
}

// modules returns the paths of all module files in a directory.
func modules(tb testing.TB, dir string) []string {
	tb.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && kmod.Suffix(path) != "" {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return paths
}

func readFile(path string) (*kmod.Module, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return kmod.ReadModule(f, st.Size())
}

// BenchmarkReadModule reads all modules of a real kernel, and keeps them, as
// depmod does.
func BenchmarkReadModule(b *testing.B) {
	paths := modules(b, testenv.Kernel(b))
	b.ReportAllocs()
	for b.Loop() {
		all := make([]*kmod.Module, 0, len(paths))
		for _, path := range paths {
			m, err := readFile(path)
			if err != nil {
				b.Fatal(path, err)
			}
			all = append(all, m)
		}
		runtime.KeepAlive(all)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(len(paths)), "µs/module")
}

// FuzzReadModule reads modules of all kinds with changes: each is a place of two
// bytes and a value, and two bytes at the end cut the file. Behind the modules
// comes a base without bytes, to which the changes are the file.
func FuzzReadModule(f *testing.F) {
	bases := [][]byte{
		kmodtest.Module{Exports: []string{"a"}, NoCRC: true}.Bytes(),
		kmodtest.Module{Exports: []string{"a"}, AbsoluteCRC: true, Machine: 43}.Bytes(),
	}
	for _, class := range []int{32, 64} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			for _, suffix := range suffixes {
				m := all
				m.Class, m.Order = class, order
				bases = append(bases, kmodtest.Compress(f, suffix, m.Bytes()))
			}
		}
	}
	for i, base := range bases {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{0, 4, 3, 0, 60, 0, 0, 63, 0xff})
		f.Add(uint8(i), []byte{1, 0})
		f.Add(uint8(len(bases)), base)
	}
	f.Fuzz(func(t *testing.T, base uint8, changes []byte) {
		data := changes
		if i := int(base) % (len(bases) + 1); i < len(bases) {
			data = slices.Clone(bases[i])
			for ; len(changes) >= 3; changes = changes[3:] {
				at := int(binary.BigEndian.Uint16(changes))
				data[at%len(data)] = changes[2]
			}
			if len(changes) == 2 {
				data = data[:int(binary.BigEndian.Uint16(changes))%len(data)]
			}
		}
		readHostile(t, data)
	})
}

// readHostile reads what may be anything, and checks what must hold always.
func readHostile(t *testing.T, data []byte) {
	t.Helper()
	m, err := read(data)
	if (m == nil) == (err == nil) {
		t.Fatalf("ReadModule = %v, %v, want one of them", m, err)
	}
	if err != nil {
		return
	}
	again, err := read(data)
	if diff := cmp.Diff(m, again); err != nil || diff != "" {
		t.Fatalf("the second ReadModule = %v, (-first +second):\n%s", err, diff)
	}
	seen := make(map[string]bool)
	for _, s := range m.Needs {
		if s.Name == "" || seen[s.Name] {
			t.Fatalf("need %q is empty or there twice", s.Name)
		}
		seen[s.Name] = true
	}
}
