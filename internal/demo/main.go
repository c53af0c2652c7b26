// Demo shows Overmount at work on a real kernel's modules.
//
//	demo PROGRAM DIR/lib/modules/KVER
//
// PROGRAM is the overmount to show. Demo packs the modules with it, serves the
// store with a file server of its own, mounts the manifest over HTTP with an
// empty cache, lets the real depmod, modprobe and modinfo use the mount,
// compares files with what was packed, and says how much of the store crossed
// the wire. The commands that it runs are printed as a person would type them.
//
// It fails when something is not as it should be, and leaves no mount, no
// process and no file behind, also when it is interrupted.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demo PROGRAM DIR/lib/modules/KVER")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		if ctx.Err() != nil {
			os.Exit(130)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, program, source string, out io.Writer) (err error) {
	program, err = filepath.Abs(program)
	if err != nil {
		return err
	}
	if source, err = filepath.Abs(source); err != nil {
		return err
	}
	tree, err := survey(source)
	if err != nil {
		return fmt.Errorf("look at the modules: %w", err)
	}
	sh, err := newShell(out, filepath.Dir(program))
	if err != nil {
		return err
	}
	d := &demo{shell: sh, tree: tree, target: filepath.Join("root/lib/modules", tree.kver)}
	defer func() {
		err = errors.Join(err, d.cleanUp(context.WithoutCancel(ctx)))
	}()
	return d.show(ctx)
}
