package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overmount/archive"
	"overmount/block"
	"overmount/depmod"
	"overmount/kmod"
	"overmount/manifest"
	"overmount/pack"
	"overmount/signature"
	"overmount/sysroot"
)

type packFlags struct {
	meta         string
	stores       []string
	keepPassword bool
	kind, kver   string
	codec        string
	exclude      []string
	depmod       packDepmod
	packages     packageFlags
	keepPacked   bool // firmware as it is compressed
	forModules   string
	modules      *manifest.Manifest // forModules, once it is open
	sign         signFlags
}

// packDepmod say how pack makes the index files of modules.
type packDepmod struct {
	run    bool
	layout string
	config []string
}

func (a *app) packCommand() *cobra.Command {
	var f packFlags
	cmd := &cobra.Command{
		Use:   "pack -m OUT.fl -s STORE [-s STORE]... SOURCE...",
		Short: "Pack a directory, or packages: content to stores, the tree to a manifest",
		Long: `Pack reads the directory SOURCE, puts its content as encrypted objects into each
STORE, and then writes the manifest. A manifest that exists is replaced when
all went well, and not touched otherwise.

` + storeHelp + `

The same tree gives the same manifest. If SOURCE_DATE_EPOCH is set, it is noted
as the time of creation, and files that are newer get it as their time.

With --kind modules, SOURCE is a directory lib/modules/KVER. Its index files
(modules.dep and so on) must be those that depmod would write for the modules
beside them, and as new as these; otherwise pack says what is wrong, and
--depmod makes them on the way and leaves SOURCE as it is. The manifest carries
the index files itself, so that modprobe needs no store to know what to load,
and notes what the modules say of themselves.

` + packagesHelp + `

With --sign, the signature is written to OUT.fl.minisig, as "overmount sign" does.
Who changes the manifest afterwards, also its stores, has to sign again.

With --json, the result is an object: manifest, files, others, bytes, blocks, objects,
object_bytes, new_objects, new_bytes, seconds; with --sign, signature and serial. With
--dry-run, it is one for each package: name, version, size, and sha256 if the index has
it; the last one has packages, how many, and bytes.

` + exitCodes,
		Example: `  overmount pack -m modules.fl -s dir:///srv/objects --kind modules /lib/modules/6.1.0-56-amd64
  overmount pack -m modules.fl -s dir:///srv/objects --kind modules --depmod unpacked/lib/modules/6.1.0-56-amd64
  overmount pack -m modules.fl -s dir:///srv/objects --kind modules --deb linux-image-6.1.0-56-amd64_6.1.192-1_amd64.deb
  overmount pack -m firmware.fl -s dir:///srv/objects --kind firmware --lock firmware.lock \
      --apk-repo https://mirror.example.com/alpine/v3.22/main --apk-key keys 'linux-firmware*'
  overmount pack -m tree.fl -s 00-7f=dir:///a -s 80-ff=dir:///b --exclude '*.o' /some/tree`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return a.pack(cmd, &f, args) },
	}
	metaFlag(cmd, &f.meta, "manifest `FILE` to write")
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.stores, "store", "s", nil, "`STORE` for the objects, can be repeated (required)")
	flags.BoolVar(&f.keepPassword, "no-strip-password", false, noStripPassword)
	flags.StringVar(&f.kind, "kind", "tree", "what the tree is: modules, firmware or tree")
	flags.StringVar(&f.kver, "kver", "", "kernel `version` that modules must be for (default: the last part of SOURCE, or what the modules say)")
	flags.BoolVar(&f.depmod.run, "depmod", false, "with --kind modules: make the index files, as depmod does")
	flags.StringVar(&f.depmod.layout, "layout", "", "with --depmod: layout of the binary indexes, kmod34 (default) or kmod30")
	flags.StringArrayVar(&f.depmod.config, "depmod-config", nil, "configuration of depmod, `FILE` or directory, can be repeated (default: depmod.d beside the SOURCE, not this host's)")
	flags.StringVar(&f.codec, "codec", "zstd", "compression: zstd, or snappy, which rfs can read")
	flags.StringArrayVar(&f.exclude, "exclude", nil, "leave out what `GLOB` matches, by name or, with a slash in it, by path; can be repeated")
	flags.BoolVar(&f.keepPacked, "keep-compressed", false, "with --kind firmware: leave .zst and .xz files as they are")
	flags.StringVar(&f.forModules, "for-modules", "", "with --kind firmware: only what the modules of this manifest, a `FILE` or URL, declare, and what lies in the same directories")
	f.packages.add(cmd)
	f.sign.optional(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) pack(cmd *cobra.Command, f *packFlags, sources []string) error {
	if err := f.packages.check(cmd, sources); err != nil {
		return err
	}
	if f.packages.dryRun {
		return a.listPackages(cmd.Context(), &f.packages, f.kind, sources)
	}
	opts, err := a.packOptions(cmd, f)
	if err != nil {
		return err
	}
	var key signature.PrivateKey
	if f.sign.meta = f.meta; f.sign.key != "" {
		if key, err = f.sign.readKey(cmd); err != nil { // which may ask, before hours of work
			return err
		}
	}
	writers, routes, err := a.writeStores(cmd.Context(), f.stores, f.keepPassword)
	if err != nil {
		return err
	}
	if f.keepPassword {
		a.warnPasswords()
	}
	opts.Routes = routes
	start := time.Now()
	if f.forModules != "" {
		if f.modules, err = a.openDeclaring(cmd.Context(), f.forModules); err != nil { // before much is fetched
			return err
		}
	}
	src, err := a.openSource(cmd, f, sources)
	if err != nil {
		return err
	}
	defer src.close()
	tree, err := a.packSource(cmd, f, src, opts)
	if err != nil {
		return err
	}
	bar := a.progress("packing")
	opts.Progress = bar.update
	sum, err := pack.Run(cmd.Context(), tree, writers, f.meta, opts)
	bar.finish()
	if err != nil {
		return err
	}
	if err := recompress(f.meta); err != nil {
		return err
	}
	took := time.Since(start)
	if f.packages.lock != "" {
		if err := writeLock(f.packages.lock, src.list); err != nil {
			return err
		}
	}
	var claims signature.Claims
	if f.sign.key != "" {
		if claims, err = a.signFile(cmd.Context(), &f.sign, key); err != nil {
			return err
		}
	}
	return a.packed(f.meta, sum, took, claims)
}

func (a *app) packOptions(cmd *cobra.Command, f *packFlags) (*pack.Options, error) {
	if err := needMeta(cmd, f.meta); err != nil {
		return nil, err
	}
	if isURL(f.meta) {
		return nil, usagef(cmd, "-m %s: the manifest is written to a file, not to a URL", f.meta)
	}
	if err := notCompressed(f.meta); err != nil {
		return nil, usagef(cmd, "-m: %w", err)
	}
	if info, err := os.Stat(f.meta); err == nil && info.IsDir() {
		return nil, usagef(cmd, "-m %s: it is a directory", f.meta)
	}
	if _, err := os.Stat(filepath.Dir(f.meta)); err != nil { // before anything is fetched
		return nil, fmt.Errorf("create manifest %s: %w", f.meta, pathless(err))
	}
	if err := f.sign.checkOptional(cmd); err != nil {
		return nil, err
	}
	if len(f.stores) == 0 {
		return nil, usagef(cmd, "missing flag: -s STORE, where the content goes")
	}
	if f.codec == "" {
		return nil, usagef(cmd, "--codec is empty: want zstd or snappy")
	}
	codec, err := block.ParseCodec(f.codec)
	if err != nil {
		return nil, usagef(cmd, "--codec: %w", err)
	}
	tags := map[string]string{manifest.TagKind: f.kind, manifest.TagGenerator: "overmount " + a.version()}
	switch f.kind {
	case "modules":
	case "firmware", "tree":
		if f.depmod.run || f.depmod.layout != "" || f.depmod.config != nil {
			return nil, usagef(cmd, "--depmod, --layout and --depmod-config are for --kind modules")
		}
	default:
		return nil, usagef(cmd, "--kind %q: want modules, firmware or tree", f.kind)
	}
	if (f.keepPacked || f.forModules != "") && f.kind != "firmware" {
		return nil, usagef(cmd, "--keep-compressed and --for-modules are for --kind firmware")
	}
	if f.depmod.layout != "" && !f.depmod.run && !f.packages.given() {
		return nil, usagef(cmd, "--layout is for --depmod")
	}
	if f.kver != "" {
		tags[manifest.TagKver] = f.kver
	}
	opts := &pack.Options{Codec: codec, Tags: tags, Exclude: f.exclude}
	if opts.Newest, err = a.sourceDate(cmd); err != nil {
		return nil, err
	}
	if !opts.Newest.IsZero() {
		tags[manifest.TagCreated] = opts.Newest.Format(time.RFC3339)
	}
	return opts, nil
}

