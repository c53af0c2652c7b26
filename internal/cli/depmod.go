package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"overmount/depmod"
	"overmount/kmod"
)

type depmodFlags struct {
	all, quick, show     bool
	base, modules, out   string
	config               []string
	symvers, filesyms    string
	errsyms              bool
	prefix               string
	verbose, warn        bool
	layout               string
	showVersion, ignored bool
}

func (a *app) depmodCommand() *cobra.Command {
	var f depmodFlags
	cmd := &cobra.Command{
		Use:   "depmod [-a|-A|-n] [-b DIR] [-o DIR] [KVER [FILE.ko]...]",
		Short: "Make the indexes of a directory of kernel modules",
		Long: `Depmod reads all modules of DIR/lib/modules/KVER, or only the FILEs, and writes
modules.dep and the other index files that modprobe and udev read. KVER is that
of the kernel that runs, if it is not given. Flags and files are those of kmod's
depmod; the files are the same, byte for byte.

It differs in this:
  - A module that cannot be read, or is cut short, is an error, and so is a file
    that cannot be written. Either all files are replaced, or none.
  - With -e, symbols that are unknown or disagree make it exit with 1. The
    indexes, which do not depend on that, are written.
  - Of two modules with one name and priority the first path wins, with a warning.
  - With -b, the configuration is that of DIR: etc/depmod.d and so on in it. A
    file or directory given with -C must exist.
  - Where modules.builtin or modules.builtin.modinfo is missing, its index is an
    empty one, not a file of 0 bytes.
  - Files have mode 0644, whatever the umask.

` + exitCodes,
		Example: `  overmount depmod
  overmount depmod -b /srv/image 6.1.0-56-amd64
  overmount depmod -b /srv/image --layout kmod30 -e -E Module.symvers 6.1.0-56-amd64`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return a.depmod(cmd, &f, args) },
	}
	f.flags(cmd)
	return cmd
}

func (f *depmodFlags) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVarP(&f.all, "all", "a", false, "read all modules (default without FILEs)")
	flags.BoolVarP(&f.quick, "quick", "A", false, "only if a module is newer than modules.dep")
	flags.BoolVarP(&f.show, "show", "n", false, "print the text files instead of writing any")
	flags.BoolVar(&f.show, "dry-run", false, "the same as --show")
	flags.StringVarP(&f.base, "basedir", "b", "/", "`DIR` that holds lib/modules")
	flags.StringVarP(&f.modules, "moduledir", "m", "lib/modules", "`DIR` in place of lib/modules")
	flags.StringVarP(&f.out, "outdir", "o", "", "write below `DIR` instead, to DIR/lib/modules/KVER, made if it is missing")
	flags.StringArrayVarP(&f.config, "config", "C", nil, "read the configuration from `PATH`, a file or directory; can be repeated")
	flags.StringVarP(&f.symvers, "symvers", "E", "", "Module.symvers `FILE` of the kernel, to check symbols and their versions")
	flags.StringVarP(&f.filesyms, "filesyms", "F", "", "System.map `FILE` of the kernel, to check symbols")
	flags.BoolVarP(&f.errsyms, "errsyms", "e", false, "report needed symbols that are unknown or disagree; needs -E or -F")
	flags.StringVarP(&f.prefix, "symbol-prefix", "P", "", "drop the character `C` before the names of symbols")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print why each module depends on others")
	flags.BoolVarP(&f.warn, "warn", "w", false, "warn about what an index has twice")
	flags.StringVar(&f.layout, "layout", kmod.Kmod34.String(), "whose files: kmod34 (34 and later), or kmod30 (27 to 32: other order in .bin files, no modules.weakdep)")
	flags.BoolVarP(&f.showVersion, "version", "V", false, "print the version")
	// Of kmod before 34, where they have no effect either.
	flags.BoolVarP(&f.ignored, "unresolved-error", "u", false, "")
	flags.BoolVarP(&f.ignored, "quiet", "q", false, "")
	flags.BoolVarP(&f.ignored, "root", "r", false, "")
	for _, name := range []string{"unresolved-error", "quiet", "root"} {
		flags.Lookup(name).Hidden = true
	}
}

// depmodKver returns the version that the arguments name, or that of the kernel
// that runs.
func depmodKver(cmd *cobra.Command, args []string) (kver string, files []string, err error) {
	if len(args) == 0 {
		kver, err = runningKver()
		return kver, nil, err
	}
	kver = args[0]
	if !kmod.IsVersion(kver) || strings.Contains(kver, "/") {
		return "", nil, usagef(cmd, "bad version %q: want KVER, as 6.1.0-56-amd64, before any FILE", kver)
	}
	for _, file := range args[1:] {
		if !filepath.IsAbs(file) {
			return "", nil, usagef(cmd, "%s: not an absolute path", file)
		}
	}
	return kver, args[1:], nil
}

