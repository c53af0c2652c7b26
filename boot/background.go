package boot

import (
	"context"
	"os"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Background goes on trying to mount what Run could not, until all is there or the
// context ends, in the root directory that PID 1 has by then. When something new is,
// devices without a driver are probed again, and all are announced once more. It calls
// changed, if that is not nil, when the report has changed, or its place.
func (b *Boot) Background(ctx context.Context, changed func()) {
	pauses := &backoff.ExponentialBackOff{InitialInterval: maxPause, MaxInterval: 30 * time.Second, Multiplier: 2, RandomizationFactor: 0.5}
	for ctx.Err() == nil {
		b.mu.Lock()
		pending := b.pending
		b.pending = nil
		b.mu.Unlock()
		if len(pending) == 0 {
			return
		}
		select {
		case <-time.After(pauses.NextBackOff()):
		case <-ctx.Done():
			return
		}
		news := b.followRoot()
		if b.again(ctx, pending) {
			b.missed, news = true, true
			b.devices(ctx)
		}
		if news && changed != nil {
			changed()
		}
	}
}

// followRoot has what comes now be mounted where everybody sees it, and the ready file
// be found there, too, if /run was not moved along. It reports whether it went anywhere.
func (b *Boot) followRoot() bool {
	changed, err := b.do.FollowRoot()
	if err != nil {
		b.log.Warn("whether PID 1 has another root directory now cannot be told: what is mounted late may not be seen there", "error", err)
	}
	if !changed {
		return false
	}
	b.log.Info("the root directory of PID 1 has changed; going there")
	err = os.MkdirAll(b.c.RunDir, 0o755)
	if err == nil {
		err = b.SetReady()
	}
	if err != nil {
		b.log.Error("the ready file could not be written", "error", err)
	}
	return true
}

// onceMore is how long a place that is tried again is waited for.
const onceMore = 10 * time.Second

// again tries places once more, and reports whether one of them is mounted now.
// Tries that fail are not noted: there may be many.
func (b *Boot) again(ctx context.Context, pending []place) (mounted bool) {
	for _, p := range pending {
		c, err := b.obtain(ctx, p, onceMore)
		if err == nil {
			err = b.step("mount "+p.kind, func() (string, error) { return p.dir + ", after all", b.mount(ctx, p, c) })
		}
		if err == nil {
			mounted = true
			continue
		}
		b.mu.Lock()
		b.pending = append(b.pending, p)
		b.mu.Unlock()
	}
	return mounted
}
