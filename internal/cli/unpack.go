package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"overmount/pack"
)

func (a *app) unpackCommand() *cobra.Command {
	var (
		f      treeFlags
		owners bool
	)
	cmd := &cobra.Command{
		Use:   "unpack -m FILE TARGET",
		Short: "Write the tree of a manifest to a directory",
		Long: `Unpack fetches all content and writes the tree to the directory TARGET, which is
made if it is not there: modes, times, symlinks, hard links, and, as root,
devices. Nothing that exists is overwritten.

` + exitCodes,
		Example: `  overmount unpack -m modules.fl /tmp/modules
  overmount unpack -p -m https://example.com/firmware.fl /tmp/firmware`,
		Args: args(1, 1, "TARGET, the directory to write to"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.unpack(cmd, &f, owners, args[0]) },
	}
	f.add(cmd, "`directory` for a cache of objects (default none)", "")
	cmd.Flags().BoolVarP(&owners, "preserve-ownership", "p", false, "give files the owners of the manifest, and all extended attributes (needs root)")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) unpack(cmd *cobra.Command, f *treeFlags, owners bool, target string) (err error) {
	if err := needMeta(cmd, f.meta); err != nil {
		return err
	}
	if owners && os.Geteuid() != 0 {
		return fmt.Errorf("unpack: only root can preserve ownership; leave out -p, or run as root")
	}
	log, err := a.logger(cmd, a.Stderr)
	if err != nil {
		return err
	}
	o, err := f.open(cmd.Context(), a, log)
	if err != nil {
		return err
	}
	defer o.close()
	start := time.Now()
	bar := a.progress("unpacking")
	sum, skipped, err := pack.Unpack(cmd.Context(), o.tree, target, &pack.UnpackOptions{Owners: owners, Progress: bar.update})
	bar.finish()
	if err != nil {
		return err
	}
	if err := a.unpacked(target, sum, skipped, time.Since(start)); err != nil {
		return err
	}
	if skipped > 0 {
		return exitError{exitPartly, fmt.Errorf("unpack: %d devices or extended attributes were left out, which only root with -p can make", skipped)}
	}
	return nil
}

func (a *app) unpacked(target string, s pack.Summary, skipped int64, took time.Duration) error {
	if a.json {
		return json.NewEncoder(a.Stdout).Encode(map[string]any{
			"target": target, "files": s.Files, "others": s.Others, "bytes": s.Bytes,
			"skipped": skipped, "seconds": took.Seconds(),
		})
	}
	_, err := fmt.Fprintf(a.Stdout, "unpacked %s to %s in %.2f s\n", countTree(s), target, took.Seconds())
	return err
}
