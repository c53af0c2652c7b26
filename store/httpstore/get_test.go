package httpstore

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		value, date string
		want        time.Duration
		ok          bool
	}{
		{"", "", 0, false},
		{"0", "", 0, true},
		{"120", "", 2 * time.Minute, true},
		{"-1", "", 0, false},
		{"1.5", "", 0, false},
		{"soon", "", 0, false},
		{"9223372036854775807", "", 9223372036 * time.Second, true},
		{"99999999999999999999", "", 0, false},
		{"Tue, 24 Nov 2026 12:00:30 GMT", "", 30 * time.Second, true},
		{"Tue, 24 Nov 2026 11:59:30 GMT", "", 0, true},
		// The server's clock counts, not that of a machine that boots.
		{"Tue, 24 Nov 2026 12:00:30 GMT", "Tue, 24 Nov 2026 12:00:20 GMT", 10 * time.Second, true},
		{"Tue, 24 Nov 2026 12:00:30 GMT", "garbage", 30 * time.Second, true},
	} {
		h := http.Header{}
		h.Set("Retry-After", c.value)
		h.Set("Date", c.date)
		if got, ok := retryAfter(h, now); got != c.want || ok != c.ok {
			t.Errorf("retryAfter(%q, Date %q) = %v, %v, want %v, %v", c.value, c.date, got, ok, c.want, c.ok)
		}
	}
}

// A body that comes in parts at intervals.
func TestWatch(t *testing.T) {
	for _, c := range []struct {
		name  string
		part  int
		every time.Duration
		parts int
		ok    bool
	}{
		{"just fast enough", 1024, 900 * time.Millisecond, 600, true},
		{"too slow", 1024, 1100 * time.Millisecond, 600, false},
		{"one byte at a time", 1, time.Second, 600, false},
		{"pauses of 9 s", 20 << 10, 9 * time.Second, 30, true},
		{"pauses of 11 s", 20 << 10, 11 * time.Second, 30, false},
		{"short, and done in the window", 1, time.Second, 9, true},
		{"short, and not", 1, time.Second, 12, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				r, w := io.Pipe()
				defer context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })()
				go func() {
					for range c.parts {
						select {
						case <-time.After(c.every): // the bubble's clock
						case <-ctx.Done():
							return
						}
						if _, err := w.Write(make([]byte, c.part)); err != nil {
							return
						}
					}
					w.Close()
				}()
				start := time.Now()
				body := watch(r, (*Options)(nil).withDefaults(), cancel)
				n, err := io.Copy(io.Discard, body)
				body.stop()
				if c.ok && (err != nil || n != int64(c.part*c.parts)) {
					t.Errorf("read %d bytes, %v after %v, want all %d", n, err, time.Since(start), c.part*c.parts)
				}
				if !c.ok && !errors.Is(err, errTooSlow) {
					t.Errorf("read %d bytes, %v after %v, want errTooSlow", n, err, time.Since(start))
				}
			})
		})
	}
}
