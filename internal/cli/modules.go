package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overmount/block"
	"overmount/kmod"
)

type modulesFlags struct {
	meta    string
	trust   trust
	config  []string
	root    string
	cmdline string
	timeout time.Duration
}

func (a *app) modulesCommand() *cobra.Command {
	cmd := group("modules", "Ask about kernel modules, in a manifest or a directory",
		a.modulesInfoCommand(), a.modulesResolveCommand(), a.modulesClosureCommand())
	cmd.Long = `Modules tells what modules say of themselves, what modprobe would do for a name
or a device, and what is needed for that. -m FILE is a manifest, path or URL, or
a directory lib/modules/KVER. A manifest packed with --kind modules answers
resolve and closure without any store.

NAME is a module, - or _, or an alias such as a device's modalias.

` + exitCodes
	return cmd
}

// modulesVerb is one of the verbs below modules.
func (a *app) modulesVerb(f *modulesFlags, verb, short, long, example string, run func(cmd *cobra.Command, s *moduleSource, names []string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " -m FILE NAME...", Short: short, Long: long + "\n\n" + exitCodes, Example: example,
		Args: func(cmd *cobra.Command, got []string) error {
			if len(got) == 0 {
				return usagef(cmd, "missing argument: NAME, a module or a modalias")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := needMeta(cmd, f.meta); err != nil {
				return err
			}
			s, err := a.openModules(cmd, &f.trust, f.meta, f.timeout)
			if err != nil {
				return err
			}
			return run(cmd, s, names)
		},
	}
	cmd.Flags().StringVarP(&f.meta, "meta", "m", "", "`FILE`, a manifest (path or URL) or a directory lib/modules/KVER (required)")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait for a store that does not answer")
	f.trust.flags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

// configFlags are those of verbs that resolve as a machine would.
func (f *modulesFlags) configFlags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&f.config, "config", "C", nil, "configuration of modprobe, `FILE` or directory, can be repeated (default: none)")
	cmd.Flags().StringVar(&f.root, "root", "", "`DIRECTORY` of a system whose etc/modprobe.d, lib/modprobe.d and so on count")
	cmd.Flags().StringVar(&f.cmdline, "cmdline", "", "kernel command `line`, for module.parameter= and modprobe.blacklist=")
}

// resolver opens the indexes, and the configuration of modprobe.
func (a *app) resolver(f *modulesFlags, fsys fs.FS) (*kmod.Tree, *kmod.Resolver, error) {
	t, err := kmod.OpenTree(fsys)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", shown(f.meta), err)
	}
	config, err := f.readConfig()
	if err != nil {
		return nil, nil, err
	}
	a.warn(f.warnings(config))
	return t, kmod.NewResolver(t, config, nil), nil
}

// warnings are those of a configuration, each with the whole path of its file.
func (f *modulesFlags) warnings(c *kmod.Config) []string {
	root := cmp.Or(f.root, "/")
	var all []string
	for _, w := range c.Warnings() {
		all = append(all, filepath.Join(root, w))
	}
	return all
}

func (f *modulesFlags) readConfig() (*kmod.Config, error) {
	config := &kmod.Config{}
	var err error
	switch {
	case f.root != "" && len(f.config) > 0:
		return nil, errors.New("give --root or --config, not both")
	case f.root != "":
		config, err = kmod.ReadConfig(os.DirFS(f.root))
	case len(f.config) > 0:
		var below []string
		for _, name := range f.config {
			abs, err := filepath.Abs(name)
			if err != nil {
				return nil, err
			}
			if _, err := os.Stat(abs); err != nil {
				return nil, fmt.Errorf("configuration of modprobe: %w", err)
			}
			below = append(below, strings.TrimPrefix(abs, "/"))
		}
		config, err = kmod.ReadConfig(os.DirFS("/"), below...)
	}
	if err != nil {
		return nil, err
	}
	config.AddCommandLine(f.cmdline)
	return config, nil
}

// each runs f for all names, goes on after those that stand for nothing, and says
// so at the end.
func each(names []string, f func(name string) error) error {
	var unknown []error
	for _, name := range names {
		err := f(name)
		if errors.Is(err, kmod.ErrUnknown) {
			unknown = append(unknown, err)
		} else if err != nil {
			return err
		}
	}
	return errors.Join(unknown...)
}

