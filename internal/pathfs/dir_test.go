package pathfs

import (
	"errors"
	"io"
	"io/fs"
	"testing"
	"testing/fstest"
)

func TestOpenDir(t *testing.T) {
	src := fstest.MapFS{"a": {}, "b": {}, "c": {}}
	list, err := fs.ReadDir(src, ".")
	if err != nil {
		t.Fatal(err)
	}
	info, err := fs.Stat(src, ".")
	if err != nil {
		t.Fatal(err)
	}
	d := OpenDir("here", info, list)
	for _, want := range []struct {
		n, got int
		err    error
	}{{2, 2, nil}, {2, 1, nil}, {2, 0, io.EOF}, {0, 0, nil}} {
		if got, err := d.ReadDir(want.n); len(got) != want.got || !errors.Is(err, want.err) {
			t.Errorf("ReadDir(%d) = %d entries, %v, want %d, %v", want.n, len(got), err, want.got, want.err)
		}
	}
	all, err := OpenDir("here", info, list).ReadDir(-1)
	if err != nil || len(all) != 3 {
		t.Errorf("ReadDir(-1) = %d entries, %v, want 3", len(all), err)
	}
	all[0] = nil
	if list[0] == nil {
		t.Error("who gets entries can change those of others")
	}
	if pe, ok := errors.AsType[*fs.PathError](must(d.Read(nil))); !ok || pe.Path != "here" {
		t.Errorf("Read: %v, want an error that names the directory", pe)
	}
}

func must(_ int, err error) error { return err }
