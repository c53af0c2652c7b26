package initramfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
	"overmount/kmod/kmodtest"
)

const publicKey = "untrusted comment: a key of the tests\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n"

// full are options that use all there is, without programs of the host.
func full(t *testing.T, modules string) *Options {
	t.Helper()
	dir := t.TempDir()
	o := options(t, modules, "server", "overlay")
	o.Init = ""
	o.Busybox = o.Program
	o.Applets = []string{"sbin/modprobe", "bin/ls", "bin/overmount"}
	firmware := filepath.Join(dir, "firmware")
	write(t, filepath.Join(firmware, "tigon/tg3.bin.xz"), string(kmodtest.XZ(t, []byte("tg3"))))
	write(t, filepath.Join(firmware, "tigon/many1.bin"), "\x1f\x8b is not compressed")
	write(t, filepath.Join(firmware, "tigon/many2.bin.zst"), string(kmodtest.Zstd(t, []byte("many2"))))
	write(t, filepath.Join(firmware, "other.bin"), "nobody wants it")
	o.Firmware = os.DirFS(firmware)
	o.Config = filepath.Join(dir, "some.toml")
	write(t, o.Config, "# nothing\n")
	for _, name := range []string{"one.pub", "two.pub"} {
		write(t, filepath.Join(dir, name), publicKey)
		o.Keys = append(o.Keys, filepath.Join(dir, name))
	}
	write(t, filepath.Join(dir, "inc/etc/motd"), "hello\n")
	write(t, filepath.Join(dir, "inc/run.sh"), "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(dir, "inc/run.sh"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("etc/motd", filepath.Join(dir, "inc/link")); err != nil {
		t.Fatal(err)
	}
	o.Include = []Include{{From: filepath.Join(dir, "inc"), To: "/opt"}, {From: filepath.Join(dir, "inc/run.sh"), To: "/" + StartPath}}
	return o
}

func TestImageHolds(t *testing.T) {
	im := image(t, full(t, kernel(t)))
	dir := unpacked(t, im)
	for name, want := range map[string]string{
		FirmwareDir + "/tigon/tg3.bin":             "tg3",
		FirmwareDir + "/tigon/many1.bin":           "\x1f\x8b is not compressed",
		FirmwareDir + "/tigon/many2.bin":           "many2",
		ConfigPath:                                 "# nothing\n",
		KeyDir + "/two.pub":                        publicKey,
		"opt/link":                                 "hello\n",
		"bin/sh":                                   "#!/bin/sh\n",
		AlwaysList:                                 "overlay\nfuse\n",
		"lib/modules/" + kver + "/modules.order":   "kernel/fs/overlayfs/overlay.ko\nkernel/fs/fuse/fuse.ko\nkernel/drivers/virtio/virtio.ko\n",
		"lib/modules/" + kver + "/modules.builtin": "kernel/net/packet/af_packet.ko\nkernel/drivers/virtio/virtio_mmio.ko\n",
	} {
		// The links to busybox are absolute.
		if target, err := os.Readlink(filepath.Join(dir, name)); err == nil && filepath.IsAbs(target) {
			name = target
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v, want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]fs.FileMode{
		"init": 0o755, "bin/overmount": 0o755, StartPath: 0o750, "tmp": fs.ModeDir | fs.ModeSticky | 0o777, "lib/firmware": fs.ModeDir | 0o755,
		"dev/console": fs.ModeDevice | fs.ModeCharDevice | 0o600, ConfigPath: 0o644,
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want mode %v", name, info, err, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, FirmwareDir, "other.bin")); err == nil {
		t.Error("the image has a firmware that no module of stage 1 declares")
	}
	if want := []string{"tigon/none.bin"}; !slices.Equal(im.Stage1.NoFirmware, want) {
		t.Errorf("declared and missing: %q, want %q", im.Stage1.NoFirmware, want)
	}
	modules, err := filepath.Glob(dir + "/lib/modules/*/kernel/*/*/*.ko*")
	if err != nil || len(modules) == 0 {
		t.Error("there are no modules")
	}
	list, err := os.ReadFile(filepath.Join(dir, Stage1List))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		head := make([]byte, 4)
		f, err := os.Open(filepath.Join(dir, "lib/modules", kver, strings.TrimSpace(line)))
		if err == nil {
			_, err = io.ReadFull(f, head)
			f.Close()
		}
		if err != nil || string(head) != "\x7fELF" {
			t.Errorf("module %s begins with %q, %v, want it uncompressed", line, head, err)
		}
	}
}

