package flight

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
)

func TestCallersShareOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		gate := make(chan struct{})
		calls := 0
		work := func(context.Context) (int, error) {
			calls++
			<-gate
			return 7, nil
		}
		results := make(chan int)
		for range 5 {
			go func() {
				v, err := g.Do(t.Context(), "a", work)
				if err != nil {
					t.Errorf("Do = %v", err)
				}
				results <- v
			}()
		}
		synctest.Wait()
		close(gate)
		for range 5 {
			if v := <-results; v != 7 {
				t.Errorf("Do = %d, want 7", v)
			}
		}
		if calls != 1 {
			t.Errorf("work was called %d times, want 1", calls)
		}
		if _, err := g.Do(t.Context(), "a", work); err != nil || calls != 2 {
			t.Errorf("Do after that = %v with %d calls, want a second call", err, calls)
		}
	})
}

func TestTheFirstCallerMayLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		gate := make(chan struct{})
		work := func(ctx context.Context) (int, error) {
			select {
			case <-gate:
				return 7, nil
			case <-ctx.Done():
				return 0, errors.New("the work was cancelled")
			}
		}
		first, leave := context.WithCancel(t.Context())
		firstErr, second := make(chan error), make(chan int)
		go func() {
			_, err := g.Do(first, "a", work)
			firstErr <- err
		}()
		synctest.Wait()
		go func() {
			v, _ := g.Do(t.Context(), "a", work)
			second <- v
		}()
		synctest.Wait()
		leave()
		if err := <-firstErr; !errors.Is(err, context.Canceled) {
			t.Errorf("Do of the caller who left = %v, want context.Canceled", err)
		}
		close(gate)
		if v := <-second; v != 7 {
			t.Errorf("Do of the caller who stayed = %d, want 7", v)
		}
	})
}

func TestTheLastToLeaveCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		cancelled := make(chan struct{})
		ctx, leave := context.WithCancel(t.Context())
		go g.Do(ctx, "a", func(ctx context.Context) (int, error) {
			<-ctx.Done()
			close(cancelled)
			return 0, ctx.Err()
		})
		synctest.Wait()
		leave()
		<-cancelled
		v, err := g.Do(t.Context(), "a", func(context.Context) (int, error) { return 7, nil })
		if v != 7 || err != nil {
			t.Errorf("Do after everyone left = %d, %v, want 7", v, err)
		}
		if _, err := g.Do(ctx, "a", nil); !errors.Is(err, context.Canceled) {
			t.Errorf("Do under a context that has ended = %v, want context.Canceled", err)
		}
	})
}

func TestPanicAndExitReachTheCallers(t *testing.T) {
	var g Group[string, int]
	_, err := g.Do(t.Context(), "a", func(context.Context) (int, error) { panic("out of tea") })
	if err == nil || !strings.Contains(err.Error(), "out of tea") || !strings.Contains(err.Error(), "flight_test.go") {
		t.Errorf("Do of work that panics = %v, want the panic and its stack", err)
	}
	_, err = g.Do(t.Context(), "a", func(context.Context) (int, error) { runtime.Goexit(); return 0, nil })
	if err == nil {
		t.Error("Do of work that exits = nil, want an error")
	}
}

func TestForgetDetaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		gate, old := make(chan struct{}), make(chan int)
		go func() {
			v, _ := g.Do(t.Context(), "a", func(context.Context) (int, error) { <-gate; return 1, nil })
			old <- v
		}()
		synctest.Wait()
		g.Forget("a")
		if v, err := g.Do(t.Context(), "a", func(context.Context) (int, error) { return 2, nil }); v != 2 || err != nil {
			t.Errorf("Do after Forget = %d, %v, want 2", v, err)
		}
		close(gate)
		if v := <-old; v != 1 {
			t.Errorf("Do before Forget = %d, want 1", v)
		}
	})
}
