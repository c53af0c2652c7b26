package store

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"overmount/block"
)

var errDown = errors.New("connection refused")

// What a store did, how good it is held to be after that, beside one that takes
// 20 ms.
func TestRank(t *testing.T) {
	ok := func(took time.Duration, n int) func(*health) {
		return func(h *health) {
			for range n {
				h.answered(time.Now(), took)
			}
		}
	}
	fails := func(err error, n int) func(*health) {
		return func(h *health) {
			for range n {
				h.failed(time.Now(), err)
			}
		}
	}
	misses := func(n int) func(*health) {
		return func(h *health) {
			for range n {
				h.missed(time.Now())
			}
		}
	}
	overtaken := func(took, silent time.Duration, n int) func(*health) {
		return func(h *health) {
			for range n {
				h.overtaken(took, silent)
			}
		}
	}
	wait := func(d time.Duration) func(*health) { return func(*health) { <-time.After(d) } }
	asks := func(d time.Duration) error { return &BusyError{Err: errDown, After: d} }
	for _, c := range []struct {
		name string
		did  []func(*health)
		want rank
	}{
		{"nothing", nil, good},
		{"answers", []func(*health){ok(20*time.Millisecond, 9)}, good},
		{"twice as slow", []func(*health){ok(80*time.Millisecond, 9)}, good},
		{"much slower", []func(*health){ok(100*time.Millisecond, 9)}, slow},
		{"slow three times, which says nothing", []func(*health){ok(time.Second, 3)}, good},
		{"slow at times", []func(*health){ok(20*time.Millisecond, 9), ok(time.Second, 3)}, good},
		{"slow of late", []func(*health){ok(20*time.Millisecond, 50), ok(time.Second, 5)}, slow},
		{"fast again", []func(*health){ok(time.Second, 50), ok(20*time.Millisecond, 5)}, good},
		{"one failure", []func(*health){fails(errDown, 1)}, good},
		{"two failures", []func(*health){fails(errDown, 2)}, failing},
		{"every other one fails", []func(*health){fails(errDown, 1), ok(0, 1), fails(errDown, 1), ok(0, 1), fails(errDown, 1), ok(0, 1)}, failing},
		{"one of eight fails", []func(*health){fails(errDown, 1), ok(0, 7), fails(errDown, 1), ok(0, 7), fails(errDown, 1)}, good},
		{"wrong bytes", []func(*health){fails(block.ErrCorrupt, 2)}, failing},
		{"no access", []func(*health){fails(ErrForbidden, 2)}, failing},
		{"failed for hours, then two answers", []func(*health){fails(errDown, 999), ok(0, 2)}, failing},
		{"failed for hours, then three", []func(*health){fails(errDown, 999), ok(0, 3)}, good},
		{"has not two objects", []func(*health){misses(2)}, good},
		{"has not three", []func(*health){misses(3)}, failing},
		{"has not some", []func(*health){misses(2), ok(0, 1), misses(2)}, good},
		{"busy", []func(*health){fails(asks(5*time.Second), 1)}, busy},
		{"busy, and answers others", []func(*health){fails(asks(5*time.Second), 1), ok(0, 9)}, busy},
		{"busy nearly long enough ago", []func(*health){fails(asks(5*time.Second), 1), wait(4999 * time.Millisecond)}, busy},
		{"busy before", []func(*health){fails(asks(5*time.Second), 9), wait(5 * time.Second)}, good},
		{"busy for an hour, which is too much", []func(*health){fails(asks(time.Hour), 1), wait(30 * time.Second)}, good},
		{"busy without a time", []func(*health){fails(asks(0), 2)}, failing},
		{"overtaken at once", []func(*health){overtaken(10*time.Millisecond, 10*time.Millisecond, 9)}, good},
		{"overtaken late", []func(*health){overtaken(500*time.Millisecond, 100*time.Millisecond, 4)}, slow},
		{"overtaken in silence", []func(*health){overtaken(time.Second, time.Second, 2)}, failing},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := new(health)
			for _, do := range c.did {
				do(h)
			}
			if got := h.rank(time.Now(), 20*time.Millisecond); got != c.want {
				t.Errorf("%s: rank = %v, want %v", c.name, got, c.want)
			}
		})
	}
}

