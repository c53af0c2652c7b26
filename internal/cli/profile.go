package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"overmount/block"
	"overmount/bootpack"
	"overmount/internal/atomicfile"
	"overmount/manifest"
	"overmount/tree"
)

type profileFlags struct {
	treeFlags
	records []string
	out     string
}

func (a *app) profileCommand() *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use:   "profile -m FILE -r RECORD... [-o OUT]",
		Short: "Make a boot pack of what machines read",
		Long: `Profile puts all that was read according to the RECORDs, which "overmount mount
--record" wrote, into one file: a boot pack. A machine that mounts FILE with
--pack gets it with one request, before it asks for anything.

Only who has the manifest can read a pack, and what is in it is checked against
the manifest. One that is old or broken can only make things slower.

Where several records are given, what the first has comes first. Publish the pack
in the directory of the manifest, under the name that it gets without -o:
manifest, kernel version, class of hardware (from the first record) and .pack.
Under the class "any" it is for all machines that find none of their own.

With --json, one object: file, class, members, plain, bytes, unknown, left.

` + exitCodes,
		Example: `  overmount mount -m modules.fl --record boot.record /lib/modules/6.1.0-56-amd64
  overmount profile -m modules.fl -r boot.record
  overmount profile -m modules.fl -r one.record -r two.record -o modules.fl.6.1.0-56-amd64.any.pack`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needMeta(cmd, f.meta); err != nil {
				return err
			}
			if len(f.records) == 0 {
				return usagef(cmd, "missing flag: -r RECORD, as mount --record writes it")
			}
			return a.profile(cmd, &f)
		},
	}
	f.add(cmd, "`directory` for a cache of objects (default none)", "")
	cmd.Flags().StringArrayVarP(&f.records, "record", "r", nil, "a `RECORD` of mount --record, can be repeated (required)")
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "the pack's `FILE` (default: named for the manifest, its kernel and the hardware)")
	a.jsonFlag(cmd)
	return cmd
}

// maxRecord is the length of the longest record that is read, in bytes.
const maxRecord = 64 << 20

func (a *app) profile(cmd *cobra.Command, f *profileFlags) error {
	ctx := cmd.Context()
	var all []bootpack.Access
	class := ""
	for i, name := range f.records {
		var text bytes.Buffer
		if err := copyTo(ctx, &text, name, maxRecord); err != nil {
			return fmt.Errorf("read record %s: %w", shown(name), err)
		}
		accesses, of, err := bootpack.ReadRecord(&text)
		if err != nil {
			return fmt.Errorf("read record %s: %w", shown(name), err)
		}
		all = append(all, accesses...)
		if i == 0 {
			class = of
		}
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
	out := f.out
	if out == "" {
		out = bootpack.Name(baseName(f.meta), m.Tag("kver"), class)
	}
	var pack bytes.Buffer
	s, err := bootpack.Write(ctx, &pack, m, all, blockReader(o.tree))
	if err != nil {
		return fmt.Errorf("make a boot pack of %s: %w", shown(f.meta), err)
	}
	if err := atomicfile.Write(out, pack.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the boot pack: %w", err)
	}
	if a.json {
		return json.NewEncoder(a.Stdout).Encode(map[string]any{
			"file": out, "class": class, "members": s.Members, "plain": s.Plain, "bytes": s.Size, "unknown": s.Unknown, "left": s.Left,
		})
	}
	fmt.Fprintf(a.Stdout, "%s: %d blocks of %s in %s\n", out, s.Members, humanBytes(s.Plain), humanBytes(s.Size))
	if s.Unknown > 0 {
		fmt.Fprintf(a.Stderr, "overmount: %d blocks of the records are not in the manifest\n", s.Unknown)
	}
	if s.Left > 0 {
		fmt.Fprintf(a.Stderr, "overmount: %d blocks did not fit: a pack has at most %s\n", s.Left, humanBytes(bootpack.MaxPlain))
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

// beside is another file in the directory of FILE, a path or a URL.
func beside(file, name string) string {
	if isURL(file) {
		if u, err := url.Parse(file); err == nil {
			u.Path, u.RawPath = path.Join(path.Dir(u.Path), name), ""
			return u.String()
		}
	}
	return filepath.Join(filepath.Dir(file), name)
}
