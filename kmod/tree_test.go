package kmod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// smallTree returns the files of a tree with indexes of the given texts, as in a
// resolveCase.
func smallTree(t *testing.T, text map[string]string) fstest.MapFS {
	t.Helper()
	dir := t.TempDir()
	writeIndexes(t, dir, text)
	fsys := fstest.MapFS{}
	for name, content := range text {
		fsys[name] = &fstest.MapFile{Data: []byte(content)}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		fsys[filepath.Base(file)] = &fstest.MapFile{Data: data}
	}
	return fsys
}

func openSmallTree(t *testing.T, text map[string]string) *Tree {
	t.Helper()
	tree, err := OpenTree(smallTree(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

var smallText = map[string]string{
	"modules.dep":           "a.ko: b.ko c.ko\nb.ko: c.ko\nc.ko:\nd.ko:\n",
	"modules.alias":         "alias pci:* a\nalias pci:1 b\n",
	"modules.symbols":       "alias symbol:x a\n",
	"modules.builtin":       "kernel/e.ko\n",
	"modules.builtin.alias": "alias usb:* e\n",
	"modules.softdep":       "softdep c pre: d\n",
	"modules.weakdep":       "weakdep a d pci:1\n",
}

func TestOpenTreeNeedsItsIndexes(t *testing.T) {
	whole := smallTree(t, smallText)
	optional := []string{"modules.softdep", "modules.weakdep", "modules.builtin.alias.bin"}
	for _, name := range append(optional, "modules.dep.bin", "modules.alias.bin", "modules.symbols.bin", "modules.builtin.bin") {
		files := fstest.MapFS{}
		for other, file := range whole {
			if other != name {
				files[other] = file
			}
		}
		_, err := OpenTree(files)
		if slices.Contains(optional, name) {
			if err != nil {
				t.Errorf("OpenTree without %s = %v", name, err)
			}
		} else if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), name) {
			t.Errorf("OpenTree without %s = %v, want %v and the name", name, err, fs.ErrNotExist)
		}
		if _, err := OpenTree(badFS{whole, name}); !errors.Is(err, errBad) || !strings.Contains(err.Error(), name) {
			t.Errorf("OpenTree with unreadable %s = %v, want %v and the name", name, err, errBad)
		}
		index := strings.HasSuffix(name, ".bin")
		files[name] = &fstest.MapFile{}
		if _, err := OpenTree(files); (err == nil) == (index && name != "modules.builtin.alias.bin") {
			t.Errorf("OpenTree with empty %s = %v", name, err)
		} else if err != nil && !strings.Contains(err.Error(), name+" is empty") {
			t.Errorf("OpenTree with empty %s = %v, want the name", name, err)
		}
		if !index {
			continue
		}
		for _, damaged := range [][]byte{
			whole[name].Data[:len(whole[name].Data)-1],
			whole[name].Data[:11],
			[]byte("not an index at all"),
			append([]byte{0xff}, whole[name].Data[1:]...),
		} {
			files[name] = &fstest.MapFile{Data: damaged}
			if _, err := OpenTree(files); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("OpenTree with damaged %s = %v, want an error with the name", name, err)
			}
		}
	}
}

func TestTreeTells(t *testing.T) {
	tree := openSmallTree(t, smallText)
	if got := slices.Collect(tree.Modules()); !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("Modules = %q, want a to d", got)
	}
	for range tree.Modules() {
		break
	}
	if file, deps, err := tree.Dep("a"); err != nil || file != "a.ko" || !slices.Equal(deps, []string{"b.ko", "c.ko"}) {
		t.Errorf("Dep(a) = %q, %q, %v, want a.ko, b.ko and c.ko", file, deps, err)
	}
	if file, deps, err := tree.Dep("e"); !errors.Is(err, ErrUnknown) || file != "" || deps != nil {
		t.Errorf("Dep(e) = %q, %q, %v, want %v", file, deps, err, ErrUnknown)
	}
	for name, want := range map[string]bool{"a": false, "e": true, "nosuch": false} {
		if got := tree.Builtin(name); got != want {
			t.Errorf("Builtin(%q) = %v, want %v", name, got, want)
		}
	}
	r := NewResolver(tree, nil, nil)
	if got := r.Weakdeps("a"); !slices.Equal(got, []string{"d", "pci:1"}) {
		t.Errorf("Weakdeps(a) = %q, want d and pci:1", got)
	}
	if got := r.Weakdeps("b"); got != nil {
		t.Errorf("Weakdeps(b) = %q, want none", got)
	}
}

