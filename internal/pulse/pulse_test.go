package pulse

import (
	"context"
	"testing"
)

func TestPulse(t *testing.T) {
	Beat(t.Context()) // nobody wants to know
	if Anew(t.Context()) {
		t.Error("Anew of a context without a request = true")
	}
	beats := 0
	for _, anew := range []bool{false, true} {
		ctx, cancel := context.WithCancel(With(t.Context(), func() { beats++ }, anew))
		defer cancel()
		Beat(context.WithoutCancel(ctx))
		if got := Anew(ctx); got != anew {
			t.Errorf("Anew = %v, want %v", got, anew)
		}
	}
	if beats != 2 {
		t.Errorf("%d beats arrived, want 2", beats)
	}

	outer := With(t.Context(), func() { beats++ }, true)
	inner := With(outer, func() { beats++ }, false)
	if Beat(inner); beats != 4 || !Anew(inner) {
		t.Errorf("a request in a request: %d more beats, Anew = %v, want 2 and true", beats-2, Anew(inner))
	}
}
