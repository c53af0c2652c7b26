package decompress_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"overmount/internal/decompress"
	"overmount/internal/testenv"
)

func content() []byte {
	return []byte(strings.Repeat("some content that can be compressed, and ", 5000))
}

// compress uses writers of Go, if there is one.
func compress(tb testing.TB, f decompress.Format, data []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch f {
	case decompress.Gzip:
		w = gzip.NewWriter(&b)
	case decompress.XZ:
		w, err = xz.WriterConfig{BlockSize: 40_000}.NewWriter(&b) // several blocks
	case decompress.Zstd:
		w, err = zstd.NewWriter(&b)
	case decompress.LZMA:
		w, err = lzma.NewWriter(&b)
	case decompress.Bzip2:
		return run(tb, "bzip2", data)
	default:
		return lz4(data)
	}
	if err != nil {
		tb.Fatal(err)
	}
	w.Write(data)
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// lz4 returns a frame of blocks: literals only, then one with matches that reach
// into the block before, then a stored one.
func lz4(data []byte) []byte {
	b := []byte("\x04\x22\x4d\x18\x40\x40\x00")
	block := func(packed []byte, flag uint32) {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(packed))|flag)
		b = append(b, packed...)
	}
	half := min(len(data)/2, 14)
	block(append([]byte{byte(half << 4)}, data[:half]...), 0)
	rest := data[half:]
	for len(rest) > 0 {
		n := min(len(rest), 64<<10)
		block(rest[:n], 1<<31)
		rest = rest[n:]
	}
	return append(b, 0, 0, 0, 0)
}

// run returns what a program with arguments makes of data.
func run(tb testing.TB, command string, data []byte) []byte {
	tb.Helper()
	args := strings.Fields(command)
	cmd := exec.Command(testenv.Tool(tb, args[0]), append(args[1:], "-c")...)
	cmd.Stdin = bytes.NewReader(data)
	packed, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s: %v", command, err)
	}
	return packed
}

var formats = []decompress.Format{decompress.Gzip, decompress.XZ, decompress.Zstd, decompress.LZ4, decompress.Bzip2, decompress.LZMA}

func read(f decompress.Format, r io.Reader) ([]byte, error) {
	z, err := decompress.NewReader(f, r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return io.ReadAll(z)
}

func TestFormats(t *testing.T) {
	for _, f := range append(formats, decompress.None) {
		packed := content()
		if f != decompress.None {
			packed = compress(t, f, content())
		}
		if got := decompress.Of(packed); got != f && f != decompress.LZMA {
			t.Errorf("Of(%x) = %v, want %v", packed[:6], got, f)
		}
		for name, r := range map[string]io.Reader{"at once": bytes.NewReader(packed), "slowly": iotest.HalfReader(bytes.NewReader(packed))} {
			if got, err := read(f, r); err != nil || !bytes.Equal(got, content()) {
				t.Errorf("%v, read %s: %d bytes, %v, want %d", f, name, len(got), err, len(content()))
			}
		}
		broken := errors.New("the disk is broken")
		if _, err := read(f, io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), iotest.ErrReader(broken))); err != broken {
			t.Errorf("%v: reading a broken file fails with %v, want %v", f, err, broken)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]decompress.Format{"a.gz": decompress.Gzip, "a.xz": decompress.XZ, "a.zst": decompress.Zstd, "a.lz4": decompress.LZ4, "a.bz2": decompress.Bzip2, "a.lzma": decompress.LZMA, "a": decompress.None} {
		if plain, f := decompress.OfName(name); plain != "a" || f != want {
			t.Errorf("OfName(%q) = %q, %v, want a, %v", name, plain, f, want)
		}
	}
}

// TestTools reads what the tools write, also with several streams and threads.
func TestTools(t *testing.T) {
	for _, c := range []struct {
		f       decompress.Format
		command string
	}{
		{decompress.XZ, "xz -9e"}, {decompress.XZ, "xz --block-size=50000 -T2"}, {decompress.XZ, "xz -0 --check=sha256"}, {decompress.XZ, "xz --check=none"},
		{decompress.Zstd, "zstd -1"}, {decompress.Zstd, "zstd --ultra -22 --long=27"}, {decompress.Gzip, "gzip -9"}, {decompress.Bzip2, "bzip2 -1"},
	} {
		packed := run(t, c.command, content())
		for times := 1; times <= 2; times++ {
			want := bytes.Repeat(content(), times)
			if got, err := read(c.f, bytes.NewReader(bytes.Repeat(packed, times))); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %d times: %d bytes, %v, want %d", c.command, times, len(got), err, len(want))
			}
		}
	}
}