// The bytes of an image depend on nothing but its content.
func TestReproducible(t *testing.T) {
	modules := kernel(t)
	o := full(t, modules)
	o.Mtime = time.Unix(1700000000, 0)
	want := map[Compression][]byte{}
	for _, c := range []Compression{None, Gzip, Zstd} {
		want[c] = written(t, image(t, o), c)
	}
	defer unix.Umask(unix.Umask(0o077))
	slices.Reverse(o.Include)
	slices.Reverse(o.Keys)
	slices.Reverse(o.Applets)
	o.Stage1 = []string{"overlay", "vm", "server"}
	if err := os.Chtimes(o.Config, time.Now(), time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	for c, want := range want {
		if got := written(t, image(t, o), c); !bytes.Equal(got, want) {
			t.Errorf("%v: another umask, order and time gave other bytes", c)
		}
	}
}

func TestCompressedImageIsTheImage(t *testing.T) {
	im := image(t, full(t, kernel(t)))
	want := written(t, im, None)
	for c, tool := range map[Compression]string{Zstd: "zstd", Gzip: "gzip"} {
		cmd := exec.Command(testenv.Tool(t, tool), "-dc")
		cmd.Stdin = bytes.NewReader(written(t, im, c))
		got, err := cmd.Output()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s -dc gives %d bytes, %v, want the %d of the archive", tool, len(got), err, len(want))
		}
	}
}

func TestSharesAddUp(t *testing.T) {
	im := image(t, full(t, kernel(t)))
	shares, err := im.Shares(None)
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for i, p := range im.Parts {
		parts = append(parts, p.Name)
		if shares[i] != p.Bytes {
			t.Errorf("part %s: %d bytes and, not compressed, a share of %d", p.Name, p.Bytes, shares[i])
		}
	}
	want := []string{"modules", "indexes", "firmware", "overmount", "busybox", "config, keys", "included", "init"}
	if !slices.Equal(parts, want) {
		t.Errorf("parts %q, want %q", parts, want)
	}
}

func TestRefuses(t *testing.T) {
	modules := kernel(t)
	private, text := filepath.Join(t.TempDir(), "secret.key"), filepath.Join(t.TempDir(), "text")
	write(t, text, "not a program\n")
	write(t, private, "untrusted comment: minisign encrypted secret key\nRWRTY0Iyz8kmPMKrqk6DCtlO9a33akKiaOQG1aLolqDxs52qvPoAAAACAAAAAAAAAEAAAAAA\n")
	for want, change := range map[string]func(o *Options){
		"key: ":                               func(o *Options) { o.Keys = []string{private} },
		"something is at this path already":   func(o *Options) { o.Include = []Include{{From: o.Program, To: "/bin/overmount"}} },
		"is not a directory":                  func(o *Options) { o.Include = []Include{{From: o.Program, To: "/bin/overmount/x"}} },
		"want an absolute path in the image":  func(o *Options) { o.Include = []Include{{From: o.Program, To: "bin/x"}} },
		"no such file or directory":           func(o *Options) { o.Config = "/nonexistent" },
		"text is no program: neither an ELF":  func(o *Options) { o.Busybox = text },
		"there is no udevadm in":              func(o *Options) { o.Udev = filepath.Dir(o.Program) },
		"an image needs an /init":             func(o *Options) { o.Init = "" },
		`kernel version "": want one`:         func(o *Options) { o.Kver = "" },
		"neither a module of this kernel nor": func(o *Options) { o.Stage1 = []string{"sever"} },
	} {
		o := options(t, modules, "virtio")
		change(o)
		if _, err := New(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, want an error with %q", err, want)
		}
	}
}

