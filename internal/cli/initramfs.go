package cli

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"overmount/boot"
	"overmount/initramfs"
	"overmount/internal/atomicfile"
)

type initramfsFlags struct {
	meta     string
	firmware string
	trust    trust
	timeout  time.Duration

	stage1   []string
	program  string
	busybox  string
	udev     string
	init     string
	config   string
	keys     []string
	include  []string
	programs []string

	out      string
	compress string
	dryRun   bool

	boot *boot.Config // what is in config, nil without one
}

func (a *app) initramfsCommand() *cobra.Command {
	var f initramfsFlags
	cmd := &cobra.Command{
		Use:   "initramfs -m FILE --stage1 LIST -o OUT.img",
		Short: "Make the image that a machine starts from, with what it needs to reach the network",
		Long: `Initramfs makes an image for the boot loader: the program, the modules that
reach the network with what they depend on, and the firmware that these declare.
Everything else comes over the network when it is asked for.

The program is overmount-boot if that lies beside this one, otherwise this one.
overmount-boot has what a machine needs that boots, and no more, and is smaller.

-m FILE is a manifest, path or URL, or a directory lib/modules/KVER; --firmware
is the same of lib/firmware. The modules of --stage1 are a list with commas of:

  virtio        network cards that are virtio devices
  vm            those of virtual machines: virtio, e1000(e), vmxnet3, Hyper-V,
                Xen, AWS, Google
  server        vm and the common ones of servers, 8021q and bonding
  all-ethernet  all drivers of Ethernet cards, but wireless and USB ones
  DIR/          all modules below a directory, as kernel/drivers/net/phy/
  NAME          a module or an alias; it is loaded whatever hardware there is
  -NAME         not this module, although a set has it, unless others need it

With --busybox the image starts with a script, which loads of these modules what
the hardware asks for, gets an address by DHCP, and starts /etc/overmount/start
if that was included; otherwise udevd, if --udev brought it, "overmount boot", and
then /sbin/init if that was included. Without --busybox, --init says what the image
starts with, and that has to see to all of this: the program itself asks for no
address. --udev takes udevd, udevadm, kmod and their libraries from this
system, --udev=ROOT from another one. A program that is not static brings its
libraries, also one of --program; what --include names comes as it is.

With --config, the image has /etc/overmount.toml for "overmount boot"; one that boot
would refuse is refused here. With --key it has the keys for its pubkey. A manifest
that is included as /usr/share/overmount/NAME, with its signature NAME.minisig, stands
in when no server answers; NAME is the last part of its URL, as modules-KVER.fl.

The same inputs give the same image. Times in it are those of SOURCE_DATE_EPOCH,
or 0. It says what each part costs; "compressed" is an estimate, a tenth too high.

With --json, one object: image, kver, program, bytes (of the image, 0 with
--dry-run), compression, parts (name, files, bytes, compressed), modules (name,
path, size, soft), always, absent (names of sets that the kernel does not have),
firmware, no_firmware (declared and not there), warnings.

` + exitCodes,
		Example: `  overmount initramfs -m modules.fl --stage1 virtio --busybox /bin/busybox -o boot.img
  overmount initramfs -m /lib/modules/6.1.0-56-amd64 --firmware /lib/firmware --stage1 server,-sfc --busybox /bin/busybox --udev \
      --config boot.toml --key overmount.pub -o boot.img
  overmount initramfs -m modules.fl --stage1 all-ethernet --busybox /bin/busybox --dry-run`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.initramfs(cmd, &f) },
	}
	f.flags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (f *initramfsFlags) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.meta, "meta", "m", "", "`FILE`, a manifest of modules (path or URL) or a directory lib/modules/KVER (required)")
	flags.StringVar(&f.firmware, "firmware", "", "`FILE`, a manifest of firmware (path or URL) or a directory lib/firmware")
	flags.StringSliceVar(&f.stage1, "stage1", nil, "`LIST` of sets and modules (required)")
	flags.StringVarP(&f.out, "output", "o", "", "`file` for the image (required without --dry-run)")
	flags.StringVar(&f.program, "overmount", "", "`FILE` of the program for the machine (default: overmount-boot beside the one that runs, or that one)")
	flags.StringVar(&f.busybox, "busybox", "", "`FILE` of busybox for the machine")
	flags.StringVar(&f.udev, "udev", "", "take udev and kmod of the system in the directory `ROOT`")
	flags.Lookup("udev").NoOptDefVal = "/"
	flags.StringVar(&f.init, "init", "", "`FILE` that the image starts with, as /init")
	flags.StringVar(&f.config, "config", "", "`FILE` for /"+initramfs.ConfigPath)
	flags.StringArrayVar(&f.keys, "key", nil, "`FILE` of a public key that signs manifests, for /"+initramfs.KeyDir+", can be repeated")
	flags.StringArrayVar(&f.include, "include", nil, "file or directory `SRC[:/DST]` for the image, can be repeated")
	flags.StringArrayVar(&f.programs, "program", nil, "program `SRC[:/DST]` for the image, with its libraries, can be repeated")
	flags.StringVar(&f.compress, "compress", "zstd", "how the image is compressed: zstd, gzip or none")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what the image would hold, and write none")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait for a store that does not answer")
	f.trust.flags(cmd)
}

