package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"overmount/manifest"
	"overmount/signature"
	"overmount/store"
	"overmount/verify"
)

type editStoreFlags struct {
	trust        *trust
	meta, out    string
	list         bool
	keepPassword bool
	change       storeChange
}

// A storeChange is what is done to the stores of a manifest, in the order of the
// fields.
type storeChange struct {
	set, remove, replace, add []string
}

func (c *storeChange) empty() bool {
	return len(c.set)+len(c.remove)+len(c.replace)+len(c.add) == 0
}

func (a *app) editStoreCommand(t *trust) *cobra.Command {
	f := editStoreFlags{trust: t}
	cmd := &cobra.Command{
		Use:   "edit-store -m FILE [-o OUT.fl] [--set STORE]... [--remove URL]... [--replace OLD=NEW]... [--add STORE]... [--list]",
		Short: "Change where a manifest says that its objects are",
		Long: `Edit-store changes the stores that FILE names. No object is moved: "clone" and
"publish" do that. All changes of one call are made together or not at all, in
this order, however they are given:

  --set STORE        this store, or these, in place of all that were there
  --remove URL       without this store
  --replace OLD=NEW  NEW in the place of OLD, for the same range unless NEW has one
  --add STORE        one more, behind the others

STORE is [xx-yy=]URL: the objects whose names begin with xx to yy in hex, by
default all. Stores of one range are replicas, asked in the order of the list.
URL and OLD are what --list shows, or the whole text that the manifest has. Without
a range they mean the store with all its ranges, with one they mean that range
alone. In the end, each object has to have a store.

FILE is replaced, or, with -o, stays as it is. Passwords in stores that are given
are left out, and so are the keys of S3; --no-strip-password writes them into the
manifest, where everyone who gets it can read them.

A signature is right only for the FILE that was signed: sign it again.

--list prints the stores, after the changes if there are any. It shows neither
passwords nor keys, and no values of parameters but of region and layout. With
--json, each store is an object: first, last, url.

` + exitCodes,
		Example: `  overmount flist edit-store -m modules.fl --list
  overmount flist edit-store -m modules.fl --set https://web.example.com/blobs
  overmount flist edit-store -m modules.fl --replace dir:///srv/objects=https://web.example.com/objects
  overmount flist edit-store -m modules.fl -o public.fl --set 00-7f=https://a.example.com --set 80-ff=https://b.example.com --add https://mirror.example.com`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.editStore(cmd, &f) },
	}
	metaFlag(cmd, &f.meta, "manifest `FILE`; with -o or --list also a URL")
	flags := cmd.Flags()
	flags.StringVarP(&f.out, "output", "o", "", "write the changed manifest to this `FILE`")
	flags.StringArrayVar(&f.change.set, "set", nil, "the only `STORE` from now on, can be repeated")
	flags.StringArrayVar(&f.change.remove, "remove", nil, "`URL` of a store to leave out, can be repeated")
	flags.StringArrayVar(&f.change.replace, "replace", nil, "`OLD=NEW`: a store to take the place of another, can be repeated")
	flags.StringArrayVar(&f.change.add, "add", nil, "one more `STORE`, can be repeated")
	flags.BoolVar(&f.list, "list", false, "print the stores")
	flags.BoolVar(&f.keepPassword, "no-strip-password", false, noStripPassword)
	a.jsonFlag(cmd)
	return cmd
}

func (f *editStoreFlags) check(cmd *cobra.Command, asJSON bool) error {
	switch {
	case needMeta(cmd, f.meta) != nil:
		return needMeta(cmd, f.meta)
	case f.change.empty() && !f.list && !asJSON:
		return usagef(cmd, "nothing to do: want --list, --set, --remove, --replace or --add")
	case f.change.empty() && f.out != "":
		return usagef(cmd, "-o is for changes: want --set, --remove, --replace or --add, too")
	case isURL(f.out):
		return usagef(cmd, "-o %s: the manifest is written to a file, not to a URL", shown(f.out))
	case f.out == "" && !f.change.empty() && isURL(f.meta):
		return usagef(cmd, "a manifest at a URL cannot be changed: say with -o where to write it")
	}
	return nil
}

