package deb_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"overmount/archive"
	"overmount/archive/archivetest"
	"overmount/deb"
	"overmount/deb/debtest"
	"overmount/internal/testenv"
)

func newSpool(tb testing.TB) *archive.Spool {
	tb.Helper()
	s, err := archive.NewSpool(&archive.Options{Dir: tb.TempDir(), MaxBytes: 4 << 30})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

// read reads a package from memory.
func read(tb testing.TB, data []byte) (*archive.Tree, deb.Unpacked, error) {
	tb.Helper()
	tree, found, err := deb.Unpack(tb.Context(), newSpool(tb), []deb.Input{input("test.deb", data)}, nil)
	if err != nil {
		return nil, deb.Unpacked{}, err
	}
	return tree, found[0], nil
}

func input(name string, data []byte) deb.Input {
	return deb.Input{Name: name, Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

// list describes all of a tree.
func list(tb testing.TB, fsys fs.FS) []string {
	tb.Helper()
	var lines []string
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %v", name, info.Mode())
		if !d.IsDir() { // dpkg-deb lets symlinks touch the directory that they are in
			line += fmt.Sprintf(" %d", info.ModTime().Unix())
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(fsys, name)
			lines = append(lines, line+" -> "+target)
			return err
		case d.IsDir():
			lines = append(lines, line)
			return nil
		}
		data, err := fs.ReadFile(fsys, name)
		lines = append(lines, fmt.Sprintf("%s %d %x", line, info.Size(), sha256.Sum256(data)))
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return lines
}

var files = []debtest.Entry{
	{Name: "./"}, {Name: "./lib/"}, {Name: "./lib/firmware/"}, {Name: "./lib/firmware/a.bin", Content: "the content of a"},
	{Name: "./lib/firmware/b.bin", Content: strings.Repeat("b", 100_000), Mode: 0o600}, {Name: "./lib/firmware/link", Link: "a.bin"},
	{Name: "./lib/firmware/hard", Link: "./lib/firmware/a.bin", Type: tar.TypeLink, Mode: 0o644},
}

func TestCompressions(t *testing.T) {
	dpkg := testenv.Tool(t, "dpkg-deb")
	for _, suffix := range []string{"", ".gz", ".xz", ".zst", ".bz2", ".lzma"} {
		data := debtest.Package{Name: "firmware-x", Version: "1:2-3", Suffix: suffix, Files: files, Fields: "Depends: a (>= 1) | b, c:any\nSource: src\n"}.Bytes(t)
		tree, found, err := read(t, data)
		if err != nil {
			t.Errorf("%q: %v", suffix, err)
			continue
		}
		want := deb.Unpacked{Name: "test.deb", Size: int64(len(data)), SHA256: sha256Of(data), Files: len(files), Control: deb.Control{
			Package: "firmware-x", Version: "1:2-3", Architecture: "all", Source: "src",
			Depends: []deb.Relation{{Package: "a", Op: ">=", Version: "1"}, {Package: "c"}},
		}}
		if diff := cmp.Diff(want, found); diff != "" {
			t.Errorf("%q: the package is not what is wanted (-want +got):\n%s", suffix, diff)
		}
		if diff := cmp.Diff(asDpkg(t, dpkg, data), list(t, tree)); diff != "" {
			t.Errorf("%q: the tree is not what dpkg-deb makes (-dpkg-deb +got):\n%s", suffix, diff)
		}
	}
}

func sha256Of(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// asDpkg lists what dpkg-deb unpacks.
func asDpkg(tb testing.TB, dpkg string, data []byte) []string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "x.deb")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	return listDpkg(tb, dpkg, file)
}

func listDpkg(tb testing.TB, dpkg, file string) []string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "root")
	if out, err := exec.Command(dpkg, "-x", file, dir).CombinedOutput(); err != nil {
		tb.Fatalf("dpkg-deb: %v: %s", err, out)
	}
	return list(tb, os.DirFS(dir))
}

