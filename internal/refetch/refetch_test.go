package refetch_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"overmount/internal/refetch"
)

func TestRead(t *testing.T) {
	line, content := errors.New("connection reset"), errors.New("it is another file")
	opens := func(r io.Reader) func(context.Context) (io.ReadCloser, error) {
		return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(r), nil }
	}
	for name, c := range map[string]struct {
		open  func(context.Context) (io.ReadCloser, error) // for the first time; then it goes well
		read  error
		want  error
		tries int
		took  time.Duration
	}{
		"right":             {opens(strings.NewReader("right")), nil, nil, 1, 0},
		"fails to open":     {func(context.Context) (io.ReadCloser, error) { return nil, line }, nil, nil, 2, time.Second},
		"fails on the way":  {opens(iotest.ErrReader(line)), nil, nil, 2, time.Second},
		"not there":         {func(context.Context) (io.ReadCloser, error) { return nil, fs.ErrNotExist }, nil, fs.ErrNotExist, 1, 0},
		"refused":           {func(context.Context) (io.ReadCloser, error) { return nil, fs.ErrPermission }, nil, fs.ErrPermission, 1, 0},
		"a local directory": {func(context.Context) (io.ReadCloser, error) { return os.Open("/") }, nil, fs.ErrInvalid, 1, 0},
		"not content":       {opens(strings.NewReader("wrong")), content, content, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, tries := time.Now(), 0
				open := func(ctx context.Context) (io.ReadCloser, error) {
					if tries++; tries > 1 {
						return opens(strings.NewReader("right"))(ctx)
					}
					return c.open(ctx)
				}
				err := refetch.Read(context.Background(), open, func(r io.Reader) error {
					if _, err := io.ReadAll(r); err != nil {
						return errors.New("whatever a reader makes of it")
					}
					return c.read
				})
				took := time.Since(start)
				if _, local := errors.AsType[*fs.PathError](err); c.want == fs.ErrInvalid && local {
					err = fs.ErrInvalid
				}
				if !errors.Is(err, c.want) || tries != c.tries || took != c.took {
					t.Errorf("Read = %v after %d tries and %v, want %v, %d, %v", err, tries, took, c.want, c.tries, c.took)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := refetch.Read(context.Background(), opens(iotest.ErrReader(line)), func(r io.Reader) error {
			_, err := io.ReadAll(r)
			return err
		})
		if took := time.Since(start); !errors.Is(err, line) || took != 3*time.Second {
			t.Errorf("Read of what always fails = %v after %v, want %v, 3s", err, took, line)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if err := refetch.Read(ctx, opens(iotest.ErrReader(line)), func(r io.Reader) error { _, err := io.ReadAll(r); return err }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Read until the context ends = %v, want its error", err)
		}
	})
}
