package cli

import (
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"overmount/pack"
)

// bar shows how far long work is, with rate and time left, on a terminal only.
type bar struct {
	on   *os.File // nil: nowhere
	what string

	mu sync.Mutex
	b  *progressbar.ProgressBar // nil until the length of the work is known
}

func (a *app) progress(what string) *bar {
	f, ok := a.Stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &bar{}
	}
	return &bar{on: f, what: what}
}

// update may be called from several goroutines.
func (b *bar) update(s pack.Summary) { b.set(s.DoneByte, s.Bytes, true) }

// count is update for work that is counted in objects.
func (b *bar) count(done, all int) { b.set(int64(done), int64(all), false) }

func (b *bar) set(done, all int64, bytes bool) {
	if b.on == nil || all == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b == nil {
		b.b = progressbar.NewOptions64(all,
			progressbar.OptionSetDescription(b.what),
			progressbar.OptionSetWriter(b.on),
			progressbar.OptionShowBytes(bytes),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionFullWidth(),
			progressbar.OptionClearOnFinish(),
		)
	}
	_ = b.b.Set64(done) // a terminal that does not take it is no reason to fail
}

func (b *bar) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b != nil {
		_ = b.b.Clear()
	}
}
