package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"overmount/boot"
	"overmount/coldplug"
	"overmount/depmod"
	"overmount/firmware"
	"overmount/fusefs"
	"overmount/internal/mounts"
	"overmount/internal/notify"
	"overmount/kmod"
	"overmount/manifest"
	"overmount/origin"
	"overmount/prefetch"
)

// bootConfig is where the configuration is if nobody says otherwise.
const bootConfig = "/etc/overmount.toml"

type bootFlags struct {
	config     string
	foreground bool
	strict     bool
	initrd     initrdFlag
}

func (a *app) bootCommand() *cobra.Command {
	var f bootFlags
	cmd := &cobra.Command{
		Use:   "boot [--config FILE]",
		Short: "Mount modules and firmware on the way up, and have the drivers loaded",
		Long: `Boot is run once the network is being brought up. In this order it

  1. fetches the manifests of this kernel's modules and of the firmware, waiting for
     the network, and checks their signatures; without an answer it takes those that
     it fetched the last time, or those that the image brought;
  2. keeps the firmware of stage 1 in reach (firmware_class.path);
  3. takes away what dead mounts are in the way, and mounts over
     /lib/modules/<kver> and /lib/firmware;
  4. begins to fetch what this machine's devices will ask for;
  5. lets the drivers be loaded: by udev (udevadm control --reload, trigger, settle)
     if its daemon runs, else by itself, as "overmount coldplug" does, from then on
     also for devices that appear later;
  6. loads the modules that are wanted in any case.

Then it returns, and leaves behind the process that serves the mounts. A step that
fails keeps no other from being done, and boot still ends with 0, unless --strict
is given: a machine with half of its drivers can be looked at. What could not be
mounted is tried again in the background, for ever; when it is there, devices whose
drivers have given up without it are probed again, and step 5 is done once more. The
report is in /run/overmount/report.json ("overmount report" shows it), the log beside
it, and /run/overmount/ready is there when boot has done its steps.

Settings are in FILE (TOML), in the environment (OVERMOUNT_NAME) and on the kernel
command line (overmount.name=value), where the later ones count. Upper case and _
stand for lower case and - in the environment; lists have commas there and on the
command line. {kver} stands for the version of the kernel. With a setting in FILE
that does not exist, or a wrong value there or in the environment, nothing is done;
one on the command line, which nobody can mend by then, is left out and reported.

  base             URL or directory with modules-{kver}.fl and firmware.fl
  modules          manifest, by URL or path, or none (default from base). NAME.fl.zst,
                   which publish puts beside NAME.fl, is the same in half the bytes
  firmware         the same for firmware
  pubkey           public key, or its file, that must have signed both
  modules-serial   least serial of the signature; also firmware-serial
  kver             version of the kernel (default that of the running one)
  modules-dir      where modules go (default /lib/modules/{kver}); also firmware-dir
  stage1-firmware  firmware to keep in reach (default /lib/overmount/firmware)
  cache            directory for objects, or none (default /run/overmount/cache)
  cache-size       its limit in bytes (default 64 MiB)
  kept, embedded   directories with manifests for when no server answers
                   (defaults /var/lib/overmount, /usr/share/overmount); what is
                   fetched goes to kept, or to run-dir if that cannot be written
  network-wait     how long to wait for the manifests (default 60s)
  settle-timeout   how long devices may take (default 120s)
  read-timeout     how long a read waits for a store (default 90s)
  prefetch         pack (the boot pack beside the manifest; where there is none,
                   plan), plan (what the devices' modaliases ask for), both with
                   what a module needs when it begins to be read, or none
                   (default pack)
  coldplug         auto, udev, own or none (default auto)
  writable         true: modules take changes, in memory, as for "depmod -a"
  keep-lower       true: what was in both directories stays visible below
  depmod           true: make the indexes anew, for modules that keep-lower shows;
                   this reads all modules, over the network, and implies writable
  load             list of modules to load in the end
  record           directory for records of what was read, for "overmount profile"
  run-dir          directory for report, log and lock (default /run/overmount)

` + exitCodes,
		Example: `  overmount boot
  OVERMOUNT_BASE=https://boot.example.com/flists overmount boot --foreground`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.boot(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration `FILE` (default "+bootConfig+", if it is there)")
	flags.BoolVar(&f.foreground, "foreground", false, "stay, and tell the service manager when all is done (systemd: Type=notify)")
	flags.BoolVar(&f.strict, "strict", false, "end with 3 if a step failed; the mounts stay")
	f.initrd.add(cmd)
	return cmd
}

// bootSettings reads the configuration. A wrong word on the kernel command line is
// wrong, and no more: nobody can mend it now.
func (a *app) bootSettings(f *bootFlags) (c *boot.Config, wrong, err error) {
	c = boot.Default()
	file := f.config
	if file == "" {
		file = bootConfig
	}
	if _, err := os.Stat(file); f.config != "" || !errors.Is(err, fs.ErrNotExist) {
		if err := c.ReadFile(file); err != nil {
			return nil, nil, err
		}
	}
	if err := c.ReadEnv(a.Getenv); err != nil {
		return nil, nil, err
	}
	line, err := readLimited("/proc/cmdline", 64<<10)
	if err != nil {
		return nil, nil, fmt.Errorf("kernel command line: %w", err)
	}
	return c, c.ReadCommandLine(string(line)), nil
}

func (a *app) boot(cmd *cobra.Command, f *bootFlags) error {
	config, wrong, err := a.bootSettings(f)
	if err != nil {
		return err
	}
	h := herald{}
	if f.foreground {
		if err := a.survive(f.initrd.argv0()); err != nil {
			return err
		}
		h.manager = notify.FromEnv(a.Getenv)
	} else {
		pipe, err := a.daemonPipe()
		if err != nil {
			return err
		}
		if pipe == nil {
			err := a.startDaemon(cmd.Context(), f.initrd.argv0(), "")
			return errors.Join(err, a.strictly(f, config))
		}
		h.caller = func() error { return a.detachBooted(pipe) }
	}
	outliveReaders()
	f.initrd.outliveRoot()
	log, err := a.bootLog(cmd, config)
	if err != nil {
		return err
	}
	m := &machine{app: a, config: config, wrong: wrong, log: log, fetcher: origin.NewFetcher(a.originOptions(config))}
	defer m.fetcher.Close()
	return m.run(cmd.Context(), &h)
}

// detachBooted is detach for a boot, which goes on when an init that had no more
// patience has killed the caller: drivers are loaded by then.
func (a *app) detachBooted(pipe *os.File) error {
	err := a.detach(pipe)
	if errors.Is(err, unix.EPIPE) {
		return letGo()
	}
	return err
}

// strictly makes a degraded boot a failure, if that was asked for.
func (a *app) strictly(f *bootFlags, c *boot.Config) error {
	if !f.strict {
		return nil
	}
	r, err := boot.ReadReport(c.RunDir)
	if err != nil {
		return err
	}
	if r.Degraded {
		return exitError{exitPartly, errors.New("not all steps were done: see \"overmount report\"")}
	}
	return nil
}

// bootLog writes to a file and to stderr: the file is there when nobody reads the
// console, and is written whatever becomes of it.
func (a *app) bootLog(cmd *cobra.Command, c *boot.Config) (*slog.Logger, error) {
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(c.RunDir, "boot.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	return a.logger(cmd, io.MultiWriter(file, a.Stderr))
}

// originOptions are those for fetching manifests. A server that wants credentials
// gets them from where those for stores are.
func (a *app) originOptions(c *boot.Config) *origin.Options {
	o := origin.Options{TempDir: c.RunDir}
	auth, err := a.httpAuth()
	if err != nil {
		return &o // stores will say what is wrong with it
	}
	return withAuth(auth, o)
}

// A machine is the one that this program runs on, while it boots.
type machine struct {
	*app
	config  *boot.Config
	wrong   error // in the settings, and left out
	log     *slog.Logger
	fetcher *origin.Fetcher
	class   string // before drivers have found more devices
	// unfollow ends the loading for devices that appear.
	unfollow func()
	indexed  bool // the modules' indexes are not those of the manifest any more

	mu     sync.Mutex
	mounts map[string]*bootMount // by kind
	early  map[string]*earlyPack // the same
	// manifests are those that were checked and are not mounted yet, by their file.
	manifests map[string]*manifest.Manifest
}

// run boots, and serves until the context ends or nothing is mounted any more.
func (m *machine) run(ctx context.Context, h *herald) (err error) {
	m.mounts, m.class, m.unfollow = map[string]*bootMount{}, class(), func() {}
	m.early, m.manifests = map[string]*earlyPack{}, map[string]*manifest.Manifest{}
	root, err := mounts.NewRoot()
	if err != nil {
		m.log.Warn("the root directory of PID 1 cannot be seen", "error", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	b, err := boot.New(m.config, boot.Actions{
		Fetch: m.fetch, ClearDead: fusefs.ClearDead, Mount: m.mount,
		Depmod: m.depmod, Prefetch: m.prefetch, Coldplug: m.coldplug, Load: m.load, Rebind: m.rebind, Files: m.files, FollowRoot: root.Follow,
	}, m.log)
	if err != nil {
		return err
	}
	*m.config = b.Config()
	if m.wrong != nil {
		b.Misled(m.wrong)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		m.unfollow()
		err = errors.Join(err, b.Close())
	}()
	if err := b.Run(ctx); err != nil {
		return err
	}
	tell := func() *boot.Report {
		report, err := b.WriteReport()
		if err != nil {
			m.log.Error("the report could not be written", "error", err)
		}
		m.record()
		return report
	}
	report := tell()
	m.log.Info("booted", bootLine(report)...)
	if err := b.SetReady(); err != nil {
		m.log.Error("the ready file could not be written", "error", err)
	}
	if err := h.ready("modules and firmware: "+report.Line(), m.log); err != nil {
		return err
	}
	defer h.end(m.log)
	b.Background(ctx, func() { tell() })
	m.wait(ctx)
	return nil
}

// bootLine is what the log says of a boot in one line.
func bootLine(r *boot.Report) []any {
	line := []any{"degraded", r.Degraded, "took", r.Took().Round(time.Millisecond), "mounted", len(r.Mounts), "pending", len(r.Pending)}
	counts := r.Counts()
	for _, name := range []string{"files", "objects", "object_bytes", "requests", "failed_requests", "retries", "waited_ms", "prefetch_hits"} {
		line = append(line, name, counts[name])
	}
	return line
}

// wait returns when the context ends, or all mounts have.
func (m *machine) wait(ctx context.Context) {
	m.mu.Lock()
	mounts := m.mounts
	m.mu.Unlock()
	for _, k := range mounts {
		select {
		case <-k.server.Done():
		case <-ctx.Done():
			return
		}
	}
}

// A bootMount is one of the two mounts.
type bootMount struct {
	*opened
	log     *slog.Logger
	url     string
	server  liveMount
	fetcher *prefetch.Prefetcher
	stop    func()
}

var _ boot.Mounted = (*bootMount)(nil)

func (k *bootMount) Counts() map[string]int64 {
	p, w, s := k.fetcher.Stats(), k.count.wanted.Counts(), k.count.tried.Counts()
	return map[string]int64{
		"files": p.Files, "reads": p.Reads, "read_bytes": p.ReadBytes, "failed_reads": p.Failed, "waited_ms": p.Waited.Milliseconds(),
		"prefetched_blocks": p.Prefetched, "prefetched_bytes": p.PrefetchBytes, "stored_blocks": p.Stored, "prefetch_hits": p.Hits, "given_up_blocks": p.GivenUp,
		"objects": s.Objects, "object_bytes": s.Bytes, "requests": s.Requests, "failed_requests": s.Failed, "retries": retries(w, s),
	}
}

func (k *bootMount) Unmount() error {
	k.stop()
	return errors.Join(unmount(k.server, k.log), k.close())
}

// fetch fetches a manifest, and, from then on, the boot pack that lies beside it.
func (m *machine) fetch(ctx context.Context, place, dir string, t origin.Trust) (origin.Copy, error) {
	if m.config.Prefetch == "pack" && origin.IsURL(place) {
		m.expectPack(ctx, place, t)
	}
	c, err := m.fetcher.Fetch(ctx, place, dir, t)
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.manifests[c.Path] = c.Manifest
	}
	return c, err
}

// open opens a manifest, unless it was to check it.
func (m *machine) open(ctx context.Context, file string) (*manifest.Manifest, error) {
	m.mu.Lock()
	checked := m.manifests[file]
	delete(m.manifests, file)
	m.mu.Unlock()
	if checked != nil {
		return checked, nil
	}
	return manifest.Open(ctx, file)
}

// expectPack begins to fetch a boot pack, if that is not under way. It fails before
// the network is there, as fetching the manifest does, and is tried with that again.
func (m *machine) expectPack(ctx context.Context, place string, t origin.Trust) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.early[t.Kind]; e == nil || e.failed() {
		m.early[t.Kind] = beginPack(context.WithoutCancel(ctx), m.copyTo, place, t.Kver, m.class)
	}
}

// mount mounts a manifest.
func (m *machine) mount(ctx context.Context, kind, file, dir string) (boot.Mounted, error) {
	man, err := m.open(ctx, file)
	if err != nil {
		return nil, err
	}
	k := &bootMount{log: m.log, url: m.placeOf(kind)}
	f := m.mountFlags(kind, file)
	k.opened, err = f.openContent(m.app, man, m.log)
	if _, ofFile := errors.AsType[*fs.PathError](err); ofFile && f.cacheDir != "" {
		m.log.Warn("going on without a cache of objects", "kind", kind, "error", err)
		f.cacheDir = ""
		k.opened, err = f.openContent(m.app, man, m.log)
	}
	if err != nil {
		return nil, err
	}
	k.fetcher = prefetch.New(k.tree, &prefetch.Options{Closure: kind == boot.Modules && m.config.Prefetch != "none", Firmware: declaredTo{m}, Record: m.config.Record != ""})
	var kernel prefetch.PageCache
	if k.server, kernel, err = f.mountOver(ctx, dir, k.tree, k.fetcher, m.log); err != nil {
		return nil, errors.Join(err, k.close())
	}
	k.fetcher.Use(kernel)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	k.stop = stop
	go k.fetcher.Run(running)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounts[kind] = k
	return k, nil
}

// mountFlags are what "overmount mount" would be told.
func (m *machine) mountFlags(kind, file string) *mountFlags {
	f := &mountFlags{fsname: origin.Shown(m.placeOf(kind)), subtype: "overmount"}
	f.treeFlags = treeFlags{meta: file, cacheDir: m.config.Cache, cacheSize: size(m.config.CacheSize), minFree: -1, timeout: m.config.ReadTimeout, countEach: true}
	if f.cacheDir == "none" {
		f.cacheDir = ""
	}
	f.layers = layerFlags{writable: m.config.Writable && kind == boot.Modules, upperSize: -1, keepLower: m.config.KeepLower, runDir: m.config.RunDir}
	return f
}

func (m *machine) placeOf(kind string) string {
	if kind == boot.Firmware {
		return m.config.Firmware
	}
	return m.config.Modules
}

func (m *machine) mounted(kind string) *bootMount {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mounts[kind]
}

// declaredTo passes on what modules declare to the mount of the firmware, when
// there is one.
type declaredTo struct{ m *machine }

func (d declaredTo) Declared(names []string) {
	if k := d.m.mounted(boot.Firmware); k != nil {
		k.fetcher.Declared(names)
	}
}

// packWait is how long the drivers may wait for the boot pack. It comes in one
// piece, and what they ask for meanwhile would come twice.
const packWait = 3 * time.Second

// prefetch begins to fetch what this machine will ask for.
func (m *machine) prefetch(ctx context.Context) (string, error) {
	if m.config.Prefetch == "pack" {
		if n := m.packs(ctx); n > 0 {
			return fmt.Sprintf("%d blocks of boot packs", n), nil
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
	return fmt.Sprintf("%d modules, %d bytes, and %d firmware files, %d bytes", len(modules), plan.ModuleBytes(), len(files), plan.FirmwareBytes()), nil
}

func (k *bootMount) inBackground(ctx context.Context, files []string) {
	go func() {
		r, err := k.fetcher.Files(context.WithoutCancel(ctx), files)
		k.log.Info("prefetched", "files", r.Files, "bytes", r.Bytes, "missing", r.Missing, "failed", r.Failed, "error", err)
	}()
}

// packs takes the boot packs of both mounts, and returns how many blocks they had
// when they were in, or when the wait for them was over.
func (m *machine) packs(ctx context.Context) int {
	var blocks [2]int
	var done sync.WaitGroup
	for i, kind := range []string{boot.Modules, boot.Firmware} {
		if k := m.mounted(kind); k != nil && origin.IsURL(k.url) {
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
		return blocks[0] + blocks[1]
	case <-time.After(packWait):
		return 1 // they are on their way
	case <-ctx.Done():
		return 0
	}
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
	return fmt.Sprintf("%d modules", len(r.Modules)), nil
}

// byUdev reports whether udev loads the drivers.
func (m *machine) byUdev() bool {
	return m.config.Coldplug == "udev" || m.config.Coldplug == "auto" && boot.HasUdev()
}

func (m *machine) coldplug(ctx context.Context) (boot.Coldplugged, error) {
	if m.byUdev() {
		note, err := boot.Udev(ctx, m.config.SettleTimeout)
		return boot.Coldplugged{Note: note}, err
	}
	m.unfollow()
	d := m.drivers(ctx)
	r, err := d.coldplug(ctx, m.config.SettleTimeout)
	if err != nil {
		return boot.Coldplugged{}, err
	}
	m.follow(ctx, d, r)
	if len(r.waiting) > 0 {
		err = fmt.Errorf("%v: still on their way: %s", r, strings.Join(r.waiting, ", "))
	}
	return boot.Coldplugged{Note: r.String(), Drivers: r.drivers()}, err
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
