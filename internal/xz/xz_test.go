package xz_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	ulikunitz "github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"overmount/internal/testenv"
	"overmount/internal/xz"
)

// noise returns bytes that cannot be compressed.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// program returns bytes that look somewhat like a program: words with few bits,
// runs, noise, and repetitions from near and far.
func program(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 0, n+4096)
	for len(b) < n {
		switch r.IntN(6) {
		case 0:
			b = append(b, bytes.Repeat([]byte{byte(r.IntN(4))}, r.IntN(600))...)
		case 1:
			for range r.IntN(40) {
				b = append(b, byte(r.UintN(256)))
			}
		case 2, 3:
			for range r.IntN(200) {
				b = binary.LittleEndian.AppendUint32(b, r.Uint32()&0xf00f)
			}
		default:
			for range r.IntN(20) {
				if len(b) > 0 {
					from := r.IntN(len(b))
					b = append(b, b[from:min(len(b), from+r.IntN(400))]...)
				}
			}
		}
	}
	return b[:n]
}

// tool returns what xz makes of data.
func tool(tb testing.TB, data []byte, args string) []byte {
	tb.Helper()
	cmd := exec.Command(testenv.Tool(tb, "xz"), append(strings.Fields(args), "-c")...)
	cmd.Stdin = bytes.NewReader(data)
	packed, err := cmd.Output()
	if err != nil {
		tb.Fatalf("xz %s: %v", args, err)
	}
	return packed
}

func stream(packed []byte, o *xz.Options) ([]byte, error) {
	return io.ReadAll(xz.NewReader(bytes.NewReader(packed), o))
}

// check reads a file in both ways, and compares.
func check(t *testing.T, name string, packed, want []byte) {
	t.Helper()
	if got, err := stream(packed, nil); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: as a stream %d bytes, %v, want %d; %s", name, len(got), err, len(want), differ(got, want))
	}
	const before = "before"
	got, _, err := xz.Append([]byte(before), packed, len(before)+len(want), nil)
	if err != nil || !bytes.Equal(got, slices.Concat([]byte(before), want)) {
		t.Errorf("%s: at once %d bytes, %v, want %d behind %q", name, len(got), err, len(want), before)
	}
}

func differ(a, b []byte) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("they differ at byte %d", i)
		}
	}
	return "they begin alike"
}

// TestTool reads what xz writes: all presets and properties, lengths around those of
// chunks, of the pieces of a Reader, and of dictionaries.
func TestTool(t *testing.T) {
	text := []byte(strings.Repeat("some text that can be compressed, and ", 3000))
	long := program(2<<20 + 1)
	for _, c := range []struct {
		args string
		data []byte
	}{
		{"-6", nil}, {"-6", []byte("x")}, {"-6", text}, {"-6", make([]byte, 3<<20)}, {"-6", noise(200_000)}, {"-6", noise(65_536)}, {"-0", noise(65_537)},
		{"-0", long}, {"-0 --check=none", long[:2<<20]}, {"-0", long[:2<<20-1]}, {"-1", long[:300_000]}, {"-2", long[:300_000]}, {"-3", long[:300_000]},
		{"-4", text}, {"-5", long[:100_000]}, {"-6", long[:700_000]}, {"-7", long[:100_000]}, {"-8", long[:100_000]}, {"-9e", long[:100_000]},
		{"--check=crc32", text}, {"--check=sha256", text},
		{"-0 -T2 --block-size=100000", long[:1<<20]}, {"--block-size=1", text[:30]}, {"-1 -T1 --block-size=70000", long[:300_000]},
		{"--lzma2=preset=0,dict=4KiB", long[:1<<20]}, {"--lzma2=preset=0,dict=300KiB", long}, {"--lzma2=preset=1,dict=256KiB", long[:1<<20]},
		// What is repeated lies 2 MiB apart, so that distances have all their bits.
		{"--lzma2=preset=0,dict=4MiB", slices.Concat(noise(2<<20), long[:1000], noise(2<<20), long[:1000])},
		{"--lzma2=preset=0,dict=2MiB", slices.Concat(noise(2<<20), noise(2<<20))},
	} {
		check(t, fmt.Sprintf("xz %s of %d bytes", c.args, len(c.data)), tool(t, c.data, c.args), c.data)
	}
	for lc := range 5 {
		for lp := range 5 - lc {
			args := fmt.Sprintf("--lzma2=preset=1,dict=64KiB,lc=%d,lp=%d,pb=%d", lc, lp, (lc+lp)%5)
			check(t, "xz "+args, tool(t, long[:100_000], args), long[:100_000])
		}
	}
	for _, size := range []int{4 << 10, 5000, 64 << 10, 256 << 10} {
		for off := -70; off <= 70; off += 35 {
			data := slices.Concat(long[:size+off], long[:size+off], long[:300])
			args := fmt.Sprintf("--lzma2=preset=1,dict=%d", size)
			check(t, fmt.Sprintf("xz %s of %d bytes", args, len(data)), tool(t, data, args), data)
		}
	}
}

