package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"overmount/fusefs"
	"overmount/internal/overlay"
	"overmount/prefetch"
	"overmount/tree"
)

// layerFlags say what lies over a mounted manifest, and below it.
type layerFlags struct {
	writable  bool
	upperSize size
	keepLower bool
	runDir    string
}

func (f *layerFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.writable, "writable", false, "take changes, which are kept in memory and lost with the mount")
	f.upperSize = -1
	flags.Var(&f.upperSize, "upper-size", "most that changes may take of the memory (default half of it)")
	flags.BoolVar(&f.keepLower, "keep-lower", false, "what was in TARGET before stays visible below the manifest's files")
	flags.StringVar(&f.runDir, "run-dir", overlay.RunDir, "`directory` for what --writable and --keep-lower mount on the way")
}

func (f *layerFlags) check(cmd *cobra.Command) error {
	switch {
	case f.upperSize >= 0 && !f.writable:
		return usagef(cmd, "--upper-size needs --writable")
	case f.upperSize == 0:
		return usagef(cmd, "--upper-size 0: nothing fits in there")
	}
	return nil
}

// A liveMount is a mount that this program serves.
type liveMount interface {
	// Unmount and UnmountLazy are as those of fusefs.Server.
	Unmount() error
	UnmountLazy() error
	// Done is closed when nobody can use the mount any more.
	Done() <-chan struct{}
}

var _ liveMount = (*fusefs.Server)(nil)

// mountOver mounts a tree at target, with the layers that the flags say. What is
// read of it, w is told; what is to be read, the page cache can be given.
func (f *mountFlags) mountOver(ctx context.Context, target string, t *tree.Tree, w fusefs.Watcher, log *slog.Logger) (liveMount, prefetch.PageCache, error) {
	opts := &fusefs.Options{FSName: f.fsname, Subtype: f.subtype, ReadTimeout: f.timeout, Watcher: w, Logger: log}
	if !f.layers.writable && !f.layers.keepLower {
		s, err := fusefs.Mount(ctx, target, t, opts)
		if err != nil {
			return nil, nil, err
		}
		return s, s, nil
	}
	dir, err := fusefs.CheckDir(ctx, target)
	if err != nil {
		return nil, nil, fmt.Errorf("mount at %s: %w", target, err)
	}
	stage, err := overlay.Prepare(dir, &overlay.Options{
		Writable: f.layers.writable, UpperSize: int64(f.layers.upperSize), KeepLower: f.layers.keepLower,
		Name: f.fsname, RunDir: f.layers.runDir,
	})
	if err != nil {
		return nil, nil, err
	}
	s, err := fusefs.Mount(ctx, stage.Lower(), t, opts)
	if err != nil {
		return nil, nil, errors.Join(err, stage.Abort())
	}
	o, err := stage.Mount()
	if err != nil {
		<-s.Done() // it went with the stage
		return nil, nil, err
	}
	return &layered{s, o}, s, nil
}

// layered is an overlay, and below it a tree that is served for as long as the
// overlay is there.
type layered struct {
	lower *fusefs.Server
	*overlay.Overlay
}

func (l *layered) Done() <-chan struct{} { return l.lower.Done() }
func (l *layered) Unmount() error        { return l.unmount(false) }
func (l *layered) UnmountLazy() error    { return l.unmount(true) }

func (l *layered) unmount(lazy bool) error {
	select {
	case <-l.Done():
		return nil
	default:
	}
	err := l.Overlay.Unmount(lazy)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", fusefs.ErrBusy, err)
	}
	return err
}
