// Package initramfs makes the image that a machine starts from: what it must have
// before it reaches the network, and no more.
//
//	/init                           a script for busybox, or the caller's
//	/bin/overmount                  this program
//	/bin/busybox                    if asked for, with a link for each applet
//	/sbin/udevd /bin/udevadm /bin/kmod   if asked for, with their libraries and
//	                                the rule that loads modules
//	/lib/modules/KVER               the modules of stage 1, uncompressed, with
//	                                indexes made for exactly these
//	/lib/overmount/stage1           their paths in there, in an order in which
//	                                they can be loaded
//	/lib/overmount/always           names of those that no device asks for
//	/lib/overmount/firmware         the firmware that they declare, uncompressed
//	/etc/overmount.toml        the configuration
//	/etc/overmount/keys/NAME        the public keys that sign manifests
//
// The mounts come over /lib/modules/KVER and /lib/firmware. So the firmware of
// stage 1 lies elsewhere, and the kernel is told where (firmware_class.path): a
// network card that asks again must not wait for what only it can fetch.
//
// Modules and firmware are uncompressed because not every kernel can decompress
// them, and the image is compressed as a whole.
//
// The same inputs give the same bytes, whatever the umask, the clock and the order
// of options. Modes are fixed; only included files keep theirs. Everything belongs
// to root.
package initramfs

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"overmount/internal/cpio"
	"overmount/kmod"
	"overmount/signature"
)

// Paths in the image, without the / before them.
const (
	ProgramPath  = "bin/overmount"
	Stage1List   = "lib/overmount/stage1"
	AlwaysList   = "lib/overmount/always"
	FirmwareDir  = "lib/overmount/firmware"
	ConfigPath   = "etc/overmount.toml"
	KeyDir       = "etc/overmount/keys"
	StartPath    = "etc/overmount/start" // what the script /init starts, if it is there
	udhcpcScript = "usr/share/udhcpc/default.script"
)

//go:embed init.sh
var initScript []byte

//go:embed udhcpc.sh
var udhcpcText []byte

// Options say what an image is made of.
type Options struct {
	Modules  fs.FS    // a directory lib/modules/KVER with its indexes
	Kver     string   // of Modules
	Firmware fs.FS    // a directory lib/firmware; nil for none
	Stage1   []string // what stage 1 holds: see [Select]

	Program string // the file of this program
	Busybox string // the file of busybox; empty for none
	// Applets are the paths of links to busybox, as "sbin/ip". Where something
	// else is, that stays.
	Applets []string
	// Udev is the root directory of a system whose udev and kmod come along;
	// empty for none.
	Udev string
	Init string // a file for /init; empty for the script, which needs busybox
	// Programs are programs of this system, which bring the libraries that they need.
	Programs []Include
	Config   string // a file; empty for none
	Keys     []string
	Include  []Include

	Mtime time.Time // of everything in the image; zero is 1970
}

// An Include is a file or directory of the host that comes into the image as it is.
type Include struct {
	From string
	To   string // absolute path in the image; empty is that of From
}

// An Image is made, and not written yet.
type Image struct {
	Stage1   *Stage1
	Parts    []*Part
	Warnings []string // what is odd, but keeps no image from being made

	archive   cpio.Archive
	libraries map[string]string // by path in the image: the file that it is from
}

// A Part is a share of an image.
type Part struct {
	Name  string
	Files int   // regular files and links
	Bytes int64 // of the regular files

	contents []cpio.Content
}

// New gathers what belongs to an image. Modules and firmware are read; files of
// the host are only looked at, and read by [Image.Write].
//
// It fails for a module, program or library that is missing, for a key that is
// none, and for two different things at one path. The error names the file.
func New(ctx context.Context, o *Options) (*Image, error) {
	im := &Image{}
	im.archive.Mtime = o.Mtime
	if err := o.check(); err != nil {
		return nil, err
	}
	for _, add := range []func(context.Context, *Options) error{
		im.addStage1, im.addPrograms, im.addConfig, im.addChosen, im.addIncluded, im.addSkeleton,
	} {
		if err := add(ctx, o); err != nil {
			return nil, err
		}
	}
	im.Parts = slices.DeleteFunc(im.Parts, func(p *Part) bool { return p.Files == 0 })
	return im, nil
}

func (o *Options) check() error {
	switch {
	case !kmod.IsVersion(o.Kver) || strings.Contains(o.Kver, "/"):
		return fmt.Errorf("kernel version %q: want one such as 6.1.0-56-amd64", o.Kver)
	case o.Program == "":
		return errors.New("no program overmount was given for the image")
	case o.Init == "" && o.Busybox == "":
		return errors.New("an image needs an /init: give a busybox for the script that comes with overmount, or a program")
	}
	return nil
}

// Has reports whether there is something at a path in the image.
func (im *Image) Has(name string) bool { return im.archive.Has(name) }

// part returns the part of a name, which is new or the last one of that name.
func (im *Image) part(name string) *Part {
	for _, p := range im.Parts {
		if p.Name == name {
			return p
		}
	}
	p := &Part{Name: name}
	im.Parts = append(im.Parts, p)
	return p
}

// bytes adds a file to a part.
func (im *Image) bytes(p *Part, name string, mode fs.FileMode, data []byte) error {
	return im.content(p, name, mode, int64(len(data)), cpio.Bytes(data))
}

// hostFile adds a file of the host to a part.
func (im *Image) hostFile(p *Part, name string, mode fs.FileMode, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", file)
	}
	return im.content(p, name, mode, info.Size(), func() (io.ReadCloser, error) { return os.Open(file) })
}

func (im *Image) content(p *Part, name string, mode fs.FileMode, size int64, c cpio.Content) error {
	if err := im.archive.File(name, mode, size, c); err != nil {
		return err
	}
	p.Files++
	p.Bytes += size
	p.contents = append(p.contents, c)
	return nil
}

