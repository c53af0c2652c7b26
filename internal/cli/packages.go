package cli

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"overmount/apk"
	"overmount/archive"
	"overmount/deb"
	"overmount/internal/httpclient"
	"overmount/internal/webdir"
)

// packageFlags say which packages of a distribution to pack, in place of a
// directory.
type packageFlags struct {
	apkRepo, apkArch           string
	apkKeys                    []string
	debRepo, debSuite, debArch string
	debComponents, debKeyrings []string
	debAnyDate                 bool
	debLists                   string
	apks, debs                 []string
	lock                       string
	dryRun                     bool
}

// Where distributions have the keys that they trust.
const (
	apkKeysDir = "/etc/apk/keys"
	debKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

const packagesHelp = `In place of a directory, SOURCE can be packages of a distribution. They are unpacked
without a container, without root, and without running anything of them; their
content lies in one unnamed temporary file meanwhile (TMPDIR, or /var/tmp).

  --apk-repo PLACE GLOB...   packages of an Alpine repository, a URL or directory,
                             by name, with those of the same source package that they
                             depend on
  --apk FILE...              single packages of Alpine
  --deb-repo PLACE GLOB...   packages of a Debian repository, a URL or directory, by
                             name; needs --deb-suite, and the program gpgv
  --deb FILE...              single packages of Debian

A GLOB with ! before it, behind others, takes away what it matches.

Alpine's are trusted because --apk-key has signed them, a repository of Debian
because a key in --deb-keyring has signed it. Single packages of Debian have no
signature: --deb-lists compares them with the lists that apt has checked. With
--lock FILE, name, version, SHA-256 and size of each package are written to FILE
when there is none, and if there is, anything else is refused.

With --kind modules, the modules are those in lib/modules/KVER of the packages, and
depmod is run on the way. With --kind firmware, also for a directory, lib/firmware and
usr/lib/firmware are one; files called NAME.zst and NAME.xz are stored plain as NAME,
which every kernel finds, unless --keep-compressed is given; and symlinks that leave
the tree are resolved.`

func (f *packageFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	f.addRepos(cmd, "SOURCE are names of packages, or globs")
	flags.StringArrayVar(&f.apks, "apk", nil, "package of Alpine to pack, a `FILE`; can be repeated, and SOURCE are more of them")
	flags.StringArrayVar(&f.debs, "deb", nil, "package of Debian to pack, a `FILE`; can be repeated, and SOURCE are more of them")
	flags.StringVar(&f.debLists, "deb-lists", "", "with --deb: `directory` with the lists of apt, in which the packages must be (/var/lib/apt/lists)")
	flags.StringVar(&f.lock, "lock", "", "`FILE` that says which packages these must be; made if it is not there")
	flags.BoolVar(&f.dryRun, "dry-run", false, "list the packages, and pack nothing")
}

// addRepos adds the flags that say where a repository is, what it is used for, and
// whom to trust.
func (f *packageFlags) addRepos(cmd *cobra.Command, use string) {
	flags := cmd.Flags()
	flags.StringVar(&f.apkRepo, "apk-repo", "", "Alpine repository, a `URL` or directory; "+use)
	flags.StringVar(&f.apkArch, "apk-arch", apk.Arch(runtime.GOARCH), "`architecture` of --apk-repo, as Alpine calls it")
	flags.StringArrayVar(&f.apkKeys, "apk-key", nil, "public key, or directory of such, that must have signed, a `FILE` called as Alpine calls it; can be repeated (default "+apkKeysDir+", if it is there)")
	flags.StringVar(&f.debRepo, "deb-repo", "", "Debian repository, a `URL` or directory; "+use)
	flags.StringVar(&f.debSuite, "deb-suite", "", "`suite` of --deb-repo, such as bookworm")
	flags.StringArrayVar(&f.debComponents, "deb-component", nil, "`component` of --deb-repo, such as main; can be repeated (default: all that the repository lists)")
	flags.StringVar(&f.debArch, "deb-arch", debArch(runtime.GOARCH), "`architecture` of --deb-repo and --deb-lists, as Debian calls it")
	flags.StringArrayVar(&f.debKeyrings, "deb-keyring", nil, "`FILE` with the public keys that must have signed --deb-repo; can be repeated (default "+debKeyring+", if it is there)")
	flags.BoolVar(&f.debAnyDate, "deb-any-date", false, "take a --deb-repo that is out of date, as a snapshot is")
}

// given reports whether packages are to be packed.
func (f *packageFlags) given() bool {
	return f.apkRepo != "" || f.debRepo != "" || len(f.apks)+len(f.debs) > 0
}

// ofDebRepo reports whether there are flags that say something of a repository of Debian.
func (f *packageFlags) ofDebRepo() bool {
	return f.debKeyrings != nil || f.debSuite != "" || f.debComponents != nil || f.debAnyDate
}

// debArch is Debian's name of an architecture, given Go's.
func debArch(goarch string) string {
	if goarch == "386" {
		return "i386"
	}
	return goarch // of those that this program runs on, all others are the same
}

func (f *packageFlags) check(cmd *cobra.Command, sources []string) error {
	if err := notEmpty(cmd, "apk-repo", "deb-repo", "deb-lists", "lock"); err != nil {
		return err
	}
	kinds := 0
	for _, given := range []bool{f.apkRepo != "", f.debRepo != "", len(f.apks) > 0, len(f.debs) > 0} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return usagef(cmd, "--apk-repo, --apk, --deb-repo and --deb do not go together: pack them one after the other, or unpack them to one directory")
	case kinds == 0 && (f.lock != "" || f.dryRun || f.apkKeys != nil):
		return usagef(cmd, "--lock, --dry-run and --apk-key are for packages: --apk-repo, --apk, --deb-repo or --deb")
	case f.apkKeys != nil && f.apkRepo == "" && len(f.apks) == 0:
		return usagef(cmd, "--apk-key is for --apk-repo and --apk")
	case f.ofDebRepo() && f.debRepo == "":
		return usagef(cmd, "--deb-suite, --deb-component, --deb-keyring and --deb-any-date are for --deb-repo: a single package of Debian has no signature")
	case f.debLists != "" && len(f.debs) == 0:
		return usagef(cmd, "--deb-lists is for --deb")
	case f.debRepo != "" && f.debSuite == "":
		return usagef(cmd, "missing flag: --deb-suite, such as bookworm")
	case kinds == 0 && len(sources) == 0:
		return usagef(cmd, "missing argument: SOURCE, the directory to pack")
	case kinds == 0 && len(sources) > 1:
		return usagef(cmd, "unexpected argument %q; flags that take a value need = or a space before it", sources[1])
	case (f.apkRepo != "" || f.debRepo != "") && len(sources) == 0:
		return usagef(cmd, "missing argument: names of packages, or globs such as 'linux-firmware*'")
	}
	return nil
}

