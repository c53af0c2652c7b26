package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"overmount/boot"
	"overmount/kmod"
	"overmount/modload"
)

// rebind probes devices again that have no driver though a loaded module is for them.
func (m *machine) rebind(ctx context.Context) ([]boot.Rebound, error) {
	m.held = modload.FindHeld(os.DirFS("/sys"))
	return m.drivers(ctx).rebind(ctx, "/sys", nil)
}

// rebindLost does the same for those that had a driver when rebind began.
func (m *machine) rebindLost(ctx context.Context) ([]boot.Rebound, error) {
	return m.drivers(ctx).rebind(ctx, "/sys", m.held)
}

// rebind probes again what has given up, but nothing that is not among some devices, by
// path; nil stands for all.
func (d *driverLoading) rebind(ctx context.Context, sys string, among map[string]bool) ([]boot.Rebound, error) {
	tree, err := kmod.OpenTree(d.fsys)
	if err != nil {
		return nil, err
	}
	devices, err := modload.FindUnbound(os.DirFS(sys), func(modalias string) []string {
		var names []string
		for _, a := range tree.Aliases(modalias) {
			names = append(names, a.Module)
		}
		return names
	})
	if err != nil {
		return nil, err
	}
	if among != nil {
		devices = slices.DeleteFunc(devices, func(u modload.Unbound) bool { return !among[u.Path] })
	}
	var all []boot.Rebound
	for _, r := range modload.Rebind(ctx, os.DirFS(sys), devices, modload.Sysfs(sys)) {
		b := boot.Rebound{Device: r.Bus + " " + r.Name, Modules: r.Modules, Driver: r.Driver, Took: r.Took.Round(time.Microsecond)}
		if r.Err != nil {
			b.Error = r.Err.Error()
		}
		all = append(all, b)
	}
	return all, nil
}

// reboundDevices prints what came of probing again.
func (a *app) reboundDevices(devices []boot.Rebound) error {
	if !a.json {
		_, err := fmt.Fprintln(a.Stdout, boot.ReboundLine(devices))
		return err
	}
	enc := json.NewEncoder(a.Stdout)
	for _, d := range devices {
		if err := enc.Encode(d); err != nil {
			return err
		}
	}
	return nil
}
