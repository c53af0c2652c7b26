package kmod_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"overmount/internal/testenv"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

// zstdClaim returns a frame with one short block that states a content size.
func zstdClaim(n uint64) []byte {
	frame := []byte("\x28\xb5\x2f\xfd\xe0") // content size of 8 bytes, single segment
	frame = binary.LittleEndian.AppendUint64(frame, n)
	return append(frame, 9, 0, 0, 'x') // the last block, raw, one byte
}

const xzHeader = "\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36"

func checksum(b []byte) uint32 { return crc32.ChecksumIEEE(b) }

// xzBlock returns the header of a block that needs a dictionary.
func xzBlock(dictCode byte) []byte {
	h := []byte{2, 0, 0x21, 1, dictCode, 0, 0, 0}
	return binary.LittleEndian.AppendUint32(h, checksum(h))
}

// xzClaim returns a stream of chunks that claim 2 MiB each.
func xzClaim(chunks int) []byte {
	b := append([]byte(xzHeader), xzBlock(16)...)
	for range chunks {
		b = append(b, 0xff, 0xff, 0xff, 0, 0, 0x5d, 'x')
	}
	for b = append(b, 0); len(b)%4 != 0; {
		b = append(b, 0)
	}
	b = append(b, 0, 0, 0, 0) // check
	return append(b, make([]byte, 8+12)...)
}

func xzDict(tb testing.TB, code byte) []byte {
	b := kmodtest.XZ(tb, all.Bytes())
	copy(b[len(xzHeader):], xzBlock(code))
	return b
}

func TestCompressed(t *testing.T) {
	module := all.Bytes()
	want := wantAll(64, binary.LittleEndian, kmod.None)
	half := len(module) / 2
	xzOf := func(c xz.WriterConfig, data []byte) []byte { return kmodtest.XZConfig(t, c, data) }
	crc32 := xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20}
	var streamed bytes.Buffer
	w, err := zstd.NewWriter(&streamed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(module); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil { // or it knows the length
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	gz, zst := kmodtest.Gzip(t, module), kmodtest.Zstd(t, module)
	flipped := func(b []byte, at int) []byte {
		b = slices.Clone(b)
		b[at] ^= 1
		return b
	}
	for _, c := range []struct {
		name    string
		file    []byte
		warning string // that it has, and no other
		err     string // or the error
	}{
		{"gzip of two members", slices.Concat(kmodtest.Gzip(t, module[:half]), kmodtest.Gzip(t, module[half:])), "several gzip members", ""},
		{"gzip and garbage", slices.Concat(gz, []byte("\x1fgarbage")), "", ""},
		{"gzip, flipped", flipped(gz, len(gz)-5), "", "damaged: gzip: "},
		{"gzip, header flipped", flipped(gz, 2), "", "damaged: gzip: "},

		{"xz, no check", xzOf(xz.WriterConfig{NoCheckSum: true, DictCap: 1 << 20}, module), "", ""},
		{"xz, CRC64", xzOf(xz.WriterConfig{CheckSum: xz.CRC64, DictCap: 1 << 20}, module), "a check by CRC64, and the kernel decompresses only xz with CRC32 or no check", ""},
		{"xz, SHA-256", xzOf(xz.WriterConfig{CheckSum: xz.SHA256, DictCap: 1 << 20}, module), "a check by SHA-256", ""},
		{"xz, 8 MiB", xzOf(xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 8 << 20}, module), "an xz dictionary of 8388608 bytes, and kernels are built for 1048576", ""},
		{"xz of two streams", slices.Concat(xzOf(crc32, module[:half]), make([]byte, 8), xzOf(crc32, module[half:])), "several xz streams", ""},
		{"xz of several blocks", xzOf(xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20, BlockSize: 1000}, module), "", ""},
		{"xz and garbage", append(xzOf(crc32, module), "0123456789abcdef"...), "", "damaged: xz: something that is no stream"},
		{"xz, flipped", flipped(xzOf(crc32, module), 200), "", "damaged: xz: "},
		{"xz, dictionary of unknown size", xzDict(t, 41), "", "damaged: xz: a dictionary of unknown size 41"},
		{"xz, filter", func() []byte {
			b := xzOf(crc32, module)
			h := []byte{2, 0, 4, 0, 0, 0, 0, 0}
			copy(b[len(xzHeader):], binary.LittleEndian.AppendUint32(h, checksum(h)))
			return b
		}(), "", "damaged: xz: filter 0x4 (x86): only LZMA2 alone is supported"},

		{"zstd, streamed", streamed.Bytes(), "", "damaged: zstd: the frame does not state the size of its content"},
		{"zstd, checked", flipped(zst, len(zst)-1), "", "damaged: zstd: "},
		{"zstd of two frames", slices.Concat(zst, zst), "", "damaged: zstd: it has not the"},
		{"zstd and garbage", append(slices.Clone(zst), "garbage"...), "", "damaged: zstd: "},
		{"zstd, claim", zstdClaim(100), "", "damaged: zstd: "},
		{"gzip of gzip", kmodtest.Gzip(t, gz), "", "not a module"},
	} {
		m, err := read(c.file)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: ReadModule = %v, want an error with %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: ReadModule = %v", c.name, err)
			continue
		}
		if c.warning == "" && len(m.Warnings) != 0 || c.warning != "" && (len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0], c.warning)) {
			t.Errorf("%s: Warnings = %q, want one with %q", c.name, m.Warnings, c.warning)
		}
		m.Compression, m.Warnings = kmod.None, nil
		if diff := cmp.Diff(want, m); diff != "" {
			t.Errorf("%s: ReadModule (-want +got):\n%s", c.name, diff)
		}
	}
}

// What the kernel's build and distributions run.
func TestReadsWhatToolsCompress(t *testing.T) {
	m := all
	m.Text = 100_000
	module := m.Bytes()
	for _, c := range []struct {
		command string
		want    kmod.Compression
	}{
		{"gzip -n -f", kmod.Gzip},
		{"xz --check=crc32 --lzma2=dict=1MiB -f", kmod.XZ},
		{"xz --check=crc32 --lzma2=dict=1MiB --block-size=50000 -T2 -f", kmod.XZ},
		{"zstd -T0 --rm -f -q", kmod.Zstd},
		{"zstd -19 --rm -f -q", kmod.Zstd},
		{"zstd --ultra -22 --rm -f -q --no-check", kmod.Zstd},
	} {
		args := strings.Fields(c.command)
		tool := testenv.Tool(t, args[0])
		dir := t.TempDir()
		kmodtest.Write(t, dir, "foo.ko", m)
		cmd := exec.CommandContext(t.Context(), tool, append(args[1:], "foo.ko")...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c.command, err, out)
		}
		files := modules(t, dir)
		if len(files) != 1 {
			t.Fatalf("%s left %q", c.command, files)
		}
		got, err := readFile(files[0])
		if err != nil {
			t.Errorf("%s: ReadModule = %v", c.command, err)
			continue
		}
		if diff := cmp.Diff(wantAll(64, binary.LittleEndian, c.want), got); diff != "" {
			t.Errorf("%s: ReadModule (-want +got):\n%s", c.command, diff)
		}
	}
	if len(module) < 100_000 {
		t.Error("the module is short")
	}
}

func TestCompressionString(t *testing.T) {
	want := []string{"none", "gzip", "xz", "zstd", "compression(4)"}
	for i, s := range want {
		if got := kmod.Compression(i).String(); got != s {
			t.Errorf("Compression(%d) = %q, want %q", i, got, s)
		}
	}
}
