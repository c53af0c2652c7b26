package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overmount/boot"
	"overmount/coldplug"
	"overmount/kmod"
	"overmount/modload"
)

type coldplugFlags struct {
	dir      string
	settle   time.Duration
	parallel int
	rebind   bool
}

func (a *app) coldplugCommand() *cobra.Command {
	var f coldplugFlags
	cmd := &cobra.Command{
		Use:   "coldplug",
		Short: "Load the drivers of this machine's devices, without udev and modprobe",
		Long: `Coldplug loads the modules that the devices of this machine need, many at a time,
each after what it needs, and then those for the devices that appear by it, until
nothing new does. It reads modprobe.d and the kernel command line as modprobe does:
aliases, softdeps, blacklists, options, install commands. It makes no links in /dev
and sets no rights: that is udev's work.

With --rebind, it first has the kernel look again for drivers of devices that have none
though a module is loaded that is for them: a driver that has not found its firmware
has given up, and does not look when the firmware has come. Devices that have a driver
are not touched.

It ends with 3 if a module could not be loaded, or some were still on their way
after --settle.

With --json, one object for each device that was probed again: device, modules, driver
if it has one now, took_ns, and error if it was not tried to the end; one for each
module: module, milliseconds, and error if it was not loaded; and in the end one with
loaded, declined (they found that nothing here is for them), failed, waiting, devices
(with a modalias that some module is for), bound (those that have a driver), seconds.

` + exitCodes,
		Example: "  overmount coldplug\n  overmount coldplug --settle 30s --json\n  overmount coldplug --rebind",
		Args:    args(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.coldplug(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "`directory` with the modules and their indexes (default /lib/modules/ and the version of the kernel)")
	flags.DurationVar(&f.settle, "settle", 120*time.Second, "how long the devices may take")
	flags.IntVar(&f.parallel, "parallel", 16, "most `modules` that are loaded at a time")
	flags.BoolVar(&f.rebind, "rebind", false, "first probe devices again whose drivers have given up")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) coldplug(cmd *cobra.Command, f *coldplugFlags) error {
	if f.parallel < 1 || f.settle <= 0 {
		return usagef(cmd, "--parallel and --settle want more than 0")
	}
	log, err := a.logger(cmd, a.Stderr)
	if err != nil {
		return err
	}
	if f.dir == "" {
		kver, err := runningKver()
		if err != nil {
			return err
		}
		f.dir = filepath.Join("/lib/modules", kver)
	}
	d := driverLoading{dir: f.dir, fsys: os.DirFS(f.dir), parallel: f.parallel, log: log}
	if f.rebind {
		ctx, cancel := context.WithTimeout(cmd.Context(), f.settle)
		defer cancel()
		devices, err := d.rebind(ctx, "/sys", nil)
		if err != nil {
			return fmt.Errorf("probe devices again: %w", err)
		}
		if err := a.reboundDevices(devices); err != nil {
			return err
		}
	}
	r, err := d.coldplug(cmd.Context(), f.settle)
	if err != nil {
		return fmt.Errorf("coldplug with the modules in %s: %w", f.dir, err)
	}
	return a.coldplugged(r)
}

// driverLoading is what loading modules needs.
type driverLoading struct {
	dir      string // where the kernel finds the files
	fsys     fs.FS  // the same, or what is mounted there
	parallel int
	log      *slog.Logger
}

// coldplugResult says what came of it.
type coldplugResult struct {
	planner        *coldplug.Planner
	loader         *modload.Loader
	results        []modload.Result
	waiting        []string
	devices, bound int
	took           time.Duration
}

// split says how many modules were loaded, how many found nothing here that they are
// for, and which failed.
func (r *coldplugResult) split() (loaded, declined int, failed []modload.Result) {
	for _, m := range r.results {
		switch {
		case m.Err == nil:
			loaded++
		case m.Declined():
			declined++
		default:
			failed = append(failed, m)
		}
	}
	return loaded, declined, failed
}

// drivers are the modules for the report of a boot.
func (r *coldplugResult) drivers() []boot.Driver {
	var all []boot.Driver
	for _, m := range r.results {
		d := boot.Driver{Module: m.Module, Took: m.Took}
		if m.Err != nil {
			d.Error = m.Err.Error()
		}
		all = append(all, d)
	}
	return all
}

func (r *coldplugResult) String() string {
	loaded, declined, failed := r.split()
	return fmt.Sprintf("%s loaded, %d not needed, %d failed, %d waiting; %d of %d devices have a driver",
		counted(loaded, "module"), declined, len(failed), len(r.waiting), r.bound, r.devices)
}

// config reads modprobe.d and the kernel command line of this machine.
func (d *driverLoading) config() (*kmod.Config, string, error) {
	config, err := kmod.ReadConfig(os.DirFS("/"))
	if err != nil {
		return nil, "", err
	}
	cmdline, err := readLimited("/proc/cmdline", 64<<10)
	if err != nil {
		return nil, "", fmt.Errorf("kernel command line: %w", err)
	}
	config.AddCommandLine(string(cmdline))
	return config, string(cmdline), nil
}

// planner returns a planner for this machine.
func (d *driverLoading) planner(tree *kmod.Tree, source coldplug.Source, o coldplug.Options) (*coldplug.Planner, *coldplug.Machine, error) {
	config, cmdline, err := d.config()
	if err != nil {
		return nil, nil, err
	}
	machine, err := coldplug.Scan(os.DirFS("/sys"))
	if err != nil {
		return nil, nil, err
	}
	o.Loaded, o.Refused = machine.Loaded, kmod.Refused(cmdline)
	return coldplug.New(tree, config, source, &o), machine, nil
}

func (d *driverLoading) coldplug(ctx context.Context, settle time.Duration) (*coldplugResult, error) {
	start := time.Now()
	tree, err := kmod.OpenTree(d.fsys)
	if err != nil {
		return nil, err
	}
	events, err := modload.ListenUevents()
	if err != nil {
		return nil, err
	}
	defer events.Close()
	p, _, err := d.planner(tree, unknownFacts{}, coldplug.Options{})
	if err != nil {
		return nil, err
	}
	l := modload.New(d.dir, tree, &modload.Options{Parallel: d.parallel, Logger: d.log})
	err = modload.Coldplug(ctx, settle, os.DirFS("/sys"), p, l, events)
	if err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
		return nil, err
	}
	r := &coldplugResult{planner: p, loader: l, results: l.Results(), waiting: l.Waiting(), took: time.Since(start)}
	slices.SortFunc(r.results, func(a, b modload.Result) int { return cmp.Compare(a.Module, b.Module) })
	slices.Sort(r.waiting)
	return r, r.countDevices(tree)
}

// all does a coldplug as a step of a boot. The result is nil if it could not be done.
func (d *driverLoading) all(ctx context.Context, settle time.Duration) (*coldplugResult, boot.Coldplugged, error) {
	r, err := d.coldplug(ctx, settle)
	if err != nil {
		return nil, boot.Coldplugged{}, err
	}
	if len(r.waiting) > 0 {
		err = fmt.Errorf("%v: still on their way: %s", r, strings.Join(r.waiting, ", "))
	}
	return r, boot.Coldplugged{Note: r.String(), Drivers: r.drivers()}, err
}

// follow goes on loading for devices that appear, after a coldplug.
func (d *driverLoading) follow(ctx context.Context, r *coldplugResult) {
	events, err := modload.ListenUevents()
	if err == nil {
		defer events.Close()
		err = modload.Follow(ctx, os.DirFS("/sys"), r.planner, r.loader, inCharge{events, d.dir})
	}
	if ctx.Err() == nil {
		d.log.Info("modules for new devices are no longer loaded from here", "reason", err)
	}
}

// inCharge listens as long as nobody else is to load modules.
type inCharge struct {
	*modload.Uevents
	dir string
}

// Next waits for a device. It fails when udev's daemon runs, or when the modules have
// gone, as they do with a change of root.
func (c inCharge) Next(ctx context.Context) (coldplug.Device, error) {
	device, err := c.Uevents.Next(ctx)
	if err == nil && boot.HasUdev() {
		err = errors.New("udev does it")
	}
	if err == nil {
		_, err = os.Stat(filepath.Join(c.dir, "modules.dep"))
	}
	return device, err
}

// unknownFacts is for who loads and needs no sizes.
type unknownFacts struct{}

func (unknownFacts) Facts(string) (coldplug.Facts, error) { return coldplug.Facts{}, nil }

// countDevices counts the devices that some module is for, and those with a driver.
func (r *coldplugResult) countDevices(tree *kmod.Tree) error {
	sysfs := os.DirFS("/sys")
	machine, err := coldplug.Scan(sysfs)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, d := range machine.Devices {
		if seen[d.Path] || len(tree.Aliases(d.Modalias)) == 0 {
			continue
		}
		seen[d.Path] = true
		r.devices++
		if modload.Driver(sysfs, d) != "" {
			r.bound++
		}
	}
	return nil
}

func (a *app) coldplugged(r *coldplugResult) error {
	loaded, declined, failed := r.split()
	if a.json {
		enc := json.NewEncoder(a.Stdout)
		for _, m := range r.results {
			line := map[string]any{"module": m.Module, "milliseconds": m.Took.Milliseconds()}
			if m.Err != nil {
				line["error"] = m.Err.Error()
			}
			if err := enc.Encode(line); err != nil {
				return err
			}
		}
		err := enc.Encode(map[string]any{
			"loaded": loaded, "declined": declined, "failed": len(failed), "waiting": r.waiting,
			"devices": r.devices, "bound": r.bound, "seconds": r.took.Seconds(),
		})
		if err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.Stdout, "%v; %.2f s\n", r, r.took.Seconds())
	}
	switch {
	case len(r.waiting) > 0:
		return exitError{exitPartly, fmt.Errorf("still on their way: %s", strings.Join(r.waiting, ", "))}
	case len(failed) > 0:
		return exitError{exitPartly, fmt.Errorf("%s could not be loaded, the first: %w", counted(len(failed), "module"), failed[0].Err)}
	}
	return nil
}

// load loads modules by name, with what they need, in modprobe's order.
func (d *driverLoading) load(ctx context.Context, names []string) error {
	tree, err := kmod.OpenTree(d.fsys)
	if err != nil {
		return err
	}
	config, _, err := d.config()
	if err != nil {
		return err
	}
	machine, err := coldplug.Scan(os.DirFS("/sys"))
	if err != nil {
		return err
	}
	resolver := kmod.NewResolver(tree, config, &kmod.ResolverOptions{Loaded: machine.Loaded})
	var errs []error
	for _, name := range names {
		actions, err := resolver.Resolve(name)
		if err == nil {
			err = modload.Run(ctx, d.dir, actions)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
