// Package apktest makes packages and repositories of Alpine for tests, in the true
// format, as abuild and "apk index" make them.
package apktest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	_ "crypto/sha512" // for crypto.SHA512
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Built is the time of everything in the packages.
var Built = time.Unix(1_750_000_000, 0)

// A Signer signs with a key of its own. The hash is SHA-1, SHA-256 or SHA-512.
type Signer struct {
	Name string // of the file with the public key
	Hash crypto.Hash
	Key  *rsa.PrivateKey
}

// NewSigner makes a key.
func NewSigner(tb testing.TB, name string, hash crypto.Hash) *Signer {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	return &Signer{name, hash, key}
}

// Public returns the public key as in /etc/apk/keys.
func (s *Signer) Public(tb testing.TB) []byte {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(&s.Key.PublicKey)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// Member returns the signature member for the member that follows it. That of a
// nil Signer is empty.
func (s *Signer) Member(tb testing.TB, next []byte) []byte {
	tb.Helper()
	if s == nil {
		return nil
	}
	h := s.Hash.New()
	h.Write(next)
	sig, err := rsa.SignPKCS1v15(nil, s.Key, s.Hash, h.Sum(nil))
	if err != nil {
		tb.Fatal(err)
	}
	alg := map[crypto.Hash]string{crypto.SHA1: "RSA", crypto.SHA256: "RSA256", crypto.SHA512: "RSA512"}[s.Hash]
	return Gzip(tb, Segment(tb, Entry{Name: ".SIGN." + alg + "." + s.Name, Content: sig}))
}

// An Entry is a file of a package. With neither content nor target, a name that
// ends in a slash is a directory.
type Entry struct {
	Name    string
	Content []byte
	Symlink string // the target
	Hard    string // the earlier file
	Mode    int64  // 0 means 0644, or 0755 for a directory

	// Header, if set, changes the header before it is written.
	Header func(h *tar.Header)
}

func (e Entry) header(checksums bool) *tar.Header {
	h := &tar.Header{Name: e.Name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.Content)), ModTime: Built, Uname: "root", Gname: "root", Format: tar.FormatPAX}
	sum := sha1.Sum(e.Content)
	switch {
	case strings.HasSuffix(e.Name, "/"):
		h.Typeflag, h.Mode, checksums = tar.TypeDir, 0o755, false
	case e.Symlink != "":
		h.Typeflag, h.Mode, h.Linkname = tar.TypeSymlink, 0o777, e.Symlink
		sum = sha1.Sum([]byte(e.Symlink))
	case e.Hard != "":
		h.Typeflag, h.Linkname, checksums = tar.TypeLink, e.Hard, false
	}
	if checksums {
		h.PAXRecords = map[string]string{"APK-TOOLS.checksum.SHA1": hex.EncodeToString(sum[:])}
	}
	if e.Mode != 0 {
		h.Mode = e.Mode
	}
	if e.Header != nil {
		e.Header(h)
	}
	return h
}

// Segment returns a tar archive without its end.
func Segment(tb testing.TB, entries ...Entry) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	write(tb, w, entries, false)
	if err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func write(tb testing.TB, w *tar.Writer, entries []Entry, checksums bool) {
	tb.Helper()
	for _, e := range entries {
		if err := w.WriteHeader(e.header(checksums)); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(e.Content); err != nil {
			tb.Fatal(err)
		}
	}
}

