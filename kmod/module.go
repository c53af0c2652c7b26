package kmod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
)

// A Module is what a module file says of itself.
type Module struct {
	// Compression is that of the file's content, whatever its name says.
	Compression Compression
	// Class is 32 or 64, the width of the machine's addresses.
	Class int
	// ByteOrder is that of the machine.
	ByteOrder binary.ByteOrder

	// Info is the section .modinfo, in its order.
	Info Info

	// Exports are the symbols that other modules may use, in the order of the
	// symbol table: those with a symbol __crc_NAME, or, if there is none of
	// these, all of the section __ksymtab_strings, of which no CRC is known.
	Exports []Symbol

	// Needs are the symbols that others must export, each once: the undefined
	// ones in the order of the symbol table, then those that only the section
	// __versions names. A leading dot is dropped, as depmod does before it looks
	// a symbol up: ppc64 calls the code of a function f ".f". Names of Exports
	// are as they stand.
	Needs []Symbol

	// Signature is nil if the module is not signed.
	Signature *Signature

	// Warnings say why a kernel would not load the file although it can be read.
	Warnings []string
}

// A Symbol is a name that one module exports and others need.
type Symbol struct {
	Name string
	// CRC stands for the type of the symbol, if HasCRC. Of a 64-bit module's
	// needs it has 64 bits, of which kernels use 32.
	CRC    uint64
	HasCRC bool
	// Weak is set for a need without which the module loads, too.
	Weak bool
}

const (
	// maxPlain bounds the length in bytes of a decompressed module, of a
	// compressed one, and of what is read of a plain one. Modules of Linux 6.1
	// have up to 20 MB, with the debugger's data up to about 500 MB.
	maxPlain = 512 << 20

	// maxStrings bounds the length in bytes of the sections .modinfo and
	// __ksymtab_strings. Real ones have up to about 100 kB.
	maxStrings = 16 << 20

	// maxName bounds the length in bytes of a symbol's name. The kernel takes up
	// to 511 since Linux 6.1.
	maxName = 4096

	// keepBuffers is the length in bytes up to which buffers are kept for the
	// next module.
	keepBuffers = 32 << 20
)

// ReadModule reads a module from a file of size bytes: a relocatable ELF object
// of any class and byte order, plain or compressed with gzip, xz or zstd, which
// the first bytes tell. Of a plain file it reads only what it needs, in up to
// five pieces; short files at once.
//
// ReadModule returns an error for a file that is not a module, is damaged, or
// ends early. The error says what is wrong and leaves it to the caller to name
// the file. A file whose plain form has over 512 MiB is an error, too. The
// memory needed beside the plain form is in proportion to what the module says.
//
// Concurrent use is safe if r allows it.
func ReadModule(r io.ReaderAt, size int64) (*Module, error) {
	if size < 0 {
		return nil, fmt.Errorf("a file of %d bytes", size)
	}
	b := buffersPool.Get().(*buffers)
	defer b.release()
	im := &b.image
	im.open(r, size)
	head, err := im.at(0, min(size, elfHeaderLen))
	if err != nil {
		return nil, err
	}
	m := &Module{Compression: compressionOf(head)}
	if m.Compression != None {
		if err := b.decompress(m); err != nil {
			return nil, err
		}
	}
	e := elf{image: im, sections: b.sections[:0], found: b.found[:0], names: b.names[:0]}
	err = e.read(m)
	b.sections, b.found, b.names = e.sections, e.found, e.names
	if err != nil {
		return nil, err
	}
	return m, nil
}

// ReadModuleFile reads the module in a file of fsys, which should be an
// io.ReaderAt, as those of os.DirFS are; others are read whole. It also returns
// what the file system says of the file. Errors are those of ReadModule and of
// fsys, none of which needs to name the file.
func ReadModuleFile(fsys fs.FS, name string) (*Module, fs.FileInfo, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("it is not a regular file")
	}
	r, ok := f.(io.ReaderAt)
	size := info.Size()
	if !ok {
		data, err := io.ReadAll(io.LimitReader(f, maxPlain+1))
		if err != nil {
			return nil, nil, err
		}
		r, size = bytes.NewReader(data), int64(len(data))
	}
	m, err := ReadModule(r, size)
	return m, info, err
}

// buffers are what reading a module needs, and nothing that a Module keeps.
type buffers struct {
	image    image
	sections []section
	found    []found
	names    []byte
	plain    []byte
}

var buffersPool = sync.Pool{New: func() any { return new(buffers) }}

func (b *buffers) release() {
	b.image.close()
	b.plain, b.names = kept(b.plain), kept(b.names)
	buffersPool.Put(b)
}

// kept returns the buffer emptied, or nothing if it is too long to keep.
func kept(b []byte) []byte {
	if cap(b) > keepBuffers {
		return nil
	}
	return b[:0]
}

// decompress makes the plain form of the file the image.
func (b *buffers) decompress(m *Module) error {
	im := &b.image
	compressed, err := im.at(0, im.size)
	if err != nil {
		return err
	}
	plain, warnings, err := m.Compression.decompress(b.plain[:0], compressed)
	if err != nil {
		return err
	}
	b.plain, m.Warnings = plain, warnings
	im.close()
	im.openPlain(plain)
	return nil
}
