package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overmount/depmod"
	"overmount/firmware"
	"overmount/manifest"
	"overmount/store"
	"overmount/tree"
	"overmount/verify"
)

type verifyFlags struct {
	objects   amount
	existence bool
	journal   string
	parallel  int
	forOthers bool
	mount     bool

	trust        trust
	kver         string
	firmware     string
	index        indexFlags
	kernelConfig string
	depmodConfig []string

	strict  bool
	timeout time.Duration
}

// amount is a flag of how many objects are checked.
type amount struct{ verify.Amount }

func (a *amount) Set(text string) (err error) {
	a.Amount, err = verify.ParseAmount(text)
	return err
}

func (a *amount) Type() string { return "amount" }

func (a *app) verifyCommand() *cobra.Command {
	f := verifyFlags{objects: amount{verify.DefaultSample}}
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check that a manifest, its stores and its modules are complete and right",
		Long: `Verify tells what is wrong with FILE before a machine boots from it. FILE is a
manifest, a path or an http(s) URL, or a directory lib/modules/KVER.

Of each manifest it checks the stores that it names, without asking them:
passwords and tokens in their URLs, places that other machines cannot reach,
objects for which there is no store. Then it asks every store for the objects
that it is meant for, 64 of them if --objects does not say otherwise: each is
fetched, compared with its name and opened. With --existence, stores are only
asked whether they have the objects. The layout that a store turns out to have
is told, too.

Of modules, it reads every module in addition, from whichever store has it, and
tells what is wrong: modules that cannot be read, index files that are not byte
by byte what depmod writes, modules that modules.dep lacks or has too many,
modules of another kernel, signatures, and compression that the kernel cannot
undo (with --kernel-config). With --firmware, it tells of each module, and of each
class of drivers, which declared firmware is there and which is not. Declared names
are hints, so that is no error.

` + indexHelp + `

With --mount, it mounts the manifest for a moment in a directory of its own, without
a cache, and reads there what a machine would: small and large files, a symlink,
a directory, of modules an index and a module. All has to be what the manifest
and the stores have. Where nothing can be mounted, that is a warning.

With --journal, what was found to be right is noted in a file, and a check that
was interrupted goes on where it was. When the check is over, the file is removed.

With --pubkey, FILE has to be signed, and a manifest given with --firmware, too.
--min-serial is about FILE.

What is found is an error, a warning or information. Only errors make verify
fail; with --strict, warnings do too.

With --json, each finding is an object: severity, check, store, path, text,
names; of firmware also present (name, path), packages (name, version), perhaps,
modules.

` + exitCodes,
		Example: `  overmount verify modules.fl
  overmount verify --objects all --for-others --strict https://web.example.com/firmware.fl
  overmount verify --objects all --mount --strict --pubkey modules.pub https://web.example.com/modules.fl
  overmount verify --firmware firmware.fl --kernel-config /boot/config-6.1.0-56-amd64 modules.fl
  overmount verify --firmware firmware.fl --deb-lists /var/lib/apt/lists modules.fl
  overmount verify /lib/modules/6.1.0-56-amd64`,
		Args: args(1, 1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verify(cmd, &f, args[0]) },
	}
	flags := cmd.Flags()
	flags.Var(&f.objects, "objects", "how many objects each store is asked for: all, none, sample or sample=N")
	flags.BoolVar(&f.existence, "existence", false, "ask stores whether they have the objects, and fetch one of each store")
	flags.StringVar(&f.journal, "journal", "", "`FILE` for what has been checked, to go on after an interruption")
	flags.IntVar(&f.parallel, "parallel", 32, "`number` of requests at a time")
	flags.BoolVar(&f.forOthers, "for-others", false, "let it be an error that machines of other networks cannot reach a store")
	flags.BoolVar(&f.mount, "mount", false, "mount it for a moment, and read some of it there")
	flags.StringVar(&f.kver, "kver", "", "kernel `version` that modules must be for (default: that of the manifest, or the name of the directory)")
	flags.StringVar(&f.firmware, "firmware", "", "`FILE` that will be at /lib/firmware, a manifest or a directory")
	flags.StringVar(&f.kernelConfig, "kernel-config", "", "`FILE` with the configuration of the kernel that will load the modules")
	flags.StringArrayVar(&f.depmodConfig, "depmod-config", nil, "configuration of depmod, `FILE` or directory, that the indexes were made with; can be repeated")
	flags.BoolVar(&f.strict, "strict", false, "let warnings count as errors")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait for a store that does not answer")
	f.index.add(cmd)
	f.trust.flags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) verify(cmd *cobra.Command, f *verifyFlags, file string) error {
	src, err := a.openModules(cmd, &f.trust, file, f.timeout)
	if err != nil {
		return err
	}
	modules := src.m == nil || src.m.Tag(manifest.TagKind) == "modules"
	if err := f.check(cmd, src.m != nil, modules); err != nil {
		return err
	}
	packages, err := a.firmwareIndex(cmd.Context(), &f.index)
	if err != nil {
		return fmt.Errorf("verify %s: packages with firmware: %w", shown(file), err)
	}
	var findings []verify.Finding
	if src.m != nil {
		if findings, err = a.verifyStores(cmd.Context(), f, src.m); err != nil {
			return fmt.Errorf("verify %s: %w", shown(file), err)
		}
	}
	if modules {
		more, err := a.verifyModules(cmd, f, src, packages)
		if err != nil {
			return fmt.Errorf("verify %s: %w", shown(file), err)
		}
		findings = append(findings, more...)
	}
	if f.mount {
		more, err := a.verifyMount(cmd.Context(), f, file, src)
		if err != nil {
			return fmt.Errorf("verify %s: test mount: %w", shown(file), err)
		}
		findings = append(findings, more...)
	}
	slices.SortStableFunc(findings, func(a, b verify.Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return a.found(file, findings, f.strict)
}

// check refuses flags that mean nothing for the FILE.
func (f *verifyFlags) check(cmd *cobra.Command, isManifest, modules bool) error {
	if f.parallel <= 0 {
		return usagef(cmd, "--parallel %d: want at least 1", f.parallel)
	}
	for _, name := range []string{"objects", "existence", "journal", "parallel", "for-others", "mount"} {
		if cmd.Flags().Changed(name) && !isManifest {
			return usagef(cmd, "--%s is for manifests, and FILE is a directory", name)
		}
	}
	for _, name := range []string{"kver", "firmware", "kernel-config", "depmod-config"} {
		if cmd.Flags().Changed(name) && !modules {
			return usagef(cmd, "--%s is for modules, and FILE is not a manifest of these (pack --kind modules)", name)
		}
	}
	return f.index.check(cmd, f.firmware != "")
}

// verifyStores checks where the manifest says that its objects are, and whether
// they are there.
func (a *app) verifyStores(ctx context.Context, f *verifyFlags, m *manifest.Manifest) ([]verify.Finding, error) {
	findings := verify.Routes(m, &verify.RoutesOptions{ForOthers: f.forOthers})
	if f.objects.Amount == verify.None {
		return findings, nil
	}
	stores, unread := a.storesToVerify(m.Routes())
	opts := &verify.ObjectsOptions{Amount: f.objects.Amount, ExistenceOnly: f.existence, Parallel: f.parallel, Budget: f.timeout}
	end, err := f.resume(m, opts)
	if err != nil {
		return nil, err
	}
	bar := a.progress("checking")
	opts.Progress = bar.count
	more, err := verify.Objects(ctx, m, stores, opts)
	bar.finish()
	return slices.Concat(findings, unread, more), end(err)
}

// resume lets a check go on where the journal says that one was interrupted. Who
// calls it tells end how the check went.
func (f *verifyFlags) resume(m *manifest.Manifest, o *verify.ObjectsOptions) (end func(error) error, err error) {
	if f.journal == "" {
		return func(err error) error { return err }, nil
	}
	j, err := verify.OpenJournal(f.journal, m, f.existence)
	if err != nil {
		return nil, err
	}
	o.Known, o.Done = j.Known, j.Done
	return func(err error) error {
		if err != nil {
			return errors.Join(err, j.Close())
		}
		return j.Remove()
	}, nil
}

// storesToVerify opens the stores of routes. What cannot be opened is a finding;
// what cannot be parsed is one of verify.Routes.
func (a *app) storesToVerify(routes []manifest.Route) (stores []verify.Store, unread []verify.Finding) {
	opened := map[string]store.Reader{}
	for _, r := range routes {
		spec, err := store.ParseSpec(r.URL)
		if err != nil {
			continue
		}
		s := verify.Store{Name: verify.StoreName(r.URL), First: r.First, Last: r.Last}
		if s.Reader, err = a.openReader(r.URL, opened); err != nil {
			unread = append(unread, verify.Finding{Severity: verify.Error, Check: "objects", Store: s.Name, Text: "nothing was checked there: " + err.Error()})
			continue
		}
		s.Prober, _ = s.Reader.(store.Prober)
		if dir, err := dirPath(spec.URL); spec.URL.Scheme == "dir" && err == nil {
			s.Prober = store.NewDir(dir)
		}
		s.Layout = layoutOf(s.Reader)
		stores = append(stores, s)
	}
	return stores, unread
}

// layoutOf returns what tells the layout that a store turns out to have, nil for
// one that has none.
func layoutOf(r store.Reader) func() string {
	l, ok := r.(interface{ Layout() (store.Layout, bool) })
	if !ok {
		return nil
	}
	return func() string {
		if layout, known := l.Layout(); known {
			return layout.String()
		}
		return ""
	}
}

// verifyModules checks the modules. That no store answers is a finding: those of
// the stores say more.
func (a *app) verifyModules(cmd *cobra.Command, f *verifyFlags, src *moduleSource, packages *firmware.Index) ([]verify.Finding, error) {
	ctx := cmd.Context()
	opts := &verify.ModulesOptions{Kver: src.kver, Inline: src.inline(), Packages: packages}
	if f.kver != "" {
		opts.Kver = f.kver
	}
	var err error
	if len(f.depmodConfig) > 0 {
		if opts.Config, err = depmod.ReadConfig("/", f.depmodConfig...); err != nil {
			return nil, err
		}
	}
	if opts.Kernel, err = readKernelConfig(f.kernelConfig); err != nil {
		return nil, err
	}
	if opts.Firmware, err = a.openFirmware(cmd, &f.trust, f.firmware); err != nil {
		return nil, err
	}
	findings, err := verify.Modules(ctx, src.fs(ctx), opts)
	if lost, ok := errors.AsType[*tree.BlockError](err); ok && ctx.Err() == nil && store.Temporary(lost.Err) {
		return []verify.Finding{{Severity: verify.Error, Check: "module", Text: "the modules were not checked: " + err.Error()}}, nil
	}
	return findings, err
}

func readKernelConfig(file string) (verify.KernelConfig, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("kernel configuration: %w", err)
	}
	defer f.Close()
	config, err := verify.ReadKernelConfig(f)
	if err != nil {
		return nil, fmt.Errorf("kernel configuration %s: %w", file, err)
	}
	return config, nil
}

// openFirmware opens FILE as what will be at /lib/firmware, for names and sizes
// only. It returns nil for no FILE.
func (a *app) openFirmware(cmd *cobra.Command, t *trust, file string) (fs.FS, error) {
	if file == "" {
		return nil, nil
	}
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return os.DirFS(file), nil
	}
	m, _, err := t.sameKey().open(cmd.Context(), a, file)
	if err == nil {
		err = notOf(m, "modules", file)
	}
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	return manifestFS(cmd.Context(), m, nil), nil
}

// found prints findings, and turns them into the exit code.
func (a *app) found(file string, findings []verify.Finding, strict bool) error {
	count := map[verify.Severity]int{}
	enc := json.NewEncoder(a.Stdout)
	for _, f := range findings {
		count[f.Severity]++
		if a.json {
			if err := enc.Encode(f); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(a.Stdout, f)
	}
	if !a.json {
		fmt.Fprintf(a.Stdout, "%s: %s\n", shown(file), summarize(count))
	}
	if count[verify.Error] > 0 || strict && count[verify.Warning] > 0 {
		return exitError{code: exitFindings}
	}
	return nil
}

func summarize(count map[verify.Severity]int) string {
	var parts []string
	for _, s := range []verify.Severity{verify.Error, verify.Warning} {
		switch n := count[s]; n {
		case 0:
			parts = append(parts, fmt.Sprintf("no %vs", s))
		case 1:
			parts = append(parts, fmt.Sprintf("1 %v", s))
		default:
			parts = append(parts, fmt.Sprintf("%d %vs", n, s))
		}
	}
	return strings.Join(parts, ", ")
}
