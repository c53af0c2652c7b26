package store

import (
	"slices"
	"sync"
	"time"
)

// How long a request may take before another store is asked beside it.
const (
	hedgeFloor   = 50 * time.Millisecond
	hedgeDefault = 500 * time.Millisecond // until enough requests were measured
	hedgeCeiling = time.Second            // one that hangs is not normal, however often it does
)

// A rank is how good a store is to ask at present; the least goes first.
type rank int

const (
	good    rank = iota
	slow         // typically takes more than twice as long as the best
	failing      // fails often, or had none of the last few objects
	busy         // wants to be left alone for a while
)

// A health is what is remembered of a store: how long it takes, how often it
// fails, and whether anything comes from it. The methods take the time, so that
// they are rules and nothing else. Concurrent use is safe.
type health struct {
	mu     sync.Mutex
	took   latencies
	fails  float64   // share of failures, lately
	misses int       // in a row
	wish   error     // what it said when it wanted to be left alone
	until  time.Time // the end of that
	line   line

	asked time.Time     // for the last time while it was busy
	trial time.Time     // when it may be tried beside a better one
	pause time.Duration // until the trial after that
}

const (
	failWeight = 0.25 // of the newest answer in health.fails
	failMost   = 0.6  // of health.fails: three good answers in a row mend it
	failLimit  = 0.3  // two failures in a row are over it, one is not
	missLimit  = 3

	firstTrial = time.Second
	lastTrial  = 15 * time.Second
	busyTrial  = time.Second
)

// answered says that a request was successful.
func (h *health) answered(now time.Time, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.line.hear(now)
	h.took.add(took)
	if h.fails > failLimit {
		h.pause, h.trial = firstTrial, now.Add(firstTrial)
	}
	h.fails -= failWeight * h.fails
	h.misses = 0
}

// missed says that the store does not have an object.
func (h *health) missed(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.line.hear(now)
	h.misses++
}

// failed says that a request failed for any other reason.
func (h *health) failed(now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !Temporary(err) {
		h.line.hear(now)
	}
	if after := retryAfter(err); after > 0 {
		h.wish, h.until, h.asked = err, now.Add(min(after, maxRetryAfter)), now
		return
	}
	h.fails = min(h.fails+failWeight*(1-h.fails), failMost)
}

// overtaken says that another store was faster, and how long this one had taken
// until then without an answer, and without a sign of one.
func (h *health) overtaken(took, silent time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if took > h.took.typical {
		h.took.add(took)
	}
	if silent >= darkAfter {
		h.fails = min(h.fails+failWeight*(1-h.fails), failMost)
	}
}

// rank returns how good the store is. best is what the fastest store that is not
// failing typically takes, 0 if that is not known.
func (h *health) rank(now time.Time, best time.Duration) rank {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case now.Before(h.until):
		return busy
	case h.fails > failLimit, h.misses >= missLimit:
		return failing
	case best > 0 && h.took.typical > 2*best+hedgeFloor:
		return slow
	}
	return good
}

// typical returns what a request typically takes, 0 if that is not known.
func (h *health) typical() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.took.typical
}

// patience returns how long a request may take before another store is asked: as
// long as 95 in 100 take, and no less than twice what is typical. A store that
// always takes about as long would be hedged for nothing: the other would not be
// faster, and the request that is cancelled takes its connection with it.
func (h *health) patience() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.took.p95 == 0 {
		return hedgeDefault
	}
	return min(max(h.took.p95, 2*h.took.typical, hedgeFloor), hedgeCeiling)
}

// first says that the store is asked before all others.
func (h *health) first(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pause, h.trial = firstTrial, now.Add(firstTrial)
}

// try reports whether a store that others have overtaken shall be asked beside a
// better one, to see how it is. The pauses double from 1 s to 15 s until it
// answers.
func (h *health) try(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Before(h.trial) {
		return false
	}
	h.pause = min(max(2*h.pause, firstTrial), lastTrial)
	h.trial = now.Add(h.pause)
	return true
}

// tryBusy returns nil if a busy store may be asked for want of another: once a
// second. Else it returns what the store has said, and how long that still holds.
func (h *health) tryBusy(now time.Time) (left time.Duration, wish error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !now.Before(h.until) || now.Sub(h.asked) >= busyTrial {
		h.asked = now
		return 0, nil
	}
	return h.until.Sub(now), h.wish
}

// begin and end stand around each request, heard marks each sign of life.
func (h *health) begin(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.line.begin(now)
}

func (h *health) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.line.running--
}

func (h *health) heard(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.line.hear(now)
}

// dark, askDark and stale are those of the line.
func (h *health) dark(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.line.dark(now)
}

func (h *health) askDark(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.line.ask(now)
}

func (h *health) stale(now, sign time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.line.stale(now, sign)
}

// latencies are what the last requests took.
type latencies struct {
	last    []time.Duration // at most keepLatencies, a ring
	next    int             // where in the ring the next one goes
	news    int             // since p95 was found
	typical time.Duration   // the median of the last few; 0 until there are some
	p95     time.Duration   // of all; 0 until there are enough
}

const (
	keepLatencies   = 64
	enoughLatencies = 16 // for p95
	fewLatencies    = 8  // of which typical is the median
	leastLatencies  = 4  // for typical
)

func (l *latencies) add(d time.Duration) {
	if len(l.last) < keepLatencies {
		l.last = append(l.last, d)
	} else {
		l.last[l.next] = d
	}
	l.next = (l.next + 1) % keepLatencies
	if len(l.last) >= leastLatencies {
		l.typical = l.median()
	}
	if l.news++; len(l.last) >= enoughLatencies && (l.p95 == 0 || l.news >= fewLatencies) {
		sorted := slices.Sorted(slices.Values(l.last))
		l.p95, l.news = sorted[(len(sorted)*95+99)/100-1], 0
	}
}

func (l *latencies) median() time.Duration {
	var few [fewLatencies]time.Duration
	n := min(len(l.last), fewLatencies)
	for i := range n {
		few[i] = l.last[(l.next-1-i+keepLatencies)%keepLatencies]
	}
	slices.Sort(few[:n])
	return few[n/2]
}

// When nothing comes from a store.
const (
	darkAfter = time.Second            // of silence while requests run
	darkPause = 750 * time.Millisecond // between requests that see whether it is over
	darkGrace = 250 * time.Millisecond // for the answers to older requests, once it is
)

// A line tells a store that is slow, from which something comes now and then, from
// one that is dead, or behind a dead network: it is dark.
type line struct {
	running  int       // requests
	heard    time.Time // the last sign of life, or when the first of those began
	returned time.Time // when it was heard again after it was dark
	asked    time.Time // for the last time while it was dark
}

func (l *line) begin(now time.Time) {
	if l.running == 0 {
		l.heard = now
	}
	l.running++
}

func (l *line) hear(now time.Time) {
	if l.dark(now) {
		l.returned = now
	}
	l.heard = now
}

// dark reports whether requests run and nothing has come for a while.
func (l *line) dark(now time.Time) bool { return l.running > 0 && now.Sub(l.heard) >= darkAfter }

// ask reports whether it is time to see whether the store is still dark.
func (l *line) ask(now time.Time) bool {
	if !l.dark(now) || now.Sub(l.asked) < darkPause {
		return false
	}
	l.asked = now
	return true
}

// stale reports whether a request, of which the last sign of life came at sign,
// was probably lost while the store was dark: the store is back, and has had the
// time to answer it.
func (l *line) stale(now, sign time.Time) bool {
	return sign.Before(l.returned) && now.Sub(l.returned) >= darkGrace && now.Sub(sign) >= darkAfter
}
