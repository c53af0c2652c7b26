// Package debtest makes Debian packages and repositories for tests, good ones and
// others.
package debtest

import (
	"archive/tar"
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"fmt"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"overmount/internal/testenv"
)

// When is the time of modification of all files.
var When = time.Date(2023, 2, 10, 12, 0, 0, 0, time.UTC)

// Tar returns an archive with the entries. What an entry lacks gets a value:
// directories end in a slash, symlinks have a Linkname, the rest is regular, with
// Content of that name.
func Tar(tb testing.TB, entries ...Entry) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.header()
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write([]byte(e.Content))
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// An Entry is one of a tar archive.
type Entry struct {
	Name, Content, Link string
	Mode                int64
	Type                byte
}

func (e Entry) header() *tar.Header {
	h := &tar.Header{Name: e.Name, Linkname: e.Link, Mode: e.Mode, Typeflag: e.Type, ModTime: When, Format: tar.FormatGNU}
	mode := int64(0o644)
	switch {
	case h.Typeflag != 0:
	case strings.HasSuffix(e.Name, "/"):
		h.Typeflag, mode = tar.TypeDir, 0o755
	case e.Link != "":
		h.Typeflag, mode = tar.TypeSymlink, 0o777
	default:
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = mode
	}
	if h.Typeflag == tar.TypeReg {
		h.Size = int64(len(e.Content))
	}
	return h
}