func (a *app) depmod(cmd *cobra.Command, f *depmodFlags, args []string) error {
	if f.showVersion {
		fmt.Fprintln(a.Stdout, "overmount "+a.version())
		return nil
	}
	kver, files, err := depmodKver(cmd, args)
	if err != nil {
		return err
	}
	if f.all || f.quick {
		files = nil
	}
	dir := filepath.Join(f.base, f.modules, kver)
	if f.quick {
		if ok, _, err := depmod.UpToDate(os.DirFS(dir)); ok && err == nil {
			return nil
		}
	}
	opts, err := a.depmodOptions(cmd, f, kver)
	if err != nil {
		return err
	}
	depmodFiles(opts, dir, files)
	result, err := depmod.Build(cmd.Context(), os.DirFS(dir), opts)
	if errors.Is(err, fs.ErrNotExist) && !isDir(dir) {
		return fmt.Errorf("depmod %s: there is no such directory", dir)
	}
	if err != nil {
		return fmt.Errorf("depmod %s: %w", dir, err)
	}
	symbols := a.depmodWarnings(f, dir, result.Warnings)
	if f.verbose {
		if err := a.depmodReasons(f, dir, result.Modules); err != nil {
			return fmt.Errorf("depmod: %w", err)
		}
	}
	if err := a.depmodOutput(f, kver, result); err != nil {
		return fmt.Errorf("depmod: %w", err)
	}
	if symbols > 0 {
		return fmt.Errorf("depmod %s: %d needed symbols are unknown or disagree", dir, symbols)
	}
	return nil
}

func isDir(dir string) bool {
	info, err := os.Stat(dir)
	return err == nil && info.IsDir()
}

func (a *app) depmodOptions(cmd *cobra.Command, f *depmodFlags, kver string) (*depmod.Options, error) {
	if len(f.prefix) > 1 {
		return nil, usagef(cmd, "-P %q: want one character", f.prefix)
	}
	if f.symvers != "" && f.filesyms != "" {
		return nil, usagef(cmd, "-E and -F exclude each other")
	}
	layout, err := kmod.ParseLayout(f.layout)
	if err != nil {
		return nil, usagef(cmd, "--layout: %w", err)
	}
	config, err := depmod.ReadConfig(f.base, f.config...)
	if err != nil {
		return nil, fmt.Errorf("depmod: %w", err)
	}
	for _, p := range config.Problems {
		a.warnf("%s", p)
	}
	opts := &depmod.Options{Config: config, Kver: kver, Layout: layout}
	if f.prefix != "" {
		opts.SymbolPrefix = f.prefix[0]
	}
	for _, dir := range config.ExternalDirs(kver) {
		opts.Externals = append(opts.Externals, depmod.External{Dir: dir, FS: os.DirFS(dir)})
	}
	if f.errsyms && f.symvers == "" && f.filesyms == "" {
		a.warnf("-e needs -E or -F")
	}
	opts.Symbols, err = f.symbols(opts.SymbolPrefix)
	return opts, err
}

// symbols reads what the kernel exports; nil if nobody asked.
func (f *depmodFlags) symbols(prefix byte) (*depmod.Symbols, error) {
	name, read := f.symvers, depmod.ReadSymvers
	if name == "" {
		name, read = f.filesyms, depmod.ReadSystemMap
	}
	if name == "" {
		return nil, nil
	}
	in, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("depmod: %w", err)
	}
	defer in.Close()
	s, err := read(in, prefix)
	if err != nil {
		return nil, fmt.Errorf("depmod: read %s: %w", name, err)
	}
	return s, nil
}

// depmodFiles makes files the only modules, if there are any; those that lie
// elsewhere need their directory as an external one.
func depmodFiles(opts *depmod.Options, dir string, files []string) {
	for _, file := range files {
		file = filepath.Clean(file)
		if rel, ok := strings.CutPrefix(file, strings.TrimSuffix(dir, "/")+"/"); ok {
			opts.Files = append(opts.Files, rel)
			continue
		}
		opts.Files = append(opts.Files, file)
		of := filepath.Dir(file)
		opts.Externals = append(opts.Externals, depmod.External{Dir: of, FS: os.DirFS(of)})
	}
}

// depmodWarnings prints what was asked for, and returns how many are of symbols.
func (a *app) depmodWarnings(f *depmodFlags, dir string, warnings []depmod.Warning) (symbols int) {
	out := bufio.NewWriter(a.Stderr)
	for _, w := range warnings {
		switch w.Kind {
		case depmod.Repeated:
			if !f.warn {
				continue
			}
		case depmod.Unresolved, depmod.Disagrees:
			if !f.errsyms {
				continue
			}
			symbols++
		}
		w.Path = under(dir, w.Path)
		fmt.Fprintf(out, "overmount: warning: %v\n", w)
	}
	_ = out.Flush() // who would be told?
	return symbols
}

// under returns a path of the directory, which may be absolute.
func under(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// depmodReasons prints which symbol each dependency is for, as depmod -v does.
func (a *app) depmodReasons(f *depmodFlags, dir string, modules []*depmod.Module) error {
	to := a.Stdout
	if f.show {
		to = a.Stderr
	}
	out := bufio.NewWriter(to)
	for _, m := range modules {
		for i, symbol := range m.Via() {
			fmt.Fprintf(out, "%s needs %q: %s\n", under(dir, m.Path), symbol, under(dir, m.Depends[i].Path))
		}
	}
	return out.Flush()
}

// depmodOutput prints the text files or writes all.
func (a *app) depmodOutput(f *depmodFlags, kver string, result *depmod.Result) error {
	if f.show {
		return printIndexes(a.Stdout, result.Files)
	}
	root := f.base
	if f.out != "" {
		root = f.out
	}
	dir := filepath.Join(root, f.modules, kver)
	if f.out != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the output directory: %w", err)
		}
	}
	return result.Write(dir)
}

func printIndexes(w io.Writer, files []depmod.File) error {
	for _, file := range files {
		if strings.HasSuffix(file.Name, ".bin") {
			continue
		}
		if _, err := w.Write(file.Data); err != nil {
			return err
		}
	}
	return nil
}
