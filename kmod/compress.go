package kmod

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"overmount/internal/xz"
)

// Compression is how a module file is compressed. Kernels are built for one
// way; modprobe can do the work for them, if it was built for it.
type Compression int

// The ways that kernels and kmod know.
const (
	None Compression = iota
	Gzip
	XZ
	Zstd
)

func (c Compression) String() string {
	switch c {
	case None:
		return "none"
	case Gzip:
		return "gzip"
	case XZ:
		return "xz"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression(%d)", int(c))
}

const (
	gzipMagic = "\x1f\x8b"
	xzMagic   = "\xfd7zXZ\x00"
	zstdMagic = "\x28\xb5\x2f\xfd"
)

// compressionOf tells from the first bytes of a file, as kmod does.
func compressionOf(head []byte) Compression {
	switch {
	case bytes.HasPrefix(head, []byte(zstdMagic)):
		return Zstd
	case bytes.HasPrefix(head, []byte(xzMagic)):
		return XZ
	case bytes.HasPrefix(head, []byte(gzipMagic)):
		return Gzip
	}
	return None
}

// decompress appends the plain form to dst, which is empty but may have room.
// The warnings are about what a kernel cannot do with this file.
func (c Compression) decompress(dst, compressed []byte) (plain []byte, warnings []string, err error) {
	switch c {
	case Gzip:
		plain, warnings, err = gunzip(dst, compressed)
	case XZ:
		plain, warnings, err = unxz(dst, compressed)
	case Zstd:
		plain, err = unzstd(dst, compressed)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("truncated: the %v data ends early: %w", c, io.ErrUnexpectedEOF)
	} else if err != nil && !strings.HasPrefix(err.Error(), c.String()+": ") {
		err = fmt.Errorf("damaged: %v: %w", c, err)
	} else if err != nil {
		err = fmt.Errorf("damaged: %w", err)
	}
	return plain, warnings, err
}

var errTooLong = fmt.Errorf("its plain form has over the limit of %d bytes", maxPlain)

// appendAll reads to the end of r. The buffer grows with what has come, up to
// limit bytes.
func appendAll(dst []byte, r io.Reader, limit int) ([]byte, error) {
	for {
		if len(dst) == cap(dst) {
			dst = slices.Grow(dst, max(64<<10, len(dst)))
		}
		n, err := r.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if len(dst) > limit {
			return dst, errTooLong
		}
		if err == io.EOF {
			return dst, nil
		}
		if err != nil {
			return dst, err
		}
	}
}

var gzipReaders = sync.Pool{New: func() any { return new(gzip.Reader) }}

// gunzip behaves as zlib's gzread, which kmod uses: there may be several
// members, and what follows them and is none does not matter.
func gunzip(dst, compressed []byte) ([]byte, []string, error) {
	z := gzipReaders.Get().(*gzip.Reader)
	defer gzipReaders.Put(z)
	in := bufio.NewReader(bytes.NewReader(compressed))
	var warnings []string
	for first := true; ; first = false {
		if magic, _ := in.Peek(len(gzipMagic)); !first {
			if string(magic) != gzipMagic {
				return dst, warnings, nil
			}
			warnings = []string{"it has several gzip members, and the kernel decompresses only the first"}
		}
		if err := z.Reset(in); err != nil {
			return dst, nil, err
		}
		z.Multistream(false)
		var err error
		if dst, err = appendAll(dst, z, maxPlain); err != nil {
			return dst, nil, err
		}
	}
}

// zstdDecoder serves all goroutines; it keeps a decoder for each processor.
var zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(maxPlain), zstd.WithDecoderMaxWindow(maxPlain))
	if err != nil {
		panic(err) // only for options out of range
	}
	return dec
})

// unzstd decompresses one frame. Like kmod since version 34, it insists on the
// frame's saying how long its content is.
func unzstd(dst, compressed []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(compressed); err != nil {
		return dst, err
	}
	if h.Skippable || !h.HasFCS {
		return dst, errors.New("the frame does not state the size of its content, which kmod 34 and later want")
	}
	n := h.FrameContentSize
	if n > maxPlain {
		return dst, errTooLong
	}
	// A block of up to 128 KiB takes four bytes at least.
	if n > uint64(len(compressed)/4+1)<<17 {
		return dst, fmt.Errorf("the frame claims a content of %d bytes, too many for %d compressed ones", n, len(compressed))
	}
	// With a little room behind it, the decoder need not look for the end at
	// each step.
	const room = 32
	dst = slices.Grow(dst, int(n)+room)
	plain, err := zstdDecoder().DecodeAll(compressed, dst[:0:n+room])
	if errors.Is(err, zstd.ErrDecoderSizeExceeded) || err == nil && uint64(len(plain)) != n {
		return dst, fmt.Errorf("it has not the %d bytes of content that the first frame states", n)
	}
	return plain, err
}

const (
	// maxXZDict bounds the dictionary that a file of xz may ask for, in bytes.
	maxXZDict = 64 << 20
	// kernelXZDict is the size that the kernel's own build uses.
	kernelXZDict = 1 << 20
)

func unxz(dst, compressed []byte) ([]byte, []string, error) {
	plain, info, err := xz.Append(dst, compressed, maxPlain, &xz.Options{MaxDict: maxXZDict})
	if errors.Is(err, xz.ErrTooLong) {
		err = errTooLong
	}
	return plain, xzWarnings(info), err
}

// xzWarnings says what the kernel's decompressor makes of a file.
func xzWarnings(info xz.Info) []string {
	var s []string
	for _, check := range info.Checks {
		if check > xz.CRC32 {
			s = append(s, fmt.Sprintf("it has a check by %v, and the kernel decompresses only xz with CRC32 or no check", check))
		}
	}
	if info.Dict > kernelXZDict {
		s = append(s, fmt.Sprintf("it needs an xz dictionary of %d bytes, and kernels are built for %d", info.Dict, kernelXZDict))
	}
	if info.Streams > 1 {
		s = append(s, "it has several xz streams, and the kernel decompresses only the first")
	}
	return s
}
