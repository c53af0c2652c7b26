package depmod

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
	"overmount/kmod/kmodtest"
)

// smallTree makes a directory of three modules and no inputs, with indexes.
func smallTree(t *testing.T) (dir string, r *Result) {
	t.Helper()
	dir = t.TempDir()
	kmodtest.Write(t, dir, "kernel/a.ko", kmodtest.Module{Needs: []string{"b"}, Text: 5000})
	kmodtest.Write(t, dir, "kernel/b.ko.xz", kmodtest.Module{Exports: []string{"b"}})
	kmodtest.Write(t, dir, "kernel/c.ko.zst", kmodtest.Module{Info: []string{"alias=c-alias"}})
	r = build(t, dir)
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	return dir, r
}

func build(t *testing.T, dir string) *Result {
	t.Helper()
	r, err := Build(t.Context(), os.DirFS(dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// listing is the content and mode of each file of a directory, by name.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = info.Mode().String()
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all[e.Name()] += " " + info.ModTime().String() + "\n" + string(data)
		}
	}
	return all
}

// TestBadModules is about files that are no modules, which kmod's depmod lists
// as ones without dependencies. All of them are named.
func TestBadModules(t *testing.T) {
	good := kmodtest.Module{Info: []string{"alias=x"}, Text: 5000}.Bytes()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var unsized bytes.Buffer
	stream, err := zstd.NewWriter(&unsized)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.ReadFrom(bytes.NewReader(slices.Concat(good, make([]byte, 300_000)))); err != nil {
		t.Fatal(err)
	}
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{
		"empty.ko":         {},
		"cut.ko":           good[:len(good)/2],
		"text.ko":          []byte("this is no module at all, but it is as long as the header of one would be"),
		"cutzst.ko.zst":    enc.EncodeAll(good, nil)[:100],
		"cutxz.ko.xz":      kmodtest.XZ(t, good)[:100],
		"cutgz.ko.gz":      kmodtest.Gzip(t, good)[:50],
		"unsized.ko.zst":   unsized.Bytes(), // kmod 30 would read it, kmod 34 not
		"program.ko":       slices.Concat(good[:16], []byte{2}, good[17:]),
		"empty-in-zst.ko":  enc.EncodeAll(nil, nil),
		"sub/flipped.ko":   slices.Concat(bytes.Repeat([]byte{0xff}, 64), good[64:]),
		"kernel/header.ko": []byte("\x7fELF"),
	}
	dir := t.TempDir()
	for name, data := range bad {
		write(t, filepath.Join(dir, name), data)
	}
	write(t, filepath.Join(dir, "kernel/good.ko"), good)
	_, err = Build(t.Context(), os.DirFS(dir), nil)
	if err == nil {
		t.Fatal("Build of bad modules succeeded")
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != len(bad) {
		t.Errorf("Build: %v\nwant one line for each of %d bad files", err, len(bad))
	}
	for line := range strings.Lines(err.Error()) {
		if !strings.HasPrefix(line, "read module ") || strings.Contains(line, "good.ko") {
			t.Errorf("Build: %q, want read module, and a file that is bad", line)
		}
	}
}

func TestUnreadable(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		_, err := Build(t.Context(), os.DirFS(filepath.Join(t.TempDir(), "none")), nil)
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Build of a missing directory: %v, want %v", err, fs.ErrNotExist)
		}
	})
	t.Run("file", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "file")
		write(t, name, nil)
		if _, err := Build(t.Context(), os.DirFS(name), nil); err == nil {
			t.Error("Build of a file succeeded")
		}
	})
	t.Run("symlink", func(t *testing.T) {
		dir := t.TempDir()
		link(t, "nowhere", filepath.Join(dir, "a.ko"))
		link(t, "nowhere", filepath.Join(dir, "not-a-module"))
		_, err := Build(t.Context(), os.DirFS(dir), nil)
		if err == nil || err.Error() != "read a.ko: no such file or directory" {
			t.Errorf("Build with a dangling symlink: %v, want an error that names a.ko only", err)
		}
	})
	t.Run("order", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "modules.order"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Build(t.Context(), os.DirFS(dir), nil); err == nil || !strings.Contains(err.Error(), "modules.order") {
			t.Errorf("Build with a directory as modules.order: %v, want an error that names it", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		dir, _ := smallTree(t)
		ctx, cancel := contextCanceled(t)
		defer cancel()
		if _, err := Build(ctx, os.DirFS(dir), nil); !errors.Is(err, ctx.Err()) {
			t.Errorf("Build: %v, want %v", err, ctx.Err())
		}
	})
}

// TestNotASCII is about what the format of the indexes cannot hold.
func TestNotASCII(t *testing.T) {
	dir := t.TempDir()
	kmodtest.Write(t, dir, "kernel/a.ko", kmodtest.Module{Info: []string{"alias=über"}})
	_, err := Build(t.Context(), os.DirFS(dir), nil)
	if err == nil || !strings.Contains(err.Error(), "make modules.alias.bin: module kernel/a.ko: ") {
		t.Errorf("Build: %v, want an error that names the file and the module", err)
	}
}

