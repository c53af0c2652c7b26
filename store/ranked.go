package store

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"overmount/block"
)

// Ranked returns a Reader that asks the stores of routes like [Routes.Get], with
// its errors, but in the order of what they did lately, and not always one after
// the other. Routes with the same Reader are one store.
//
// Order. Stores that answer go first, then those that take more than twice as
// long as the fastest, then those that fail, then those that said when to ask
// again ([BusyError]), until that time; among equals the order of routes. No store
// is ever left out. One that fell behind is tried now and then with a real
// request, for which a better store is asked at the same time.
//
// Hedging. A request that takes longer than 95 of 100 to that store, and than twice
// what is typical (at least 50 ms and at most 1 s; 0.5 s until that is known), gets
// company: the next store is asked beside it, the first right answer counts, and
// the other request is cancelled. This happens for 1 of 16 requests, and four
// more, so that a slow network is not made slower; without limit only if nothing at
// all comes from the store, or if the other one is known to be better by now.
// Stores that said when to ask again are not asked in this way. Where there is no
// other store, a request of which nothing comes for a second gets another over a
// new connection, within the same limit: its own may be dead.
//
// Outages. A store from which nothing comes for a second while requests run is
// dark. Every 0.75 s one of the reads that wait then asks it again over a new
// connection, beside the request under way, which goes on: the store may only be
// slow. As soon as anything comes, the reads whose requests may have been lost do
// the same. So a read ends within 2 s of the end of an outage, however long the old
// connections stay silent. One read has no more than three requests to a store
// under way.
//
// A store needs do nothing for this but end a request when its context ends. One
// that does not keeps a goroutine for each request that was given up.
func Ranked(routes Routes) Reader {
	r := &ranked{routes: routes, budget: budget{left: hedgeBurst}}
	healths := make([]*health, len(routes))
	for i, route := range routes {
		if route.Reader == nil {
			continue
		}
		same := slices.IndexFunc(routes[:i], func(o Route) bool { return sameReader(o.Reader, route.Reader) })
		if same >= 0 {
			healths[i] = healths[same]
		} else {
			healths[i] = new(health)
		}
		for first := int(route.First); first <= int(route.Last); first++ {
			if !slices.ContainsFunc(r.members[first], func(m member) bool { return m.health == healths[i] }) {
				r.members[first] = append(r.members[first], member{route, healths[i]})
			}
		}
	}
	return r
}

// sameReader is a == b for readers of any type.
func sameReader(a, b Reader) bool {
	return a != nil && reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}

type ranked struct {
	routes  Routes
	members [256][]member // by the first byte of the ID
	budget  budget
}

var (
	_ Reader    = (*ranked)(nil)
	_ Forgetter = (*ranked)(nil)
)

// A member is a store that has some of the objects.
type member struct {
	Route
	health *health
}

func (r *ranked) Forget(id block.ID) { r.routes.Forget(id) }

func (r *ranked) Get(ctx context.Context, id block.ID) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(r.members[id[0]]) == 0 {
		return nil, noReader(id)
	}
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	rd := r.begin(within, id)
	timer := time.NewTimer(rd.pause(time.Now()))
	defer timer.Stop()
	for rd.running() {
		select {
		case a := <-rd.answers:
			if a.err == nil {
				rd.overtake(a.from, time.Now())
				return a.object, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			rd.fail(within, a, time.Now())
		case <-timer.C:
			rd.look(within, time.Now())
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		timer.Reset(rd.pause(time.Now()))
	}
	return nil, rd.failure()
}

const (
	hedgeShare = 1. / 16 // of the requests
	hedgeBurst = 4
)

// A budget lets a share of the requests have company.
type budget struct {
	mu   sync.Mutex
	left float64
}

func (b *budget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(b.left+hedgeShare, hedgeBurst)
}

func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// A heldError stands for a store that was not asked because it wants to be left
// alone.
type heldError struct {
	said error
	left time.Duration
}

func (e *heldError) Error() string {
	return fmt.Sprintf("not asked, because it wants to be left alone for another %v: it said %v", e.left.Round(time.Second), e.said)
}

func (e *heldError) Unwrap() error { return e.said }

func (e *heldError) RetryAfter() time.Duration { return e.left }