// Paths of the index are not to lead out of the directory, and lines are to be
// lines.
func TestDepRefusesBadPaths(t *testing.T) {
	for _, line := range []string{"../x.ko:", "a.ko: ../../etc/passwd", "a.ko: x//y.ko", ".:", "/:", "a.ko: /", "a.ko", ":", "a.ko: ./b.ko", ""} {
		var dep IndexBuilder
		if _, err := dep.Insert("bad", line, 0); err != nil {
			t.Fatal(err)
		}
		data, err := dep.Bytes(Kmod34)
		if err != nil {
			t.Fatal(err)
		}
		files := smallTree(t, smallText)
		files["modules.dep.bin"] = &fstest.MapFile{Data: data}
		tree, err := OpenTree(files)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err1 := tree.Dep("bad")
		_, err2 := NewResolver(tree, nil, nil).Resolve("bad")
		_, err3 := tree.Closure("bad")
		for i, err := range []error{err1, err2, err3} {
			if err == nil || errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "modules.dep.bin") {
				t.Errorf("%d: line %q = %v, want an error that names modules.dep.bin", i, line, err)
			}
		}
	}
}

func TestActionsTellWhatIsRequired(t *testing.T) {
	c := &Config{}
	c.files = append(c.files, rules{install: []rule{{"b", "/bin/b"}}, aliases: []rule{{"gone", "nosuch"}}})
	r := NewResolver(openSmallTree(t, smallText), c, nil)
	for name, want := range map[string][]Action{
		"symbol:x": {
			{Kind: Insmod, Module: "d", Path: "d.ko"},
			{Kind: Insmod, Module: "c", Path: "c.ko", Required: true},
			{Kind: Install, Module: "b", Path: "b.ko", Command: "/bin/b", Required: true},
			{Kind: Insmod, Module: "a", Path: "a.ko", Required: true},
		},
		"d":    {{Kind: Insmod, Module: "d", Path: "d.ko", Required: true}},
		"e":    {{Kind: Builtin, Module: "e", Required: true}},
		"gone": {{Kind: Missing, Module: "nosuch", Required: true}},
	} {
		got, err := r.Resolve(name)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("Resolve(%q) = %v (-want +got):\n%s", name, err, diff)
		}
	}
	if _, err := r.Lookup("nosuch"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), `"nosuch"`) {
		t.Errorf("Lookup(nosuch) = %v, want %v and the name", err, ErrUnknown)
	}
}

func TestClosure(t *testing.T) {
	tree := openSmallTree(t, map[string]string{
		"modules.dep":     "top.ko: mid.ko low-x.ko\nmid.ko: low-x.ko\nlow-x.ko:\nsoft.ko: soft-low.ko\nsoft-low.ko:\nloop.ko: top.ko mid.ko low-x.ko\n",
		"modules.alias":   "alias crypto-x soft\n",
		"modules.builtin": "kernel/inside.ko\n",
		"modules.softdep": "softdep mid pre: crypto-x nosuch inside\nsoftdep top post: low-x\nsoftdep low_x pre: loop\n",
	})
	for _, v := range []struct {
		names []string
		want  []Needed
	}{
		{nil, nil},
		{[]string{"inside"}, nil},
		{[]string{"soft"}, []Needed{{"soft_low", "soft-low.ko", false}, {"soft", "soft.ko", false}}},
		{[]string{"mid", "soft-low", "mid"}, []Needed{
			// loop asks for mid before what mid asks for.
			{"low_x", "low-x.ko", false}, {"mid", "mid.ko", false}, {"top", "top.ko", true}, {"loop", "loop.ko", true},
			{"soft_low", "soft-low.ko", false}, {"soft", "soft.ko", true},
		}},
	} {
		got, err := tree.Closure(v.names...)
		if err != nil {
			t.Errorf("Closure(%q) = %v", v.names, err)
		}
		checkClosure(t, tree, got)
		byName := func(a, b Needed) int { return strings.Compare(a.Module, b.Module) }
		if diff := cmp.Diff(slices.SortedFunc(slices.Values(v.want), byName), slices.SortedFunc(slices.Values(got), byName)); diff != "" {
			t.Errorf("Closure(%q) (-want +got):\n%s", v.names, diff)
		}
	}
	c := &Config{files: []rules{{
		aliases: []rule{{"an_alias", "low_x"}}, softdeps: []rule{{"soft", "pre: an-alias"}, {"mid", "pre:"}},
		install: []rule{{"soft", "/bin/false"}}, blacklist: []string{"soft"},
	}}}
	got, err := NewResolver(tree, c, nil).Closure("soft")
	want := []Needed{
		{"soft_low", "soft-low.ko", false}, {"low_x", "low-x.ko", true}, {"mid", "mid.ko", true}, {"top", "top.ko", true},
		{"loop", "loop.ko", true}, {"soft", "soft.ko", false},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Closure(soft) with a configuration = %v (-want +got):\n%s", err, diff)
	}
	for _, name := range []string{"nosuch", "crypto-x", ""} {
		if got, err := tree.Closure("top", name); !errors.Is(err, ErrUnknown) || got != nil {
			t.Errorf("Closure(top, %q) = %v, %v, want %v", name, got, err, ErrUnknown)
		}
	}
}

