package fusefs

import (
	"slices"
	"sync"
	"time"

	"overmount/block"
)

// failures remembers for a short time which blocks could not be read, so that a
// program which reads one again and again neither fills the log nor waits twice.
// Its zero value is empty.
type failures struct {
	mu   sync.Mutex
	told map[block.ID]time.Time // when a failure was logged
	slow map[block.ID]time.Time // when a READ of it timed out
}

const (
	quiet       = time.Minute // between two messages about one block
	maxFailures = 10_000      // remembered of each kind

	// When a READ fails that was made to read ahead, the kernel makes another at
	// once for the page that its caller wants, who would wait twice as long as
	// he may. So for a moment what timed out gets only this long: enough for
	// what is at hand by now. (Linux 6.18: a cat of a file on a store that hangs
	// makes two READs.)
	secondBudget = 100 * time.Millisecond
	moment       = time.Second
)

// first reports whether the failure of a block is news for the log.
func (l *failures) first(id block.ID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if recent(l.told, id, quiet) {
		return false
	}
	note(&l.told, id)
	return true
}

// timedOut notes that a READ of these blocks used up its whole budget.
func (l *failures) timedOut(refs []block.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ref := range refs {
		note(&l.slow, ref.ID)
	}
}

// justTimedOut reports whether one of the blocks timed out a moment ago.
func (l *failures) justTimedOut(refs []block.Ref) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(refs, func(ref block.Ref) bool { return recent(l.slow, ref.ID, moment) })
}

func recent(when map[block.ID]time.Time, id block.ID, span time.Duration) bool {
	last, ok := when[id]
	return ok && time.Since(last) < span
}

func note(when *map[block.ID]time.Time, id block.ID) {
	if *when == nil || len(*when) >= maxFailures {
		*when = make(map[block.ID]time.Time)
	}
	(*when)[id] = time.Now()
}
