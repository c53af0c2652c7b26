package deb_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"overmount/deb"
	"overmount/deb/debtest"
)

var firmwareDirs = []string{"lib/firmware", "usr/lib/firmware"}

func TestReadContents(t *testing.T) {
	const text = `This file maps each file to the packages that have it.
lib/firmware
lib/firmware/                                           a
FILE                                                    LOCATION
bin/lib/firmware/a                                      admin/other
lib/firmware/a.bin                                      non-free-firmware/kernel/fw-a,kernel/fw-b,fw-c
lib/firmware/brcm/with some space.txt` + "\t \t" + `kernel/fw-a
lib/firmware/no-package
lib/firmware/../../etc/passwd                           kernel/fw-a
lib/firmware/bad                                        kernel/fw_a
lib/firmwares/b.bin                                     kernel/fw-a
usr/lib/firmware/b.bin                                  kernel/fw-a` + "\r" + `
./lib/firmware/c.bin                                    kernel/fw-a
/lib/firmware/d.bin                                     kernel/fw-a
zoo                                                     games/zoo`
	want := []deb.Content{
		{Path: "lib/firmware/a.bin", Packages: []string{"fw-a", "fw-b", "fw-c"}},
		{Path: "lib/firmware/brcm/with some space.txt", Packages: []string{"fw-a"}},
		{Path: "usr/lib/firmware/b.bin", Packages: []string{"fw-a"}},
		{Path: "lib/firmware/c.bin", Packages: []string{"fw-a"}},
		{Path: "lib/firmware/d.bin", Packages: []string{"fw-a"}},
	}
	got, err := deb.ReadContents(strings.NewReader(text), firmwareDirs)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("ReadContents (-want +got), error %v:\n%s", err, diff)
	}
	if got, err := deb.ReadContents(strings.NewReader(text+strings.Repeat("x", 2<<20)), firmwareDirs); err == nil || !strings.Contains(err.Error(), "a line has over the limit") || got != nil {
		t.Errorf("ReadContents with a long line = %v, %v, want an error", got, err)
	}
	long := "lib/firmware/" + strings.Repeat("x", 1<<19) + " a\n"
	if got, err := deb.ReadContents(strings.NewReader(strings.Repeat(long, 33)), firmwareDirs); err == nil || !strings.Contains(err.Error(), "about lib/firmware and usr/lib/firmware") || got != nil {
		t.Errorf("ReadContents of too much = %d lines, %v, want an error", len(got), err)
	}
}

func FuzzReadContents(f *testing.F) {
	f.Add([]byte("FILE LOCATION\nlib/firmware/a b\tkernel/x,y\nlib/firmware/../c z\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := deb.ReadContents(strings.NewReader(string(text)), firmwareDirs)
		if err != nil && list != nil {
			t.Errorf("ReadContents gives %v beside the error %v", list, err)
		}
		for _, c := range list {
			below := slices.ContainsFunc(firmwareDirs, func(dir string) bool { return strings.HasPrefix(c.Path, dir+"/") })
			bad := slices.ContainsFunc(c.Packages, func(name string) bool { return name == "" || strings.ContainsAny(name, "/ \t,") })
			if !fs.ValidPath(c.Path) || !below || len(c.Packages) == 0 || bad {
				t.Errorf("ReadContents gives %+v", c)
			}
		}
	})
}

// withFirmware are packages of two architectures with firmware.
var withFirmware = []debtest.Package{
	{Name: "fw-all", Files: []debtest.Entry{{Name: "./lib/"}, {Name: "./lib/firmware/"}, {Name: "./lib/firmware/a.bin", Content: "a"}, {Name: "./lib/firmware/link.bin", Link: "a.bin"}}},
	{Name: "fw-two", Files: []debtest.Entry{{Name: "./lib/firmware/a.bin", Content: "other"}, {Name: "./usr/bin/a", Content: "a"}}},
	{Name: "fw-arch", Arch: "amd64", Files: []debtest.Entry{{Name: "./usr/lib/firmware/b.bin", Content: "b"}}},
}

