package apk

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
)

const (
	// maxSignatures bounds the entries of a signature member, and maxSignature
	// the bytes of each.
	maxSignatures = 32
	maxSignature  = 4 << 10
	// maxControl bounds the control member, compressed and plain, in bytes.
	maxControl = 1 << 20
)

// A recorder reads exactly what is asked for, and keeps it.
type recorder struct {
	r     *bufio.Reader
	read  []byte
	limit int
}

var errTooLong = errors.New("it is longer than the limit")

func (r *recorder) ReadByte() (byte, error) {
	if len(r.read) >= r.limit {
		return 0, fmt.Errorf("%w of %d compressed bytes", errTooLong, r.limit)
	}
	b, err := r.r.ReadByte()
	if err == nil {
		r.read = append(r.read, b)
	}
	return b, err
}

func (r *recorder) Read(p []byte) (int, error) {
	if len(r.read) >= r.limit && len(p) > 0 {
		return 0, fmt.Errorf("%w of %d compressed bytes", errTooLong, r.limit)
	}
	n, err := r.r.Read(p[:min(len(p), r.limit-len(r.read))])
	r.read = append(r.read, p[:n]...)
	return n, err
}

// readMember reads the next gzip member, and nothing behind it. Both forms are at
// most limit bytes long.
func readMember(r *bufio.Reader, limit int) (compressed, plain []byte, err error) {
	var buf bytes.Buffer
	compressed, err = copyMember(&buf, r, limit)
	return compressed, buf.Bytes(), err
}

// copyMember does the same, and writes the plain form.
func copyMember(w io.Writer, r *bufio.Reader, limit int) (compressed []byte, err error) {
	in := &recorder{r: r, limit: limit}
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, gzipError(err)
	}
	z.Multistream(false)
	n, err := io.Copy(w, io.LimitReader(z, int64(limit)+1))
	if err != nil {
		return nil, gzipError(err)
	}
	if n > int64(limit) {
		return nil, fmt.Errorf("%w of %d plain bytes", errTooLong, limit)
	}
	return in.read, nil
}

// gzipError says what the errors of gzip mean for a file.
func gzipError(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("truncated: %w", io.ErrUnexpectedEOF)
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), isCorrupt(err):
		return fmt.Errorf("damaged: %w", err)
	}
	return err
}

func isCorrupt(err error) bool {
	_, ok := errors.AsType[flate.CorruptInputError](err)
	return ok
}

// A head is the members at the beginning of a file, before its contents.
type head struct {
	sigs []signature // nil if the file is not signed
	next []byte      // the member that is signed, as it is compressed
	tar  []byte      // the same, plain
}

// readHead reads the signature member, if there is one, and the next.
func readHead(r *bufio.Reader, limit int) (*head, error) {
	magic, err := r.Peek(8)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := checkMagic(magic); err != nil {
		return nil, err
	}
	h := &head{}
	if h.next, h.tar, err = readMember(r, limit); err != nil {
		return nil, fmt.Errorf("the first member: %w", err)
	}
	if h.sigs, err = signatures(h.tar); err != nil || h.sigs == nil {
		return h, err
	}
	if h.next, h.tar, err = readMember(r, limit); err != nil {
		return nil, fmt.Errorf("the member behind the signature: %w", err)
	}
	return h, nil
}

// signatures reads a signature member. Of any other member it returns nil.
func signatures(segment []byte) ([]signature, error) {
	var sigs []signature
	t := tar.NewReader(bytes.NewReader(segment))
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return sigs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the first member: damaged: %w", err)
		}
		s, ok := parseSignature(h.Name)
		if !ok && len(sigs) == 0 {
			return nil, nil
		}
		if !ok || len(sigs) == maxSignatures || h.Size > maxSignature {
			return nil, fmt.Errorf("the signature member has %.100q, which is no signature, or is too much", h.Name)
		}
		if s.sig, err = io.ReadAll(t); err != nil {
			return nil, fmt.Errorf("the signature member: damaged: %w", err)
		}
		sigs = append(sigs, s)
	}
}

// entry returns the content of a tar entry, nil if there is none.
func entry(segment []byte, name string) ([]byte, error) {
	t := tar.NewReader(bytes.NewReader(segment))
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("damaged: %w", err)
		}
		if strings.TrimPrefix(h.Name, "./") == name && h.Typeflag == tar.TypeReg {
			if h.Size > int64(len(segment)) { // sparse
				return nil, fmt.Errorf("damaged: %s claims %d bytes", name, h.Size)
			}
			return io.ReadAll(t)
		}
	}
}
