package firmware_test

import (
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"overmount/firmware"
)

// files is a directory; each file is as long as the number says.
func files(sizes map[string]int) fstest.MapFS {
	fsys := fstest.MapFS{}
	for name, n := range sizes {
		fsys[name] = &fstest.MapFile{Data: make([]byte, n)}
	}
	return fsys
}

var searched = map[string]int{
	"a.fw": 1, "6.1/a.fw": 2, "updates/a.fw": 3, "updates/6.1/a.fw": 4,
	"b.fw": 1, "6.1/b.fw": 2, "updates/b.fw": 3,
	"c.fw": 1, "6.1/c.fw": 2,
	"d.fw": 1, "updates/6.1/d.fw.zst": 9,
	"e.fw.xz": 1, "e.fw.zst": 2, "updates/e.fw.xz": 3,
	"f.fw.xz": 5, "dir.fw/x": 1,
	"brcm/x-1.txt": 1, "brcm/x-2.txt.xz": 2, "updates/brcm/x-1.txt": 3, "brcm/y.txt": 4,
}

func TestFind(t *testing.T) {
	for _, test := range []struct {
		kver, name string
		want       firmware.File
		ok         bool
	}{
		{"6.1", "a.fw", firmware.File{Path: "updates/6.1/a.fw", Size: 4}, true},
		{"6.1", "b.fw", firmware.File{Path: "updates/b.fw", Size: 3}, true},
		{"6.1", "c.fw", firmware.File{Path: "6.1/c.fw", Size: 2}, true},
		{"", "c.fw", firmware.File{Path: "c.fw", Size: 1}, true},
		{"6.1", "d.fw", firmware.File{Path: "d.fw", Size: 1}, true},
		{"6.1", "e.fw", firmware.File{Path: "e.fw.zst", Size: 2, Suffix: ".zst"}, true},
		{"6.1", "f.fw", firmware.File{Path: "f.fw.xz", Size: 5, Suffix: ".xz"}, true},
		{"6.1", "dir.fw", firmware.File{}, false},
		{"6.1", "nosuch.fw", firmware.File{}, false},
		{"6.1", "../6.1/c.fw", firmware.File{}, false},
		{"..", "updates/../c.fw", firmware.File{}, false},
		{"6.1", "/c.fw", firmware.File{}, false},
		{"6.1", "", firmware.File{}, false},
	} {
		got, ok := firmware.New(files(searched), test.kver).Find(test.name)
		if got != test.want || ok != test.ok {
			t.Errorf("New(%q).Find(%q) = %+v, %v, want %+v, %v", test.kver, test.name, got, ok, test.want, test.ok)
		}
	}
}

func TestMatch(t *testing.T) {
	d := firmware.New(files(searched), "6.1")
	for pattern, want := range map[string][]firmware.File{
		"brcm/x-*.txt": {{Path: "updates/brcm/x-1.txt", Size: 3}, {Path: "brcm/x-2.txt.xz", Size: 2, Suffix: ".xz"}},
		"brcm/y.???":   {{Path: "brcm/y.txt", Size: 4}},
		"e.fw*":        {{Path: "updates/e.fw.xz", Size: 3}, {Path: "e.fw.zst", Size: 2}},
		"dir.*":        {{Path: "dir.fw/x", Size: 1}},
		"z*":           nil,
	} {
		got, err := d.Match(pattern)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("Match(%q) (-want +got), error %v:\n%s", pattern, err, diff)
		}
	}
	if !firmware.IsPattern("a[12]") || firmware.IsPattern("a.fw") {
		t.Errorf(`IsPattern("a[12]"), IsPattern("a.fw") = %v, %v, want true, false`, firmware.IsPattern("a[12]"), firmware.IsPattern("a.fw"))
	}
}
