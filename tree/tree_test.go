package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/tree"
	"overmount/tree/treetest"
)

// big has two full blocks and a bit; its borders are where mistakes live.
var big = treetest.Random(1, 2*block.Size+1000)

func find(tb testing.TB, t *tree.Tree, name string) manifest.Ino {
	tb.Helper()
	ino, err := t.Manifest().Find(name)
	if err != nil {
		tb.Fatal(err)
	}
	return ino
}

// one returns a tree with big in kernel/big.ko, and the store below it.
func one(tb testing.TB, o *tree.Options) (*tree.Tree, manifest.Ino, *storetest.Faulty) {
	tb.Helper()
	m, mem := treetest.Build(tb, block.Zstd, treetest.File{Path: "kernel/big.ko", Mode: 0o644, Data: big})
	src := storetest.NewFaulty(mem)
	t := tree.New(m, src, o)
	return t, find(tb, t, "kernel/big.ko"), src
}

func TestReadAt(t *testing.T) {
	tr, ino, _ := one(t, nil)
	size := int64(len(big))
	for _, off := range []int64{0, 1, block.Size - 1, block.Size, block.Size + 1, 2*block.Size - 1, 2 * block.Size, size - 1, size, size + 1, 1 << 62} {
		for _, length := range []int64{0, 1, 2, block.Size - 1, block.Size, block.Size + 1, 2*block.Size + 2, size, size + 1} {
			p := make([]byte, length)
			n, err := tr.ReadAt(t.Context(), ino, p, off)
			want := big[min(off, size) : min(off, size)+min(length, size-min(off, size))]
			if !bytes.Equal(p[:n], want) {
				t.Errorf("ReadAt(%d bytes, %d) = %d bytes, want %d, or their content differs", length, off, n, len(want))
			}
			wantErr := error(nil)
			if int64(n) < length || off >= size {
				wantErr = io.EOF
			}
			if err != wantErr {
				t.Errorf("ReadAt(%d bytes, %d) error = %v, want %v", length, off, err, wantErr)
			}
		}
	}
}

func TestInlineNeedsNoStore(t *testing.T) {
	m, mem := treetest.Build(t, block.Zstd, treetest.File{Path: "in", Data: big, Inline: true}, treetest.File{Path: "out", Data: []byte("out")})
	if got := mem.Len(); got != 1 {
		t.Fatalf("the store holds %d objects, want that of out alone", got)
	}
	src := storetest.NewFaulty(mem)
	src.Always(storetest.NotFound())
	tr := tree.New(m, src, nil)
	got := make([]byte, len(big))
	if n, err := tr.ReadAt(t.Context(), find(t, tr, "in"), got, 0); err != nil || !bytes.Equal(got, big) {
		t.Errorf("ReadAt(in) = %d, %v, want %d bytes", n, err, len(big))
	}
	if got := src.Total(); got != 0 {
		t.Errorf("the store was asked %d times, want 0", got)
	}
	if _, err := tr.ReadAt(t.Context(), find(t, tr, "out"), got[:3], 0); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("ReadAt(out) = %v, want store.ErrNotFound", err)
	}
}

