package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// mountLog is where the mount logs to.
const mountLog = "mount.log"

// A demo is one showing. Paths of commands are relative to the shell's
// directory, as someone working there would type them.
type demo struct {
	*shell
	tree   *tree
	target string
	server *fileServer
	rows   []row
}

// A row says how long a step took, and what it fetched.
type row struct {
	step string
	took time.Duration
	traffic
}

func (d *demo) show(ctx context.Context) error {
	if err := checkDevice(); err != nil {
		return err
	}
	steps := []struct {
		name, title string
		do          func(context.Context) error
	}{
		{"pack", "Pack a kernel's modules", d.pack},
		{"", "Serve the store over HTTP, and say so in the manifest", d.publish},
		{"mount, ls", "Mount it, with an empty cache", d.mount},
		{"depmod -A", "Are the indexes up to date?", d.depmod},
		{"modprobe", "What would be loaded, and from where?", d.modprobe},
		{"modinfo", "What do the modules say of themselves?", d.modinfo},
		{"closure", "What do these modules need in all?", d.closure},
		{"cmp", "Are the files those that were packed?", d.compare},
		{"", "Unmount", d.unmount},
	}
	for i, step := range steps {
		d.say("\n%d. %s", i+1, step.title)
		before, start := d.traffic(), time.Now()
		if err := step.do(ctx); err != nil {
			d.showLog()
			return err
		}
		if step.name != "" {
			d.rows = append(d.rows, row{step.name, time.Since(start), d.traffic().minus(before)})
		}
	}
	return d.summary()
}

func (d *demo) pack(ctx context.Context) error {
	d.say("%s holds %d files of %s.", d.tree.dir, d.tree.files, mib(d.tree.bytes))
	_, err := d.run(ctx, 20, "overmount", "pack", "--kind", "modules", "--depmod", "-m", "modules.fl", "-s", "dir://"+filepath.Join(d.dir, "store"), d.tree.dir)
	return err
}

func (d *demo) publish(ctx context.Context) error {
	server, err := serve(filepath.Join(d.dir, "store"))
	if err != nil {
		return fmt.Errorf("start the file server: %w", err)
	}
	d.server = server
	d.say("A plain file server for the directory store listens at %s.", server.url)
	update := fmt.Sprintf("UPDATE stores SET uri='%s' WHERE uri LIKE 'dir://%%';", server.url)
	if _, err := d.run(ctx, 4, "sqlite3", "modules.fl", update); err != nil {
		return err
	}
	stores, err := d.run(ctx, 4, "sqlite3", "modules.fl", "SELECT id, uri FROM stores;")
	if err != nil {
		return err
	}
	if !strings.Contains(stores, server.url) || strings.Contains(stores, "dir://") {
		return fmt.Errorf("the manifest's stores are %q, not %s", stores, server.url)
	}
	return nil
}

func (d *demo) mount(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(d.dir, d.target), 0o755); err != nil {
		return err
	}
	if _, err := d.run(ctx, 20, "overmount", "mount", "-d", "-m", "modules.fl", "-c", "cache", "-l", mountLog, d.target); err != nil {
		return err
	}
	if !d.mounted() {
		return fmt.Errorf("overmount mount succeeded, and %s is not mounted", d.target)
	}
	_, err := d.run(ctx, 20, "ls", d.target)
	return err
}

func (d *demo) depmod(ctx context.Context) error {
	before := d.traffic()
	printed, err := d.run(ctx, 20, "depmod", "-A", "-b", "root", d.tree.kver)
	if err != nil {
		return err
	}
	if printed != "" {
		return errors.New("depmod does not find the indexes up to date: it wants to write, and can not")
	}
	if got := d.traffic().minus(before); got.objects != 0 {
		return fmt.Errorf("depmod -A fetched %d objects, want none", got.objects)
	}
	d.say("Yes. It has looked at every file, and no object was fetched for it.")
	return nil
}

func (d *demo) modprobe(ctx context.Context) error {
	for _, m := range d.tree.modules {
		printed, err := d.run(ctx, 6, "modprobe", "-d", "root", "-S", d.tree.kver, "-n", "-v", m.name)
		if err != nil {
			return err
		}
		if want := filepath.Join(d.target, m.path); !strings.Contains(printed, want) {
			return fmt.Errorf("modprobe does not load %s", want)
		}
	}
	return nil
}

// closure asks the manifest alone: no store, no mount.
func (d *demo) closure(ctx context.Context) error {
	args := []string{"overmount", "modules", "closure", "-m", "modules.fl"}
	for _, m := range d.tree.modules {
		args = append(args, m.name)
	}
	printed, err := d.run(ctx, 20, args[0], args[1:]...)
	if err != nil {
		return err
	}
	for _, m := range d.tree.modules {
		if !strings.Contains(printed, m.path) {
			return fmt.Errorf("the closure lacks %s", m.path)
		}
	}
	return nil
}