// sourceDate is the time that SOURCE_DATE_EPOCH says, the zero time if it says none.
func (a *app) sourceDate(cmd *cobra.Command) (time.Time, error) {
	epoch := a.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		return time.Time{}, nil
	}
	sec, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, usagef(cmd, "SOURCE_DATE_EPOCH %q is not a number of seconds", epoch)
	}
	return time.Unix(sec, 0).UTC(), nil
}

// A packSource is what is packed.
type packSource struct {
	fs.FS
	name string          // for people
	dir  string          // empty for packages
	list []lockedPackage // of packages
	done func() error

	owner func(name string) string // the package that a path is from; nil for a directory
}

// close frees what packages take. Nothing that was packed depends on it.
func (s *packSource) close() {
	if s.done != nil {
		_ = s.done()
	}
}

// openSource opens the directory or the packages to pack.
func (a *app) openSource(cmd *cobra.Command, f *packFlags, sources []string) (*packSource, error) {
	if f.packages.given() {
		u, err := a.unpackPackages(cmd.Context(), &f.packages, f.kind, sources)
		if err != nil {
			return nil, fmt.Errorf("pack: %w", err)
		}
		return &packSource{FS: u.FS, name: f.packages.String(), list: u.list, done: u.close, owner: u.owner}, nil
	}
	source := sources[0]
	if info, err := os.Stat(source); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("pack %s: it is not a directory", source)
	}
	dir, err := filepath.Abs(source)
	if err != nil {
		return nil, err
	}
	return &packSource{FS: pack.Dir(dir), name: source, dir: dir}, nil
}

// packSource returns the tree to pack, and completes the options where its kind
// asks for more.
func (a *app) packSource(cmd *cobra.Command, f *packFlags, src *packSource, opts *pack.Options) (fs.FS, error) {
	switch f.kind {
	case "modules":
		return a.packModules(cmd, f, src, opts)
	case "firmware":
		return a.packFirmware(cmd.Context(), f, src)
	}
	return src.FS, nil
}

func (a *app) packFirmware(ctx context.Context, f *packFlags, src *packSource) (fs.FS, error) {
	t, err := sysroot.Firmware(ctx, src.FS, &sysroot.FirmwareOptions{KeepCompressed: f.keepPacked})
	if err == nil {
		err = checkFirmware(t, src.owner)
	}
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", src.name, err)
	}
	for _, found := range t.Findings {
		a.warnf("%v", found)
	}
	if f.modules != nil {
		return a.firmwareFor(t, f.modules)
	}
	return t, nil
}

// checkFirmware fails for what has no firmware at all, and for packages that have
// different files which become one: in lib/firmware and in usr/lib/firmware, or
// compressed and plain. owner is nil for a directory.
func checkFirmware(t *sysroot.FirmwareTree, owner func(name string) string) error {
	list, err := fs.ReadDir(t, ".")
	switch {
	case err != nil:
		return err
	case len(list) == 0 && owner == nil:
		return errors.New("there is no firmware in it: it is empty")
	case len(list) == 0:
		return errors.New("there is no firmware in it: a package that only depends on others has none itself")
	case owner == nil:
		return nil
	}
	var all archive.ConflictError
	for _, f := range t.Findings {
		if f.Taken != "" && owner(f.Taken) != owner(f.Path) {
			all.Conflicts = append(all.Conflicts, archive.Conflict{
				Path: f.At, Owners: [2]string{owner(f.Taken), owner(f.Path)}, What: [2]string{f.Taken, f.Path},
			})
		}
	}
	if len(all.Conflicts) > 0 {
		return &all
	}
	return nil
}

