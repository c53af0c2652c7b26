package bench

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/manifest"
	"overmount/pack"
	"overmount/store"
)

// A daemon is a mount that "overmount mount -d" made.
type daemon struct {
	target string
	pid    int
}

// mount mounts a manifest over target until the benchmark ends.
func mount(b *testing.B, program, flist, cache, target string) {
	b.Helper()
	d := start(b, program, flist, cache, target)
	b.Cleanup(func() { d.unmount(b, program) })
}

func start(b *testing.B, program, flist, cache, target string) daemon {
	b.Helper()
	run(b, exec.Command(program, "mount", "-d", "-m", flist, "-c", cache, target))
	return daemon{target: target, pid: daemonOf(b, program, target)}
}

// daemonOf finds the process that serves target.
func daemonOf(b *testing.B, program, target string) int {
	b.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		b.Fatal(err)
	}
	for _, file := range procs {
		line, _ := os.ReadFile(file) // it may have ended
		args := bytes.Split(bytes.TrimSuffix(line, []byte{0}), []byte{0})
		if string(args[0]) != program || string(args[len(args)-1]) != target {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(file, "/proc/%d/", &pid); err != nil {
			b.Fatal(err)
		}
		return pid
	}
	b.Fatalf("no process serves %s", target)
	return 0
}

// unmount unmounts, and waits until the daemon has ended.
func (d daemon) unmount(b *testing.B, program string) {
	b.Helper()
	fd, err := unix.PidfdOpen(d.pid, 0)
	if err != nil {
		b.Fatalf("the daemon of %s has gone: %v", d.target, err)
	}
	defer unix.Close(fd)
	run(b, exec.Command(program, "umount", d.target))
	wait := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(wait, 20_000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			b.Fatalf("the daemon of %s does not end: %v", d.target, err)
		}
		return
	}
}

// rss returns the memory that the daemon has at the moment, in MB.
func (d daemon) rss(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kb float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kb); err == nil {
			return kb * 1024 / 1e6
		}
	}
	b.Fatalf("no VmRSS in\n%s", text)
	return 0
}

// packTree packs a directory into one store, and returns the manifest.
func packTree(b *testing.B, tree, dir string) (flist string) {
	b.Helper()
	objects := filepath.Join(dir, "objects")
	flist = filepath.Join(dir, filepath.Base(tree)+".fl")
	if _, err := pack.Run(b.Context(), pack.Dir(tree), store.NewDir(objects), flist, &pack.Options{
		Routes: []manifest.Route{{Last: 255, URL: "dir://" + objects}},
	}); err != nil {
		b.Fatal(err)
	}
	return flist
}

// mkdir makes a directory below dir.
func mkdir(b *testing.B, dir, name string) string {
	b.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		b.Fatal(err)
	}
	return path
}

// roots are two root directories with the same kernel modules: ours a mount, the
// other a copy.
type roots struct {
	ours, native string
	kver         string
	list         string // file with the path of each module
}

// modules returns the directory of modules in one of the roots.
func (r roots) modules(root string) string { return filepath.Join(root, "lib/modules", r.kver) }

// mountKernel mounts the kernel's modules with a warm cache, beside a copy.
func mountKernel(b *testing.B) roots {
	b.Helper()
	needsRoot(b, "mounting")
	needs(b, "go", "cp")
	tree, dir := kernel(b), b.TempDir()
	r := roots{
		ours: filepath.Join(dir, "ours"), native: filepath.Join(dir, "native"),
		kver: filepath.Base(tree), list: filepath.Join(dir, "list"),
	}
	run(b, exec.Command("cp", "-a", tree, mkdir(b, r.native, "lib/modules")))
	if err := os.WriteFile(r.list, []byte(files(b, tree)), 0o644); err != nil {
		b.Fatal(err)
	}
	mount(b, program(b), packTree(b, tree, dir), filepath.Join(dir, "cache"), mkdir(b, r.modules(r.ours), "."))
	for _, root := range []string{r.ours, r.native} {
		ask(b, "readall", r.modules(root), r.list)
	}
	return r
}

