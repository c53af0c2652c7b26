package deb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"overmount/deb"
	"overmount/deb/debtest"
	"overmount/internal/testenv"
)

// A signer has a key of its own in a home of gpg of its own.
type signer struct {
	tb      testing.TB
	home    string
	keyring string
}

func newSigner(tb testing.TB) signer {
	tb.Helper()
	testenv.Tool(tb, "gpgv")
	// The path of gpg-agent's socket must be short.
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		tb.Fatal(err)
	}
	s := signer{tb, home, filepath.Join(home, "keyring.gpg")}
	tb.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	s.gpg(nil, "--quick-generate-key", "--passphrase", "", "test <test@example.org>", "ed25519", "sign", "never")
	s.gpg(nil, "--output", s.keyring, "--export")
	return s
}

func (s signer) gpg(stdin []byte, args ...string) []byte {
	s.tb.Helper()
	cmd := exec.Command(testenv.Tool(s.tb, "gpg"), append([]string{"--homedir", s.home, "--batch", "--quiet", "--pinentry-mode", "loopback"}, args...)...)
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &errs
	out, err := cmd.Output()
	if err != nil {
		s.tb.Fatalf("gpg %v: %v: %s", args, err, errs.Bytes())
	}
	return out
}

func (s signer) sign(text []byte) []byte { return s.gpg(text, "--clearsign") }

func (s signer) detached(text []byte) []byte { return s.gpg(text, "--armor", "--detach-sign") }

func (s signer) verifier() deb.Verifier { return deb.GPGV{Keyrings: []string{s.keyring}} }

// memory is files of a repository.
type memory map[string][]byte