func (a *app) initramfs(cmd *cobra.Command, f *initramfsFlags) error {
	compression, err := f.check(cmd)
	if err != nil {
		return err
	}
	opts, err := a.initramfsOptions(cmd, f)
	if err != nil {
		return err
	}
	im, err := initramfs.New(cmd.Context(), opts)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	im.Warnings = append(im.Warnings, f.odd(im)...)
	for _, w := range im.Warnings {
		a.warnf("%s", w)
	}
	shares, err := im.Shares(compression)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	made := &madeImage{image: im, file: f.out, kver: opts.Kver, program: opts.Program, compression: compression, shares: shares}
	if !f.dryRun {
		if made.bytes, err = writeImage(f.out, im, compression); err != nil {
			return fmt.Errorf("initramfs: write %s: %w", f.out, err)
		}
	}
	if a.json {
		return json.NewEncoder(a.Stdout).Encode(made.report())
	}
	return made.print(a.Stdout)
}

func (f *initramfsFlags) check(cmd *cobra.Command) (initramfs.Compression, error) {
	if err := needMeta(cmd, f.meta); err != nil {
		return 0, err
	}
	if len(f.stage1) == 0 {
		return 0, usagef(cmd, "missing flag: --stage1 LIST, one or more of %s, and names of modules", strings.Join(initramfs.Sets(), ", "))
	}
	if f.out == "" && !f.dryRun {
		return 0, usagef(cmd, "missing flag: -o OUT.img, the image")
	}
	if f.init == "" && f.busybox == "" {
		return 0, usagef(cmd, "missing flag: --busybox FILE, for the script that the image starts with, or --init FILE")
	}
	compression, err := initramfs.ParseCompression(f.compress)
	if err != nil {
		return 0, usagef(cmd, "--compress: %w", err)
	}
	return compression, nil
}

func (a *app) initramfsOptions(cmd *cobra.Command, f *initramfsFlags) (*initramfs.Options, error) {
	o := &initramfs.Options{
		Stage1: f.stage1, Program: f.program, Busybox: f.busybox, Udev: f.udev, Init: f.init, Config: f.config, Keys: f.keys,
	}
	if err := f.checkConfig(); err != nil {
		return nil, err
	}
	modules, err := a.openModules(cmd, &f.trust, f.meta, f.timeout)
	if err == nil {
		err = notOf(modules.m, "firmware", f.meta)
	}
	if err != nil {
		return nil, err
	}
	if modules.kver == "" {
		return nil, fmt.Errorf("%s: nothing says which kernel it is for: want a manifest of modules, or a directory named after the version", shown(f.meta))
	}
	o.Modules, o.Kver = modules.fs(cmd.Context()), modules.kver
	if f.firmware != "" {
		firmware, err := a.openModules(cmd, &f.trust, f.firmware, f.timeout)
		if err == nil {
			err = notOf(firmware.m, "modules", f.firmware)
		}
		if err != nil {
			return nil, fmt.Errorf("firmware: %w", err)
		}
		o.Firmware = firmware.fs(cmd.Context())
	}
	for _, text := range f.include {
		o.Include = append(o.Include, parseInclude(text))
	}
	for _, text := range f.programs {
		o.Programs = append(o.Programs, parseInclude(text))
	}
	if o.Program == "" {
		if o.Program, err = programForBoot(); err != nil {
			return nil, err
		}
	}
	if f.busybox != "" {
		if o.Applets, err = a.applets(cmd.Context(), f.busybox); err != nil {
			return nil, err
		}
	}
	o.Mtime, err = a.sourceDate(cmd)
	return o, err
}

// checkConfig reads the configuration as the machine will.
func (f *initramfsFlags) checkConfig() error {
	if f.config == "" {
		return nil
	}
	f.boot = boot.Default()
	return f.boot.ReadFile(f.config)
}

// odd is what the configuration asks for and the image does not have.
func (f *initramfsFlags) odd(im *initramfs.Image) (warnings []string) {
	if f.boot == nil {
		return nil
	}
	if (f.boot.Writable || f.boot.KeepLower) && !im.Stage1.Has("overlay") {
		warnings = append(warnings, f.config+": writable and keep-lower need overlayfs, and stage 1 does not have overlay: add it to --stage1")
	}
	if key := strings.TrimPrefix(f.boot.Pubkey, "/"); strings.HasPrefix(key, initramfs.KeyDir+"/") && !im.Has(key) {
		warnings = append(warnings, f.config+": pubkey is "+f.boot.Pubkey+", and the image has no such file: add it with --key")
	}
	if f.boot.Coldplug == "udev" && f.udev == "" && len(f.include)+len(f.programs) == 0 {
		warnings = append(warnings, f.config+": coldplug is udev, and the image has none: add --udev")
	}
	return warnings
}

// programForBoot returns the file of overmount-boot, if it lies beside this program, or
// that of this program.
func programForBoot() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	small := filepath.Join(filepath.Dir(self), "overmount-boot")
	if info, err := os.Stat(small); err == nil && info.Mode().IsRegular() {
		return small, nil
	}
	return self, nil
}

