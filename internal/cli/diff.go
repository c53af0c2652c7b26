package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"overmount/manifest"
)

// A difference is one path at which two trees are not alike.
type difference struct {
	Change string   `json:"change"` // added, removed or changed
	Path   string   `json:"path"`
	What   []string `json:"what,omitempty"` // of changed: what differs
}

func (a *app) diffCommand(t *trust) *cobra.Command {
	var content bool
	cmd := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Print what differs between the trees of two manifests",
		Long: `Diff prints one line for each path: + added, - removed, ~ changed, with what
changed. It fetches nothing: blocks are compared by their keys, so two manifests
of one tree are alike whatever their codec.

` + exitCodes,
		Example: "  overmount flist diff modules-old.fl modules-new.fl",
		Args:    args(2, 2, "OLD and NEW, two manifests"),
		RunE: func(cmd *cobra.Command, args []string) error {
			before, _, err := t.open(cmd.Context(), a, args[0])
			if err != nil {
				return err
			}
			after, _, err := t.open(cmd.Context(), a, args[1])
			if err != nil {
				return err
			}
			return a.diff(before, after, content)
		},
	}
	cmd.Flags().BoolVar(&content, "content", false, "compare only types, content and targets")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) diff(before, after *manifest.Manifest, contentOnly bool) error {
	found := diffTrees(before, after, contentOnly)
	enc := json.NewEncoder(a.Stdout)
	sign := map[string]string{"added": "+", "removed": "-", "changed": "~"}
	for _, d := range found {
		var err error
		switch {
		case a.json:
			err = enc.Encode(d)
		case len(d.What) > 0:
			_, err = fmt.Fprintf(a.Stdout, "%s %s (%s)\n", sign[d.Change], quoted(d.Path), strings.Join(d.What, ", "))
		default:
			_, err = fmt.Fprintf(a.Stdout, "%s %s\n", sign[d.Change], quoted(d.Path))
		}
		if err != nil {
			return err
		}
	}
	if len(found) > 0 {
		return exitError{code: exitFindings}
	}
	return nil
}

func diffTrees(before, after *manifest.Manifest, contentOnly bool) []difference {
	var found []difference
	for name, ino := range before.Walk(manifest.Root) {
		other, err := after.Find(name)
		if err != nil {
			found = append(found, difference{Change: "removed", Path: name})
			continue
		}
		if what := diffNodes(before, ino, after, other, contentOnly); len(what) > 0 {
			found = append(found, difference{Change: "changed", Path: name, What: what})
		}
	}
	for name := range after.Walk(manifest.Root) {
		if _, err := before.Find(name); err != nil {
			found = append(found, difference{Change: "added", Path: name})
		}
	}
	slices.SortStableFunc(found, func(x, y difference) int { return cmp.Compare(x.Path, y.Path) })
	return found
}

func diffNodes(before *manifest.Manifest, x manifest.Ino, after *manifest.Manifest, y manifest.Ino, contentOnly bool) []string {
	a, b := before.Attr(x), after.Attr(y)
	var what []string
	note := func(differs bool, word string) {
		if differs {
			what = append(what, word)
		}
	}
	note(a.Type() != b.Type(), "type")
	note(!sameKeys(before, x, after, y), "content")
	note(before.Target(x) != after.Target(y), "target")
	if contentOnly {
		return what
	}
	note(a.Mode&0o7777 != b.Mode&0o7777, "mode")
	note(a.UID != b.UID || a.GID != b.GID, "owner")
	note(a.Mtime != b.Mtime, "time")
	note(a.Rdev != b.Rdev, "device")
	note(!sameXattrs(before.Xattrs(x), after.Xattrs(y)), "extended attributes")
	return what
}

// sameKeys compares content by the hashes of the plain blocks.
func sameKeys(before *manifest.Manifest, x manifest.Ino, after *manifest.Manifest, y manifest.Ino) bool {
	a, b := before.Blocks(x), after.Blocks(y)
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Key != b[i].Key {
			return false
		}
	}
	return true
}

func sameXattrs(a, b []manifest.Xattr) bool {
	return slices.EqualFunc(a, b, func(x, y manifest.Xattr) bool {
		return x.Name == y.Name && string(x.Value) == string(y.Value)
	})
}
