package boot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A Rebound is a device that had no driver though a loaded module is for it, and was
// probed again.
type Rebound struct {
	Device  string        `json:"device"`            // as "pci 0000:00:02.0"
	Modules []string      `json:"modules,omitempty"` // that are for it
	Driver  string        `json:"driver,omitempty"`  // that it has now
	Took    time.Duration `json:"took_ns"`
	Error   string        `json:"error,omitempty"` // why it was not tried, or not to the end
}

// bootedBefore reports whether a boot has ended here since the machine was started:
// then modules may be loaded that have missed what this one mounts.
func bootedBefore(runDir string) bool {
	_, err := os.Stat(filepath.Join(runDir, ReportFile))
	return err == nil
}

// rebind has devices probed again whose drivers may have missed what is mounted only
// now. A driver asks for its firmware once, and gives up without. It comes before
// coldplug, which then sees to the devices that appear by it; so all modules that are
// loaded now are those that may have missed something.
func (b *Boot) rebind(ctx context.Context) (string, error) {
	again, err := b.probe(ctx, b.do.Rebind)
	return ReboundLine(again), err
}

// rebindLost does it once more after coldplug, for drivers that had asked before the
// mount was there, and gave up only after rebind had looked.
func (b *Boot) rebindLost(ctx context.Context) (string, error) {
	again, err := b.probe(ctx, b.do.RebindLost)
	if len(again) == 0 {
		return "no device has lost its driver since", err
	}
	return ReboundLine(again), err
}

// probe has devices probed again, and reports them.
func (b *Boot) probe(ctx context.Context, do func(context.Context) ([]Rebound, error)) ([]Rebound, error) {
	ctx, cancel := context.WithTimeout(ctx, b.c.SettleTimeout)
	defer cancel()
	again, err := do(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.report.Rebound = append(b.report.Rebound, again...)
	return again, err
}

// ReboundLine says in a line what came of probing devices again.
func ReboundLine(all []Rebound) string {
	if len(all) == 0 {
		return "no device lacks the driver of a module that is loaded"
	}
	var names []string
	for _, r := range all {
		if r.Driver != "" {
			names = append(names, r.Device+" has "+r.Driver)
		}
	}
	note := fmt.Sprintf("%d of %d devices without a driver have one now", len(names), len(all))
	if len(names) > 0 {
		note += ": " + strings.Join(names, ", ")
	}
	return note
}
