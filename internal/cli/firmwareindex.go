package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"overmount/apk"
	"overmount/archive"
	"overmount/deb"
	"overmount/firmware"
	"overmount/internal/atomicfile"
)

// indexFlags say which packages of a distribution to look for firmware in.
type indexFlags struct {
	packageFlags
	globs []string
	file  string
}

const indexHelp = `It also tells which packages would bring what is missing, if it is told where to look:

  --deb-repo PLACE           a Debian repository: its index of the files in packages
                             (Contents), or, where it has none, the packages themselves;
                             needs --deb-suite, and the program gpgv
  --deb-lists DIR            apt's lists, where apt-file is installed
  --apk-repo PLACE           an Alpine repository: the packages themselves, which are
                             fetched and verified, and of which nothing is kept
  --firmware-index FILE      what such a check has found: written if one of the others is
                             given, else read

--firmware-package says which packages to look at. Packages and their keys are as for
pack. Links that scripts of packages make, and where links that Debian's index names
lead, cannot be known: what depends on that is said to be so, perhaps.`

func (f *indexFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	f.addRepos(cmd, "to tell which packages would bring what is missing of --firmware")
	flags.StringVar(&f.debLists, "deb-lists", "", "lists of apt (/var/lib/apt/lists), a `directory`; to tell which packages would bring what is missing of --firmware")
	flags.StringArrayVar(&f.globs, "firmware-package", nil, "packages to look at, a name or `GLOB`; can be repeated (default all, or where packages have to be fetched for it, 'firmware-*' of Debian and 'linux-firmware*' of Alpine)")
	flags.StringVar(&f.file, "firmware-index", "", "`FILE` that says which packages have which firmware; written with --deb-repo, --deb-lists or --apk-repo, else read")
}

// given reports whether there is anything to look for packages in.
func (f *indexFlags) given() bool { return f.places() > 0 || f.file != "" }

func (f *indexFlags) places() int {
	n := 0
	for _, place := range []string{f.apkRepo, f.debRepo, f.debLists} {
		if place != "" {
			n++
		}
	}
	return n
}

func (f *indexFlags) check(cmd *cobra.Command, firmware bool) error {
	if err := notEmpty(cmd, "firmware", "apk-repo", "deb-repo", "deb-lists", "firmware-index"); err != nil {
		return err
	}
	switch {
	case f.given() && !firmware:
		return usagef(cmd, "--apk-repo, --deb-repo, --deb-lists and --firmware-index are about what is missing of --firmware, which is not given")
	case f.places() > 1:
		return usagef(cmd, "--apk-repo, --deb-repo and --deb-lists do not go together")
	case f.debRepo != "" && f.debSuite == "":
		return usagef(cmd, "missing flag: --deb-suite, such as bookworm")
	case f.apkKeys != nil && f.apkRepo == "":
		return usagef(cmd, "--apk-key is for --apk-repo")
	case f.ofDebRepo() && f.debRepo == "":
		return usagef(cmd, "--deb-suite, --deb-component, --deb-keyring and --deb-any-date are for --deb-repo")
	case f.places() == 0 && f.globs != nil:
		return usagef(cmd, "--firmware-package is for --apk-repo, --deb-repo or --deb-lists")
	}
	for _, glob := range f.globs {
		if _, err := path.Match(glob, ""); err != nil {
			return usagef(cmd, "--firmware-package %q: %v", glob, err)
		}
	}
	return nil
}

// firmwareIndex returns which packages have which firmware, nil if nobody asks.
func (a *app) firmwareIndex(ctx context.Context, f *indexFlags) (*firmware.Index, error) {
	var x *firmware.Index
	var err error
	switch {
	case f.apkRepo != "":
		x, err = a.apkFirmware(ctx, f)
	case f.debRepo != "":
		x, err = a.debFirmware(ctx, f)
	case f.debLists != "":
		x, err = listsFirmware(f)
	case f.file != "":
		return readFirmwareIndex(f.file)
	default:
		return nil, nil
	}
	if err != nil || f.file == "" {
		return x, err
	}
	var b bytes.Buffer
	if err := x.Write(&b); err != nil {
		return nil, err
	}
	return x, atomicfile.Write(f.file, b.Bytes(), 0o644)
}

func readFirmwareIndex(file string) (*firmware.Index, error) {
	in, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("index of firmware: %w; with --deb-repo, --deb-lists or --apk-repo it is written", err)
	} else if err != nil {
		return nil, fmt.Errorf("index of firmware: %w", err)
	}
	defer in.Close()
	x, err := firmware.ReadIndex(in)
	if err != nil {
		return nil, fmt.Errorf("index of firmware %s: %w", file, err)
	}
	return x, nil
}

