// Package pulse carries, in a request's context, what those who wait for an answer
// and those who fetch it have to tell each other before it is there: that bytes
// are coming, so that slow can be told from dead, and that the connections at hand
// may be dead without anyone having said so.
package pulse

import "context"

type key struct{}

type request struct {
	beat func()
	anew bool
}

// With returns a context for one request. Who carries it out calls beat, from any
// goroutine, whenever something of the answer comes, and makes a new connection
// for the request if anew is set. If ctx is that of a request which this one is
// made for, both hear the beats.
func With(ctx context.Context, beat func(), anew bool) context.Context {
	r := request{beat, anew}
	if outer, ok := ctx.Value(key{}).(request); ok {
		r.beat = func() { beat(); outer.beat() }
		r.anew = anew || outer.anew
	}
	return context.WithValue(ctx, key{}, r)
}

// Beat says that something of the answer has come. It does nothing if nobody
// wants to know.
func Beat(ctx context.Context) {
	if r, ok := ctx.Value(key{}).(request); ok {
		r.beat()
	}
}

// Anew reports whether the request shall go over a new connection, beside those
// that there are, and not count against their limit: nothing comes over them, or
// nothing came until just now. Once it is answered, they should not be used again.
func Anew(ctx context.Context) bool {
	r, ok := ctx.Value(key{}).(request)
	return ok && r.anew
}
