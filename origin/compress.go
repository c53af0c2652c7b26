package origin

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Suffix is what the name of a manifest gets to name its compressed copy.
const Suffix = ".zst"

// window is how far a compressed copy looks back at most, in bytes, and so what
// decompressing takes.
const window = 8 << 20

// Compress writes the compressed copy of a manifest of size bytes. The same manifest
// gives the same bytes, as long as the library is the same.
func Compress(w io.Writer, manifest io.Reader, size int64) error {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(window))
	if err != nil {
		return err
	}
	z.ResetContentSize(w, size)
	if _, err := io.Copy(z, manifest); err != nil {
		return errors.Join(err, z.Close())
	}
	return z.Close()
}

// decompress returns the content of a compressed copy, and refuses one that says
// that it is longer than most bytes. It does not count what comes.
func decompress(r io.Reader, most int64) (io.ReadCloser, error) {
	in := bufio.NewReader(r)
	head, err := in.Peek(zstd.HeaderMaxSize)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var h zstd.Header
	if h.Decode(head) == nil && h.HasFCS && h.FrameContentSize > uint64(most) {
		return nil, fmt.Errorf("%w: %w", ErrRefused, tooLong(most))
	}
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(2*window))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

func tooLong(most int64) error { return fmt.Errorf("it is longer than %d bytes", most) }

// capped reads at most left bytes, and fails with err if there are more.
type capped struct {
	io.Reader
	left int64
	err  error
}

func (c *capped) Read(p []byte) (int, error) {
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.Reader.Read(p)
	if c.left -= int64(n); c.left < 0 {
		c.left = 0
		return n - 1, c.err
	}
	return n, err
}
