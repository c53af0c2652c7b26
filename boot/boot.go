// Package boot is what a machine does on its way up: get the manifests of its
// kernel's modules and of the firmware, mount them over /lib/modules/<kver> and
// /lib/firmware, have what its devices will ask for on the way, and let the
// drivers be loaded.
//
// The steps are
//
//	fetch     both manifests, at the same time, until the network is there or the
//	          wait for it is over; then the last good ones, or the image's own
//	firmware  the firmware of stage 1 stays reachable (firmware_class.path)
//	mount     what a dead daemon left is taken away first
//	depmod    only if the configuration says so
//	prefetch  in the background
//	rebind    what was loaded without what is mounted now tries its devices again
//	coldplug  udevadm control --reload, trigger, settle; or our own; then rebind once
//	          more, for those whose drivers were at it while the mount appeared
//	load      modules that are wanted in any case
//
// No step that fails keeps the next from being tried: a machine with half of its
// drivers is better than none. What failed is in the [Report], which makes it
// degraded; places whose manifests could not be had are tried again in the
// background ([Boot.Background]), for ever, with coldplug once they are there.
//
// depmod has no step: the indexes are in the manifest.
//
// The package decides what is done and when. How, it is told in [Actions].
package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"overmount/coldplug"
	"overmount/origin"
	"overmount/signature"
)

// Kinds of places.
const (
	Modules  = "modules"
	Firmware = "firmware"
)

// A Mounted is a manifest that is mounted.
type Mounted interface {
	// Counts returns what was read so far, by names that are those of the report.
	Counts() map[string]int64
	// Unmount takes the mount away, and waits for the last who use it.
	Unmount() error
}

// Actions are what a boot does to a machine. All are needed.
type Actions struct {
	// Fetch gets the manifest at a place, as origin.Fetcher's method does.
	Fetch func(ctx context.Context, place, dir string, t origin.Trust) (origin.Copy, error)
	// ClearDead takes away mounts at a directory whose daemon is dead, and says how
	// many.
	ClearDead func(ctx context.Context, dir string) (int, error)
	// Mount mounts the manifest in a file over a directory.
	Mount func(ctx context.Context, kind, file, dir string) (Mounted, error)
	// Prefetch starts to get what the devices of this machine will ask for, and
	// says what that is. It does not wait until it is there.
	Prefetch func(ctx context.Context) (string, error)
	// Coldplug has all devices announced again, and returns when they have
	// settled, with what it did.
	Coldplug func(ctx context.Context) (Coldplugged, error)
	// Depmod makes the indexes of the modules that are mounted.
	Depmod func(ctx context.Context) (note string, err error)
	// Load loads modules by name.
	Load func(ctx context.Context, names []string) error
	// Rebind has the kernel look again for drivers of devices that have none though
	// a loaded module is for them, and says what came of each.
	Rebind func(ctx context.Context) ([]Rebound, error)
	// RebindLost does it for the devices that had a driver when Rebind began, or that
	// one was trying, and have none now.
	RebindLost func(ctx context.Context) ([]Rebound, error)
	// Files returns the files of all mounts that were opened, or fetched ahead.
	Files func() []File
	// FollowRoot goes to the root directory of PID 1, and reports whether that was
	// another one: an initramfs has handed over meanwhile.
	FollowRoot func() (changed bool, err error)
}

// A Boot is one way up.
type Boot struct {
	c         Config
	do        Actions
	log       *slog.Logger
	start     time.Time
	trust     map[string]origin.Trust
	lock      *os.File
	parameter string // the file of firmware_class.path
	sysfs     fs.FS
	// missed says that modules may be loaded which were without what is mounted now.
	missed bool

	mu      sync.Mutex
	report  Report
	mounted []Mounted
	pending []place
	before  *coldplug.Machine // with its modules before the mount of modules
	stale   bool              // depmod is to run
}

// A place is a manifest and where it goes.
type place struct{ kind, manifest, dir string }

