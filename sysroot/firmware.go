package sysroot

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"overmount/internal/decompress"
	"overmount/internal/pathfs"
)

// maxFirmware bounds the plain form of a compressed file, in bytes. The largest
// file of linux-firmware has 50 MB.
const maxFirmware = 512 << 20

// FirmwareOptions are the options of [Firmware]. Nil and zero mean the defaults.
type FirmwareOptions struct {
	// KeepCompressed leaves files that are compressed as they are. Kernels of
	// which some are built without CONFIG_FW_LOADER_COMPRESS then do not find
	// them.
	KeepCompressed bool
}

// A Finding is something about a file that is worth a look, and is no failure.
type Finding struct {
	Path string // in the tree that was given
	Text string

	// Taken is the file that was taken in its place, in the tree that was given, if
	// it is left out because they differ, and At the path of both in the result.
	Taken, At string
}

func (f Finding) String() string { return f.Path + ": " + f.Text }

// Firmware returns the firmware directory of a system or of packages: what is in
// lib/firmware and usr/lib/firmware, as one. A tree that has neither, nor a usr or
// lib, is such a directory itself.
//
// Files called NAME.zst or NAME.xz that are compressed in that way are shown as
// NAME, plain, and symlinks to them follow: every kernel takes the plain name, and
// asks for it first. If there are several, the plain one is taken, then .zst, then
// .xz, which is the order of the kernel; that they differ is a finding.
//
// Symlinks are relative to the directory in the end. One that leads out of it
// becomes the file that it leads to. If that is not in the tree, or no regular file,
// it stays as it is, and is a finding. So is one that leads nowhere.
//
// It reads what it takes to know the length of each file: the beginning of .zst
// files that state it, which then must be right, and other compressed files as a
// whole. It fails for what is neither file, directory nor symlink, for damaged
// files, and for those whose plain form has over 512 MiB.
func Firmware(ctx context.Context, src fs.FS, o *FirmwareOptions) (*FirmwareTree, error) {
	if o == nil {
		o = &FirmwareOptions{}
	}
	c := &collector{sys: system{src, "."}, keep: o.KeepCompressed, items: map[string]*item{}, nodes: map[string]*node{}}
	roots := c.sys.real("firmware")
	if len(roots) == 0 {
		if c.sys.isDir("usr") || c.sys.isDir("lib") {
			return nil, errors.New("there is no firmware in it: it has neither lib/firmware nor usr/lib/firmware")
		}
		c.sys.at = "lib/firmware"
		roots = []string{c.sys.at}
	}
	for _, root := range roots {
		if err := c.walk(ctx, root); err != nil {
			return nil, fmt.Errorf("read firmware: %w", err)
		}
	}
	if err := c.arrange(ctx); err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	slices.SortStableFunc(c.findings, func(a, b Finding) int { return strings.Compare(a.Path, b.Path) })
	t := &FirmwareTree{Findings: c.findings, src: src}
	t.FS = pathfs.New(c.nodes, pathfs.Options[*node]{Open: t.open})
	return t, nil
}

// An item is a file of the tree that was given, and what becomes of it.
type item struct {
	name   string // in the system
	rel    string // below the firmware directory
	info   fs.FileInfo
	format decompress.Format // in which it is compressed, and will not be

	to      string // path in the result
	content string // the file in the tree that was given whose content it shows
	target  string // of a symlink
}

type collector struct {
	sys   system
	keep  bool
	order []*item
	items map[string]*item // by name

	nodes    map[string]*node // by path in the result
	findings []Finding
}

func (c *collector) found(it *item, format string, args ...any) {
	c.findings = append(c.findings, Finding{Path: c.given(it.name), Text: fmt.Sprintf(format, args...)})
}

// given returns the path of what is at a path of the system in the tree that was
// given.
func (c *collector) given(name string) string {
	if in, ok := c.sys.inside(name); ok {
		return in
	}
	return name
}

