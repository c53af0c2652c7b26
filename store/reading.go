package store

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"overmount/block"
	"overmount/internal/pulse"
)

// A reading is one Get of a ranked Reader. One goroutine works on it; each of its
// requests has another.
type reading struct {
	id      block.ID
	all     []*candidate // in the order in which they are asked
	budget  *budget
	answers chan answer
}

// A candidate is a store that one Get asks or may ask.
type candidate struct {
	member
	rank   rank       // when the read began
	main   *request   // the one that counts: the read goes on until it has failed
	extra  []*request // beside it or, if it has failed, after it
	err    error      // of what was asked last; nil while main runs, and before
	failed time.Time  // when that was
}

// waits reports whether the store was not asked yet.
func (c *candidate) waits() bool { return c.main == nil && c.err == nil }

// requests returns what is under way.
func (c *candidate) requests() []*request {
	if c.main == nil {
		return c.extra
	}
	return append([]*request{c.main}, c.extra...)
}

// A request is one Get of one store.
type request struct {
	of     *candidate
	start  time.Time
	sign   atomic.Int64 // of life, the last one: nanoseconds after start
	trial  bool         // it ends by itself, and not with the read
	cancel context.CancelFunc
}

type answer struct {
	from   *request
	object []byte
	err    error
}

// begin asks the best store and, now and then, one beside it that has fallen behind.
func (r *ranked) begin(ctx context.Context, id block.ID) *reading {
	now := time.Now()
	members := r.members[id[0]]
	rd := &reading{id: id, all: make([]*candidate, len(members)), budget: &r.budget, answers: make(chan answer)}
	for i, m := range members {
		rd.all[i] = &candidate{member: m}
	}
	r.budget.earn()
	if len(members) == 1 {
		rd.all[0].rank = rd.all[0].health.rank(now, 0)
		rd.next(ctx, now)
		return rd
	}
	listed := slices.Clone(rd.all)
	best := rd.best(now)
	for _, c := range rd.all {
		c.rank = c.health.rank(now, best)
	}
	slices.SortStableFunc(rd.all, func(a, b *candidate) int { return int(a.rank - b.rank) })
	rd.next(ctx, now)
	rd.try(ctx, listed, now)
	return rd
}

// best returns what the fastest store that does not fail typically takes, 0 if
// that is not known.
func (rd *reading) best(now time.Time) (best time.Duration) {
	for _, c := range rd.all {
		if t := c.health.typical(); t > 0 && (best == 0 || t < best) && c.health.rank(now, 0) == good {
			best = t
		}
	}
	return best
}

// try asks one of the stores that have fallen behind the first, to see how it is.
func (rd *reading) try(ctx context.Context, listed []*candidate, now time.Time) {
	for _, c := range listed {
		switch {
		case c.main != nil:
			c.health.first(now)
			return
		case c.waits() && c.rank != busy && c.health.try(now):
			c.main = rd.ask(ctx, c, trial)
			return
		}
	}
}

// next asks the next store, if there is one. A busy one is for when all others
// have failed.
func (rd *reading) next(ctx context.Context, now time.Time) {
	for _, c := range rd.all {
		switch {
		case !c.waits():
			continue
		case c.rank == busy && rd.running():
			return
		case c.rank == busy:
			if left, said := c.health.tryBusy(now); said != nil {
				c.fail(&heldError{said, left}, now)
				continue
			}
		}
		c.main = rd.ask(ctx, c, plain)
		return
	}
}

// running reports whether there is a request that the read goes on for.
func (rd *reading) running() bool {
	return slices.ContainsFunc(rd.all, func(c *candidate) bool { return c.main != nil })
}

// A kind of request.
type kind int

const (
	plain kind = iota
	anew       // over a new connection
	trial      // goes on after the read, for a while
)

// trialLimit is how long a request goes on that nobody waits for.
const trialLimit = 10 * time.Second

var errTrial = fmt.Errorf("no answer within %v", trialLimit)

// ask makes a request, which ends with the read's context.
func (rd *reading) ask(read context.Context, c *candidate, k kind) *request {
	q := &request{of: c, start: time.Now(), trial: k == trial}
	var ctx context.Context
	if q.trial {
		ctx, q.cancel = context.WithTimeoutCause(context.WithoutCancel(read), trialLimit, errTrial)
	} else {
		ctx, q.cancel = context.WithCancel(read)
	}
	c.health.begin(q.start)
	go func() {
		defer q.cancel()
		object, err := q.get(pulse.With(ctx, q.beat, k == anew), rd.id)
		if err != nil && context.Cause(ctx) == errTrial {
			err = errTrial
		}
		if err == nil || err == errTrial || ctx.Err() == nil { // else it was given up
			q.note(err)
		}
		c.health.end()
		select {
		case rd.answers <- answer{q, object, err}:
		case <-read.Done():
		}
	}()
	return q
}

// get turns a panic of the store into an error, as Once does.
func (q *request) get(ctx context.Context, id block.ID) (object []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return q.of.Reader.Get(ctx, id)
}

// note remembers what the store did.
func (q *request) note(err error) {
	now, h := time.Now(), q.of.health
	switch {
	case err == nil:
		h.answered(now, now.Sub(q.start))
	case errors.Is(err, ErrNotFound):
		h.missed(now)
	default:
		h.failed(now, err)
	}
}

func (q *request) beat() {
	now := time.Now()
	q.sign.Store(int64(now.Sub(q.start)))
	q.of.health.heard(now)
}

func (q *request) lastSign() time.Time { return q.start.Add(time.Duration(q.sign.Load())) }

// overtake is what the winner does with the others.
func (rd *reading) overtake(winner *request, now time.Time) {
	for _, c := range rd.all {
		for _, q := range c.requests() {
			if q.trial {
				continue
			}
			q.cancel()
			if c != winner.of {
				c.health.overtaken(now.Sub(q.start), now.Sub(q.lastSign()))
			}
		}
	}
}