// TestRead reads in small portions, from a reader that gives little.
func TestRead(t *testing.T) {
	want := program(200_000)
	packed := tool(t, want, "-1 --block-size=60000 -T1")
	for name, r := range map[string]io.Reader{
		"halves":    iotest.HalfReader(bytes.NewReader(packed)),
		"one byte":  iotest.OneByteReader(bytes.NewReader(packed)),
		"early EOF": iotest.DataErrReader(bytes.NewReader(packed)),
	} {
		if err := iotest.TestReader(xz.NewReader(r, nil), want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("the disk is broken")
	for n := 0; n < len(packed); n += 97 {
		r := io.MultiReader(bytes.NewReader(packed[:n]), iotest.ErrReader(broken))
		if got, err := io.ReadAll(xz.NewReader(r, nil)); err != broken || !bytes.HasPrefix(want, got) {
			t.Fatalf("broken behind %d bytes: read %d bytes, %v, want %v", n, len(got), err, broken)
		}
	}
}

func TestStreams(t *testing.T) {
	one, two, empty := tool(t, []byte("one"), "-6"), tool(t, []byte("two"), "-0 --check=crc32"), tool(t, nil, "-6")
	zeros := func(n int) []byte { return make([]byte, n) }
	for _, c := range []struct {
		name  string
		parts [][]byte
		want  string
		err   string
	}{
		{"two", [][]byte{one, two}, "onetwo", ""},
		{"padding between and behind", [][]byte{one, zeros(8), two, zeros(400)}, "onetwo", ""},
		{"empty ones", [][]byte{empty, empty, one, empty}, "one", ""},
		{"odd padding", [][]byte{one, zeros(3), two}, "one", "something that is no stream follows"},
		{"odd padding at the end", [][]byte{one, zeros(6)}, "one", io.ErrUnexpectedEOF.Error()},
		{"padding before", [][]byte{zeros(4), one}, "", "does not begin as xz does"},
		{"garbage", [][]byte{one, []byte("something else")}, "one", "something that is no stream follows"},
		{"nothing", nil, "", io.ErrUnexpectedEOF.Error()},
	} {
		got, err := stream(slices.Concat(c.parts...), nil)
		if string(got) != c.want || c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: read %q, %v, want %q, %q", c.name, got, err, c.want, c.err)
		}
	}
	_, info, err := xz.Append(nil, slices.Concat(one, two, tool(t, nil, "--check=sha256"), tool(t, nil, "--check=none"), one), 100, nil)
	want := xz.Info{Streams: 5, Checks: []xz.Check{xz.None, xz.CRC32, xz.CRC64, xz.SHA256}, Dict: 8 << 20}
	if diff := cmp.Diff(want, info); err != nil || diff != "" {
		t.Errorf("Append: %v, info (-want +got):\n%s", err, diff)
	}
}

// TestDamaged flips each bit of small files, and cuts them at each byte. There are
// bits that make no difference: how many of the high bits of a byte select the
// probabilities of the next, where these bits are always the same.
func TestDamaged(t *testing.T) {
	data := slices.Concat(program(400), noise(30))
	for _, args := range []string{"-6", "-0 --check=crc32 --block-size=150 -T2", "--check=sha256", "--check=crc32 --lzma2=preset=0,lc=0,lp=4"} {
		packed := tool(t, data, args)
		for i := range 8 * len(packed) {
			flipped := bytes.Clone(packed)
			flipped[i/8] ^= 1 << (i % 8)
			if got, err := stream(flipped, nil); err == nil && !bytes.Equal(got, data) {
				t.Fatalf("xz %s, bit %d of byte %d flipped: read %d wrong bytes, no error", args, i%8, i/8, len(got))
			}
			if got, _, err := xz.Append(nil, flipped, 1<<20, nil); err == nil && !bytes.Equal(got, data) {
				t.Fatalf("xz %s, bit %d of byte %d flipped: %d wrong bytes at once, no error", args, i%8, i/8, len(got))
			}
		}
		for n := range packed {
			if got, err := stream(packed[:n], nil); err != io.ErrUnexpectedEOF || !bytes.HasPrefix(data, got) {
				t.Fatalf("xz %s, cut behind byte %d: read %d bytes, %v, want %v", args, n, len(got), err, io.ErrUnexpectedEOF)
			}
			if _, _, err := xz.Append(nil, packed[:n], 1<<20, nil); err != io.ErrUnexpectedEOF {
				t.Fatalf("xz %s, cut behind byte %d: Append fails with %v, want %v", args, n, err, io.ErrUnexpectedEOF)
			}
		}
	}
}

// TestNoCheck flips bits where no checksum finds it: whatever comes out, it has an
// end.
func TestNoCheck(t *testing.T) {
	packed := tool(t, program(3000), "--check=none --lzma2=preset=0,dict=4KiB")
	for i := range 8 * len(packed) {
		flipped := bytes.Clone(packed)
		flipped[i/8] ^= 1 << (i % 8)
		if got, _ := stream(flipped, nil); len(got) > 4<<20 {
			t.Fatalf("bit %d of byte %d flipped: read %d bytes", i%8, i/8, len(got))
		}
	}
}

const head = "\xfd7zXZ\x00\x00\x00\xff\x12\xd9\x41" // no check

// blockOf returns a stream without its end: a header of a block, and chunks.
func blockOf(flags byte, rest string, chunks ...byte) []byte {
	h := append([]byte{0, flags}, rest...)
	for len(h)%4 != 0 {
		h = append(h, 0)
	}
	h[0] = byte(len(h) / 4)
	h = binary.LittleEndian.AppendUint32(h, crc32.ChecksumIEEE(h))
	return slices.Concat([]byte(head), h, chunks)
}

const small = "\x21\x01\x00" // LZMA2 with a dictionary of 4 KiB

// TestRefused reads what nobody writes.
func TestRefused(t *testing.T) {
	header := func(flags string) []byte {
		b := append([]byte(head[:6]), flags...)
		return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[6:]))
	}
	lzma := func(control byte) []byte { return []byte{control, 0, 0, 0, 5, 0x5d, 0, 0, 0, 0, 0, 0, 0} }
	for _, c := range []struct {
		name, want string
		file       []byte
	}{
		{"no magic", "does not begin as xz does", []byte("7zXZ")},
		{"another check", "checks of the type 2", header("\x00\x02")},
		{"reserved flags", "flags 0011", header("\x00\x11")},
		{"x86", "filter 0x4 (x86): only LZMA2 alone is supported", tool(t, []byte("x"), "--x86 --lzma2")},
		{"ARM64", "filter 0xa (ARM64)", blockOf(1, "\x0a\x00"+small)},
		{"delta", "filter 0x3 (delta)", tool(t, []byte("x"), "--delta --lzma2")},
		{"a filter of a vendor", "filter 0x1234:", blockOf(0, "\xb4\x24\x00")},
		{"reserved flags of a block", "flags 0x4", blockOf(4, small)},
		{"dictionary of unknown size", "a dictionary of unknown size 41", blockOf(0, "\x21\x01\x29")},
		{"properties too long", "header of a block is not in order", blockOf(0, "\x21\x02\x00\x00")},
		{"properties missing", "header of a block is not in order", blockOf(0, "\x21\x00")},
		{"padding of a header", "header of a block is not in order", blockOf(0, small+"\x01")},
		{"a size of 64 bits", "header of a block is not in order", blockOf(0x40, strings.Repeat("\xff", 9)+"\x01"+small)},
		{"a size with zeros", "header of a block is not in order", blockOf(0x40, "\x80\x00"+small)},
		{"longer than it says", "longer than its header states", blockOf(0x80, "\x01"+small, 1, 0, 1, 'a', 'b', 0)},
		{"shorter than it says", "not the length that its header states", blockOf(0x80, "\x03"+small, 1, 0, 1, 'a', 'b', 0)},
		{"packed longer", "longer than its header states", blockOf(0x40, "\x03"+small, 1, 0, 1, 'a', 'b', 0)},
		{"packed shorter", "not the length that its header states", blockOf(0x40, "\x09"+small, 1, 0, 1, 'a', 'b', 0)},
		{"padding of a block", "padding of a block is damaged", blockOf(0, small, 1, 0, 0, 'a', 0, 0, 1, 0)},
		{"no reset before what is stored", "a chunk is not in order", blockOf(0, small, 2, 0, 0, 'a')},
		{"unknown chunk", "a chunk is not in order", blockOf(0, small, 3, 0, 0, 'a')},
		{"no properties", "a chunk is not in order", blockOf(0, small, 1, 0, 0, 'a', 0xa0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0)},
		{"no state", "a chunk is not in order", blockOf(0, small, 1, 0, 0, 'a', 0x80, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0)},
		{"no dictionary", "a chunk is not in order", blockOf(0, small, lzma(0xc0)...)},
		{"too many properties", "damaged", blockOf(0, small, 0xe0, 0, 0, 0, 5, 225, 0, 0, 0, 0, 0, 0)},
		{"lc and lp", "lc 8 and lp 4", blockOf(0, small, 0xe0, 0, 0, 0, 5, 8+9*4, 0, 0, 0, 0, 0, 0)},
		{"range", "damaged", blockOf(0, small, 0xe0, 0, 0, 0, 5, 0x5d, 1, 0, 0, 0, 0, 0)},
		{"more range", "damaged", blockOf(0, small, 0xe0, 0, 0, 0, 5, 0x5d, 0, 0xff, 0xff, 0xff, 0xff, 0)},
		{"more input", "damaged", blockOf(0, small, 0xe0, 0, 0, 0, 6, 0x5d, 0, 0, 0, 0, 0, 0, 0)},
		{"claim", "claims 2097152 bytes of content, too many for 6", blockOf(0, small, 0xff, 0xff, 0xff, 0, 5, 0x5d, 0, 0, 0, 0, 0, 0)},
		{"index", "the index lists 1 blocks, and there are 0", []byte(head + "\x00\x01\x00\x00")},
		{"number in the index", "a number is none", []byte(head + "\x00\x80\x00\x00")},
		{"long number in the index", "a number is none", []byte(head + "\x00" + strings.Repeat("\xff", 12))},
		{"padding of the index", "padding of the index is damaged", []byte(head + "\x00\x00\x00\x01")},
		{"checksum of the index", "the index is damaged", []byte(head + "\x00\x00\x00\x00\x00\x00\x00\x00")},
	} {
		if got, err := stream(c.file, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: read %q, %v, want the error %q", c.name, got, err, c.want)
		}
	}
}