// notEmpty fails for flags that are given with an empty word, as of a variable that is not
// set: that must not mean that nothing is checked.
func notEmpty(cmd *cobra.Command, flags ...string) error {
	for _, name := range flags {
		if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "" {
			return usagef(cmd, "--%s is empty", name)
		}
	}
	return nil
}

// unpackedPackages are the files of packages. It is to be closed.
type unpackedPackages struct {
	fs.FS
	list  []lockedPackage
	owner func(name string) string // the package that a path is from
	close func() error
}

// unpackPackages fetches and unpacks the packages, verifies them, and compares them with
// the lock. Of their files it keeps what the kind of tree can need.
func (a *app) unpackPackages(ctx context.Context, f *packageFlags, kind string, sources []string) (*unpackedPackages, error) {
	if _, err := os.Stat(filepath.Dir(f.lock)); f.lock != "" && err != nil {
		return nil, fmt.Errorf("lock file %s: %w", f.lock, err)
	}
	spool := archive.Options{}
	switch kind {
	case "modules":
		spool.Map = without("boot", "usr/share")
	case "firmware": // into usr/share lead symlinks, of Debian's ipw2x00.LICENSE for one
		spool.Map = without("boot")
	}
	var u *unpackedPackages
	var err error
	switch {
	case f.apkRepo != "":
		u, err = a.unpackRepo(ctx, f, spool, sources)
	case len(f.apks) > 0:
		u, err = a.unpackApks(ctx, f, spool, append(slices.Clip(f.apks), sources...))
	case f.debRepo != "":
		u, err = a.unpackDebRepo(ctx, f, spool, sources)
	default:
		u, err = a.unpackDebFiles(ctx, f, spool, append(slices.Clip(f.debs), sources...))
	}
	if err != nil {
		return nil, err
	}
	if err := f.checkLock(u.list); err != nil {
		return nil, errors.Join(err, u.close())
	}
	return u, nil
}