// walk lists a directory of firmware.
func (c *collector) walk(ctx context.Context, root string) error {
	return fs.WalkDir(c.sys.src, c.given(root), func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		full := path.Join(c.sys.at, name)
		it := &item{name: full, rel: cmp.Or(strings.TrimPrefix(full[len(root):], "/"), "."), content: name}
		if it.info, err = d.Info(); err != nil {
			return err
		}
		it.to = it.rel
		switch it.info.Mode().Type() {
		case 0, fs.ModeDir:
		case fs.ModeSymlink:
			it.target, err = fs.ReadLink(c.sys.src, name)
		default:
			err = fmt.Errorf("%s: it is no file, directory or symlink but %v, which does not belong there", name, it.info.Mode().Type())
		}
		c.order = append(c.order, it)
		c.items[full] = it
		return err
	})
}

// arrange finds out what becomes of each item.
func (c *collector) arrange(ctx context.Context) error {
	for _, it := range c.order {
		if it.info.Mode().IsRegular() {
			if err := c.unpacked(it); err != nil {
				return err
			}
		}
	}
	// What becomes of a symlink depends on where it ends; its target, on what has
	// become of the symlink that it leads to.
	for _, it := range c.order {
		if it.target != "" {
			if err := c.follow(it); err != nil {
				return err
			}
		}
	}
	for _, it := range c.order {
		if it.target != "" {
			c.retarget(it)
		}
	}
	// Plain files before compressed ones, .zst before .xz; otherwise in the order
	// of the walk.
	slices.SortStableFunc(c.order, func(a, b *item) int { return rank(a) - rank(b) })
	for _, it := range c.order {
		if err := c.place(it); err != nil {
			return err
		}
	}
	return c.measure(ctx)
}

func rank(it *item) int {
	switch {
	case it.to == it.rel:
		return 0
	case strings.HasSuffix(it.rel, ".zst"):
		return 1
	}
	return 2
}

// unpacked decides whether a regular file is shown decompressed.
func (c *collector) unpacked(it *item) error {
	plain, format := decompress.OfName(it.rel)
	if c.keep || format != decompress.Zstd && format != decompress.XZ || plain == "" || strings.HasSuffix(plain, "/") {
		return nil
	}
	head, err := c.head(it.content)
	if err != nil {
		return err
	}
	if decompress.Of(head) != format {
		c.found(it, "its name says %v, and its content does not; it is taken as it is", format)
		return nil
	}
	it.to, it.format = plain, format
	return nil
}

// head returns the first bytes of a file, enough for the header of a zstd frame.
func (c *collector) head(name string) ([]byte, error) {
	f, err := c.sys.src.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, zstd.HeaderMaxSize)
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return head[:n], nil
}

// leads returns the path in the system to which a symlink leads.
func leads(it *item) string {
	if path.IsAbs(it.target) {
		return it.target
	}
	return path.Dir(it.name) + "/" + it.target // ".." behind a symlink is not lexical
}

// follow decides what a symlink becomes, and what it is called.
func (c *collector) follow(it *item) error {
	end, info, err := c.sys.find(leads(it), true)
	final := c.items[end]
	switch {
	case err != nil:
		c.found(it, "it is a symlink to %s, which leads nowhere in this tree; it stays as it is", it.target)
	case final == nil && info.Mode().IsRegular():
		it.info, it.content, it.target = info, c.given(end), ""
		return c.unpacked(it)
	case final == nil:
		c.found(it, "it is a symlink to %s, which is outside the firmware directory and no regular file; it stays as it is", it.target)
	case final.to != final.rel:
		it.to = strings.TrimSuffix(it.to, strings.TrimPrefix(final.rel, final.to))
	}
	return nil
}

// retarget makes a symlink lead to what the item is called that it leads to. The
// way that it takes is kept if it does not leave the directory.
func (c *collector) retarget(it *item) {
	end, _, err := c.sys.find(leads(it), true)
	if err != nil || c.items[end] == nil {
		return
	}
	to := c.items[end]
	// The next on the way, unless that is outside.
	if next, _, err := c.sys.find(leads(it), false); err == nil && c.items[next] != nil {
		to = c.items[next]
	}
	dir := path.Dir(it.rel)
	direct := !path.IsAbs(it.target) && !climbs(dir, it.target) && path.Join(dir, it.target) == to.rel
	switch {
	case !direct:
		it.target = relative(path.Dir(it.to), to.to)
	case to.to != to.rel:
		way, _ := path.Split(it.target)
		it.target = way + path.Base(to.to)
	}
}

