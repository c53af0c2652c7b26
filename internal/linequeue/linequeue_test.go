package linequeue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A reader reads lines when it is told to, and fails if there is none to read.
type reader struct {
	may  chan error // what becomes of the next write
	text bytes.Buffer
}

func newReader() *reader { return &reader{may: make(chan error)} }

func (r *reader) Write(p []byte) (int, error) {
	if err := <-r.may; err != nil {
		return 0, err
	}
	return r.text.Write(p)
}

// reads lets everything through from now on.
func (r *reader) reads() { close(r.may) }

func note(lines int) string { return fmt.Sprintf("(%d lost)\n", lines) }

// say writes lines, only the first of which may be waited for, and not for long.
func say(t *testing.T, w io.Writer, lines ...string) {
	t.Helper()
	start := time.Now()
	defer func() {
		if took := time.Since(start); took > patience {
			t.Errorf("%d lines took %v, want %v at most", len(lines), took, patience)
		}
	}()
	for _, l := range lines {
		if n, err := io.WriteString(w, l+"\n"); n != len(l)+1 || err != nil {
			t.Errorf("Write(%.20q) = %d, %v", l, n, err)
		}
	}
}

// What is written is read, in order, each line with a write of its own.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader()
		q := New(r, note)
		say(t, q, "one", "two", "three")
		r.may <- nil
		synctest.Wait()
		if got := r.text.String(); got != "one\n" {
			t.Errorf("after one write: %q, want the first line", got)
		}
		r.reads()
		synctest.Wait()
		start := time.Now()
		say(t, q, "four")
		if time.Since(start) > 0 {
			t.Error("a line was waited for though all before it were written")
		}
		if !q.Flush(time.Second) || r.text.String() != "one\ntwo\nthree\nfour\n" {
			t.Errorf("read %q, want all lines", &r.text)
		}
	})
}

// What a reader keeps up with is written when Write returns, by whomever.
func TestWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader()
		q := New(r, note)
		r.reads()
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 100 {
					io.WriteString(q, "x\n")
				}
			})
		}
		all.Wait()
		if got := r.text.Len(); got != 1600 {
			t.Errorf("%d bytes are written, want 1600", got)
		}
	})
}

// Nobody waits for who does not read. Lines are dropped when there is no room, and
// counted where they are missing.
func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader()
		q := New(r, note)
		long := strings.Repeat("x", maxBytes/4-1) // and the line break
		say(t, q, "one", long, long, long, long, long, "after them")
		r.may <- nil // one
		r.may <- nil // the first long line
		synctest.Wait()
		say(t, q, long, "two", long)
		if q.Flush(time.Second) {
			t.Error("Flush says that all is written, while nobody reads")
		}
		r.reads()
		synctest.Wait()
		want := []string{"one", long, long, long, "(2 lost)", "after them", long, "two", "(1 lost)"}
		if got := strings.Split(strings.TrimSpace(r.text.String()), "\n"); !equal(got, want) {
			t.Errorf("read %.30q, want %.30q", got, want)
		}
		if !q.Flush(0) {
			t.Error("Flush says that lines wait, when all are written")
		}
	})
}

func equal(got, want []string) bool { return strings.Join(got, "\n") == strings.Join(want, "\n") }

// Lines that are refused, as by a full disk, count as lost; nobody tries for ever.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader()
		q := New(r, note)
		full := errors.New("no space left on device")
		say(t, q, "one", "two")
		r.may <- full
		r.may <- full
		synctest.Wait()
		if !q.Flush(0) {
			t.Error("what was refused is tried again by itself")
		}
		say(t, q, "three", "four", "five")
		r.may <- full
		r.may <- nil
		r.may <- nil
		synctest.Wait()
		if got, want := r.text.String(), "(3 lost)\nfour\nfive\n"; got != want {
			t.Errorf("read %q, want %q", got, want)
		}
	})
}
