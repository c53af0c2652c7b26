package verify

import (
	"encoding/json"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"overmount/firmware"
	"overmount/kmod/kmodtest"
)

// shipped has what the modules of withFirmware declare in all the ways in which it may
// be there, and what nobody declares.
var shipped = fstest.MapFS{
	"plain.fw": {}, "x/packed.fw.xz": {}, "x/zst.fw.zst": {}, "b-1.fw": {}, "p-1.fw.zst": {}, "updates/updated.fw": {}, "6.1/versioned.fw": {}, "gone.fw/dir": {},
	"linked.fw":          {Data: []byte("x/zst.fw"), Mode: fs.ModeSymlink},
	"to.fw.zst":          {Data: []byte("x/zst.fw.zst"), Mode: fs.ModeSymlink},
	"linked":             {Data: []byte("x"), Mode: fs.ModeSymlink},
	"plainlink.fw":       {Data: []byte("plain.fw"), Mode: fs.ModeSymlink},
	"dangling.fw":        {Data: []byte("nothing"), Mode: fs.ModeSymlink},
	"nobody/declares.me": {}, "nobodys.fw": {},
}

func withFirmware(t *testing.T) string {
	return newTree(t, map[string]kmodtest.Module{
		"kernel/drivers/net/wireless/v/a.ko": {Info: []string{"firmware=plain.fw", "firmware=x/packed.fw", "firmware=gone.fw", "firmware=gone.fw", "firmware=../up.fw"}},
		"kernel/drivers/net/wireless/b.ko":   {Info: []string{"firmware=b-*.fw", "firmware=c-*.fw", "firmware=p-*.fw", "firmware=updated.fw", "firmware=versioned.fw", "firmware=gone.fw"}},
		"kernel/drivers/bluetooth/c.ko":      {Info: []string{"firmware=x/zst.fw", "firmware=to.fw", "firmware=linked/zst.fw", "firmware=plainlink.fw"}},
		"kernel/sound/pci/d.ko":              {Info: []string{"firmware=dangling.fw", "firmware=linked.fw"}},
		"kernel/lib/e.ko":                    {},
	})
}

func firmwareFindings(t *testing.T, dir string, o *ModulesOptions) (found []Finding) {
	t.Helper()
	all, err := Modules(t.Context(), os.DirFS(dir), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.Check == "firmware" {
			found = append(found, f)
		}
	}
	return found
}

// TestFirmware holds that what is there is told of each module, also what is there
// compressed, through links or for a pattern, and what is not of each class, too.
func TestFirmware(t *testing.T) {
	info := func(path, text string, missing []string, present ...Present) Finding {
		return Finding{Severity: Info, Check: "firmware", Path: path, Text: text, Names: missing, Present: present}
	}
	want := []Finding{
		info("kernel/drivers/bluetooth", "of 1 module, all 4 declared names are there", nil),
		info("kernel/drivers/bluetooth/c.ko", "all 4 declared firmware files are there: linked/zst.fw, plainlink.fw, to.fw, x/zst.fw", nil,
			Present{"linked/zst.fw", "linked/zst.fw.zst"}, Present{"plainlink.fw", "plainlink.fw"}, Present{"to.fw", "to.fw.zst"}, Present{"x/zst.fw", "x/zst.fw.zst"}),
		info("kernel/drivers/net/wireless", "of 2 modules, 2 lack some of what they declare: 3 of 9 names: ../up.fw, c-*.fw, gone.fw", []string{"../up.fw", "c-*.fw", "gone.fw"}),
		info("kernel/drivers/net/wireless/b.ko", "2 of 6 declared firmware files are not there: c-*.fw, gone.fw; there are b-*.fw, p-*.fw, updated.fw, versioned.fw", []string{"c-*.fw", "gone.fw"},
			Present{"b-*.fw", "b-1.fw"}, Present{"p-*.fw", "p-1.fw.zst"}, Present{"updated.fw", "updates/updated.fw"}, Present{"versioned.fw", "6.1/versioned.fw"}),
		info("kernel/drivers/net/wireless/v/a.ko", "2 of 4 declared firmware files are not there: ../up.fw, gone.fw; there are plain.fw, x/packed.fw", []string{"../up.fw", "gone.fw"},
			Present{"plain.fw", "plain.fw"}, Present{"x/packed.fw", "x/packed.fw.xz"}),
		// A link to a file that is there only compressed leads nowhere.
		info("kernel/sound/pci", "of 1 module, which lacks some of what it declares: 2 of 2 names: dangling.fw, linked.fw", []string{"dangling.fw", "linked.fw"}),
		info("kernel/sound/pci/d.ko", "2 of 2 declared firmware files are not there: dangling.fw, linked.fw", []string{"dangling.fw", "linked.fw"}),
		info("", "10 of 15 declared names are there. They are hints: some are patterns, drivers make up others as they run, and no file is useless because nobody declares it", nil),
	}
	got := firmwareFindings(t, withFirmware(t), &ModulesOptions{Firmware: shipped, Kver: "6.1"})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings differ (-want +got):\n%s", diff)
	}
}