func TestLZ4(t *testing.T) {
	const head = "\x04\x22\x4d\x18\x40\x40\x00"
	for _, c := range []struct{ name, data, want, err string }{
		{"match that overlaps", head + "\x09\x00\x00\x00" + "\x1fa\x01\x00\x05" + "\x30bcd" + "\x00\x00\x00\x00", strings.Repeat("a", 1+15+5+4) + "bcd", ""},
		{"into the block before", head + "\x04\x00\x00\x00" + "\x30abc" + "\x05\x00\x00\x00" + "\x02\x03\x00\x10z" + "\x00\x00\x00\x00", "abcabcabcz", ""},
		{"stored, checksums", "\x04\x22\x4d\x18\x5c\x40abcdefgh\x00" + "\x02\x00\x00\x80hi\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00", "hi", ""},
		{"before the beginning", head + "\x05\x00\x00\x00" + "\x10a\x02\x00\x00" + "\x00\x00\x00\x00", "", "a block is damaged"},
		{"nothing before", head + "\x05\x00\x00\x00" + "\x10a\x00\x00\x00" + "\x00\x00\x00\x00", "", "a block is damaged"},
		{"literals missing", head + "\x02\x00\x00\x00" + "\x50a" + "\x00\x00\x00\x00", "", "a block is damaged"},
		{"too long", head + "\x10\x00\x00\x00" + "\x1fa\x01\x00" + strings.Repeat("\xff", 12), "", "a block is damaged"},
		{"block too large", head + "\x01\x00\x01\x00", "", "a block of 65537 bytes"},
		{"no end", head + "\x02\x00\x00\x80hi", "hi", "truncated: the lz4 data ends early"},
		{"dictionary", "\x04\x22\x4d\x18\x41\x40\x00", "", "unknown kind"},
		{"garbage behind", head + "\x00\x00\x00\x00garbage", "", "something that is no frame follows"},
	} {
		got, err := read(decompress.LZ4, strings.NewReader(c.data))
		if string(got) != c.want || c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: read %q, %v, want %q, %q", c.name, got, err, c.want, c.err)
		}
	}
}

// xzBlock returns the beginning of a stream whose only block needs a dictionary.
func xzBlock(code byte) []byte {
	h := []byte{2, 0, 0x21, 1, code, 0, 0, 0}
	return append([]byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36"), binary.LittleEndian.AppendUint32(h, crc32.ChecksumIEEE(h))...)
}

func TestRefused(t *testing.T) {
	for _, f := range formats {
		packed := compress(t, f, content())
		cut := func(n int) []byte { return packed[:n] }
		flipped := bytes.Clone(packed)
		flipped[len(flipped)/2] ^= 0x10
		for _, c := range []struct {
			name, want string
			data       []byte
		}{
			{"empty", "truncated: the " + f.String() + " data ends early", nil},
			{"magic cut", "truncated: the " + f.String() + " data ends early", cut(1)},
			{"header cut", "truncated: the " + f.String() + " data ends early", cut(5)},
			{"half", "truncated: the " + f.String() + " data ends early", cut(len(packed) / 2)},
			{"end cut", "truncated: the " + f.String() + " data ends early", cut(len(packed) - 1)},
			{"other format", "it is not " + f.String() + ": it begins with 4d5a", []byte("MZ and so on")},
			{"damaged", "damaged: " + f.String(), flipped},
			{"garbage behind", "damaged: " + f.String(), append(bytes.Clone(packed), "garbage that follows"...)},
		} {
			if f == decompress.LZ4 && c.name == "damaged" {
				continue // its checksums are passed over
			}
			if f == decompress.LZMA && (c.name == "damaged" || c.name == "other format") {
				continue // it has neither a checksum nor a magic
			}
			got, err := read(f, bytes.NewReader(c.data))
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%v, %s: read %d bytes, %v, want the error %q", f, c.name, len(got), err, c.want)
			}
			if ends := strings.HasPrefix(c.want, "truncated"); ends != errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v, %s: errors.Is(%v, io.ErrUnexpectedEOF) = %v, want %v", f, c.name, err, !ends, ends)
			}
		}
	}
}

// TestMemory reads streams that need more memory than anybody should give them.
func TestMemory(t *testing.T) {
	window := []byte("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00") // 2^(10+21) bytes
	for _, c := range []struct {
		f    decompress.Format
		data []byte
		want string
	}{
		{decompress.XZ, xzBlock(40), "it needs a dictionary of 4294967295 bytes, over the limit of 134217728"},
		{decompress.XZ, xzBlock(31), "it needs a dictionary of 201326592 bytes"},
		{decompress.XZ, append(compress(t, decompress.XZ, nil), xzBlock(40)...), "it needs a dictionary of 4294967295 bytes"},
		{decompress.LZMA, []byte("\x5d\x00\x00\x00\x60" + strings.Repeat("\xff", 8)), "it needs a dictionary of 1610612736 bytes, over the limit of 134217728"},
		{decompress.Zstd, window, "it needs a window over the limit of 134217728 bytes"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := read(c.f, bytes.NewReader(c.data))
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: reading fails with %v, want %q", c.f, err, c.want)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 32<<20 {
			t.Errorf("%v: it takes %d bytes of memory before it is refused", c.f, took)
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, format := range formats {
		f.Add(compress(f, format, content()[:100]))
	}
	f.Add(xzBlock(40))
	f.Fuzz(func(t *testing.T, data []byte) {
		z, err := decompress.NewReader(decompress.Of(data), bytes.NewReader(data))
		if err != nil {
			return
		}
		defer z.Close()
		io.Copy(io.Discard, io.LimitReader(z, 8<<20))
	})
}
