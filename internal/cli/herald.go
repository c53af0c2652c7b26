package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"overmount/internal/atomicfile"
	"overmount/internal/notify"
)

// A herald says when a mount is there, and when it goes: to the caller who waits,
// to the service manager, and with a file to everybody.
type herald struct {
	caller  func() error // nil: nobody waits
	manager notify.Manager
	file    string // empty: none
	told    bool
}

func (h *herald) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&h.file, "ready-file", "", "`file` that is there while the mount is, with the number of the process")
}

// begin takes away the file that a program before this one has left.
func (h *herald) begin() error {
	if h.file == "" {
		return nil
	}
	abs, err := filepath.Abs(h.file) // a daemon changes its directory
	if err != nil {
		return err
	}
	h.file = abs
	if err := os.Remove(h.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take away the old ready file: %w", err)
	}
	return os.MkdirAll(filepath.Dir(h.file), 0o755)
}

// ready says that the mount is there. That the service manager does not listen
// is no reason to take it away again.
func (h *herald) ready(status string, log *slog.Logger) error {
	h.told = true
	if h.file != "" {
		if err := atomicfile.Write(h.file, fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
			return fmt.Errorf("write the ready file: %w", err)
		}
	}
	if err := h.manager.Ready(status); err != nil {
		log.Warn("cannot say that the mount is ready", "err", err)
	}
	if h.caller == nil {
		return nil
	}
	return h.caller()
}

// end says that the mount goes, once.
func (h *herald) end(log *slog.Logger) {
	if !h.told {
		return
	}
	h.told = false
	if h.file != "" {
		if err := os.Remove(h.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("cannot take away the ready file", "err", err)
		}
	}
	if err := h.manager.Stopping(); err != nil {
		log.Warn("cannot say that the mount ends", "err", err)
	}
}