func (im *Image) link(p *Part, name, target string) error {
	if err := im.archive.Symlink(name, target); err != nil {
		return err
	}
	p.Files++
	return nil
}

// addPrograms adds what runs, less /init.
func (im *Image) addPrograms(_ context.Context, o *Options) error {
	if err := im.addOwn(im.part("overmount"), ProgramPath, o.Program); err != nil {
		return err
	}
	if o.Udev != "" {
		if err := im.addUdev(im.part("udev"), o.Udev); err != nil {
			return err
		}
	}
	if o.Busybox == "" {
		return nil
	}
	return im.addOwn(im.part("busybox"), "bin/busybox", o.Busybox)
}

// addOwn adds a program of this system.
func (im *Image) addOwn(p *Part, name, file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	return im.addProgram(p, "/", name, file)
}

func (im *Image) addConfig(_ context.Context, o *Options) error {
	p := im.part("config, keys")
	if o.Config != "" {
		if err := im.hostFile(p, ConfigPath, 0o644, o.Config); err != nil {
			return fmt.Errorf("configuration: %w", err)
		}
	}
	for _, key := range o.Keys {
		// A private key, taken by mistake, would go to every machine.
		if _, err := signature.ReadPublicKey(key); err != nil {
			return fmt.Errorf("key: %w", err)
		}
		if err := im.hostFile(p, path.Join(KeyDir, filepath.Base(key)), 0o644, key); err != nil {
			return fmt.Errorf("key: %w", err)
		}
	}
	return nil
}

// addChosen adds the programs that the caller has chosen.
func (im *Image) addChosen(_ context.Context, o *Options) error {
	p := im.part("programs")
	for _, inc := range o.Programs {
		from, to, err := inc.paths()
		if err != nil {
			return err
		}
		if err := im.addProgram(p, "/", strings.TrimPrefix(to, "/"), from); err != nil {
			return fmt.Errorf("program %s: %w", inc.From, err)
		}
	}
	return nil
}

// paths returns where an Include is from and where it goes, both absolute.
func (i Include) paths() (from, to string, err error) {
	if from, err = filepath.Abs(i.From); err != nil {
		return "", "", err
	}
	to = path.Clean(cmp.Or(i.To, filepath.ToSlash(from)))
	if !path.IsAbs(to) || to == "/" && !isDir(from) {
		return "", "", fmt.Errorf("include %s as %s: want an absolute path in the image", i.From, i.To)
	}
	return from, to, nil
}

// addIncluded adds the files and directories of the host.
func (im *Image) addIncluded(ctx context.Context, o *Options) error {
	p := im.part("included")
	for _, inc := range o.Include {
		from, to, err := inc.paths()
		if err != nil {
			return err
		}
		if err := im.includeTree(ctx, p, from, to); err != nil {
			return fmt.Errorf("include %s: %w", inc.From, err)
		}
	}
	return nil
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// includeTree adds a file, or a directory with all that is in it. Symlinks stay
// symlinks, but From itself is followed.
func (im *Image) includeTree(ctx context.Context, p *Part, from, to string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err := cmp.Or(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Join(to, filepath.ToSlash(rel)), "/")
		info, err := d.Info()
		if err != nil {
			return err
		}
		return im.include(p, name, file, info)
	})
}

func (im *Image) include(p *Part, name, file string, info fs.FileInfo) error {
	switch info.Mode().Type() {
	case 0:
		return im.hostFile(p, name, info.Mode(), file)
	case fs.ModeDir:
		if name == "" {
			return nil
		}
		return im.archive.Dir(name, info.Mode())
	case fs.ModeSymlink:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		return im.link(p, name, target)
	}
	return fmt.Errorf("%s is neither a file, a directory nor a symlink", file)
}

// addSkeleton adds what is needed whatever the image holds, where nothing else is,
// and so comes last.
func (im *Image) addSkeleton(_ context.Context, o *Options) error {
	if err := im.addInit(o); err != nil {
		return err
	}
	if o.Busybox != "" {
		if err := im.addApplets(im.part("busybox"), o.Applets); err != nil {
			return err
		}
	}
	for _, dir := range []string{"dev", "etc", "lib/firmware", "lib/modules/" + o.Kver, "proc", "run", "sys", "tmp", "var"} {
		if im.archive.Has(dir) {
			continue
		}
		mode := fs.FileMode(0o755)
		if dir == "tmp" {
			mode = 0o777 | fs.ModeSticky
		}
		if err := im.archive.Dir(dir, mode); err != nil {
			return err
		}
	}
	// The kernel opens it for /init before anything is mounted.
	if !im.archive.Has("dev/console") {
		return im.archive.CharDevice("dev/console", 0o600, 5, 1)
	}
	return nil
}

func (im *Image) addInit(o *Options) error {
	p := im.part("init")
	if o.Init != "" {
		if err := im.hostFile(p, "init", 0o755, o.Init); err != nil {
			return fmt.Errorf("init: %w", err)
		}
		return nil
	}
	if err := im.bytes(p, "init", 0o755, initScript); err != nil {
		return err
	}
	if im.archive.Has(udhcpcScript) {
		return nil
	}
	return im.bytes(p, udhcpcScript, 0o755, udhcpcText)
}

// addApplets links the names of applets to busybox, where nothing else is.
func (im *Image) addApplets(p *Part, applets []string) error {
	for _, name := range append([]string{"bin/sh"}, applets...) {
		if im.archive.Has(name) {
			continue
		}
		if err := im.link(p, name, "/bin/busybox"); err != nil {
			return fmt.Errorf("link to busybox: %w", err)
		}
	}
	return nil
}
