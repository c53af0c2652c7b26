package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"overmount/boot"
	"overmount/coldplug"
	"overmount/depmod"
	"overmount/firmware"
	"overmount/kmod"
	"overmount/manifest"
)

// packWait is how long the drivers may wait for the boot pack. It comes in one
// piece, and what they ask for meanwhile would come twice.
const packWait = 3 * time.Second

// prefetch begins to fetch what this machine will ask for.
func (m *machine) prefetch(ctx context.Context) (string, error) {
	if m.config.Prefetch == "pack" {
		if note := m.packs(ctx); note != "" {
			return note, nil
		}
	}
	k := m.mounted(boot.Modules)
	switch {
	case k == nil:
		return "no modules", nil
	case m.config.Prefetch == "pack" && !m.byUdev():
		// Our own coldplug asks for many modules at a time: a second plan beside
		// its own gained nothing over any line.
		return "no boot pack", nil
	}
	plan, err := m.plan(ctx, k)
	if err != nil {
		return "", err
	}
	var modules, files []string
	for _, x := range plan.Modules {
		modules = append(modules, x.Path)
	}
	for _, x := range plan.Firmware {
		files = append(files, x.Path)
	}
	k.inBackground(ctx, modules)
	if fw := m.mounted(boot.Firmware); fw != nil {
		fw.inBackground(ctx, files)
	}
	return fmt.Sprintf("%s, %s, and %s, %s", counted(len(modules), "module"), humanBytes(plan.ModuleBytes()),
		counted(len(files), "firmware file"), humanBytes(plan.FirmwareBytes())), nil
}

func (k *bootMount) inBackground(ctx context.Context, files []string) {
	go func() {
		r, err := k.fetcher.Files(context.WithoutCancel(ctx), files)
		k.log.Info("prefetched", "files", r.Files, "bytes", r.Bytes, "missing", r.Missing, "failed", r.Failed, "error", err)
	}()
}

// packs takes the boot packs of both mounts, and says what they had when they were in,
// or that the wait for them was over. It says nothing if there are none.
func (m *machine) packs(ctx context.Context) (note string) {
	var blocks [2]int
	var done sync.WaitGroup
	for i, kind := range []string{boot.Modules, boot.Firmware} {
		if k := m.mounted(kind); k != nil {
			done.Go(func() {
				blocks[i] = m.pack(ctx, kind, k)
			})
		}
	}
	all := make(chan struct{})
	go func() {
		defer close(all)
		done.Wait()
	}()
	select {
	case <-all:
	case <-time.After(packWait):
		return "boot packs are on their way"
	case <-ctx.Done():
		return ""
	}
	if n := blocks[0] + blocks[1]; n > 0 {
		return counted(n, "block") + " of boot packs"
	}
	return ""
}

// pack takes the boot pack of a mount, and returns how many blocks it had.
func (m *machine) pack(ctx context.Context, kind string, k *bootMount) int {
	m.mu.Lock()
	early := m.early[kind]
	delete(m.early, kind)
	m.mu.Unlock()
	if early == nil || early.failed() {
		f := warmFlags{pack: "auto", class: m.class}
		return f.unpack(ctx, m.copyTo, k.url, k.tree.Manifest().Tag(manifest.TagKver), k.fetcher, m.log)
	}
	blocks, err := k.fetcher.Pack(ctx, early.spool)
	file, fetchErr := early.end()
	switch {
	case err == nil:
		m.log.Info("the boot pack is in", "pack", shown(file), "blocks", blocks)
	case errors.Is(fetchErr, fs.ErrNotExist):
		m.log.Debug("there is no boot pack", "pack", shown(file))
	default:
		m.log.Warn("the boot pack is of no further use", "pack", shown(file), "blocks", blocks, "err", err)
	}
	return blocks
}

// plan says what this machine's devices will ask for. It reads nothing from the
// mounts.
func (m *machine) plan(ctx context.Context, k *bootMount) (*coldplug.Plan, error) {
	tree, err := kmod.OpenTree(k.tree.FS(ctx))
	if err != nil {
		return nil, err
	}
	var o coldplug.Options
	if fw := m.mounted(boot.Firmware); fw != nil {
		o.Firmware = firmware.New(fw.tree.FS(ctx), m.config.Kver)
	}
	d := driverLoading{log: m.log}
	p, machine, err := d.planner(tree, coldplug.FromManifest(k.tree.Manifest()), o)
	if err != nil {
		return nil, err
	}
	return p.Plan(machine.Devices), nil
}

// drivers is what loading modules needs. Indexes are read from the manifest, not
// through the mount; without one, the image may have modules of its own.
func (m *machine) drivers(ctx context.Context) *driverLoading {
	d := &driverLoading{dir: m.config.ModulesDir, fsys: os.DirFS(m.config.ModulesDir), parallel: 16, log: m.log}
	if k := m.mounted(boot.Modules); k != nil && !m.indexed {
		d.fsys = k.tree.FS(ctx)
	}
	return d
}