// without returns a Map of archive.Options that leaves out what is below some
// directories.
func without(dirs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		return name, !slices.ContainsFunc(dirs, func(dir string) bool {
			return name == dir || strings.HasPrefix(name, dir+"/")
		})
	}
}

// checkLock refuses packages that are not those of the lock, if there is one.
func (f *packageFlags) checkLock(list []lockedPackage) error {
	if f.lock == "" {
		return nil
	}
	return checkLock(f.lock, list)
}

// keys reads the keys that Alpine's packages must be signed with. Unless any were given,
// these are those of the host, in a directory that need not be there.
func (f *packageFlags) keys(host string) (apk.Keys, error) {
	files := f.apkKeys
	if _, err := os.Stat(host); len(files) == 0 && err == nil {
		files = []string{host}
	}
	if len(files) == 0 {
		return nil, errors.New("no key says whom to trust: give Alpine's with --apk-key, which are in its package alpine-keys and at " +
			"https://alpinelinux.org/keys/, under the names that they have there")
	}
	all := apk.Keys{}
	for _, file := range files {
		some, err := apk.LoadKeys(file)
		if err != nil {
			return nil, fmt.Errorf("keys of Alpine: %w", err)
		}
		maps.Copy(all, some)
	}
	return all, nil
}

// opener opens a repository at a URL or in a directory.
func (a *app) opener(place string) (o apk.Opener, done func(), err error) {
	if !isURL(place) {
		if scheme, _, is := strings.Cut(place, "://"); is {
			return nil, nil, fmt.Errorf("repository %s://…: want a directory, http://HOST/PATH or https://HOST/PATH", scheme)
		}
		return apk.Dir(place), func() {}, nil
	}
	auth, err := a.httpAuth()
	if err != nil {
		return nil, nil, err
	}
	dir, err := webdir.New(place, webdir.Options{Client: httpclient.Options{Wrap: auth.Transport}, Hint: auth.Hint})
	if err != nil {
		return nil, nil, err
	}
	return dir, dir.Close, nil
}

// openRepo opens a repository of Alpine and selects packages.
func (a *app) openRepo(ctx context.Context, f *packageFlags, globs []string) (*apk.Repository, *apk.Selection, func(), error) {
	keys, err := f.keys(apkKeysDir)
	if err != nil {
		return nil, nil, nil, err
	}
	opener, done, err := a.opener(f.apkRepo)
	if err != nil {
		return nil, nil, nil, err
	}
	repo, err := apk.Open(ctx, opener, keys, f.apkArch)
	if err != nil {
		done()
		return nil, nil, nil, fmt.Errorf("repository %s: %w", shown(f.apkRepo), err)
	}
	sel, err := repo.Index.Select(globs...)
	if err != nil {
		done()
		return nil, nil, nil, fmt.Errorf("repository %s: %w", shown(f.apkRepo), err)
	}
	return repo, sel, done, nil
}

func (a *app) unpackRepo(ctx context.Context, f *packageFlags, spool archive.Options, globs []string) (*unpackedPackages, error) {
	repo, sel, done, err := a.openRepo(ctx, f, globs)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := f.checkLock(indexed(sel)); err != nil { // before anything is fetched
		return nil, err
	}
	count, finish := a.counter(len(sel.Packages))
	defer finish()
	tree, err := repo.Unpack(ctx, sel.Packages, &apk.Options{Spool: spool, Done: func(apk.Unpacked) { count() }})
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", shown(f.apkRepo), err)
	}
	return apkTree(tree), nil
}

// counter shows how many of some packages are unpacked. count may be called from several
// goroutines.
func (a *app) counter(all int) (count, finish func()) {
	b := a.progress("unpacking")
	var n atomic.Int64
	return func() { b.count(int(n.Add(1)), all) }, b.finish
}

// indexed is what an index of Alpine says of packages. It does not have their
// SHA-256.
func indexed(sel *apk.Selection) []lockedPackage {
	var list []lockedPackage
	for _, p := range sel.Packages {
		list = append(list, lockedPackage{Name: p.Name, Version: p.Version, Size: p.Size})
	}
	return list
}

