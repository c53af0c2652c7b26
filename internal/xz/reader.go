// Package xz reads what xz writes: files of .xz, and the older .lzma.
//
// It is a decoder of its own because those that exist for Go take two to three
// times the processor time of liblzma, which is what unpacking Debian's packages
// consists of; see docs/decisions.md.
//
// # Format
//
// A file is one or more streams (https://tukaani.org/xz/xz-file-format.txt, version
// 1.2.1), with zeros between them, in groups of four. A stream is a header, blocks,
// an index of them, and a footer. A block is a chain of filters, of which LZMA2 is
// the last, and a check of its content. LZMA2 is chunks, stored or of LZMA, which
// decode up to 2 MiB each.
//
// # What is checked
//
// All of it: every reserved bit, every size that is stated, the padding, the CRC32 of
// headers and index, the CRC32, CRC64 or SHA-256 of the content, and that nothing
// follows. What was read before an error may be wrong, if it was the check that
// failed.
//
// Refused by name: filters other than LZMA2 (those for machine code, delta), and
// checks of other types.
//
// # Limits
//
// A dictionary over [Options].MaxDict is refused before memory is taken for it. It
// grows with the content up to what a block states, so that a small file takes
// little memory. Beside it a Reader takes 250 KiB.
package xz

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Options are the options of readers. Nil and zero mean the defaults.
type Options struct {
	MaxDict int64 // bytes that a dictionary may have; the default is 64 MiB, as xz -9 needs
}

// An Info is what a file asks of its reader.
type Info struct {
	Streams int
	Checks  []Check // the types that occur, in their order
	Dict    int64   // bytes of the largest dictionary
}

// A Reader reads content as a stream. It is used by one goroutine at a time.
type Reader struct {
	in   *bufio.Reader
	opts Options
	step func(*Reader) error // what comes next
	left []byte              // content that has not been read
	err  error

	info   Info
	stream stream
	block  block
	chunk  chunk
	alone  alone
	dec    decoder
}

// NewReader returns the content of r, which is a file of xz. An early end of r is
// an [io.ErrUnexpectedEOF]; other errors of r are passed on as they are.
func NewReader(r io.Reader, o *Options) *Reader {
	z := &Reader{}
	z.reset(r, o)
	z.step = (*Reader).first
	return z
}

// NewLZMAReader returns the content of r, which is a file of lzma: a header of 13
// bytes and LZMA to the end of r. The format has no checksum.
func NewLZMAReader(r io.Reader, o *Options) *Reader {
	z := &Reader{}
	z.reset(r, o)
	z.step = (*Reader).aloneHeader
	return z
}

func (z *Reader) reset(r io.Reader, o *Options) {
	z.opts = Options{}
	if o != nil {
		z.opts = *o
	}
	if z.opts.MaxDict == 0 {
		z.opts.MaxDict = 64 << 20
	}
	if z.in == nil {
		z.in = bufio.NewReaderSize(r, 64<<10)
	} else {
		z.in.Reset(r)
	}
	z.info, z.left, z.err = Info{}, nil, nil
	z.dec.clear()
}

// Read reads content.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(z.left) == 0 {
		if z.err == nil {
			z.err = z.step(z)
		}
		if z.err != nil && len(z.left) == 0 {
			return 0, z.err
		}
	}
	n := copy(p, z.left)
	z.left = z.left[n:]
	return n, nil
}

var appenders = sync.Pool{New: func() any { return new(Reader) }}

// ErrTooLong is that content is longer than whoever reads it wants.
var ErrTooLong = errors.New("the content is too long")

// Append appends the content of a whole file of xz to dst, up to a length of most
// bytes, and tells what the file asks of readers. If there is more, the error is
// [ErrTooLong]. After an error, the bytes behind those of dst mean nothing. The
// content is its own dictionary, so that none is needed beside it. Concurrent use
// is safe.
func Append(dst, file []byte, most int, o *Options) ([]byte, Info, error) {
	z := appenders.Get().(*Reader)
	defer appenders.Put(z)
	z.reset(bytes.NewReader(file), o)
	z.step = (*Reader).first
	z.dec.whole(dst, most)
	var err error
	for err == nil {
		err = z.step(z)
	}
	if err == io.EOF {
		err = nil
	}
	plain := z.dec.buf[:z.dec.pos]
	info := z.info
	z.reset(nil, nil) // keeps neither dst nor file
	return plain, info, err
}

// bytes returns the next n bytes, up to 64 KiB, which are good until more is read.
func (z *Reader) bytes(n int) ([]byte, error) {
	b, err := z.in.Peek(n)
	if err != nil {
		return b, early(err)
	}
	_, err = z.in.Discard(n)
	return b, err
}

// early is for places where a file does not end.
func early(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (z *Reader) noteCheck(c Check) {
	if i, found := slices.BinarySearch(z.info.Checks, c); !found {
		z.info.Checks = slices.Insert(z.info.Checks, i, c)
	}
}

// dictionary takes the size of a dictionary.
func (z *Reader) dictionary(size int64) error {
	if size > z.opts.MaxDict {
		return fmt.Errorf("it needs a dictionary of %d bytes, over the limit of %d", size, z.opts.MaxDict)
	}
	z.info.Dict = max(z.info.Dict, size)
	return nil
}