// An image for another machine with the program of this one would not start.
func TestOtherMachine(t *testing.T) {
	dir := kernel(t)
	for machine, want := range map[elf.Machine]string{elf.EM_X86_64: "", elf.EM_386: "", elf.EM_RISCV: "is a program for riscv, and the modules are for x86_64"} {
		o := options(t, dir, "virtio")
		o.Program = filepath.Join(t.TempDir(), "program")
		var program bytes.Buffer
		header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Phentsize: 56, Shentsize: 64}
		copy(header.Ident[:], elf.ELFMAG)
		header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
		if err := binary.Write(&program, binary.LittleEndian, header); err != nil {
			t.Fatal(err)
		}
		write(t, o.Program, program.String())
		if got := strings.Join(image(t, o).Warnings, "; "); !strings.HasSuffix(got, want) || (got == "") != (want == "") {
			t.Errorf("a program for %v: warnings %q, want %q", machine, got, want)
		}
	}
}

// A file that is cut short while the image is written does not make an image that
// is damaged without a word.
func TestFileThatChanges(t *testing.T) {
	o := options(t, kernel(t), "virtio")
	im := image(t, o)
	write(t, o.Program, "x")
	if err := im.Write(io.Discard, Zstd); err == nil || !strings.Contains(err.Error(), "bin/overmount") {
		t.Errorf("Write after a file has changed: %v, want an error that names it", err)
	}
}

// Programs of this host run in the image, with nothing but what it holds.
func TestProgramsRun(t *testing.T) {
	testenv.Root(t, "chroot")
	busybox := testenv.Tool(t, "busybox")
	testenv.Tool(t, "udevadm")
	o := options(t, kernel(t), "virtio")
	o.Busybox, o.Udev, o.Applets = busybox, "/", []string{"sbin/modprobe", "bin/cat"}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o.Program = self
	dir := unpacked(t, image(t, o))
	for _, command := range []string{
		"/bin/udevadm --version", "/sbin/udevd --version", "/bin/kmod --version", "/sbin/modprobe --version", "/bin/sh -c true", "/bin/cat /init",
		"/bin/overmount -test.run=^$",
		"/sbin/modprobe -S " + kver + " --show-depends virtio_net",
	} {
		run(t, "chroot", append([]string{dir}, strings.Fields(command)...)...)
	}
}

func TestInRoot(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "usr/lib/x.so.1.2"), "")
	for link, target := range map[string]string{
		"lib": "usr/lib", "usr/lib/x.so.1": "x.so.1.2", "up": "../../../../usr/lib", "abs": "/usr/lib/x.so.1", "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"/lib/x.so.1": "/usr/lib/x.so.1.2", "/up/x.so.1": "/usr/lib/x.so.1.2", "/abs": "/usr/lib/x.so.1.2", "/lib/../lib//x.so.1.2": "/usr/lib/x.so.1.2",
		"/": "/", "/lib/nosuch": "", "/loop": "",
	} {
		got, err := inRoot(root, name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("inRoot(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
}

// Two systems whose libraries have one name cannot both be in an image.
func TestLibrariesOfTwoSystems(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for _, root := range []string{one, two} {
		write(t, filepath.Join(root, "lib/libc.so.6"), root)
	}
	im := &Image{}
	p := im.part("udev")
	libc := library{path: "/lib/libc.so.6", file: "/lib/libc.so.6"}
	for i, c := range []struct {
		root string
		fail bool
	}{{one, false}, {one, false}, {two, true}} {
		if err := im.addLibrary(p, c.root, libc); (err != nil) != c.fail {
			t.Errorf("library %d: %v, want an error: %v", i, err, c.fail)
		}
	}
}

// A program's libraries are found in its own directories, in those of the machine,
// and through libraries: also where only the program says where they are, which is
// how systemd has its own.
func TestLibrariesOfThisSystem(t *testing.T) {
	for _, name := range []string{"udevadm", "systemd"} {
		t.Run(name, func(t *testing.T) { sameAsLdd(t, testenv.Tool(t, name)) })
	}
}

func sameAsLdd(t *testing.T, program string) {
	t.Helper()
	ldd := run(t, testenv.Tool(t, "ldd"), program)
	file, err := inRoot("/", program)
	if err != nil {
		t.Fatal(err)
	}
	c := &libraries{root: "/", seen: map[string]bool{}}
	if err := c.of(file); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range c.found {
		got = append(got, l.path)
	}
	for line := range strings.Lines(ldd) {
		// libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x...), or only a path
		for word := range strings.FieldsSeq(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			if !slices.ContainsFunc(got, func(path string) bool { return filepath.Base(path) == filepath.Base(word) }) {
				t.Errorf("ldd finds %s, and the image has only %q", word, got)
			}
		}
	}
}
