package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"overmount/block"
	"overmount/manifest"
	"overmount/pack"
	"overmount/store"
)

type cloneFlags struct {
	treeFlags
	stores []string
	set    []string
	out    string
}

func (a *app) cloneCommand() *cobra.Command {
	var f cloneFlags
	cmd := &cobra.Command{
		Use:   "clone -m FILE -s STORE... [--set STORE]... [-o OUT.fl]",
		Short: "Copy the objects of a manifest to other stores",
		Long: `Clone copies the objects that FILE names from its stores to each STORE, as they
are: they stay sealed, and keep their names. Each object is compared with its
name on the way. What is there already is not copied again, so that a clone that
was interrupted goes on when it is repeated.

FILE still names the old stores afterwards, unless --set says where readers shall
look instead: then, when all objects have been copied, the stores of FILE are
replaced by these, or, with -o, FILE stays and OUT.fl is written. Passwords in them
are left out. What is changed needs a new signature.

An object that no store of FILE has, or none has right, does not keep clone from
copying the others; then it fails, and changes no manifest.

With --json, the result is an object: manifest (if one was written), objects,
new_objects, new_bytes, seconds.

` + storeHelp + "\n\n" + exitCodes,
		Example: `  overmount clone -m modules.fl -s dir:///srv/mirror
  overmount clone -m https://web.example.com/modules.fl -s dir:///srv/objects --set https://mirror.example.com/objects -o modules.fl`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.clone(cmd, &f) },
	}
	f.add(cmd, "`directory` for a cache of objects, to read from (default none)", "")
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.stores, "store", "s", nil, "`STORE` to copy to, can be repeated (required)")
	flags.StringArrayVar(&f.set, "set", nil, "`STORE` for the manifest to name in place of the old ones, can be repeated")
	flags.StringVarP(&f.out, "output", "o", "", "with --set: write the manifest to this `FILE`")
	a.jsonFlag(cmd)
	return cmd
}

func (f *cloneFlags) check(cmd *cobra.Command) error {
	switch {
	case needMeta(cmd, f.meta) != nil:
		return needMeta(cmd, f.meta)
	case len(f.stores) == 0:
		return usagef(cmd, "missing flag: -s STORE, where the objects go")
	case f.out != "" && len(f.set) == 0:
		return usagef(cmd, "-o is for --set")
	case isURL(f.out):
		return usagef(cmd, "-o %s: the manifest is written to a file, not to a URL", shown(f.out))
	case f.out == "" && len(f.set) > 0 && isURL(f.meta):
		return usagef(cmd, "--set cannot change a manifest at a URL: say with -o where to write it")
	}
	return nil
}

func (a *app) clone(cmd *cobra.Command, f *cloneFlags) error {
	ctx := cmd.Context()
	if err := f.check(cmd); err != nil {
		return err
	}
	routes, err := givenRoutes(f.set, false)
	if err == nil && len(routes) > 0 {
		err = covered(routes)
	}
	if err != nil {
		return err
	}
	log, err := a.logger(cmd, a.Stderr)
	if err != nil {
		return err
	}
	// OUT.fl is made of the very bytes that name what is copied.
	source, err := f.trust.openFile(ctx, a, f.meta)
	if err != nil {
		return err
	}
	defer source.Close()
	m := source.Manifest
	to, _, err := a.writeStores(ctx, f.stores, false)
	if err != nil {
		return err
	}
	from, err := f.openContent(a, m, log)
	if err != nil {
		return err
	}
	defer from.close()
	start := time.Now()
	bar := a.progress("copying")
	sum, err := pack.Copy(ctx, m, from.src, target{to}, &pack.CopyOptions{
		Progress: func(s pack.CopySummary) { bar.count(int(s.Done), int(s.Objects)) },
	})
	bar.finish()
	if err != nil {
		return fmt.Errorf("clone %s: %w", shown(f.meta), err)
	}
	written, err := f.writeRoutes(ctx, source.Path, routes)
	if err != nil {
		return err
	}
	return a.cloned(written, sum, time.Since(start))
}

// writeRoutes writes the manifest with its new routes, if there are some, and
// returns where.
func (f *cloneFlags) writeRoutes(ctx context.Context, path string, routes []manifest.Route) (string, error) {
	if len(routes) == 0 {
		return "", nil
	}
	replace := func(e *manifest.Editor) error { return e.SetRoutes(routes) }
	if f.out == "" {
		return f.meta, editManifest(ctx, f.meta, replace)
	}
	return f.out, editManifestCopy(ctx, path, f.out, replace)
}

func (a *app) cloned(written string, s pack.CopySummary, took time.Duration) error {
	if a.json {
		result := map[string]any{
			"objects": s.Objects, "new_objects": s.NewObjects, "new_bytes": s.NewBytes, "seconds": took.Seconds(),
		}
		if written != "" {
			result["manifest"] = written
		}
		return json.NewEncoder(a.Stdout).Encode(result)
	}
	fmt.Fprintf(a.Stdout, "cloned   %d objects: %d new, %s; %d known\n", s.Objects, s.NewObjects, humanBytes(s.NewBytes), s.Objects-s.NewObjects)
	if written != "" {
		fmt.Fprintf(a.Stdout, "manifest %s\n", written)
	}
	return nil
}

// A target is stores to copy to, which can tell what they have.
type target struct{ store.Routes }

// Has reports whether every store that covers the ID has the object. What a
// directory has is read, and compared with its ID: that costs less than to fetch
// it, and a power cut may have left half of it there.
func (t target) Has(ctx context.Context, id block.ID) (bool, error) {
	for _, r := range t.Routes {
		if id[0] < r.First || r.Last < id[0] {
			continue
		}
		has, err := holds(ctx, r.Writer, id)
		if !has || err != nil {
			return false, err
		}
	}
	return true, nil
}

func holds(ctx context.Context, w store.Writer, id block.ID) (bool, error) {
	if dir, ok := w.(*store.Dir); ok {
		_, err := store.Checked(dir).Get(ctx, id)
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, block.ErrCorrupt) {
			return false, nil
		}
		return err == nil, err
	}
	if p, ok := w.(store.Prober); ok {
		return p.Has(ctx, id)
	}
	return false, nil
}
