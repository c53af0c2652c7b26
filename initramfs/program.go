package initramfs

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// addProgram adds a program of the system in root, with its interpreter and the
// libraries that it needs. A static one needs none. A script is added as it is.
func (im *Image) addProgram(p *Part, root, name, file string) error {
	file, err := inRoot(root, file)
	if err != nil {
		return err
	}
	if err := im.checkProgram(filepath.Join(root, file)); err != nil {
		return err
	}
	if err := im.hostFile(p, name, 0o755, filepath.Join(root, file)); err != nil {
		return err
	}
	c := &libraries{root: root, seen: map[string]bool{}}
	if err := c.of(file); err != nil {
		return fmt.Errorf("libraries of %s: %w", filepath.Join(root, file), err)
	}
	for _, l := range c.found {
		if err := im.addLibrary(p, root, l); err != nil {
			return fmt.Errorf("libraries of %s: %w", filepath.Join(root, file), err)
		}
	}
	for _, name := range c.lacks {
		im.Warnings = append(im.Warnings, filepath.Join(root, file)+": "+name)
	}
	return nil
}

// checkProgram fails for what no kernel can run, and warns of what that of the modules
// cannot: an image is made on one machine for another, and the program that lies at
// hand is for this one.
func (im *Image) checkProgram(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, elfHead)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	switch {
	case bytes.HasPrefix(head[:n], []byte("#!")):
		return nil
	case n < len(head) || !bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		return fmt.Errorf("%s is no program: neither an ELF file nor a script", file)
	}
	if its, modules := machineOf(head), im.Stage1.machine(); !runs(modules, its) {
		im.Warnings = append(im.Warnings, fmt.Sprintf("%s is a program for %s, and the modules are for %s", file, machineName(its), machineName(modules)))
	}
	return nil
}

// elfHead is how many bytes of an ELF file say for which machine it is.
const elfHead = 20

// machineOf is the machine in the header of an ELF file, of which these are the first
// elfHead bytes at least.
func machineOf(file []byte) elf.Machine {
	if file[elf.EI_DATA] == byte(elf.ELFDATA2MSB) {
		return elf.Machine(binary.BigEndian.Uint16(file[18:]))
	}
	return elf.Machine(binary.LittleEndian.Uint16(file[18:]))
}

// runs reports whether a kernel for one machine runs programs for another: those with 64
// bits run those of their kind with 32.
func runs(kernel, program elf.Machine) bool {
	return kernel == program || kernel == elf.EM_NONE ||
		kernel == elf.EM_X86_64 && program == elf.EM_386 || kernel == elf.EM_AARCH64 && program == elf.EM_ARM
}

func machineName(m elf.Machine) string { return strings.ToLower(strings.TrimPrefix(m.String(), "EM_")) }

// addLibrary adds a library, unless another program brought it. Programs of two
// systems may need two different ones of one name, which cannot be.
func (im *Image) addLibrary(p *Part, root string, l library) error {
	name, file := strings.TrimPrefix(l.path, "/"), filepath.Join(root, l.file)
	if other, ok := im.libraries[name]; ok {
		if other != file {
			return fmt.Errorf("%s is needed as it is in %s and as it is in %s: static programs, or those of one system, do not disagree", l.path, other, file)
		}
		return nil
	}
	if im.libraries == nil {
		im.libraries = map[string]string{}
	}
	im.libraries[name] = file
	return im.hostFile(p, name, 0o755, file)
}

// A library is a file that a program needs when it starts.
type library struct {
	path string // where the dynamic linker finds it
	file string // what is there, symlinks followed
}

// libraries gathers what the dynamic linker would load, ld.so(8), and what programs
// say that they open later.
type libraries struct {
	root  string
	found []library
	lacks []string        // what a program would open, and is not there
	seen  map[string]bool // paths, and names that were looked for
}

// An object is what an ELF file says to the dynamic linker.
type object struct {
	file    string
	class   elf.Class
	machine elf.Machine
	interp  string
	needed  []string
	runpath []string
	opens   []dlopened
}

// of adds what a file needs, and what that needs.
func (c *libraries) of(file string) error {
	o, err := readObject(c.root, file)
	if err != nil || o == nil {
		return err
	}
	if o.interp != "" {
		if err := c.add(o.interp); err != nil {
			return fmt.Errorf("interpreter %s: %w", o.interp, err)
		}
	}
	return c.needs(o, c.standard(o))
}

// needs adds the libraries that an object needs, and those that these need, which
// are looked for in the directories of the one that needs them, then in the
// standard ones. As the linker does, it takes the near ones first, and looks for no
// name twice: a library may need one that only the program knows where to find.
func (c *libraries) needs(o *object, standard []string) error {
	objects := []*object{o}
	for i := 0; i < len(objects); i++ {
		by := objects[i]
		for _, name := range by.needed {
			if c.seen[name] {
				continue
			}
			other, err := c.find(by, name, append(slices.Clip(by.runpath), standard...))
			if err != nil {
				return err
			}
			c.seen[name] = true
			objects = append(objects, other)
		}
	}
	for _, by := range objects {
		if err := c.mayOpen(by, standard); err != nil {
			return err
		}
	}
	return nil
}

