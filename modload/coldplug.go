package modload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"overmount/coldplug"
)

// idle is how long nothing may happen before all devices are taken as settled.
// Drivers look for devices on their own threads, and a disk behind a controller
// may take longer: whoever needs it waits for it by name.
const idle = 300 * time.Millisecond

// A Listener says which devices are new, as [Uevents] does.
type Listener interface {
	// Next waits for one. ErrLost says that some were missed.
	Next(ctx context.Context) (coldplug.Device, error)
}

// Coldplug loads what the devices below sysfs need, and what those need that come
// up by it, until nothing has happened for a while. It returns when that is so; with
// context.DeadlineExceeded when limit is over, and modules that are on their way are
// loaded all the same; or with the error of ctx, with which loading ends, too.
//
// The listener must have begun before the call, or devices may be missed.
func Coldplug(ctx context.Context, limit time.Duration, sysfs fs.FS, p *coldplug.Planner, l *Loader, events Listener) error {
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := &settling{l: l, plan: p.Plan, start: func(plan *coldplug.Plan) <-chan struct{} { return l.Load(ctx, plan) }}
	news := make(chan coldplug.Device, 1024)
	lost := make(chan error, 1)
	go listen(within, events, news, lost)
	for {
		before := len(l.Results()) + len(l.Waiting())
		m, err := coldplug.Scan(sysfs)
		if err != nil {
			return err
		}
		c.load(m.Devices)
		again, err := c.settle(within, news, lost)
		if err != nil {
			return err
		}
		// A device may have come while nobody listened, or its event was lost.
		if !again && len(l.Results()) == before {
			return nil
		}
	}
}

// Follow loads what the devices below sysfs need, and then what each device needs
// that appears: a disk that took its time, a device that somebody plugs in. It waits
// for none of them to be loaded. It returns when the context ends or listening
// fails, with that error.
//
// The listener must have begun before the call. The planner and the loader may be
// those of a Coldplug that has returned.
func Follow(ctx context.Context, sysfs fs.FS, p *coldplug.Planner, l *Loader, events Listener) error {
	for {
		m, err := coldplug.Scan(sysfs)
		if err != nil {
			return err
		}
		l.Load(ctx, p.Plan(m.Devices))
		if err := follow(ctx, p, l, events); !errors.Is(err, ErrLost) {
			return err
		}
	}
}

func follow(ctx context.Context, p *coldplug.Planner, l *Loader, events Listener) error {
	for {
		d, err := events.Next(ctx)
		if err != nil {
			return err
		}
		l.Load(ctx, p.Plan([]coldplug.Device{d}))
	}
}

// settling is the state between two scans.
type settling struct {
	l     *Loader
	plan  func([]coldplug.Device) *coldplug.Plan
	start func(*coldplug.Plan) <-chan struct{}
	busy  []<-chan struct{}
}

func (c *settling) load(devices []coldplug.Device) {
	plan := c.plan(devices)
	if len(plan.Modules) > 0 {
		c.busy = append(c.busy, c.start(plan))
	}
}

// settle loads for new devices until nothing is being loaded and nothing new has
// come for a while. It reports whether a scan is due because events were lost.
func (c *settling) settle(ctx context.Context, news <-chan coldplug.Device, lost <-chan error) (again bool, err error) {
	quiet := time.NewTimer(idle)
	defer quiet.Stop()
	for {
		var working <-chan struct{}
		if len(c.busy) > 0 {
			working = c.busy[0]
		}
		select {
		case d := <-news:
			c.load(append(more(news), d))
			quiet.Reset(idle)
		case <-working:
			c.busy = c.busy[1:]
			quiet.Reset(idle)
		case err := <-lost:
			if !errors.Is(err, ErrLost) {
				return false, err
			}
			again = true
		case <-quiet.C:
			if len(c.busy) == 0 {
				return again, nil
			}
			quiet.Reset(idle)
		case <-ctx.Done():
			return false, fmt.Errorf("devices have not settled, %d modules are still on their way: %w", len(c.l.Waiting()), context.Cause(ctx))
		}
	}
}

// more returns what is there without waiting.
func more(news <-chan coldplug.Device) (devices []coldplug.Device) {
	for {
		select {
		case d := <-news:
			devices = append(devices, d)
		default:
			return devices
		}
	}
}

// listen passes on events until the context ends or listening fails.
func listen(ctx context.Context, events Listener, news chan<- coldplug.Device, lost chan<- error) {
	for {
		d, err := events.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			select {
			case lost <- err:
			default:
			}
			if !errors.Is(err, ErrLost) {
				return
			}
			continue
		}
		select {
		case news <- d:
		case <-ctx.Done():
			return
		}
	}
}

// Driver returns the name of the driver that a device has, empty if none.
func Driver(sysfs fs.FS, d coldplug.Device) string {
	target, err := fs.ReadLink(sysfs, d.Path+"/driver")
	if err != nil {
		return ""
	}
	return path.Base(target)
}
