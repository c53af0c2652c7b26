package cli

import (
	"archive/tar"
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"overmount/apk/apktest"
	"overmount/internal/testenv"
	"overmount/kmod/kmodtest"
)

// maxPeak bounds the memory of packing, in bytes.
const maxPeak = 200_000_000

// TestRealFirmware packs the firmware of Debian, re-wrapped as the packages that
// Alpine makes of its own: over 100 of them, with a meta package that depends on
// each in its exact version, files as .zst, and links from one package into another.
// What comes out is what dpkg-deb unpacks, also when the packages of Debian are
// packed as they are, and neither takes more memory than it may.
func TestRealFirmware(t *testing.T) {
	if underRace() {
		t.Skip("the race detector takes memory and minutes")
	}
	debs := testenv.Firmware(t)
	work := t.TempDir()
	byHand := unpackByHand(t, debs, filepath.Join(work, "root"))
	repo, key := rewrap(t, byHand, filepath.Join(work, "alpine"))
	server := httptest.NewServer(http.FileServer(http.Dir(repo)))
	t.Cleanup(server.Close)

	meta, objects, lock := filepath.Join(work, "fw.fl"), filepath.Join(work, "objects"), filepath.Join(work, "fw.lock")
	args := []string{"pack", "--kind", "firmware", "-m", meta, "-s", "dir://" + objects, "--lock", lock, "--apk-arch", "x86_64", "--apk-key", key, "--apk-repo"}
	mustPeak(t, maxPeak, append(args, server.URL, "linux-firmware*")...)
	if n := bytes.Count(read(t, lock), []byte("\n")) - 1; n < 101 {
		t.Errorf("the lock file has %d packages, want over 100", n)
	}
	out := filepath.Join(work, "out")
	mustRun(t, "overmount", "unpack", "-m", meta, out)
	if diff := cmp.Diff(listing(t, byHand), listing(t, out)); diff != "" {
		t.Errorf("what packages of Alpine pack to is not what dpkg-deb unpacks (-want +got):\n%.4000s", diff)
	}

	// Again, from a directory, by the meta package alone, to an empty store.
	first := read(t, meta)
	names := fileNames(t, objects)
	for _, err := range []error{os.RemoveAll(objects), os.RemoveAll(out), os.Remove(meta)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "overmount", append(args, repo, "linux-firmware")...)
	if !bytes.Equal(read(t, meta), first) {
		t.Error("packed again, the same packages gave another manifest")
	}
	if diff := cmp.Diff(names, fileNames(t, objects)); diff != "" {
		t.Errorf("packed again, the same packages gave other objects (-first +second):\n%.1000s", diff)
	}

	// The same from the packages of Debian: every object is there already.
	asDebs := filepath.Join(work, "debs.fl")
	mustPeak(t, maxPeak, append([]string{"pack", "--kind", "firmware", "-m", asDebs, "-s", "dir://" + objects, "--deb"}, debs...)...)
	if r := run(t, "overmount", "flist", "diff", "--content", meta, asDebs); r.code != 0 {
		t.Errorf("the packages of Debian gave another tree: exit code %d, %.1000s%s", r.code, r.stdout, r.stderr)
	}
	if diff := cmp.Diff(names, fileNames(t, objects)); diff != "" {
		t.Errorf("the packages of Debian gave other objects (-apk +deb):\n%.1000s", diff)
	}
}

