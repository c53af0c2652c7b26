package cli

import (
	"regexp"
	"testing"

	"overmount/boot"
	"overmount/coldplug"
	"overmount/prefetch"
	"overmount/store"
)

// The help is where people learn of a setting.
func TestHelpHasAllSettings(t *testing.T) {
	help := new(app).bootCommand().Long
	for _, name := range boot.Settings() {
		if !regexp.MustCompile(`(?m)(^  |^  [a-z]+, |also )` + name + `\b`).MatchString(help) {
			t.Errorf("the help of boot does not say what %s is", name)
		}
	}
}

// Whoever reads a report looks up there what was counted.
func TestHelpHasAllCounts(t *testing.T) {
	help := new(app).reportCommand().Long
	k := bootMount{opened: &opened{count: &tally{wanted: store.Count(nil), tried: store.Count(nil)}}, fetcher: new(prefetch.Prefetcher)}
	for name := range k.Counts() {
		if !regexp.MustCompile(`(?m)^  (.*, )?` + name + `(,.*)? `).MatchString(help) {
			t.Errorf("the help of report does not say what %s is", name)
		}
	}
}

// What udev was to load, and has not, is told from what is not needed.
func TestMostMissing(t *testing.T) {
	machine := &coldplug.Machine{Modules: []coldplug.KnownModule{{Name: "built", State: coldplug.Builtin}, {Name: "live1", State: "live"}, {Name: "live2", State: "live"}}}
	wants := func(modules ...string) *coldplug.Plan {
		p := &coldplug.Plan{}
		for _, name := range modules {
			outcome := coldplug.Planned
			if machine.Loaded(name) {
				outcome = coldplug.Known
			}
			p.Requests = append(p.Requests, coldplug.Request{Matches: []coldplug.Match{{Module: name, Outcome: outcome}, {Module: "gone", Outcome: coldplug.Missing}}})
		}
		return p
	}
	for _, c := range []struct {
		wanted []string
		want   bool
	}{
		{nil, false},
		{[]string{"live1", "built"}, false},
		{[]string{"live1", "live2", "a", "a", "b"}, false},
		{[]string{"built", "a"}, true},
		{[]string{"live1", "live1", "a", "b"}, true},
	} {
		if got := mostMissing(wants(c.wanted...), machine); got != c.want {
			t.Errorf("mostMissing of %q = %t, want %t", c.wanted, got, c.want)
		}
	}
}
