package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"overmount/block"
	"overmount/coldplug"
	"overmount/firmware"
	"overmount/internal/atomicfile"
	"overmount/kmod"
)

type planFlags struct {
	meta, firmware string
	trust          trust
	sysfs, capture string
	modprobe       []string
	cmdline        string
	capFiles       int
	capBytes       size
	ignoreLoaded   bool
	timeout        time.Duration
}

func (a *app) planCommand() *cobra.Command {
	f := planFlags{capBytes: coldplug.DefaultCapBytes}
	cmd := &cobra.Command{
		Use:   "plan -m FILE",
		Short: "Print which modules and firmware the hardware of a machine needs",
		Long: `Plan reads what the kernel says of its devices, and prints which modules they need,
in the order of loading, with options, dependencies and softdeps, as udev and
"modprobe -b" would load them. What the kernel has already is left out. Drivers
that match a device only by its vendor or class come last.

Of the firmware that the modules declare, it prints the files that are in the tree
given with --firmware. A module that declares more than --cap-files files that are
there, or more than --cap-bytes, gets none: of such a list a machine needs a few,
and only the driver knows which.

FILE is a manifest, path or URL, or a directory lib/modules/KVER. No content is
fetched: a manifest packed with --kind modules answers all of it by itself.

Without --sysfs the plan is for this machine, with its modprobe.d and its kernel
command line, as far as --modprobe-d and --cmdline say nothing else. With --sysfs
it is for another, of which nothing else is known. --capture writes what a plan
needs of a machine to a file, which --sysfs takes; without -m that is all. Of a
machine that runs already, or runs another kernel, --ignore-loaded plans as for its
next boot.

With --json, one object a line, each with a type:
  module    order (from 0), kind (insmod, install), module, path, size, options,
            command, reason (direct, dependency, softdep), catch_all, modaliases,
            needs and after: the orders of modules to load before
  firmware  name, path, size, modules
  omitted   module, why (over the cap, not there), names, files, bytes
  request   modalias, devices, modules (module, outcome, catch_all); there is no
            module for what is unresolved
  summary   modules, module_bytes, objects, firmware, firmware_bytes, unresolved

` + exitCodes,
		Example: `  overmount plan -m modules.fl --firmware firmware.fl
  overmount plan --capture machine.txt
  overmount plan -m https://boot.example.com/modules.fl --sysfs machine.txt --cmdline 'quiet modprobe.blacklist=nouveau'`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.plan(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.meta, "meta", "m", "", "`FILE`, a manifest (path or URL) or a directory lib/modules/KVER")
	flags.StringVar(&f.firmware, "firmware", "", "`FILE` that will be at /lib/firmware, a manifest or a directory")
	flags.StringVar(&f.sysfs, "sysfs", "", "`DIRECTORY` like /sys, or a file that --capture wrote (default: /sys)")
	flags.StringVar(&f.capture, "capture", "", "write what a plan needs of the machine to `FILE`, - for stdout")
	flags.BoolVar(&f.ignoreLoaded, "ignore-loaded", false, "plan what the kernel of the machine has already, too")
	flags.StringArrayVar(&f.modprobe, "modprobe-d", nil, "configuration of modprobe, `DIRECTORY` or file, can be repeated")
	flags.StringVar(&f.cmdline, "cmdline", "", "kernel command `line`, or a file with it, whose name begins with / or .")
	flags.IntVar(&f.capFiles, "cap-files", coldplug.DefaultCapFiles, "most firmware `files` for a module, -1 for no limit")
	flags.Var(&f.capBytes, "cap-bytes", "most `bytes` of firmware for a module")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait for a store, for a manifest without indexes of its own")
	f.trust.flags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) plan(cmd *cobra.Command, f *planFlags) error {
	switch {
	case f.meta == "" && f.capture == "":
		return usagef(cmd, "missing flag: -m FILE, the manifest, or --capture FILE")
	case f.capFiles == 0 || f.capFiles < -1 || f.capBytes <= 0:
		return usagef(cmd, "a cap of 0 would let no firmware by: want at least 1, or no --firmware")
	}
	machine, err := f.machine()
	if err != nil {
		return err
	}
	a.warn(machine.Warnings)
	if f.capture != "" {
		if err := a.writeCapture(f.capture, machine); err != nil || f.meta == "" {
			return err
		}
	}
	p, s, err := a.makePlan(cmd, f, machine)
	if err != nil {
		return err
	}
	show := a.printPlan
	if a.json {
		show = a.printPlanJSON
	}
	if err := show(p, f, s); err != nil {
		return err
	}
	if len(p.Problems) > 0 {
		return exitError{exitPartly, fmt.Errorf("the plan may lack something: %w", errors.Join(p.Problems...))}
	}
	return nil
}

// machine reads a directory, or a capture.
func (f *planFlags) machine() (*coldplug.Machine, error) {
	name := f.sysfs
	if name == "" {
		name = "/sys"
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("look for devices: %w", err)
	}
	if info.IsDir() {
		m, err := coldplug.Scan(os.DirFS(name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return m, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	m, err := coldplug.ReadCapture(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

func (a *app) writeCapture(name string, m *coldplug.Machine) error {
	if name == "-" {
		return m.Capture(a.Stdout)
	}
	var b bytes.Buffer
	if err := m.Capture(&b); err != nil {
		return err
	}
	return atomicfile.Write(name, b.Bytes(), 0o644)
}

// makePlan makes the plan for a machine.
func (a *app) makePlan(cmd *cobra.Command, f *planFlags, machine *coldplug.Machine) (*coldplug.Plan, *moduleSource, error) {
	s, err := a.openModules(cmd, &f.trust, f.meta, f.timeout)
	if err == nil {
		err = notOf(s.m, "firmware", f.meta)
	}
	if err != nil {
		return nil, nil, err
	}
	tree, err := kmod.OpenTree(s.fs(cmd.Context()))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", shown(f.meta), err)
	}
	config, cmdline, err := a.planConfig(cmd, f)
	if err != nil {
		return nil, nil, err
	}
	o := &coldplug.Options{Refused: kmod.Refused(cmdline), CapFiles: f.capFiles, CapBytes: int64(f.capBytes)}
	if !f.ignoreLoaded {
		o.Loaded = machine.Loaded
	}
	files, err := a.openFirmware(cmd, &f.trust, f.firmware)
	if err != nil {
		return nil, nil, err
	}
	if files != nil {
		o.Firmware = firmware.New(files, s.kver)
		if s.m != nil && !s.m.HasModules() {
			a.warnf("%s does not say which firmware its modules declare; pack with --kind modules", shown(f.meta))
		}
	}
	return coldplug.New(tree, config, s.facts(), o).Plan(machine.Devices), s, nil
}

// planConfig reads what modprobe and the kernel are told: by the flags, or on this
// machine if the plan is for it.
func (a *app) planConfig(cmd *cobra.Command, f *planFlags) (*kmod.Config, string, error) {
	here := f.sysfs == ""
	m := modulesFlags{config: f.modprobe, cmdline: f.cmdline}
	if here && len(f.modprobe) == 0 {
		m.root = "/"
	}
	if here && !cmd.Flags().Changed("cmdline") {
		m.cmdline = "/proc/cmdline"
	}
	if strings.HasPrefix(m.cmdline, "/") || strings.HasPrefix(m.cmdline, ".") {
		text, err := readLimited(m.cmdline, 64<<10)
		if err != nil {
			return nil, "", fmt.Errorf("kernel command line: %w", err)
		}
		m.cmdline = string(text)
	}
	config, err := m.readConfig()
	if err != nil {
		return nil, "", err
	}
	a.warn(m.warnings(config))
	return config, m.cmdline, nil
}

// objects returns how many objects hold the modules of a plan.
func (s *moduleSource) objects(p *coldplug.Plan) int {
	objects := map[block.ID]bool{}
	for _, m := range p.Modules {
		if m.Size > 0 {
			s.countObjects(m.Path, objects)
		}
	}
	return len(objects)
}

// printPlan prints a plan for people.
func (a *app) printPlan(p *coldplug.Plan, f *planFlags, s *moduleSource) error {
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "ORDER\tMODULE\tSIZE\tWHY\n")
	for i := range p.Modules {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", i+1, p.Modules[i].Module, sizeOf(&p.Modules[i]), why(p, i))
	}
	if len(p.Firmware) > 0 {
		fmt.Fprintf(w, "\nFIRMWARE\t\tSIZE\tWHY\n")
		for _, x := range p.Firmware {
			fmt.Fprintf(w, "%s\t\t%s\tdeclared by %s\n", x.Path, humanBytes(x.Size), strings.Join(moduleNames(p, x.Modules), ", "))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.Stdout)
	a.printRest(p, f)
	objects := ""
	if n := s.objects(p); n > 0 {
		objects = " in " + counted(n, "object")
	}
	_, err := fmt.Fprintf(a.Stdout, "total: %s, %s%s; %s, %s; %d of %d modaliases unresolved\n", counted(len(p.Modules), "module"),
		humanBytes(p.ModuleBytes()), objects, counted(len(p.Firmware), "firmware file"), humanBytes(p.FirmwareBytes()), len(p.Unresolved()), len(p.Requests))
	return err
}

// printRest prints what is not in the plan, and why.
func (a *app) printRest(p *coldplug.Plan, f *planFlags) {
	for _, o := range p.Omitted {
		name := p.Modules[o.Module].Module
		if o.Why == coldplug.OverCap {
			most := "any number of files"
			if f.capFiles > 0 {
				most = counted(f.capFiles, "file")
			}
			fmt.Fprintf(a.Stdout, "left out: %s, %s, of %s: over the cap of %s and %s\n", counted(o.Files, "firmware file"), humanBytes(o.Bytes), name, most, humanBytes(int64(f.capBytes)))
		} else {
			fmt.Fprintf(a.Stdout, "not there: %d of the firmware files that %s declares\n", len(o.Names), name)
		}
	}
	for _, r := range p.Requests {
		for _, m := range r.Matches {
			if m.Outcome != coldplug.Planned && m.Outcome != coldplug.Known {
				fmt.Fprintf(a.Stdout, "%v: %s, for %s\n", m.Outcome, m.Module, askedBy(&r))
			}
		}
	}
	for _, r := range p.Unresolved() {
		fmt.Fprintf(a.Stdout, "unresolved: %s\n", askedBy(&r))
	}
}

func sizeOf(m *coldplug.Module) string {
	if m.Kind != kmod.Insmod {
		return "-"
	}
	return humanBytes(m.Size)
}

func moduleNames(p *coldplug.Plan, at []int) []string {
	var names []string
	for _, i := range at {
		names = append(names, p.Modules[i].Module)
	}
	return names
}

// why says why a module is in a plan, and what is special about it.
func why(p *coldplug.Plan, i int) string {
	m := &p.Modules[i]
	text := m.Reason.String()
	switch m.Reason {
	case coldplug.Direct:
		text = askedBy(directly(p, i))
	case coldplug.Dependency:
		if k := slices.IndexFunc(p.Modules, func(x coldplug.Module) bool { return slices.Contains(x.Needs, i) }); k >= 0 {
			text = "needed by " + p.Modules[k].Module
		}
	case coldplug.Soft:
		text = wantedBy(p, i)
	}
	if m.CatchAll {
		text += ", catch-all"
	}
	if m.Options != "" {
		text += ", options " + m.Options
	}
	if m.Kind == kmod.Install {
		text += ", runs " + m.Command
	}
	return text
}

// directly returns the first request that stands for a module, best one that is for
// more than a vendor or class.
func directly(p *coldplug.Plan, i int) *coldplug.Request {
	first := &coldplug.Request{}
	for _, k := range p.Modules[i].Requests {
		r := &p.Requests[k]
		at := slices.IndexFunc(r.Matches, func(m coldplug.Match) bool { return m.Module == p.Modules[i].Module })
		switch {
		case at < 0:
		case !r.Matches[at].CatchAll:
			return r
		case first.Modalias == "":
			first = r
		}
	}
	return first
}

// wantedBy says whose softdep brought a module: that of one which comes after it,
// or, by what it waits for, before it.
func wantedBy(p *coldplug.Plan, i int) string {
	waits := func(x coldplug.Module) bool { return slices.Contains(x.After, i) }
	if k := slices.IndexFunc(p.Modules, waits); k >= 0 {
		return "softdep of " + p.Modules[k].Module
	}
	if after := p.Modules[i].After; len(after) > 0 {
		return "softdep of " + p.Modules[after[0]].Module
	}
	if k := slices.IndexFunc(p.Modules, func(x coldplug.Module) bool { return slices.Contains(x.Needs, i) }); k >= 0 {
		return "softdep, needed by " + p.Modules[k].Module
	}
	return "softdep"
}

// askedBy shows a modalias, and who has it.
func askedBy(r *coldplug.Request) string {
	const most = 60 // that of a processor has hundreds
	alias := r.Modalias
	if len(alias) > most {
		alias = alias[:most] + "..."
	}
	switch len(r.Devices) {
	case 0:
		return alias
	case 1:
		return fmt.Sprintf("%s (%s)", alias, path.Base(r.Devices[0]))
	}
	return fmt.Sprintf("%s (%s and %d more)", alias, path.Base(r.Devices[0]), len(r.Devices)-1)
}

// The lines of plan --json.
type (
	planModule struct {
		Type       string   `json:"type"`
		Order      int      `json:"order"`
		Kind       string   `json:"kind"`
		Module     string   `json:"module"`
		Path       string   `json:"path,omitempty"`
		Size       int64    `json:"size"`
		Options    string   `json:"options,omitempty"`
		Command    string   `json:"command,omitempty"`
		Reason     string   `json:"reason"`
		CatchAll   bool     `json:"catch_all"`
		Modaliases []string `json:"modaliases"`
		Needs      []int    `json:"needs"`
		After      []int    `json:"after"`
	}
	planFirmware struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Path    string   `json:"path"`
		Size    int64    `json:"size"`
		Modules []string `json:"modules"`
	}
	planOmitted struct {
		Type   string   `json:"type"`
		Module string   `json:"module"`
		Why    string   `json:"why"`
		Names  []string `json:"names"`
		Files  int      `json:"files"`
		Bytes  int64    `json:"bytes"`
	}
	planMatch struct {
		Module   string `json:"module"`
		Outcome  string `json:"outcome"`
		CatchAll bool   `json:"catch_all"`
	}
	planRequest struct {
		Type     string      `json:"type"`
		Modalias string      `json:"modalias"`
		Devices  []string    `json:"devices"`
		Modules  []planMatch `json:"modules"`
	}
	planSummary struct {
		Type          string `json:"type"`
		Modules       int    `json:"modules"`
		ModuleBytes   int64  `json:"module_bytes"`
		Objects       int    `json:"objects"`
		Firmware      int    `json:"firmware"`
		FirmwareBytes int64  `json:"firmware_bytes"`
		Unresolved    int    `json:"unresolved"`
	}
)

// printPlanJSON prints a plan for programs.
func (a *app) printPlanJSON(p *coldplug.Plan, _ *planFlags, s *moduleSource) error {
	var lines []any
	for i, m := range p.Modules {
		line := planModule{
			Type: "module", Order: i, Kind: m.Kind.String(), Module: m.Module, Path: m.Path, Size: m.Size, Options: m.Options, Command: m.Command,
			Reason: m.Reason.String(), CatchAll: m.CatchAll, Needs: append([]int{}, m.Needs...), After: append([]int{}, m.After...),
		}
		for _, k := range m.Requests {
			line.Modaliases = append(line.Modaliases, p.Requests[k].Modalias)
		}
		lines = append(lines, line)
	}
	for _, f := range p.Firmware {
		lines = append(lines, planFirmware{"firmware", f.Name, f.Path, f.Size, moduleNames(p, f.Modules)})
	}
	for _, o := range p.Omitted {
		lines = append(lines, planOmitted{"omitted", p.Modules[o.Module].Module, o.Why.String(), o.Names, o.Files, o.Bytes})
	}
	for _, r := range p.Requests {
		line := planRequest{"request", r.Modalias, r.Devices, []planMatch{}}
		for _, m := range r.Matches {
			line.Modules = append(line.Modules, planMatch{m.Module, m.Outcome.String(), m.CatchAll})
		}
		lines = append(lines, line)
	}
	lines = append(lines, planSummary{"summary", len(p.Modules), p.ModuleBytes(), s.objects(p), len(p.Firmware), p.FirmwareBytes(), len(p.Unresolved())})
	enc := json.NewEncoder(a.Stdout)
	for _, line := range lines {
		if err := enc.Encode(line); err != nil {
			return err
		}
	}
	return nil
}
