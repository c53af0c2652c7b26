// Package decompress reads compressed data of strangers as a stream, in bounded
// memory.
//
// What a stream of xz, lzma or zstd needs is known from its headers; over
// [MaxWindow] it is refused before the memory is taken. How long the content is
// nobody knows before its end: who reads keeps count.
package decompress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"overmount/internal/xz"
)

// MaxWindow is how many bytes of the content a stream may look back: what the
// tools xz -9 (64 MiB) and zstd --ultra -22 (128 MiB) need.
const MaxWindow = 128 << 20

// A Format is a way of compression.
type Format int

// The formats. None is plain data.
const (
	None Format = iota
	Gzip
	XZ
	Zstd
	LZ4
	Bzip2
	LZMA // which xz replaced
)

func (f Format) String() string {
	return [...]string{"none", "gzip", "xz", "zstd", "lz4", "bzip2", "lzma"}[f]
}

// LZMA has none.
var magics = [...]string{
	Gzip: "\x1f\x8b", XZ: "\xfd7zXZ\x00", Zstd: "\x28\xb5\x2f\xfd", LZ4: "\x04\x22\x4d\x18", Bzip2: "BZh", LZMA: "",
}

var suffixes = [...]string{Gzip: ".gz", XZ: ".xz", Zstd: ".zst", LZ4: ".lz4", Bzip2: ".bz2", LZMA: ".lzma"}

// Of tells the format from the first bytes of the data. Six are enough. LZMA cannot
// be told.
func Of(head []byte) Format {
	for f := Gzip; int(f) < len(magics); f++ {
		if magics[f] != "" && bytes.HasPrefix(head, []byte(magics[f])) {
			return f
		}
	}
	return None
}

// OfName tells the format from the end of a file's name: .gz, .xz, .zst, .lz4, .bz2,
// .lzma. It returns the name without it.
func OfName(name string) (plain string, f Format) {
	for f := Gzip; int(f) < len(suffixes); f++ {
		if plain, ok := strings.CutSuffix(name, suffixes[f]); ok {
			return plain, f
		}
	}
	return name, None
}

// NewReader returns the content of r, which is in a format. The content ends
// where r does: garbage behind it is an error. So is whatever is damaged; an early
// end of r is an [io.ErrUnexpectedEOF]. Reading is from one goroutine at a time,
// and no other works for it. Close frees memory; it does not close r.
func NewReader(f Format, r io.Reader) (io.ReadCloser, error) {
	if f == None {
		return io.NopCloser(r), nil
	}
	below := &input{r: r}
	in := bufio.NewReaderSize(below, 64<<10)
	head, err := in.Peek(len(magics[f]))
	if err != nil && err != io.EOF {
		return nil, err
	}
	if magics[f] != "" && Of(head) != f {
		if strings.HasPrefix(magics[f], string(head)) {
			return nil, endsEarly(f)
		}
		return nil, fmt.Errorf("it is not %v: it begins with %x", f, head)
	}
	z, err := open(f, in)
	if err != nil {
		return nil, below.explain(f, err)
	}
	return &reader{z, f, below}, nil
}

func open(f Format, in *bufio.Reader) (io.ReadCloser, error) {
	switch f {
	case Gzip:
		return gzip.NewReader(in)
	case XZ:
		return io.NopCloser(xz.NewReader(in, &xz.Options{MaxDict: MaxWindow})), nil
	case LZMA:
		return io.NopCloser(xz.NewLZMAReader(in, &xz.Options{MaxDict: MaxWindow})), nil
	case LZ4:
		return io.NopCloser(&lz4Reader{in: in}), nil
	case Bzip2:
		return io.NopCloser(bzip2.NewReader(in)), nil
	}
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(MaxWindow))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

// A reader says what it was that failed.
type reader struct {
	io.ReadCloser
	format Format
	below  *input
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = r.below.explain(r.format, err)
	}
	return n, err
}

func endsEarly(f Format) error {
	return fmt.Errorf("truncated: the %v data ends early: %w", f, io.ErrUnexpectedEOF)
}

// An input remembers an error of the compressed data's reader, which is no damage.
type input struct {
	r   io.Reader
	err error
}

func (in *input) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	if err != nil && err != io.EOF {
		in.err = err
	}
	return n, err
}

func (in *input) explain(f Format, err error) error {
	if in.err != nil {
		return in.err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return endsEarly(f)
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fmt.Errorf("zstd: it needs a window over the limit of %d bytes", MaxWindow)
	}
	if strings.HasPrefix(err.Error(), f.String()+": ") {
		return fmt.Errorf("damaged: %w", err)
	}
	return fmt.Errorf("damaged: %v: %w", f, err)
}
