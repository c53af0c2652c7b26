package cli

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"overmount/boot"
	"overmount/fusefs"
	"overmount/internal/mounts"
	"overmount/manifest"
	"overmount/origin"
	"overmount/prefetch"
)

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
	indexed  bool            // the modules' indexes are not those of the manifest any more
	held     map[string]bool // the devices that had a driver when rebind began, by path

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
		Depmod: m.depmod, Prefetch: m.prefetch, Coldplug: m.coldplug, Load: m.load, Rebind: m.rebind, RebindLost: m.rebindLost, Files: m.files, FollowRoot: root.Follow,
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
	if k.opened, err = f.openContent(m.app, man, m.log); err != nil {
		// If it was the cache, drivers are worth more than that.
		f.cacheDir = ""
		opened, again := f.openContent(m.app, man, m.log)
		if again != nil {
			return nil, err
		}
		m.log.Warn("going on without a cache of objects", "kind", kind, "error", err)
		k.opened = opened
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
