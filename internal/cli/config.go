package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"overmount/manifest"
	"overmount/store"
)

// configCommand has the verbs of rfs, whose output scripts may read.
func (a *app) configCommand() *cobra.Command {
	var meta string
	cmd := group("config", "List and change the tags and stores of a manifest",
		group("tag", "Tags: a key and a value", a.tagList(&meta), a.tagAdd(&meta), a.tagDelete(&meta)),
		group("store", "Stores: where the objects are", a.storeList(&meta), a.storeAdd(&meta), a.storeDelete(&meta)))
	cmd.Long = `Config lists and changes what a manifest says beside its tree. Changes are made to
a copy that takes the file's place, all or nothing.

` + exitCodes
	cmd.Example = `  overmount config -m modules.fl store list
  overmount config -m modules.fl store add -s https://web.example.com/bucket
  overmount config -m modules.fl store delete -s dir:///srv/objects
  overmount config -m modules.fl tag add -t version=1.2.3 -t author=me`
	cmd.PersistentFlags().StringVarP(&meta, "meta", "m", "", "manifest `FILE` (required)")
	return cmd
}

// verb is a leaf of config.
func (a *app) verb(meta *string, use, short string, run func(cmd *cobra.Command) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needMeta(cmd, *meta); err != nil {
				return err
			}
			return run(cmd)
		},
	}
}

func (a *app) tagList(meta *string) *cobra.Command {
	cmd := a.verb(meta, "list", "List the tags", func(cmd *cobra.Command) error {
		m, err := a.openManifest(cmd.Context(), *meta)
		if err != nil {
			return err
		}
		if a.json {
			return json.NewEncoder(a.Stdout).Encode(m.Tags())
		}
		if len(m.Tags()) > 0 {
			fmt.Fprintln(a.Stdout, "tags:")
		}
		for _, key := range slices.Sorted(maps.Keys(m.Tags())) {
			fmt.Fprintf(a.Stdout, "\t%s=%s\n", key, m.Tag(key))
		}
		return nil
	})
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) tagAdd(meta *string) *cobra.Command {
	var tags []string
	cmd := a.verb(meta, "add -t KEY=VALUE...", "Add tags, or change their values", func(cmd *cobra.Command) error {
		if len(tags) == 0 {
			return usagef(cmd, "missing flag: -t KEY=VALUE")
		}
		for _, t := range tags {
			if key, _, ok := strings.Cut(t, "="); !ok || key == "" {
				return usagef(cmd, "tag %q: want KEY=VALUE", t)
			} else if key == manifest.TagCodec || key == manifest.TagBlockSize {
				return fmt.Errorf("tag %s says how the objects are made and cannot be changed: pack the tree again", key)
			}
		}
		return editManifest(cmd.Context(), *meta, func(e *manifest.Editor) error {
			for _, t := range tags {
				key, value, _ := strings.Cut(t, "=")
				if err := e.SetTag(key, value); err != nil {
					return err
				}
			}
			return nil
		})
	})
	cmd.Flags().StringArrayVarP(&tags, "tag", "t", nil, "`KEY=VALUE`, can be repeated")
	return cmd
}

func (a *app) tagDelete(meta *string) *cobra.Command {
	var (
		keys []string
		all  bool
	)
	cmd := a.verb(meta, "delete -k KEY... | -a", "Delete tags", func(cmd *cobra.Command) error {
		if all == (len(keys) > 0) {
			return usagef(cmd, "want either -k KEY or -a")
		}
		return editManifest(cmd.Context(), *meta, func(e *manifest.Editor) error {
			if all {
				return e.DeleteTags()
			}
			for _, key := range keys {
				if key == manifest.TagCodec || key == manifest.TagBlockSize {
					return fmt.Errorf("without tag %s the objects cannot be read", key)
				}
				if err := mustHave(e.DeleteTag(key))("tag", key); err != nil {
					return err
				}
			}
			return nil
		})
	})
	cmd.Flags().StringArrayVarP(&keys, "key", "k", nil, "`KEY` of a tag, can be repeated")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "delete all tags but those that reading the objects needs")
	return cmd
}

// mustHave turns "there was none" into an error that names it.
func mustHave(had bool, err error) func(what, name string) error {
	return func(what, name string) error {
		if err == nil && !had {
			return fmt.Errorf("it has no %s %q", what, name)
		}
		return err
	}
}

func (a *app) storeList(meta *string) *cobra.Command {
	cmd := a.verb(meta, "list", "List the stores", func(cmd *cobra.Command) error {
		m, err := a.openManifest(cmd.Context(), *meta)
		if err != nil {
			return err
		}
		if a.json {
			return printRoutesJSON(a, m)
		}
		if len(m.Routes()) > 0 {
			fmt.Fprintln(a.Stdout, "routes:")
		}
		for _, r := range m.Routes() {
			fmt.Fprintf(a.Stdout, "\trange:[%d-%d] store:%s\n", r.First, r.Last, store.Redact(r.URL))
		}
		return nil
	})
	a.jsonFlag(cmd)
	return cmd
}

func printRoutesJSON(a *app, m *manifest.Manifest) error {
	enc := json.NewEncoder(a.Stdout)
	for _, r := range m.Routes() {
		if err := enc.Encode(map[string]any{"first": r.First, "last": r.Last, "url": store.Redact(r.URL)}); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) storeAdd(meta *string) *cobra.Command {
	var (
		specs        []string
		keepPassword bool
	)
	cmd := a.verb(meta, "add -s STORE...", "Add stores behind the others", func(cmd *cobra.Command) error {
		if len(specs) == 0 {
			return usagef(cmd, "missing flag: -s STORE")
		}
		routes, err := givenRoutes(specs, keepPassword)
		if err != nil {
			return err
		}
		if keepPassword {
			a.warnPasswords()
		}
		return editManifest(cmd.Context(), *meta, func(e *manifest.Editor) error {
			for _, r := range routes {
				if err := e.AddRoute(r); err != nil {
					return err
				}
			}
			return nil
		})
	})
	cmd.Flags().StringArrayVarP(&specs, "store", "s", nil, "`STORE` as [xx-yy=]URL, can be repeated")
	cmd.Flags().BoolVar(&keepPassword, "no-strip-password", false, noStripPassword)
	return cmd
}

func (a *app) storeDelete(meta *string) *cobra.Command {
	var (
		urls []string
		all  bool
	)
	cmd := a.verb(meta, "delete -s URL... | -a", "Delete stores, by the text that list shows", func(cmd *cobra.Command) error {
		if all == (len(urls) > 0) {
			return usagef(cmd, "want either -s URL or -a")
		}
		m, err := a.openManifest(cmd.Context(), *meta)
		if err != nil {
			return err
		}
		return editManifest(cmd.Context(), *meta, func(e *manifest.Editor) error {
			if all {
				return e.DeleteRoutes()
			}
			for _, u := range urls {
				if err := mustHave(e.DeleteRoute(shownAs(m, u)))("store", store.Redact(u)); err != nil {
					return err
				}
			}
			return nil
		})
	})
	cmd.Flags().StringArrayVarP(&urls, "store", "s", nil, "`URL` of a store, can be repeated")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "delete all stores")
	return cmd
}

// shownAs returns the URL of the route that list shows as text, or text itself.
func shownAs(m *manifest.Manifest, text string) string {
	for _, r := range m.Routes() {
		if store.Redact(r.URL) == text {
			return r.URL
		}
	}
	return text
}
