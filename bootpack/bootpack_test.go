package bootpack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"overmount/block"
	"overmount/bootpack"
	"overmount/manifest"
	"overmount/tree"
	"overmount/tree/treetest"
)

// files are of more than one chunk together, and of all lengths that matter.
func files() []treetest.File {
	return []treetest.File{
		{Path: "a", Data: treetest.Random(1, 2*block.Size+7)}, {Path: "b", Data: []byte("b")}, {Path: "copy", Data: []byte("b")},
		{Path: "inline", Data: []byte("in the manifest"), Inline: true}, {Path: "other", Data: treetest.Random(2, 5000)},
	}
}

func build(tb testing.TB, files ...treetest.File) *tree.Tree {
	tb.Helper()
	m, mem := treetest.Build(tb, block.Zstd, files...)
	return tree.New(m, mem, nil)
}

var accesses = []bootpack.Access{
	{Path: "b"}, {Path: "a", Block: 2}, {Path: "inline"}, {Path: "a", Block: 0}, {Path: "copy"}, {Path: "nosuch"}, {Path: "a", Block: 3}, {Path: "b"}, {Path: "."},
}

func write(tb testing.TB, t *tree.Tree, accesses []bootpack.Access) ([]byte, bootpack.Summary) {
	tb.Helper()
	var b bytes.Buffer
	s, err := bootpack.Write(tb.Context(), &b, t.Manifest(), accesses, t.Prefetch)
	if err != nil {
		tb.Fatal(err)
	}
	return b.Bytes(), s
}

// readAll returns the blocks of a pack up to its end or an error.
func readAll(m *manifest.Manifest, r io.Reader) (blocks [][]byte, err error) {
	p, err := bootpack.NewReader(m, r)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	for {
		key, plain, err := p.Next()
		if err == io.EOF {
			return blocks, nil
		}
		if err != nil {
			return blocks, err
		}
		if key != block.KeyOf(plain) {
			return blocks, errors.New("Next returns a wrong key")
		}
		blocks = append(blocks, plain)
	}
}

func TestPackHasWhatWasRead(t *testing.T) {
	tr := build(t, files()...)
	pack, s := write(t, tr, accesses)
	if want := (bootpack.Summary{Members: 3, Plain: block.Size + 8, Size: int64(len(pack)), Unknown: 3}); s != want {
		t.Errorf("Write = %+v, want %+v", s, want)
	}
	a := files()[0].Data
	want := [][]byte{[]byte("b"), a[2*block.Size:], a[:block.Size]}
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(pack), "in bytes": iotest.OneByteReader(bytes.NewReader(pack)), "with the error": iotest.DataErrReader(bytes.NewReader(pack))} {
		got, err := readAll(tr.Manifest(), r)
		if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%s: the pack has %d blocks, %v, want 3 and no error", name, len(got), err)
		}
	}
	if again, _ := write(t, build(t, files()...), accesses); !bytes.Equal(again, pack) {
		t.Error("the same blocks give another pack")
	}
	if bytes.Contains(pack, a[:64]) {
		t.Error("the pack shows what is in it")
	}
}

// A pack of another tree does not open, and one of an older state gives what is
// left of it.
func TestPackBelongsToItsManifest(t *testing.T) {
	pack, _ := write(t, build(t, files()...), accesses)
	other := build(t, append(files(), treetest.File{Path: "x", Data: []byte("x")})...)
	if got, err := readAll(other.Manifest(), bytes.NewReader(pack)); !errors.Is(err, bootpack.ErrCorrupt) || len(got) != 0 {
		t.Errorf("a pack of another manifest gives %d blocks, %v, want none and ErrCorrupt", len(got), err)
	}
	if _, err := bootpack.Write(t.Context(), io.Discard, other.Manifest(), []bootpack.Access{{Path: "inline"}, {Path: "nosuch"}}, other.Prefetch); err == nil {
		t.Error("Write of nothing succeeds, want an error")
	}
	lost := errors.New("no such object")
	_, err := bootpack.Write(t.Context(), io.Discard, other.Manifest(), accesses, func(context.Context, manifest.Ino, int) ([]byte, error) { return nil, lost })
	if !errors.Is(err, lost) {
		t.Errorf("Write of what cannot be read = %v, want %v", err, lost)
	}
	_, err = bootpack.Write(t.Context(), io.Discard, other.Manifest(), accesses, func(context.Context, manifest.Ino, int) ([]byte, error) { return []byte("c"), nil })
	if !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("Write of wrong content = %v, want ErrCorrupt", err)
	}
}