func (a *app) modulesResolveCommand() *cobra.Command {
	var f modulesFlags
	cmd := a.modulesVerb(&f, "resolve", "Print what modprobe would do, in order",
		`Resolve prints the lines of "modprobe -D NAME" for each NAME: which modules are
loaded, in which order, with which options.

With --json, one object for each NAME: name, actions (kind, module, path,
options, command, required).`,
		`  overmount modules resolve -m modules.fl xfs
  overmount modules resolve -m modules.fl 'pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00'`,
		func(cmd *cobra.Command, s *moduleSource, names []string) error {
			_, r, err := a.resolver(&f, s.fs(cmd.Context()))
			if err != nil {
				return err
			}
			return each(names, func(name string) error { return a.printActions(s, r, name) })
		})
	f.configFlags(cmd)
	return cmd
}

// action is a kmod.Action in JSON.
type action struct {
	Kind     string `json:"kind"`
	Module   string `json:"module"`
	Path     string `json:"path,omitempty"`
	Options  string `json:"options,omitempty"`
	Command  string `json:"command,omitempty"`
	Required bool   `json:"required"`
}

func (a *app) printActions(s *moduleSource, r *kmod.Resolver, name string) error {
	actions, err := r.Resolve(name)
	if err != nil {
		return err
	}
	list := []action{}
	for _, x := range actions {
		if line := strings.TrimRight(x.Line(s.dir), " "); !a.json && line != "" {
			fmt.Fprintln(a.Stdout, line)
		}
		list = append(list, action{x.Kind.String(), x.Module, x.Path, x.Options, x.Command, x.Required})
	}
	if !a.json {
		return nil
	}
	return json.NewEncoder(a.Stdout).Encode(map[string]any{"name": name, "actions": list})
}

func (a *app) modulesClosureCommand() *cobra.Command {
	var f modulesFlags
	cmd := a.modulesVerb(&f, "closure", "Print the modules and firmware that a module or a device needs",
		`Closure prints, for all NAMEs together, the modules that are needed, each once and
after everything that it depends on, and the firmware that these declare. Softdeps
are part of it, and marked. Declared firmware is a hint: some names are patterns,
and drivers make up others as they run.

With --json, one object: modules (name, path, size, soft), firmware, bytes, and
objects, which of a manifest is the number of objects that hold the modules.`,
		`  overmount modules closure -m modules.fl iwlwifi
  overmount modules closure -m /lib/modules/6.1.0-56-amd64 --json e1000e xfs`,
		func(cmd *cobra.Command, s *moduleSource, names []string) error {
			fsys := s.fs(cmd.Context())
			_, r, err := a.resolver(&f, fsys)
			if err != nil {
				return err
			}
			found, unknown := lookupAll(r, names)
			c, err := s.closure(fsys, r, found)
			if err != nil {
				return err
			}
			return errors.Join(a.printClosure(c), unknown)
		})
	f.configFlags(cmd)
	return cmd
}

// lookupAll returns the modules that names stand for.
func lookupAll(r *kmod.Resolver, names []string) (modules []string, unknown error) {
	unknown = each(names, func(name string) error {
		found, err := r.Lookup(name)
		modules = append(modules, found...)
		return err
	})
	return modules, unknown
}

// closure is a closure with what it costs.
type closure struct {
	Modules  []neededModule `json:"modules"`
	Firmware []string       `json:"firmware"`
	Bytes    int64          `json:"bytes"`
	Objects  int            `json:"objects,omitempty"`
}

type neededModule struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Size int64  `json:"size"`
	Soft bool   `json:"soft"`
}

