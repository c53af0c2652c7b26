// Package kmodtest writes kernel modules for tests: small relocatable ELF
// objects of either class and byte order, with the sections that depmod,
// modprobe and modinfo read, and nothing that would run.
//
//	kmodtest.Write(t, dir, "kernel/net/foo.ko.zst", kmodtest.Module{
//		Info:    []string{"alias=net-pf-99", "license=GPL"},
//		Exports: []string{"foo_register"},
//		Needs:   []string{"bar_open"},
//	})
//
// Where a case is a txtar file, [Parse] reads a module from its text. The same
// Module gives the same bytes.
package kmodtest

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"overmount/kmod"
)

// A Module describes a module to write. The zero value is a 64-bit little-endian
// one that says nothing.
type Module struct {
	Class   int              // 64 or 32; 0 is 64
	Order   binary.ByteOrder // nil is little-endian
	Machine uint16           // of the ELF header; 0 is x86 of the class

	Info []string // .modinfo: key=value

	Exports     []string
	NoCRC       bool // no __crc_ symbols, as without CONFIG_MODVERSIONS
	AbsoluteCRC bool // __crc_ symbols are absolute instead of in __kcrctab

	Needs     []string      // undefined symbols
	WeakNeeds []string      // weak ones, behind them
	Versions  []kmod.Symbol // __versions; see the function Versions

	Text   int    // bytes of .text, all zero
	Signer string // if not empty, a signature, which no key verifies, is appended
}

// CRC returns the CRC of a symbol that modules of this package export.
func CRC(symbol string) uint32 { return crc32.ChecksumIEEE([]byte(symbol)) }

// Versions returns records for __versions that agree with what exports say.
func Versions(symbols ...string) []kmod.Symbol {
	var all []kmod.Symbol
	for _, s := range symbols {
		all = append(all, kmod.Symbol{Name: s, CRC: uint64(CRC(s)), HasCRC: true})
	}
	return all
}

// Parse reads a Module from lines. Those with a = before any space are fields of
// .modinfo; the others are
//
//	export NAME…    need NAME…    weak NAME…    version NAME…
//	class 32    order big    text 1000    signer NAME    nocrc    absolutecrc
//
// Empty lines, and those that begin with #, say nothing.
func Parse(text string) (Module, error) {
	var m Module
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		word, rest, _ := strings.Cut(line, " ")
		names := strings.Fields(rest)
		var err error
		switch {
		case line == "" || line[0] == '#':
		case strings.Contains(word, "="):
			m.Info = append(m.Info, line)
		case word == "export":
			m.Exports = append(m.Exports, names...)
		case word == "need":
			m.Needs = append(m.Needs, names...)
		case word == "weak":
			m.WeakNeeds = append(m.WeakNeeds, names...)
		case word == "version":
			m.Versions = append(m.Versions, Versions(names...)...)
		case word == "class":
			_, err = fmt.Sscan(rest, &m.Class)
		case line == "order big":
			m.Order = binary.BigEndian
		case word == "text":
			_, err = fmt.Sscan(rest, &m.Text)
		case word == "signer":
			m.Signer = rest
		case word == "nocrc":
			m.NoCRC = true
		case word == "absolutecrc":
			m.AbsoluteCRC = true
		default:
			err = fmt.Errorf("unknown line")
		}
		if err != nil {
			return Module{}, fmt.Errorf("%q: %w", line, err)
		}
	}
	return m, nil
}

// Write writes the module to a file below dir, whose directories it makes,
// compressed as the suffix of its name says.
func Write(tb testing.TB, dir, name string, m Module) {
	tb.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, Compress(tb, kmod.Suffix(name), m.Bytes()), 0o644); err != nil {
		tb.Fatal(err)
	}
}

// WriteText writes the module that a text tells of; see [Parse] and [Write].
func WriteText(tb testing.TB, dir, name, text string) {
	tb.Helper()
	m, err := Parse(text)
	if err != nil {
		tb.Fatalf("module %s: %v", name, err)
	}
	Write(tb, dir, name, m)
}