// inFirmware keeps the names that an index of firmware wants, as they are.
func inFirmware(name string) (string, bool) {
	for _, dir := range firmware.Places() {
		if strings.HasPrefix(name, dir+"/") {
			return name, true
		}
	}
	return name, false
}

// addFiles adds what a package has.
func addFiles(x *firmware.Index, p firmware.Package, files []archive.File) {
	for _, f := range files {
		switch f.Mode.Type() {
		case 0:
			x.AddFile(f.Name, p)
		case fs.ModeSymlink:
			x.AddLink(f.Name, f.Link, p)
		}
	}
}

func (a *app) apkFirmware(ctx context.Context, f *indexFlags) (*firmware.Index, error) {
	globs := f.globs
	if globs == nil {
		globs = []string{"linux-firmware*"}
	}
	repo, sel, done, err := a.openRepo(ctx, &f.packageFlags, globs)
	if err != nil {
		return nil, err
	}
	defer done()
	bar := a.progress("reading packages")
	defer bar.finish()
	n := 0
	list, err := repo.List(ctx, sel.Packages, &apk.Options{Spool: archive.Options{Map: inFirmware}, Done: func(apk.Unpacked) {
		n++
		bar.count(n, len(sel.Packages))
	}})
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", shown(f.apkRepo), err)
	}
	x := &firmware.Index{}
	for _, l := range list {
		addFiles(x, firmware.Package{Name: l.Name, Version: l.Version}, l.Files)
	}
	return x, nil
}

func (a *app) debFirmware(ctx context.Context, f *indexFlags) (*firmware.Index, error) {
	repo, done, err := a.debRepo(&f.packageFlags)
	if err != nil {
		return nil, err
	}
	defer done()
	contents, absent, err := repo.Contents(ctx, firmware.Places())
	if errors.Is(err, deb.ErrNoContents) {
		return a.debPackagesFirmware(ctx, f, err)
	}
	if err != nil {
		return nil, f.debRepoError(err)
	}
	if len(absent) > 0 {
		a.warnf("repository %s: it lists %s, and has not got what it lists: packages that only these name are not known", shown(f.debRepo), strings.Join(absent, ", "))
	}
	return contentsFirmware(contents, f.globs)
}

// debPackagesFirmware reads packages, because there is no index of their files.
func (a *app) debPackagesFirmware(ctx context.Context, f *indexFlags, why error) (*firmware.Index, error) {
	globs := f.globs
	if globs == nil {
		globs = []string{"firmware-*"}
	}
	a.warnf("%s: %v: the packages %s are read instead", shown(f.debRepo), why, strings.Join(globs, " "))
	repo, entries, done, err := a.openDebRepo(ctx, &f.packageFlags, globs)
	if err != nil {
		return nil, err
	}
	defer done()
	var inputs []deb.Input
	for _, e := range entries {
		inputs = append(inputs, repo.Input(e))
	}
	list, err := deb.List(ctx, inputs, inFirmware, nil)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", shown(f.debRepo), err)
	}
	x := &firmware.Index{}
	for _, l := range list {
		addFiles(x, firmware.Package{Name: l.Package, Version: l.Version}, l.Files)
	}
	return x, nil
}

func listsFirmware(f *indexFlags) (*firmware.Index, error) {
	contents, err := deb.ListsContents(os.DirFS(f.debLists), f.debArch, firmware.Places())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.debLists, err)
	}
	return contentsFirmware(contents, f.globs)
}

// contentsFirmware takes what an index of files says of packages that globs match; of
// all, if there are no globs. One that matches none is an error.
func contentsFirmware(contents []deb.Content, globs []string) (*firmware.Index, error) {
	x := &firmware.Index{}
	unused := map[string]bool{}
	for _, glob := range globs {
		unused[glob] = true
	}
	for _, c := range contents {
		for _, name := range c.Packages {
			wanted := len(globs) == 0
			for _, glob := range globs {
				if deb.Match([]string{glob}, name) {
					wanted = true
					delete(unused, glob)
				}
			}
			if wanted {
				x.AddPath(c.Path, firmware.Package{Name: name})
			}
		}
	}
	for _, glob := range globs {
		if unused[glob] {
			return nil, fmt.Errorf("no package with firmware matches %q", glob)
		}
	}
	return x, nil
}