// Gzip returns a gzip member.
func Gzip(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// A Package is one to be made. Version and Arch have defaults, Origin is the name.
type Package struct {
	Name, Version, Arch, Origin string
	Depends, Provides           []string
	Replaces                    []string
	ReplacesPriority            int
	Files                       []Entry
	Signer                      *Signer
}

func (p Package) withDefaults() Package {
	for field, value := range map[*string]string{&p.Version: "1.0-r0", &p.Arch: "x86_64", &p.Origin: p.Name} {
		if *field == "" {
			*field = value
		}
	}
	return p
}

// File returns the name of the package's file.
func (p Package) File() string {
	p = p.withDefaults()
	return p.Name + "-" + p.Version + ".apk"
}

// Members returns the three members, of which the first is empty without a
// Signer.
func (p Package) Members(tb testing.TB) (signature, control, data []byte) {
	tb.Helper()
	p = p.withDefaults()
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	write(tb, w, p.Files, true)
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	data = Gzip(tb, content.Bytes())
	control = p.Control(tb, sha256.Sum256(data))
	return p.Signer.Member(tb, control), control, data
}

// Control returns a control member for data with that hash.
func (p Package) Control(tb testing.TB, datahash [sha256.Size]byte) []byte {
	tb.Helper()
	p = p.withDefaults()
	var b strings.Builder
	fmt.Fprintf(&b, "# Generated for a test\npkgname = %s\npkgver = %s\npkgdesc = made for a test\nbuilddate = %d\nsize = %d\narch = %s\norigin = %s\n",
		p.Name, p.Version, Built.Unix(), p.size(), p.Arch, p.Origin)
	repeat(&b, "depend", p.Depends)
	repeat(&b, "provides", p.Provides)
	repeat(&b, "replaces", p.Replaces)
	if p.ReplacesPriority != 0 {
		fmt.Fprintf(&b, "replaces_priority = %d\n", p.ReplacesPriority)
	}
	fmt.Fprintf(&b, "datahash = %x\n", datahash)
	return Gzip(tb, Segment(tb, Entry{Name: ".PKGINFO", Content: []byte(b.String())}, Entry{Name: ".post-install", Content: []byte("#!/bin/sh\nexit 1\n"), Mode: 0o755}))
}

func repeat(b *strings.Builder, key string, values []string) {
	for _, value := range values {
		fmt.Fprintf(b, "%s = %s\n", key, value)
	}
}

func (p Package) size() int {
	n := 0
	for _, e := range p.Files {
		n += len(e.Content)
	}
	return n
}

// Build returns the package as a file.
func (p Package) Build(tb testing.TB) []byte {
	tb.Helper()
	signature, control, data := p.Members(tb)
	return bytes.Join([][]byte{signature, control, data}, nil)
}

// Record returns the record of an index for a file of the package.
func (p Package) Record(control []byte, size int) string {
	p = p.withDefaults()
	sum := sha1.Sum(control)
	var b strings.Builder
	fmt.Fprintf(&b, "C:Q1%s\nP:%s\nV:%s\nA:x86_64\nS:%d\nI:%d\nT:made for a test\nU:https://example.org\nL:custom\no:%s\nm:Nobody <nobody@example.org>\nt:%d\nc:0123456789abcdef\n",
		base64.StdEncoding.EncodeToString(sum[:]), p.Name, p.Version, size, p.size(), p.Origin, Built.Unix())
	if len(p.Depends) > 0 {
		fmt.Fprintf(&b, "D:%s\n", strings.Join(p.Depends, " "))
	}
	if len(p.Provides) > 0 {
		fmt.Fprintf(&b, "p:%s\n", strings.Join(p.Provides, " "))
	}
	return b.String() + "\n"
}

// Index returns APKINDEX.tar.gz with records.
func Index(tb testing.TB, s *Signer, records ...string) []byte {
	tb.Helper()
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	write(tb, w, []Entry{{Name: "DESCRIPTION", Content: []byte("test-1-g0123456")}, {Name: "APKINDEX", Content: []byte(strings.Join(records, ""))}}, false)
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	member := Gzip(tb, content.Bytes())
	return append(s.Member(tb, member), member...)
}

// Repository writes a repository for the architecture x86_64 into dir: packages,
// and an index that s signs.
func Repository(tb testing.TB, dir string, s *Signer, packages ...Package) {
	tb.Helper()
	dir = filepath.Join(dir, "x86_64")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	var records []string
	for _, p := range packages {
		signature, control, data := p.Members(tb)
		file := bytes.Join([][]byte{signature, control, data}, nil)
		records = append(records, p.Record(control, len(file)))
		Write(tb, filepath.Join(dir, p.File()), file)
	}
	Write(tb, filepath.Join(dir, "APKINDEX.tar.gz"), Index(tb, s, records...))
}

// Write writes a file.
func Write(tb testing.TB, name string, data []byte) {
	tb.Helper()
	if err := os.WriteFile(name, data, 0o644); err != nil {
		tb.Fatal(err)
	}
}
