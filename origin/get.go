package origin

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"

	"overmount/signature"
)

// A StatusError is an answer of a server other than the one that was hoped for. It is
// fs.ErrNotExist if the server says that there is nothing.
type StatusError struct {
	Code   int
	Status string
	Hint   string // what may help, if that is known
}

func (e *StatusError) Error() string {
	text := "the server answers " + e.Status
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

// Is implements errors.Is.
func (e *StatusError) Is(target error) bool {
	return target == fs.ErrNotExist && (e.Code == http.StatusNotFound || e.Code == http.StatusGone)
}

// Get writes the file at a place to w, as it is there. It fails for what is longer
// than most bytes, and with fs.ErrNotExist for what is not there. Errors do not name
// the place.
func (f *Fetcher) Get(ctx context.Context, w io.Writer, place string, most int64) error {
	r, err := f.open(ctx, place)
	if err != nil {
		return err
	}
	defer r.Close()
	return copyCapped(w, r, most, tooLong(most))
}

func (f *Fetcher) open(ctx context.Context, place string) (io.ReadCloser, error) {
	if !IsURL(place) {
		return openFile(place)
	}
	resp, err := f.ask(ctx, place, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// openFile opens a file of this machine. Opening a pipe would wait.
func openFile(file string) (*os.File, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, pathless(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a file")
	}
	in, err := os.Open(file)
	return in, pathless(err)
}

// pathless is an error of a file without its path, which is said elsewhere.
func pathless(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

func copyCapped(w io.Writer, r io.Reader, most int64, tooLong error) error {
	n, err := io.Copy(w, &capped{r, most, tooLong})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("after %d bytes: %w", n, err)
	}
	return err
}

// ask makes a request. An answer other than 200 is an error, except 304 if a tag was
// sent.
func (f *Fetcher) ask(ctx context.Context, from string, header http.Header) (*http.Response, error) {
	if _, err := parse(from); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, errors.New("the URL cannot be used")
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("User-Agent", "overmount")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	if code := resp.StatusCode; code == http.StatusOK || code == http.StatusNotModified && header.Get("If-None-Match") != "" {
		return resp, nil
	}
	resp.Body.Close()
	return nil, f.status(resp)
}

func (f *Fetcher) status(resp *http.Response) error {
	err := &StatusError{Code: resp.StatusCode, Status: resp.Status}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		if f.opts.Hint != nil {
			err.Hint = f.opts.Hint(resp.Request)
		}
	}
	return err
}

// maxSignatureTime is how long fetching a signature may take.
const maxSignatureTime = time.Minute

// Signature returns the file of signatures of the manifest at a place. If there is a
// manifest and no signature the error is ErrUnsigned.
func (f *Fetcher) Signature(ctx context.Context, place string) ([]byte, error) {
	sig, err := f.signature(ctx, place)
	if errors.Is(err, ErrUnsigned) && !IsURL(place) {
		if _, missing := os.Stat(place); missing != nil {
			return nil, fmt.Errorf("open manifest %s: %w", place, pathless(missing))
		}
	}
	if err != nil && !errors.Is(err, ErrRefused) {
		at, bad := signatureOf(place)
		if bad != nil {
			return nil, bad
		}
		return nil, fmt.Errorf("%s signature %s: %w", getting(at), Shown(at), err)
	}
	return sig, err
}

// signature is Signature, with errors that do not name the place.
func (f *Fetcher) signature(ctx context.Context, place string) ([]byte, error) {
	at, err := signatureOf(place)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, maxSignatureTime)
	defer cancel()
	r, err := f.open(ctx, at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s", ErrUnsigned, Shown(at))
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(&capped{r, signature.MaxSize, tooLong(signature.MaxSize)})
}

// content writes the manifest at a place, which may be compressed there.
func (f *Fetcher) content(ctx context.Context, w io.Writer, place string) error {
	if !IsURL(place) {
		in, err := openFile(place)
		if err != nil {
			return err
		}
		defer in.Close()
		return f.decode(w, in, Compressed(place))
	}
	resp, err := f.ask(ctx, place, accepting(place))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return f.body(w, resp, place)
}

// accepting is the header of a request for a manifest. A compressed copy is not to be
// compressed once more.
func accepting(place string) http.Header {
	h := http.Header{}
	if !Compressed(place) {
		h.Set("Accept-Encoding", "zstd, gzip")
	}
	return h
}

// body writes the manifest that an answer brings. Some servers call a compressed
// copy a manifest that they have compressed themselves.
func (f *Fetcher) body(w io.Writer, resp *http.Response, place string) error {
	switch encoding := resp.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
		return f.decode(w, resp.Body, Compressed(place))
	case "zstd":
		return f.decode(w, resp.Body, true)
	case "gzip":
		r, err := gzip.NewReader(resp.Body)
		if err != nil {
			return err
		}
		return f.decode(w, r, Compressed(place))
	default:
		return fmt.Errorf("the server sends it as %.20q, which was not asked for", encoding)
	}
}

// decode writes a manifest, and refuses one that is longer than it may be, compressed
// or not.
func (f *Fetcher) decode(w io.Writer, r io.Reader, compressed bool) error {
	most := f.opts.MaxBytes
	tooLong := fmt.Errorf("%w: %w", ErrRefused, tooLong(most))
	if !compressed {
		return copyCapped(w, r, most, tooLong)
	}
	// What is compressed ends, too: it could be nothing but parts that are empty.
	z, err := decompress(&capped{r, most, tooLong}, most)
	if err != nil {
		return err
	}
	defer z.Close()
	return copyCapped(w, z, most, tooLong)
}

// getting is what is done to have a file.
func getting(place string) string {
	if IsURL(place) {
		return "fetch"
	}
	return "open"
}

// refused says of which manifest it is that ErrRefused was said.
func refused(place string, err error) error {
	if errors.Is(err, ErrRefused) {
		return fmt.Errorf("manifest %s %w", Shown(place), err)
	}
	return err
}
