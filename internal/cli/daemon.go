package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A program in Go cannot fork, so "mount -d" starts itself once more with the
// same arguments, and readyFD in the environment: the number of a pipe, on which
// the child says that the mount is there. Until then the child talks on its
// parent's stderr; what it says there is what the caller sees.
//
// All users can read the arguments of a process for as long as it lives. So they
// have FILE without what may be secret in a URL, and the child gets the whole of
// it on its stdin.
const (
	readyFD   = "OVERMOUNT_READY_FD"
	readyWord = "ready"
)

// daemonPipe returns the pipe to the parent, nil in the parent.
func (a *app) daemonPipe() (*os.File, error) {
	text := a.Getenv(readyFD)
	if text == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("%s=%q is not a file descriptor", readyFD, text)
	}
	return os.NewFile(uintptr(fd), "readiness pipe"), nil
}

// toldFile returns the FILE that the parent has been given.
func toldFile() (string, error) {
	file, err := io.ReadAll(os.Stdin)
	if err != nil {
		return "", fmt.Errorf("the daemon is not told what to mount: %w", err)
	}
	return string(file), nil
}

// startDaemon starts the child as argv0 to mount FILE, and waits until it is ready
// or has failed.
func (a *app) startDaemon(ctx context.Context, argv0, file string) error {
	child, err := launch(ctx, argv0, a.Args, file, a.Stderr)
	if err != nil {
		return err
	}
	return child.Process.Release()
}

// launch starts this program once more as argv0, with the arguments of a "mount -d"
// of FILE, and returns it when its mount is ready.
func launch(ctx context.Context, argv0 string, args []string, file string, stderr io.Writer) (*exec.Cmd, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	child := exec.Command(exe, withoutFile(args, file)...)
	child.Args[0] = argv0
	child.Stdin = strings.NewReader(file)
	child.Env = append(os.Environ(), readyFD+"=3")
	child.Stderr = stderr
	child.ExtraFiles = []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(r).ReadString('\n')
		line <- text
	}()
	select {
	case text := <-line:
		if text == readyWord+"\n" {
			return child, nil
		}
		return nil, daemonFailed(child.Wait())
	case <-ctx.Done():
		err := stopDaemon(child)
		if err == nil && child.ProcessState.ExitCode() == exitInterrupted {
			err = exitError{code: exitInterrupted} // the child has said it
		}
		return nil, errors.Join(ctx.Err(), err)
	}
}

// withoutFile returns the arguments with FILE as everyone may see it.
func withoutFile(args []string, file string) []string {
	public := slices.Clone(args)
	for i, arg := range public {
		public[i] = strings.ReplaceAll(arg, file, shown(file))
	}
	return public
}

// daemonFailed passes on how the child ended. What it had to say, it has said.
func daemonFailed(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exitError{code: exit.ExitCode()}
	}
	if err == nil {
		err = errors.New("it ended too early")
	}
	return fmt.Errorf("the mount daemon failed: %w", err)
}

// stopDaemon ends the child, which unmounts what it has mounted.
func stopDaemon(child *exec.Cmd) error {
	if err := child.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	kill := time.AfterFunc(lastUse+5*time.Second, func() { _ = child.Process.Kill() })
	defer kill.Stop()
	if err := child.Wait(); err != nil && child.ProcessState == nil {
		return err
	}
	return nil
}

// detach tells the parent that the mount is there, and lets go of what keeps a
// terminal or a directory busy.
func (a *app) detach(pipe *os.File) error {
	a.letSpeak()
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if _, err := pipe.WriteString(readyWord + "\n"); err != nil {
		return fmt.Errorf("the caller that waits for the mount has gone: %w", err)
	}
	if err := pipe.Close(); err != nil {
		return err
	}
	return letGo()
}

// letGo has the program talk to nobody any more.
func letGo() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for _, fd := range []int{unix.Stdin, unix.Stdout, unix.Stderr} {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return nil
}
