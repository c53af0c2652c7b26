package sysroot_test

import (
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/kmod/kmodtest"
	"overmount/sysroot"
)

var when = time.Unix(1_600_000_000, 0)

// system makes a tree of lines such as
//
//	lib/firmware/a.bin.xz = content
//	lib/firmware/b.bin -> a.bin
//	usr/lib/
//
// Content is compressed as the name says.
func system(tb testing.TB, lines string) fstest.MapFS {
	tb.Helper()
	fsys := fstest.MapFS{}
	for line := range strings.SplitSeq(strings.TrimSpace(lines), "\n") {
		line = strings.TrimSpace(line)
		f := &fstest.MapFile{Mode: 0o640, ModTime: when}
		name, content, _ := strings.Cut(line, " = ")
		f.Data = []byte(content)
		switch path.Ext(name) {
		case ".xz":
			f.Data = kmodtest.XZ(tb, []byte(content))
		case ".zst":
			f.Data = kmodtest.Zstd(tb, []byte(content))
		}
		if link, target, ok := strings.Cut(line, " -> "); ok {
			name, f.Data, f.Mode = link, []byte(target), fs.ModeSymlink|0o777
		} else if dir, ok := strings.CutSuffix(name, "/"); ok {
			name, f.Data, f.Mode = dir, nil, fs.ModeDir|0o750
		}
		fsys[name] = f
	}
	return fsys
}

// list is the opposite of system, with files as they are. Directories are listed if
// they are empty.
func list(tb testing.TB, fsys fs.FS) []string {
	tb.Helper()
	var lines []string
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(fsys, name)
			lines = append(lines, name+" -> "+target)
			if info.Size() != int64(len(target)) {
				tb.Errorf("the size of the symlink %s is %d, want %d", name, info.Size(), len(target))
			}
			return err
		case d.IsDir():
			below, err := fs.ReadDir(fsys, name)
			if len(below) == 0 {
				lines = append(lines, name+"/")
			}
			return err
		}
		data, err := fs.ReadFile(fsys, name)
		if int64(len(data)) != info.Size() {
			tb.Errorf("the size of %s is %d, and it has %d bytes", name, info.Size(), len(data))
		}
		lines = append(lines, name+" = "+string(data))
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return lines
}

