package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"overmount/boot"
	"overmount/internal/notify"
	"overmount/origin"
	"overmount/store/httpstore"
)

// bootConfig is where the configuration is if nobody says otherwise.
const bootConfig = "/etc/overmount.toml"

// Names of variables for other things than a boot begin so.
const (
	ofTests      = "OVERMOUNT_TEST_"
	ofBenchmarks = "OVERMOUNT_BENCH_"
)

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
     also for devices that appear later. Where udev has settled and loaded nothing of
     what the devices ask for, it does that, too;
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
that does not exist, or a wrong value there or in the environment, nothing is done.
What is wrong on the command line, which nobody can mend by then, and a variable that
does not exist are left out and reported: step settings, with the name that may have
been meant.
With a public key that cannot be read nothing is done, wherever it stands.

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
                   and udev loads the drivers, plan), plan (what the devices'
                   modaliases ask for), both with what a module needs when it
                   begins to be read, or none (default pack)
  coldplug         auto, udev, own or none (default auto)
  writable         true: modules take changes, in memory, as for "depmod -a"
  keep-lower       true: what was in both directories stays visible below
  depmod           true: make the indexes anew, for modules that keep-lower shows;
                   this reads all modules, over the network, and implies writable
  load             list of modules to load in the end
  record           directory for records of what was read until the last step ended,
                   modules.record and firmware.record, for "overmount profile"
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

// bootSettings reads the configuration. A wrong word on the kernel command line, or a
// variable that does not exist, is wrong, and no more: nobody can mend it now.
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
	unknown := boot.UnknownEnv(os.Environ(), httpstore.AuthEnv, httpstore.AuthFileEnv, readyFD, ofTests, ofBenchmarks)
	return c, errors.Join(unknown, c.ReadCommandLine(string(line))), nil
}

func (a *app) boot(cmd *cobra.Command, f *bootFlags) error {
	if f.strict && f.foreground {
		return usagef(cmd, "--strict is for a boot that ends, and --foreground stays")
	}
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
	a.outliveReaders()
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
	return a.lastingLogger(cmd, io.MultiWriter(a.queued(file), a.Stderr))
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
