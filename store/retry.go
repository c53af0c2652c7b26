package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"overmount/block"
)

const (
	defaultBudget = 90 * time.Second
	firstPause    = 100 * time.Millisecond
	maxPause      = time.Second // on average; half of that more at most
	maxRetryAfter = 30 * time.Second
	silence       = 15 * time.Second // until the log hears of it; half the budget at most
)

// RetryOptions are the options of [Retry] and [RetryWriter]. Nil and zero mean
// the defaults.
type RetryOptions struct {
	// Budget is the longest time that one request takes, all its tries and
	// pauses together. The default is 90 s: long enough for a network to come
	// back at boot, below the kernel's 120 s for a hung task.
	Budget time.Duration

	// Logger gets one warning when requests begin to fail, or one has taken 15 s,
	// and one info when the store answers again, however many requests fail
	// in between. The default says nothing.
	Logger *slog.Logger

	// Stats, if not nil, counts.
	Stats *RetryStats
}

// RetryStats counts what [Retry] and [RetryWriter] did. Its zero value is ready, and
// several may share it.
type RetryStats struct {
	Requests atomic.Int64 // that were made of them
	Retries  atomic.Int64 // tries after the first of a request
	Failed   atomic.Int64 // requests without success in the end
}

// Retry returns a Reader that asks r again after a [Temporary] failure. Definite
// answers are returned at once.
//
// The pauses grow from 0.1 s to 1 s, each shortened or lengthened by up to half
// at random, so that a fleet does not ask in step; a read goes on within 1.5 s of
// the store's recovery. An error that says when to ask again ([BusyError]) is
// obeyed, up to 30 s.
//
// Retry gives up when the next pause would not end within the budget. The error
// then says how often and how long it has tried, and wraps the last failure.
func Retry(r Reader, opts *RetryOptions) Reader { return retryReader{newRetrier(opts), r} }

// RetryWriter is [Retry] for a Writer. Sync is not tried again.
func RetryWriter(w Writer, opts *RetryOptions) Writer { return retryWriter{newRetrier(opts), w} }

// TryOnce returns a context under which [Retry] makes one try and no pause: for
// work that nobody waits for, and that may fail.
func TryOnce(ctx context.Context) context.Context {
	return context.WithValue(ctx, tryOnce{}, true)
}

// tryOnce is the key of TryOnce in a context.
type tryOnce struct{}

type retryReader struct {
	*retrier
	r Reader
}

func (r retryReader) Get(ctx context.Context, id block.ID) (object []byte, err error) {
	err = r.do(ctx, id, func(ctx context.Context) error {
		object, err = r.r.Get(ctx, id)
		return err
	})
	return object, err
}

func (r retryReader) Forget(id block.ID) { forget(r.r, id) }

type retryWriter struct {
	*retrier
	w Writer
}

func (w retryWriter) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	err = w.do(ctx, id, func(ctx context.Context) error {
		stored, err = w.w.Put(ctx, id, object)
		return err
	})
	return stored, err
}

func (w retryWriter) Sync(ctx context.Context) error { return syncWriter(ctx, w.w) }

var (
	_ Forgetter = retryReader{}
	_ Syncer    = retryWriter{}
)

// A retrier repeats requests, and knows whether the log has heard of an outage.
type retrier struct {
	budget time.Duration
	log    *slog.Logger
	stats  *RetryStats

	mu     sync.Mutex
	warned bool // since the last answer
	since  time.Time
}

func newRetrier(opts *RetryOptions) *retrier {
	if opts == nil {
		opts = new(RetryOptions)
	}
	r := &retrier{budget: opts.Budget, log: opts.Logger, stats: opts.Stats}
	if r.stats == nil {
		r.stats = new(RetryStats)
	}
	if r.budget <= 0 {
		r.budget = defaultBudget
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r
}

// do calls try until it has a definite answer.
func (r *retrier) do(ctx context.Context, id block.ID, try func(context.Context) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.stats.Requests.Add(1)
	defer func() {
		if err != nil {
			r.stats.Failed.Add(1)
		}
	}()
	start := time.Now()
	within, cancel := context.WithDeadline(ctx, start.Add(r.budget))
	defer cancel()
	defer func() { r.end(err) }()
	silent := time.AfterFunc(min(silence, r.budget/2), func() { r.warn(id, errSilent) })
	defer silent.Stop()
	err = r.once(ctx, within, try)
	if !Temporary(err) || ctx.Err() != nil || ctx.Value(tryOnce{}) != nil {
		return err
	}
	r.warn(id, err)
	return r.repeat(ctx, within, start, err, try)
}

// repeat goes on after a first failure.
func (r *retrier) repeat(ctx, within context.Context, start time.Time, last error, try func(context.Context) error) error {
	pauses := &backoff.ExponentialBackOff{InitialInterval: firstPause, MaxInterval: maxPause, Multiplier: 2, RandomizationFactor: 0.5}
	for tries := 1; ; tries++ {
		pause := pauses.NextBackOff() + min(retryAfter(last), maxRetryAfter)
		if spent := time.Since(start); spent+pause >= r.budget {
			return fmt.Errorf("gave up at try %d, after %v: %w", tries, spent.Round(time.Millisecond), last)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		r.stats.Retries.Add(1)
		err := r.once(ctx, within, try)
		if !Temporary(err) || ctx.Err() != nil {
			return err
		}
		if err != errNoAnswer {
			last = err
		}
	}
}

var (
	errNoAnswer = errors.New("the store did not answer in all that time")
	errSilent   = errors.New("there is no answer yet")
)

// once is one try. The end of the budget is not the caller's deadline and must
// not look like it.
func (r *retrier) once(ctx, within context.Context, try func(context.Context) error) error {
	err := try(within)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case within.Err() != nil && errors.Is(err, context.DeadlineExceeded):
		return errNoAnswer
	}
	return err
}

// warn tells the log about an outage, unless it knows.
func (r *retrier) warn(id block.ID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.warned {
		r.warned, r.since = true, time.Now()
		r.log.Warn("store does not answer, asking again", "object", id.String(), "for", r.budget, "error", err)
	}
}

// end tells the log that an outage is over, if this is how a request ended.
func (r *retrier) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.warned && !Temporary(err) {
		r.log.Info("store answers again", "after", time.Since(r.since).Round(time.Millisecond))
		r.warned = false
	}
}