// fail takes a request that has failed, and asks the next store unless one has
// just been asked.
func (rd *reading) fail(ctx context.Context, a answer, now time.Time) {
	if a.from.of.take(a, now) && rd.overdue(now) {
		rd.next(ctx, now)
	}
}

// overdue reports whether another store may be asked beside those that were. A
// trial is not waited for.
func (rd *reading) overdue(now time.Time) bool {
	return !slices.ContainsFunc(rd.all, func(c *candidate) bool {
		return c.main != nil && !c.main.trial && now.Sub(c.main.start) < c.health.patience()
	})
}

// take reports whether a failed request means that the store has failed.
func (c *candidate) take(a answer, now time.Time) bool {
	i := slices.Index(c.extra, a.from)
	if i >= 0 {
		c.extra = slices.Delete(c.extra, i, i+1)
	}
	switch {
	case i < 0 && a.from != c.main: // it was given up
		return false
	case i >= 0 && c.main != nil && Temporary(a.err): // main may do better
		return false
	case i < 0 && Temporary(a.err) && c.replace():
		return false
	}
	c.stop()
	c.fail(a.err, now)
	return true
}

func (c *candidate) fail(err error, now time.Time) { c.err, c.failed = c.wrap(err), now }

// replace makes an extra request to which an answer is coming the main one.
func (c *candidate) replace() bool {
	i := slices.IndexFunc(c.extra, func(q *request) bool { return q.sign.Load() > 0 })
	if i < 0 {
		return false
	}
	c.main.cancel()
	c.main = c.extra[i]
	c.extra = slices.Delete(c.extra, i, i+1)
	return true
}

// stop gives up all requests to a store.
func (c *candidate) stop() {
	for _, q := range c.requests() {
		q.cancel()
	}
	c.main, c.extra = nil, nil
}

// failure is the read's error when all stores have failed.
func (rd *reading) failure() error {
	errs := make([]error, len(rd.all))
	for i, c := range rd.all {
		errs[i] = c.err
	}
	return joinRoutes(errs)
}

// look does what time has made necessary.
func (rd *reading) look(ctx context.Context, now time.Time) {
	silent := true // everywhere
	for _, c := range rd.all {
		c.dropLost(now)
		if c.main != nil {
			rd.watch(ctx, c, now)
			silent = silent && now.Sub(c.main.lastSign()) >= darkAfter
		}
	}
	if rd.hedges(now) {
		rd.next(ctx, now)
	} else if silent {
		rd.askFailed(ctx, now)
	}
}

// dropLost gives up the extra requests that found the store dark.
func (c *candidate) dropLost(now time.Time) {
	c.extra = slices.DeleteFunc(c.extra, func(q *request) bool {
		sign := q.lastSign()
		lost := c.health.stale(now, sign) || c.health.dark(now) && now.Sub(sign) >= 2*darkPause
		if lost {
			q.cancel()
		}
		return lost
	})
}

// watch asks a store again from which nothing comes, beside the main request: that
// one may still be answered, if the store is only slow.
func (rd *reading) watch(ctx context.Context, c *candidate, now time.Time) {
	if c.health.askDark(now) || len(c.extra) == 0 && (c.health.stale(now, c.main.lastSign()) || rd.stuck(c, now)) {
		c.extra = append(c.extra, rd.ask(ctx, c, anew))
	}
}

// stuck reports whether a request may hang on a dead connection to a store that
// answers others, and nobody else can be asked. It has paid for company.
func (rd *reading) stuck(c *candidate, now time.Time) bool {
	return c.main.sign.Load() == 0 && now.Sub(c.main.start) >= darkAfter && !c.health.dark(now) &&
		rd.hedge() == nil && rd.budget.spend()
}

// hedges reports whether the next store shall be asked beside those that were. If
// that costs, it has paid.
func (rd *reading) hedges(now time.Time) bool {
	next := rd.hedge()
	if next == nil || !rd.overdue(now) {
		return false
	}
	best := rd.best(now)
	free := slices.ContainsFunc(rd.all, func(c *candidate) bool {
		return c.main != nil && (c.health.dark(now) || c.health.rank(now, best) > next.health.rank(now, best))
	})
	return free || rd.budget.spend()
}

// hedge returns the store that would be asked next, nil if there is none for that.
func (rd *reading) hedge() *candidate {
	i := slices.IndexFunc(rd.all, (*candidate).waits)
	if i < 0 || rd.all[i].rank == busy {
		return nil
	}
	return rd.all[i]
}

// askFailed asks the stores again that have failed, and may have recovered while
// the read waits for others.
func (rd *reading) askFailed(ctx context.Context, now time.Time) {
	for _, c := range rd.all {
		if c.main == nil && len(c.extra) == 0 && Temporary(c.err) && now.Sub(c.failed) >= max(darkAfter, retryAfter(c.err)) {
			c.extra = append(c.extra, rd.ask(ctx, c, plain))
		}
	}
}

// lookPause is how often the read looks when something is due.
const lookPause = 100 * time.Millisecond

// pause returns how long nothing will have to be done, if nothing comes.
func (rd *reading) pause(now time.Time) time.Duration {
	pause, hedge := darkAfter, rd.hedge() != nil
	for _, c := range rd.all {
		if c.main == nil {
			continue
		}
		due := c.main.lastSign().Add(darkAfter)
		if hedge && !c.main.trial {
			due = earlier(due, c.main.start.Add(c.health.patience()))
		}
		if d := due.Sub(now); d > 0 {
			pause = min(pause, d)
		} else {
			pause = min(pause, lookPause)
		}
	}
	return pause
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