func (a *app) editStore(cmd *cobra.Command, f *editStoreFlags) error {
	if err := f.check(cmd, a.json); err != nil {
		return err
	}
	source, err := f.trust.openFile(cmd.Context(), a, f.meta)
	if err != nil {
		return err
	}
	defer source.Close()
	routes := source.Manifest.Routes()
	if !f.change.empty() {
		if f.keepPassword {
			a.warnPasswords()
		}
		if routes, err = f.edit(cmd.Context(), source.Path); err != nil {
			return err
		}
		a.warnLeftPasswords(f, routes)
		a.warnSignature(f)
	}
	if f.list || a.json {
		return a.printStores(routes)
	}
	return nil
}

// edit changes the manifest, and returns the routes that it then has. The routes
// to change are read under the lock that editors hold.
func (f *editStoreFlags) edit(ctx context.Context, path string) (after []manifest.Route, err error) {
	change := func(e *manifest.Editor) error {
		before, err := e.Routes()
		if err != nil {
			return err
		}
		if after, err = f.change.apply(before, f.keepPassword); err != nil {
			return err
		}
		return e.SetRoutes(after)
	}
	if f.out == "" {
		err = editManifest(ctx, f.meta, change)
	} else {
		err = editManifestCopy(ctx, path, f.out, change)
	}
	return after, err
}

// apply returns what becomes of routes.
func (c *storeChange) apply(routes []manifest.Route, keepPassword bool) ([]manifest.Route, error) {
	routes = slices.Clone(routes)
	if len(c.set) > 0 {
		routes = nil
	}
	set, err := givenRoutes(c.set, keepPassword)
	if err != nil {
		return nil, err
	}
	routes = append(routes, set...)
	for _, text := range c.remove {
		if which := routesShownAs(routes, text); len(which) == 0 {
			return nil, noSuchStore(routes, text)
		}
		routes = slices.DeleteFunc(routes, func(r manifest.Route) bool { return isShownAs(r, text) })
	}
	for _, text := range c.replace {
		if err := replaceRoutes(routes, text, keepPassword); err != nil {
			return nil, err
		}
	}
	add, err := givenRoutes(c.add, keepPassword)
	if err != nil {
		return nil, err
	}
	routes = append(routes, add...)
	return routes, covered(routes)
}

// replaceRoutes changes the routes that OLD of OLD=NEW means.
func replaceRoutes(routes []manifest.Route, text string, keepPassword bool) error {
	pairs := splitReplace(text)
	if len(pairs) == 0 {
		return errors.New("--replace: want OLD=NEW, two stores with their schemes, as in --replace dir:///srv/objects=https://web.example.com/objects")
	}
	var which []int
	var to string
	for _, p := range pairs {
		found := routesShownAs(routes, p.old)
		if len(found) > 0 && len(which) > 0 {
			return errors.New(`--replace: OLD=NEW can be read in two ways, as there are several "=": use --remove and --add`)
		}
		if len(found) > 0 {
			which, to = found, p.new
		}
	}
	if len(which) == 0 {
		return noSuchStore(routes, pairs[0].old)
	}
	spec, err := store.ParseSpec(to)
	if err != nil {
		return err
	}
	_, ranged := cutRange(to)
	for _, i := range which {
		routes[i].URL = writtenURL(spec.URL, keepPassword)
		if ranged {
			routes[i].First, routes[i].Last = spec.First, spec.Last
		}
	}
	return nil
}

type oldNew struct{ old, new string }

// splitReplace returns the ways to read OLD=NEW. A "=" parts them if a store
// stands behind it and a URL before it: both may have some of their own.
func splitReplace(text string) []oldNew {
	var ways []oldNew
	for i, c := range []byte(text) {
		if c != '=' || !strings.Contains(text[:i], "://") && text[:i] != store.Redact("") {
			continue
		}
		if _, err := store.ParseSpec(text[i+1:]); err == nil {
			ways = append(ways, oldNew{text[:i], text[i+1:]})
		}
	}
	return ways
}