// Wherever a pack is cut or changed, what it gives is right, and it does not look
// whole.
func TestBrokenPack(t *testing.T) {
	tr := build(t, files()...)
	pack, _ := write(t, tr, accesses)
	whole, err := readAll(tr.Manifest(), bytes.NewReader(pack))
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, broken []byte) {
		got, err := readAll(tr.Manifest(), bytes.NewReader(broken))
		if !errors.Is(err, bootpack.ErrCorrupt) {
			t.Errorf("%s: error %v, want ErrCorrupt", what, err)
		}
		if len(got) > len(whole) || !slices.EqualFunc(got, whole[:len(got)], bytes.Equal) {
			t.Errorf("%s: %d blocks that differ from the pack's", what, len(got))
		}
	}
	const chunk = 64<<10 + 16
	for _, n := range []int{0, 1, 8, 39, 40, 41, 40 + chunk - 1, 40 + chunk, 40 + chunk + 1, 40 + 3*chunk, len(pack) - 1} {
		check(fmt.Sprintf("cut to %d bytes", n), pack[:n])
	}
	for _, at := range []int{0, 8, 39, 40, 5000, 40 + chunk, len(pack) - 1} {
		changed := slices.Clone(pack)
		changed[at] ^= 1
		check(fmt.Sprintf("changed at %d", at), changed)
	}
	check("with more behind it", append(slices.Clone(pack), 0))
	swapped := slices.Concat(pack[:40], pack[40+chunk:40+2*chunk], pack[40:40+chunk], pack[40+2*chunk:])
	check("with two chunks exchanged", swapped)
	if _, err := readAll(tr.Manifest(), iotest.TimeoutReader(bytes.NewReader(pack))); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a pack whose reading fails: %v, want the failure", err)
	}
}

func TestRecord(t *testing.T) {
	want := []bootpack.Access{{Path: "kernel/a \"b\".ko", Block: 3, Bytes: 7, Waited: 1500 * time.Microsecond, Hit: true}, {Path: "b"}}
	var b bytes.Buffer
	if err := bootpack.WriteRecord(&b, "00000000000c1a55", want); err != nil {
		t.Fatal(err)
	}
	got, class, err := bootpack.ReadRecord(&b)
	if err != nil || class != "00000000000c1a55" || !slices.Equal(got, want) {
		t.Errorf("ReadRecord = %v, %q, %v, want what was written", got, class, err)
	}
	const head = `{"overmount":"record 1","class":"any"}` + "\n"
	for _, bad := range []string{"", "{}", "x\n", `{"overmount":"record 2"}`, head + "x", head + `{"path":"../x"}`, head + `{"path":"x","block":-1}`, head + `{"path":"` + strings.Repeat("x", 30_000) + `"}`,
		`{"overmount":"record 1","class":"../x"}`} {
		if _, _, err := bootpack.ReadRecord(strings.NewReader(bad)); err == nil {
			t.Errorf("ReadRecord(%.60q) succeeds, want an error", bad)
		}
	}
}

func TestClassAndName(t *testing.T) {
	a, b := "pci:v00008086d000010D3", "usb:v1D6Bp0002"
	class := bootpack.Class([]string{a, b})
	if again := bootpack.Class([]string{b, a, b}); len(class) != 16 || again != class {
		t.Errorf("Class = %q and %q in another order, want the same 16 digits", class, again)
	}
	if other := bootpack.Class([]string{a}); other == class {
		t.Error("Class of other hardware is the same")
	}
	if got := bootpack.Class(nil); got != "any" {
		t.Errorf("Class of nothing = %q, want any", got)
	}
	for text, want := range map[string]bool{
		class: true, "any": true, "": false, "a/b": false, "aany": false, strings.Repeat("a", 15): false, strings.Repeat("a", 17): false,
		strings.Repeat("A", 16): false, "../../../../a.ko": false,
	} {
		if got := bootpack.IsClass(text); got != want {
			t.Errorf("IsClass(%.20q) = %v, want %v", text, got, want)
		}
	}
	if got := bootpack.Name("modules.fl", "6.1.0", "any"); got != "modules.fl.6.1.0.any.pack" {
		t.Errorf("Name = %q", got)
	}
}

// Whatever comes, what a pack gives is of the manifest, and it ends.
func FuzzReader(f *testing.F) {
	tr := build(f, files()...)
	pack, _ := write(f, tr, accesses)
	small, _ := write(f, tr, []bootpack.Access{{Path: "b"}, {Path: "other"}})
	f.Add(small)
	f.Add(pack[:200])
	f.Add([]byte("OVMPACK1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		known := map[block.Key]bool{}
		for _, ref := range tr.Manifest().AllBlocks() {
			known[ref.Key] = true
		}
		got, err := readAll(tr.Manifest(), bytes.NewReader(data))
		for _, plain := range got {
			if !known[block.KeyOf(plain)] {
				t.Errorf("the pack gives %d bytes that the manifest does not have", len(plain))
			}
		}
		if err == nil && !bytes.Equal(data, small) {
			t.Errorf("%d bytes that nobody sealed are taken for a whole pack", len(data))
		}
	})
}

func FuzzReadRecord(f *testing.F) {
	f.Add([]byte(`{"overmount":"record 1","class":"any"}` + "\n" + `{"path":"kernel/a.ko","block":1,"bytes":5,"waited_us":7,"hit":true}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, class, err := bootpack.ReadRecord(bytes.NewReader(data))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := bootpack.WriteRecord(&b, class, got); err != nil {
			t.Fatal(err)
		}
		again, sameClass, err := bootpack.ReadRecord(&b)
		if err != nil || sameClass != class || !slices.Equal(again, got) {
			t.Errorf("written and read again, %q is %v, %q, %v; want %v, %q", data, again, sameClass, err, got, class)
		}
	})
}
