package kmod

import (
	"slices"
	"strings"
)

// Refused returns the modules that a kernel with this command line does not load
// at all, whoever asks: module_blacklist=MODULE,... of kernel/module/main.c of
// Linux. The last of several counts, and nothing behind a word "--". modprobe knows
// nothing of it. The names are as they stand there; the kernel compares them with
// names that have underscores.
func Refused(line string) []string {
	line, _, _ = strings.Cut(line, "\x00")
	var list string
	for word := range CommandLine(line) {
		if word == "--" {
			break
		}
		key, value, _ := strings.Cut(strings.TrimPrefix(word, `"`), "=")
		if strings.ReplaceAll(key, "-", "_") == "module_blacklist" {
			list = strings.Trim(value, `"`)
		}
	}
	return slices.DeleteFunc(strings.Split(list, ","), func(name string) bool { return name == "" })
}