// TestMemory reads files that claim more than they have.
func TestMemory(t *testing.T) {
	packed := tool(t, program(1<<20), "-0 --lzma2=preset=0,dict=8MiB")
	for _, c := range []struct {
		name string
		file []byte
		most int
		want string
		took uint64
	}{
		{"a dictionary of 4 GiB", blockOf(0, "\x21\x01\x28"), math.MaxInt, "it needs a dictionary of 4294967295 bytes, over the limit of 67108864", 1 << 20},
		{"1.5 GiB", blockOf(0, "\x21\x01\x25"), math.MaxInt, "it needs a dictionary of 1610612736 bytes", 1 << 20},
		{"64 MiB and one byte", blockOf(0, "\x21\x01\x1c", 1, 0, 0, 'a'), math.MaxInt, io.ErrUnexpectedEOF.Error(), 1 << 20},
		{"content too long", packed, 1<<20 - 1, xz.ErrTooLong.Error(), 4 << 20},
	} {
		for how, read := range map[string]func() error{
			"as a stream": func() error { _, err := io.Copy(io.Discard, xz.NewReader(bytes.NewReader(c.file), nil)); return err },
			"at once":     func() error { _, _, err := xz.Append(nil, c.file, c.most, nil); return err },
		} {
			if how == "as a stream" && c.most < math.MaxInt {
				continue
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := read()
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, %s: %v, want the error %q", c.name, how, err, c.want)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > c.took {
				t.Errorf("%s, %s: it takes %d bytes of memory, want at most %d", c.name, how, took, c.took)
			}
		}
	}
	if _, err := stream(packed, &xz.Options{MaxDict: 8<<20 - 1}); err == nil {
		t.Error("a dictionary over MaxDict: no error")
	}
}

