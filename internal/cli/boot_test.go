package cli

import (
	"regexp"
	"testing"

	"overmount/boot"
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