func (a *app) packModules(cmd *cobra.Command, f *packFlags, src *packSource, opts *pack.Options) (fs.FS, error) {
	layout, err := kmod.ParseLayout(f.depmod.layout)
	if err != nil {
		return nil, usagef(cmd, "--layout: %w", err)
	}
	tree, kver, makes := src.FS, filepath.Base(src.dir), f.depmod.run
	config := &depmod.Config{}
	if src.dir != "" {
		config, err = depmodConfig(src.dir, f.depmod.config)
	} else {
		makes = true // packages have none: their scripts make them
		tree, kver, err = sysroot.Modules(src.FS, f.kver)
	}
	if err == nil && src.dir == "" && len(f.depmod.config) > 0 {
		config, err = depmod.ReadConfig("/", f.depmod.config...)
	}
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", src.name, err)
	}
	// What is left out must not be in the indexes.
	if tree, err = pack.Excluding(tree, opts.Exclude); err != nil {
		return nil, err
	}
	t, err := pack.PrepareModules(cmd.Context(), tree, pack.ModulesOptions{
		Kver: f.kver, Name: kver, Depmod: makes, Layout: layout, Config: config, Newest: opts.Newest,
	})
	if wrong, ok := errors.AsType[*pack.MetadataError](err); ok {
		return nil, fmt.Errorf("pack %s: %w\nRun depmod on it, or let --depmod make them on the way", src.name, wrong)
	}
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", src.name, err)
	}
	a.warn(t.Warnings)
	opts.Tags[manifest.TagKver] = t.Kver
	opts.Inline, opts.Modules = pack.IsModuleIndex, t.Modules
	return t.FS, nil
}

// depmodConfig reads the configuration of depmod for a directory lib/modules/KVER:
// what was given, or what lies in the same root.
func depmodConfig(dir string, given []string) (*depmod.Config, error) {
	base := filepath.Dir(filepath.Dir(filepath.Dir(dir)))
	if len(given) == 0 && filepath.Join(base, "lib/modules", filepath.Base(dir)) != dir {
		return &depmod.Config{}, nil
	}
	base = strings.TrimSuffix(base, "/usr")
	return depmod.ReadConfig(cmp.Or(base, "/"), given...)
}

// packed tells what was packed. Claims with a serial are of its signature.
func (a *app) packed(meta string, s pack.Summary, took time.Duration, c signature.Claims) error {
	if a.json {
		result := map[string]any{
			"manifest": meta, "files": s.Files, "others": s.Others, "bytes": s.Bytes, "blocks": s.Blocks,
			"objects": s.Objects, "object_bytes": s.ObjectBytes,
			"new_objects": s.NewObjects, "new_bytes": s.NewBytes, "seconds": took.Seconds(),
		}
		if c.Serial > 0 {
			result["signature"], result["serial"] = meta+signature.Suffix, c.Serial
		}
		return json.NewEncoder(a.Stdout).Encode(result)
	}
	ratio := 1.0
	if s.ObjectBytes > 0 {
		ratio = float64(s.Bytes) / float64(s.ObjectBytes)
	}
	fmt.Fprintf(a.Stdout, "packed   %s\n", countTree(s))
	fmt.Fprintf(a.Stdout, "objects  %d, %s (ratio %.2f): %d new, %s; %d known\n",
		s.Objects, humanBytes(s.ObjectBytes), ratio, s.NewObjects, humanBytes(s.NewBytes), s.Objects-s.NewObjects)
	fmt.Fprintf(a.Stdout, "time     %.2f s, %s/s\n", took.Seconds(), humanBytes(int64(float64(s.Bytes)/max(took.Seconds(), 1e-3))))
	fmt.Fprintf(a.Stdout, "manifest %s\n", meta)
	if c.Serial > 0 {
		fmt.Fprintf(a.Stdout, "signed   %s, serial %d\n", meta+signature.Suffix, c.Serial)
	}
	return nil
}
