package apk_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"overmount/apk"
	"overmount/apk/apktest"
	"overmount/archive"
	"overmount/internal/testenv"
)

// mem is a repository in memory.
type mem map[string][]byte

func (m mem) Open(_ context.Context, name string) (io.ReadCloser, error) {
	b, ok := m[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// refusing is a repository on a server that refuses what is not there.
type refusing struct{ mem }

func (m refusing) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	f, err := m.mem.Open(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("the server answers 403 for %s (%w)", name, fs.ErrPermission)
	}
	return f, nil
}

// sha1Signer and the others make each key once for all tests.
var (
	sha1Signer   = onceSigner(crypto.SHA1)
	sha256Signer = onceSigner(crypto.SHA256)
	sha512Signer = onceSigner(crypto.SHA512)
)

func onceSigner(h crypto.Hash) func() *apktest.Signer {
	return sync.OnceValue(func() *apktest.Signer {
		return apktest.NewSigner(&testing.B{}, fmt.Sprintf("test@example.org-%d.rsa.pub", h), h)
	})
}

func keysOf(t testing.TB, signers ...*apktest.Signer) apk.Keys {
	t.Helper()
	keys := apk.Keys{}
	for _, s := range signers {
		if err := keys.Add(s.Name, s.Public(t)); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

const fwVersion = "20260221-r0"

// firmware is packages as those of linux-firmware: 110 folders, a package of loose
// files with links into folders, an empty one, and one that depends on all but
// that.
func firmware(t testing.TB, s *apktest.Signer) []apktest.Package {
	t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	meta := sub("linux-firmware", s)
	packages := []apktest.Package{sub("linux-firmware-none", s)}
	for i := range 110 {
		p := sub(fmt.Sprintf("linux-firmware-f%03d", i), s)
		dir := fmt.Sprintf("lib/firmware/f%03d/", i)
		content := bytes.Repeat([]byte(fmt.Sprintf("firmware %d ", i)), 1+i*i/8)
		p.Files = []apktest.Entry{
			{Name: "lib/"}, {Name: "lib/firmware/"}, {Name: dir}, {Name: dir + "deep/"},
			{Name: dir + "a.bin.zst", Content: enc.EncodeAll(content, nil)},
			{Name: dir + "deep/b.bin", Content: content},
			{Name: dir + "c.bin.zst", Symlink: "a.bin.zst"},
			{Name: dir + "d.bin", Hard: dir + "deep/b.bin"},
			{Name: dir + "next.bin", Symlink: fmt.Sprintf("../f%03d/d.bin", (i+1)%110)},
		}
		packages = append(packages, p)
	}
	other := sub("linux-firmware-other", s)
	other.Depends = []string{"linux-firmware-f007=" + fwVersion}
	other.Files = []apktest.Entry{{Name: "lib/"}, {Name: "lib/firmware/"}, {Name: "lib/firmware/loose.bin", Symlink: "f007/deep/b.bin"}, {Name: "lib/firmware/empty.bin"}}
	packages = append(packages, other)
	for _, p := range packages[1:] {
		meta.Depends = append(meta.Depends, p.Name+"="+fwVersion)
	}
	return append(packages, meta)
}

func sub(name string, s *apktest.Signer) apktest.Package {
	return apktest.Package{Name: name, Version: fwVersion, Arch: "noarch", Origin: "linux-firmware", Provides: []string{"linux-firmware-any"}, Signer: s}
}

func openDir(t testing.TB, dir string, keys apk.Keys) *apk.Repository {
	t.Helper()
	repo, err := apk.Open(t.Context(), apk.Dir(dir), keys, "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func pick(t testing.TB, repo *apk.Repository, patterns ...string) *apk.Selection {
	t.Helper()
	sel, err := repo.Index.Select(patterns...)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

// TestRepository unpacks a repository, and compares with what tar makes of it.
func TestRepository(t *testing.T) {
	tarCmd := testenv.Tool(t, "tar")
	for _, s := range []*apktest.Signer{sha1Signer(), sha256Signer()} {
		dir, byHand := t.TempDir(), t.TempDir()
		apktest.Repository(t, dir, s, firmware(t, s)...)
		repo := openDir(t, dir, keysOf(t, s))
		sel := pick(t, repo, "linux-firmware")
		if len(sel.Packages) != 112 || len(sel.Added) != 111 || len(sel.Left) != 0 {
			t.Fatalf("%v: %d packages, %d added, left %v, want 112, 111, none", s.Hash, len(sel.Packages), len(sel.Added), sel.Left)
		}
		var done int
		tree, err := repo.Unpack(t.Context(), sel.Packages, &apk.Options{Spool: archive.Options{Dir: t.TempDir()}, Done: func(apk.Unpacked) { done++ }})
		if err != nil {
			t.Fatal(err)
		}
		var all bytes.Buffer
		for _, p := range tree.Packages {
			file, err := os.ReadFile(filepath.Join(dir, p.File))
			if err != nil || p.SHA256 != sha256.Sum256(file) || p.Size != int64(len(file)) {
				t.Errorf("%s: SHA-256 %x, size %d: not those of the file (%v)", p.File, p.SHA256, p.Size, err)
			}
			all.Write(file)
		}
		cmd := exec.Command(tarCmd, "-xz", "--ignore-zeros", "--delay-directory-restore", "-C", byHand, "--warning=no-unknown-keyword", "--exclude=.PKGINFO", "--exclude=.SIGN*", "--exclude=.post*")
		cmd.Stdin = &all
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar -x of all packages: %v\n%s", err, out)
		}
		if diff := cmp.Diff(listing(t, os.DirFS(byHand)), listing(t, tree)); diff != "" || done != 112 {
			t.Errorf("%v: unpacked by tar and by us (-want +got):\n%s", s.Hash, diff)
		}
		if got := tree.Owner("lib/firmware/f007/d.bin"); got != "linux-firmware-f007-"+fwVersion {
			t.Errorf("Owner(f007/d.bin) = %s", got)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestServerThatRefuses opens a repository on servers that say 403 for all that is not
// there.
func TestServerThatRefuses(t *testing.T) {
	dir, s := t.TempDir(), sha256Signer()
	apktest.Repository(t, dir, s, apktest.Package{Name: "a", Version: "1-r0"})
	index, err := os.ReadFile(filepath.Join(dir, "x86_64/APKINDEX.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"", "x86_64/"} {
		if _, err := apk.Open(t.Context(), refusing{mem{place + "APKINDEX.tar.gz": index}}, keysOf(t, s), "x86_64"); err != nil {
			t.Errorf("Open of a repository with an index at %q: %v", place, err)
		}
	}
	if _, err := apk.Open(t.Context(), refusing{}, keysOf(t, s), "x86_64"); err == nil || !strings.HasPrefix(err.Error(), "index x86_64/APKINDEX.tar.gz: the server answers 403") {
		t.Errorf("Open where all is refused: %v", err)
	}
}

// listing is a tree as text, by path, without the root.
func listing(t *testing.T, fsys fs.FS) map[string]string {
	t.Helper()
	list := map[string]string{}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%v %d", info.Mode(), info.ModTime().Unix())
		switch info.Mode().Type() {
		case 0:
			b, err := fs.ReadFile(fsys, name)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(b), sha256.Sum256(b))
		case fs.ModeSymlink:
			target, err := fs.ReadLink(fsys, name)
			if err != nil {
				return err
			}
			line += " " + target
		}
		list[name] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// single is a repository of one package, to be changed.
type single struct {
	p                        apktest.Package
	signature, control, data []byte
}

func newSingle(t testing.TB, s *apktest.Signer, files ...apktest.Entry) *single {
	p := apktest.Package{Name: "p", Signer: s, Files: files}
	if files == nil {
		p.Files = []apktest.Entry{{Name: "lib/"}, {Name: "lib/a", Content: bytes.Repeat([]byte("abc"), 1000)}}
	}
	x := &single{p: p}
	x.signature, x.control, x.data = p.Members(t)
	return x
}

func (x *single) file() []byte { return slices.Concat(x.signature, x.control, x.data) }

// TestSHA512 has a package with several signatures, of which one counts.
func TestSHA512(t *testing.T) {
	s, stranger := sha512Signer(), apktest.NewSigner(t, "stranger.rsa.pub", crypto.SHA1)
	x := newSingle(t, s)
	segment := func(member []byte) []byte {
		r, err := gzip.NewReader(bytes.NewReader(member))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	dsa := apktest.Segment(t, apktest.Entry{Name: ".SIGN.DSA." + s.Name, Content: []byte("?")})
	x.signature = apktest.Gzip(t, slices.Concat(segment(stranger.Member(t, x.control)), dsa, segment(x.signature)))
	tree, err := apk.UnpackFiles(t.Context(), mem{"p-1.0-r0.apk": x.file()}, []string{"p-1.0-r0.apk"}, keysOf(t, s), nil)
	if err != nil {
		t.Fatal(err)
	}
	tree.Close()
}

// TestPackageRefused changes what package and index have, and reads the package
// both as one of the index and by itself.
func TestPackageRefused(t *testing.T) {
	s, stranger := sha256Signer(), apktest.NewSigner(t, "stranger.rsa.pub", crypto.SHA256)
	impostor := apktest.NewSigner(t, s.Name, crypto.SHA256)
	evil := apktest.Package{Name: "p", Files: []apktest.Entry{{Name: "lib/evil", Content: []byte("evil")}}}
	// In the index is what the package was before the change, unless the change
	// ends the file with "indexed".
	for name, test := range map[string]struct {
		change         func(x *single) []byte
		indexed, loose string // empty if it is right
	}{
		"as it is":   {func(x *single) []byte { return x.file() }, "", ""},
		"not signed": {func(x *single) []byte { x.signature = nil; return x.file() }, "the index states", "not signed"},
		"re-signed":  {func(x *single) []byte { x.signature = stranger.Member(t, x.control); return x.file() }, "the index states", `signed with "stranger.rsa.pub"`},
		"signed by a mirror": {func(x *single) []byte {
			x.signature = stranger.Member(t, x.control)
			return append(x.file(), "indexed"...)
		}, "", `signed with "stranger.rsa.pub"`},
		"name of ours": {func(x *single) []byte { x.signature = impostor.Member(t, x.control); return x.file() }, "signature with the key test@", "signature with the key test@"},
		"swapped": {func(*single) []byte {
			evil.Signer = stranger
			return evil.Build(t)
		}, "swapped or damaged", "signed with"},
		"swapped control": {func(x *single) []byte {
			_, x.control, _ = evil.Members(t)
			return x.file()
		}, "swapped or damaged", "is wrong"},
		"swapped data": {func(x *single) []byte {
			_, _, x.data = evil.Members(t)
			return x.file()
		}, "data member was swapped", "data member was swapped"},
		"appended byte": {func(x *single) []byte { return append(x.file(), 1) }, "longer than the", "follows the data member"},
		"cut":           {func(x *single) []byte { return x.file()[:len(x.file())-5] }, "truncated", "truncated"},
		"cut data":      {func(x *single) []byte { x.data = nil; return x.file() }, "before the data member", "before the data member"},
		"v3":            {func(*single) []byte { return []byte("ADB.xxxx") }, "apk 3", "apk 3"},
		"other name": {func(x *single) []byte { // a liar of an index
			_, x.control, x.data = apktest.Package{Name: "q"}.Members(t)
			x.signature = s.Member(t, x.control)
			x.p = apktest.Package{Name: "p"}
			return append(x.file(), "indexed"...)
		}, "it is the package q-1.0-r0, not p-1.0-r0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			x := newSingle(t, s)
			control, size := x.control, len(x.file())
			file := test.change(x)
			if b, ok := bytes.CutSuffix(file, []byte("indexed")); ok {
				control, size, file = x.control, len(b), b
			}
			keys := keysOf(t, s)
			repo := mem{"APKINDEX.tar.gz": apktest.Index(t, s, x.p.Record(control, size)), "p-1.0-r0.apk": file}
			r, err := apk.Open(t.Context(), repo, keys, "x86_64")
			if err != nil {
				t.Fatal(err)
			}
			tree, err := r.Unpack(t.Context(), r.Index.Packages, nil)
			refused(t, "of an index", tree, err, test.indexed)
			tree, err = apk.UnpackFiles(t.Context(), repo, []string{"p-1.0-r0.apk"}, keys, nil)
			refused(t, "by itself", tree, err, test.loose)
		})
	}
}

// TestMissing has an index with a package that is not there.
func TestMissing(t *testing.T) {
	s := sha256Signer()
	x := newSingle(t, s)
	r, err := apk.Open(t.Context(), mem{"APKINDEX.tar.gz": apktest.Index(t, s, x.p.Record(x.control, len(x.file())))}, keysOf(t, s), "")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := r.Unpack(t.Context(), r.Index.Packages, nil)
	refused(t, "of an index", tree, err, "the mirror may be half updated")
	tree, err = apk.UnpackFiles(t.Context(), mem{}, []string{"p-1.0-r0.apk"}, keysOf(t, s), nil)
	if refused(t, "by itself", tree, err, "p-1.0-r0.apk"); strings.Contains(err.Error(), "mirror") {
		t.Errorf("by itself: %v, want nothing about mirrors", err)
	}
}

// TestTwice has a package in two files.
func TestTwice(t *testing.T) {
	s := sha256Signer()
	files := mem{"a.apk": apktest.Package{Name: "p", Signer: s}.Build(t), "b.apk": apktest.Package{Name: "p", Version: "2.0-r0", Signer: s}.Build(t)}
	_, err := apk.UnpackFiles(t.Context(), files, []string{"a.apk", "b.apk"}, keysOf(t, s), nil)
	if err == nil || !strings.Contains(err.Error(), "a.apk and b.apk are the same package, p") {
		t.Errorf("UnpackFiles() = %v, want that both are the same package", err)
	}
}

func refused(t *testing.T, what string, tree *apk.Tree, err error, want string) {
	t.Helper()
	switch {
	case tree != nil:
		tree.Close()
		if want != "" {
			t.Errorf("%s: no error, want one with %q", what, want)
		}
	case want == "":
		t.Errorf("%s: %v, want no error", what, err)
	case !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "p-1.0-r0.apk"):
		t.Errorf("%s: %v, want an error with %q and the package", what, err, want)
	}
}

// TestContentRefused is about packages that are signed all right.
func TestContentRefused(t *testing.T) {
	s := sha1Signer()
	header := func(change func(h *tar.Header)) []apktest.Entry {
		return []apktest.Entry{{Name: "x", Content: []byte("x"), Header: change}}
	}
	for want, files := range map[string][]apktest.Entry{
		"absolute":              {{Name: "/etc/passwd", Content: []byte("x")}},
		`has \"..\" in it`:      {{Name: "../etc/passwd", Content: []byte("x")}},
		"below \"lib\"":         {{Name: "lib", Symlink: "/etc"}, {Name: "lib/passwd", Content: []byte("x")}},
		"directory twice":       {{Name: "lib/"}, {Name: "lib/"}},
		"at the path already":   {{Name: "a", Content: []byte("x")}, {Name: "a", Content: []byte("y")}},
		"device":                {{Name: "null", Header: func(h *tar.Header) { h.Typeflag, h.PAXRecords = tar.TypeChar, nil }}},
		"no earlier file":       {{Name: "a", Hard: "/etc/passwd"[1:]}},
		"is not the one":        header(func(h *tar.Header) { h.PAXRecords["APK-TOOLS.checksum.SHA1"] = strings.Repeat("00", 20) }),
		"is no SHA-1":           header(func(h *tar.Header) { h.PAXRecords["APK-TOOLS.checksum.SHA1"] = "00" }),
		"its SHA-1 is not the":  {{Name: "l", Symlink: "a", Header: func(h *tar.Header) { h.Linkname = "b" }}},
		"and .PKGINFO claims 0": {{Name: "p", Content: nil, Header: func(h *tar.Header) { h.Size = 0 }}, {Name: "big", Content: make([]byte, 17<<20)}},
	} {
		x := newSingle(t, s, files...)
		if strings.Contains(want, "claims") {
			x.control = apktest.Package{Name: "p"}.Control(t, sha256.Sum256(x.data))
			x.signature = s.Member(t, x.control)
		}
		tree, err := apk.UnpackFiles(t.Context(), mem{"p-1.0-r0.apk": x.file()}, []string{"p-1.0-r0.apk"}, keysOf(t, s), nil)
		refused(t, fmt.Sprintf("%v", files[0].Name), tree, err, strings.ReplaceAll(want, `\"`, `"`))
	}
}

func TestReplaces(t *testing.T) {
	s := sha1Signer()
	build := func(name, content string, priority int, replaces ...string) apktest.Package {
		return apktest.Package{
			Name: name, Signer: s, Replaces: replaces, ReplacesPriority: priority,
			Files: []apktest.Entry{{Name: "lib/"}, {Name: "lib/" + name}, {Name: "lib/both", Content: []byte(content)}},
		}
	}
	for name, test := range map[string]struct {
		a, b apktest.Package
		want string // empty for a conflict
	}{
		"neither":          {build("a", "A", 0), build("b", "B", 0), ""},
		"the same":         {build("a", "A", 0), build("b", "A", 0), "A"},
		"a":                {build("a", "A", 0, "b"), build("b", "B", 0), "A"},
		"b":                {build("a", "A", 0), build("b", "B", 0, "x a<2"), "B"},
		"not this version": {build("a", "A", 0), build("b", "B", 0, "a<1"), ""},
		"both":             {build("a", "A", 0, "b"), build("b", "B", 0, "a"), ""},
		"both, a more":     {build("a", "A", 2, "b"), build("b", "B", 1, "a"), "A"},
		"both, b more":     {build("a", "A", 2, "b"), build("b", "B", 10, "a"), "B"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			apktest.Repository(t, dir, s, test.a, test.b)
			repo := openDir(t, dir, keysOf(t, s))
			tree, err := repo.Unpack(t.Context(), pick(t, repo, "*").Packages, nil)
			if test.want == "" {
				conflicts, ok := errors.AsType[*archive.ConflictError](err)
				if !ok || len(conflicts.Conflicts) != 1 || conflicts.Conflicts[0].Owners != [2]string{"a-1.0-r0", "b-1.0-r0"} || conflicts.Conflicts[0].Path != "lib/both" {
					t.Fatalf("Unpack() = %v, want a conflict of both over lib/both", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			if got, err := fs.ReadFile(tree, "lib/both"); string(got) != test.want || err != nil {
				t.Errorf("the file of both is %q, %v, want that of %s", got, err, test.want)
			}
		})
	}
}

func TestSelect(t *testing.T) {
	record := func(name, version, origin, depends, provides string) string {
		p := apktest.Package{Name: name, Version: version, Origin: origin, Depends: strings.Fields(depends), Provides: strings.Fields(provides)}
		return p.Record([]byte(name+version), 100)
	}
	s := sha1Signer()
	x, err := apk.ReadIndex(bytes.NewReader(apktest.Index(t, s,
		record("fw", "2-r0", "fw", "fw-a=2-r0 fw-virtual so:libc.so !old", "fw-any=2-r0"),
		record("fw-a", "2-r0", "fw", "fw-b>1 other /bin/sh", ""),
		record("fw-b", "1-r9", "fw", "", ""),
		record("fw-b", "2-r10", "fw", "", "fw-virtual"),
		record("fw-b", "2-r9", "fw", "", ""),
		record("fw-c", "2-r0", "fw", "", "fw-virtual"),
		record("fw-old", "2-r0", "fw", "fw-a=1-r0", ""),
		record("fw-gone", "2-r0", "fw", "fw-nowhere=2-r0", ""),
		record("other", "1-r0", "other", "", ""),
		record("old", "1-r0", "old", "", ""),
	)), keysOf(t, s))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ patterns, packages, added, left, err string }{
		{"fw", "fw-2-r0 fw-a-2-r0 fw-b-2-r10", "fw-a-2-r0 fw-b-2-r10", "/bin/sh other so:libc.so", ""},
		{"fw fw-c", "fw-2-r0 fw-a-2-r0 fw-b-2-r10 fw-c-2-r0", "fw-a-2-r0 fw-b-2-r10", "/bin/sh other so:libc.so", ""},
		{"* !fw-old !fw-gone !old", "fw-2-r0 fw-a-2-r0 fw-b-2-r10 fw-c-2-r0 other-1-r0", "", "/bin/sh so:libc.so", ""},
		{"fw* !fw-old !fw-gone !fw-a", "fw-2-r0 fw-b-2-r10 fw-c-2-r0", "", "fw-a so:libc.so", ""}, // fw depends on it
		{"fw !fw-[bc]", "fw-2-r0 fw-a-2-r0", "fw-a-2-r0", "/bin/sh fw-b fw-virtual other so:libc.so", ""},
		{"fw !fw-b", "fw-2-r0 fw-a-2-r0 fw-c-2-r0", "fw-a-2-r0 fw-c-2-r0", "/bin/sh fw-b other so:libc.so", ""}, // the other that provides fw-virtual
		{"fw !fw-[bc] fw-b", "fw-2-r0 fw-a-2-r0 fw-b-2-r10", "fw-a-2-r0", "/bin/sh other so:libc.so", ""},
		{"fw-gone !fw-old fw-c", "", "", "", "the index does not have it"},
		{"!fw-a fw*", "", "", "", `"!fw-a" takes away from the names before it`},
		{"fw-[bc]", "fw-b-2-r10 fw-c-2-r0", "", "", ""},
		{"fw-old", "", "", "", "fw-old-2-r0 depends on \"fw-a=1-r0\": the index has version 2-r0"},
		{"fw-gone", "", "", "", "the index does not have it"},
		{"fw old", "", "", "", "fw-2-r0 and old-1-r0 exclude each other"},
		{"fw nothing*", "", "", "", `matches "nothing*"`},
		{"[", "", "", "", "pattern"},
		{"", "", "", "", "no package is selected"},
		{"old !old", "", "", "", "no package is selected"},
	} {
		sel, err := x.Select(strings.Fields(test.patterns)...)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("Select(%s) = %v, want an error with %q", test.patterns, err, test.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("Select(%s): %v", test.patterns, err)
			continue
		}
		if got := fmt.Sprint(sel.Packages, sel.Added, sel.Left); got != fmt.Sprintf("[%s] [%s] [%s]", test.packages, test.added, test.left) {
			t.Errorf("Select(%s) = %s, want packages %s, added %s, left %s", test.patterns, got, test.packages, test.added, test.left)
		}
	}
}

func TestOpenRefused(t *testing.T) {
	s := sha1Signer()
	index := apktest.Index(t, s, apktest.Package{Name: "p"}.Record(nil, 1))
	for name, test := range map[string]struct {
		repo mem
		keys apk.Keys
		arch string
		want string
	}{
		"no key":     {mem{"APKINDEX.tar.gz": index}, nil, "", "alpine-keys"},
		"other keys": {mem{"APKINDEX.tar.gz": index}, alpineKeys(t), "", "signed with \"" + s.Name},
		"nothing":    {mem{}, keysOf(t, s), "x86_64", "neither x86_64/APKINDEX.tar.gz nor APKINDEX.tar.gz"},
		"v3":         {mem{"x86_64/Packages.adb": nil}, keysOf(t, s), "x86_64", "apk 3"},
		"bad arch":   {mem{"APKINDEX.tar.gz": index}, keysOf(t, s), "../x", "architecture"},
		"bad name": {mem{"APKINDEX.tar.gz": apktest.Index(t, s, apktest.Package{Name: "../p"}.Record(nil, 1))},
			keysOf(t, s), "", "line 14: \"../p\" is no name of a package"},
	} {
		_, err := apk.Open(t.Context(), test.repo, test.keys, test.arch)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Open, %s: %v, want an error with %q", name, err, test.want)
		}
	}
	_, err := apk.Open(t.Context(), mem{"APKINDEX.tar.gz": apktest.Index(t, nil)}, keysOf(t, s), "")
	if !errors.Is(err, apk.ErrUntrusted) || !strings.HasSuffix(err.Error(), "it is not signed") {
		t.Errorf("Open of an index without a signature: %v, want that and nothing more", err)
	}
	for _, arch := range []string{"", "x86_64"} {
		if _, err := apk.Open(t.Context(), mem{"APKINDEX.tar.gz": index}, keysOf(t, s), arch); err != nil {
			t.Errorf("Open(%q) of an index in the place itself: %v", arch, err)
		}
	}
}

// flaky fails on the way, a number of times for each file.
type flaky struct {
	mem
	mu    sync.Mutex
	fails map[string]int
}

var errLine = errors.New("connection reset")

func (f *flaky) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := f.mem.Open(ctx, name)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails[name] > 0 && err == nil {
		f.fails[name]--
		half := io.LimitReader(r, int64(len(f.mem[name])/2))
		return io.NopCloser(io.MultiReader(half, failing{})), nil
	}
	return r, err
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errLine }

func TestFetchAgain(t *testing.T) {
	s := sha1Signer()
	x := newSingle(t, s)
	files := mem{"p-1.0-r0.apk": x.file()}
	keys := keysOf(t, s)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		tree, err := apk.UnpackFiles(context.Background(), &flaky{mem: files, fails: map[string]int{"p-1.0-r0.apk": 2}}, slices.Collect(maps.Keys(files)), keys, nil)
		if err != nil {
			t.Fatalf("a line that fails twice: %v", err)
		}
		tree.Close()
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("two tries again took %v, want 3 s", took)
		}
		_, err = apk.UnpackFiles(context.Background(), &flaky{mem: files, fails: map[string]int{"p-1.0-r0.apk": 9}}, slices.Collect(maps.Keys(files)), keys, nil)
		if !errors.Is(err, errLine) {
			t.Errorf("a line that always fails: %v, want its error", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err = apk.UnpackFiles(ctx, files, slices.Collect(maps.Keys(files)), keys, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("a done context: %v, want context.Canceled", err)
		}
	})
}

// gathering opens files only when several are open at once.
type gathering struct {
	mem
	mu   sync.Mutex
	left int           // that are still to be opened
	all  chan struct{} // closed when none is
}

func (g *gathering) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	g.mu.Lock()
	if g.left--; g.left == 0 {
		close(g.all)
	}
	g.mu.Unlock()
	select {
	case <-g.all:
		return g.mem.Open(ctx, name)
	case <-time.After(time.Minute):
		return nil, fmt.Errorf("%s waits alone", name)
	}
}

// TestParallel holds that packages are fetched at the same time.
func TestParallel(t *testing.T) {
	s := sha1Signer()
	files, keys := mem{}, keysOf(t, s)
	for i := range 4 {
		p := apktest.Package{Name: fmt.Sprintf("p%d", i), Signer: s}
		files[p.File()] = p.Build(t)
	}
	synctest.Test(t, func(t *testing.T) {
		g := &gathering{mem: files, left: len(files), all: make(chan struct{})}
		tree, err := apk.UnpackFiles(context.Background(), g, slices.Collect(maps.Keys(files)), keys, nil)
		if err != nil {
			t.Fatal(err)
		}
		tree.Close()
	})
}

// TestMemory holds that the content of a package is never in memory.
func TestMemory(t *testing.T) {
	const size = 32 << 20
	s := sha1Signer()
	x := newSingle(t, s, apktest.Entry{Name: "big", Content: make([]byte, size)})
	files, keys := mem{"p-1.0-r0.apk": x.file()}, keysOf(t, s)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	tree, err := apk.UnpackFiles(t.Context(), files, []string{"p-1.0-r0.apk"}, keys, nil)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if got := after.TotalAlloc - before.TotalAlloc; got > size/8 {
		t.Errorf("unpacking a file of %d bytes took %d bytes of memory, want at most %d", size, got, size/8)
	}
}

func TestKeys(t *testing.T) {
	s := sha1Signer()
	dir := t.TempDir()
	apktest.Write(t, filepath.Join(dir, "a.rsa.pub"), s.Public(t))
	apktest.Write(t, filepath.Join(dir, "README"), []byte("no key"))
	for _, name := range []string{dir, filepath.Join(dir, "a.rsa.pub")} {
		keys, err := apk.LoadKeys(name)
		if err != nil || len(keys) != 1 || !keys["a.rsa.pub"].Equal(crypto.PublicKey(&s.Key.PublicKey).(*rsa.PublicKey)) {
			t.Errorf("LoadKeys(%s) = %v, %v, want the key", path.Base(name), keys, err)
		}
	}
	for name, want := range map[string]string{"README": "no public key", "none": "no such file", ".": "no key in it"} {
		from := filepath.Join(dir, name)
		if name == "." {
			from = t.TempDir()
		}
		if _, err := apk.LoadKeys(from); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("LoadKeys(%s) = %v, want an error with %q", name, err, want)
		}
	}
}