// TestAllocations holds that reading many small files at once does not take memory
// for each.
func TestAllocations(t *testing.T) {
	want := program(10_000)
	packed := tool(t, want, "--check=crc32")
	dst := make([]byte, 0, len(want))
	n := testing.AllocsPerRun(20, func() {
		if _, _, err := xz.Append(dst, packed, len(want), nil); err != nil {
			t.Fatal(err)
		}
	})
	if n > 20 {
		t.Errorf("Append takes memory %v times, want at most 20", n)
	}
}

func alone(packed []byte) ([]byte, error) {
	return io.ReadAll(xz.NewLZMAReader(bytes.NewReader(packed), nil))
}

// withLength writes a length into the header of a file of lzma.
func withLength(packed []byte, n int) []byte {
	b := bytes.Clone(packed)
	binary.LittleEndian.PutUint64(b[5:], uint64(n))
	return b
}

func TestLZMA(t *testing.T) {
	long := program(1<<20 + 1)
	for _, c := range []struct {
		args string
		data []byte
	}{{"-6", nil}, {"-6", []byte("x")}, {"-0", long[:1<<20]}, {"-9e", long[:100_000]}, {"-0", noise(400_000)}, {"-6", make([]byte, 1<<20)}, {"--lzma1=preset=0,dict=4KiB,lc=0,lp=2,pb=0", long[:300_000]}} {
		packed := tool(t, c.data, "--format=lzma "+c.args)
		for name, file := range map[string][]byte{"": packed, " with a length": withLength(packed, len(c.data))} {
			if got, err := alone(file); err != nil || !bytes.Equal(got, c.data) {
				t.Errorf("xz --format=lzma %s of %d bytes%s: %d bytes, %v; %s", c.args, len(c.data), name, len(got), err, differ(got, c.data))
			}
		}
		if got, err := io.ReadAll(xz.NewLZMAReader(iotest.HalfReader(bytes.NewReader(packed)), nil)); err != nil || !bytes.Equal(got, c.data) {
			t.Errorf("xz --format=lzma %s, read slowly: %d bytes, %v, want %d", c.args, len(got), err, len(c.data))
		}
		if got, err := alone(append(packed, "more"...)); err == nil {
			t.Errorf("xz --format=lzma %s and more: %d bytes, no error", c.args, len(got))
		}
	}
	// Without an end marker.
	var b bytes.Buffer
	w, err := lzma.WriterConfig{SizeInHeader: true, Size: int64(len(long))}.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(long)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := alone(b.Bytes()); err != nil || !bytes.Equal(got, long) {
		t.Errorf("without a marker: %d bytes, %v, want %d", len(got), err, len(long))
	}
	for _, wrong := range []int{-1, 1, 1000} {
		if got, err := alone(withLength(b.Bytes(), len(long)+wrong)); err == nil {
			t.Errorf("a length that is wrong by %d: %d bytes, no error", wrong, len(got))
		}
	}
	if got, err := alone(append(b.Bytes(), 0)); err == nil {
		t.Errorf("without a marker, and more: %d bytes, no error", len(got))
	}
}

