package apk

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"overmount/apk/apktest"
	"overmount/archive"
	"overmount/archive/archivetest"
)

// FuzzIndex holds that any text either is refused or gives packages with names
// that can be those of files, and that selecting from them ends.
func FuzzIndex(f *testing.F) {
	p := apktest.Package{Name: "a", Depends: []string{"b=1.0-r0", "!c", "so:x>=1", "d~1.2_rc3"}, Provides: []string{"e=1", "b"}}
	f.Add(p.Record(nil, 10) + apktest.Package{Name: "b", Origin: "a"}.Record(nil, 5))
	f.Add("C:Q1\nP:x\n\n\nV:1")
	f.Fuzz(func(t *testing.T, text string) {
		x, err := parseIndex([]byte(text))
		if err != nil {
			return
		}
		checkNames(t, x)
		if sel, err := x.Select("*"); err == nil && len(sel.Packages) == 0 {
			t.Error("nothing was selected, without an error")
		}
	})
}

// checkNames holds that every package of an index is a file beside it.
func checkNames(t *testing.T, x *Index) {
	t.Helper()
	for _, p := range x.Packages {
		if name := p.String() + ".apk"; !fs.ValidPath(name) || strings.Contains(name, "/") {
			t.Errorf("a package named %q", name)
		}
	}
}

// FuzzIndexTar holds the same for what a trusted index file unpacks to.
func FuzzIndexTar(f *testing.F) {
	record := apktest.Package{Name: "a"}.Record(nil, 10)
	f.Add(apktest.Segment(f, apktest.Entry{Name: "DESCRIPTION", Content: []byte("v3")}, apktest.Entry{Name: "APKINDEX", Content: []byte(record)}))
	f.Add(apktest.Segment(f, apktest.Entry{Name: "./APKINDEX", Content: []byte(strings.Replace(record, "P:a", "P:../a", 1))}))
	f.Fuzz(func(t *testing.T, plain []byte) {
		if x, err := parseTar(plain); err == nil {
			checkNames(t, x)
		}
	})
}

// FuzzFile holds that no file makes a reader panic or hang, and that nothing
// without a signature is taken.
func FuzzFile(f *testing.F) {
	p := apktest.Package{Name: "p", Files: []apktest.Entry{{Name: "a", Content: []byte("a")}}, Signer: apktest.NewSigner(f, "k", crypto.SHA256)}
	file := p.Build(f)
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add(apktest.Index(f, p.Signer, p.Record(nil, 1)))
	f.Fuzz(func(t *testing.T, file []byte) {
		if _, err := readIndex(file, nil); err == nil {
			t.Error("an index was taken without a key")
		}
		_, out := newPackage(t)
		if _, err := (want{}).read(bytes.NewReader(file), out); err == nil {
			t.Error("a package was taken without a key")
		}
		if h, err := readHead(bufio.NewReader(bytes.NewReader(file)), maxControl); err == nil {
			_, _ = readInfo(h.tar)
		}
	})
}

// FuzzPackage holds that a package that is trusted, whatever is in it, does not
// panic or hang, and that no path of what it unpacks to leaves the root.
func FuzzPackage(f *testing.F) {
	p := apktest.Package{Name: "p", Files: []apktest.Entry{{Name: "lib/"}, {Name: "lib/a", Content: []byte("abc")}, {Name: "b", Symlink: "/lib/a"}, {Name: "c", Hard: "lib/a"}}}
	_, _, data := p.Members(f)
	_, plain, err := readMember(bufio.NewReader(bytes.NewReader(data)), maxControl)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("pkgname = p\npkgver = 1\nsize = 3\nreplaces = q<2\n", plain)
	for _, name := range []string{"/etc/x", "../x", "a/../../x", "lib//x"} {
		f.Add("pkgname = p\npkgver = 1\n", apktest.Segment(f, apktest.Entry{Name: name}, apktest.Entry{Name: "l", Symlink: name}, apktest.Entry{Name: "h", Hard: name}))
	}
	f.Add("pkgname = p\npkgver = 1\n", apktest.Segment(f, apktest.Entry{Name: "l", Symlink: "/etc"}, apktest.Entry{Name: "l/x"}))
	f.Fuzz(func(t *testing.T, info string, plain []byte) {
		data := apktest.Gzip(t, plain)
		info += fmt.Sprintf("\ndatahash = %x\n", sha256.Sum256(data))
		control := apktest.Gzip(t, apktest.Segment(t, apktest.Entry{Name: ".PKGINFO", Content: []byte(info)}))
		sum := sha1.Sum(control)
		spool, out := newPackage(t)
		w := want{index: &Package{Name: "p", Version: "1", Checksum: "Q1" + base64.StdEncoding.EncodeToString(sum[:])}}
		u, err := w.read(bytes.NewReader(append(control, data...)), out)
		if err != nil {
			return
		}
		if u.Name != "p" || u.Files > len(plain)/512 {
			t.Errorf("package %s with %d files of %d bytes of tar", u.Name, u.Files, len(plain))
		}
		tree, err := spool.Tree([]*archive.Package{out}, nil)
		if err != nil {
			t.Fatal(err)
		}
		archivetest.InRoot(t, tree)
	})
}

func newPackage(t testing.TB) (*archive.Spool, *archive.Package) {
	t.Helper()
	s, err := archive.NewSpool(&archive.Options{Dir: t.TempDir(), MaxBytes: 1 << 20, MaxFiles: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, s.Package("p")
}
