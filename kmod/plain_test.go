package kmod_test

import (
	"bytes"
	"testing"

	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

func TestPlain(t *testing.T) {
	want := bytes.Repeat([]byte("firmware "), 1000)
	for _, suffix := range []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"} {
		file := kmodtest.Compress(t, suffix, want)
		got, err := kmod.Plain(file)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("Plain(%s) = %d bytes, %v, want %d", suffix, len(got), err, len(want))
		}
		if suffix == ".ko" {
			continue
		}
		if got, err := kmod.Plain(file[:len(file)-9]); err == nil || got != nil {
			t.Errorf("Plain(%s cut short) = %d bytes, %v, want an error", suffix, len(got), err)
		}
	}
	if got, err := kmod.Plain(nil); got != nil || err != nil {
		t.Errorf("Plain(nil) = %v, %v", got, err)
	}
}
