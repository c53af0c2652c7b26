package kmod

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	// readWhole is the length in bytes up to which a file is read at once. Half
	// of all modules are shorter.
	readWhole = 64 << 10

	// maxParts bounds in how many pieces a file is read, before it is read whole.
	// Modules need up to five.
	maxParts = 16
)

// An image gives byte ranges of a file, and remembers what it has read. It is
// the file that r reads, or plain.
type image struct {
	r     io.ReaderAt
	size  int64
	parts []part
	sum   int64 // bytes in parts
	plain []byte
}

type part struct {
	off  int64
	data []byte
}

func (m *image) open(r io.ReaderAt, size int64) { m.r, m.size = r, size }

// openPlain makes data the file. It is not modified.
func (m *image) openPlain(data []byte) { m.plain, m.size = data, int64(len(data)) }

// close forgets the file, and keeps the memory of its parts for the next one.
func (m *image) close() {
	parts := m.parts
	for i := range parts {
		parts[i].data = kept(parts[i].data)
	}
	*m = image{parts: parts[:0]}
}

// at returns n bytes from off, which are good until close.
func (m *image) at(off, n int64) ([]byte, error) {
	if err := m.bounds("the module", uint64(off), uint64(n)); err != nil {
		return nil, err
	}
	if b, ok := m.have(off, n); ok || n == 0 {
		return b, nil
	}
	at, length := off, n
	if m.size <= readWhole || len(m.parts) >= maxParts || n > m.size-m.sum {
		// A short file; or sections that overlap: one range for all of them.
		at, length = 0, m.size
	}
	if err := m.fetch(at, length); err != nil {
		return nil, err
	}
	b, _ := m.have(off, n)
	return b, nil
}

// inside reports whether n bytes from off lie in the file.
func (m *image) inside(off, n uint64) bool {
	return off <= uint64(m.size) && n <= uint64(m.size)-off
}

// bounds returns an error unless n bytes of what from off lie in the file.
func (m *image) bounds(what string, off, n uint64) error {
	if m.inside(off, n) {
		return nil
	}
	end := off + n
	if end < off {
		return fmt.Errorf("damaged: %s of %d bytes would begin at byte %d", what, n, off)
	}
	return fmt.Errorf("truncated: %s ends at byte %d, the file has %d", what, end, m.size)
}

func (m *image) have(off, n int64) ([]byte, bool) {
	if m.plain != nil {
		return m.plain[off:][:n:n], true
	}
	for i := range m.parts {
		p := &m.parts[i]
		if off >= p.off && off+n <= p.off+int64(len(p.data)) {
			return p.data[off-p.off:][:n:n], true
		}
	}
	return nil, false
}

// fetch reads a part.
func (m *image) fetch(off, n int64) error {
	if n > maxPlain {
		return fmt.Errorf("it needs %d bytes read, over the limit of %d", n, maxPlain)
	}
	i := len(m.parts)
	m.parts = slices.Grow(m.parts, 1)[:i+1]
	p := &m.parts[i] // with the memory of an earlier file's part
	p.off = off
	p.data = slices.Grow(p.data[:0], int(n))[:n]
	m.sum += n
	got, err := m.r.ReadAt(p.data, off)
	if got == len(p.data) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("truncated: the file was said to have %d bytes, and ends at %d: %w", m.size, off+int64(got), io.ErrUnexpectedEOF)
	}
	return err
}

// An extent is the bytes from off to end.
type extent struct{ off, end int64 }

// load reads extents in as few pieces as is sensible; those of them that lie
// within near bytes of each other are one piece. It sorts extents.
func (m *image) load(extents []extent, near int64) error {
	slices.SortFunc(extents, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
	for len(extents) > 0 {
		one := extents[0]
		extents = extents[1:]
		if _, ok := m.have(one.off, one.end-one.off); ok {
			continue
		}
		for len(extents) > 0 && extents[0].off <= one.end+near {
			one.end = max(one.end, extents[0].end)
			extents = extents[1:]
		}
		if _, err := m.at(one.off, one.end-one.off); err != nil {
			return err
		}
	}
	return nil
}
