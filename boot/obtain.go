package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"overmount/origin"
)

// The pauses between two tries to get a manifest.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 2 * time.Second
)

// obtain gets a manifest: from its place, as long as that may still become
// possible and wait is not over; else the one that was kept; else the image's own.
func (b *Boot) obtain(ctx context.Context, p place, wait time.Duration) (origin.Copy, error) {
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	pauses := &backoff.ExponentialBackOff{InitialInterval: firstPause, MaxInterval: maxPause, Multiplier: 2, RandomizationFactor: 0.5}
	var last error
	for {
		c, err := b.fetch(within, p)
		if err == nil {
			return c, nil
		}
		final := errors.Is(err, origin.ErrRefused) || errors.Is(err, fs.ErrNotExist)
		if within.Err() == nil {
			if last == nil && !final {
				b.log.Warn("manifest cannot be had yet", "kind", p.kind, "for", wait, "error", err)
			}
			last = err
		}
		if final {
			break
		}
		select {
		case <-time.After(pauses.NextBackOff()):
			continue
		case <-within.Done():
		}
		break
	}
	if ctx.Err() != nil {
		return origin.Copy{}, ctx.Err()
	}
	if last == nil {
		last = fmt.Errorf("manifest %s: no answer within %v", origin.Shown(p.manifest), wait)
	}
	return b.fallback(ctx, p, last)
}

// fetch asks for a manifest once. A disk that is full, or not writable yet, costs a
// machine what it could have kept for the next boot, and not its drivers.
func (b *Boot) fetch(ctx context.Context, p place) (origin.Copy, error) {
	c, err := b.do.Fetch(ctx, p.manifest, b.c.Kept, b.trust[p.kind])
	if !isOf(err, b.c.Kept) {
		return c, err
	}
	c, again := b.do.Fetch(ctx, p.manifest, b.keptInRun(), b.notBefore(ctx, p))
	if again == nil {
		b.log.Warn("the manifest cannot be kept for the next boot", "kind", p.kind, "dir", b.c.Kept, "error", err)
	}
	return c, again
}

// keptInRun is where manifests go that cannot be kept for long.
func (b *Boot) keptInRun() string { return filepath.Join(b.c.RunDir, "kept") }

// isOf reports whether an error is that of a file in a directory, or of one above it.
func isOf(err error, dir string) bool {
	pe, ok := errors.AsType[*fs.PathError](err)
	return ok && (strings.HasPrefix(pe.Path+"/", dir+"/") || strings.HasPrefix(dir, pe.Path+"/"))
}

// notBefore is the trust in what is not older than what was kept.
func (b *Boot) notBefore(ctx context.Context, p place) origin.Trust {
	t := b.trust[p.kind]
	if name, err := origin.Name(p.manifest); err == nil {
		if c, err := origin.Open(ctx, b.c.Kept, name, t); err == nil {
			t.MinSerial = max(t.MinSerial, c.Claims.Serial)
		}
	}
	return t
}

// Embedded is the state of a manifest that the image has brought.
const Embedded origin.State = "embedded"

// fallback looks for a manifest on this machine, after its place failed.
func (b *Boot) fallback(ctx context.Context, p place, reason error) (origin.Copy, error) {
	name, err := origin.Name(p.manifest)
	if err != nil {
		return origin.Copy{}, reason
	}
	for _, dir := range []string{b.keptInRun(), b.c.Kept, b.c.Embedded} {
		c, err := origin.Open(ctx, dir, name, b.trust[p.kind])
		if err == nil {
			if dir == b.c.Embedded {
				c.State = Embedded
			}
			b.log.Warn("using a manifest from this machine", "kind", p.kind, "file", c.Path, "serial", c.Claims.Serial, "reason", reason)
			b.degrade()
			return c, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			reason = errors.Join(reason, err)
		}
	}
	return origin.Copy{}, reason
}
