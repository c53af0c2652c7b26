package store_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"overmount/block"
	"overmount/store"
	"overmount/store/storetest"
)

// logged collects the messages of a logger, with their levels.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logged) levels() (s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		switch {
		case strings.Contains(line, "level=WARN"):
			s += "W"
		case strings.Contains(line, "level=INFO"):
			s += "I"
		default:
			s += "?"
		}
	}
	return s
}

func TestRetryWaitsForRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 1)
		f.Always(storetest.Fail(errRefused))
		var log logged
		r := store.Retry(f, &store.RetryOptions{Logger: log.logger()})
		recovered := time.Now().Add(30 * time.Second)
		time.AfterFunc(30*time.Second, func() { f.Always(nil) })
		wantObject(t, r, 0)
		if late := time.Since(recovered); late < 0 || late > 1500*time.Millisecond {
			t.Errorf("Get returned %v after the recovery, want at most 1.5 s", late)
		}
		// From 0.1 s on average, doubling to 1 s: about 33 tries in 30 s.
		if n := f.Total(); n < 20 || n > 65 {
			t.Errorf("%d tries in 30 s, want 20 to 65", n)
		}
		if got := log.levels(); got != "WI" {
			t.Errorf("log levels = %q, want one warning and one info: %q", got, log.lines)
		}
	})
}

func TestRetryFirstPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 1)
		f.Next(storetest.Fail(errRefused))
		start := time.Now()
		wantObject(t, store.Retry(f, nil), 0)
		if d := time.Since(start); d < 50*time.Millisecond || d > 150*time.Millisecond {
			t.Errorf("one failure delays by %v, want 50 to 150 ms", d)
		}
	})
}

func TestRetryGivesUpWithinBudget(t *testing.T) {
	for _, c := range []struct{ opts, want time.Duration }{{0, 90 * time.Second}, {5 * time.Second, 5 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			f := seeded(t, 1)
			f.Always(storetest.Fail(errRefused))
			var log logged
			r := store.Retry(f, &store.RetryOptions{Budget: c.opts, Logger: log.logger()})
			id, _ := object(0)
			start := time.Now()
			_, err := r.Get(t.Context(), id)
			d := time.Since(start)
			if !errors.Is(err, errRefused) || !store.Temporary(err) {
				t.Errorf("Get = %v, want the last reason, and temporary", err)
			}
			for _, want := range []string{"gave up at try ", d.Round(time.Millisecond).String(), errRefused.Error()} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if d > c.want || d < c.want-1500*time.Millisecond {
				t.Errorf("Get gave up after %v, want just below %v", d, c.want)
			}
			f.Always(nil)
			wantObject(t, r, 0)
			if got := log.levels(); got != "WI" {
				t.Errorf("log levels = %q, want one warning and one info: %q", got, log.lines)
			}
			f.Next(storetest.Fail(errRefused))
			wantObject(t, r, 0)
			if got := log.levels(); got != "WIWI" {
				t.Errorf("log levels after a second outage = %q, want WIWI", got)
			}
		})
	}
}

func TestRetryReturnsDefiniteAnswersAtOnce(t *testing.T) {
	for _, definite := range []error{store.ErrNotFound, store.ErrForbidden, store.ErrNoRoute, block.ErrCorrupt} {
		synctest.Test(t, func(t *testing.T) {
			f := seeded(t, 1)
			f.Always(storetest.Fail(definite))
			id, bytes := object(0)
			start := time.Now()
			_, err := store.Retry(f, nil).Get(t.Context(), id)
			_, perr := store.RetryWriter(f, nil).Put(t.Context(), id, bytes)
			if err != definite || perr != definite || time.Since(start) != 0 || f.Total() != 2 {
				t.Errorf("Get = %v, Put = %v after %d requests in %v, want %v after one request each, at once", err, perr, f.Total(), time.Since(start), definite)
			}
		})
	}
}

