package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"overmount/boot"
	"overmount/fusefs"
	"overmount/internal/notify"
)

type mountFlags struct {
	treeFlags
	warmFlags
	daemon  bool
	logFile string
	fsname  string
	subtype string
	layers  layerFlags
	herald  herald
	initrd  initrdFlag
}

func (a *app) mountCommand() *cobra.Command {
	var f mountFlags
	cmd := &cobra.Command{
		Use:   "mount -m FILE [-c CACHE] [-d] [-l LOG] TARGET",
		Short: "Mount a manifest read-only over a directory",
		Long: `Mount shows the tree of a manifest in the directory TARGET, over what is there.
Content is fetched when it is read, checked, and kept in the cache.

It serves the mount until SIGINT or SIGTERM, or until someone unmounts it. With
-d it goes to the background, and returns when the mount answers; if the mount
fails, it says why, and nothing is left mounted or running.

A read that no store can answer fails with EIO after --timeout, never with
"no such file". The reason is in the log. Who does not read the log keeps nobody from
reading files: lines are dropped when too many wait, and the next one that gets through
says how many.

With --pubkey it mounts only what that key has signed (see "overmount sign"): the
signature is FILE.minisig, beside FILE or under its URL. What was checked is what
is mounted, whatever becomes of FILE later.

With --writable what is in TARGET can be changed, as for "depmod -a" or modules of
the machine's own. Changes are kept in memory, and lost with the mount. Note that
"depmod -a" reads, and so fetches, every module. With --keep-lower what was in
TARGET before stays visible where the manifest has nothing. Both need root and
the kernel's overlayfs (the module overlay).

Without -d it tells the service manager that NOTIFY_SOCKET names when the mount is
ready (systemd: Type=notify). With --ready-file, a file says so to everybody else.

When the kernel begins to read a module, what the module needs is fetched in the
background, too (--prefetch). With --record, FILE gets a line of JSON for each
block that was read, in the order of the first reading: path, block, bytes,
waited_us, and hit if prefetching had it. Such a mount puts nothing into the page
cache ahead, since nobody would see it being read, and is a little slower.
--pack takes such records as "overmount profile" packs them: all that a boot reads
comes in one piece, before anyone asks. With auto it is looked for beside FILE, for
this machine's hardware and then for any; if there is none, nothing happens.

` + exitCodes,
		Example: `  overmount mount -d -m modules.fl /lib/modules/6.1.0-56-amd64
  overmount mount -d -l /var/log/overmount.log -c /run/overmount -m https://web.example.com/firmware.fl /lib/firmware
  overmount mount -d --writable --keep-lower -m modules.fl /lib/modules/6.1.0-56-amd64
  overmount mount -d -m https://web.example.com/modules.fl --pubkey /etc/overmount.pub --min-serial 17 --kind modules --kver 6.1.0-56-amd64 /lib/modules/6.1.0-56-amd64`,
		Args: args(1, 1, "TARGET, the directory to mount over"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.mount(cmd, &f, args[0]) },
	}
	f.treeFlags.add(cmd, "`directory` for the cache of objects, or none", defaultCache(a.Getenv))
	f.warmFlags.add(cmd)
	flags := cmd.Flags()
	flags.BoolVarP(&f.daemon, "daemon", "d", false, "serve in the background; return when the mount is ready")
	flags.StringVarP(&f.logFile, "log", "l", "", "`file` to append messages to (default stderr; with -d, once ready, nowhere)")
	flags.StringVar(&f.fsname, "fsname", "", "name of the mounted device (default FILE)")
	flags.StringVar(&f.subtype, "subtype", "overmount", "the type of the mount is fuse.`NAME`")
	f.layers.add(cmd)
	f.herald.add(cmd)
	f.initrd.add(cmd)
	return cmd
}

// defaultCache is a directory that outlives the program: the system's for root,
// the user's for others.
func defaultCache(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		return "/var/cache/overmount"
	}
	if dir := getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "overmount")
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".cache", "overmount")
	}
	return "none"
}