func TestLZMADamaged(t *testing.T) {
	data := program(1000)
	packed := tool(t, data, "--format=lzma --lzma1=preset=0,dict=64KiB")
	for n := range packed {
		for name, file := range map[string][]byte{"": packed, " with a length": withLength(packed, len(data))} {
			if n < 13 && name != "" {
				continue
			}
			got, err := alone(file[:n])
			whole := name != "" && err == nil && bytes.Equal(got, data) // only the marker is missing
			if !whole && err != io.ErrUnexpectedEOF && !bytes.HasPrefix(data, got) || err == nil && !whole {
				t.Fatalf("cut behind byte %d%s: %d bytes, %v, want %v", n, name, len(got), err, io.ErrUnexpectedEOF)
			}
		}
	}
	for i := 8 * 13; i < 8*len(packed); i++ {
		flipped := bytes.Clone(packed)
		flipped[i/8] ^= 1 << (i % 8)
		if got, err := alone(flipped); err == nil && bytes.Equal(got, data) || len(got) > 8<<20 {
			t.Fatalf("bit %d of byte %d flipped: %d bytes, %v", i%8, i/8, len(got), err)
		}
	}
	for want, header := range map[string]string{
		"dictionary of 1610612736 bytes": "\x5d\x00\x00\x00\x60",
		"lc 8 and lp 0":                  "\x08\x00\x00\x01\x00",
		"damaged":                        "\xe1\x00\x00\x01\x00",
	} {
		if _, err := alone(append([]byte(header), noise(100)...)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the header %x: %v, want an error with %q", header, err, want)
		}
	}
}