// TestWriteFails checks that after a failure everything is as it was, also the
// times of files, and that the error names a file.
func TestWriteFails(t *testing.T) {
	cases := map[string]func(t *testing.T, dir string){
		// The last but three of all: those before it have their names by then.
		"a directory in the place of a file": func(t *testing.T, dir string) {
			name := filepath.Join(dir, "modules.builtin.bin")
			if err := errors.Join(os.Remove(name), os.Mkdir(name, 0o755)); err != nil {
				t.Fatal(err)
			}
		},
		"some files are new": func(t *testing.T, dir string) {
			name := filepath.Join(dir, "modules.devname")
			err := errors.Join(os.Remove(name), os.Mkdir(name, 0o755),
				os.Remove(filepath.Join(dir, "modules.dep")), os.Remove(filepath.Join(dir, "modules.alias.bin")))
			if err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			dir, r := smallTree(t)
			spoil(t, dir)
			before := listing(t, dir)
			for i := range r.Files {
				r.Files[i].Data = append(r.Files[i].Data, "more"...)
			}
			err := r.Write(dir)
			if err == nil || !strings.Contains(err.Error(), dir+"/modules.") {
				t.Errorf("Write: %v, want an error that names a file", err)
			}
			if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
				t.Errorf("directory after Write (-before +after):\n%s", diff)
			}
		})
	}
}

func TestWriteNowhere(t *testing.T) {
	_, r := smallTree(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, nil)
	for _, to := range []string{file, filepath.Join(dir, "none")} {
		err := r.Write(to)
		if err == nil || !strings.Contains(err.Error(), filepath.Join(to, "modules.dep")+":") {
			t.Errorf("Write(%q): %v, want an error that names modules.dep", to, err)
		}
	}
}

// TestReadOnly is what kmod's depmod ends with 0 for.
func TestReadOnly(t *testing.T) {
	dir, r := smallTree(t)
	remount(t, dir, unix.MS_RDONLY)
	before := listing(t, dir)
	if err := r.Write(dir); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), filepath.Join(dir, "modules.dep")) {
		t.Errorf("Write: %v, want %v of modules.dep", err, unix.EROFS)
	}
	if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
		t.Errorf("directory after Write (-before +after):\n%s", diff)
	}
}

// remount mounts a directory over itself, with flags.
func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	testenv.Root(t, "mounting")
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		testenv.Need(t, "cannot mount: "+err.Error())
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
		t.Fatal(err)
	}
}

// tmpfs mounts an empty file system of that many bytes.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	testenv.Root(t, "mounting")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		testenv.Need(t, "cannot mount a tmpfs: "+err.Error())
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestDiskFull(t *testing.T) {
	dir := tmpfs(t, "256k")
	_, r := smallTree(t)
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	r.Files[4].Data = make([]byte, 1<<20)
	err := r.Write(dir)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, r.Files[4].Name)) {
		t.Errorf("Write: %v, want %v of %s", err, unix.ENOSPC, r.Files[4].Name)
	}
	if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
		t.Errorf("directory after Write (-before +after):\n%s", diff)
	}
}

func TestWrite(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir, r := smallTree(t)
	for range 2 {
		if err := r.Write(dir); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != len(r.Files)+1 {
			t.Errorf("directory holds %v, want kernel and %d index files", entries, len(r.Files))
		}
		for _, f := range r.Files {
			info, err := os.Stat(filepath.Join(dir, f.Name))
			if err != nil || info.Mode() != 0o644 {
				t.Errorf("%s: %v, %v, want mode 0644", f.Name, info.Mode(), err)
			}
		}
		compare(t, dir, r.Files)
	}
}

// TestWholeReads is about file systems whose files cannot be read at an offset.
func TestWholeReads(t *testing.T) {
	dir, want := smallTree(t)
	memory := fstest.MapFS{}
	for _, name := range []string{"kernel/a.ko", "kernel/b.ko.xz", "kernel/c.ko.zst"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		memory[name] = &fstest.MapFile{Data: data}
	}
	got, err := Build(t.Context(), sequential{memory}, &Options{Parallel: 1})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Files, got.Files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// sequential hides that files can be read at an offset.
type sequential struct{ fs.FS }

func (s sequential) Open(name string) (fs.File, error) {
	f, err := s.FS.Open(name)
	if _, ok := f.(fs.ReadDirFile); ok || err != nil {
		return f, err
	}
	return struct{ fs.File }{f}, nil
}

// TestCopy is about file systems without hard links.
func TestCopy(t *testing.T) {
	dir, _ := smallTree(t)
	from, to := filepath.Join(dir, "modules.dep"), filepath.Join(dir, "copy")
	if err := os.Chmod(from, 0o600); err != nil {
		t.Fatal(err)
	}
	touch(t, dir, "modules.dep", time.Unix(1_600_000_000, 0))
	info, err := os.Lstat(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := copyFile(from, to, info); err != nil {
		t.Fatal(err)
	}
	all := listing(t, dir)
	if diff := cmp.Diff(all["modules.dep"], all["copy"]); diff != "" {
		t.Errorf("copy (-old +copy):\n%s", diff)
	}
}
