package decompress

import "io"

const (
	aheadPiece  = 64 << 10
	aheadPieces = 4
)

// Ahead returns what r gives, read in a goroutine of its own, up to 256 KiB ahead of
// who reads it. So a second processor can use what the first decompresses. After
// Close, which waits for the current Read of r, nothing reads r any more. Close
// closes r.
func Ahead(r io.ReadCloser) io.ReadCloser {
	a := &ahead{r: r, full: make(chan piece, aheadPieces), free: make(chan []byte, aheadPieces), ended: make(chan struct{})}
	for range aheadPieces {
		a.free <- make([]byte, aheadPiece)
	}
	go a.run()
	return a
}

type ahead struct {
	r     io.ReadCloser
	full  chan piece
	free  chan []byte   // closed by Close
	ended chan struct{} // closed when nothing reads r any more

	buf  []byte // of the current piece
	left piece
}

// A piece is what a Read returned.
type piece struct {
	data []byte
	err  error
}

func (a *ahead) run() {
	defer close(a.ended)
	for buf := range a.free {
		n, err := a.r.Read(buf)
		a.full <- piece{buf[:n], err} // there is room for all of them
		if err != nil {
			return
		}
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.left.data) == 0 {
		if a.left.err != nil {
			return 0, a.left.err
		}
		if a.buf != nil {
			a.free <- a.buf
		}
		a.left = <-a.full
		a.buf = a.left.data[:aheadPiece]
	}
	n := copy(p, a.left.data)
	a.left.data = a.left.data[n:]
	return n, nil
}

func (a *ahead) Close() error {
	close(a.free)
	for range a.free { // what it would read into
	}
	<-a.ended
	return a.r.Close()
}
