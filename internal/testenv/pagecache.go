package testenv

import "testing"

// PageCache runs what finds in the kernel's page cache what it has put there, and
// returns an error if it did not. A kernel may drop what it has whenever it likes, and
// some do so ahead of need (DAMON): then it asks, and rightly so. It does not do that
// each time, so one run of three has to find all. A run must begin with a page cache
// that has nothing of its files, as that of a new mount.
func PageCache(tb testing.TB, run func() error) {
	tb.Helper()
	var err error
	for range 3 {
		if err = run(); err == nil {
			return
		}
		tb.Log(err)
	}
	tb.Error(err)
}
