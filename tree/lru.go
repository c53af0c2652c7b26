package tree

import (
	"slices"
	"sync"

	"overmount/block"
)

// lru keeps the plain blocks that were used last. There are so few that looking
// at each is faster than a map.
type lru struct {
	mu     sync.Mutex
	blocks []keptBlock // the one used last is the last
	limit  int
}

type keptBlock struct {
	ref   block.Ref
	plain []byte
}

func newLRU(limit int) lru { return lru{limit: limit} }

// get returns nil for a block that is not kept.
func (l *lru) get(ref block.Ref) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.index(ref)
	if i < 0 {
		return nil
	}
	k := l.blocks[i]
	copy(l.blocks[i:], l.blocks[i+1:])
	l.blocks[len(l.blocks)-1] = k
	return k.plain
}

// add keeps a block in place of the one not used for the longest time. An empty
// block, which no sound manifest has, is not kept: get would not tell it from
// none.
func (l *lru) add(ref block.Ref, plain []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(plain) == 0 || l.index(ref) >= 0 {
		return
	}
	if len(l.blocks) >= l.limit {
		l.blocks = slices.Delete(l.blocks, 0, 1)
	}
	l.blocks = append(l.blocks, keptBlock{ref, plain})
}

func (l *lru) index(ref block.Ref) int {
	return slices.IndexFunc(l.blocks, func(k keptBlock) bool { return k.ref == ref })
}
