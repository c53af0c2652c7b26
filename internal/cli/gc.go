package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"overmount/gc"
	"overmount/manifest"
	"overmount/store"
	"overmount/verify"
)

type gcFlags struct {
	store  string
	delete bool
	grace  time.Duration
}

func (a *app) gcCommand() *cobra.Command {
	f := gcFlags{grace: 7 * 24 * time.Hour}
	cmd := &cobra.Command{
		Use:   "gc -s STORE [--delete] MANIFEST...",
		Short: "Find, and delete, what no manifest needs any more",
		Long: `Gc lists the objects of STORE that none of the MANIFESTs names, and with --delete
deletes them. Each MANIFEST is a path or an http(s) URL. Name every manifest
whose objects are in STORE: what only another one needs is lost.

Objects that were written within the grace time are kept, because packing writes
objects first and the manifest last. But an object that is in STORE already keeps
its time when a new tree needs it: let no pack, publish or clone to STORE run
beside gc --delete.

Gc does nothing if a MANIFEST cannot be read, or if none names any object that
is in STORE. It can be interrupted anywhere, and repeated.

With --json, each object is one line: object, bytes, modified; and the last line
has the totals: store, objects, bytes, named_objects, named_bytes,
young_objects, young_bytes, garbage_objects, garbage_bytes, deleted_objects,
deleted_bytes.

` + exitCodes,
		Example: `  overmount gc -s dir:///srv/objects /srv/flists/*.fl
  overmount gc -s dir:///srv/objects --delete --grace 48h /srv/flists/*.fl https://web.example.com/modules.fl`,
		Args: func(cmd *cobra.Command, got []string) error {
			if len(got) == 0 {
				return usagef(cmd, "missing argument: MANIFEST, each one whose objects shall stay")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.gc(cmd, &f, args) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.store, "store", "s", "", "`STORE` to look at, a URL (required)")
	flags.BoolVar(&f.delete, "delete", false, "delete what is listed")
	flags.DurationVar(&f.grace, "grace", f.grace, "keep objects that are younger, by the store's clock")
	a.jsonFlag(cmd)
	return cmd
}

// A collectable is a store that gc can work on.
type collectable interface {
	store.Lister
	store.Deleter
}

func (a *app) gc(cmd *cobra.Command, f *gcFlags, files []string) error {
	ctx := cmd.Context()
	switch {
	case f.store == "":
		return usagef(cmd, "missing flag: -s STORE")
	case f.grace < 0:
		return usagef(cmd, "--grace %v is negative", f.grace)
	}
	s, u, err := a.openCollectable(ctx, f.store)
	if err != nil {
		return err
	}
	name := verify.StoreName(u.String())
	var keep []*manifest.Manifest
	for _, file := range files {
		m, err := a.openManifest(ctx, file)
		if err != nil {
			return fmt.Errorf("gc: nothing was deleted: %w", err)
		}
		keep = append(keep, m)
	}
	r, err := gc.Find(ctx, s, keep, time.Now().Add(-f.grace))
	if errors.Is(err, gc.ErrStrangers) {
		return fmt.Errorf("gc %s: nothing was deleted: %d objects: %w", name, r.Objects, err)
	}
	if err != nil {
		return fmt.Errorf("gc %s: nothing was deleted: %w", name, err)
	}
	if err := a.printGarbage(r.Garbage); err != nil {
		return err
	}
	var deleted int
	var bytes int64
	var failed error
	if f.delete {
		a.forgetPublished(u)
		deleted, bytes, failed = a.deleteGarbage(ctx, s, r)
	}
	if err := a.collected(f, name, r, deleted, bytes); err != nil {
		return err
	}
	return gcFailed(ctx, name, failed, deleted, len(r.Garbage))
}

// openCollectable opens a store by its URL.
func (a *app) openCollectable(ctx context.Context, text string) (collectable, *url.URL, error) {
	spec, err := parseSpec(text)
	if err != nil {
		return nil, nil, err
	}
	if spec.First != 0x00 || spec.Last != 0xff {
		return nil, nil, fmt.Errorf("store %s: gc looks at a whole store: give its URL without a range", verify.StoreName(spec.URL.String()))
	}
	w, err := a.openWriter(ctx, spec.URL)
	if err != nil {
		return nil, nil, err
	}
	s, ok := w.(collectable)
	if !ok {
		return nil, nil, fmt.Errorf("store %s: one of this kind cannot list and delete its objects", verify.StoreName(spec.URL.String()))
	}
	return s, spec.URL, nil
}

func (a *app) printGarbage(garbage []gc.Object) error {
	enc := json.NewEncoder(a.Stdout)
	for _, obj := range garbage {
		var err error
		if a.json {
			err = enc.Encode(map[string]any{"object": obj.ID.String(), "bytes": obj.Size, "modified": obj.Modified.UTC().Format(time.RFC3339)})
		} else {
			_, err = fmt.Fprintf(a.Stdout, "%v %7d %s\n", obj.ID, obj.Size, obj.Modified.UTC().Format(time.DateTime))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *app) deleteGarbage(ctx context.Context, s store.Deleter, r *gc.Report) (int, int64, error) {
	bar := a.progress("deleting")
	defer bar.finish()
	done := 0
	return gc.Delete(ctx, s, r.Garbage, &gc.DeleteOptions{Deleted: func(gc.Object) {
		done++
		bar.count(done, len(r.Garbage))
	}})
}

// collected prints the totals.
func (a *app) collected(f *gcFlags, name string, r *gc.Report, deleted int, bytes int64) error {
	if a.json {
		return json.NewEncoder(a.Stdout).Encode(map[string]any{
			"store": name, "objects": r.Objects, "bytes": r.Bytes,
			"named_objects": r.NamedObjects, "named_bytes": r.NamedBytes,
			"young_objects": r.YoungObjects, "young_bytes": r.YoungBytes,
			"garbage_objects": len(r.Garbage), "garbage_bytes": r.GarbageBytes,
			"deleted_objects": deleted, "deleted_bytes": bytes,
		})
	}
	fmt.Fprintf(a.Stdout, "store    %s: %d objects, %s\n", name, r.Objects, humanBytes(r.Bytes))
	fmt.Fprintf(a.Stdout, "named    %d objects, %s\n", r.NamedObjects, humanBytes(r.NamedBytes))
	fmt.Fprintf(a.Stdout, "young    %d objects, %s, not named, but written within %v\n", r.YoungObjects, humanBytes(r.YoungBytes), f.grace)
	fmt.Fprintf(a.Stdout, "garbage  %d objects, %s\n", len(r.Garbage), humanBytes(r.GarbageBytes))
	switch {
	case f.delete:
		fmt.Fprintf(a.Stdout, "deleted  %d objects, %s\n", deleted, humanBytes(bytes))
	case len(r.Garbage) > 0:
		fmt.Fprintln(a.Stdout, "Nothing was deleted; --delete does it.")
	}
	return nil
}

// gcFailed is the error of a deletion that did not come to its end.
func gcFailed(ctx context.Context, name string, err error, deleted, all int) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	err = fmt.Errorf("gc %s: %d of %d objects are deleted: %w", name, deleted, all, err)
	if deleted > 0 {
		return exitError{exitPartly, err}
	}
	return err
}
