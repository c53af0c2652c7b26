package cli

import (
	"slices"
	"testing"

	"overmount/block"
	"overmount/manifest"
	"overmount/tree/treetest"
)

func TestDeclarers(t *testing.T) {
	module := func(name string, firmware ...string) treetest.File {
		return treetest.File{Path: "kernel/" + name + ".ko", Data: []byte(name), Module: &manifest.Module{Name: name, Firmware: firmware}}
	}
	m, _ := treetest.Build(t, block.Zstd, module("a_none"), module("brcm", "brcm/x-*.txt", "both.fw"), module("e100", "e100/ucode.bin", "both.fw"))
	d := declarers{m: m, kver: "6.1"}
	for file, want := range map[string][]string{
		"e100/ucode.bin":             {"e100"},
		"both.fw.zst":                {"brcm", "e100"},
		"updates/6.1/e100/ucode.bin": {"e100"},
		"updates/both.fw":            {"brcm", "e100"},
		"6.1/brcm/x-1.txt.xz":        {"brcm"},
		"6.2/both.fw":                nil,
		"ucode.bin":                  nil,
		"brcm/y-1.txt":               nil,
	} {
		if got := d.of(file); !slices.Equal(got, want) {
			t.Errorf("of(%q) = %q, want %q", file, got, want)
		}
	}
	if got := (&declarers{kver: "6.1"}).of("both.fw"); got != nil {
		t.Errorf("of without a manifest of modules = %q, want none", got)
	}
}