// TestUndeclaredFirmware holds that nothing is said about files that nobody declares.
func TestUndeclaredFirmware(t *testing.T) {
	x := &firmware.Index{}
	x.AddFile("lib/firmware/nobodys.fw", firmware.Package{Name: "unwanted"})
	text, err := json.Marshal(firmwareFindings(t, withFirmware(t), &ModulesOptions{Firmware: shipped, Packages: x}))
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"nobody/", "nobodys", "unwanted", "unused"} {
		if strings.Contains(string(text), word) {
			t.Errorf("the findings speak of %q:\n%s", word, text)
		}
	}
}

func TestFirmwarePackages(t *testing.T) {
	x := &firmware.Index{}
	one, two, three := firmware.Package{Name: "fw-one", Version: "1.0"}, firmware.Package{Name: "fw-two"}, firmware.Package{Name: "fw-three"}
	x.AddFile("lib/firmware/gone.fw.zst", one)
	x.AddFile("usr/lib/firmware/gone.fw.zst", two)
	x.AddFile("lib/firmware/6.1/c-2.fw.xz", two)
	x.AddFile("lib/firmware/plain.fw", one) // is there
	x.AddLink("lib/firmware/dangling.fw", "other.fw", one)
	x.AddFile("lib/firmware/other.fw", three)
	x.AddPath("lib/firmware/linked.fw-debian", three)
	var got []Finding
	for _, f := range firmwareFindings(t, withFirmware(t), &ModulesOptions{Firmware: shipped, Kver: "6.1", Packages: x}) {
		if len(f.Modules) > 0 {
			got = append(got, f)
		}
	}
	want := []Finding{
		{Check: "firmware", Text: "fw-one 1.0 would bring 1 missing file: gone.fw (a, b)",
			Packages: []firmware.Package{one}, Names: []string{"gone.fw"}, Modules: []string{"a", "b"}},
		{Check: "firmware", Text: "fw-one 1.0 with fw-three would bring 1 missing file: dangling.fw (d)",
			Packages: []firmware.Package{one, three}, Names: []string{"dangling.fw"}, Modules: []string{"d"}},
		{Check: "firmware", Text: "fw-two would bring 2 missing files: c-*.fw, gone.fw (a, b)",
			Packages: []firmware.Package{two}, Names: []string{"c-*.fw", "gone.fw"}, Modules: []string{"a", "b"}},
		{Check: "firmware", Text: "fw-three may bring, by a link that the index does not show, 1 missing file: linked.fw (d)",
			Packages: []firmware.Package{three}, Names: []string{"linked.fw"}, Modules: []string{"d"}, Perhaps: true},
		{Check: "firmware", Text: "no package of the index has 1 missing file: ../up.fw (a)", Names: []string{"../up.fw"}, Modules: []string{"a"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings differ (-want +got):\n%s", diff)
	}
	text, err := json.Marshal(want[1])
	const wantText = `{"severity":"info","check":"firmware","text":"fw-one 1.0 with fw-three would bring 1 missing file: dangling.fw (d)","names":["dangling.fw"],` +
		`"packages":[{"name":"fw-one","version":"1.0"},{"name":"fw-three"}],"modules":["d"]}`
	if string(text) != wantText || err != nil {
		t.Errorf("as JSON, it is\n%s, %v, want\n%s", text, err, wantText)
	}
}
