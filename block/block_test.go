package block

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"overmount/internal/testenv"
)

var codecs = []Codec{Snappy, Zstd}

func mod251(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

func noise(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// program returns the first n bytes of this test's own binary, which compress
// about as well as kernel modules do.
func program(tb testing.TB, n int) []byte {
	tb.Helper()
	path, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return data[:n]
}

// samples are plain blocks of all kinds.
func samples(tb testing.TB) map[string][]byte {
	return map[string][]byte{
		"empty":         {},
		"one byte":      []byte("a"),
		"short":         []byte("some random data to store"),
		"255 bytes":     mod251(255),
		"256 bytes":     mod251(256),
		"noise":         noise(Size),
		"noise, short":  noise(300),
		"zeros":         make([]byte, Size),
		"program":       program(tb, Size),
		"program, part": program(tb, 100_001),
	}
}

// sealPacked seals bytes that need not be what a codec makes, as only someone
// who knows the key could.
func sealPacked(key Key, packed []byte) []byte {
	return gcm(key).Seal(nil, key[:nonceSize], packed, nil)
}

func mustSeal(tb testing.TB, c Codec, plain []byte) (Ref, []byte) {
	tb.Helper()
	key := KeyOf(plain)
	id, object, err := Seal(nil, c, key, plain)
	if err != nil {
		tb.Fatalf("Seal(%v, %d bytes) = %v", c, len(plain), err)
	}
	return Ref{ID: id, Key: key}, object
}

// These were seen with rfs itself.
func TestVectorsOfRfs(t *testing.T) {
	for _, v := range []struct {
		name, key, id string
		plain         []byte
		object        string // hex, if known
		size          int
	}{
		{
			"a", "8928aae63c84d87ea098564d1e03ad813f107add474e56aedd286349c0c03ea4",
			"4615d25c808995c1d4513aa60865cb5987dd103790583ccd1742eda3e50de182",
			[]byte("a"), "8fb1fb81c654b935063c312a93a736ad5b7351", 19,
		},
		{
			"text", "b83d15e3b4175fe39f3e86c7b3ed233167c37d779970e6137e7a8d1ddf865fae",
			"d9a070eafd4626be8b079980dbc0a2ed7c3355cd600b70ad6408467281af5ab7",
			[]byte("some random data to store"), "", 43,
		},
		{
			"4096 zeros", "686ede9288c391e7e05026e56f2f91bfd879987a040ea98445dabc76f55b8e5f",
			"8036726c87794aa106471b06ea41ee6c358a2bdae446e4acdef3d760657a6012",
			make([]byte, 4096), "", 212,
		},
		{
			"524288 zeros", "0a93174557b2e0668f2531531415142280358ee32605d059dab1ce8ebbb1cc01",
			"e8fd6b2d9a2e8851d12163c43f3024c31fcac6b486bceacf042d323f8e6f6640",
			make([]byte, Size), "", 24611,
		},
		{
			"mod 251", "027261138272f669975c00d5382550ca78d38de640eb9f73421656bdf09ba757",
			"c8caf12f5b4e016d33f5430e46ade07850f41f96a729f842fcf7c071b599e7c7",
			mod251(Size), "", 26563,
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			ref, object := mustSeal(t, Snappy, v.plain)
			if got := hex.EncodeToString(ref.Key[:]); got != v.key {
				t.Errorf("KeyOf = %s, want %s", got, v.key)
			}
			if got := ref.ID.String(); got != v.id {
				t.Errorf("ID = %s, want %s", got, v.id)
			}
			if len(object) != v.size {
				t.Errorf("object has %d bytes, want %d", len(object), v.size)
			}
			if got := hex.EncodeToString(object); v.object != "" && got != v.object {
				t.Errorf("object = %s, want %s", got, v.object)
			}
		})
	}
}

func TestSealThenOpen(t *testing.T) {
	for _, c := range codecs {
		for name, plain := range samples(t) {
			t.Run(fmt.Sprintf("%v/%s", c, name), func(t *testing.T) {
				before := bytes.Clone(plain)
				ref, object := mustSeal(t, c, plain)
				if got := Sum(object); got != ref.ID {
					t.Errorf("Sum(object) = %v, want the ID %v", got, ref.ID)
				}
				if len(object) > MaxObject {
					t.Errorf("object has %d bytes, over MaxObject %d", len(object), MaxObject)
				}
				sealed := bytes.Clone(object)
				got, err := Open(nil, c, ref.Key, object)
				if err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("Open = %d bytes, %v, want the %d sealed", len(got), err, len(plain))
				}
				if !bytes.Equal(plain, before) || !bytes.Equal(object, sealed) {
					t.Error("Seal or Open changed its input")
				}
				if _, again := mustSeal(t, c, plain); !bytes.Equal(again, object) {
					t.Error("Seal gave other bytes the second time")
				}
			})
		}
	}
}