func (s *moduleSource) closure(fsys fs.FS, r *kmod.Resolver, names []string) (*closure, error) {
	needed, err := r.Closure(names...)
	if err != nil {
		return nil, err
	}
	c := &closure{Modules: []neededModule{}, Firmware: []string{}}
	objects := map[block.ID]bool{}
	for _, n := range needed {
		m := neededModule{Name: n.Module, Path: n.Path, Soft: n.Soft}
		if !path.IsAbs(n.Path) {
			info, err := fs.Stat(fsys, n.Path)
			if err != nil {
				return nil, fmt.Errorf("modules.dep.bin names a module that is not there: %w", err)
			}
			note, err := s.note(fsys, n.Path)
			if err != nil {
				return nil, err
			}
			m.Size = info.Size()
			c.Firmware = append(c.Firmware, note.Firmware...)
			s.countObjects(n.Path, objects)
		}
		c.Bytes += m.Size
		c.Modules = append(c.Modules, m)
	}
	slices.Sort(c.Firmware)
	c.Firmware = slices.Compact(c.Firmware)
	c.Objects = len(objects)
	return c, nil
}

func (a *app) printClosure(c *closure) error {
	if a.json {
		return json.NewEncoder(a.Stdout).Encode(c)
	}
	for _, m := range c.Modules {
		soft := ""
		if m.Soft {
			soft = " (softdep)"
		}
		fmt.Fprintf(a.Stdout, "module   %s %s%s\n", m.Path, humanBytes(m.Size), soft)
	}
	for _, name := range c.Firmware {
		fmt.Fprintf(a.Stdout, "firmware %s\n", name)
	}
	objects := ""
	if c.Objects > 0 {
		objects = fmt.Sprintf(" in %d objects", c.Objects)
	}
	_, err := fmt.Fprintf(a.Stdout, "total    %d modules, %s%s; %d declared firmware files\n", len(c.Modules), humanBytes(c.Bytes), objects, len(c.Firmware))
	return err
}

func (a *app) modulesInfoCommand() *cobra.Command {
	var f modulesFlags
	return a.modulesVerb(&f, "info", "Print what a module says of itself",
		`Info prints the fields of each module, as modinfo does. Of a manifest it reads the
module from a store.

With --json, one object for each module: name, path, size, compression, fields
(pairs of key and value, in the module's order).`,
		`  overmount modules info -m modules.fl e1000e
  overmount modules info -m /lib/modules/6.1.0-56-amd64 --json 'usb:v0BDAp8153d3000dc00dsc00dp00icFFisc00ip00in00'`,
		func(cmd *cobra.Command, s *moduleSource, names []string) error {
			fsys := s.fs(cmd.Context())
			t, r, err := a.resolver(&f, fsys)
			if err != nil {
				return err
			}
			found, unknown := lookupAll(r, names)
			known := each(found, func(name string) error { return a.printInfo(s, fsys, t, name) })
			return errors.Join(known, unknown)
		})
}

func (a *app) printInfo(s *moduleSource, fsys fs.FS, t *kmod.Tree, name string) error {
	file, _, err := t.Dep(kmod.Name(name))
	if err != nil {
		if t.Builtin(kmod.Name(name)) {
			return fmt.Errorf("module %s is part of the kernel: it has no file", name)
		}
		return err
	}
	if path.IsAbs(file) {
		return fmt.Errorf("module %s is outside of the tree, in %s", name, file)
	}
	m, info, err := readModule(fsys, file)
	if err != nil {
		return err
	}
	fields := slices.Clone(m.Info)
	if m.Signature != nil {
		fields = append(fields, m.Signature.Fields()...)
	}
	if a.json {
		pairs := [][2]string{}
		for _, f := range fields {
			pairs = append(pairs, [2]string{f.Key, f.Value})
		}
		return json.NewEncoder(a.Stdout).Encode(map[string]any{
			"name": name, "path": file, "size": info.Size(), "compression": m.Compression.String(), "fields": pairs,
		})
	}
	fmt.Fprintf(a.Stdout, "%-16s%s/%s\n", "filename:", s.dir, file)
	for _, f := range fields {
		fmt.Fprintf(a.Stdout, "%-16s%s\n", f.Key+":", f.Value)
	}
	return nil
}

// readModule reads a module file of a tree.
func readModule(fsys fs.FS, file string) (*kmod.Module, fs.FileInfo, error) {
	m, info, err := kmod.ReadModuleFile(fsys, file)
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err // the path is said once
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read module %s: %w", file, err)
	}
	return m, info, nil
}