// New prepares a boot. It takes the lock of RunDir, which is held until Close, and
// fails if another boot has it, and for a configuration that cannot be used.
func New(c *Config, do Actions, log *slog.Logger) (*Boot, error) {
	b := &Boot{c: *c, do: do, log: log, start: time.Now(), parameter: firmwarePath, sysfs: os.DirFS("/sys"), before: new(coldplug.Machine)}
	if b.c.Kver == "" {
		var err error
		if b.c.Kver, err = runningKernel(); err != nil {
			return nil, err
		}
	}
	if err := b.c.fill(); err != nil {
		return nil, err
	}
	if err := b.readKey(); err != nil {
		return nil, err
	}
	b.report = Report{Kver: b.c.Kver}
	b.missed = bootedBefore(b.c.RunDir)
	return b, b.takeLock()
}

func runningKernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("version of the kernel: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

func (b *Boot) readKey() error {
	modules := origin.Trust{Kind: Modules, Kver: b.c.Kver, MinSerial: b.c.ModulesSerial}
	firmware := origin.Trust{Kind: Firmware, MinSerial: b.c.FirmwareSerial}
	if b.c.Pubkey != "" {
		key, err := signature.ReadPublicKey(b.c.Pubkey)
		if err != nil {
			return err
		}
		modules.Key, firmware.Key = &key, &key
	} else if b.c.ModulesSerial > 0 || b.c.FirmwareSerial > 0 {
		return errors.New("a least serial is wanted, and no pubkey that signs it")
	}
	b.trust = map[string]origin.Trust{Modules: modules, Firmware: firmware}
	return nil
}

func (b *Boot) takeLock() error {
	if err := os.MkdirAll(b.c.RunDir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(b.c.RunDir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("another boot holds %s: it is at work, or serves its mounts; before the next one, end it: "+
				"\"overmount umount %s\", and the same for %s", f.Name(), b.c.ModulesDir, b.c.FirmwareDir)
		}
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	b.lock = f
	// What waits for the ready file must not take that of a boot that has died.
	if err := b.notReady(); err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

func (b *Boot) notReady() error {
	err := os.Remove(filepath.Join(b.c.RunDir, ReadyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Config returns the configuration, with its defaults filled in.
func (b *Boot) Config() Config { return b.c }

// Misled notes that settings were wrong, and left out.
func (b *Boot) Misled(err error) {
	b.try("settings", func() (string, error) { return "", err })
}

// Run does the steps, once. It returns when all is done that can be done now; the
// report says how far that was. It fails only if the context ends.
func (b *Boot) Run(ctx context.Context) error {
	b.try("stage-1 firmware", b.keepStage1)
	b.getAll(ctx, b.places())
	b.devices(ctx)
	return ctx.Err()
}

func (b *Boot) places() []place {
	var places []place
	for _, p := range []place{{Modules, b.c.Modules, b.c.ModulesDir}, {Firmware, b.c.Firmware, b.c.FirmwareDir}} {
		if given(p.manifest) {
			places = append(places, p)
		}
	}
	return places
}

// getAll fetches and mounts, all places at the same time.
func (b *Boot) getAll(ctx context.Context, places []place) {
	var wg sync.WaitGroup
	for _, p := range places {
		wg.Go(func() {
			if err := b.get(ctx, p, b.c.NetworkWait); err != nil && ctx.Err() == nil {
				b.log.Error("cannot mount; going on without, and trying again", "kind", p.kind, "error", err)
				b.mu.Lock()
				b.pending = append(b.pending, p)
				b.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// get fetches and mounts one place.
func (b *Boot) get(ctx context.Context, p place, wait time.Duration) error {
	var c origin.Copy
	err := b.step("fetch "+p.kind, func() (note string, err error) {
		c, err = b.obtain(ctx, p, wait)
		return fmt.Sprintf("%s: %s, %s", origin.Shown(p.manifest), c.State, b.signed(p, c)), err
	})
	if err != nil {
		return err
	}
	return b.step("mount "+p.kind, func() (string, error) { return p.dir, b.mount(ctx, p, c) })
}

// signed says what is known of who made a manifest.
func (b *Boot) signed(p place, c origin.Copy) string {
	if b.trust[p.kind].Key == nil {
		return "by whom was not checked: no pubkey is set"
	}
	return fmt.Sprintf("serial %d", c.Claims.Serial)
}

// mountLimit is how long a mount may take.
const mountLimit = 30 * time.Second

func (b *Boot) mount(ctx context.Context, p place, c origin.Copy) error {
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	dead, err := b.do.ClearDead(ctx, p.dir)
	if err != nil {
		return err
	}
	if dead > 0 {
		b.log.Warn("took away what a daemon that died has left", "dir", p.dir, "mounts", dead)
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	if p.kind == Modules {
		b.noteModules()
	}
	m, err := b.do.Mount(ctx, p.kind, c.Path, p.dir)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mounted = append(b.mounted, m)
	b.stale = b.stale || p.kind == Modules && b.c.Depmod
	b.report.Mounts = append(b.report.Mounts, &MountReport{
		Kind: p.kind, Manifest: origin.Shown(p.manifest), State: string(c.State), Serial: c.Claims.Serial, Dir: p.dir, counts: m.Counts,
	})
	return nil
}

// devices does the steps that need the mounts.
func (b *Boot) devices(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	if b.stale {
		b.stale = false
		b.try("depmod", func() (string, error) { return b.do.Depmod(ctx) })
	}
	if b.c.Prefetch != none && len(b.mounted) > 0 {
		b.try("prefetch", func() (string, error) { return b.do.Prefetch(ctx) })
	}
	if b.c.Coldplug != none {
		late := b.missed && len(b.mounted) > 0
		if late {
			b.try("rebind", func() (string, error) { return b.rebind(ctx) })
		}
		b.try("coldplug", func() (string, error) { return b.coldplug(ctx) })
		if late {
			b.try("rebind lost", func() (string, error) { return b.rebindLost(ctx) })
		}
	}
	if len(b.c.Load) > 0 {
		b.try("load", func() (string, error) { return fmt.Sprint(b.c.Load), b.do.Load(ctx, b.c.Load) })
	}
}

func (b *Boot) coldplug(ctx context.Context) (string, error) {
	done, err := b.do.Coldplug(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.report.Drivers = merged(b.report.Drivers, done.Drivers)
	return done.Note, err
}

// try is step for those after which the boot goes on in any case.
func (b *Boot) try(name string, do func() (string, error)) { _ = b.step(name, do) }

// step does a step, notes it, and returns its error.
func (b *Boot) step(name string, do func() (string, error)) error {
	s := Step{Name: name, Start: time.Since(b.start)}
	note, err := do()
	s.Took, s.Note = time.Since(b.start)-s.Start, note
	if err != nil {
		s.Note, s.Error = "", err.Error()
		b.degrade()
		b.log.Error("step failed", "step", name, "took", s.Took.Round(time.Millisecond), "error", err)
	} else {
		b.log.Info("step done", "step", name, "took", s.Took.Round(time.Millisecond), "note", note)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.report.Steps = append(b.report.Steps, s)
	return err
}

func (b *Boot) degrade() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.report.Degraded = true
}

// Mounted returns how many places are mounted, and how many wait for it.
func (b *Boot) Mounted() (mounted, pending int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.mounted), len(b.pending)
}

// Close takes the ready file away, unmounts, in the order opposite to that of
// mounting, and lets go of the lock.
func (b *Boot) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	errs := []error{b.notReady()}
	for _, m := range slices.Backward(b.mounted) {
		errs = append(errs, m.Unmount())
	}
	b.mounted = nil
	return errors.Join(append(errs, b.lock.Close())...)
}