func TestReadAtRefuses(t *testing.T) {
	tr, ino, src := one(t, nil)
	for _, c := range []struct {
		ino manifest.Ino
		off int64
	}{{ino, -1}, {manifest.Root, 0}} {
		n, err := tr.ReadAt(t.Context(), c.ino, make([]byte, 1), c.off)
		if n != 0 || err == nil || err == io.EOF {
			t.Errorf("ReadAt(ino %d, offset %d) = %d, %v, want an error", c.ino, c.off, n, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tr.ReadAt(ctx, ino, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt under a context that has ended = %v, want context.Canceled", err)
	}
	if src.Total() != 0 {
		t.Errorf("refused reads made %d requests, want none", src.Total())
	}
}

func TestReadAtErrorsNameBlockAndPath(t *testing.T) {
	offline := errors.New("connection reset")
	for _, c := range []struct {
		fault storetest.Fault
		want  error
	}{
		{storetest.NotFound(), store.ErrNotFound},
		{storetest.WrongBytes(), block.ErrCorrupt},
		{storetest.Truncated(), block.ErrCorrupt},
		{storetest.Fail(offline), offline},
	} {
		tr, ino, src := one(t, nil)
		ref := tr.Manifest().Blocks(ino)[1]
		if _, err := tr.ReadAt(t.Context(), ino, make([]byte, block.Size), 0); err != nil {
			t.Fatal(err) // block 0 is at hand now
		}
		src.Always(c.fault)
		p := make([]byte, len(big))
		n, err := tr.ReadAt(t.Context(), ino, p[:2*block.Size], 0)
		if !errors.Is(err, c.want) {
			t.Errorf("ReadAt = %v, want %v", err, c.want)
		}
		var be *tree.BlockError
		if !errors.As(err, &be) || be.ID != ref.ID || be.Path != "kernel/big.ko" {
			t.Errorf("ReadAt = %#v, want a BlockError for %v of kernel/big.ko", err, ref.ID)
		}
		if want := fmt.Sprintf("read block %v of kernel/big.ko: ", ref.ID); !strings.HasPrefix(err.Error(), want) {
			t.Errorf("ReadAt error = %q, want it to begin with %q", err, want)
		}
		if n != block.Size || !bytes.Equal(p[:n], big[:n]) {
			t.Errorf("ReadAt = %d bytes, want the %d before the lost block", n, block.Size)
		}
		src.Always(nil)
		if n, err := tr.ReadAt(t.Context(), ino, p, 0); n != len(big) || err != nil || !bytes.Equal(p, big) {
			t.Errorf("ReadAt after the store was healed = %d, %v, want the file", n, err)
		}
	}
}

// plainly hides all but Get.
type plainly struct{ store.Reader }

func TestCorruptBlockIsForgottenAndAskedForOnce(t *testing.T) {
	tr, ino, src := one(t, nil)
	id := tr.Manifest().Blocks(ino)[0].ID
	src.Next(storetest.WrongBytes())
	if _, err := tr.ReadAt(t.Context(), ino, make([]byte, 10), 0); err != nil {
		t.Errorf("ReadAt with one bad copy = %v, want the next copy", err)
	}
	if src.Forgotten(id) != 1 || src.Requests(id) != 2 {
		t.Errorf("Forget was called %d times and Get %d times, want 1 and 2", src.Forgotten(id), src.Requests(id))
	}

	tr, ino, src = one(t, nil)
	src.Always(storetest.WrongBytes())
	if _, err := tr.ReadAt(t.Context(), ino, make([]byte, 10), 0); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("ReadAt with bad copies = %v, want block.ErrCorrupt", err)
	}
	if src.Requests(id) != 2 {
		t.Errorf("Get was called %d times, want 2", src.Requests(id))
	}

	tr = tree.New(tr.Manifest(), plainly{src}, nil)
	if _, err := tr.ReadAt(t.Context(), ino, make([]byte, 10), 0); !errors.Is(err, block.ErrCorrupt) || src.Requests(id) != 3 {
		t.Errorf("ReadAt from a store without memory = %v after %d requests, want block.ErrCorrupt after 1 more", err, src.Requests(id)-2)
	}
}

// A block that opens under its key but is shorter or longer than the manifest
// says: the manifest lies.
func TestBlockOfAnotherLength(t *testing.T) {
	for _, n := range []int{0, 999, 1001} {
		mem := &store.Mem{}
		ref := treetest.Put(t, mem, block.Zstd, treetest.Random(1, n))
		name := t.TempDir() + "/lie.fl"
		w, err := manifest.Create(t.Context(), name, block.Zstd, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		for _, e := range []manifest.Entry{
			{Path: ".", Attr: manifest.Attr{Mode: unix.S_IFDIR | 0o755}},
			{Path: "f", Attr: manifest.Attr{Mode: unix.S_IFREG | 0o644, Size: 1000}, Blocks: []block.Ref{ref}},
		} {
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
		tr := tree.New(m, mem, nil)
		for range 2 { // the second time it may be kept
			if got, err := tr.ReadAt(t.Context(), 2, make([]byte, 10), 0); got != 0 || !errors.Is(err, block.ErrCorrupt) {
				t.Errorf("ReadAt of a block of %d bytes for 1000 = %d, %v, want block.ErrCorrupt", n, got, err)
			}
		}
	}
}

func TestReadersShareOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, ino, src := one(t, nil)
		gate := storetest.NewGate()
		src.Always(storetest.Through(gate))
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				p := make([]byte, len(big)-i)
				if n, err := tr.ReadAt(t.Context(), ino, p, int64(i)); n != len(p) || err != nil || !bytes.Equal(p, big[i:]) {
					t.Errorf("ReadAt at %d = %d, %v, want the file from there on", i, n, err)
				}
			})
		}
		synctest.Wait()
		if src.MaxConcurrent() != 3 {
			t.Errorf("%d requests at the same time, want 3: one for each block", src.MaxConcurrent())
		}
		gate.Open()
		wg.Wait()
		for _, ref := range tr.Manifest().Blocks(ino) {
			if src.Requests(ref.ID) != 1 {
				t.Errorf("block %v was requested %d times, want 1", ref.ID, src.Requests(ref.ID))
			}
		}
		if s := tr.Stats(); s.BlocksOpened != 3 || s.BytesServed != int64(64*len(big)-63*64/2) {
			t.Errorf("Stats = %+v, want 3 blocks and all bytes", s)
		}
	})
}

func TestReaderLeavesOthersStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, ino, src := one(t, nil)
		gate := storetest.NewGate()
		src.Always(storetest.Through(gate))
		ctx, cancel := context.WithCancel(t.Context())
		left, stayed := make(chan error), make(chan error)
		read := func(ctx context.Context, to chan error) {
			_, err := tr.ReadAt(ctx, ino, make([]byte, 2*block.Size), 0)
			to <- err
		}
		go read(ctx, left)
		synctest.Wait()
		go read(t.Context(), stayed)
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("ReadAt of the reader who left = %v, want context.Canceled", err)
		}
		gate.Open()
		if err := <-stayed; err != nil {
			t.Errorf("ReadAt of the reader who stayed = %v", err)
		}
		if src.Total() != 2 {
			t.Errorf("%d requests, want 2", src.Total())
		}
	})
}

func TestAllReadersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, ino, src := one(t, nil)
		src.Always(storetest.Hang())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := tr.ReadAt(ctx, ino, make([]byte, 2*block.Size), 0)
			done <- err
		}()
		synctest.Wait()
		cancel()
		<-done
		synctest.Wait() // synctest fails the test if the requests hang on
	})
}

func TestKeepBlocks(t *testing.T) {
	tr, ino, src := one(t, &tree.Options{KeepBlocks: 2})
	p := make([]byte, 1)
	for _, i := range []int64{0, 1, 0, 2, 0, 1} { // 2 pushes 1 out, which was used before 0
		if _, err := tr.ReadAt(t.Context(), ino, p, i*block.Size); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []int{1, 2, 1} {
		if got := src.Requests(tr.Manifest().Blocks(ino)[i].ID); got != want {
			t.Errorf("block %d was requested %d times, want %d", i, got, want)
		}
	}
}

func TestReaderConforms(t *testing.T) {
	tr, ino, _ := one(t, nil)
	const from, n = block.Size - 2000, 5000 // over a border
	r := io.NewSectionReader(readerAt{t.Context(), tr, ino}, from, n)
	if err := iotest.TestReader(r, big[from:from+n]); err != nil {
		t.Error(err)
	}
}

type readerAt struct {
	ctx context.Context
	t   *tree.Tree
	ino manifest.Ino
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.t.ReadAt(r.ctx, r.ino, p, off) }

// BenchmarkReadAt reads 128 KiB at a time, which is what the kernel asks for.
// Cold opens each block anew; warm finds it kept.
func BenchmarkReadAt(b *testing.B) {
	const size = 32 << 20
	text := bytes.Repeat([]byte("symbol_name_0x0123456789abcdef\x00\x01\x02\x03"), size/34)
	m, mem := treetest.Build(b, block.Zstd, treetest.File{Path: "f", Mode: 0o644, Data: text})
	p := make([]byte, 128<<10)
	for name, span := range map[string]int64{"Cold": int64(len(text)) &^ (128<<10 - 1), "Warm": 2 << 20} {
		b.Run(name, func(b *testing.B) {
			t := tree.New(m, mem, nil)
			b.SetBytes(int64(len(p)))
			for off := int64(0); b.Loop(); off = (off + int64(len(p))) % span {
				if _, err := t.ReadAt(b.Context(), 2, p, off); err != nil && err != io.EOF {
					b.Fatal(err)
				}
			}
		})
	}
}