// indexedDebs is what an index of Debian says of packages.
func indexedDebs(entries []deb.Entry) []lockedPackage {
	var list []lockedPackage
	for _, e := range entries {
		list = append(list, lockedPackage{e.Package, e.Version, e.SHA256, e.Size})
	}
	return list
}

func apkTree(tree *apk.Tree) *unpackedPackages {
	u := &unpackedPackages{FS: tree, owner: tree.Owner, close: tree.Close}
	for _, p := range tree.Packages {
		u.list = append(u.list, lockedPackage{p.Name, p.Version, hex.EncodeToString(p.SHA256[:]), p.Size})
	}
	return u
}

func (a *app) unpackApks(ctx context.Context, f *packageFlags, spool archive.Options, files []string) (*unpackedPackages, error) {
	keys, err := f.keys(apkKeysDir)
	if err != nil {
		return nil, err
	}
	count, finish := a.counter(len(files))
	defer finish()
	tree, err := apk.UnpackFiles(ctx, filesOpener{}, files, keys, &apk.Options{Spool: spool, Done: func(apk.Unpacked) { count() }})
	if err != nil {
		return nil, err
	}
	return apkTree(tree), nil
}

// filesOpener opens files by the paths that a user has given.
type filesOpener struct{}

func (filesOpener) Open(_ context.Context, name string) (io.ReadCloser, error) { return os.Open(name) }

func (a *app) unpackDebFiles(ctx context.Context, f *packageFlags, opts archive.Options, files []string) (*unpackedPackages, error) {
	var lists []deb.Entry
	if f.debLists != "" {
		var err error
		if lists, err = deb.Lists(os.DirFS(f.debLists), f.debArch, []string{"*"}); err != nil {
			return nil, fmt.Errorf("%s: %w", f.debLists, err)
		}
	}
	var inputs []deb.Input
	for _, file := range files {
		in := deb.File(file)
		if f.debLists != "" {
			var err error
			if in, err = deb.Known(in, lists); err != nil {
				return nil, fmt.Errorf("%w in %s for the architecture %s: apt-get download fetches one that they have", err, f.debLists, f.debArch)
			}
		}
		inputs = append(inputs, in)
	}
	return a.unpackDebs(ctx, opts, inputs)
}

func (a *app) unpackDebs(ctx context.Context, opts archive.Options, inputs []deb.Input) (*unpackedPackages, error) {
	spool, err := archive.NewSpool(&opts)
	if err != nil {
		return nil, err
	}
	count, finish := a.counter(len(inputs))
	defer finish()
	tree, found, err := deb.Unpack(ctx, spool, inputs, &deb.UnpackOptions{Done: func(deb.Unpacked) { count() }})
	if err != nil {
		return nil, errors.Join(err, spool.Close())
	}
	u := &unpackedPackages{FS: tree, owner: tree.Owner, close: spool.Close}
	for _, p := range found {
		u.list = append(u.list, lockedPackage{p.Package, p.Version, p.SHA256, p.Size})
	}
	return u, nil
}

// debRepo opens a repository of Debian.
func (a *app) debRepo(f *packageFlags) (*deb.Repository, func(), error) {
	rings := f.debKeyrings
	if _, err := os.Stat(debKeyring); len(rings) == 0 && err == nil {
		rings = []string{debKeyring}
	}
	if len(rings) == 0 {
		return nil, nil, fmt.Errorf("repository %s: %w", shown(f.debRepo), deb.ErrUnsigned)
	}
	files, done, err := a.opener(f.debRepo)
	if err != nil {
		return nil, nil, err
	}
	return &deb.Repository{
		Files: files, Suite: f.debSuite, Components: f.debComponents, Architecture: f.debArch, Verifier: deb.GPGV{Keyrings: rings}, AnyDate: f.debAnyDate,
	}, done, nil
}

// openDebRepo does the same, and selects packages.
func (a *app) openDebRepo(ctx context.Context, f *packageFlags, globs []string) (*deb.Repository, []deb.Entry, func(), error) {
	repo, done, err := a.debRepo(f)
	if err != nil {
		return nil, nil, nil, err
	}
	entries, err := selectDebs(ctx, repo, globs)
	if err != nil {
		done()
		return nil, nil, nil, f.debRepoError(err)
	}
	return repo, entries, done, nil
}