// files lists the regular files below a directory, one a line.
func files(b *testing.B, dir string) string {
	b.Helper()
	var list strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			fmt.Fprintln(&list, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return list.String()
}

// dropCaches makes the kernel forget: 2 names and attributes, 3 also content.
func dropCaches(b *testing.B, what string) {
	b.Helper()
	if what == "" {
		return
	}
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte(what), 0); err != nil {
		b.Fatal(err)
	}
}

// onBoth measures f on ours and on the native directory in turn, after dropping
// caches, or once untimed if nothing is dropped.
func onBoth(b *testing.B, r roots, drop string, f func(root string) []float64) (our, base []float64) {
	b.Helper()
	if drop == "" {
		f(r.ours)
		f(r.native)
	}
	side := func(root string) func() []float64 {
		return func() []float64 {
			dropCaches(b, drop)
			return f(root)
		}
	}
	return alternate(b, side(r.ours), side(r.native))
}

// BenchmarkMetadata walks and stats a mount of kernel modules, with everything
// in the kernel's caches, without names ("names"), and without anything ("all").
func BenchmarkMetadata(b *testing.B) {
	needs(b, "find", "ls")
	r := mountKernel(b)
	command := func(name string, args ...string) func(root string) []float64 {
		return func(root string) []float64 {
			return timed(b, exec.Command(name, append(args, r.modules(root))...).Run)
		}
	}
	storm := func(op string) func(root string) []float64 {
		return func(root string) []float64 { return ask(b, op, r.modules(root), r.list) }
	}
	for _, row := range []struct {
		name, drop, unit string
		f                func(root string) []float64
	}{
		{"find/warm", "", "ms", command("find")},
		{"find/names-dropped", "2", "ms", command("find")},
		{"ls-lR/warm", "", "ms", command("ls", "-lR")},
		{"ls-lR/names-dropped", "2", "ms", command("ls", "-lR")},
		{"ls-lR/all-dropped", "3", "ms", command("ls", "-lR")},
		{"lstat/warm", "", "µs", storm("lstat")},
		{"lstat/names-dropped", "2", "µs", storm("lstat")},
		{"absent/warm", "", "µs", storm("absent")},
	} {
		b.Run(row.name, func(b *testing.B) {
			our, base := onBoth(b, r, row.drop, row.f)
			report(b, our[0], base[0], row.unit)
		})
	}
}

// BenchmarkRequest is the first lookup of a name beside a byte that goes to
// another process and back, which wakes two processes as a request to the daemon
// does.
func BenchmarkRequest(b *testing.B) {
	r := mountKernel(b)
	our, base := alternate(b, func() []float64 {
		dropCaches(b, "2")
		return ask(b, "lstat", r.modules(r.ours), r.list)
	}, func() []float64 { return ask(b, "wake") })
	report(b, our[0], base[0], "µs")
}

// BenchmarkData reads a mount of kernel modules whose content the kernel has,
// and, for what that is worth, one whose content only the cache has.
func BenchmarkData(b *testing.B) {
	needs(b, "tar", "cat")
	r := mountKernel(b)
	file := ordinary(b, r)
	b.Run("reopen-35KB/warm", func(b *testing.B) {
		our, base := onBoth(b, r, "", func(root string) []float64 {
			return ask(b, "reopen", filepath.Join(r.modules(root), file))
		})
		report(b, our[0], base[0], "µs")
		b.ReportMetric(our[1], "p99-µs")
		b.ReportMetric(base[1], "baseline-p99-µs")
	})
	readAll := func(root string) []float64 { return ask(b, "readall", r.modules(root), r.list) }
	tar := func(root string) []float64 {
		// Without a pipe, tar sees /dev/null and reads nothing.
		return timed(b, exec.Command("sh", "-c", `tar -C "$1" -cf - . | cat >/dev/null`, "sh", r.modules(root)).Run)
	}
	for _, row := range []struct {
		name, drop string
		f          func(root string) []float64
	}{
		{"read-all/warm", "", readAll},
		{"read-all/all-dropped", "3", readAll},
		{"tar/warm", "", tar},
	} {
		b.Run(row.name, func(b *testing.B) {
			our, base := onBoth(b, r, row.drop, row.f)
			report(b, our[0], base[0], "ms")
		})
	}
}