// TestReal compares real packages with what dpkg-deb makes of them. Kernels take
// long, and package pack reads one.
func TestReal(t *testing.T) {
	dpkg := testenv.Tool(t, "dpkg-deb")
	for _, file := range testenv.Debs(t) {
		if strings.HasPrefix(filepath.Base(file), "linux-image-") && os.Getenv("OVERMOUNT_TEST_LONG") != "1" {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			tree, found, err := deb.Unpack(t.Context(), newSpool(t), []deb.Input{deb.File(file)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(listDpkg(t, dpkg, file), list(t, tree)); diff != "" {
				t.Errorf("the tree is not what dpkg-deb makes (-dpkg-deb +got):\n%s", diff)
			}
			out, err := exec.Command(dpkg, "-f", file, "Package", "Version", "Architecture").Output()
			c := found[0].Control
			if want := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\n", c.Package, c.Version, c.Architecture); err != nil || string(out) != want {
				t.Errorf("dpkg-deb -f says %q, %v, want %q", out, err, want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	good := debtest.Package{Suffix: ".xz", Files: files}
	members := good.Members(t)
	whole := debtest.Ar(members...)
	version, control, data := members[0], members[1], members[2]
	rename := func(m debtest.Member, name string) debtest.Member { return debtest.Member{Name: name, Data: m.Data} }
	withFiles := func(entries ...debtest.Entry) []byte { return debtest.Package{Files: entries}.Bytes(t) }
	withControl := func(entries ...debtest.Entry) []byte {
		return debtest.Ar(version, debtest.Member{Name: "control.tar", Data: debtest.Tar(t, entries...)}, data)
	}
	control1 := func(text string) []byte { return withControl(debtest.Entry{Name: "./control", Content: text}) }
	damaged := func(at int) []byte {
		b := bytes.Clone(whole)
		b[len(b)+at] ^= 0x55
		return b
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "it is not a Debian package: it does not begin as an archive of ar"},
		{"an rpm", []byte("\xed\xab\xee\xdb\x03\x00\x00\x00\x00\x01foobar"), "it is not a Debian package"},
		{"no members", debtest.Ar(), "it has no members"},
		{"other first member", debtest.Ar(control, version, data), `its first member is "control.tar.xz", and a Debian package begins with debian-binary`},
		{"format 3", debtest.Ar(debtest.Member{Name: "debian-binary", Data: []byte("3.0\n")}, control, data), `the format of the package is "3.0"`},
		{"wrong order", debtest.Ar(version, data, control), "its members are in the wrong order: data.tar.xz comes before control.tar"},
		{"no data", debtest.Ar(version, control), "truncated: it ends behind control.tar.xz, and data.tar is missing"},
		{"no control", debtest.Ar(version), "truncated: it ends behind debian-binary, and control.tar is missing"},
		{"two controls", debtest.Ar(version, control, control, data), "it has a second control member, control.tar.xz, before data.tar"},
		{"two datas", debtest.Ar(version, control, data, rename(data, "data.tar.gz")), "it has a second member data.tar.gz, behind data.tar.xz"},
		{"unknown before data", debtest.Ar(version, rename(control, "other"), control, data), `it has a member "other" before control.tar`},
		{"lzip", debtest.Ar(version, control, rename(data, "data.tar.lz")), "data.tar.lz: it is compressed in a way that is not supported"},
		{"no bzip2", debtest.Ar(version, control, rename(data, "data.tar.bz2")), "data.tar.bz2: it is not bzip2: it begins with fd377a"},
		{"no lzma", debtest.Ar(version, control, rename(data, "data.tar.lzma")), "data.tar.lzma: damaged: lzma"},
		{"wrong suffix", debtest.Ar(version, control, rename(data, "data.tar.zst")), "data.tar.zst: it is not zstd: it begins with fd377a58"},
		{"cut header", whole[:30], "truncated: it ends inside the header of its first member"},
		{"cut data", whole[:len(whole)-100], "truncated: it ends"},
		{"cut stream", debtest.Ar(version, control, debtest.Member{Name: data.Name, Data: data.Data[:len(data.Data)-40]}), "data.tar.xz: truncated: the xz data ends early"},
		{"damaged data", damaged(-len(data.Data) / 2), "data.tar.xz: damaged: xz"},
		{"damaged header", damaged(-len(data.Data) - 2), "what follows the member control.tar.xz is no member"},
		{"garbage behind", append(bytes.Clone(whole), "garbage"...), "the 7 bytes behind the member data.tar.xz are no member"},
		{"long garbage behind", append(bytes.Clone(whole), bytes.Repeat([]byte("garbage"), 20)...), "what follows the member data.tar.xz is no member"},
		{"garbage in the stream", debtest.Ar(version, control, debtest.Member{Name: data.Name, Data: append(bytes.Clone(data.Data), "garbage, garbage"...)}), "data.tar.xz: damaged: xz"},
		{"garbage behind tar", debtest.Ar(version, control, debtest.Member{Name: "data.tar", Data: append(debtest.Tar(t, files...), "garbage"...)}), "something follows the end of the tar archive"},
		{"absolute", withFiles(debtest.Entry{Name: "/etc/passwd", Content: "x"}), `"/etc/passwd": the name is absolute`},
		{"dot dot", withFiles(debtest.Entry{Name: "./lib/../../etc/passwd", Content: "x"}), `the name has ".." in it`},
		{"below a link", withFiles(debtest.Entry{Name: "./lib", Link: "/etc"}, debtest.Entry{Name: "./lib/passwd", Content: "x"}), "which is no directory but a symlink"},
		{"device", withFiles(debtest.Entry{Name: "./dev", Type: tar.TypeBlock}), `"./dev": it is a device`},
		{"hard link out", withFiles(debtest.Entry{Name: "./x", Link: "/etc/shadow", Type: tar.TypeLink}), "the name is absolute"},
		{"no control file", withControl(debtest.Entry{Name: "./postinst", Content: "x"}), "control.tar: it has no file called control"},
		{"twice control", withControl(debtest.Entry{Name: "./control", Content: good.Control()}, debtest.Entry{Name: "control", Content: good.Control()}), "it has two files called control"},
		{"empty control", control1(""), "control: it is empty"},
		{"no version", control1("Package: x\nArchitecture: all\n"), "control: the field Version is missing"},
		{"no field", control1("Package: x\nnonsense\n"), `control: the line "nonsense" is no field`},
		{"field twice", control1("Package: x\npackage: y\n"), "control: it has the field package twice"},
		{"begins with a blank", control1(" Package: x\n"), "continues no field"},
		{"name with a slash", control1("Package: ../x\nVersion: 1\nArchitecture: all\n"), `control: the field Package is "../x", which is not allowed`},
		{"paragraphs", control1(good.Control() + "\n" + good.Control()), "control: it has several paragraphs"},
		{"large control", control1("A: " + strings.Repeat("a", 5<<20)), "control: a paragraph of fields has over the limit"},
		{"huge control", debtest.Ar(version, debtest.Member{Name: "control.tar.zst", Data: debtest.Compress(t, ".zst", debtest.Tar(t, debtest.Entry{Name: "x", Content: string(make([]byte, 40<<20))}))}, data),
			"control.tar.zst: its plain form has over the limit of 33554432 bytes"},
		{"sums are none", debtest.Package{Sums: "nonsense\n", Files: files}.Bytes(t), `md5sums: the line "nonsense" is none`},
		{"another sum", debtest.Package{Sums: strings.Repeat("0", 32) + "  lib/firmware/a.bin\n", Files: files}.Bytes(t), `"./lib/firmware/a.bin" is damaged: its MD5 sum is`},
		{"sum of a missing file", debtest.Package{Sums: strings.Repeat("0", 32) + "  lib/firmware/c.bin\n", Files: files}.Bytes(t), `"lib/firmware/c.bin" is missing, which md5sums lists`},
	} {
		_, _, err := read(t, c.data)
		if err == nil || !strings.HasPrefix(err.Error(), "unpack test.deb: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: reading fails with %v, want %q", c.name, err, c.want)
		}
	}
}

// TestMembersAllowed has what deb(5) allows.
func TestMembersAllowed(t *testing.T) {
	m := debtest.Package{Suffix: ".gz", Files: files}.Members(t)
	extra := debtest.Member{Name: "_gpgorigin", Data: []byte("odd")}
	m[0].Data = []byte("2.1\nmore\n")
	m[1].Name += "/" // as GNU ar writes names
	data := debtest.Ar(m[0], extra, m[1], extra, m[2], extra, debtest.Member{Name: "later", Data: []byte("odd")})
	for _, b := range [][]byte{data, data[:len(data)-1]} { // also without the last padding
		if _, _, err := read(t, b); err != nil {
			t.Error(err)
		}
	}
}

func TestOtherFile(t *testing.T) {
	data := debtest.Package{Files: files}.Bytes(t)
	in := input("dir/a.deb", data)
	for _, c := range []struct {
		sum  string
		size int64
		want string
	}{
		{strings.ToUpper(sha256Of(data)), int64(len(data)), ""},
		{sha256Of(nil), 0, "unpack dir/a.deb: the SHA-256 of the file is " + sha256Of(data) + ", and " + sha256Of(nil) + " is expected"},
		{sha256Of(data), int64(len(data)) + 1, fmt.Sprintf("the file has %d bytes, and %d are expected", len(data), len(data)+1)},
		{sha256Of(data), 100, "the file is longer than the 100 bytes that are expected"},
	} {
		in.SHA256, in.Size = c.sum, c.size
		_, _, err := deb.Unpack(t.Context(), newSpool(t), []deb.Input{in}, nil)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("Unpack with SHA-256 %s and %d bytes fails with %v, want %q", c.sum, c.size, err, c.want)
		}
	}
	// A damaged file is told as another one, whatever is wrong in it.
	in = input("a.deb", data[:500])
	in.SHA256, in.Size = sha256Of(data), int64(len(data))
	if _, _, err := deb.Unpack(t.Context(), newSpool(t), []deb.Input{in}, nil); err == nil || !strings.Contains(err.Error(), "has 500 bytes") {
		t.Errorf("Unpack of a truncated file fails with %v, want the number of its bytes", err)
	}
}

func TestConflicts(t *testing.T) {
	file := func(content string) []debtest.Entry { return []debtest.Entry{{Name: "./f", Content: content}} }
	unpack := func(packages ...debtest.Package) (string, error) {
		var in []deb.Input
		for _, p := range packages {
			in = append(in, input(p.File(), p.Bytes(t)))
		}
		tree, _, err := deb.Unpack(t.Context(), newSpool(t), in, nil)
		if err != nil {
			return "", err
		}
		data, err := fs.ReadFile(tree, "f")
		return string(data), err
	}
	a := debtest.Package{Name: "a", Version: "2", Files: file("of a")}
	b := debtest.Package{Name: "b", Version: "1", Files: file("of b")}
	_, err := unpack(a, b)
	var conflict *archive.ConflictError
	if !errors.As(err, &conflict) || !strings.Contains(err.Error(), "f: a_2_all and b_1_all have it") {
		t.Errorf("Unpack of two packages with different files fails with %v, want a conflict that names both", err)
	}
	for _, c := range []struct{ replaces, want string }{{"a", "of b"}, {"a (<< 3~)", "of b"}, {"a (= 2)", "of b"}, {"x, a (>= 1)", "of b"}, {"a (<< 2)", ""}, {"aa", ""}} {
		b.Fields = "Replaces: " + c.replaces + "\n"
		for _, order := range [][]debtest.Package{{a, b}, {b, a}} {
			if got, err := unpack(order...); got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("with Replaces: %s, the file is %q, %v, want %q", c.replaces, got, err, c.want)
			}
		}
	}
	b.Files = a.Files
	if got, err := unpack(a, b); got != "of a" {
		t.Errorf("the same file in two packages is %q, %v", got, err)
	}
	a.Version = "3"
	if _, err := unpack(a, debtest.Package{Name: "a", Version: "2"}); err == nil || !strings.Contains(err.Error(), "a_3_all.deb and a_2_all.deb are the same package, a") {
		t.Errorf("two versions of a package fail with %v, want both files named", err)
	}
}

// TestWholeReason holds that what is told of an error keeps what is said around the error
// of a file: what to do when a disk is full.
func TestWholeReason(t *testing.T) {
	full := fmt.Errorf("%w: take another disk", &fs.PathError{Op: "write", Path: "/disk", Err: fs.ErrInvalid})
	in := deb.Input{Name: "a.deb", Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(iotest.ErrReader(full)), nil }}
	if _, _, err := deb.Unpack(t.Context(), newSpool(t), []deb.Input{in}, nil); err == nil || err.Error() != "unpack a.deb: "+full.Error() {
		t.Errorf("Unpack = %v, want all of %v", err, full)
	}
}