func (a *app) mount(cmd *cobra.Command, f *mountFlags, target string) error {
	if err := needMeta(cmd, f.meta); err != nil {
		return err
	}
	if err := f.check(cmd); err != nil {
		return err
	}
	if f.cacheDir == "none" {
		f.cacheDir = ""
	}
	if err := f.layers.check(cmd); err != nil {
		return err
	}
	if !f.daemon {
		if err := a.survive(f.initrd.argv0()); err != nil {
			return err
		}
		f.herald.manager = notify.FromEnv(a.Getenv)
	} else {
		pipe, err := a.daemonPipe()
		if err != nil {
			return err
		}
		if pipe == nil {
			return a.startDaemon(cmd.Context(), f.initrd.argv0(), f.meta)
		}
		if f.meta, err = toldFile(); err != nil {
			return err
		}
		f.herald.caller = func() error { return a.detach(pipe) }
	}
	a.outliveReaders()
	f.initrd.outliveRoot()
	log, err := a.mountLog(cmd, f.logFile)
	if err != nil {
		return err
	}
	return a.serve(cmd.Context(), f, target, log)
}

// mountLog is the log of a mount, which lives as long as the program.
func (a *app) mountLog(cmd *cobra.Command, file string) (*slog.Logger, error) {
	if file == "" {
		return a.lastingLogger(cmd, a.Stderr)
	}
	w, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NONBLOCK, 0o640)
	if errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%w: it is a named pipe that nobody reads", err)
	}
	if err != nil {
		return nil, err
	}
	return a.lastingLogger(cmd, a.queued(w))
}

// serve mounts, says that it is ready, and serves until the context or the mount
// ends.
func (a *app) serve(ctx context.Context, f *mountFlags, target string, log *slog.Logger) (err error) {
	if err := f.herald.begin(); err != nil {
		return err
	}
	o, err := f.open(ctx, a, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	if f.fsname == "" {
		f.fsname = shown(f.meta)
	}
	p := f.prefetcher(o.tree)
	s, kernel, err := f.mountOver(ctx, target, o.tree, p, log)
	if err != nil {
		return err
	}
	cool := f.warm(ctx, a.copyTo, f.meta, o.tree.Manifest().Tag("kver"), p, kernel, log)
	defer func() { err = errors.Join(err, cool()) }()
	// Reading the manifest took several times the memory that its table does.
	debug.FreeOSMemory()
	defer f.herald.end(log)
	if err := f.herald.ready(fmt.Sprintf("%s is mounted at %s", shown(f.meta), target), log); err != nil {
		return errors.Join(err, unmount(s, log))
	}
	defer logWarmth(p, log)
	log.Info("mounted", "manifest", shown(f.meta), "at", target, "nodes", o.tree.Manifest().Len())
	select {
	case <-s.Done():
		log.Info("unmounted", "at", target)
		return nil
	case <-ctx.Done():
		f.herald.end(log)
		return unmount(s, log)
	}
}

// lastUse is how long a mount that was in use when it was to end goes on serving.
const lastUse = 10 * time.Second

// unmount ends a mount. If it is in use, its name goes at once, and those who
// use it get some time.
func unmount(s liveMount, log *slog.Logger) error {
	err := s.Unmount()
	if errors.Is(err, fusefs.ErrBusy) {
		log.Warn("the mount is in use; it is taken from its place and served a little longer", "for", lastUse)
		err = s.UnmountLazy()
		udevLetGo(log)
	}
	if err != nil {
		return err
	}
	select {
	case <-s.Done():
	case <-time.After(lastUse):
		return fmt.Errorf("unmount: someone still used it after %v, and has lost it", lastUse)
	}
	log.Info("unmounted")
	return nil
}

// udevLetGo asks udev to let go of what it has open: the indexes of modules, from the
// first event that came after they were mounted.
func udevLetGo(log *slog.Logger) {
	if !boot.HasUdev() {
		return
	}
	if err := boot.ReloadUdev(context.Background(), lastUse/2); err != nil {
		log.Warn("udev may still use the mount", "error", err)
	}
}