// mayOpen adds the libraries that an object opens while it runs, if they are there.
func (c *libraries) mayOpen(o *object, standard []string) error {
	for _, d := range o.opens {
		if !d.wanted() {
			continue
		}
		found := false
		for _, name := range d.Soname {
			one := *o
			one.needed, one.opens = []string{name}, nil
			err := c.needs(&one, standard)
			if errors.Is(err, errNoLibrary) {
				continue
			}
			if err != nil {
				return err
			}
			found = true
			break
		}
		if !found {
			c.lacks = append(c.lacks, fmt.Sprintf("it opens %s (%s), which is not there", strings.Join(d.Soname, " or "), d.Description))
		}
	}
	return nil
}

// errNoLibrary says that a library is in none of the directories.
var errNoLibrary = errors.New("no such library")

// find looks for a library, and adds it.
func (c *libraries) find(by *object, name string, dirs []string) (*object, error) {
	if strings.Contains(name, "/") {
		dirs = []string{""}
	}
	for _, dir := range dirs {
		at := path.Join("/", dir, name)
		file, err := inRoot(c.root, at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		o, err := readObject(c.root, file)
		if err != nil {
			return nil, err
		}
		if o == nil || o.class != by.class || o.machine != by.machine {
			continue // as the linker goes on to the next
		}
		return o, c.add(at)
	}
	return nil, fmt.Errorf("%s needs %s, and there is %w in %s", by.file, name, errNoLibrary, strings.Join(dirs, ", "))
}

func (c *libraries) add(at string) error {
	if c.seen[at] {
		return nil
	}
	c.seen[at] = true
	file, err := inRoot(c.root, at)
	if err != nil {
		return err
	}
	c.found = append(c.found, library{path: at, file: file})
	return nil
}

// standard returns the directories in which the dynamic linker of a program looks
// without being told: those of Debian's and other glibc, or of musl.
func (c *libraries) standard(o *object) []string {
	if strings.Contains(path.Base(o.interp), "ld-musl") {
		return []string{"/lib", "/usr/local/lib", "/usr/lib"}
	}
	var dirs []string
	if t := triplet(o.machine); t != "" {
		dirs = append(dirs, "/lib/"+t, "/usr/lib/"+t)
	}
	if o.class == elf.ELFCLASS64 {
		dirs = append(dirs, "/lib64", "/usr/lib64")
	}
	return append(dirs, "/lib", "/usr/lib")
}

// triplet names the directory of a machine's libraries, as Debian has it.
func triplet(m elf.Machine) string {
	switch m {
	case elf.EM_X86_64:
		return "x86_64-linux-gnu"
	case elf.EM_386:
		return "i386-linux-gnu"
	case elf.EM_AARCH64:
		return "aarch64-linux-gnu"
	case elf.EM_ARM:
		return "arm-linux-gnueabihf"
	case elf.EM_RISCV:
		return "riscv64-linux-gnu"
	case elf.EM_S390:
		return "s390x-linux-gnu"
	case elf.EM_PPC64:
		return "powerpc64le-linux-gnu"
	}
	return ""
}

// readObject reads an ELF file; nil if it is none.
func readObject(root, file string) (*object, error) {
	f, err := os.Open(filepath.Join(root, file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	magic := make([]byte, len(elf.ELFMAG))
	n, err := io.ReadFull(f, magic)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	if string(magic[:n]) != elf.ELFMAG {
		return nil, nil
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	o := &object{file: file, class: e.Class, machine: e.Machine}
	if err := o.read(e); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return o, nil
}

// maxInterp bounds the length of the interpreter's path, as the kernel does
// (fs/binfmt_elf.c, PATH_MAX).
const maxInterp = 4096

func (o *object) read(e *elf.File) error {
	for _, prog := range e.Progs {
		if prog.Type != elf.PT_INTERP {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(prog.Open(), maxInterp))
		if err != nil {
			return err
		}
		o.interp = path.Join("/", strings.TrimRight(string(b), "\x00"))
	}
	if notes := e.Section(".note.dlopen"); notes != nil {
		data, err := notes.Data()
		if err != nil {
			return err
		}
		if o.opens, err = parseDlopen(data, e.ByteOrder); err != nil {
			return err
		}
	}
	if e.Section(".dynamic") == nil {
		return nil
	}
	var err error
	if o.needed, err = e.ImportedLibraries(); err != nil {
		return err
	}
	run, err := e.DynString(elf.DT_RUNPATH)
	if err != nil {
		return err
	}
	rpath, err := e.DynString(elf.DT_RPATH)
	if err != nil {
		return err
	}
	if len(run) == 0 {
		run = rpath
	}
	for dir := range strings.SplitSeq(strings.Join(run, ":"), ":") {
		if dir != "" {
			o.runpath = append(o.runpath, o.origin(dir))
		}
	}
	return nil
}

// origin puts the directory of the object in the place of $ORIGIN.
func (o *object) origin(dir string) string {
	return strings.NewReplacer("${ORIGIN}", path.Dir(o.file), "$ORIGIN", path.Dir(o.file)).Replace(dir)
}

// maxLinks is how many symlinks the kernel follows in one path.
const maxLinks = 40

// inRoot follows the symlinks of a path as a process would whose root directory is
// root, and returns an absolute path in there. It returns fs.ErrNotExist if
// something on the way is missing.
func inRoot(root, name string) (string, error) {
	at, rest := "/", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		next := path.Join(at, part)
		target, err := os.Readlink(filepath.Join(root, next))
		if err != nil {
			// It is no symlink, or it is not there.
			if _, err := os.Lstat(filepath.Join(root, next)); err != nil {
				return "", err
			}
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many symlinks", name)
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return cmp.Or(at, "/"), nil
}