// TestFetchAgain has a package that comes over a line which fails in its middle.
func TestFetchAgain(t *testing.T) {
	data, line := debtest.Package{Files: files}.Bytes(t), errors.New("connection reset")
	spool := newSpool(t)
	for fails, want := range map[int]error{0: nil, 2: nil, 3: line} {
		synctest.Test(t, func(t *testing.T) {
			opened := 0
			in := deb.Input{Name: "a.deb", SHA256: sha256Of(data), Open: func(context.Context) (io.ReadCloser, error) {
				if opened++; opened <= fails {
					return io.NopCloser(io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotest.ErrReader(line))), nil
				}
				return io.NopCloser(bytes.NewReader(data)), nil
			}}
			tree, found, err := deb.Unpack(context.Background(), spool, []deb.Input{in}, nil)
			if !errors.Is(err, want) || opened != min(fails+1, 3) || err == nil && (found[0].Size != int64(len(data)) || len(list(t, tree)) != len(files)) {
				t.Errorf("after %d failures: %v, %v, opened %d times, want %v", fails, found, err, opened, want)
			}
		})
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in := input("a.deb", debtest.Package{Files: files}.Bytes(t))
	if _, _, err := deb.Unpack(ctx, newSpool(t), []deb.Input{in}, nil); err == nil {
		t.Error("Unpack with a canceled context succeeds")
	}
}

