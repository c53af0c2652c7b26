// Package verify tells what is wrong with a packed tree before a machine boots
// from it.
//
// Every check gives [Finding]s, values with a severity. An error is something
// that will go wrong: a module that modprobe cannot find, an index that does not
// belong to the modules beside it. A warning may go wrong, or be meant so. The
// rest is information: what a person would want to know, and nothing to act on.
//
// [Routes] checks where a manifest sends its readers: what they cannot reach, and
// what they must not see. [Objects] asks the stores for the content, every object
// or a sample, and with a [Journal] goes on where it was interrupted. [Modules]
// checks a tree of kernel modules, with what it needs of a kernel's configuration
// ([ReadKernelConfig]), of the firmware that is shipped with it, and of the packages
// that have more of it.
package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"overmount/firmware"
)

// A Severity says how much a finding matters.
type Severity int

// The severities, from the least.
const (
	Info Severity = iota
	Warning
	Error
)

func (s Severity) String() string {
	switch s {
	case Info:
		return "info"
	case Warning:
		return "warning"
	}
	return "error"
}

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Finding is one thing that a check has found.
type Finding struct {
	Severity Severity `json:"severity"`
	Check    string   `json:"check"`           // which check, in one word
	Path     string   `json:"path,omitempty"`  // of what in the tree; empty for the whole
	Text     string   `json:"text"`            // what is wrong, and what to do
	Names    []string `json:"names,omitempty"` // all that Text speaks of, where these are many
	Store    string   `json:"store,omitempty"` // at which store, as [StoreName] has it

	// Of firmware: what a module declares and is there, and packages that together
	// would bring Names, perhaps, to Modules.
	Present  []Present          `json:"present,omitempty"`
	Packages []firmware.Package `json:"packages,omitempty"`
	Perhaps  bool               `json:"perhaps,omitempty"`
	Modules  []string           `json:"modules,omitempty"`
}

func (f Finding) String() string {
	parts := []string{f.Severity.String(), f.Check}
	for _, of := range []string{f.Store, f.Path} {
		if of != "" {
			parts = append(parts, of)
		}
	}
	return strings.Join(append(parts, f.Text), ": ")
}

// Worst returns the highest severity among findings; Info if there are none.
func Worst(findings []Finding) Severity {
	worst := Info
	for _, f := range findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

// findings gathers what one run finds.
type findings []Finding

func (fs *findings) add(s Severity, check, path, format string, args ...any) {
	*fs = append(*fs, Finding{Severity: s, Check: check, Path: path, Text: fmt.Sprintf(format, args...)})
}

// addNames adds a finding about many things. The text names the first few.
func (fs *findings) addNames(s Severity, check, path string, names []string, format string, args ...any) {
	text := fmt.Sprintf(format, args...) + ": " + some(names)
	*fs = append(*fs, Finding{Severity: s, Check: check, Path: path, Text: text, Names: names})
}

// some lists the first few of many names.
func some(names []string) string {
	const few = 4
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few-1], ", "), len(names)-few+1)
}

// count is a number of things as people say it.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// sorted brings what matters most to the front; otherwise the order of the
// checks stays.
func (fs findings) sorted() []Finding {
	slices.SortStableFunc(fs, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return fs
}