// A replica that is down may have what the other one has not.
func TestRetryJudgesRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		none, down := seeded(t, 0), seeded(t, 1)
		down.Next(storetest.Fail(errRefused), storetest.Fail(errRefused))
		wantObject(t, store.Retry(store.Routes{all("none", none), all("down", down)}, nil), 0)

		id, _ := object(1)
		start := time.Now()
		_, err := store.Retry(store.Routes{all("none", none), all("none either", down)}, nil).Get(t.Context(), id)
		if !errors.Is(err, store.ErrNotFound) || time.Since(start) != 0 {
			t.Errorf("Get where nobody has it = %v after %v, want ErrNotFound at once", err, time.Since(start))
		}
	})
}

func TestRetryObeysRetryAfter(t *testing.T) {
	busy := func(d time.Duration) error { return &store.BusyError{Err: errRefused, After: d} }
	fails := func(err error) store.Reader {
		f := storetest.NewFaulty(new(store.Mem))
		f.Always(storetest.Fail(err))
		return f
	}
	for _, c := range []struct {
		name     string
		err      error
		min, max time.Duration
	}{
		{"as asked", busy(7 * time.Second), 7050 * time.Millisecond, 7150 * time.Millisecond},
		{"capped", busy(time.Hour), 30050 * time.Millisecond, 30150 * time.Millisecond},
		{"negative", busy(-time.Hour), 50 * time.Millisecond, 150 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := seeded(t, 1)
			f.Next(storetest.Fail(c.err))
			start := time.Now()
			wantObject(t, store.Retry(f, nil), 0)
			if d := time.Since(start); d < c.min || d > c.max {
				t.Errorf("%s: asked again after %v, want %v to %v", c.name, d, c.min, c.max)
			}
		})
	}

	// Of several stores the one that may be asked first decides.
	for _, c := range []struct {
		name     string
		others   []store.Reader
		min, max time.Duration
	}{
		{"both busy", []store.Reader{fails(busy(9 * time.Second)), fails(busy(3 * time.Second))}, 3 * time.Second, 4 * time.Second},
		{"one only refused", []store.Reader{fails(busy(9 * time.Second)), fails(errRefused)}, 0, time.Second},
		{"one has it not", []store.Reader{fails(busy(9 * time.Second)), fails(store.ErrNotFound)}, 9 * time.Second, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := seeded(t, 1)
			f.Next(storetest.Fail(store.ErrNotFound))
			rs := store.Routes{all("last", f)}
			for _, r := range c.others {
				rs = append(rs, all("other", r))
			}
			start := time.Now()
			wantObject(t, store.Retry(rs, nil), 0)
			if d := time.Since(start); d < c.min || d > c.max {
				t.Errorf("%s: asked again after %v, want %v to %v", c.name, d, c.min, c.max)
			}
		})
	}
}

func TestRetryObeysContext(t *testing.T) {
	for name, fault := range map[string]storetest.Fault{"pause": storetest.Fail(errRefused), "request": storetest.Hang()} {
		synctest.Test(t, func(t *testing.T) {
			f := seeded(t, 1)
			f.Always(fault)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			id, _ := object(0)
			start := time.Now()
			_, err := store.Retry(f, nil).Get(ctx, id)
			if err != context.DeadlineExceeded || time.Since(start) != 10*time.Second {
				t.Errorf("in a %s: Get = %v after %v, want the context's error after 10 s", name, err, time.Since(start))
			}
		})
	}
}

// The budget also ends a request that hangs, and that does not look like the
// caller's own deadline.
func TestRetryBudgetEndsAHangingRequest(t *testing.T) {
	for name, c := range map[string]struct {
		next []storetest.Fault
		want string
	}{
		"the first":       {nil, "did not answer"},
		"after a failure": {[]storetest.Fault{storetest.Fail(errRefused)}, errRefused.Error()},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := seeded(t, 1)
			f.Next(c.next...)
			f.Always(storetest.Hang())
			id, _ := object(0)
			start := time.Now()
			_, err := store.Retry(f, nil).Get(t.Context(), id)
			if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s hangs: Get = %v, want an error that says %q and is not DeadlineExceeded", name, err, c.want)
			}
			if d := time.Since(start); d != 90*time.Second {
				t.Errorf("%s hangs: Get returned after %v, want 90 s", name, d)
			}
		})
	}
}

func TestRetryLogsAnOutageOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const readers = 20
		f := seeded(t, readers)
		f.Always(storetest.Fail(errRefused))
		time.AfterFunc(20*time.Second, func() { f.Always(nil) })
		var log logged
		r := store.Retry(f, &store.RetryOptions{Logger: log.logger()})
		var wg sync.WaitGroup
		for i := range readers {
			wg.Go(func() { wantObject(t, r, i) })
		}
		wg.Wait()
		if got := log.levels(); got != "WI" {
			t.Errorf("log levels of %d readers = %q, want one warning and one info: %q", readers, got, log.lines)
		}
	})
}

// Readers who come one after the other, and give up, are in one outage.
func TestRetryLogsOnceOfManyFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 1)
		f.Always(storetest.Fail(errRefused))
		var log logged
		r := store.Retry(f, &store.RetryOptions{Budget: 2 * time.Second, Logger: log.logger()})
		id, _ := object(0)
		for range 5 {
			if _, err := r.Get(t.Context(), id); !errors.Is(err, errRefused) {
				t.Errorf("Get = %v, want it refused", err)
			}
		}
		if got := log.levels(); got != "W" {
			t.Errorf("log levels during an outage = %q, want one warning: %q", got, log.lines)
		}
		f.Always(nil)
		wantObject(t, r, 0)
		wantObject(t, r, 0)
		if got := log.levels(); got != "WI" {
			t.Errorf("log levels after an outage = %q, want one warning and one info: %q", got, log.lines)
		}
	})
}

// The log hears of a store that hangs before anyone gives up.
func TestRetryLogsSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 1)
		gate := storetest.NewGate()
		f.Always(storetest.Through(gate))
		time.AfterFunc(20*time.Second, gate.Open)
		var log logged
		r := store.Retry(f, &store.RetryOptions{Logger: log.logger()})
		start := time.Now()
		go func() {
			time.Sleep(16 * time.Second) // the bubble's
			if got := log.levels(); got != "W" {
				t.Errorf("log levels after %v = %q, want a warning", time.Since(start), got)
			}
		}()
		wantObject(t, r, 0)
		if got := log.levels(); got != "WI" || !strings.Contains(log.lines[0], "no answer yet") {
			t.Errorf("log = %q, want a warning that there is no answer yet and one info", log.lines)
		}
	})
}

func TestRetryWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 0)
		f.Next(storetest.Fail(errRefused), storetest.Fail(errRefused))
		id, bytes := object(0)
		if stored, err := store.RetryWriter(f, nil).Put(t.Context(), id, bytes); !stored || err != nil || f.Requests(id) != 3 {
			t.Errorf("Put = %v, %v after %d tries, want it stored at the third", stored, err, f.Requests(id))
		}
		wantObject(t, f, 0)
	})
}

// Who does not wait for an object leaves the store alone after one failure.
func TestTryOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 1)
		f.Always(storetest.Fail(errRefused))
		var log logged
		id, _ := object(0)
		start := time.Now()
		_, err := store.Retry(f, &store.RetryOptions{Logger: log.logger()}).Get(store.TryOnce(t.Context()), id)
		if err != errRefused || f.Total() != 1 || time.Since(start) != 0 || log.levels() != "" {
			t.Errorf("Get = %v after %d tries in %v, log %q; want the first failure, at once and silently", err, f.Total(), time.Since(start), log.lines)
		}
	})
}

func TestRetryStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := seeded(t, 1)
		var stats store.RetryStats
		r := store.Retry(f, &store.RetryOptions{Stats: &stats})
		f.Next(storetest.Fail(errRefused), storetest.Fail(errRefused))
		wantObject(t, r, 0)
		wantObject(t, r, 0)
		f.Next(storetest.NotFound())
		id, _ := object(0)
		r.Get(t.Context(), id)
		if requests, retries, failed := stats.Requests.Load(), stats.Retries.Load(), stats.Failed.Load(); requests != 3 || retries != 2 || failed != 1 {
			t.Errorf("%d requests, %d retries, %d failed, want 3, 2 and 1", requests, retries, failed)
		}
	})
}
