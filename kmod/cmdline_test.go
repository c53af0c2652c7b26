package kmod

import (
	"slices"
	"testing"
)

func TestRefused(t *testing.T) {
	for line, want := range map[string][]string{
		"":                                      nil,
		"quiet modprobe.blacklist=a":            nil,
		"module_blacklist=a,b_c ro":             {"a", "b_c"},
		"module-blacklist=a":                    {"a"},
		"module_blacklist=a module_blacklist=b": {"b"},
		"module_blacklist=,a,,b,\n":             {"a", "b"},
		`"module_blacklist=a,b" x`:              {"a", "b"},
		`module_blacklist="a,b"`:                {"a", "b"},
		"x.module_blacklist=a":                  nil,
		"module_blacklist":                      nil,
		"quiet -- module_blacklist=a":           nil,
		"quiet\x00module_blacklist=a":           nil,
	} {
		if got := Refused(line); !slices.Equal(got, want) {
			t.Errorf("Refused(%q) = %q, want %q", line, got, want)
		}
	}
}
