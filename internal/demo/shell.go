package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	marker         = "OVERMOUNT_DEMO"
	commandTimeout = 5 * time.Minute
	outputGrace    = 5 * time.Second // for a command's output after its end
	endTimeout     = 10 * time.Second
)

// A shell runs commands in a directory of its own and shows them. Every process
// that comes of them has the directory's name in its environment, so that none
// can get lost.
type shell struct {
	out io.Writer
	dir string
	env []string
}

// newShell returns a shell that finds programs in bin, where the caller's PATH
// leads, and where distributions keep programs for root.
func newShell(out io.Writer, bin string) (*shell, error) {
	dir, err := os.MkdirTemp("", "overmount-demo-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // as mountinfo has it
		return nil, err
	}
	path := "PATH=" + bin + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"
	if err := os.Setenv("PATH", path[len("PATH="):]); err != nil { // where exec looks
		return nil, err
	}
	return &shell{out: out, dir: dir, env: append(os.Environ(), "LC_ALL=C", marker+"="+dir)}, nil
}

func (s *shell) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// run shows a command, runs it, shows the first lines of what it prints, and
// returns all of it. Interrupted, the command is asked to end.
func (s *shell) run(ctx context.Context, lines int, name string, args ...string) (string, error) {
	s.say("$ %s", quote(append([]string{name}, args...)))
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	// Ctrl-C on the terminal is for the demo alone, which then ends the command.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = outputGrace
	var printed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &printed, &printed
	err := cmd.Run()
	s.print(printed.String(), lines)
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		return "", fmt.Errorf("%s: a process that it left behind keeps its output open", name)
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s: %w", name, context.Cause(ctx))
	case err != nil:
		return "", fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return printed.String(), nil
}

// print shows the first lines of a command's output.
func (s *shell) print(printed string, lines int) {
	all := strings.SplitAfter(printed, "\n")
	if last := len(all) - 1; all[last] == "" {
		all = all[:last]
	}
	for _, line := range all[:min(lines, len(all))] {
		s.say("  %s", strings.TrimRight(line, "\r\n"))
	}
	if more := len(all) - lines; more > 0 {
		s.say("  … and %d more lines", more)
	}
}

// processes returns the running processes that came of the shell's commands.
func (s *shell) processes() []int {
	var pids []int
	environs, _ := filepath.Glob("/proc/[0-9]*/environ") // fails only for a bad pattern
	for _, name := range environs {
		// A process may end meanwhile, or be another user's, and so not ours.
		environ, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(append(environ, 0), []byte(marker+"="+s.dir+"\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// endProcesses waits until the processes of the shell have ended, or ends them,
// which is an error.
func (s *shell) endProcesses() error {
	if s.await(func() bool { return len(s.processes()) == 0 }) {
		return nil
	}
	left := s.processes()
	for _, pid := range left {
		_ = syscall.Kill(pid, syscall.SIGKILL) // or it has ended at last
	}
	return fmt.Errorf("processes %v did not end and were killed", left)
}

// await waits for something that no event announces.
func (s *shell) await(done func() bool) bool {
	for deadline := time.Now().Add(endTimeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if done() {
			return true
		}
	}
	return done()
}

// quote writes a command as one types it.
func quote(args []string) string {
	words := make([]string, len(args))
	for i, arg := range args {
		words[i] = arg
		if strings.ContainsAny(arg, " '\"$%;*") {
			words[i] = `"` + arg + `"`
		}
	}
	return strings.Join(words, " ")
}
