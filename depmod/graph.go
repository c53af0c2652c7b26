package depmod

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A CycleError says that modules depend on each other in circles, so that none
// of them can be loaded, and that there are no indexes.
type CycleError struct {
	Cycles [][]string // names of modules, each cycle without its repeated first
	Count  int        // of the modules that are in cycles
}

func (e *CycleError) Error() string {
	var b strings.Builder
	for _, c := range e.Cycles {
		fmt.Fprintf(&b, "cycle detected: %s -> %s\n", strings.Join(c, " -> "), c[0])
	}
	fmt.Fprintf(&b, "found %d modules in dependency cycles", e.Count)
	return b.String()
}

// number gives each module a number: those that nobody uses first, and a module
// before all that it depends on. It returns how many got one; the others are in
// cycles, or used by these only.
func number(modules []*Module) (numbers []int, done int) {
	users := make([]int, len(modules))
	for _, m := range modules {
		for _, d := range m.Depends {
			users[d.rank]++
		}
	}
	var stack []int
	for i, n := range users {
		if n == 0 {
			stack = append(stack, i)
		}
	}
	numbers = make([]int, len(modules))
	for len(stack) > 0 {
		i := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		numbers[i] = done
		done++
		for _, d := range modules[i].Depends {
			if users[d.rank]--; users[d.rank] == 0 {
				stack = append(stack, d.rank)
			}
		}
	}
	return numbers, done
}

// closures fills in the closures. It fails with a CycleError.
func closures(modules []*Module) error {
	numbers, done := number(modules)
	if done < len(modules) {
		return cycles(modules)
	}
	seen := make([]int, len(modules)) // 1 + rank of the module that saw it last
	for _, m := range modules {
		var all []*Module
		for stack := slices.Clone(m.Depends); len(stack) > 0; {
			d := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if seen[d.rank] == m.rank+1 {
				continue
			}
			seen[d.rank] = m.rank + 1
			all = append(all, d)
			stack = append(stack, d.Depends...)
		}
		slices.SortFunc(all, func(a, b *Module) int { return cmp.Compare(numbers[a.rank], numbers[b.rank]) })
		m.Closure = all
	}
	return nil
}

// cycles lists the circles: for each dependency that closes one and is not in one
// listed before, the shortest through it.
func cycles(modules []*Module) *CycleError {
	e := &CycleError{}
	listed := map[[2]*Module]bool{}
	within := map[*Module]bool{}
	inner := core(modules)
	for _, m := range modules {
		for _, d := range m.Depends {
			if !inner[m] || !inner[d] || listed[[2]*Module{m, d}] {
				continue
			}
			way := shortest(d, m, inner)
			if way == nil {
				continue
			}
			for i, x := range way {
				listed[[2]*Module{x, way[(i+1)%len(way)]}] = true
				within[x] = true
			}
			e.Cycles = append(e.Cycles, names(way))
		}
	}
	e.Count = len(within)
	return e
}

// names are those of a circle, from the first in module order on.
func names(circle []*Module) []string {
	first := 0
	for i, m := range circle {
		if m.rank < circle[first].rank {
			first = i
		}
	}
	var list []string
	for i := range circle {
		list = append(list, circle[(first+i)%len(circle)].Name)
	}
	return list
}

// core is what remains when modules that nobody uses, or that use nobody, are
// taken away until there are none: circles, and ways from one to another.
func core(modules []*Module) map[*Module]bool {
	in := map[*Module]bool{}
	for _, m := range modules {
		in[m] = true
	}
	for before := 0; before != len(in); {
		before = len(in)
		used := map[*Module]bool{}
		for m := range in {
			for _, d := range m.Depends {
				used[d] = true
			}
		}
		maps.DeleteFunc(in, func(m *Module, _ bool) bool {
			return !used[m] || !slices.ContainsFunc(m.Depends, func(d *Module) bool { return in[d] })
		})
	}
	return in
}

// shortest returns the modules on the way from one to another, both included,
// through those that are in; nil if there is none.
func shortest(from, to *Module, in map[*Module]bool) []*Module {
	before := map[*Module]*Module{from: nil}
	for queue := []*Module{from}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == to {
			var way []*Module
			for m := to; m != nil; m = before[m] {
				way = append(way, m)
			}
			slices.Reverse(way)
			return way
		}
		for _, d := range queue[0].Depends {
			if _, seen := before[d]; !seen && in[d] {
				before[d] = queue[0]
				queue = append(queue, d)
			}
		}
	}
	return nil
}
