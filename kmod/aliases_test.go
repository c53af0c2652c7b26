package kmod

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAliases(t *testing.T) {
	tree := openSmallTree(t, map[string]string{
		"modules.dep":     "a.ko:\nb.ko:\n",
		"modules.alias":   "alias pci:v*d* a\nalias pci:v1d2 b\nalias pci:v[12]d?-x a\nalias usb:* a\nalias * b\n",
		"modules.symbols": "", "modules.builtin": "kernel/e.ko\n", "modules.builtin.alias": "alias pci:v1* e\n",
	})
	for name, want := range map[string][]Alias{
		"pci:v1d2":   {{"pci:v*d*", "a"}, {"pci:v1d2", "b"}, {"*", "b"}},
		"pci:v1d2-x": {{"pci:v*d*", "a"}, {"pci:v[12]d?_x", "a"}, {"*", "b"}},
		"usb:":       {{"usb:*", "a"}, {"*", "b"}},
		"a]b":        nil,
	} {
		got := tree.Aliases(name)
		less := func(a, b Alias) int { return strings.Compare(a.Pattern, b.Pattern) }
		slices.SortFunc(got, less)
		slices.SortFunc(want, less)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Aliases(%q) (-want +got):\n%s", name, diff)
		}
	}
}

// The patterns are those of the index, they match, and their modules are what Search
// finds.
func TestAliasesOfRealModules(t *testing.T) {
	k := realKernel(t, "")
	all := map[Alias]bool{}
	for pattern, v := range k.tree.alias.All() {
		all[Alias{pattern, v.Value}] = true
	}
	for _, name := range filledIn(k.tree.alias, 400) {
		name, _ = Normalize(name)
		var modules, want []string
		for _, a := range k.tree.Aliases(name) {
			if !all[a] || !Match(a.Pattern, name) {
				t.Errorf("Aliases(%q) has %q: in the index %v, matches %v", name, a, all[a], Match(a.Pattern, name))
			}
			modules = append(modules, a.Module)
		}
		for _, v := range k.tree.alias.Search(name) {
			want = append(want, v.Value)
		}
		if !slices.Equal(modules, want) || len(want) == 0 {
			t.Errorf("Aliases(%q) has the modules %q, want %q", name, modules, want)
		}
	}
}

func TestSoftdeps(t *testing.T) {
	tree := openSmallTree(t, smallText)
	config := &Config{files: []rules{{file: "z.conf", softdeps: []rule{{"b*", "pre: pci:1 nosuch post: d"}, {"c", "post: a"}}}}}
	r := NewResolver(tree, config, nil)
	for name, want := range map[string][2][]string{
		"a": {},
		"b": {{"a", "b"}, {"d"}}, // what pci:1 is an alias of
		"c": {{"d"}, nil},        // that of the tree stands first
	} {
		pre, post := r.Softdeps(name)
		slices.Sort(pre)
		if !slices.Equal(pre, want[0]) || !slices.Equal(post, want[1]) {
			t.Errorf("Softdeps(%q) = %q, %q, want %q, %q", name, pre, post, want[0], want[1])
		}
	}
}
