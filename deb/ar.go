package deb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	arMagic     = "!<arch>\n"
	arHeaderLen = 60
)

// An arReader reads an archive of ar (man 5 deb): a magic, then members, each
// behind a header of 60 bytes of text, at an even offset.
type arReader struct {
	in   *bufio.Reader
	name string // of the current member
	size int64  // of it
	left int64  // of it
	err  error  // that the file failed or ended inside a member
}

func newArReader(r io.Reader) (*arReader, error) {
	a := &arReader{in: bufio.NewReaderSize(r, 64<<10)}
	magic, err := a.in.Peek(len(arMagic))
	if err != nil && err != io.EOF {
		return nil, err
	}
	if string(magic) != arMagic {
		return nil, errors.New("it is not a Debian package: it does not begin as an archive of ar")
	}
	_, err = a.in.Discard(len(arMagic))
	return a, err
}

// next goes to the next member. After the last it returns io.EOF.
func (a *arReader) next() error {
	if err := a.skip(); err != nil {
		return err
	}
	h, err := a.in.Peek(arHeaderLen)
	switch {
	case err == io.EOF && len(h) == 0:
		return io.EOF
	case err == io.EOF && a.name == "":
		return fmt.Errorf("truncated: it ends inside the header of its first member: %w", io.ErrUnexpectedEOF)
	case err == io.EOF:
		return fmt.Errorf("the %d bytes behind the member %s are no member", len(h), a.name)
	case err != nil:
		return err
	}
	size, err := strconv.ParseUint(strings.TrimRight(string(h[48:58]), " "), 10, 63)
	if err != nil || string(h[58:]) != "`\n" {
		if a.name == "" {
			return errors.New("damaged: the header of its first member is none")
		}
		return fmt.Errorf("what follows the member %s is no member", a.name)
	}
	a.name = strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/")
	a.size, a.left = int64(size), int64(size)
	_, err = a.in.Discard(arHeaderLen)
	return err
}

// skip goes behind the current member.
func (a *arReader) skip() error {
	if _, err := io.Copy(io.Discard, a); err != nil {
		return err
	}
	if a.size&1 != 0 {
		if _, err := a.in.Discard(1); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// Read reads the current member.
func (a *arReader) Read(p []byte) (int, error) {
	if a.left == 0 {
		return 0, io.EOF
	}
	n, err := a.in.Read(p[:min(int64(len(p)), a.left)])
	a.left -= int64(n)
	if err == io.EOF && a.left == 0 {
		return n, nil
	}
	if err == io.EOF {
		err = fmt.Errorf("truncated: it ends %d bytes before its member %s does: %w", a.left, a.name, io.ErrUnexpectedEOF)
	}
	a.err = err
	return n, err
}
