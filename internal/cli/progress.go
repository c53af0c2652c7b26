package cli

import (
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"overmount/pack"
)

// bar shows how far long work is, with rate and time left, on a terminal only.
type bar struct{ b *progressbar.ProgressBar }

func (a *app) progress(what string) *bar {
	f, ok := a.Stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &bar{}
	}
	return &bar{progressbar.NewOptions64(1,
		progressbar.OptionSetDescription(what),
		progressbar.OptionSetWriter(f),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionFullWidth(),
		progressbar.OptionClearOnFinish(),
	)}
}

func (b *bar) update(s pack.Summary) {
	if b.b == nil || s.Bytes == 0 {
		return
	}
	b.b.ChangeMax64(s.Bytes)
	_ = b.b.Set64(s.DoneByte) // a terminal that does not take it is no reason to fail
}

func (b *bar) finish() {
	if b.b != nil {
		_ = b.b.Clear()
	}
}