// climbs reports whether a relative path leaves the root on its way from dir.
func climbs(dir, target string) bool {
	depth := strings.Count(dir+"/", "/")
	if dir == "." {
		depth = 0
	}
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// relative returns the path to a file from a directory.
func relative(dir, file string) string {
	from, to := strings.Split(dir, "/"), strings.Split(file, "/")
	if dir == "." {
		from = nil
	}
	for len(from) > 0 && len(to) > 1 && from[0] == to[0] {
		from, to = from[1:], to[1:]
	}
	return path.Clean(strings.Repeat("../", len(from)) + strings.Join(to, "/"))
}

// place puts an item at its path in the result, where another one may be.
func (c *collector) place(it *item) error {
	n := &node{it.info, it, it.info.Size()}
	if it.target != "" {
		n.size = int64(len(it.target))
	}
	was := c.nodes[it.to]
	if was == nil {
		c.nodes[it.to] = n
		return nil
	}
	if it.info.IsDir() && was.info.IsDir() {
		return nil
	}
	if it.info.IsDir() || was.info.IsDir() {
		dir, other := it, was.item
		if was.info.IsDir() {
			dir, other = other, dir
		}
		return fmt.Errorf("%s is a directory and %s is none, and both would be %s", c.given(dir.name), c.given(other.name), it.to)
	}
	same, err := c.same(was.item, it)
	if err != nil {
		return fmt.Errorf("compare %s with %s: %w", c.given(was.name), c.given(it.name), err)
	}
	if !same {
		taken := c.given(was.name)
		c.found(it, "it is left out for %s, which differs", taken)
		f := &c.findings[len(c.findings)-1]
		f.Taken, f.At = taken, it.to
	}
	return nil
}

// same compares two items that would have the same path: symlinks by where they
// end, files by their content.
func (c *collector) same(a, b *item) (bool, error) {
	if a.target != "" && a.target == b.target {
		return true, nil
	}
	x, err := c.open(a)
	if err != nil {
		return false, pass(err)
	}
	defer x.Close()
	y, err := c.open(b)
	if err != nil {
		return false, pass(err)
	}
	defer y.Close()
	return equal(x, y)
}

// pass lets symlinks that lead nowhere differ from everything.
func pass(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// open opens what an item shows, or what a symlink leads to.
func (c *collector) open(it *item) (io.ReadCloser, error) {
	if it.target != "" {
		end, _, err := c.sys.find(it.name, true)
		if it = c.items[end]; err != nil || it == nil || !it.info.Mode().IsRegular() {
			return nil, fs.ErrNotExist
		}
	}
	return openPlain(c.sys.src, it.content, it.format)
}

// equal compares two streams.
func equal(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for total := 0; total <= maxFirmware; {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if n < len(x) {
			return true, nil
		}
		total += n
	}
	return false, nil
}

// measure finds out the length of the plain form of each compressed file.
func (c *collector) measure(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, n := range c.nodes {
		if n.format == decompress.None {
			continue
		}
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			var err error
			if n.size, err = c.length(n.item); err == nil && n.size > maxFirmware {
				err = fmt.Errorf("its plain form has over the limit of %d bytes", maxFirmware)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", n.content, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (c *collector) length(it *item) (int64, error) {
	if it.format == decompress.Zstd {
		head, err := c.head(it.content)
		if err != nil {
			return 0, err
		}
		var h zstd.Header
		if h.Decode(head) == nil && h.HasFCS && !h.Skippable {
			return int64(min(h.FrameContentSize, maxFirmware+1)), nil
		}
	}
	f, err := openPlain(c.sys.src, it.content, it.format)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return io.Copy(io.Discard, io.LimitReader(f, maxFirmware+1))
}

// openPlain opens a file with its content decompressed.
func openPlain(src fs.FS, name string, format decompress.Format) (*plainFile, error) {
	f, err := src.Open(name)
	if err != nil {
		return nil, err
	}
	z, err := decompress.NewReader(format, f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &plainFile{File: f, z: z}, nil
}

// A plainFile is an open file whose content is decompressed on the way.
type plainFile struct {
	fs.File
	z io.ReadCloser
}

func (f *plainFile) Read(p []byte) (int, error) { return f.z.Read(p) }

func (f *plainFile) Close() error {
	f.z.Close()
	return f.File.Close()
}