// Softdeps that explode end with an error, soon.
func TestResolveEnds(t *testing.T) {
	const n = 3000
	var dep, wide, deep strings.Builder
	fmt.Fprintf(&wide, "softdep * pre:")
	for i := range n {
		fmt.Fprintf(&dep, "m%d.ko:", i)
		for j := i + 1; j < min(n, i+200); j++ {
			fmt.Fprintf(&dep, " m%d.ko", j)
		}
		fmt.Fprintf(&dep, "\n")
		fmt.Fprintf(&wide, " m%d", i)
		fmt.Fprintf(&deep, "softdep m%d pre: m%d\n", i, i+1)
	}
	for name, softdep := range map[string]string{"wide": wide.String() + "\n", "deep": deep.String()} {
		tree := openSmallTree(t, map[string]string{"modules.dep": dep.String(), "modules.softdep": softdep})
		if got, err := NewResolver(tree, nil, nil).Resolve("m0"); err == nil || got != nil {
			t.Errorf("%s: Resolve = %d actions, %v, want an error", name, len(got), err)
		}
		if got, err := tree.Closure("m0"); err == nil || got != nil {
			t.Errorf("%s: Closure = %d modules, %v, want an error", name, len(got), err)
		}
	}
}

func TestResolverForManyAtOnce(t *testing.T) {
	r := NewResolver(openSmallTree(t, smallText), &Config{}, nil)
	want, err := r.Resolve("pci:1")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				if got, err := r.Resolve("pci:1"); err != nil || !cmp.Equal(got, want) {
					t.Errorf("Resolve = %v, %v, want %v", got, err, want)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzResolve makes an index of any lines, and resolves with any softdeps and
// configuration.
func FuzzResolve(f *testing.F) {
	f.Add(smallText["modules.dep"], smallText["modules.softdep"], "alias x a\ninstall b c\n", "x")
	f.Add("a.ko: a.ko b.ko\nb.ko: a.ko\n", "softdep * pre: a post: b", "blacklist a\noptions * b", "a")
	f.Fuzz(func(t *testing.T, dep, softdep, config, name string) {
		var b, empty IndexBuilder
		for i, line := range textLines(dep) {
			if _, err := b.Insert(Name(strings.Split(line, ":")[0]), line, uint32(i)); err != nil {
				t.Skip()
			}
		}
		files := fstest.MapFS{"modules.softdep": {Data: []byte(softdep)}}
		for name, b := range map[string]*IndexBuilder{"dep": &b, "alias": &empty, "symbols": &empty, "builtin": &empty} {
			data, err := b.Bytes(Kmod34)
			if err != nil {
				t.Fatal(err)
			}
			files["modules."+name+".bin"] = &fstest.MapFile{Data: data}
		}
		tree, err := OpenTree(files)
		if err != nil {
			t.Fatal(err)
		}
		c, err := ReadConfig(fstest.MapFS{"a.conf": {Data: []byte(config)}}, "a.conf")
		if err != nil {
			t.Fatal(err)
		}
		r := NewResolver(tree, c, nil)
		actions, err := r.Resolve(name)
		if err != nil && len(actions) > 0 {
			t.Errorf("Resolve(%q) = %v, %v, want one or the other", name, actions, err)
		}
		closure, err := r.Closure(name)
		if err != nil && len(closure) > 0 {
			t.Errorf("Closure(%q) = %v, %v, want one or the other", name, closure, err)
		}
		seen := map[string]bool{}
		for _, n := range closure {
			if seen[n.Module] {
				t.Errorf("Closure(%q) has %s twice", name, n.Module)
			}
			seen[n.Module] = true
		}
	})
}