// parseInclude takes SRC[:/DST] apart, at the last colon with a slash after it.
func parseInclude(text string) initramfs.Include {
	if i := strings.LastIndex(text, ":/"); i > 0 {
		return initramfs.Include{From: text[:i], To: text[i+1:]}
	}
	return initramfs.Include{From: text}
}

// appletsLimit bounds how long busybox may take to list its applets.
const appletsLimit = 10 * time.Second

// applets asks a busybox for its applets. One for other machines cannot be asked;
// then only the shell gets its link, and /init has to make the others.
func (a *app) applets(ctx context.Context, busybox string) ([]string, error) {
	if _, err := os.Stat(busybox); err != nil {
		return nil, fmt.Errorf("busybox: %w", err)
	}
	if !sameMachine(busybox) {
		a.warnf("%s is for other machines and cannot be asked for its applets: the image has a link for sh only", busybox)
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, appletsLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list-full, for the names of its applets: %w", busybox, err)
	}
	var names []string
	for name := range strings.FieldsSeq(string(out)) {
		if fs.ValidPath(name) && path.Base(name) != "busybox" && name != "linuxrc" && name != "sbin/init" {
			names = append(names, name)
		}
	}
	return names, nil
}

// sameMachine reports whether a program is for the machine that this one runs on.
func sameMachine(file string) bool {
	self, err := os.Executable()
	if err != nil {
		return false
	}
	machine := func(file string) elf.Machine {
		f, err := elf.Open(file)
		if err != nil {
			return elf.EM_NONE
		}
		defer f.Close()
		return f.Machine
	}
	m := machine(file)
	return m != elf.EM_NONE && m == machine(self)
}

// writeImage writes an image whole or not at all, and returns its length.
func writeImage(file string, im *initramfs.Image, c initramfs.Compression) (int64, error) {
	out, err := atomicfile.Create(file, 0o644)
	if err != nil {
		return 0, err
	}
	defer out.Abort()
	if err := im.Write(out, c); err != nil {
		return 0, err
	}
	n, err := out.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	return n, out.Commit()
}

// A madeImage is what there is to say of an image.
type madeImage struct {
	image       *initramfs.Image
	file, kver  string
	program     string
	compression initramfs.Compression
	shares      []int64
	bytes       int64 // 0 if none was written
}

type imagePart struct {
	Name       string `json:"name"`
	Files      int    `json:"files"`
	Bytes      int64  `json:"bytes"`
	Compressed int64  `json:"compressed"`
}

func (m *madeImage) parts() []imagePart {
	var all []imagePart
	for i, p := range m.image.Parts {
		all = append(all, imagePart{p.Name, p.Files, p.Bytes, m.shares[i]})
	}
	return all
}

// list is a list that is not null in JSON.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (m *madeImage) report() any {
	s := m.image.Stage1
	modules := []neededModule{}
	for _, mod := range s.Modules {
		modules = append(modules, neededModule{Name: mod.Name, Path: mod.Path, Size: mod.Size, Soft: mod.Soft})
	}
	return map[string]any{
		"image": m.file, "kver": m.kver, "program": m.program, "bytes": m.bytes, "compression": m.compression.String(), "parts": m.parts(),
		"modules": modules, "always": list(s.Always), "absent": list(s.Absent), "firmware": list(s.Firmware),
		"no_firmware": list(s.NoFirmware), "warnings": list(m.image.Warnings),
	}
}

func (m *madeImage) print(w io.Writer) error {
	s := m.image.Stage1
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "part\tfiles\tbytes\tcompressed\t")
	sum := imagePart{Name: "total"}
	for _, p := range m.parts() {
		fmt.Fprintf(out, "%s\t%d\t%s\t%s\t\n", p.Name, p.Files, humanBytes(p.Bytes), humanBytes(p.Compressed))
		sum.Files, sum.Bytes, sum.Compressed = sum.Files+p.Files, sum.Bytes+p.Bytes, sum.Compressed+p.Compressed
	}
	fmt.Fprintf(out, "%s\t%d\t%s\t%s\t\n", sum.Name, sum.Files, humanBytes(sum.Bytes), humanBytes(sum.Compressed))
	errs := []error{out.Flush()}
	say := func(format string, args ...any) {
		_, err := fmt.Fprintf(w, format, args...)
		errs = append(errs, err)
	}
	say("program  %s\n", m.program)
	say("stage 1  %s of %s, %s\n", counted(len(s.Modules), "module"), m.kver, counted(len(s.Firmware), "firmware file"))
	if len(s.Absent) > 0 {
		say("absent   this kernel has no %s\n", strings.Join(s.Absent, ", "))
	}
	if n := len(s.NoFirmware); n > 0 {
		say("missing  %s that the modules declare (--json names them)\n", counted(n, "firmware file"))
	}
	if m.bytes > 0 {
		say("image    %s, %s (%v)\n", m.file, humanBytes(m.bytes), m.compression)
	}
	return errors.Join(errs...)
}