func TestNoiseHardlyGrows(t *testing.T) {
	for _, n := range []int{1, 255, 256, 1000, 70_000, Size} {
		_, object := mustSeal(t, Zstd, noise(n))
		// A frame header of at most 14 bytes and 3 for each block, of 64 KiB at least.
		if limit := n + 14 + 3*(n>>16+1) + tagSize; len(object) > limit {
			t.Errorf("%d bytes of noise became an object of %d, want at most %d", n, len(object), limit)
		}
	}
}

// The packed form is a frame that the reference decoder reads.
func TestZstdReadsOurFrames(t *testing.T) {
	tool := testenv.Tool(t, "zstd")
	for name, plain := range samples(t) {
		t.Run(name, func(t *testing.T) {
			ref, object := mustSeal(t, Zstd, plain)
			packed, err := gcm(ref.Key).Open(nil, ref.Key[:nonceSize], object, nil)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), tool, "-d", "-c")
			cmd.Stdin = bytes.NewReader(packed)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			got, err := cmd.Output()
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("zstd -d = %d bytes, %v %s, want %d", len(got), err, &stderr, len(plain))
			}
		})
	}
}

// What zstd itself writes opens too, if it states its length.
func TestOpenReadsFramesOfZstd(t *testing.T) {
	plain := program(t, 300_000)
	for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedBestCompression} {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(true))
		if err != nil {
			t.Fatal(err)
		}
		key := KeyOf(plain)
		got, err := Open(nil, Zstd, key, sealPacked(key, enc.EncodeAll(plain, nil)))
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("Open of a frame of level %v with checksum = %d bytes, %v, want %d", level, len(got), err, len(plain))
		}
	}
}

func TestAppendsToDst(t *testing.T) {
	plain := program(t, 5000)
	for _, c := range codecs {
		for _, room := range []int{0, 10, 1 << 20} {
			head := append(make([]byte, 0, 4+room), "head"...)
			ref, want := mustSeal(t, c, plain)
			id, sealed, err := Seal(head, c, ref.Key, plain)
			if err != nil || id != ref.ID || string(sealed[:4]) != "head" || !bytes.Equal(sealed[4:], want) {
				t.Errorf("Seal(%v, head with room %d) = ID %v, %d bytes, %v; want %v, head and the %d of the object", c, room, id, len(sealed), err, ref.ID, len(want))
			}
			opened, err := Open(head, c, ref.Key, want)
			if err != nil || string(opened[:4]) != "head" || !bytes.Equal(opened[4:], plain) {
				t.Errorf("Open(%v, head with room %d) = %d bytes, %v; want head and the %d sealed", c, room, len(opened), err, len(plain))
			}
		}
	}
}

func TestSealRefuses(t *testing.T) {
	if _, dst, err := Seal([]byte("head"), Zstd, Key{}, make([]byte, Size+1)); err == nil || string(dst) != "head" {
		t.Errorf("Seal(%d bytes) = %d bytes, %v, want dst unchanged and an error", Size+1, len(dst), err)
	}
	if _, dst, err := Seal([]byte("head"), Codec(7), Key{}, []byte("a")); err == nil || string(dst) != "head" {
		t.Errorf("Seal(codec 7) = %q, %v, want dst unchanged and an error", dst, err)
	}
}