func (m memory) Open(_ context.Context, name string) (io.ReadCloser, error) {
	data, ok := m[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

var packages = []debtest.Package{
	{Name: "firmware-a", Version: "1.9", Files: []debtest.Entry{{Name: "./a", Content: "old"}}},
	{Name: "firmware-a", Version: "1.10", Files: []debtest.Entry{{Name: "./a", Content: "new"}}},
	{Name: "firmware-a", Version: "1.10~rc1", Files: []debtest.Entry{{Name: "./a", Content: "before"}}},
	{Name: "firmware-b", Version: "1:0", Arch: "amd64", Files: []debtest.Entry{{Name: "./b", Content: "b"}}},
	{Name: "other", Files: []debtest.Entry{{Name: "./o", Content: "o"}}},
}

func TestRepository(t *testing.T) {
	s := newSigner(t)
	for _, suffix := range []string{"", ".gz", ".xz", ".zst"} {
		files := memory(debtest.Repository{Suite: "bookworm", Arch: "amd64", Suffix: suffix, Packages: packages, Sign: s.sign}.Files(t))
		r := &deb.Repository{Files: files, Suite: "bookworm", Architecture: "amd64", Verifier: s.verifier()}
		entries, err := r.Packages(t.Context(), []string{"firmware-*"})
		if err != nil {
			t.Fatalf("%q: %v", suffix, err)
		}
		var names []string
		var inputs []deb.Input
		for _, e := range entries {
			names = append(names, e.String())
			inputs = append(inputs, r.Input(e))
		}
		if got := strings.Join(names, " "); got != "firmware-a_1.10_all firmware-b_1:0_amd64" {
			t.Errorf("%q: Packages gives %s", suffix, got)
		}
		tree, _, err := deb.Unpack(t.Context(), newSpool(t), inputs, nil)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := fs.ReadFile(tree, "a"); string(data) != "new" {
			t.Errorf("%q: the file a is %q, %v, want that of the newest version", suffix, data, err)
		}

		// A package that has been swapped.
		old := entries[0].Filename
		files[old] = packages[0].Bytes(t)
		if _, _, err := deb.Unpack(t.Context(), newSpool(t), inputs, nil); err == nil || !strings.Contains(err.Error(), "unpack "+old+": the SHA-256 of the file is") {
			t.Errorf("%q: a swapped package fails with %v", suffix, err)
		}
		delete(files, old)
		if _, _, err := deb.Unpack(t.Context(), newSpool(t), inputs, nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "the mirror may be half updated") {
			t.Errorf("%q: a package that is not there fails with %v", suffix, err)
		}
	}
}

// TestRepositoryDir reads a repository from a directory.
func TestRepositoryDir(t *testing.T) {
	s := newSigner(t)
	dir := t.TempDir()
	for name, data := range (debtest.Repository{Suite: "bookworm", Arch: "amd64", Packages: packages, Sign: s.sign}).Files(t) {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := &deb.Repository{Files: deb.Dir(dir), Suite: "stable", Architecture: "amd64", Verifier: s.verifier()}
	if err := os.Symlink("bookworm", filepath.Join(dir, "dists/stable")); err != nil {
		t.Fatal(err)
	}
	entries, err := r.Packages(t.Context(), []string{"other"})
	if err != nil || len(entries) != 1 {
		t.Fatalf("Packages gives %v, %v", entries, err)
	}
	if _, _, err := deb.Unpack(t.Context(), newSpool(t), []deb.Input{r.Input(entries[0])}, nil); err != nil {
		t.Error(err)
	}
	if _, err := deb.Dir(dir).Open(t.Context(), "../x"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening ../x fails with %v, want that it leads out", err)
	}
}

func TestRepositoryRefused(t *testing.T) {
	s, stranger := newSigner(t), newSigner(t)
	const release, index = "dists/bookworm/InRelease", "dists/bookworm/main/binary-amd64/Packages.gz"
	good := memory(debtest.Repository{Suite: "bookworm", Arch: "amd64", Suffix: ".gz", Packages: packages, Sign: s.sign}.Files(t))
	with := func(name string, data []byte) memory {
		m := maps.Clone(good)
		m[name] = data
		return m
	}
	edit := func(name, old, now string) memory {
		return with(name, bytes.Replace(good[name], []byte(old), []byte(now), 1))
	}
	dated := func(fields string) memory {
		return debtest.Repository{Suite: "bookworm", Arch: "amd64", Suffix: ".gz", Packages: packages, Sign: s.sign, Fields: fields}.Files(t)
	}
	asArmored := filepath.Join(t.TempDir(), "key.asc")
	if err := os.WriteFile(asArmored, s.gpg(nil, "--armor", "--export"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(asArmored+".cut", s.gpg(nil, "--armor", "--export")[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (deb.GPGV{Keyrings: []string{asArmored}}).Verify(t.Context(), good[release]); err != nil {
		t.Errorf("an armored keyring: %v", err)
	}
	text := []byte("Suite: stable\nCodename: bookworm\n")
	for _, c := range []struct {
		name   string
		files  memory
		change func(*deb.Repository)
		want   string
	}{
		{"no key", good, func(r *deb.Repository) { r.Verifier = nil }, "the repository cannot be trusted without a key"},
		{"no keyring", good, func(r *deb.Repository) { r.Verifier = deb.GPGV{} }, "the repository cannot be trusted without a key"},
		{"missing keyring", good, func(r *deb.Repository) { r.Verifier = deb.GPGV{Keyrings: []string{"/nonexistent"}} }, "keyring: open /nonexistent"},
		{"damaged keyring", good, func(r *deb.Repository) { r.Verifier = deb.GPGV{Keyrings: []string{asArmored + ".cut"}} }, "key.asc.cut: it is armored text, and no block of public keys"},
		{"no gpgv", good, func(r *deb.Repository) {
			r.Verifier = deb.GPGV{Program: "no-such-gpgv", Keyrings: []string{s.keyring}}
		}, "the program gpgv is needed, which is not installed"},
		{"another key", good, func(r *deb.Repository) { r.Verifier = stranger.verifier() }, "dists/bookworm/InRelease: it is signed by keys that the keyring has not"},
		{"signed by another", with(release, stranger.sign(text)), nil, "it is signed by keys that the keyring has not"},
		{"unsigned", with(release, text), nil, "it is not signed"},
		{"changed", edit(release, "Origin: test", "Origin: evil"), nil, "the signature does not fit"},
		{"text before", with(release, append([]byte("Origin: evil\n"), good[release]...)), nil, "it is not signed: it does not begin with"},
		{"text behind", with(release, append(bytes.Clone(good[release]), "Origin: evil\n"...)), nil, "something follows its signature"},
		{"two messages", with(release, append(stranger.sign(text), good[release]...)), nil, "it is more than one signed message"},
		{"truncated", with(release, good[release][:len(good[release])-40]), nil, "something follows its signature, or it is truncated"},
		{"no checksums", with(release, s.sign(text)), nil, "it lists no file with a SHA-256"},
		{"no such suite", good, func(r *deb.Repository) { r.Suite = "sid" }, `dists/sid/Release: it is not there, and no InRelease either: is "sid" one of the repository's suites?`},
		{"no suite", good, func(r *deb.Repository) { r.Suite = "." }, `"." is no suite`},
		{"flat", good, func(r *deb.Repository) { r.Suite = "./" }, `"./" is a directory of a flat repository, which is not supported: fetch the packages with apt-get download`},
		{"suite that leads out", good, func(r *deb.Repository) { r.Suite = "../../etc" }, `"../../etc" is no suite`},
		{"another suite", with("dists/trixie/InRelease", good[release]), func(r *deb.Repository) { r.Suite = "trixie" }, "it is of the suite stable (bookworm), not of trixie"},
		{"another architecture", good, func(r *deb.Repository) { r.Architecture = "arm64" }, "lists no packages for the architecture arm64 in any component: it has the architectures all amd64, and the components main"},
		{"another component", good, func(r *deb.Repository) { r.Components = []string{"contrib"} }, "in contrib"},
		{"out of date", dated("Valid-Until: Thu, 01 Jan 2015 00:00:00 UTC\n"), nil, "its date is not right: it was valid until Thu, 01 Jan 2015 00:00:00 UTC: the mirror is out of date"},
		{"out of date, as others write it", dated("Valid-Until: Thu, 1 Jan 2015 00:00:00 +0000\n"), nil, "it was valid until Thu, 1 Jan 2015"},
		{"of the future", dated("Date: Fri, 01 Jan 2100 00:00:00 UTC\n"), nil, "its date is not right: it is of Fri, 01 Jan 2100 00:00:00 UTC, and here it is "},
		{"in another zone", dated("Date: Thu, 01 Jan 2015 00:00:00 CET\n"), nil, `the field Date is "Thu, 01 Jan 2015 00:00:00 CET": it is not in UTC`},
		{"bad date", dated("Valid-Until: tomorrow\n"), nil, `the field Valid-Until is "tomorrow"`},
		{"index changed", with(index, debtest.Compress(t, ".gz", []byte("Package: x\n"))), nil, "main/binary-amd64/Packages: it is not the one that the release lists"},
		{"index of the same length", edit(index, "\x00\x00", "\x00\x01"), nil, "main/binary-amd64/Packages: "},
		{"index truncated", with(index, good[index][:100]), nil, "truncated: the gzip data ends early"},
		{"index missing", memory{release: good[release]}, nil, "the release lists it, but the repository has it not"},
		{"no such package", good, func(r *deb.Repository) {}, ""},
	} {
		r := &deb.Repository{Files: c.files, Suite: "bookworm", Architecture: "amd64", Verifier: s.verifier()}
		patterns := []string{"firmware-*"}
		if c.change != nil {
			c.change(r)
		}
		if c.want == "" {
			patterns, c.want = []string{"firmware-*", "nothing-*"}, `no package matches "nothing-*"`
		}
		entries, err := r.Packages(t.Context(), patterns)
		if err == nil || !strings.Contains(err.Error(), c.want) || entries != nil {
			t.Errorf("%s: Packages gives %v, %v, want the error %q", c.name, entries, err, c.want)
		}
	}
	old := "Date: Thu, 25 Dec 2014 00:00:00 UTC\nValid-Until: Thu, 01 Jan 2015 00:00:00 UTC\n"
	for name, r := range map[string]*deb.Repository{
		"at a time when it was valid": {At: time.Date(2014, 12, 31, 0, 0, 0, 0, time.UTC)},
		"of any date":                 {AnyDate: true},
	} {
		r.Files, r.Suite, r.Architecture, r.Verifier = dated(old), "bookworm", "amd64", s.verifier()
		if _, err := r.Packages(t.Context(), []string{"other"}); err != nil {
			t.Errorf("Packages of a repository %s: %v", name, err)
		}
	}
	r := &deb.Repository{Files: dated(old), Suite: "bookworm", Architecture: "amd64", Verifier: s.verifier()}
	if _, err := r.Packages(t.Context(), []string{"other"}); !errors.Is(err, deb.ErrDate) {
		t.Errorf("Packages of a repository that is out of date: %v, want ErrDate", err)
	}
}

// TestRepositoryDetached reads a repository whose release is signed in a file of its
// own, with indexes at their hashes, as apt does.
func TestRepositoryDetached(t *testing.T) {
	s, stranger := newSigner(t), newSigner(t)
	const release, index = "dists/bookworm/Release", "dists/bookworm/main/binary-amd64/"
	good := memory(debtest.Repository{Suite: "bookworm", Arch: "amd64", Suffix: ".xz", Packages: packages, Detached: s.detached, ByHash: true}.Files(t))
	with := func(name string, data []byte) memory {
		m := maps.Clone(good)
		m[name] = data
		if data == nil {
			delete(m, name)
		}
		return m
	}
	var byHash string
	for name := range good {
		if strings.HasPrefix(name, index+"by-hash/SHA256/") {
			byHash = name
		}
	}
	for _, c := range []struct {
		name  string
		files memory
		want  string
	}{
		{"right", good, ""},
		{"at its name only", memory{release: good[release], release + ".gpg": good[release+".gpg"], index + "Packages.xz": good[byHash]}, ""},
		{"neither", with(byHash, nil), "main/binary-amd64/Packages: it is not the one that the release lists"},
		{"damaged", with(byHash, good[byHash][:100]), "main/binary-amd64/Packages: "},
		{"no signature", with(release+".gpg", nil), "dists/bookworm/Release: it is not signed: there is no Release.gpg, and no InRelease"},
		{"changed", with(release, bytes.Replace(good[release], []byte("Origin: test"), []byte("Origin: evil"), 1)), "its signature Release.gpg: the signature does not fit"},
		{"by a stranger", with(release+".gpg", stranger.detached(good[release])), "its signature Release.gpg: it is signed by keys that the keyring has not"},
		{"of another text", with(release+".gpg", s.detached([]byte("x"))), "the signature does not fit"},
		{"a message for a signature", with(release+".gpg", s.sign(good[release])), "it is no signature of OpenPGP in ASCII armor"},
		{"binary", with(release+".gpg", s.gpg(good[release], "--detach-sign")), "it is no signature of OpenPGP in ASCII armor"},
		{"two signatures", with(release+".gpg", append(stranger.detached(good[release]), good[release+".gpg"]...)), "it is more than one signed message"},
		{"truncated", with(release+".gpg", good[release+".gpg"][:100]), "something follows its signature, or it is truncated"},
		{"an InRelease that is bad", with("dists/bookworm/InRelease", good[release]), "dists/bookworm/InRelease: it is not signed"},
	} {
		r := &deb.Repository{Files: c.files, Suite: "bookworm", Architecture: "amd64", Verifier: s.verifier()}
		entries, err := r.Packages(t.Context(), []string{"firmware-*"})
		if c.want == "" && (err != nil || len(entries) != 2) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: Packages gives %v, %v, want the error %q", c.name, entries, err, c.want)
		}
	}
}

// TestGenuineRelease checks Debian's own signature, as apt left it on this host.
func TestGenuineRelease(t *testing.T) {
	const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	testenv.Tool(t, "gpgv")
	found, err := filepath.Glob("/var/lib/apt/lists/*_debian_dists_*_InRelease")
	if err != nil || len(found) == 0 {
		testenv.Need(t, "apt has no lists of Debian on this host")
	}
	if _, err := os.Stat(keyring); err != nil {
		testenv.Need(t, "this host has no keys of Debian")
	}
	signed, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	v := deb.GPGV{Keyrings: []string{keyring}}
	text, err := v.Verify(t.Context(), signed)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte("Origin: Debian\n")) || bytes.Contains(text, []byte("PGP")) {
		t.Errorf("the text is %.100q…, want Debian's release without a signature", text)
	}
	at := bytes.Index(signed, []byte("main/binary-"))
	signed[at] ^= 1
	if _, err := v.Verify(t.Context(), signed); err == nil || !strings.Contains(err.Error(), "the signature does not fit") {
		t.Errorf("a changed release fails with %v", err)
	}
}

// TestGenuineLists looks a package up in the lists of apt, and compares with what
// apt says.
func TestGenuineLists(t *testing.T) {
	dpkg, apt := testenv.Tool(t, "dpkg"), testenv.Tool(t, "apt-cache")
	arch, err := exec.Command(dpkg, "--print-architecture").Output()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := deb.Lists(os.DirFS("/var/lib/apt/lists"), strings.TrimSpace(string(arch)), []string{"zstd", "linux-image-cloud-*"})
	if err != nil && strings.Contains(err.Error(), "run apt-get update") {
		testenv.Need(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(apt, "show", "--all-versions", "zstd").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Package == "zstd" && !bytes.Contains(out, []byte("Version: "+e.Version+"\n")) {
			t.Errorf("the lists have %v, and apt-cache show says\n%s", e, out)
		}
	}
	if _, err := deb.Newest(entries, []string{"zstd"}); err != nil {
		t.Error(err)
	}
}

func TestLists(t *testing.T) {
	plain := func(text []byte) []byte {
		return []byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n" + string(text) + "-----BEGIN PGP SIGNATURE-----\n\nxyz\n-----END PGP SIGNATURE-----\n")
	}
	dir := fstest.MapFS{}
	for name, data := range (debtest.Repository{Suite: "bookworm", Arch: "amd64", Packages: packages, Sign: plain}).Files(t) {
		dir["example.org_debian_"+strings.ReplaceAll(name, "/", "_")] = &fstest.MapFile{Data: data}
	}
	const index = "example.org_debian_dists_bookworm_main_binary-amd64_Packages"
	plainIndex := dir[index].Data
	for _, suffix := range []string{"", ".gz", ".xz"} { // apt compresses in its own way
		delete(dir, index)
		dir[index+suffix] = &fstest.MapFile{Data: debtest.Compress(t, suffix, plainIndex)}
		entries, err := deb.Lists(dir, "amd64", []string{"firmware-*"})
		if err != nil || len(entries) != 4 {
			t.Errorf("%q: Lists gives %v, %v, want four packages", suffix, entries, err)
			continue
		}
		for _, p := range packages {
			in, err := deb.Known(deb.File("/somewhere/"+p.File()), entries)
			if known := p.Name != "other"; known != (err == nil) || known && in.SHA256 != sha256Of(p.Bytes(t)) {
				t.Errorf("Known gives %v, %v for %s", in, err, p.File())
			}
		}
		delete(dir, index+suffix)
	}
	if _, err := deb.Lists(dir, "amd64", []string{"*"}); err == nil || !strings.Contains(err.Error(), "run apt-get update") {
		t.Errorf("Lists without any list fails with %v", err)
	}
	if _, err := deb.Lists(os.DirFS(filepath.Join(t.TempDir(), "nowhere")), "amd64", []string{"*"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lists of a directory that is not there fails with %v", err)
	}
	dir[index] = &fstest.MapFile{Data: append(plainIndex, '\n')}
	if _, err := deb.Lists(dir, "amd64", []string{"*"}); err == nil || !strings.Contains(err.Error(), index+": it is not the one that the release lists") && !strings.Contains(err.Error(), "longer than") {
		t.Errorf("Lists with a changed list fails with %v", err)
	}
}

func TestReadIndexRefused(t *testing.T) {
	const good = "Package: a\nVersion: 1\nArchitecture: all\nFilename: pool/a.deb\nSize: 5\nSHA256: " +
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
	if list, err := deb.ReadIndex(strings.NewReader(good+"\n\n"+good), []string{"a"}); err != nil || len(list) != 2 {
		t.Errorf("ReadIndex gives %v, %v, want two packages", list, err)
	}
	for _, c := range []struct{ old, now, want string }{
		{"pool/a.deb", "/etc/shadow", "could lead out of the repository"},
		{"pool/a.deb", "pool/../../a.deb", "could lead out of the repository"},
		{"Filename: pool/a.deb\n", "", "could lead out of the repository"},
		{"Size: 5", "Size: -5", `the field Size is "-5"`},
		{"Size: 5\n", "", `the field Size is ""`},
		{"e3b0", "e3", "the field SHA256 is"},
		{"Version: 1\n", "", "the field Version is missing"},
		{"Package: a", "Package a", "is no field"},
	} {
		list, err := deb.ReadIndex(strings.NewReader(strings.Replace(good, c.old, c.now, 1)), []string{"a"})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %q for %q ReadIndex gives %v, %v, want the error %q", c.now, c.old, list, err, c.want)
		}
	}
}

func FuzzReadIndex(f *testing.F) {
	f.Add([]byte("Package: a\nVersion: 1\nArchitecture: all\nFilename: pool/a.deb\nSize: 5\nSHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nReplaces: b (<< 1:2~), c | d\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := deb.ReadIndex(bytes.NewReader(text), []string{"*"})
		if err != nil && list != nil {
			t.Errorf("ReadIndex gives %v beside the error %v", list, err)
		}
		for _, e := range list {
			if !fs.ValidPath(e.Filename) || e.Size <= 0 || len(e.SHA256) != 64 {
				t.Errorf("ReadIndex gives %+v", e)
			}
		}
	})
}

// FuzzLists reads releases.
func FuzzLists(f *testing.F) {
	f.Add([]byte("Suite: a\nComponents: main\nSHA256:\n e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0 main/binary-amd64/Packages\n"))
	f.Add([]byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nSuite: a\n-----BEGIN PGP SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, release []byte) {
		dir := fstest.MapFS{"x_InRelease": {Data: release}, "x_main_binary-amd64_Packages": {}}
		if entries, err := deb.Lists(dir, "amd64", []string{"*"}); err == nil && len(entries) > 0 {
			t.Errorf("Lists gives %v of an empty list", entries)
		}
	})
}

// FuzzRepository reads repositories of somebody who is trusted and hostile, and
// holds that nothing outside the repository is asked for.
func FuzzRepository(f *testing.F) {
	const index = "Package: a\nVersion: 1\nArchitecture: all\nFilename: pool/a.deb\nSize: 5\nSHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
	f.Add("Suite: s\nComponents: main\nAcquire-By-Hash: yes\n", "main/binary-amd64/Packages", []byte(index))
	f.Add("Suite: s\nComponents: ../../x\nDate: Thu, 25 Dec 2014 00:00:00 UTC\n", "../../x/binary-amd64/Packages", []byte(index))
	f.Add("Suite: s\nComponents: main/../..\n", "main/binary-amd64/Packages.gz", []byte(strings.Replace(index, "pool", "../..", 1)))
	f.Fuzz(func(t *testing.T, fields, name string, index []byte) {
		release := fmt.Appendf(nil, "%s\nSHA256:\n %s %d %s\n", strings.TrimRight(fields, "\n"), sha256Of(index), len(index), name)
		files := watched{t, release, index}
		r := &deb.Repository{Files: files, Suite: "s", Architecture: "amd64", Verifier: trusting{}}
		entries, err := r.Packages(t.Context(), []string{"*"})
		if err != nil && entries != nil {
			t.Errorf("Packages gives %v beside the error %v", entries, err)
		}
		for _, e := range entries {
			if _, err := r.Input(e).Open(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// watched is a repository that has every file, and says which names are none.
type watched struct {
	t              *testing.T
	release, index []byte
}

func (w watched) Open(_ context.Context, name string) (io.ReadCloser, error) {
	if !fs.ValidPath(name) || name == "." {
		w.t.Errorf("the file %q was asked for", name)
	}
	data := w.index
	if path.Base(name) == "InRelease" {
		data = w.release
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// trusting takes everything as signed.
type trusting struct{}

func (trusting) Verify(_ context.Context, signed []byte) ([]byte, error) { return signed, nil }

func FuzzCompare(f *testing.F) {
	f.Add("1:2.3~rc1-4", "2.3+b1-4")
	f.Fuzz(func(t *testing.T, a, b string) {
		if x, y := deb.Compare(a, b), deb.Compare(b, a); x != -y {
			t.Errorf("Compare(%q, %q) = %d, and the other way round %d", a, b, x, y)
		}
		if deb.Compare(a, a) != 0 {
			t.Errorf("Compare(%q, itself) is not 0", a)
		}
	})
}