func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// mustPeak runs the program, which must succeed and take at most that much memory.
func mustPeak(t *testing.T, most int64, args ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "peak")
	mustRun(t, "peak", append([]string{file, "overmount"}, args...)...)
	got, err := strconv.ParseInt(string(read(t, file)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s…: %d bytes of memory", args[0], strings.Join(args[1:3], " "), got)
	if got > most || got == 0 {
		t.Errorf("overmount %.200q took %d bytes of memory, want at most %d", args, got, most)
	}
}

// peak runs the program of its second argument and those that follow, and writes into the
// file of its first how much memory that took at most, in bytes (ru_maxrss of
// wait4(2)). It is a process of its own because a program begins with the peak of the process
// that starts it, which in a test has been more.
func peak() {
	cmd := exec.Command(os.Args[2], os.Args[3:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok && err == nil {
		err = os.WriteFile(os.Args[1], fmt.Append(nil, usage.Maxrss<<10), 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peak:", err)
		os.Exit(1)
	}
}

// unpackByHand unpacks packages with dpkg-deb, and returns the directory of the firmware.
func unpackByHand(t *testing.T, debs []string, root string) string {
	t.Helper()
	dpkg := testenv.Tool(t, "dpkg-deb")
	var g errgroup.Group
	g.SetLimit(2)
	for _, file := range debs {
		g.Go(func() error {
			if out, err := exec.Command(dpkg, "-x", file, root).CombinedOutput(); err != nil {
				return fmt.Errorf("dpkg-deb -x %s: %w: %s", file, err, out)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "lib/firmware")
	for name := range listing(t, dir) {
		inline(t, root, dir, filepath.Join(dir, name))
	}
	return dir
}

// inline puts in the place of a symlink that leads out of the directory dir, as
// ipw2x00.LICENSE does, the file that it leads to, since that is what is packed.
func inline(t *testing.T, root, dir, file string) {
	t.Helper()
	target, err := os.Readlink(file)
	if err != nil {
		return
	}
	if filepath.IsAbs(target) {
		target = filepath.Join(root, target)
	} else {
		target = filepath.Join(filepath.Dir(file), target)
	}
	end, err := filepath.EvalSymlinks(target)
	if err != nil || strings.HasPrefix(end, dir+"/") {
		return
	}
	data := read(t, end)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	write(t, file, data)
}

// rewrap makes a repository of Alpine of a directory of firmware, and returns its
// place and that of the key.
func rewrap(t *testing.T, from, repo string) (dir, key string) {
	t.Helper()
	s := apktest.NewSigner(t, "builder-1.rsa.pub", crypto.SHA256)
	key = filepath.Join(t.TempDir(), s.Name)
	write(t, key, s.Public(t))
	if err := os.MkdirAll(filepath.Join(repo, "x86_64"), 0o755); err != nil {
		t.Fatal(err)
	}
	var records []string
	add := func(p apktest.Package) {
		signature, control, data := p.Members(t)
		file := slices.Concat(signature, control, data)
		records = append(records, p.Record(control, len(file)))
		write(t, filepath.Join(repo, "x86_64", p.File()), file)
	}
	meta := fwPackage("linux-firmware", s)
	zsts, across := 0, 0
	for name, paths := range parts(t, from) {
		p := fwPackage(name, s)
		p.Files = alpineFiles(t, from, paths)
		add(p)
		meta.Depends = append(meta.Depends, p.Name+"="+p.Version)
		for _, e := range p.Files {
			if strings.HasSuffix(e.Name, ".zst") {
				zsts++
			}
			to := filepath.Join(filepath.Dir(e.Name), e.Symlink)
			if e.Symlink != "" && !slices.ContainsFunc(p.Files, func(e apktest.Entry) bool { return e.Name == to }) {
				across++
			}
		}
	}
	if zsts < 100 || across == 0 {
		t.Errorf("the packages have %d files .zst, and %d links into others, want over 100 and some", zsts, across)
	}
	t.Logf("%d packages, %d files .zst, %d links into others", len(records), zsts, across)
	add(meta)
	slices.Sort(records)
	write(t, filepath.Join(repo, "x86_64", "APKINDEX.tar.gz"), apktest.Index(t, s, records...))
	return repo, key
}

func fwPackage(name string, s *apktest.Signer) apktest.Package {
	return apktest.Package{Name: name, Version: "20230210-r5", Arch: "noarch", Origin: "linux-firmware", Provides: []string{"linux-firmware-any"}, Signer: s}
}

// parts divides the files of a directory between packages, by the name of the package:
// one for each folder as at Alpine, and several for a folder with many files.
func parts(t *testing.T, from string) map[string][]string {
	t.Helper()
	var all []string
	for name := range listing(t, from) {
		if info, err := os.Lstat(filepath.Join(from, name)); err != nil || !info.IsDir() {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	most := max(1, len(all)/100)
	packages, count := map[string][]string{}, map[string]int{}
	for _, name := range all {
		folder, _, below := strings.Cut(strings.ToLower(name), "/")
		if !below {
			folder = "other"
		}
		part := fmt.Sprintf("linux-firmware-%s-%d", folder, count[folder]/most)
		count[folder]++
		packages[part] = append(packages[part], name)
	}
	return packages
}

// alpineFiles returns files and symlinks as Alpine's package has them: compressed, but for
// some, with links to what is compressed under such a name, too.
func alpineFiles(t *testing.T, from string, paths []string) []apktest.Entry {
	t.Helper()
	const dir = "lib/firmware/"
	list := []apktest.Entry{{Name: "lib/"}, {Name: dir}}
	made := map[string]bool{".": true}
	for _, name := range paths {
		for _, up := range above(name) {
			if !made[up] {
				made[up] = true
				list = append(list, apktest.Entry{Name: dir + up + "/", Header: modeOf(t, filepath.Join(from, up))})
			}
		}
		file := filepath.Join(from, name)
		e := apktest.Entry{Name: dir + name, Header: modeOf(t, file)}
		suffix := ""
		if compressed(from, file) {
			suffix = ".zst"
		}
		e.Name += suffix
		if target, err := os.Readlink(file); err == nil {
			e.Symlink = target + suffix
		} else if e.Content = read(t, file); suffix != "" {
			e.Content = kmodtest.Zstd(t, e.Content)
		}
		list = append(list, e)
	}
	return list
}

// above returns the directories of a path, the uppermost first.
func above(name string) []string {
	var dirs []string
	for i, c := range name {
		if c == '/' {
			dirs = append(dirs, name[:i])
		}
	}
	return dirs
}

// compressed reports whether a file, or what a symlink leads to, is one that the
// packages have compressed: licences and the like are plain, and directories.
func compressed(from, file string) bool {
	end, err := filepath.EvalSymlinks(file)
	if err != nil || !strings.HasPrefix(end, from+"/") {
		return false
	}
	info, err := os.Stat(end)
	return err == nil && info.Mode().IsRegular() && filepath.Ext(end) != ".txt"
}

// modeOf gives a header the mode and time of a file.
func modeOf(t *testing.T, file string) func(*tar.Header) {
	t.Helper()
	info, err := os.Lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	return func(h *tar.Header) {
		h.Mode, h.ModTime = int64(info.Mode().Perm()), info.ModTime()
	}
}

// listing describes the files of a directory, by path: type and mode, content and
// target.
func listing(t *testing.T, root string) map[string]string {
	t.Helper()
	list := map[string]string{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var what string
		switch info.Mode().Type() {
		case fs.ModeSymlink:
			what, err = os.Readlink(name)
		case 0:
			var data []byte
			data, err = os.ReadFile(name)
			what = fmt.Sprintf("%x", sha256.Sum256(data))
		}
		rel, relErr := filepath.Rel(root, name)
		list[rel] = fmt.Sprintf("%v %s", info.Mode(), what)
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// fileNames returns the names of all files below a directory.
func fileNames(t *testing.T, root string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}
