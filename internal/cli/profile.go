package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"overmount/block"
	"overmount/bootpack"
	"overmount/internal/atomicfile"
	"overmount/manifest"
	"overmount/store"
	"overmount/tree"
)

type profileFlags struct {
	treeFlags
	records []string
	class   string
	out     string
	to      string
}

func (a *app) profileCommand() *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use:   "profile -m FILE -r RECORD... [-o OUT] [--to STORE]",
		Short: "Make a boot pack of what machines read",
		Long: `Profile puts all that was read according to the RECORDs, which "overmount mount
--record" wrote, into one file: a boot pack. A machine that mounts FILE with
--pack gets it with one request, before it asks for anything.

Only who has the manifest can read a pack, and what is in it is checked against
the manifest. One that is old or broken can only make things slower.

Where several records are given, what the first has comes first. The pack belongs
beside the manifest, under the name that it gets without -o: manifest, kernel
version, class of hardware and .pack. --to puts it there, as "overmount publish"
does with the manifest: STORE is its --manifest-to, dir or s3, and FILE best the
URL where machines find it. The class is that of the first record, or what --class
says: "any" is for all machines that find no pack of their own.

With --json, one object: file (or its name in STORE), class, members, plain, bytes,
unknown, left.

` + exitCodes,
		Example: `  overmount mount -m modules.fl --record boot.record /lib/modules/6.1.0-56-amd64
  overmount profile -m modules.fl -r boot.record
  overmount profile -m https://flists.example.com/modules.fl -r one.record -r two.record --class any --to s3://garage.example.com:3900/flists`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needMeta(cmd, f.meta); err != nil {
				return err
			}
			if len(f.records) == 0 {
				return usagef(cmd, "missing flag: -r RECORD, as mount --record writes it")
			}
			if f.class != "" && !bootpack.IsClass(f.class) {
				return usagef(cmd, "--class %q: want %s, or what a record has", f.class, bootpack.AnyClass)
			}
			return a.profile(cmd, &f)
		},
	}
	f.add(cmd, "`directory` for a cache of objects (default none)", "")
	cmd.Flags().StringArrayVarP(&f.records, "record", "r", nil, "a `RECORD` of mount --record, can be repeated (required)")
	cmd.Flags().StringVar(&f.class, "class", "", "`CLASS` of the hardware that the pack is for, or any (default: that of the first record)")
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "the pack's `FILE` (default: named for the manifest, its kernel and the class; none with --to)")
	cmd.Flags().StringVar(&f.to, "to", "", "`STORE` to put the pack into, beside the manifest, dir or s3")
	a.jsonFlag(cmd)
	return cmd
}

// maxRecord is the length of the longest record that is read, in bytes.
const maxRecord = 64 << 20

func (a *app) profile(cmd *cobra.Command, f *profileFlags) error {
	ctx := cmd.Context()
	all, class, err := a.readRecords(ctx, f)
	if err != nil {
		return err
	}
	log, err := a.logger(cmd, a.Stderr)
	if err != nil {
		return err
	}
	o, err := f.open(ctx, a, log)
	if err != nil {
		return err
	}
	defer o.close()
	m := o.tree.Manifest()
	var pack bytes.Buffer
	s, err := bootpack.Write(ctx, &pack, m, all, blockReader(o.tree))
	if err != nil {
		return fmt.Errorf("make a boot pack of %s: %w", shown(f.meta), err)
	}
	name := bootpack.Name(baseName(f.meta), m.Tag("kver"), class)
	if f.to != "" {
		if err := a.putFile(ctx, f.to, name, pack.Bytes()); err != nil {
			return fmt.Errorf("publish the boot pack: %w", err)
		}
	}
	out := name
	if f.out != "" {
		out = f.out
	}
	if f.out != "" || f.to == "" {
		if err := atomicfile.Write(out, pack.Bytes(), 0o644); err != nil {
			return fmt.Errorf("write the boot pack: %w", err)
		}
	}
	return a.profiled(out, class, s)
}

// readRecords reads the records, and says which class of hardware a pack of them is
// for.
func (a *app) readRecords(ctx context.Context, f *profileFlags) (all []bootpack.Access, class string, err error) {
	classes := map[string]bool{}
	for _, name := range f.records {
		var text bytes.Buffer
		if err := a.copyTo(ctx, &text, name, maxRecord); err != nil {
			return nil, "", fmt.Errorf("read record %s: %w", shown(name), err)
		}
		accesses, of, err := bootpack.ReadRecord(&text)
		if err != nil {
			return nil, "", fmt.Errorf("read record %s: %w", shown(name), err)
		}
		all = append(all, accesses...)
		classes[of] = true
		if class == "" {
			class = of
		}
	}
	if f.class != "" {
		return all, f.class, nil
	}
	if len(classes) > 1 {
		a.warnf("the records are of %d classes of hardware, and the pack is named for the first: --class any is for all", len(classes))
	}
	return all, class, nil
}

// putFile puts a file into a store that can have some.
func (a *app) putFile(ctx context.Context, to, name string, data []byte) error {
	spec, err := parseSpec(to)
	if err != nil {
		return err
	}
	w, err := a.openWriter(ctx, spec.URL)
	if err != nil {
		return err
	}
	files, ok := w.(store.FileStore)
	if !ok {
		return fmt.Errorf("the store %s takes objects only: want dir or s3", redacted(spec.URL))
	}
	return files.PutFile(ctx, name, bytes.NewReader(data), int64(len(data)), nil)
}

// profiled says what was made.
func (a *app) profiled(file, class string, s bootpack.Summary) error {
	if a.json {
		return json.NewEncoder(a.Stdout).Encode(map[string]any{
			"file": file, "class": class, "members": s.Members, "plain": s.Plain, "bytes": s.Size, "unknown": s.Unknown, "left": s.Left,
		})
	}
	fmt.Fprintf(a.Stdout, "%s: %s of %s in %s\n", file, counted(s.Members, "block"), humanBytes(s.Plain), humanBytes(s.Size))
	if s.Unknown > 0 {
		fmt.Fprintf(a.Stderr, "overmount: %s of the records not in the manifest\n", counted(s.Unknown, "block"))
	}
	if s.Left > 0 {
		fmt.Fprintf(a.Stderr, "overmount: %s did not fit: a pack has at most %s\n", counted(s.Left, "block"), humanBytes(bootpack.MaxPlain))
	}
	return nil
}

// blockReader reads a block of a file, whole.
func blockReader(t *tree.Tree) func(context.Context, manifest.Ino, int) ([]byte, error) {
	return func(ctx context.Context, ino manifest.Ino, i int) ([]byte, error) {
		off := int64(i) * block.Size
		plain := make([]byte, min(block.Size, t.Manifest().Attr(ino).Size-off))
		_, err := t.ReadAt(ctx, ino, plain, off)
		return plain, err
	}
}
