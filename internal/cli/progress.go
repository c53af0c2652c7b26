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
func (b *bar) update(s pack.Summary) {
	if b.on == nil || s.Bytes == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b == nil {
		b.b = progressbar.NewOptions64(s.Bytes,
			progressbar.OptionSetDescription(b.what),
			progressbar.OptionSetWriter(b.on),
			progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionFullWidth(),
			progressbar.OptionClearOnFinish(),
		)
	}
	_ = b.b.Set64(s.DoneByte) // a terminal that does not take it is no reason to fail
}

func (b *bar) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b != nil {
		_ = b.b.Clear()
	}
}
