package initramfs

import (
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// A Compression is how an image is compressed as a whole.
type Compression int

// What kernels understand. Zstd needs Linux 5.9 with CONFIG_RD_ZSTD, Gzip
// CONFIG_RD_GZIP.
const (
	Zstd Compression = iota
	Gzip
	None
)

// ParseCompression is the reverse of [Compression.String].
func ParseCompression(s string) (Compression, error) {
	for _, c := range []Compression{Zstd, Gzip, None} {
		if s == c.String() {
			return c, nil
		}
	}
	return 0, fmt.Errorf("compression %q: want zstd, gzip or none", s)
}

func (c Compression) String() string {
	switch c {
	case Zstd:
		return "zstd"
	case Gzip:
		return "gzip"
	case None:
		return "none"
	}
	return fmt.Sprintf("compression(%d)", int(c))
}

// window is how far back zstd looks, in bytes. The kernel refuses over 128 MiB
// (lib/decompress_unzstd.c), and must have that much memory in one piece.
const window = 8 << 20

// writer returns a writer that compresses to w: quickly, or as well as it can,
// which takes ten times as long and a tenth off. The same bytes, in whatever
// pieces, give the same bytes.
func (c Compression) writer(w io.Writer, quick bool) (io.WriteCloser, error) {
	switch c {
	case Zstd:
		level := zstd.SpeedBestCompression
		if quick {
			level = zstd.SpeedDefault
		}
		return zstd.NewWriter(w, zstd.WithEncoderLevel(level), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	case Gzip:
		level := gzip.BestCompression
		if quick {
			level = gzip.DefaultCompression
		}
		return gzip.NewWriterLevel(w, level)
	case None:
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("unknown %v", c)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Write writes the image. Errors are those of w and of the files of the host.
func (im *Image) Write(w io.Writer, c Compression) error {
	z, err := c.writer(w, false)
	if err != nil {
		return err
	}
	if err := im.archive.Write(z); err != nil {
		z.Close() // w has part of an image, and nothing would make it whole
		return err
	}
	return z.Close()
}

// Shares returns about which length in bytes each of Parts takes in the image:
// that which it has alone, compressed quickly. Together they are more than the
// image, by a tenth.
func (im *Image) Shares(c Compression) ([]int64, error) {
	sizes := make([]int64, len(im.Parts))
	errs := make([]error, len(im.Parts))
	var wg sync.WaitGroup
	for i, p := range im.Parts {
		wg.Go(func() { sizes[i], errs[i] = p.share(c) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return sizes, nil
}

func (p *Part) share(c Compression) (int64, error) {
	var n counter
	z, err := c.writer(&n, true)
	if err != nil {
		return 0, err
	}
	for _, content := range p.contents {
		if err := copyContent(z, content); err != nil {
			z.Close()
			return 0, err
		}
	}
	err = z.Close()
	return int64(n), err
}

func copyContent(w io.Writer, content func() (io.ReadCloser, error)) error {
	r, err := content()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// A counter counts bytes.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
