package prefetch

import (
	"maps"
	"slices"

	"overmount/kmod"
	"overmount/manifest"
)

// A graph is what the modules of a manifest need, without what else it notes.
type graph struct {
	modules []module
	byIno   map[manifest.Ino]int32
}

// A module is a file with what it needs: the modules before it.
type module struct {
	ino      manifest.Ino
	needs    []int32
	firmware []string
}

func newGraph(m *manifest.Manifest) *graph {
	g := &graph{byIno: map[manifest.Ino]int32{}}
	byName := map[string][]int32{}
	softs := map[string][]int32{} // names that soft dependencies want, by who
	var depends [][]string
	for ino, x := range m.Modules() {
		n := int32(len(g.modules))
		ino = m.FirstName(ino)
		g.modules = append(g.modules, module{ino: ino, firmware: x.Firmware})
		g.byIno[ino] = n
		if len(byName[x.Name]) < maxSame {
			byName[x.Name] = append(byName[x.Name], n)
		}
		depends = append(depends, x.Depends)
		for _, value := range x.Softdeps {
			pre, _ := kmod.Softdep{Value: value}.Split()
			for _, name := range pre {
				softs[name] = append(softs[name], n)
			}
		}
	}
	for n, names := range depends {
		for _, name := range names {
			g.modules[n].needs = append(g.modules[n].needs, byName[kmod.Name(name)]...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(softs)) {
		g.addSoft(softs[name], byName[kmod.Name(name)])
	}
	g.addAliases(m, softs)
	return g
}

// A manifest may lie. These are more than any kernel has.
const (
	maxSame  = 16  // modules of one name or alias
	maxDepth = 256 // of dependencies
)

// addAliases finds the modules that soft dependencies want by an alias. These are
// words without wildcards, such as crc32c.
func (g *graph) addAliases(m *manifest.Manifest, softs map[string][]int32) {
	if len(softs) == 0 {
		return
	}
	found := map[string]int{}
	for ino, x := range m.Modules() {
		for _, alias := range x.Aliases {
			if softs[alias] == nil || found[alias] == maxSame {
				continue
			}
			found[alias]++
			g.addSoft(softs[alias], []int32{g.byIno[m.FirstName(ino)]})
		}
	}
}

func (g *graph) addSoft(wanting, found []int32) {
	for _, n := range wanting {
		g.modules[n].needs = append(g.modules[n].needs, found...)
	}
}

// closure returns the files of a module and of all that it needs, the module first,
// then in an order in which they can be loaded; and what each declares. It leaves
// out modules for which begin is false, with what they need.
func (g *graph) closure(ino manifest.Ino, begin func(manifest.Ino) bool) (files []manifest.Ino, firmware [][]string) {
	var visit func(n int32, depth int)
	visit = func(n int32, depth int) {
		x := &g.modules[n]
		if depth > maxDepth || !begin(x.ino) {
			return
		}
		for _, below := range x.needs {
			visit(below, depth+1)
		}
		files = append(files, x.ino)
		if len(x.firmware) > 0 {
			firmware = append(firmware, x.firmware)
		}
	}
	n, ok := g.byIno[ino]
	if !ok {
		return nil, nil
	}
	visit(n, 0)
	if last := len(files) - 1; last > 0 {
		files = slices.Insert(files[:last], 0, files[last])
	}
	return files, firmware
}
