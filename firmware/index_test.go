package firmware_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/firmware"
)

func pkg(name string) firmware.Package { return firmware.Package{Name: name, Version: "1"} }

// newIndex has packages of all kinds: old is one of which only names are known.
func newIndex() *firmware.Index {
	x := &firmware.Index{}
	x.AddFile("usr/lib/firmware/a.bin", pkg("one"))
	x.AddFile("lib/firmware/a.bin", pkg("two"))
	x.AddFile("lib/firmware/packed.bin.zst", pkg("one"))
	x.AddFile("lib/firmware/old/packed.bin.xz", pkg("one"))
	x.AddFile("lib/firmware/updates/6.1/new.bin", pkg("one"))
	x.AddFile("lib/firmware/6.1/own.bin", pkg("kernel"))
	x.AddFile("usr/share/doc/doc.bin", pkg("one"))

	x.AddFile("lib/firmware/dir/c.bin.zst", pkg("one"))
	x.AddFile("lib/firmware/dir/sub/d.bin", pkg("one"))
	x.AddLink("lib/firmware/own.link.zst", "dir/c.bin.zst", pkg("one"))
	x.AddLink("lib/firmware/far/away.bin", "../dir/sub/d.bin", pkg("two"))
	x.AddLink("lib/firmware/all", "/usr/lib/firmware/dir", pkg("two"))
	x.AddLink("lib/firmware/chain", "all/sub", pkg("three"))
	x.AddLink("lib/firmware/dangling.bin", "dir/nothing.bin", pkg("two"))
	x.AddLink("lib/firmware/loop.bin", "loop.bin", pkg("two"))
	x.AddLink("lib/firmware/loops", "loops/loops", pkg("two"))
	x.AddLink("lib/firmware/outside.bin", "../../../etc/alternatives/outside.bin", pkg("two"))

	x.AddPath("lib/firmware/name.bin", firmware.Package{Name: "named"})
	x.AddPath("lib/firmware/perhaps", firmware.Package{Name: "named"})
	x.AddPath("lib/firmware/reg.db-debian", firmware.Package{Name: "regdb"})
	x.AddPath("lib/firmware/reg.db-upstream", firmware.Package{Name: "regdb"})
	x.AddPath("lib/firmware/reg.db-dir/x", firmware.Package{Name: "other"})
	return x
}

// sources are the packages in the order in which they are found, with "?" for perhaps.
func sources(found []firmware.Source) []string {
	list := []string{}
	for _, s := range found {
		words := []string{}
		for _, p := range s.Packages {
			words = append(words, p.Name)
		}
		text := strings.Join(words, "+")
		if s.Perhaps {
			text += "?"
		}
		list = append(list, text)
	}
	return list
}

func TestIndexFind(t *testing.T) {
	x := newIndex()
	for _, test := range []struct {
		kver, name string
		want       []string
	}{
		{"6.1", "a.bin", []string{"one", "two"}},
		{"6.1", "packed.bin", []string{"one"}},
		{"6.1", "old/packed.bin", []string{"one"}},
		{"6.1", "new.bin", []string{"one"}},
		{"6.2", "new.bin", []string{}},
		{"6.1", "own.bin", []string{"kernel"}},
		{"", "own.bin", []string{}},
		{"6.1", "doc.bin", []string{}},
		{"6.1", "dir", []string{}},
		{"6.1", "../a.bin", []string{}},
		{"6.1", "", []string{}},

		{"6.1", "own.link", []string{"one"}},         // a link to what the same package has
		{"6.1", "far/away.bin", []string{"one+two"}}, // to what another one has
		{"6.1", "all/c.bin", []string{"one+two"}},    // a link to a directory, of what is compressed
		{"6.1", "chain/d.bin", []string{"one+three+two"}},
		{"6.1", "dangling.bin", []string{}},
		{"6.1", "loop.bin", []string{}},
		{"6.1", "loops/x.bin", []string{}},
		{"6.1", "outside.bin", []string{"two?"}},
		{"6.1", "a.bin/b.bin", []string{}}, // known to be a file

		{"6.1", "name.bin", []string{"named"}},
		{"6.1", "perhaps/x.bin", []string{"named?"}}, // a file, or a link to a directory
		{"6.1", "reg.db", []string{"regdb?"}},        // a link that a script makes
		{"6.1", "reg", []string{}},
	} {
		if diff := cmp.Diff(test.want, sources(x.Find(test.kver, test.name))); diff != "" {
			t.Errorf("Find(%q, %q) (-want +got):\n%s", test.kver, test.name, diff)
		}
	}
}

