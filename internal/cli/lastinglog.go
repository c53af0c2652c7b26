package cli

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"overmount/internal/linequeue"
)

// What serves a mount must not end, or stop, with whoever reads its log: a line may be
// written on the way of each read, and then all who use the mount would wait for it.

// outliveReaders has the program go on when whoever reads its stderr has gone, or does
// not read. The runtime of Go would end it with SIGPIPE, and with it the mounts. The
// signal is not ignored, which programs that this one starts would inherit.
func (a *app) outliveReaders() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	a.Stderr = a.queued(a.Stderr)
}

// queued puts a queue before a writer, so that no line is waited for. What is in it is
// written by letSpeak.
func (a *app) queued(w io.Writer) io.Writer {
	q := linequeue.New(w, missingLines)
	a.queues = append(a.queues, q)
	return q
}

// missingLines is a line of the log that stands for those that nobody read.
func missingLines(lines int) string {
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Warn("lines are missing here: nobody read the log, or it could not be written", "lines", lines)
	return b.String()
}

// lastWords is how long the last lines may take to be written.
const lastWords = 2 * time.Second

// letSpeak waits until all that was said is written, for lastWords at most.
func (a *app) letSpeak() {
	var all sync.WaitGroup
	for _, q := range a.queues {
		all.Go(func() { q.Flush(lastWords) })
	}
	all.Wait()
}

// lastingLogger is logger for a log that lives as long as the program, and also gets
// what libraries have to say.
func (a *app) lastingLogger(cmd *cobra.Command, w io.Writer) (*slog.Logger, error) {
	log, err := a.logger(cmd, w)
	if err == nil {
		slog.SetDefault(log)
		slog.SetLogLoggerLevel(slog.LevelWarn)
	}
	return log, err
}