// Compress compresses data in the way that a suffix stands for: .gz, .xz, .zst,
// .lzma, .bz2, for which it needs bzip2, or none.
func Compress(tb testing.TB, suffix string, data []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	var w interface {
		Write([]byte) (int, error)
		Close() error
	}
	var err error
	switch suffix {
	case "":
		return data
	case ".gz":
		w = gzip.NewWriter(&b)
	case ".xz":
		w, err = xz.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	case ".lzma":
		w, err = lzma.NewWriter(&b)
	case ".bz2":
		return bzip2(tb, data)
	default:
		tb.Fatalf("there is no compression called %q", suffix)
	}
	if err != nil {
		tb.Fatal(err)
	}
	w.Write(data)
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// bzip2 runs the program: Go can only decompress.
func bzip2(tb testing.TB, data []byte) []byte {
	tb.Helper()
	cmd := exec.Command(testenv.Tool(tb, "bzip2"), "-c")
	cmd.Stdin = bytes.NewReader(data)
	packed, err := cmd.Output()
	if err != nil {
		tb.Fatalf("bzip2: %v", err)
	}
	return packed
}

// A Member is one of an archive of ar.
type Member struct {
	Name string
	Data []byte
}

// Ar returns an archive of ar.
func Ar(members ...Member) []byte {
	b := bytes.NewBufferString("!<arch>\n")
	for _, m := range members {
		fmt.Fprintf(b, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", m.Name, When.Unix(), 0, 0, 0o100644, len(m.Data))
		b.Write(m.Data)
		if len(m.Data)%2 != 0 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// A Package is one to be made.
type Package struct {
	Name, Version, Arch string // empty: test, 1.0, all
	Fields              string // further ones of control, whole lines
	Suffix              string // of data.tar, and of control.tar where dpkg-deb takes it there
	Files               []Entry
	Sums                string // md5sums; empty means the right ones
}

// Members returns the members of the package.
func (p Package) Members(tb testing.TB) []Member {
	tb.Helper()
	p = p.withDefaults()
	control := Tar(tb, Entry{Name: "./"}, Entry{Name: "./control", Content: p.Control()},
		Entry{Name: "./postinst", Content: "#!/bin/sh\nexit 1\n", Mode: 0o755}, Entry{Name: "./md5sums", Content: p.Sums})
	suffix := p.Suffix
	if suffix == ".bz2" || suffix == ".lzma" {
		suffix = ".gz"
	}
	return []Member{
		{"debian-binary", []byte("2.0\n")},
		{"control.tar" + suffix, Compress(tb, suffix, control)},
		{"data.tar" + p.Suffix, Compress(tb, p.Suffix, Tar(tb, p.Files...))},
	}
}

func (p Package) withDefaults() Package {
	for _, f := range []struct {
		field *string
		value string
	}{{&p.Name, "test"}, {&p.Version, "1.0"}, {&p.Arch, "all"}, {&p.Sums, p.sums()}} {
		if *f.field == "" {
			*f.field = f.value
		}
	}
	return p
}

func (p Package) sums() string {
	var b strings.Builder
	for _, e := range p.Files {
		if e.header().Typeflag == tar.TypeReg {
			fmt.Fprintf(&b, "%x  %s\n", md5.Sum([]byte(e.Content)), strings.TrimPrefix(e.Name, "./"))
		}
	}
	return b.String()
}

// Control returns the fields of the package.
func (p Package) Control() string {
	p = p.withDefaults()
	return fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\n%sDescription: made for tests\n of more than a line\n .\n", p.Name, p.Version, p.Arch, p.Fields)
}

// Bytes returns the file of the package.
func (p Package) Bytes(tb testing.TB) []byte {
	tb.Helper()
	return Ar(p.Members(tb)...)
}

// File returns the name of the file of the package.
func (p Package) File() string {
	p = p.withDefaults()
	return fmt.Sprintf("%s_%s_%s.deb", p.Name, strings.ReplaceAll(p.Version, ":", "%3a"), p.Arch)
}

// A Repository is one to be made.
type Repository struct {
	Suite, Arch string // the only suite and architecture; its component is main
	Fields      string // further ones of Release, whole lines
	Suffix      string // of the index
	Packages    []Package
	Contents    bool // with indexes of the files in packages, which have Suffix
	// Sign returns a text clear-signed.
	Sign func(text []byte) []byte
	// Detached, in place of Sign, returns the signature of a text, for Release.gpg.
	Detached func(text []byte) []byte
	// ByHash is that the index is found by its hash, and at its own name there is
	// one of another time.
	ByHash bool
}

// Files returns the files of the repository by path.
func (r Repository) Files(tb testing.TB) map[string][]byte {
	tb.Helper()
	files := map[string][]byte{}
	var index strings.Builder
	for _, p := range r.Packages {
		name, data := "pool/main/"+p.File(), p.Bytes(tb)
		files[name] = data
		fmt.Fprintf(&index, "%sFilename: %s\nSize: %d\nSHA256: %x\n\n", p.Control(), name, len(data), sha256.Sum256(data))
	}
	plain := "main/binary-" + r.Arch + "/Packages"
	listed := map[string][]byte{plain: []byte(index.String())}
	listed[plain+r.Suffix] = Compress(tb, r.Suffix, []byte(index.String()))
	have := []string{plain}
	if r.Contents {
		for _, arch := range []string{"all", r.Arch} {
			name := "main/Contents-" + arch
			listed[name] = r.contents(arch)
			listed[name+r.Suffix] = Compress(tb, r.Suffix, listed[name])
			have = append(have, name)
		}
	}
	if r.ByHash {
		r.Fields += "Acquire-By-Hash: yes\n"
	}
	var release strings.Builder
	fmt.Fprintf(&release, "Origin: test\nSuite: stable\nCodename: %s\nArchitectures: all %s\nComponents: main\n%sSHA256:\n", r.Suite, r.Arch, r.Fields)
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		fmt.Fprintf(&release, " %x %d %s\n", sha256.Sum256(listed[name]), len(listed[name]), name)
	}
	dir := "dists/" + r.Suite + "/"
	for _, name := range have {
		data := listed[name+r.Suffix]
		files[dir+name+r.Suffix] = data
		if r.ByHash {
			files[dir+path.Dir(name)+fmt.Sprintf("/by-hash/SHA256/%x", sha256.Sum256(data))] = data
			files[dir+name+r.Suffix] = Compress(tb, r.Suffix, []byte("Package: of-another-time\n"))
		}
	}
	if r.Detached != nil {
		files[dir+"Release"] = []byte(release.String())
		files[dir+"Release.gpg"] = r.Detached(files[dir+"Release"])
	} else {
		files[dir+"InRelease"] = r.Sign([]byte(release.String()))
	}
	return files
}

// contents is the index of the files in packages of an architecture.
func (r Repository) contents(arch string) []byte {
	owners := map[string][]string{}
	for _, p := range r.Packages {
		if p = p.withDefaults(); p.Arch != arch {
			continue
		}
		for _, e := range p.Files {
			if name := strings.TrimPrefix(e.Name, "./"); e.header().Typeflag != tar.TypeDir {
				owners[name] = append(owners[name], "non-free-firmware/kernel/"+p.Name)
			}
		}
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(owners)) {
		fmt.Fprintf(&b, "%-40s %s\n", name, strings.Join(owners[name], ","))
	}
	return []byte(b.String())
}