var firmwareContents = []deb.Content{
	{Path: "lib/firmware/a.bin", Packages: []string{"fw-all", "fw-two"}},
	{Path: "lib/firmware/link.bin", Packages: []string{"fw-all"}},
	{Path: "usr/lib/firmware/b.bin", Packages: []string{"fw-arch"}},
}

func byPath(list []deb.Content) []deb.Content {
	return slices.SortedFunc(slices.Values(list), func(a, b deb.Content) int { return strings.Compare(a.Path, b.Path) })
}

func TestContents(t *testing.T) {
	s := newSigner(t)
	plain := string(debtest.Repository{Suite: "bookworm", Arch: "amd64", Packages: withFirmware, Contents: true, Sign: s.sign}.Files(t)["dists/bookworm/main/Contents-all"])
	for _, suffix := range []string{"", ".gz", ".xz"} {
		files := memory(debtest.Repository{Suite: "bookworm", Arch: "amd64", Suffix: suffix, Packages: withFirmware, Contents: true, Sign: s.sign}.Files(t))
		r := &deb.Repository{Files: files, Suite: "bookworm", Architecture: "amd64", Verifier: s.verifier()}
		got, absent, err := r.Contents(t.Context(), firmwareDirs)
		if diff := cmp.Diff(firmwareContents, byPath(got)); diff != "" || absent != nil || err != nil {
			t.Errorf("%q: Contents (-want +got), absent %q, error %v:\n%s", suffix, absent, err, diff)
		}
		const all, amd64 = "dists/bookworm/main/Contents-all", "dists/bookworm/main/Contents-amd64"

		// Another one, and one of the same length.
		for _, text := range []string{"lib/firmware/evil.bin kernel/evil\n", strings.Replace(plain, "a.bin", "e.bin", 1)} {
			changed := maps.Clone(files)
			changed[all+suffix] = debtest.Compress(t, suffix, []byte(text))
			r.Files = changed
			if got, _, err := r.Contents(t.Context(), firmwareDirs); err == nil || !strings.Contains(err.Error(), all+": ") || got != nil {
				t.Errorf("%q: with another index, Contents = %v, %v, want an error that names it", suffix, got, err)
			}
		}
		some := maps.Clone(files)
		delete(some, amd64+suffix)
		r.Files = some
		got, absent, err = r.Contents(t.Context(), firmwareDirs)
		if diff := cmp.Diff(firmwareContents[:2], byPath(got)); diff != "" || !slices.Equal(absent, []string{"main/Contents-amd64"}) || err != nil {
			t.Errorf("%q: without one index, Contents (-want +got), absent %q, error %v:\n%s", suffix, absent, err, diff)
		}
		delete(some, all+suffix)
		if got, _, err := r.Contents(t.Context(), firmwareDirs); !errors.Is(err, deb.ErrNoContents) || got != nil {
			t.Errorf("%q: without any index, Contents = %v, %v, want ErrNoContents", suffix, got, err)
		}
	}
	r := &deb.Repository{Suite: "bookworm", Architecture: "amd64", Verifier: s.verifier(),
		Files: memory(debtest.Repository{Suite: "bookworm", Arch: "amd64", Packages: withFirmware, Sign: s.sign}.Files(t))}
	if got, _, err := r.Contents(t.Context(), firmwareDirs); !errors.Is(err, deb.ErrNoContents) || got != nil {
		t.Errorf("where no index is listed, Contents = %v, %v, want ErrNoContents", got, err)
	}
	r.Verifier = newSigner(t).verifier()
	if _, _, err := r.Contents(t.Context(), firmwareDirs); err == nil || errors.Is(err, deb.ErrNoContents) {
		t.Errorf("signed by somebody else, Contents fails with %v, want that the key is missing", err)
	}
}