func TestIndexMatch(t *testing.T) {
	x := newIndex()
	for pattern, want := range map[string][]string{
		"?.bin":    {"one", "two"},
		"*c.bin":   {"one"}, // compressed
		"f*.bin":   {"one+two"},
		"dangl*":   {},
		"nothing*": {},
		"out*.bin": {"two?"},
	} {
		if diff := cmp.Diff(want, sources(x.Match("6.1", pattern))); diff != "" {
			t.Errorf("Match(%q) (-want +got):\n%s", pattern, diff)
		}
	}
}

// TestIndexManyLinks has so many ways through links that not all can be tried.
func TestIndexManyLinks(t *testing.T) {
	x := &firmware.Index{}
	for _, p := range "abcdefgh" {
		x.AddLink("lib/firmware/x", "y", pkg(string(p)))
		x.AddLink("lib/firmware/y", "x", pkg(string(p)))
	}
	if got := x.Find("", "x/z"); len(got) > 0 {
		t.Errorf("Find = %v, want nothing", got)
	}
}

func text(t *testing.T, x *firmware.Index) string {
	t.Helper()
	var b bytes.Buffer
	if err := x.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestIndexFile(t *testing.T) {
	const head = "# overmount firmware index 1: path, package, version, link\n"
	first := text(t, newIndex())
	for _, line := range []string{"a.bin\tone\t1\na.bin\ttwo\t1\n", "\nname.bin\tnamed\t\t?\n", "\nall\ttwo\t1\t-> dir\n", "\noutside.bin\ttwo\t1\t-> /etc/alternatives/outside.bin\n"} {
		if !strings.Contains(first, line) || !strings.HasPrefix(first, head) {
			t.Errorf("the text lacks %q:\n%s", line, first)
		}
	}
	x, err := firmware.ReadIndex(strings.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, text(t, x)); diff != "" {
		t.Errorf("what was read is written in another way (-want +got):\n%s", diff)
	}
	if got, want := sources(x.Find("6.1", "chain/d.bin")), []string{"one+three+two"}; !cmp.Equal(got, want) {
		t.Errorf("of what was read, Find gives %q, want %q", got, want)
	}
	for text, want := range map[string]string{
		"":                                     "it is empty",
		"a\tb\tc\n":                            "it is no index of firmware",
		head + "a\tb\n":                        "line 2",
		head + "a\tb\t1\n../a\tb\t1\n":         "line 3",
		head + "/a\tb\t1\n":                    "line 2",
		head + "a\tb c\t1\n":                   "line 2",
		head + "a\t\t1\n":                      "line 2",
		head + "a\tb\t1\tc\n":                  "line 2",
		head + "a\tb\t1\t-> ../x\n":            "line 2",
		head + "a\tb\t1\t-> /x/..\n":           "line 2",
		head + "a\tb\t1\t-> ?\n":               "line 2",
		head + strings.Repeat("a", 20000) + "": "too long",
	} {
		if x, err := firmware.ReadIndex(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) || x != nil {
			t.Errorf("ReadIndex(%.80q) = %v, %v, want the error %q", text, x, err, want)
		}
	}
}

// What cannot be written down is passed over.
func TestIndexNames(t *testing.T) {
	x := &firmware.Index{}
	x.AddFile("lib/firmware/a\tb", pkg("one"))
	x.AddFile("lib/firmware/a\nb", pkg("one"))
	x.AddFile("lib/firmware/../x", pkg("one"))
	x.AddFile("lib/firmware", pkg("one"))
	x.AddFile("lib/firmwares/a", pkg("one"))
	x.AddFile("lib/firmware/a", pkg("o ne"))
	x.AddFile("lib/firmware/a", firmware.Package{Name: "one", Version: "1\n"})
	x.AddLink("lib/firmware/a", "b\tc", pkg("one"))
	x.AddLink("lib/firmware/a", "\xff", pkg("one"))
	if x.Len() != 0 {
		t.Errorf("the index has %q, want nothing", text(t, x))
	}
}

// FuzzReadIndex holds that what is read can be written, and read again as the same.
func FuzzReadIndex(f *testing.F) {
	f.Add("# overmount firmware index 1: path, package, version, link\na\tb\t1\nc\td\t\t?\ne\tf\t1\t-> a\ne\tf\t1\t-> /a\n", "e")
	f.Fuzz(func(t *testing.T, in, name string) {
		x, err := firmware.ReadIndex(strings.NewReader(in))
		if err != nil {
			return
		}
		x.Find("6.1", name)
		first := text(t, x)
		again, err := firmware.ReadIndex(strings.NewReader(first))
		if err != nil {
			t.Fatalf("ReadIndex of what Write has written: %v\n%q", err, first)
		}
		if second := text(t, again); second != first {
			t.Errorf("written again, it is\n%q, not\n%q", second, first)
		}
	})
}