// WriteOrder writes what a kernel's build leaves beside its modules: modules.order,
// with the names in it, and, with nothing in them, modules.builtin and
// modules.builtin.modinfo.
func WriteOrder(tb testing.TB, dir string, names ...string) {
	tb.Helper()
	var order strings.Builder
	for _, name := range names {
		fmt.Fprintln(&order, name)
	}
	for name, text := range map[string]string{"modules.order": order.String(), "modules.builtin": "", "modules.builtin.modinfo": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
}

// Compress compresses data as the suffix of a module's name says: .ko, .ko.gz,
// .ko.xz or .ko.zst.
func Compress(tb testing.TB, suffix string, data []byte) []byte {
	tb.Helper()
	switch suffix {
	case ".ko":
		return data
	case ".ko.gz":
		return Gzip(tb, data)
	case ".ko.xz":
		return XZ(tb, data)
	case ".ko.zst":
		return Zstd(tb, data)
	}
	tb.Fatalf("no module has the suffix %q", suffix)
	return nil
}

// Gzip compresses data.
func Gzip(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// XZ compresses data as the kernel's build does, with CRC32 and a dictionary of
// 1 MiB.
func XZ(tb testing.TB, data []byte) []byte {
	tb.Helper()
	return XZConfig(tb, xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20}, data)
}

// XZConfig compresses data as c says.
func XZConfig(tb testing.TB, c xz.WriterConfig, data []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := c.NewWriter(&b)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// Zstd compresses data into one frame that states its length.
func Zstd(tb testing.TB, data []byte) []byte {
	tb.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(true))
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// Bytes returns the module's file. It panics for a Class that is neither 32 nor
// 64, and for a name too long for __versions.
func (m Module) Bytes() []byte {
	if m.Order == nil {
		m.Order = binary.LittleEndian
	}
	if m.Class == 0 {
		m.Class = 64
	}
	if m.Class != 32 && m.Class != 64 {
		panic(fmt.Sprintf("kmodtest: class %d", m.Class))
	}
	w := writer{Module: m, order: m.Order.(binary.AppendByteOrder), wide: m.Class == 64}
	return w.write()
}

// Numbers of the ELF specification.
const (
	typeProgbits = 1
	typeSymtab   = 2
	typeStrtab   = 3
	typeNobits   = 8

	local  = 0
	global = 1
	weak   = 2

	absolute = 0xfff1
)

type writer struct {
	Module
	order binary.AppendByteOrder
	wide  bool

	file     []byte
	headers  []byte // of sections
	count    int    // of sections
	shstrtab []byte
	symtab   []byte
	strtab   []byte
}

func (w *writer) u16(b []byte, v uint16) []byte { return w.order.AppendUint16(b, v) }
func (w *writer) u32(b []byte, v uint32) []byte { return w.order.AppendUint32(b, v) }

// word appends a number of the class's width.
func (w *writer) word(b []byte, v uint64) []byte {
	if w.wide {
		return w.order.AppendUint64(b, v)
	}
	return w.order.AppendUint32(b, uint32(v))
}

// pick returns what belongs to the class.
func (w *writer) pick(narrow, wide int) int {
	if w.wide {
		return wide
	}
	return narrow
}

func (w *writer) write() []byte {
	w.file = make([]byte, w.pick(52, 64))
	w.shstrtab, w.strtab = []byte{0}, []byte{0}
	w.section("", 0, nil)
	w.section(".text", typeProgbits, make([]byte, w.Text))
	w.section(".modinfo", typeProgbits, joined(w.Info))
	if len(w.Exports) > 0 {
		w.section("__ksymtab_strings", typeProgbits, joined(w.Exports))
	}
	w.symbol("", 0, 0, 0)
	if len(w.Exports) > 0 && !w.NoCRC {
		w.crcs()
	}
	if len(w.Versions) > 0 {
		w.section("__versions", typeProgbits, w.versions())
	}
	w.section(".bss", typeNobits, make([]byte, 1<<20))
	for _, name := range w.Exports {
		w.symbol(name, global, 1, 0)
	}
	for _, name := range w.Needs {
		w.symbol(name, global, 0, 0)
	}
	for _, name := range w.WeakNeeds {
		w.symbol(name, weak, 0, 0)
	}
	w.section(".symtab", typeSymtab, w.symtab)
	w.section(".strtab", typeStrtab, w.strtab)
	w.section(".shstrtab", typeStrtab, nil)
	w.header()
	w.file = append(w.file, w.headers...)
	if w.Signer != "" {
		w.sign()
	}
	return w.file
}

// joined returns strings with a NUL behind each.
func joined(all []string) []byte {
	var b []byte
	for _, s := range all {
		b = append(append(b, s...), 0)
	}
	return b
}

// section appends a section's content and its header; of .shstrtab it has the
// content itself, and of .bss none.
func (w *writer) section(name string, kind uint32, content []byte) {
	nameOff := 0
	if name != "" {
		nameOff = len(w.shstrtab)
		w.shstrtab = append(append(w.shstrtab, name...), 0)
	}
	if name == ".shstrtab" {
		content = w.shstrtab
	}
	off := len(w.file)
	if kind != typeNobits {
		w.file = append(w.file, content...)
		for len(w.file)%8 != 0 {
			w.file = append(w.file, 0)
		}
	}
	link, entry := 0, 0
	if kind == typeSymtab {
		link, entry = w.count+1, w.pick(16, 24)
	}
	h := w.headers
	h = w.u32(w.u32(h, uint32(nameOff)), kind)
	h = w.word(w.word(h, 0), 0) // flags, address
	h = w.word(w.word(h, uint64(off)), uint64(len(content)))
	h = w.u32(w.u32(h, uint32(link)), 0)
	h = w.word(w.word(h, 1), uint64(entry)) // alignment
	w.headers = h
	w.count++
}

// symbol appends to the symbol table.
func (w *writer) symbol(name string, binding byte, section uint16, value uint64) {
	nameOff := 0
	if name != "" {
		nameOff = len(w.strtab)
		w.strtab = append(append(w.strtab, name...), 0)
	}
	s := w.u32(w.symtab, uint32(nameOff))
	if w.wide {
		s = w.u16(append(s, binding<<4, 0), section)
		s = w.word(w.word(s, value), 0)
	} else {
		s = w.word(w.word(s, value), 0)
		s = w.u16(append(s, binding<<4, 0), section)
	}
	w.symtab = s
}

func (w *writer) crcs() {
	var table []byte
	for _, name := range w.Exports {
		if w.AbsoluteCRC {
			w.symbol("__crc_"+name, global, absolute, uint64(CRC(name)))
		} else {
			w.symbol("__crc_"+name, local, uint16(w.count), uint64(len(table)))
		}
		table = w.u32(table, CRC(name))
	}
	if !w.AbsoluteCRC {
		w.section("__kcrctab", typeProgbits, table)
	}
}

func (w *writer) versions() []byte {
	const record = 64
	var b []byte
	for _, v := range w.Versions {
		start := len(b)
		b = append(w.word(b, v.CRC), v.Name...)
		if len(b)-start >= record {
			panic("kmodtest: the name is too long for __versions: " + v.Name)
		}
		b = append(b, make([]byte, record-(len(b)-start))...)
	}
	return b
}

func (w *writer) header() {
	const x86, amd64 = 3, 62
	if w.Machine == 0 {
		w.Machine = uint16(w.pick(x86, amd64))
	}
	data := byte(1)
	if w.Order == binary.BigEndian {
		data = 2
	}
	h := make([]byte, 16, 64)
	copy(h, []byte{0x7f, 'E', 'L', 'F', byte(w.pick(1, 2)), data, 1})
	h = w.u32(w.u16(w.u16(h, 1), w.Machine), 1)
	h = w.word(w.word(w.word(h, 0), 0), uint64(len(w.file)))
	h = w.u16(w.u32(h, 0), uint16(w.pick(52, 64)))
	h = w.u16(w.u16(h, 0), 0) // no segments
	h = w.u16(h, uint16(w.pick(40, 64)))
	h = w.u16(w.u16(h, uint16(w.count)), uint16(w.count-1))
	copy(w.file, h)
}

// sign appends a signature like that of the kernel's build.
func (w *writer) sign() {
	signature := PKCS7(w.Signer, []byte{1, 2, 3}, bytes.Repeat([]byte{0xab, 0xcd}, 16))
	w.file = AppendSignature(w.file, signature)
}

// AppendSignature appends PKCS#7 bytes to a module as its signature.
func AppendSignature(module, pkcs7 []byte) []byte {
	module = append(module, pkcs7...)
	module = append(module, 0, 0, 2, 0, 0, 0, 0, 0)
	module = binary.BigEndian.AppendUint32(module, uint32(len(pkcs7)))
	return append(module, "~Module signature appended~\n"...)
}

// PKCS7 returns a SignedData that says that signer signed something with
// SHA-256. serial is the positive number of the signer's certificate.
func PKCS7(signer string, serial, signature []byte) []byte {
	var (
		signedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
		dataOID    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
		rsa        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
		sha256     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
		common     = asn1.ObjectIdentifier{2, 5, 4, 3}
	)
	algorithm := func(oid asn1.ObjectIdentifier) func(*cryptobyte.Builder) {
		return func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oid) }
	}
	issuer := func(b *cryptobyte.Builder) {
		b.AddASN1(der.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(common)
				b.AddASN1(der.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(signer)) })
			})
		})
	}
	signerInfo := func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, issuer)
			b.AddASN1(der.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial) })
		})
		b.AddASN1(der.SEQUENCE, algorithm(sha256))
		b.AddASN1(der.SEQUENCE, algorithm(rsa))
		b.AddASN1OctetString(signature)
	}
	zero := der.Tag(0).ContextSpecific().Constructed()
	var b cryptobyte.Builder
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(signedData)
		b.AddASN1(zero, func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(der.SET, func(b *cryptobyte.Builder) { b.AddASN1(der.SEQUENCE, algorithm(sha256)) })
				b.AddASN1(der.SEQUENCE, algorithm(dataOID))
				b.AddASN1(der.SET, func(b *cryptobyte.Builder) { b.AddASN1(der.SEQUENCE, signerInfo) })
			})
		})
	})
	return b.BytesOrPanic()
}