func TestListsContents(t *testing.T) {
	unsigned := func(text []byte) []byte { return text }
	dir := fstest.MapFS{}
	for name, data := range (debtest.Repository{Suite: "bookworm", Arch: "amd64", Packages: withFirmware, Contents: true, Sign: unsigned}).Files(t) {
		dir["example.org_debian_"+strings.ReplaceAll(name, "/", "_")] = &fstest.MapFile{Data: data}
	}
	const all, amd64 = "example.org_debian_dists_bookworm_main_Contents-all", "example.org_debian_dists_bookworm_main_Contents-amd64"
	plain := dir[all].Data
	for _, suffix := range []string{"", ".gz", ".xz"} { // apt compresses in its own way
		delete(dir, all)
		dir[all+suffix] = &fstest.MapFile{Data: debtest.Compress(t, suffix, plain)}
		got, err := deb.ListsContents(dir, "amd64", firmwareDirs)
		if diff := cmp.Diff(firmwareContents, byPath(got)); diff != "" || err != nil {
			t.Errorf("%q: ListsContents (-want +got), error %v:\n%s", suffix, err, diff)
		}
		delete(dir, all+suffix)
	}
	// One for all components, as in Ubuntu.
	one := fstest.MapFS{"x_InRelease": {Data: []byte("Suite: s\nComponents: main universe\nSHA256:\n " + sha256Of(plain) + fmt.Sprintf(" %d Contents-amd64\n", len(plain)))}, "x_Contents-amd64": {Data: plain}}
	if got, err := deb.ListsContents(one, "amd64", firmwareDirs); !cmp.Equal(got, firmwareContents[:2]) || err != nil {
		t.Errorf("of one list for all components, ListsContents = %v, %v, want %v", got, err, firmwareContents[:2])
	}
	dir[all] = &fstest.MapFile{Data: append(slices.Clip(plain), "lib/firmware/evil.bin kernel/evil\n"...)}
	if got, err := deb.ListsContents(dir, "amd64", firmwareDirs); err == nil || !strings.Contains(err.Error(), all) || got != nil {
		t.Errorf("with a changed list, ListsContents = %v, %v, want an error that names it", got, err)
	}
	delete(dir, all)
	delete(dir, amd64)
	if got, err := deb.ListsContents(dir, "amd64", firmwareDirs); !errors.Is(err, deb.ErrNoContents) || !strings.Contains(err.Error(), "apt-file") || got != nil {
		t.Errorf("without lists of files, ListsContents = %v, %v, want ErrNoContents", got, err)
	}
}

// TestList lists packages, which may have the same paths, and keeps nothing of them.
func TestList(t *testing.T) {
	s := newSigner(t)
	files := memory(debtest.Repository{Suite: "bookworm", Arch: "amd64", Packages: withFirmware, Sign: s.sign}.Files(t))
	r := &deb.Repository{Files: files, Suite: "bookworm", Architecture: "amd64", Verifier: s.verifier()}
	entries, err := r.Packages(t.Context(), []string{"fw-*"})
	if err != nil {
		t.Fatal(err)
	}
	var inputs []deb.Input
	for _, e := range entries {
		inputs = append(inputs, r.Input(e))
	}
	keep := func(name string) (string, bool) { return name, strings.Contains(name, "firmware/") }
	t.Setenv("TMPDIR", "/nonexistent") // a spool would be there
	list, err := deb.List(t.Context(), inputs, keep, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range list {
		for _, f := range l.Files {
			got = append(got, strings.TrimSuffix(l.Package+" "+f.Name+" -> "+f.Link, " -> "))
		}
	}
	want := []string{"fw-all lib/firmware/a.bin", "fw-all lib/firmware/link.bin -> a.bin", "fw-arch usr/lib/firmware/b.bin", "fw-two lib/firmware/a.bin"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	files[entries[0].Filename] = withFirmware[1].Bytes(t)
	if list, err := deb.List(t.Context(), inputs, keep, nil); err == nil || !strings.Contains(err.Error(), "fw-all") || list != nil {
		t.Errorf("of a swapped package, List = %v, %v, want an error that names it", list, err)
	}
}
