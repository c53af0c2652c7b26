package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// passwordFlags say where the password of a secret key comes from: a file, or
// else the terminal.
type passwordFlags struct{ file string }

func (f *passwordFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "password-file", "", "`FILE` whose first line is the password of the secret key (default: ask on the terminal)")
}

func (f *passwordFlags) given(cmd *cobra.Command) bool { return cmd.Flags().Changed("password-file") }

// read returns the password of a key that there is.
func (f *passwordFlags) read(cmd *cobra.Command, prompt string) ([]byte, error) {
	if f.given(cmd) {
		return readPassword(f.file)
	}
	return askPassword(cmd.Context(), prompt)
}

// choose returns the password of a new key, which on the terminal is typed twice.
func (f *passwordFlags) choose(cmd *cobra.Command) ([]byte, error) {
	password, err := f.read(cmd, "New password: ")
	if err != nil {
		return nil, err
	}
	if len(password) == 0 {
		return nil, errors.New("the password is empty; if that is meant, give --no-password")
	}
	if f.given(cmd) {
		return password, nil
	}
	again, err := askPassword(cmd.Context(), "Again: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(password, again) {
		return nil, errors.New("the two passwords are not the same")
	}
	return password, nil
}

// maxPasswordFile is how much of a file is looked at for its first line, in bytes.
const maxPasswordFile = 4096

func readPassword(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPasswordFile))
	if err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r")), nil
}

// askPassword asks on the terminal, which does not show what is typed.
func askPassword(ctx context.Context, prompt string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.New("there is no terminal to ask for the password on: give --password-file")
	}
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	fmt.Fprint(tty, prompt)
	type answer struct {
		password []byte
		err      error
	}
	typed := make(chan answer, 1)
	go func() {
		defer tty.Close()
		password, err := term.ReadPassword(fd)
		fmt.Fprintln(tty)
		typed <- answer{password, err}
	}()
	select {
	case a := <-typed:
		if a.err != nil {
			return nil, fmt.Errorf("password: %w", a.err)
		}
		return a.password, nil
	case <-ctx.Done():
		// Nothing ends the read but the program, which must not leave a
		// terminal that shows nothing.
		fmt.Fprintln(tty)
		return nil, errors.Join(ctx.Err(), term.Restore(fd, before))
	}
}