func (d *demo) modinfo(ctx context.Context) error {
	for _, m := range d.tree.modules {
		printed, err := d.run(ctx, 4, "modinfo", "-b", "root", "-k", d.tree.kver, m.name)
		if err != nil {
			return err
		}
		if !strings.Contains(printed, d.tree.kver) {
			return fmt.Errorf("modinfo does not find in %s the kernel that it was made for, %s", m.name, d.tree.kver)
		}
	}
	return nil
}

func (d *demo) compare(ctx context.Context) error {
	paths := []string{"modules.order", "modules.builtin"}
	for _, m := range d.tree.modules {
		paths = append(paths, m.path)
	}
	if _, err := d.run(ctx, 4, "ln", "-s", d.tree.dir, "source"); err != nil {
		return err
	}
	for _, path := range paths {
		if _, err := d.run(ctx, 4, "cmp", filepath.Join("source", path), filepath.Join(d.target, path)); err != nil {
			return err
		}
	}
	d.say("Yes, byte by byte.")
	return nil
}

func (d *demo) unmount(ctx context.Context) error {
	if _, err := d.run(ctx, 20, "overmount", "umount", d.target); err != nil {
		return err
	}
	if d.mounted() {
		return fmt.Errorf("overmount umount succeeded, and %s is still mounted", d.target)
	}
	return d.endProcesses()
}

// traffic returns what was fetched so far.
func (d *demo) traffic() traffic {
	if d.server == nil {
		return traffic{}
	}
	return d.server.traffic()
}

func (d *demo) summary() error {
	objects, bytes, err := count(filepath.Join(d.dir, "store"))
	if err != nil {
		return err
	}
	d.say("\nWhat crossed the wire\n")
	d.say("  %-14s %8s %8s %12s", "step", "seconds", "objects", "bytes")
	for _, r := range d.rows {
		d.say("  %-14s %8.2f %8d %12s", r.step, r.took.Seconds(), r.objects, mib(r.bytes))
	}
	sent := d.traffic()
	d.say("  %-14s %8s %8d %12s", "fetched in all", "", sent.objects, mib(sent.bytes))
	d.say("  %-14s %8s %8d %12s", "in the store", "", objects, mib(bytes))
	d.say("\nThe tree holds %d files of %s. Fetched: %.1f %% of the store's bytes, %.1f %% of the tree's.",
		d.tree.files, mib(d.tree.bytes), percent(sent.bytes, bytes), percent(sent.bytes, d.tree.bytes))
	if sent.objects == 0 || sent.bytes >= bytes {
		return errors.New("that is not what a lazy mount fetches")
	}
	return nil
}

// cleanUp takes away whatever is left. What it can not take away as it should is
// an error.
func (d *demo) cleanUp(ctx context.Context) error {
	err := errors.Join(d.endMount(ctx), d.endProcesses())
	if d.server != nil {
		d.server.close()
	}
	if d.mounted() {
		return errors.Join(err, fmt.Errorf("%s is still mounted", filepath.Join(d.dir, d.target)))
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// endMount unmounts the target if a step has failed before it could.
func (d *demo) endMount(ctx context.Context) error {
	if !d.mounted() {
		return nil
	}
	d.say("\nCleaning up")
	_, err := d.run(ctx, 20, "overmount", "umount", d.target)
	if !d.mounted() {
		return err
	}
	target := filepath.Join(d.dir, d.target)
	if syscall.Unmount(target, syscall.MNT_DETACH) != nil {
		err = errors.Join(err, exec.CommandContext(ctx, "fusermount3", "-u", "-z", target).Run())
	}
	return errors.Join(fmt.Errorf("overmount umount left %s mounted", d.target), err)
}

// mounted reports whether something is mounted at the target.
func (d *demo) mounted() bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(mounts), " "+filepath.Join(d.dir, d.target)+" ")
}

// showLog shows what the mount has logged, for whoever looks for the reason of a
// failure.
func (d *demo) showLog() {
	if log, err := os.ReadFile(filepath.Join(d.dir, mountLog)); err == nil && len(log) > 0 {
		d.say("\nThe mount's log")
		d.print(string(log), 50)
	}
}

// checkDevice says early what a mount would stumble over.
func checkDevice() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("this machine does not let us mount: %w (root may have to run: modprobe fuse)", err)
	}
	return f.Close()
}

func mib(n int64) string { return fmt.Sprintf("%.2f MiB", float64(n)/(1<<20)) }

func percent(part, whole int64) float64 { return 100 * float64(part) / float64(max(whole, 1)) }
