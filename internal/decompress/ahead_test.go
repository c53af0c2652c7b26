package decompress_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"overmount/internal/decompress"
)

// A closer notes that it was closed.
type closer struct {
	io.Reader
	closed bool
}

func (c *closer) Close() error { c.closed = true; return nil }

func TestAhead(t *testing.T) {
	want := bytes.Repeat(content(), 5) // more than it reads ahead
	broken := errors.New("the disk is broken")
	for name, c := range map[string]struct {
		r    io.Reader
		want []byte
		err  error
	}{
		"plain":     {bytes.NewReader(want), want, nil},
		"slowly":    {iotest.HalfReader(bytes.NewReader(want)), want, nil},
		"early EOF": {iotest.DataErrReader(bytes.NewReader(want)), want, nil},
		"nothing":   {bytes.NewReader(nil), nil, nil},
		"broken":    {io.MultiReader(bytes.NewReader(want), iotest.ErrReader(broken)), want, broken},
	} {
		below := &closer{Reader: c.r}
		z := decompress.Ahead(below)
		got, err := io.ReadAll(z)
		if !errors.Is(err, c.err) || !bytes.Equal(got, c.want) {
			t.Errorf("%s: read %d bytes, %v, want %d, %v", name, len(got), err, len(c.want), c.err)
		}
		if _, again := z.Read(make([]byte, 1)); c.err == nil && again != io.EOF || c.err != nil && again != c.err {
			t.Errorf("%s: Read behind the end returns %v", name, again)
		}
		if err := z.Close(); err != nil || !below.closed {
			t.Errorf("%s: Close = %v, closed below: %v", name, err, below.closed)
		}
	}
	if err := iotest.TestReader(decompress.Ahead(&closer{Reader: bytes.NewReader(want)}), want); err != nil {
		t.Error(err)
	}
}

// TestAheadClose holds that nothing reads behind Close, at whatever point it comes.
func TestAheadClose(t *testing.T) {
	for reads := range 12 {
		synctest.Test(t, func(t *testing.T) { // which fails if a goroutine stays
			below := &closer{Reader: endless{}}
			z := decompress.Ahead(below)
			for range reads {
				if _, err := z.Read(make([]byte, 40_000)); err != nil {
					t.Fatal(err)
				}
			}
			if err := z.Close(); err != nil || !below.closed {
				t.Errorf("Close behind %d reads = %v, closed below: %v", reads, err, below.closed)
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }
