package store

import (
	"fmt"

	"overmount/block"
)

// A Layout says how a store that has paths names its objects.
type Layout uint8

const (
	// Sharded is ab/abcd…, what rfs and we write in directories, and what rfs
	// asks web servers for first.
	Sharded Layout = iota
	// Flat is abcd…, what rfs writes to S3.
	Flat
	// Sharded2 is ab/cd/abcd…, which some mirrors use.
	Sharded2
)

// ParseLayout reads the name of a layout: sharded, flat or sharded2.
func ParseLayout(s string) (Layout, error) {
	for _, l := range []Layout{Sharded, Flat, Sharded2} {
		if s == l.String() {
			return l, nil
		}
	}
	return 0, fmt.Errorf("unknown layout %q: want sharded, flat or sharded2", s)
}

func (l Layout) String() string {
	switch l {
	case Sharded:
		return "sharded"
	case Flat:
		return "flat"
	case Sharded2:
		return "sharded2"
	}
	return fmt.Sprintf("layout(%d)", uint8(l))
}

// Key returns the path of an object below the store's root, with slashes and
// lower-case digits.
func (l Layout) Key(id block.ID) string {
	name := id.String()
	switch l {
	case Sharded:
		return name[:2] + "/" + name
	case Sharded2:
		return name[:2] + "/" + name[2:4] + "/" + name
	}
	return name
}
