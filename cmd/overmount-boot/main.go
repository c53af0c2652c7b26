// Command overmount-boot is overmount with what a machine needs that boots, and no
// more: it is what images carry. "overmount-boot --help" lists its verbs.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"overmount/internal/cli"
)

// version is set by the linker.
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	code := cli.RunBoot(ctx, cli.Env{
		Args:   os.Args[1:],
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		Getenv: os.Getenv,

		Version: version,
	})
	stop()
	os.Exit(code)
}
