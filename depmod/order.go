package depmod

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"overmount/kmod"
)

// kmod keeps modules and symbols in hash tables, and writes what no other rule
// orders as it finds it there: bucket by bucket, and sorted in each.
const (
	moduleBuckets = 512
	symbolBuckets = 2048
)

// hash is Paul Hsieh's SuperFastHash, of a machine with little endian and signed
// char, which is what kmod was when it indexed all trees that one can compare
// with.
func hash(s string) uint32 {
	h := uint32(len(s))
	word := func(i int) uint32 { return uint32(s[i]) | uint32(s[i+1])<<8 }
	i := 0
	for ; i+4 <= len(s); i += 4 {
		h += word(i)
		h = h<<16 ^ word(i+2)<<11 ^ h
		h += h >> 11
	}
	switch len(s) - i {
	case 3:
		h += word(i)
		h ^= h << 16
		h ^= uint32(int8(s[i+2])) << 18
		h += h >> 11
	case 2:
		h += word(i)
		h ^= h << 11
		h += h >> 17
	case 1:
		h += uint32(int8(s[i]))
		h ^= h << 10
		h += h >> 1
	}
	h ^= h << 3
	h += h >> 5
	h ^= h << 4
	h += h >> 17
	h ^= h << 25
	h += h >> 6
	return h
}

// sortHashed sorts by place, and those of one place as a hash table with so many
// buckets has their keys, which are unique.
func sortHashed[T any](list []T, buckets uint32, place func(T) int, key func(T) string) {
	type hashed struct {
		place  int
		bucket uint32
		key    string
		item   T
	}
	all := make([]hashed, len(list))
	for i, item := range list {
		k := key(item)
		all[i] = hashed{place(item), hash(k) % buckets, k, item}
	}
	slices.SortFunc(all, func(a, b hashed) int {
		switch {
		case a.place != b.place:
			return cmp.Compare(a.place, b.place)
		case a.bucket != b.bucket:
			return cmp.Compare(a.bucket, b.bucket)
		}
		return strings.Compare(a.key, b.key)
	})
	for i, h := range all {
		list[i] = h.item
	}
}

// sortModules puts modules into kmod's order: first as modules.order has them,
// then as the hash table has them. Of several lines for one module the first
// counts, and before kmod 34 the last.
func sortModules(files []file, order []string, l kmod.Layout) {
	line := make(map[string]int, len(order))
	for i, p := range order {
		if _, ok := line[p]; !ok || l == kmod.Kmod30 {
			line[p] = i - len(order)
		}
	}
	sortHashed(files, moduleBuckets, func(f file) int { return line[orderName(f)] }, file.module)
}

// orderName is the path that a module has in modules.order: without the suffix
// of compression, which kmod drops by counting, so that it does not find one
// with a further dot in its name; nor external ones. "" is in no file.
func orderName(f file) string {
	end := len(f.path) - len(path.Base(f.path)) + len(f.module()) + len(".ko")
	if path.IsAbs(f.path) || end > len(f.path) {
		return ""
	}
	return f.path[:end]
}