// cutRange takes a range off a store specification, and reports whether there was
// one.
func cutRange(text string) (rest string, ranged bool) {
	before, after, ok := strings.Cut(text, "=")
	if !ok || strings.ContainsAny(before, ":/?#@") {
		return text, false
	}
	return after, true
}

func routesShownAs(routes []manifest.Route, text string) []int {
	var which []int
	for i, r := range routes {
		if isShownAs(r, text) {
			which = append(which, i)
		}
	}
	return which
}

// isShownAs reports whether text means the route: its URL, whole or as it is
// shown, with or without its range.
func isShownAs(r manifest.Route, text string) bool {
	rest, ranged := cutRange(text)
	if ranged {
		spec, err := store.ParseSpec(text)
		if err != nil || spec.First != r.First || spec.Last != r.Last {
			return false
		}
	}
	return rest == r.URL || rest == shownURL(r.URL) || rest == verify.StoreName(r.URL)
}

// noSuchStore says what there is instead. What was given may hold a password.
func noSuchStore(routes []manifest.Route, text string) error {
	rest, _ := cutRange(text)
	if len(routes) == 0 {
		return fmt.Errorf("it has no store %s, and no other", shownURL(rest))
	}
	var has []string
	for _, r := range routes {
		has = append(has, shownRoute(r))
	}
	return fmt.Errorf("it has no store %s, but %s", shownURL(rest), strings.Join(has, ", "))
}

// shownRoute is a route for people, as [xx-yy=]URL.
func shownRoute(r manifest.Route) string {
	if r.First == 0 && r.Last == 255 {
		return shownURL(r.URL)
	}
	return fmt.Sprintf("%02x-%02x=%s", r.First, r.Last, shownURL(r.URL))
}

// shownURL is the URL of a store for people who want to change it: without user
// and password, and without the values of parameters that may be secret.
func shownURL(text string) string {
	spec, err := store.ParseSpec(text)
	if err != nil {
		return store.Redact(text)
	}
	var query []string
	for part := range strings.SplitSeq(spec.URL.RawQuery, "&") {
		if key, _, ok := strings.Cut(part, "="); ok && key != "region" && key != "layout" {
			part = key + "=…"
		}
		query = append(query, part)
	}
	name := verify.StoreName(text)
	if q := strings.Join(query, "&"); q != "" {
		name += "?" + q
	}
	return name
}

func (a *app) printStores(routes []manifest.Route) error {
	enc := json.NewEncoder(a.Stdout)
	enc.SetEscapeHTML(false)
	for _, r := range routes {
		var err error
		if a.json {
			err = enc.Encode(map[string]any{"first": r.First, "last": r.Last, "url": shownURL(r.URL)})
		} else {
			_, err = fmt.Fprintln(a.Stdout, shownRoute(r))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// warnLeftPasswords tells of passwords that the manifest had before and still has.
func (a *app) warnLeftPasswords(f *editStoreFlags, routes []manifest.Route) {
	if f.keepPassword {
		return
	}
	for _, r := range routes {
		if spec, err := store.ParseSpec(r.URL); err == nil {
			if password, _ := spec.URL.User.Password(); password != "" {
				a.warnf("the manifest still has the password of %s, which everyone who gets it can read; --replace or --remove takes it out", shownRoute(r))
			}
		}
	}
}

// warnSignature tells that a signature does not fit any more, or was not taken
// along.
func (a *app) warnSignature(f *editStoreFlags) {
	written := f.meta
	if f.out != "" {
		written = f.out
	}
	if hasSignature(written) {
		a.warnf("%s%s is the signature of what %s was before, and wrong now: sign it again with \"overmount sign\"", written, signature.Suffix, written)
	} else if hasSignature(f.meta) {
		a.warnf("%s is signed, and %s is not: sign it with \"overmount sign\"", f.meta, written)
	}
}

// hasSignature reports whether there is a signature beside a file.
func hasSignature(file string) bool {
	_, err := os.Lstat(file + signature.Suffix)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}