// selectDebs returns the packages whose names globs match, without those that globs with
// "!" before them do.
func selectDebs(ctx context.Context, repo *deb.Repository, globs []string) ([]deb.Entry, error) {
	var take, away []string
	for _, glob := range globs {
		name, not := strings.CutPrefix(glob, "!")
		switch {
		case not && len(take) == 0:
			return nil, fmt.Errorf("%q takes away from the names before it, and there are none: put it behind them", glob)
		case not:
			away = append(away, name)
		default:
			take = append(take, glob)
		}
	}
	entries, err := repo.Packages(ctx, take)
	if err != nil {
		return nil, err
	}
	for _, glob := range away {
		all := len(entries)
		entries = slices.DeleteFunc(entries, func(e deb.Entry) bool { return deb.Match([]string{glob}, e.Package) })
		if len(entries) == all {
			return nil, fmt.Errorf("%q takes nothing away: no package that is selected matches it", "!"+glob)
		}
	}
	if len(entries) == 0 {
		return nil, errors.New("no package is selected")
	}
	return entries, nil
}

// debRepoError says which repository it is, and the way out.
func (f *packageFlags) debRepoError(err error) error {
	if errors.Is(err, deb.ErrDate) {
		err = fmt.Errorf("%w\nIf it is a snapshot of another day, --deb-any-date takes it", err)
	}
	return fmt.Errorf("repository %s: %w", shown(f.debRepo), err)
}

func (a *app) unpackDebRepo(ctx context.Context, f *packageFlags, opts archive.Options, globs []string) (*unpackedPackages, error) {
	repo, entries, done, err := a.openDebRepo(ctx, f, globs)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := f.checkLock(indexedDebs(entries)); err != nil { // before anything is fetched
		return nil, err
	}
	var inputs []deb.Input
	for _, e := range entries {
		inputs = append(inputs, repo.Input(e))
	}
	u, err := a.unpackDebs(ctx, opts, inputs)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", shown(f.debRepo), err)
	}
	return u, nil
}

// listPackages is --dry-run. Of a repository, nothing but the index is fetched. It
// fails after the list if that is not what the lock has.
func (a *app) listPackages(ctx context.Context, f *packageFlags, kind string, sources []string) error {
	var list []lockedPackage
	switch {
	case f.debRepo != "":
		_, entries, done, err := a.openDebRepo(ctx, f, sources)
		if err != nil {
			return err
		}
		defer done()
		list = indexedDebs(entries)
	case f.apkRepo != "":
		_, sel, done, err := a.openRepo(ctx, f, sources)
		if err != nil {
			return err
		}
		defer done()
		list = indexed(sel)
	default:
		u, err := a.unpackPackages(ctx, f, kind, sources)
		if err != nil {
			return err
		}
		defer u.close()
		list = u.list
	}
	if err := a.printPackages(list); err != nil {
		return err
	}
	if _, err := os.Stat(f.lock); f.lock != "" && errors.Is(err, fs.ErrNotExist) {
		a.warnf("there is no lock file %s to compare with; without --dry-run it is written", f.lock)
	}
	return f.checkLock(list)
}

func (a *app) printPackages(list []lockedPackage) error {
	var total int64
	for _, p := range list {
		total += p.Size
	}
	if a.json {
		enc := json.NewEncoder(a.Stdout)
		for _, p := range list {
			if err := enc.Encode(p); err != nil {
				return err
			}
		}
		return enc.Encode(map[string]any{"packages": len(list), "bytes": total})
	}
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	for _, p := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\n", p.Name, p.Version, humanBytes(p.Size))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.Stdout, "%s, %s\n", counted(len(list), "package"), humanBytes(total))
	return err
}

// String is what packages are called in messages.
func (f *packageFlags) String() string {
	switch {
	case f.apkRepo != "":
		return shown(f.apkRepo)
	case f.debRepo != "":
		return shown(f.debRepo)
	case len(f.apks) > 0:
		return filepath.Base(f.apks[0])
	case len(f.debs) > 0:
		return filepath.Base(f.debs[0])
	}
	return ""
}