// refused checks that an object gives ErrCorrupt, leaves dst, and needs no
// more memory than a full block does.
func refused(t *testing.T, c Codec, key Key, object []byte) {
	t.Helper()
	dst := []byte("head")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got, err := Open(dst, c, key, object)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("Open = %v, want ErrCorrupt", err)
	}
	if string(got) != "head" {
		t.Errorf("Open returned %d bytes with its error, want dst", len(got))
	}
	// The plain block, a buffer for the packed one, and what decoders keep.
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("Open took %d bytes of memory", n)
	}
}

func TestFlippedBitIsCorrupt(t *testing.T) {
	for _, c := range codecs {
		ref, object := mustSeal(t, c, program(t, 150))
		for i := range len(object) * 8 {
			bad := bytes.Clone(object)
			bad[i/8] ^= 1 << (i % 8)
			if got, err := Open(nil, c, ref.Key, bad); !errors.Is(err, ErrCorrupt) || got != nil {
				t.Fatalf("Open with bit %d flipped = %d bytes, %v, want ErrCorrupt", i, len(got), err)
			}
		}
		for i := range object {
			if _, err := Open(nil, c, ref.Key, object[:i]); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("Open of the first %d bytes of %d = %v, want ErrCorrupt", i, len(object), err)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	plain := program(t, 5000)
	ref, object := mustSeal(t, Zstd, plain)
	t.Run("other key", func(t *testing.T) { refused(t, Zstd, Key{1}, object) })
	t.Run("longer", func(t *testing.T) { refused(t, Zstd, ref.Key, append(bytes.Clone(object), 0)) })
	t.Run("over MaxObject", func(t *testing.T) { refused(t, Zstd, ref.Key, make([]byte, MaxObject+1)) })
	t.Run("other codec", func(t *testing.T) { refused(t, Snappy, ref.Key, object) })
	t.Run("unknown codec", func(t *testing.T) { refused(t, Codec(7), ref.Key, object) })
	t.Run("empty", func(t *testing.T) { refused(t, Zstd, ref.Key, nil) })
}

// zstdFrame is a frame with a header that claims what it likes:
// RFC 8878, section 3.1.1.1.
func zstdFrame(descriptor byte, rest ...byte) []byte {
	return append([]byte{0x28, 0xb5, 0x2f, 0xfd, descriptor}, rest...)
}

const fcs8 = 0xc0 // descriptor: frame content size in 8 bytes

func zstdClaim(n uint64, single bool, blocks ...byte) []byte {
	f := zstdFrame(fcs8, 0x58) // window descriptor: 2 MiB
	if single {
		f = zstdFrame(fcs8 | 0x20)
	}
	return append(binary.LittleEndian.AppendUint64(f, n), blocks...)
}

// rle is the last block of a frame: one byte, repeated.
func rle(n int) []byte {
	head := uint32(1 | 1<<1 | n<<3)
	return []byte{byte(head), byte(head >> 8), byte(head >> 16), 'x'}
}

// Sealed under the right key, so that only the codec stands between the claim
// and the memory.
func TestHostileClaims(t *testing.T) {
	enc, _ := zstdCoders()
	frame := enc.EncodeAll(program(t, 5000), nil)
	big := enc.EncodeAll(make([]byte, Size), nil)
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}
	huge := binary.AppendUvarint(nil, 1<<32-1)
	for name, v := range map[string]struct {
		codec  Codec
		packed []byte
	}{
		"snappy: empty":                   {Snappy, nil},
		"snappy: 4 GiB":                   {Snappy, append(huge, 0, 'a')},
		"snappy: over 32 bits":            {Snappy, binary.AppendUvarint(nil, 1<<40)},
		"snappy: a byte over Size":        {Snappy, binary.AppendUvarint(nil, Size+1)},
		"snappy: Size and nothing behind": {Snappy, binary.AppendUvarint(nil, Size)},
		"snappy: endless varint":          {Snappy, bytes.Repeat([]byte{0xff}, 20)},
		"zstd: empty":                     {Zstd, nil},
		"zstd: not a frame":               {Zstd, []byte("some random data to store")},
		"zstd: 2^63":                      {Zstd, zstdClaim(1<<63, false, rle(10)...)},
		"zstd: 2^63, single segment":      {Zstd, zstdClaim(1<<63, true, rle(10)...)},
		"zstd: a byte over Size":          {Zstd, zstdClaim(Size+1, true, rle(10)...)},
		"zstd: Size, content of 10":       {Zstd, zstdClaim(Size, true, rle(10)...)},
		"zstd: 10, content of 100000":     {Zstd, zstdClaim(10, true, rle(100_000)...)},
		"zstd: 10, content beyond block":  {Zstd, zstdClaim(10, true, rle(1<<21-1)...)},
		"zstd: no length":                 {Zstd, append(zstdFrame(0, 0x58), rle(10)...)},
		"zstd: window of 3.75 TiB":        {Zstd, append(zstdFrame(fcs8, 0xff, 10, 0, 0, 0, 0, 0, 0, 0), rle(10)...)},
		"zstd: dictionary":                {Zstd, append(zstdFrame(fcs8|0x21, 9, 10, 0, 0, 0, 0, 0, 0, 0), rle(10)...)},
		"zstd: reserved bit":              {Zstd, append(zstdFrame(fcs8|0x28, 10, 0, 0, 0, 0, 0, 0, 0), rle(10)...)},
		"zstd: only a skippable frame":    {Zstd, skippable},
		"zstd: skippable, then a frame":   {Zstd, append(bytes.Clone(skippable), frame...)},
		"zstd: a frame, then skippable":   {Zstd, append(bytes.Clone(frame), skippable...)},
		"zstd: two frames":                {Zstd, append(bytes.Clone(frame), frame...)},
		"zstd: two frames of Size":        {Zstd, append(bytes.Clone(big), big...)},
		"zstd: a frame, then an empty one": {Zstd, append(bytes.Clone(frame),
			enc.EncodeAll(nil, nil)...)},
		"zstd: a frame, then rubbish": {Zstd, append(bytes.Clone(frame), 0)},
		"zstd: a frame cut short":     {Zstd, frame[:len(frame)-1]},
		"zstd: only the header":       {Zstd, zstdClaim(10, true)},
	} {
		t.Run(name, func(t *testing.T) {
			key := KeyOf([]byte(name))
			refused(t, v.codec, key, sealPacked(key, v.packed))
		})
	}
	// The frames above fail for what they are meant to: a right one opens.
	key := Key{1}
	got, err := Open(nil, Zstd, key, sealPacked(key, zstdClaim(10, true, rle(10)...)))
	if err != nil || string(got) != "xxxxxxxxxx" {
		t.Errorf("Open of a hand-made frame = %q, %v, want ten x", got, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		c := codecs[i%2]
		plain := program(t, 200_000+i)[i:]
		ref, object := mustSeal(t, c, plain)
		wg.Go(func() {
			for range 20 {
				id, sealed, err := Seal(nil, c, ref.Key, plain)
				if err != nil || id != ref.ID || !bytes.Equal(sealed, object) {
					t.Errorf("Seal(%v) beside others = %v, %v, want %v", c, id, err, ref.ID)
				}
				got, err := Open(nil, c, ref.Key, object)
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("Open(%v) beside others = %d bytes, %v, want %d", c, len(got), err, len(plain))
				}
			}
		})
	}
	wg.Wait()
}

func TestParseID(t *testing.T) {
	id := Sum([]byte("a"))
	upper := fmt.Sprintf("%X", id[:])
	for _, s := range []string{id.String(), upper} {
		if got, err := ParseID(s); err != nil || got != id {
			t.Errorf("ParseID(%q) = %v, %v, want %v", s, got, err, id)
		}
	}
	for _, s := range []string{"", "ab", id.String()[1:], id.String() + "0", "g" + id.String()[1:], " " + id.String()[1:]} {
		if got, err := ParseID(s); err == nil || got != (ID{}) {
			t.Errorf("ParseID(%q) = %v, %v, want an error and no ID", s, got, err)
		}
	}
}

func TestParseCodec(t *testing.T) {
	for s, want := range map[string]Codec{"": Snappy, "snappy": Snappy, "zstd": Zstd} {
		if got, err := ParseCodec(s); err != nil || got != want {
			t.Errorf("ParseCodec(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"ZSTD", "lz4", "zstd "} {
		if got, err := ParseCodec(s); err == nil {
			t.Errorf("ParseCodec(%q) = %v, want an error", s, got)
		}
	}
}

func TestCount(t *testing.T) {
	for size, want := range map[int64]int64{0: 0, 1: 1, Size - 1: 1, Size: 1, Size + 1: 2, 1 << 40: 1 << 21} {
		if got := Count(size); got != want {
			t.Errorf("Count(%d) = %d, want %d", size, got, want)
		}
	}
}

// Opened objects may be hostile, sealed ones are anything.

func FuzzSealOpen(f *testing.F) {
	for _, plain := range samples(f) {
		f.Add(plain)
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		plain = plain[:min(len(plain), Size)]
		for _, c := range codecs {
			ref, object := mustSeal(t, c, plain)
			if len(object) > MaxObject || Sum(object) != ref.ID {
				t.Fatalf("Seal(%v, %d bytes) = %d bytes, ID %v", c, len(plain), len(object), ref.ID)
			}
			got, err := Open(nil, c, ref.Key, object)
			if err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("Open(%v) = %d bytes, %v, want the %d sealed", c, len(got), err, len(plain))
			}
		}
	})
}

func FuzzOpen(f *testing.F) {
	enc, _ := zstdCoders()
	for _, plain := range [][]byte{nil, []byte("a"), mod251(2000), make([]byte, Size)} {
		_, object := mustSeal(f, Zstd, plain)
		f.Add(object, false)
		f.Add(enc.EncodeAll(plain, nil), true)
		packed, err := Snappy.compress(nil, plain)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed, true)
	}
	f.Add(zstdClaim(1<<63, true, rle(10)...), true)
	f.Add(zstdClaim(10, false, rle(100_000)...), true)
	f.Fuzz(func(t *testing.T, data []byte, packed bool) {
		key := Key{1, 2, 3}
		if packed { // by someone who knows the key
			data = sealPacked(key, data)
		}
		for _, c := range codecs {
			got, err := Open([]byte("head"), c, key, data)
			switch {
			case string(got[:4]) != "head":
				t.Fatalf("Open(%v) changed dst to %q", c, got[:4])
			case err != nil && (len(got) != 4 || !errors.Is(err, ErrCorrupt)):
				t.Fatalf("Open(%v) = %d bytes, %v, want dst and ErrCorrupt", c, len(got), err)
			case len(got) > 4+Size:
				t.Fatalf("Open(%v) = %d bytes, over the limit", c, len(got))
			}
		}
	})
}

func BenchmarkKeyOf(b *testing.B) {
	plain := program(b, Size)
	b.SetBytes(Size)
	for b.Loop() {
		KeyOf(plain)
	}
}

func BenchmarkSeal(b *testing.B) {
	plain := program(b, Size)
	for _, c := range codecs {
		b.Run(c.String(), func(b *testing.B) {
			key := KeyOf(plain)
			b.SetBytes(Size)
			b.ReportAllocs()
			var object []byte
			for b.Loop() {
				var err error
				if _, object, err = Seal(object[:0], c, key, plain); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(object))/Size, "ratio")
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	plain := program(b, Size)
	for _, c := range codecs {
		b.Run(c.String(), func(b *testing.B) {
			ref, object := mustSeal(b, c, plain)
			b.SetBytes(Size)
			b.ReportAllocs()
			var got []byte
			for b.Loop() {
				var err error
				if got, err = Open(got[:0], c, ref.Key, object); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
