package cli

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overmount/depmod"
	"overmount/manifest"
	"overmount/verify"
)

type verifyFlags struct {
	trust        trust
	kver         string
	firmware     string
	kernelConfig string
	depmodConfig []string
	strict       bool
	timeout      time.Duration
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check that a packed tree of modules is complete and right",
		Long: `Verify reads every module of FILE, a manifest or a directory lib/modules/KVER, and
tells what is wrong: modules that cannot be read, index files that are not byte
by byte what depmod writes, modules that modules.dep lacks or has too many,
modules of another kernel, signatures, and compression that the kernel cannot
undo (with --kernel-config).

With --firmware, it tells which declared firmware is not there. Declared names
are hints, so that is no error.

What is found is an error, a warning or information. Only errors make verify
fail; with --strict, warnings do too.

With --pubkey, FILE has to be signed, and a manifest given with --firmware, too.
--min-serial is about FILE.

With --json, each finding is an object: severity, check, path, text, names.

` + exitCodes,
		Example: `  overmount verify modules.fl
  overmount verify --firmware firmware.fl --kernel-config /boot/config-6.1.0-56-amd64 https://web.example.com/modules.fl
  overmount verify /lib/modules/6.1.0-56-amd64`,
		Args: args(1, 1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verify(cmd, &f, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.kver, "kver", "", "kernel `version` that modules must be for (default: that of the manifest, or the name of the directory)")
	flags.StringVar(&f.firmware, "firmware", "", "`FILE` that will be at /lib/firmware, a manifest or a directory")
	flags.StringVar(&f.kernelConfig, "kernel-config", "", "`FILE` with the configuration of the kernel that will load the modules")
	flags.StringArrayVar(&f.depmodConfig, "depmod-config", nil, "configuration of depmod, `FILE` or directory, that the indexes were made with; can be repeated")
	flags.BoolVar(&f.strict, "strict", false, "let warnings count as errors")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait for a store that does not answer")
	f.trust.flags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) verify(cmd *cobra.Command, f *verifyFlags, file string) error {
	ctx := cmd.Context()
	src, err := a.openModules(cmd, &f.trust, file, f.timeout)
	if err != nil {
		return err
	}
	if src.m != nil && src.m.Tag(manifest.TagKind) != "modules" {
		return fmt.Errorf("verify %s: it is not a manifest of modules (pack --kind modules); of other trees there is nothing to check yet", shown(file))
	}
	opts := &verify.ModulesOptions{Kver: src.kver, Inline: src.inline()}
	if f.kver != "" {
		opts.Kver = f.kver
	}
	if opts.Config, err = depmod.ReadConfig("/", f.depmodConfig...); len(f.depmodConfig) == 0 {
		opts.Config, err = nil, nil
	}
	if err != nil {
		return err
	}
	if opts.Kernel, err = readKernelConfig(f.kernelConfig); err != nil {
		return err
	}
	if opts.Firmware, err = a.openFirmware(cmd, f); err != nil {
		return err
	}
	findings, err := verify.Modules(ctx, src.fs(ctx), opts)
	if err != nil {
		return fmt.Errorf("verify %s: %w", shown(file), err)
	}
	return a.found(file, findings, f.strict)
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

func (a *app) openFirmware(cmd *cobra.Command, f *verifyFlags) (fs.FS, error) {
	if f.firmware == "" {
		return nil, nil
	}
	if info, err := os.Stat(f.firmware); err == nil && info.IsDir() {
		return os.DirFS(f.firmware), nil
	}
	m, _, err := f.trust.sameKey().open(cmd.Context(), f.firmware)
	if err != nil {
		return nil, err
	}
	return manifestFS(cmd.Context(), m, nil), nil // names only
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