// ordinary returns the module whose size is next to 35 KB, the median of Debian's.
func ordinary(b *testing.B, r roots) string {
	b.Helper()
	var best string
	const want = 35_000
	least := int64(1 << 62)
	for name := range strings.Lines(files(b, r.modules(r.native))) {
		name = strings.TrimSuffix(name, "\n")
		info, err := os.Stat(filepath.Join(r.modules(r.native), name))
		if err != nil {
			b.Fatal(err)
		}
		if off := max(info.Size()-want, want-info.Size()); off < least {
			best, least = name, off
		}
	}
	return best
}

// BenchmarkLargeFile reads one file of 512 MiB. The first reading opens every
// block from the cache, whose files the kernel has; its baseline is a file that
// the kernel has.
func BenchmarkLargeFile(b *testing.B) {
	needsRoot(b, "mounting")
	tree, dir := kernel(b), b.TempDir()
	r := roots{ours: mkdir(b, dir, "ours"), native: mkdir(b, dir, "native")}
	writeLarge(b, tree, filepath.Join(r.native, "large"))
	mount(b, program(b), packTree(b, r.native, dir), filepath.Join(dir, "cache"), r.ours)
	for _, row := range []struct{ name, op, ours, unit string }{
		{"sequential/first", "sequential", "cold", "GB/s"},
		{"sequential/second", "sequential", "", "GB/s"},
		{"random-4KiB/warm", "random", "", "k/s"},
	} {
		b.Run(row.name, func(b *testing.B) {
			our, base := onBoth(b, r, "", func(root string) []float64 {
				how := ""
				if root == r.ours {
					how = row.ours
				}
				return ask(b, row.op, filepath.Join(root, "large"), how)
			})
			report(b, our[0], base[0], row.unit)
		})
	}
}

// writeLarge writes a file of 512 MiB, of the content of modules.
func writeLarge(b *testing.B, tree, path string) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for left := int64(512 << 20); left > 0; {
		for name := range strings.Lines(files(b, tree)) {
			data, err := os.ReadFile(filepath.Join(tree, strings.TrimSuffix(name, "\n")))
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(f, io.LimitReader(bytes.NewReader(data), left))
			if err != nil {
				b.Fatal(err)
			}
			left -= n
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkKmod runs the real tools on a mount of kernel modules.
func BenchmarkKmod(b *testing.B) {
	needs(b, "depmod", "modprobe")
	r := mountKernel(b)
	name := deepest(b, r.modules(r.native))
	for _, row := range []struct {
		name, drop string
		command    func(root string) *exec.Cmd
	}{
		{"depmod/second", "", func(root string) *exec.Cmd { return exec.Command("depmod", "-n", "-b", root, r.kver) }},
		{"modprobe/warm", "", func(root string) *exec.Cmd {
			return exec.Command("modprobe", "-n", "-v", "-d", root, "-S", r.kver, name)
		}},
	} {
		b.Run(row.name, func(b *testing.B) {
			our, base := onBoth(b, r, row.drop, func(root string) []float64 {
				return timed(b, row.command(root).Run)
			})
			report(b, our[0], base[0], "ms")
		})
	}
}

// deepest returns a module that needs as many others as any.
func deepest(b *testing.B, modules string) string {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		b.Fatal(err)
	}
	var best string
	most := -1
	for line := range strings.Lines(string(text)) {
		path, needs, _ := strings.Cut(line, ":")
		if n := len(strings.Fields(needs)); n > most {
			name, _, _ := strings.Cut(filepath.Base(path), ".")
			best, most = name, n
		}
	}
	return best
}
