// Package cli is the command line: one file for each verb, and what they share.
// It is the only package that knows which store a URL scheme stands for.
//
// Of the verbs below flist, diff and edit-store have their own files, the others are
// in flist.go. Long verbs go on beside their file: boot in bootmachine.go,
// bootdevices.go, earlypack.go, drivercosts.go and rebind.go, publish in
// publishroutes.go, publishobjects.go and publishfiles.go, verify in verifymount.go
// and firmwareindex.go, pack in packages.go, lock.go and formodules.go. What verbs
// share:
//
//	programs.go       which verbs and stores each of the two programs has
//	open.go           FILE, a path or a URL, and its content; trust.go: its signature
//	compressed.go     changing a manifest, with the copy beside it
//	stores.go         STORE; routes.go: what manifests are made to say of stores
//	modulesource.go   a manifest or a directory, as kernel modules
//	warm.go           what a mount fetches ahead; layers.go: what is below and above it
//	daemon.go         going to the background; herald.go: saying that it is done
//	initrd.go         outliving an initramfs; nameservers.go: with its name servers
//
// Results go to stdout, talk and progress to stderr. With --json, results are
// JSON objects, one a line.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"overmount/internal/linequeue"
)

// Exit codes.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartly      = 3
	exitFindings    = 4
	exitInterrupted = 130
)

const exitCodes = `Exit codes:
  0    done
  1    failed
  2    wrong use
  3    partly done, as the message says
  4    findings (diff, publish, verify)
  130  interrupted
`

// Env is what a command has of its surroundings.
type Env struct {
	Args    []string
	Stdout  io.Writer
	Stderr  io.Writer
	Getenv  func(string) string
	Version string // of the program; empty if the linker was not told
}

// app is one run of the program.
type app struct {
	Env
	debug    int
	logLevel string
	json     bool
	stores   storeFlags
	readers  map[string]opener  // by scheme
	forBoot  bool               // it is the program for machines that boot
	queues   []*linequeue.Queue // before those who read what it says
}

// run runs the command that the arguments say, and returns the exit code.
func (a *app) run(ctx context.Context, root *cobra.Command) int {
	root.SetArgs(a.Args)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	defer a.letSpeak()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	if code, ok := errors.AsType[exitError](err); ok {
		if code.err != nil {
			fmt.Fprintf(a.Stderr, "overmount: %v\n", code.err)
		}
		return code.code
	}
	if ctx.Err() != nil {
		fmt.Fprintln(a.Stderr, "overmount: interrupted")
		return exitInterrupted
	}
	fmt.Fprintf(a.Stderr, "overmount: %v\n", err)
	return exitFailed
}

// An exitError ends the program with a code of its own. Without err, all has
// been said.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// usagef is an error of wrong use.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return exitError{exitUsage, fmt.Errorf("%w\nSee %q", err, cmd.CommandPath()+" --help")}
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "overmount",
		Short: "Ship kernel modules and firmware to machines that boot from the network",
		Long: `Overmount packs file trees, above all /lib/modules/<kver> and /lib/firmware, into
flists: small manifests whose content is kept as encrypted objects in a store.
It mounts them read-only, and fetches each file's content when it is read.
The format is that of threefoldtech/rfs.

` + exitCodes,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	flags := root.PersistentFlags()
	flags.CountVar(&a.debug, "debug", "say more on stderr (as --log-level debug)")
	flags.StringVar(&a.logLevel, "log-level", "info", "least `level` of messages on stderr: debug, info, warn, error")
	a.stores.add(root)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usagef(cmd, "%w", err) })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetHelpCommand(helpCommand())
	return root
}

// helpCommand is "help VERB", which fails for a verb that does not exist.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [VERB]...", Short: "Help about a verb", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownVerb(about, rest[len(rest)-1])
			}
			return about.Help()
		},
	}
}

// group is a command that only holds others.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(below...)
	return cmd
}

// otherVerbs is the annotation of a command with what to say of verbs that are none of
// its own.
const otherVerbs = "other verbs"

func unknownVerb(cmd *cobra.Command, verb string) error {
	hint := cmd.Annotations[otherVerbs]
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(verb); len(s) > 0 && hint == "" {
		hint = fmt.Sprintf(", did you mean %s?", strings.Join(s, " or "))
	}
	return usagef(cmd, "unknown command %q for %q%s", verb, cmd.CommandPath(), hint)
}

// args checks the number of arguments; what names them, as in "SOURCE".
func args(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		switch {
		case len(got) < least:
			return usagef(cmd, "missing argument: %s", what)
		case len(got) > most:
			return usagef(cmd, "unexpected argument %q; flags that take a value need = or a space before it", got[most])
		}
		return nil
	}
}

// logger writes lines to w, from the level on that was asked for.
func (a *app) logger(cmd *cobra.Command, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return nil, usagef(cmd, "--log-level %q: want debug, info, warn or error", a.logLevel)
	}
	if a.debug > 0 {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})), nil
}

// warnf prints a warning.
func (a *app) warnf(format string, args ...any) {
	fmt.Fprintf(a.Stderr, "overmount: warning: "+format+"\n", args...)
}

// warn prints warnings.
func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		a.warnf("%s", w)
	}
}

// metaFlag adds the flag that names the manifest, as rfs has it.
func metaFlag(cmd *cobra.Command, to *string, help string) {
	cmd.Flags().StringVarP(to, "meta", "m", "", help+" (required)")
}

func needMeta(cmd *cobra.Command, meta string) error {
	if meta == "" {
		return usagef(cmd, "missing flag: -m FILE, the manifest")
	}
	return nil
}

func (a *app) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON, one object a line")
}