// depmod makes the indexes of the modules anew, where they are mounted. That is an
// overlay: a file of the mount itself, which this process serves, must not be given to
// Go's poller.
func (m *machine) depmod(ctx context.Context) (string, error) {
	dir := os.DirFS(m.config.ModulesDir)
	config, err := depmod.ReadConfig("/")
	if err != nil {
		return "", err
	}
	for _, p := range config.Problems {
		m.log.Warn("configuration of depmod", "problem", p)
	}
	r, err := depmod.Build(ctx, dir, &depmod.Options{Config: config, Kver: m.config.Kver, Layout: depmod.LayoutOf(dir)})
	if err != nil {
		return "", err
	}
	for _, w := range r.Warnings {
		m.log.Warn("depmod", "warning", w)
	}
	if err := r.Write(m.config.ModulesDir); err != nil {
		return "", err
	}
	m.indexed = true
	return counted(len(r.Modules), "module"), nil
}

// byUdev reports whether udev loads the drivers.
func (m *machine) byUdev() bool {
	return m.config.Coldplug == "udev" || m.config.Coldplug == "auto" && boot.HasUdev()
}

func (m *machine) coldplug(ctx context.Context) (boot.Coldplugged, error) {
	if m.byUdev() {
		return m.udevColdplug(ctx)
	}
	m.unfollow()
	d := m.drivers(ctx)
	r, done, err := d.all(ctx, m.config.SettleTimeout)
	if r != nil {
		m.follow(ctx, d, r)
	}
	return done, err
}

// udevColdplug has udev load the drivers. That it has settled does not mean that it
// has: a daemon that died, or does not see the new indexes, settles at once. Then
// they are loaded from here.
func (m *machine) udevColdplug(ctx context.Context) (boot.Coldplugged, error) {
	var before []coldplug.KnownModule
	if machine, err := coldplug.Scan(os.DirFS("/sys")); err == nil {
		before = machine.Modules
	}
	note, err := boot.Udev(ctx, m.config.SettleTimeout)
	if err != nil || !m.idle(ctx, before) {
		return boot.Coldplugged{Note: note}, err
	}
	m.log.Warn("udev has settled, and has loaded nothing of what the devices ask for; loading it from here", "daemon", answer(ctx))
	_, done, err := m.drivers(ctx).all(ctx, m.config.SettleTimeout)
	done.Note = note + ", which has loaded nothing; from here: " + done.Note
	return done, err
}

// answer says whether udev's daemon is there.
func answer(ctx context.Context) string {
	if err := boot.ReloadUdev(ctx, 5*time.Second); err != nil {
		return "does not answer: " + err.Error()
	}
	return "answers"
}

// idle reports whether no module was loaded since, though devices ask for more than the
// kernel has.
func (m *machine) idle(ctx context.Context, before []coldplug.KnownModule) bool {
	k := m.mounted(boot.Modules)
	machine, err := coldplug.Scan(os.DirFS("/sys"))
	if err != nil || k == nil {
		return false
	}
	same := func(a, b coldplug.KnownModule) bool { return a.Name == b.Name }
	if !slices.EqualFunc(before, machine.Modules, same) {
		return false
	}
	p, err := m.plan(ctx, k)
	if err != nil {
		m.log.Warn("what udev should have loaded is not known", "error", err)
		return false
	}
	return mostMissing(p, machine)
}

// mostMissing reports whether, of the modules that devices ask for, more are yet to be
// loaded than were. Some always are: those that found that they are not needed.
func mostMissing(p *coldplug.Plan, machine *coldplug.Machine) bool {
	planned, loaded := map[string]bool{}, map[string]bool{}
	for _, r := range p.Requests {
		for _, match := range r.Matches {
			switch {
			case match.Outcome == coldplug.Planned:
				planned[match.Module] = true
			case machine.State(match.Module) == "live":
				loaded[match.Module] = true
			}
		}
	}
	return len(planned) > len(loaded)
}

// follow has modules loaded for devices that appear later, until unfollow.
func (m *machine) follow(ctx context.Context, d *driverLoading, r *coldplugResult) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.follow(ctx, r)
	}()
	m.unfollow = func() {
		cancel()
		<-done
	}
}

func (m *machine) load(ctx context.Context, names []string) error {
	return m.drivers(ctx).load(ctx, names)
}

// record writes what was read, if that is wanted.
func (m *machine) record() {
	if m.config.Record == "" {
		return
	}
	for _, kind := range []string{boot.Modules, boot.Firmware} {
		k := m.mounted(kind)
		if k == nil {
			continue
		}
		f := warmFlags{record: filepath.Join(m.config.Record, kind+".record"), class: m.class}
		err := os.MkdirAll(m.config.Record, 0o755)
		if err == nil {
			err = f.writeRecord(k.fetcher)
		}
		if err != nil {
			m.log.Error("the record could not be written", "kind", kind, "error", err)
		}
	}
}
