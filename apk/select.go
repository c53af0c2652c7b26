package apk

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// A Selection is packages of an index.
type Selection struct {
	Packages []*Package // sorted by name
	Added    []*Package // those of Packages that only others depend on
	// Left are dependencies on other source packages, such as "/bin/sh", which what
	// is only unpacked does not need, and those that a pattern took away.
	Left []string
}

// Select returns the packages whose names match one of the patterns, and with them
// those of the same source packages (origins) that they depend on. Patterns are
// those of path.Match; one with "!" before it takes away what it matches from those
// before it, and from what the others depend on. Of several versions of a package the
// newest is taken.
//
// It fails for a pattern that matches nothing, for one with "!" that comes first, for a
// dependency on a version of the same source package that the index does not have,
// and for packages that exclude each other.
func (x *Index) Select(patterns ...string) (*Selection, error) {
	s := selector{
		newest: map[string]*Package{}, origins: map[string][]*Package{}, chosen: map[string]*Package{}, away: map[string]bool{}, left: map[string]bool{},
	}
	for _, p := range x.Packages {
		if err := s.offer(p); err != nil {
			return nil, err
		}
	}
	for _, p := range s.newest {
		s.origins[p.Origin] = append(s.origins[p.Origin], p)
	}
	if err := s.match(patterns); err != nil {
		return nil, err
	}
	return s.resolve()
}

type selector struct {
	newest  map[string]*Package   // by name
	origins map[string][]*Package // by source package
	chosen  map[string]*Package   // by name
	away    map[string]bool       // names that a pattern took away
	left    map[string]bool
}

func (s *selector) offer(p *Package) error {
	was := s.newest[p.Name]
	if was == nil {
		s.newest[p.Name] = p
		return nil
	}
	switch c := compareVersions(p.Version, was.Version); {
	case c > 0:
		s.newest[p.Name] = p
	case c == 0 && p.Checksum != was.Checksum:
		return fmt.Errorf("the index has two different packages %s", p)
	}
	return nil
}

func (s *selector) match(patterns []string) error {
	for i, pattern := range patterns {
		glob, without := strings.CutPrefix(pattern, "!")
		if without && i == 0 {
			return fmt.Errorf("%q takes away from the names before it, and there are none: put it behind them", pattern)
		}
		found := false
		for name, p := range s.newest {
			ok, err := path.Match(glob, name)
			if err != nil {
				return fmt.Errorf("pattern %q: %w", pattern, err)
			}
			if !ok {
				continue
			}
			found = true
			s.away[name] = without
			if without {
				delete(s.chosen, name)
			} else {
				s.chosen[name] = p
			}
		}
		if !found {
			return fmt.Errorf("no package of the index matches %q", pattern)
		}
	}
	if len(s.chosen) == 0 {
		return errors.New("no package is selected: name some, such as \"linux-firmware*\"")
	}
	return nil
}

func byName(a, b *Package) int { return cmp.Compare(a.Name, b.Name) }

// resolve adds what the chosen packages depend on.
func (s *selector) resolve() (*Selection, error) {
	sel := &Selection{}
	queue := sorted(s.chosen)
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		for _, word := range p.Depends {
			added, err := s.need(p, parseDependency(word))
			if err != nil {
				return nil, fmt.Errorf("%s depends on %.100q: %w", p, word, err)
			}
			if added != nil {
				queue = append(queue, added)
				sel.Added = append(sel.Added, added)
			}
		}
	}
	if err := s.conflicts(); err != nil {
		return nil, err
	}
	sel.Packages = sorted(s.chosen)
	slices.SortFunc(sel.Added, byName)
	for word := range s.left {
		sel.Left = append(sel.Left, word)
	}
	slices.Sort(sel.Left)
	return sel, nil
}

func sorted(m map[string]*Package) []*Package {
	list := make([]*Package, 0, len(m))
	for _, p := range m {
		list = append(list, p)
	}
	slices.SortFunc(list, byName)
	return list
}

// satisfies reports whether a package is what a dependency names.
func (p *Package) satisfies(d dependency) bool {
	if p.Name == d.name {
		return d.allows(p.Version)
	}
	return p.provides(d)
}

// provides reports whether a package has another name that a dependency means. A
// name without a version is not of any certain one.
func (p *Package) provides(d dependency) bool {
	for _, word := range p.Provides {
		have := parseDependency(word)
		if have.name == d.name && (d.op == "" || have.op == "=" && d.allows(have.version)) {
			return true
		}
	}
	return false
}

// need chooses the package of the same source package that satisfies a dependency,
// if none that is chosen does.
func (s *selector) need(p *Package, d dependency) (*Package, error) {
	if d.conflict {
		return nil, nil
	}
	if c := s.chosen[d.name]; c != nil && c.satisfies(d) {
		return nil, nil
	}
	var best *Package
	away := s.away[d.name]
	for _, c := range s.origins[p.Origin] {
		if p.Origin == "" || !c.satisfies(d) {
			continue
		}
		if s.chosen[c.Name] == c {
			return nil, nil
		}
		if s.away[c.Name] {
			away = true
		} else if best == nil || c.better(best, d) {
			best = c
		}
	}
	if best != nil {
		s.chosen[best.Name] = best
		return best, nil
	}
	c := s.newest[d.name]
	switch {
	case away:
	case c != nil && c.Origin == p.Origin:
		return nil, fmt.Errorf("the index has version %s; the mirror may be half updated: try again later, or another one", c.Version)
	case c == nil && d.op == "=" && d.version == p.Version:
		return nil, errors.New("the index does not have it; the mirror may be half updated: try again later, or another one")
	}
	s.left[d.name] = true
	return nil, nil
}

// better reports whether p is to be preferred to q for a dependency: the one of
// that name, then the one of higher priority, then by name.
func (p *Package) better(q *Package, d dependency) bool {
	if (p.Name == d.name) != (q.Name == d.name) {
		return p.Name == d.name
	}
	return cmp.Or(cmp.Compare(q.ProviderPriority, p.ProviderPriority), cmp.Compare(p.Name, q.Name)) < 0
}

// conflicts tells of chosen packages that exclude each other.
func (s *selector) conflicts() error {
	for _, p := range sorted(s.chosen) {
		for _, word := range p.Depends {
			d := parseDependency(word)
			if !d.conflict {
				continue
			}
			for _, c := range sorted(s.chosen) {
				if c != p && c.satisfies(d) {
					return fmt.Errorf("%s and %s exclude each other: leave out one, with the pattern \"!%s\"", p, c, c.Name)
				}
			}
		}
	}
	return nil
}