func TestPatience(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name string
		took []time.Duration
		want time.Duration
	}{
		{"unknown", nil, hedgeDefault},
		{"too few", repeat(15, 70*ms), hedgeDefault},
		{"enough", repeat(16, 70*ms), 140 * ms},
		{"a tail", append(repeat(2, 300*ms), repeat(14, 70*ms)...), 300 * ms},
		{"fast", repeat(16, ms), hedgeFloor},
		{"slow", repeat(16, 9*time.Second), hedgeCeiling},
		{"4 of 64 are slow", append(repeat(4, 300*ms), repeat(60, 70*ms)...), 300 * ms},
		{"3 of 64 are slow", append(repeat(3, 300*ms), repeat(61, 70*ms)...), 140 * ms},
		{"forgets", append(repeat(64, 300*ms), repeat(64, 70*ms)...), 140 * ms},
	} {
		h := new(health)
		for _, d := range c.took {
			h.answered(time.Time{}, d)
		}
		if got := h.patience(); got != c.want {
			t.Errorf("%s: patience = %v, want %v", c.name, got, c.want)
		}
	}
}

func repeat(n int, d time.Duration) []time.Duration {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = d
	}
	return all
}

// A store that has fallen behind is tried in pauses that grow, and sooner once it
// answers.
func TestTrials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, start := new(health), time.Now()
		h.first(start)
		var at []int
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for range 100 {
			now := <-tick.C
			if h.try(now) {
				h.failed(now, errDown)
				at = append(at, int(now.Sub(start)/time.Second))
			}
		}
		if len(at) != 6 || at[0] != 1 || at[1] != 3 || at[2] != 7 || at[3] != 15 || at[4] != 30 || at[5] != 45 {
			t.Errorf("tried after %v s, want 1, 3, 7, 15, 30, 45", at)
		}
		now := time.Now()
		h.answered(now, time.Millisecond)
		if h.try(now) || !h.try(now.Add(time.Second)) {
			t.Error("after an answer it is not tried in a second")
		}
	})
}

func TestBusyIsAskedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(health)
		h.failed(time.Now(), &BusyError{Err: errDown, After: 10 * time.Second})
		for _, c := range []struct {
			after, left time.Duration
		}{{0, 10 * time.Second}, {900 * time.Millisecond, 9100 * time.Millisecond}, {100 * time.Millisecond, 0}, {500 * time.Millisecond, 8500 * time.Millisecond}, {500 * time.Millisecond, 0}} {
			<-time.After(c.after)
			left, said := h.tryBusy(time.Now())
			if left != c.left || (said == nil) != (left == 0) {
				t.Errorf("tryBusy = %v, %v, want %v", said, left, c.left)
			}
		}
	})
}

func TestLine(t *testing.T) {
	const (
		begin = "begin"
		end   = "end"
		hear  = "hear"
	)
	type step struct {
		at      time.Duration // after the start
		do      string
		dark    bool
		asks    bool
		isStale bool // the first request, if it gave no sign
	}
	const ms = time.Millisecond
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"idle", []step{{at: time.Hour}}},
		{"silent", []step{
			{0, begin, false, false, false},
			{999 * ms, "", false, false, false},
			{1000 * ms, "", true, true, false},
			{1100 * ms, "", true, false, false},
			{1500 * ms, begin, true, false, false},
			{1750 * ms, "", true, true, false},
			{2500 * ms, "", true, true, false},
		}},
		{"back", []step{
			{0, begin, false, false, false},
			{9000 * ms, "", true, true, false},
			{9100 * ms, hear, false, false, false},
			{9300 * ms, hear, false, false, false},
			{9349 * ms, "", false, false, false},
			{9350 * ms, "", false, false, true},
			{10299 * ms, "", false, false, true},
			{10300 * ms, "", true, true, true},
		}},
		{"slow", []step{
			{0, begin, false, false, false},
			{900 * ms, hear, false, false, false},
			{1800 * ms, hear, false, false, false},
			{2700 * ms, "", false, false, false},
		}},
		{"nobody asked for a while", []step{
			{0, begin, false, false, false},
			{100 * ms, end, false, false, false},
			{9000 * ms, begin, false, false, false},
			{9100 * ms, hear, false, false, false},
			{9999 * ms, "", false, false, false},
		}},
	} {
		start, l := time.Now(), new(line)
		for _, s := range c.steps {
			now := start.Add(s.at)
			switch s.do {
			case begin:
				l.begin(now)
			case end:
				l.running--
			case hear:
				l.hear(now)
			}
			if dark, asks, stale := l.dark(now), l.ask(now), l.stale(now, start); dark != s.dark || asks != s.asks || stale != s.isStale {
				t.Errorf("%s, after %v: dark, asks, stale = %v, %v, %v, want %v, %v, %v", c.name, s.at, dark, asks, stale, s.dark, s.asks, s.isStale)
			}
		}
	}
}

func TestBudget(t *testing.T) {
	b := budget{left: hedgeBurst}
	spent := 0
	for range 1600 {
		b.earn()
		for b.spend() {
			spent++
		}
	}
	if spent != 100+hedgeBurst-1 && spent != 100+hedgeBurst {
		t.Errorf("1600 requests paid for %d, want 100 and the first %d", spent, hedgeBurst)
	}
}