func split(lines string) []string {
	var all []string
	for line := range strings.SplitSeq(strings.TrimSpace(lines), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}

func TestFirmware(t *testing.T) {
	for _, c := range []struct {
		name, in, want, findings string
		keep                     bool
	}{
		{name: "both directories are one", in: `
			lib/firmware/a/one.bin = 1
			lib/firmware/same.bin = s
			usr/lib/firmware/a/two.bin = 2
			usr/lib/firmware/same.bin = s
			usr/share/doc/a = not firmware`, want: `
			a/one.bin = 1
			a/two.bin = 2
			same.bin = s`},
		{name: "both directories differ", in: `
			lib/firmware/x = 1
			usr/lib/firmware/x = 2`, want: `
			x = 1`, findings: `
			usr/lib/firmware/x: it is left out for lib/firmware/x, which differs`},
		{name: "lib is a symlink", in: `
			lib -> usr/lib
			usr/lib/firmware/a = 1
			usr/lib/firmware/b -> /lib/firmware/a`, want: `
			a = 1
			b -> a`},
		{name: "lib/firmware is a symlink", in: `
			lib/firmware -> ../usr/lib/firmware
			usr/lib/firmware/a = 1`, want: `
			a = 1`},
		{name: "a firmware directory itself", in: `
			a/one.bin.zst = 1
			two.bin -> /lib/firmware/a/one.bin.zst
			three.bin -> ../../usr/lib/firmware/a/one.bin
			four.bin -> /etc/alternatives/four`, want: `
			a/one.bin = 1
			four.bin -> /etc/alternatives/four
			three.bin -> ../../usr/lib/firmware/a/one.bin
			two.bin -> a/one.bin`, findings: `
			four.bin: it is a symlink to /etc/alternatives/four, which leads nowhere in this tree; it stays as it is
			three.bin: it is a symlink to ../../usr/lib/firmware/a/one.bin, which leads nowhere in this tree; it stays as it is`},
		{name: "decompressed, links follow", in: `
			lib/firmware/a/x.bin.zst = x
			lib/firmware/a/y.bin.xz = y
			lib/firmware/l1.bin.zst -> a/x.bin.zst
			lib/firmware/l2.bin.zst -> ./l1.bin.zst
			lib/firmware/l3.bin -> l2.bin.zst
			lib/firmware/b/l4.bin.xz -> ../a/y.bin.xz
			lib/firmware/b/l5.bin.xz -> ../../../usr/lib/firmware/a/y.bin.xz
			lib/firmware/c -> a
			lib/firmware/l6.zst -> c/x.bin.zst
			lib/firmware/a/up -> ..
			lib/firmware/odd.zst -> plain
			lib/firmware/plain = p`, want: `
			a/up -> ..
			a/x.bin = x
			a/y.bin = y
			b/l4.bin -> ../a/y.bin
			b/l5.bin -> ../a/y.bin
			c -> a
			l1.bin -> a/x.bin
			l2.bin -> ./l1.bin
			l3.bin -> l2.bin
			l6 -> a/x.bin
			odd.zst -> plain
			plain = p`},
		{name: "kept compressed", keep: true, in: `
			lib/firmware/l1.bin.zst -> a.sig
			lib/firmware/l2.bin.zst -> /lib/firmware/dir/a.sig
			lib/firmware/a.sig = p
			usr/lib/firmware/dir/a.sig = q`, want: `
			a.sig = p
			dir/a.sig = q
			l1.bin.zst -> a.sig
			l2.bin.zst -> dir/a.sig`},
		{name: "plain wins", in: `
			lib/firmware/a = plain
			lib/firmware/a.xz = plain
			lib/firmware/a.zst = other
			lib/firmware/b.xz = one
			lib/firmware/b.zst = two
			lib/firmware/c -> a
			lib/firmware/c.zst -> a.zst
			lib/firmware/d -> a
			lib/firmware/d.xz -> a.xz`, want: `
			a = plain
			b = two
			c -> a
			d -> a`, findings: `
			lib/firmware/a.zst: it is left out for lib/firmware/a, which differs
			lib/firmware/b.xz: it is left out for lib/firmware/b.zst, which differs`},
		{name: "links that leave", in: `
			lib/firmware/a -> ../../usr/share/fw/a
			lib/firmware/b.xz -> /usr/share/fw/b.xz
			lib/firmware/c -> /etc/alternatives/c
			lib/firmware/d -> ../../usr/share/fw
			lib/firmware/e -> missing
			lib/firmware/f -> f
			lib/firmware/real = r
			etc/alternatives/c -> /lib/firmware/real
			usr/share/fw/a = shared a
			usr/share/fw/b.xz = shared b`, want: `
			a = shared a
			b = shared b
			c -> real
			d -> ../../usr/share/fw
			e -> missing
			f -> f
			real = r`, findings: `
			lib/firmware/d: it is a symlink to ../../usr/share/fw, which is outside the firmware directory and no regular file; it stays as it is
			lib/firmware/e: it is a symlink to missing, which leads nowhere in this tree; it stays as it is
			lib/firmware/f: it is a symlink to f, which leads nowhere in this tree; it stays as it is`},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := sysroot.Firmware(t.Context(), system(t, c.in), &sysroot.FirmwareOptions{KeepCompressed: c.keep})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(split(c.want), list(t, tree)); diff != "" {
				t.Errorf("the tree is not what is wanted (-want +got):\n%s", diff)
			}
			var findings []string
			for _, f := range tree.Findings {
				findings = append(findings, f.String())
			}
			if diff := cmp.Diff(split(c.findings), findings); diff != "" {
				t.Errorf("the findings are not those wanted (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFirmwareMetadata(t *testing.T) {
	src := system(t, `
		lib/firmware/d/
		lib/firmware/d/a.xz = content
		lib/firmware/link -> d/a.xz`)
	tree, err := sysroot.Firmware(t.Context(), src, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"d": fs.ModeDir | 0o750, "d/a": 0o640, "link": 0o640} {
		info, err := fs.Stat(tree, name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode || !info.ModTime().Equal(when) || info.Name() != path.Base(name) && name != "link" {
			t.Errorf("Stat(%q) is %s %v %v, want %v %v", name, info.Name(), info.Mode(), info.ModTime(), mode, when)
		}
	}
	f, err := tree.Open("link")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != 7 || info.Name() != "a" {
		t.Errorf("Stat of the open file is %v, %v, want a file a of 7 bytes", info, err)
	}
	if _, err := tree.Open("d/a.xz"); err == nil {
		t.Error("d/a.xz is in the tree, want it as d/a only")
	}
	if err := fstest.TestFS(tree, "d/a", "link"); err != nil {
		t.Error(err)
	}
}

func TestFirmwareRefused(t *testing.T) {
	with := func(in, name string, change func(*fstest.MapFile)) fstest.MapFS {
		fsys := system(t, in)
		change(fsys[name])
		return fsys
	}
	cut := func(f *fstest.MapFile) { f.Data = f.Data[:len(f.Data)-8] }
	for _, c := range []struct {
		name, want string
		fsys       fs.FS
	}{
		{"no firmware", "there is no firmware in it: it has neither lib/firmware nor usr/lib/firmware", system(t, "usr/share/x = 1")},
		{"device", "lib/firmware/x: it is no file, directory or symlink", with("lib/firmware/x = 1", "lib/firmware/x", func(f *fstest.MapFile) { f.Mode = fs.ModeDevice })},
		{"truncated xz", "lib/firmware/x.xz: truncated: the xz data ends early", with("lib/firmware/x.xz = 1", "lib/firmware/x.xz", cut)},
		{"too long", "lib/firmware/x.zst: its plain form has over the limit of 536870912 bytes", with("lib/firmware/x.zst = 1", "lib/firmware/x.zst",
			func(f *fstest.MapFile) {
				f.Data = []byte("\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\x00\x00\x09\x00\x00x")
			})},
		{"directory and file", "lib/firmware/a is a directory and lib/firmware/a.xz is none, and both would be a", system(t, "lib/firmware/a/x = 1\nlib/firmware/a.xz = 1")},
	} {
		_, err := sysroot.Firmware(t.Context(), c.fsys, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Firmware fails with %v, want %q", c.name, err, c.want)
		}
	}
}

// TestFirmwareChanged reads files that are not what their headers said.
func TestFirmwareChanged(t *testing.T) {
	src := system(t, "lib/firmware/x.zst = 12345\nlib/firmware/y.zst = 12345\nlib/firmware/cut.zst = 12345\nlib/firmware/bad.zst = 12345")
	copy(src["lib/firmware/y.zst"].Data[5:], "\x04") // the content size of a single segment
	tree, err := sysroot.Firmware(t.Context(), src, nil)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := fs.ReadFile(tree, "y"); err == nil {
		t.Errorf("y reads as %q, want an error", data)
	}
	cut, bad := src["lib/firmware/cut.zst"], src["lib/firmware/bad.zst"]
	cut.Data = cut.Data[:len(cut.Data)-6]
	bad.Data[len(bad.Data)-1] ^= 1 // of the checksum
	for name, want := range map[string]string{"cut": "lib/firmware/cut.zst: truncated", "bad": "lib/firmware/bad.zst: damaged", "y": "lib/firmware/y.zst: "} {
		if data, err := fs.ReadFile(tree, name); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s reads as %q, %v, want an error that begins with %q", name, data, err, want)
		}
	}
	src["lib/firmware/x.zst"].Data = kmodtest.Zstd(t, []byte("123456"))
	if data, err := fs.ReadFile(tree, "x"); err == nil || !strings.Contains(err.Error(), "not the length") {
		t.Errorf("x reads as %q, %v, want an error about its length", data, err)
	}
}

func TestModules(t *testing.T) {
	const six = "lib/modules/6.1.0/kernel/a.ko = 1\nlib/modules/6.1.0/modules.order = 2\n"
	for _, c := range []struct{ name, in, kver, found, want string }{
		{"one", six + "lib/modules/6.1.0/build -> /usr/src/x\nlib/modules/5.0/build -> /usr/src/x", "", "6.1.0", "build -> /usr/src/x\nkernel/a.ko = 1\nmodules.order = 2"},
		{"usr", "usr/lib/modules/6.12/kernel/b.ko = 1", "", "6.12", "kernel/b.ko = 1"},
		{"merged", "lib -> usr/lib\nusr/lib/modules/6.12/kernel/b.ko = 1", "", "6.12", "kernel/b.ko = 1"},
		{"chosen", six + "usr/lib/modules/6.12/kernel/b.ko = 1", "6.12", "6.12", "kernel/b.ko = 1"},
	} {
		sub, kver, err := sysroot.Modules(system(t, c.in), c.kver)
		if err != nil || kver != c.found {
			t.Errorf("%s: Modules gives %q, %v, want %q", c.name, kver, err, c.found)
			continue
		}
		if got := list(t, sub); !slices.Equal(got, split(c.want)) {
			t.Errorf("%s: the modules are %q, want %q", c.name, got, split(c.want))
		}
	}
	for _, c := range []struct{ name, in, kver, want string }{
		{"none", "usr/share/x = 1", "", "there are no kernel modules in it"},
		{"not that one", six, "6.2.0", "there are no modules of the kernel 6.2.0 in it"},
		{"several", six + "usr/lib/modules/6.12/kernel/b.ko = 1", "", "there are modules of several kernels in it, 6.1.0, 6.12: say which one with --kver"},
		{"twice", six + "usr/lib/modules/6.1.0/kernel/b.ko = 1", "", "the modules of the kernel 6.1.0 are in two directories"},
	} {
		if _, _, err := sysroot.Modules(system(t, c.in), c.kver); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Modules fails with %v, want %q", c.name, err, c.want)
		}
	}
}
