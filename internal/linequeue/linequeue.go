// Package linequeue keeps those who write a log from waiting for whoever reads it.
//
// A write to a pipe that nobody empties, to a terminal that is stopped, or to a file
// system that hangs does not return. A [Queue] stands before such a writer: lines
// wait there, and when there are too many of them, the next ones are dropped and
// counted. Where lines are missing, the next one that gets through says how many.
//
// As long as the writer keeps up, a line is written when Write returns: what the log
// says of a failure is there before the failure is seen, and a crash loses nothing.
package linequeue

import (
	"bytes"
	"io"
	"sync"
	"time"
)

const (
	// maxBytes is how much of the lines may wait, in bytes: some thousand lines.
	maxBytes = 256 << 10
	// patience is how long a line holds up who writes it, if none before it waits.
	patience = 100 * time.Millisecond
)

// A Queue is an io.Writer, each write to which is a line, or some. Concurrent use is
// safe.
type Queue struct {
	w    io.Writer
	note func(lines int) string

	mu     sync.Mutex
	lines  []line        // that wait, without the one that is being written
	bytes  int           // of those that wait, and of the one that is being written
	lost   int           // after the last of lines
	idle   chan struct{} // closed when none waits; nil then
	behind bool          // one has waited longer than patience since
}

// A line is what was written to the queue, and how many were lost before it. The
// text is nil if none was written since.
type line struct {
	text []byte
	lost int
	done chan struct{} // closed when it is written, or refused
}

// New returns a queue before w, which gets one line with each write. Note is what to
// say where lines are missing, with a line break at its end.
func New(w io.Writer, note func(lines int) string) *Queue { return &Queue{w: w, note: note} }

var _ io.Writer = (*Queue)(nil)

// Write puts a line into the queue, or drops it if 256 KiB wait there. It waits for
// a tenth of a second at most until the line is written, and not at all as long as an
// earlier line that took longer, or one after that, is in the queue. It does not fail:
// lines that the writer behind the queue refuses count as lost.
func (q *Queue) Write(text []byte) (int, error) {
	if done := q.put(text); done != nil {
		select {
		case <-done:
		case <-time.After(patience):
			q.mu.Lock()
			q.behind = q.idle != nil
			q.mu.Unlock()
		}
	}
	return len(text), nil
}

// put puts a line into the queue, and returns what is closed when it is written; nil
// if that is not to be waited for.
func (q *Queue) put(text []byte) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes+len(text) > maxBytes {
		q.lost++
		return nil
	}
	l := line{bytes.Clone(text), q.lost, make(chan struct{})}
	q.lines = append(q.lines, l)
	q.bytes += len(text)
	q.lost = 0
	if q.idle == nil {
		q.idle, q.behind = make(chan struct{}), false
		go q.drain(q.idle)
	}
	if q.behind {
		return nil
	}
	return l.done
}

// Flush waits until all is written, for a time at most, and reports whether it is.
func (q *Queue) Flush(most time.Duration) bool {
	q.mu.Lock()
	idle := q.idle
	q.mu.Unlock()
	if idle == nil {
		return true
	}
	select {
	case <-idle:
		return true
	case <-time.After(most):
		return false
	}
}

// drain writes until nothing waits.
func (q *Queue) drain(idle chan<- struct{}) {
	defer close(idle)
	var l line
	var err error
	for q.next(&l, err) {
		text := l.text
		if l.lost > 0 {
			text = append([]byte(q.note(l.lost)), text...)
		}
		_, err = q.w.Write(text)
	}
}

// next takes note of what became of a line, and goes to the next one. It reports
// whether there is one.
func (q *Queue) next(l *line, err error) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= len(l.text)
	if l.done != nil {
		close(l.done)
	}
	if err != nil {
		q.refused(*l)
	}
	switch {
	case len(q.lines) > 0:
		*l, q.lines = q.lines[0], q.lines[1:]
	case q.lost > 0 && err == nil:
		*l, q.lost = line{lost: q.lost}, 0
	default:
		q.lines, q.idle = nil, nil
		return false
	}
	return true
}

// refused counts a line that could not be written.
func (q *Queue) refused(l line) {
	lost := l.lost
	if l.text != nil {
		lost++
	}
	if len(q.lines) > 0 {
		q.lines[0].lost += lost
	} else {
		q.lost += lost
	}
}