// FuzzReader holds that what is accepted is what another decoder makes of it.
func FuzzReader(f *testing.F) {
	for _, args := range []string{"-6", "--check=none --block-size=10 -T1", "--check=sha256"} {
		f.Add(tool(f, []byte("some content, some more content"), args))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o := &xz.Options{MaxDict: 1 << 20}
		got, err := io.ReadAll(io.LimitReader(xz.NewReader(bytes.NewReader(data), o), 8<<20))
		whole, _, err2 := xz.Append(nil, data, 8<<20, o)
		if (err == nil) != (err2 == nil) && len(got) < 8<<20 || err == nil && len(got) < 8<<20 && !bytes.Equal(got, whole) {
			t.Fatalf("as a stream %d bytes, %v; at once %d, %v", len(got), err, len(whole), err2)
		}
		if err != nil || len(got) == 8<<20 {
			return
		}
		r, err := ulikunitz.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if want, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes; another decoder has %d, %v", len(got), len(want), err)
		}
	})
}

// FuzzLZMA2 decodes chunks that no checksum covers, as far as two decoders go.
func FuzzLZMA2(f *testing.F) {
	packed := tool(f, program(2000), "--check=none --lzma2=preset=0,dict=4KiB")
	f.Add(packed[len(head)+12:])
	f.Add([]byte{1, 0, 1, 'a', 'b', 2, 0, 0, 'c', 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		const most = 4 << 20
		got, _ := io.ReadAll(io.LimitReader(xz.NewReader(bytes.NewReader(blockOf(0, small, data...)), nil), most))
		r, err := lzma.Reader2Config{DictCap: lzma.MinDictCap}.NewReader2(bytes.NewReader(data))
		if err != nil {
			return
		}
		want, err := io.ReadAll(io.LimitReader(r, most))
		n := min(len(got), len(want))
		if !bytes.Equal(got[:n], want[:n]) || err == nil && len(got) < len(want) {
			t.Fatalf("%d bytes; another decoder has %d, %v; %s", len(got), len(want), err, differ(got, want))
		}
	})
}

// FuzzLZMA is the same for files of lzma.
func FuzzLZMA(f *testing.F) {
	f.Add(tool(f, program(2000), "--format=lzma --lzma1=preset=0,dict=4KiB"))
	f.Fuzz(func(t *testing.T, data []byte) {
		const most, dict = 4 << 20, 1 << 16
		got, _ := io.ReadAll(io.LimitReader(xz.NewLZMAReader(bytes.NewReader(data), &xz.Options{MaxDict: dict}), most))
		if len(data) < 13 || binary.LittleEndian.Uint32(data[1:]) > dict {
			return
		}
		r, err := lzma.NewReader(bytes.NewReader(data))
		if err != nil {
			return
		}
		want, _ := io.ReadAll(io.LimitReader(r, most))
		if n := min(len(got), len(want)); !bytes.Equal(got[:n], want[:n]) {
			t.Fatalf("%d bytes; another decoder has %d; %s", len(got), len(want), differ(got, want))
		}
	})
}

// BenchmarkReader reads something like a program; docs/performance.md has what real
// packages take.
func BenchmarkReader(b *testing.B) {
	data := program(8 << 20)
	packed := tool(b, data, "-6")
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := io.Copy(io.Discard, xz.NewReader(bytes.NewReader(packed), nil)); err != nil {
			b.Fatal(err)
		}
	}
}
