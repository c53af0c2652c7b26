package overmount

import (
	"go/build"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// floors is the map of the house: a package imports only what lies on lower
// floors. doc.go says it in prose. A new package gets its line here, on the
// lowest floor that it can live on.
var floors = map[string]int{
	"cmd/overmount": 5, "cmd/overmount-boot": 5, "internal/demo": 5,

	"internal/cli": 4,

	"pack": 3, "verify": 3, "fusefs": 3, "boot": 3, "modload": 3, "initramfs": 3, "prefetch": 3,

	"tree": 2, "tree/treetest": 2, "bootpack": 2, "cache": 2, "coldplug": 2, "gc": 2, "origin": 2, "sysroot": 2, "internal/webdir": 2,
	"store/httpstore": 2, "store/s3store": 2, "store/zdbstore": 2, "store/storetest": 2,

	"manifest": 1, "store": 1, "depmod": 1, "signature": 1, "firmware": 1, "kmod/kmodtest": 1, "internal/httpclient": 1,
	"apk": 1, "deb": 1, "deb/debtest": 1,

	"block": 0, "kmod": 0, "archive": 0, "internal/atomicfile": 0, "internal/flight": 0,
	"internal/cpio": 0, "internal/linequeue": 0, "internal/mounts": 0, "internal/notify": 0, "internal/overlay": 0, "internal/pulse": 0, "internal/refetch": 0, "internal/testenv": 0,
	"internal/decompress": 0, "apk/apktest": 0, "archive/archivetest": 0,

	"internal/pathfs": -1, "internal/xz": -1,

	"bench": roof, "contrib": roof, "test/vm": roof, ".": roof,
}

// roof is above all floors: measurements and this test, which nothing imports.
const roof = 6

// A test may import what lies on its own floor, too; and these, which are made
// for tests.
var forTests = []string{"store/storetest", "tree/treetest", "kmod/kmodtest", "apk/apktest", "archive/archivetest", "deb/debtest", "internal/testenv"}

func TestLayers(t *testing.T) {
	all := packages(t)
	for name := range floors {
		if !slices.Contains(all, name) {
			t.Errorf("there is no package %s, which floors in layers_test.go has", name)
		}
	}
	for _, dir := range all {
		floor, ok := floors[dir]
		if !ok {
			t.Errorf("package %s is on no floor: add it to floors in layers_test.go, and to doc.go", dir)
			continue
		}
		p, err := build.ImportDir(filepath.FromSlash(dir), 0)
		if err != nil {
			t.Errorf("package %s: %v", dir, err)
			continue
		}
		for _, name := range ours(p.Imports) {
			if below, ok := floors[name]; !ok || below >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d): want a lower floor", dir, floor, name, below)
			}
			if slices.Contains(forTests, name) && !slices.Contains(forTests, dir) && floor < roof {
				t.Errorf("%s imports %s, which is for tests only", dir, name)
			}
		}
		for _, name := range ours(p.TestImports, p.XTestImports) {
			below, ok := floors[name]
			if !slices.Contains(forTests, name) && (!ok || below > floor) {
				t.Errorf("the tests of %s (floor %d) import %s (floor %d): want no higher floor", dir, floor, name, below)
			}
		}
	}
}

// The map in doc.go is the same.
func TestDoc(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	said, floor := map[string]int{}, 0
	for line := range strings.Lines(string(text)) {
		line, ok := strings.CutPrefix(line, "//\t")
		if !ok {
			continue
		}
		words := strings.Fields(line)
		if words[0] == "floor" {
			if floor, err = strconv.Atoi(words[1]); err != nil {
				t.Fatalf("doc.go: %q: %v", line, err)
			}
			words = words[2:]
		} else if words[0] == "cellar" {
			floor, words = -1, words[1:]
		}
		said[words[0]] = floor
	}
	want := maps.Clone(floors)
	maps.DeleteFunc(want, func(_ string, floor int) bool { return floor == roof })
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("the floors in layers_test.go and in doc.go differ (-layers_test.go +doc.go):\n%s", diff)
	}
}

// packages returns the directories of the module that hold Go files.
func packages(t *testing.T) []string {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != "." && (base == "testdata" || base[0] == '.' || base[0] == '_') {
				return fs.SkipDir
			}
			return nil
		}
		if dir := filepath.ToSlash(filepath.Dir(name)); strings.HasSuffix(name, ".go") && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(dirs) < 10 {
		t.Fatalf("found %d packages, want the whole module", len(dirs))
	}
	return dirs
}

// ours returns the imports that are of this module, without its name.
func ours(lists ...[]string) []string {
	var names []string
	for _, name := range slices.Concat(lists...) {
		if name == "overmount" {
			names = append(names, ".")
		} else if below, ok := strings.CutPrefix(name, "overmount/"); ok {
			names = append(names, below)
		}
	}
	return names
}
