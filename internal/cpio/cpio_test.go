package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"overmount/internal/testenv"
)

// sample fills an archive, in the order of the numbers.
func sample(t *testing.T, order ...int) *Archive {
	t.Helper()
	a := &Archive{Mtime: time.Unix(1700000000, 0)}
	add := []func() error{
		func() error { return a.File("a/b/three", 0o644, 3, Bytes([]byte("abc"))) },
		func() error { return a.File("a/empty", 0o600, 0, Bytes(nil)) },
		func() error { return a.File("a-file", 0o755|fs.ModeSetuid, 8, Bytes([]byte("12345678"))) },
		func() error { return a.Symlink("a/link", "b/three") },
		func() error { return a.Dir("a", 0o700) },
		func() error { return a.Dir("tmp", 0o777|fs.ModeSticky) },
	}
	for _, i := range order {
		if err := add[i](); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func written(t *testing.T, a *Archive) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := a.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// cpio(1) reads what was written, and makes of it what was meant.
func TestCpioUnpacks(t *testing.T) {
	tool := testenv.Tool(t, "cpio")
	a := sample(t, 0, 1, 2, 3, 4, 5)
	data := written(t, a)
	if len(data)%512 != 0 {
		t.Errorf("the archive has %d bytes, want a multiple of 512", len(data))
	}
	run := func(args ...string) string {
		cmd := exec.Command(tool, args...)
		cmd.Stdin = bytes.NewReader(data)
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil || strings.Contains(errs.String(), "arning") {
			t.Fatalf("cpio %v: %v\n%s", args, err, errs.String())
		}
		return out.String()
	}
	want := []string{"a", "a-file", "a/b", "a/b/three", "a/empty", "a/link", "tmp"}
	if got := strings.Fields(run("-it")); !slices.Equal(got, want) {
		t.Errorf("cpio -it = %q, want %q", got, want)
	}
	dir := t.TempDir()
	run("-id", "-m", "--quiet", "-D", dir)
	for name, want := range map[string]string{
		"a": "drwx------ 0", "a/b": "drwxr-xr-x 0", "a/b/three": "-rw-r--r-- 3", "a/empty": "-rw------- 0",
		"a-file": "urwxr-xr-x 8", "a/link": "Lrwxrwxrwx 7", "tmp": "dtrwxrwxrwx 0",
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		size := info.Size()
		if info.IsDir() {
			size = 0
		}
		if got := fmt.Sprint(info.Mode(), " ", size); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
		// cpio leaves to directories the time when the last file came.
		if got := info.ModTime().Unix(); got != 1700000000 && info.Mode().IsRegular() {
			t.Errorf("%s is of %d, want the time of the archive", name, got)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a/link")); string(got) != "abc" || err != nil {
		t.Errorf("a/link leads to %q, %v, want abc", got, err)
	}
}

func TestOrderOfAddingDoesNotMatter(t *testing.T) {
	want := written(t, sample(t, 0, 1, 2, 3, 4, 5))
	for _, order := range [][]int{{5, 4, 3, 2, 1, 0}, {4, 0, 5, 1, 3, 2}} {
		if got := written(t, sample(t, order...)); !bytes.Equal(got, want) {
			t.Errorf("added in the order %v, the archive has other bytes", order)
		}
	}
	a := sample(t, 0, 1, 2, 3, 4, 5)
	if !bytes.Equal(written(t, a), written(t, a)) {
		t.Error("written twice, the archive has other bytes")
	}
}

// TestBytes compares with an archive written by hand, so that the comment of the
// package is true.
func TestBytes(t *testing.T) {
	a := &Archive{}
	if err := a.CharDevice("dev/console", 0o600, 5, 1); err != nil {
		t.Fatal(err)
	}
	want := "070701" + "00000001" + "000041ed" + "00000000" + "00000000" + "00000002" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000004" + "00000000" + "dev\x00\x00\x00" +
		"070701" + "00000002" + "00002180" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000005" + "00000001" + "0000000c" + "00000000" + "dev/console\x00\x00\x00" +
		"070701" + "00000000" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "0000000b" + "00000000" + "TRAILER!!!\x00"
	want += strings.Repeat("\x00", 512-len(want))
	if got := written(t, a); string(got) != want {
		t.Errorf("the archive is\n%q\nwant\n%q", got, want)
	}
}

func TestRefuses(t *testing.T) {
	long := strings.Repeat("x", 256)
	deep := strings.Repeat("xxx/", 1023) + "xxxx"
	none := Bytes(nil)
	for name, add := range map[string]func(a *Archive) error{
		"absolute path":     func(a *Archive) error { return a.File("/etc/passwd", 0o644, 0, none) },
		"path that goes up": func(a *Archive) error { return a.File("a/../../b", 0o644, 0, none) },
		"empty path":        func(a *Archive) error { return a.Dir("", 0o755) },
		"the root":          func(a *Archive) error { return a.Dir(".", 0o755) },
		"NUL":               func(a *Archive) error { return a.Dir("a\x00b", 0o755) },
		"the trailer":       func(a *Archive) error { return a.File("TRAILER!!!", 0o644, 0, none) },
		"long name":         func(a *Archive) error { return a.Dir("a/"+long, 0o755) },
		"long path":         func(a *Archive) error { return a.Dir(deep, 0o755) },
		"long target":       func(a *Archive) error { return a.Symlink("l", deep) },
		"no target":         func(a *Archive) error { return a.Symlink("l", "") },
		"4 GiB":             func(a *Archive) error { return a.File("f", 0o644, 1<<32, none) },
		"twice":             func(a *Archive) error { return a.Symlink("there", "x") },
		"other mode": func(a *Archive) error {
			if err := a.Dir("there.d", 0o755); err != nil {
				return err
			}
			defer delete(a.entries, "there.d")
			return a.Dir("there.d", 0o700)
		},
		"below a file":       func(a *Archive) error { return a.File("there/x", 0o644, 0, none) },
		"a file, then a dir": func(a *Archive) error { return a.Dir("there", 0o755) },
	} {
		a := &Archive{}
		if err := a.File("there", 0o644, 0, none); err != nil {
			t.Fatal(err)
		}
		if err := add(a); err == nil {
			t.Errorf("%s: added, want an error", name)
		}
		if a.Len() != 1 {
			t.Errorf("%s: %d entries after the error, want 1", name, a.Len())
		}
	}
	a := &Archive{}
	if err := a.File(strings.TrimSuffix(deep, "x"), 0o644, 0, none); err != nil {
		t.Errorf("a path of 4095 bytes: %v", err)
	}
	if err := (&Archive{Mtime: time.Unix(-1, 0)}).Write(io.Discard); err == nil {
		t.Error("a time before 1970 was written")
	}
}

func TestContentThatChanged(t *testing.T) {
	for _, size := range []int64{2, 4} {
		a := &Archive{}
		if err := a.File("f", 0o644, size, Bytes([]byte("abc"))); err != nil {
			t.Fatal(err)
		}
		if err := a.Write(io.Discard); !errors.Is(err, ErrSize) {
			t.Errorf("a file of 3 bytes added with %d: %v, want %v", size, err, ErrSize)
		}
	}
}