func FuzzReader(f *testing.F) {
	for _, suffix := range []string{"", ".gz", ".xz", ".zst"} {
		f.Add(debtest.Package{Suffix: suffix, Files: files}.Bytes(f))
	}
	f.Add(debtest.Ar())
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := archive.NewSpool(&archive.Options{Dir: dir, MaxBytes: 1 << 20, MaxFiles: 1000})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		tree, found, err := deb.Unpack(t.Context(), s, []deb.Input{input("fuzz.deb", data)}, nil)
		if err != nil {
			if tree != nil || found != nil && !errors.As(err, new(*archive.ConflictError)) {
				t.Errorf("Unpack gives something beside the error %v", err)
			}
			return
		}
		if found[0].Package == "" || found[0].Size != int64(len(data)) {
			t.Errorf("Unpack gives %v for %d bytes", found[0], len(data))
		}
		archivetest.InRoot(t, tree)
	})
}

// FuzzData reads packages whose frame is right, so that the fuzzer gets to their
// files.
func FuzzData(f *testing.F) {
	const control = "Package: p\nVersion: 1\nArchitecture: all\n"
	f.Add(control, debtest.Tar(f, files...))
	for _, name := range []string{"/etc/x", "../x", "./a/../../x", "./l/x"} {
		f.Add(control, debtest.Tar(f, debtest.Entry{Name: "./l", Link: "/etc"}, debtest.Entry{Name: name}, debtest.Entry{Name: "./h", Link: name, Type: tar.TypeLink}))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, control string, data []byte) {
		s, err := archive.NewSpool(&archive.Options{Dir: dir, MaxBytes: 1 << 20, MaxFiles: 1000})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		file := debtest.Ar(debtest.Member{Name: "debian-binary", Data: []byte("2.0\n")},
			debtest.Member{Name: "control.tar", Data: debtest.Tar(t, debtest.Entry{Name: "./control", Content: control})}, debtest.Member{Name: "data.tar", Data: data})
		tree, found, err := deb.Unpack(t.Context(), s, []deb.Input{input("fuzz.deb", file)}, nil)
		if err != nil {
			return
		}
		if name := found[0].String(); strings.ContainsAny(name, "/\x00") {
			t.Errorf("a package named %q", name)
		}
		archivetest.InRoot(t, tree)
	})
}
