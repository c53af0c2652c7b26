package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/tree"
)

func (a *app) flistCommand() *cobra.Command {
	var t trust
	cmd := group("flist", "Look into a manifest without mounting it, and change its stores",
		a.inspectCommand(&t), a.treeCommand(&t), a.lsCommand(&t), a.catCommand(&t), a.statCommand(&t), a.diffCommand(&t), a.editStoreCommand(&t))
	t.flags(cmd)
	cmd.Long = `Flist shows what a manifest holds. FILE is a path or an http(s) URL; PATH is a path
in the tree, by default its root. Only cat fetches content, and only edit-store
changes anything.

` + exitCodes
	return cmd
}

// pathVerb is a verb of flist that takes FILE and, perhaps, PATH.
func (a *app) pathVerb(t *trust, use, short, example string, needPath bool, run func(cmd *cobra.Command, m *manifest.Manifest, ino manifest.Ino) error) *cobra.Command {
	least := 1
	if needPath {
		least = 2
	}
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example, Long: short + ".\n\n" + exitCodes,
		Args: args(least, 2, strings.TrimPrefix(use[strings.IndexByte(use, ' '):], " ")),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, _, err := t.open(cmd.Context(), a, args[0])
			if err != nil {
				return err
			}
			at := "."
			if len(args) > 1 {
				at = args[1]
			}
			ino, err := m.Find(at)
			if err != nil {
				return fmt.Errorf("%s has no %s", shown(args[0]), at)
			}
			return run(cmd, m, ino)
		},
	}
	return cmd
}

// node is a node of a tree in JSON.
type node struct {
	Path   string            `json:"path"`
	Type   string            `json:"type"`
	Ino    manifest.Ino      `json:"ino"`
	Mode   string            `json:"mode"`
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Size   int64             `json:"size"`
	Mtime  int64             `json:"mtime"`
	Nlink  uint32            `json:"nlink"`
	Rdev   string            `json:"rdev,omitempty"`
	Target string            `json:"target,omitempty"`
	LinkTo string            `json:"link_to,omitempty"`
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
	Blocks []string          `json:"blocks,omitempty"`
}

func describe(m *manifest.Manifest, ino manifest.Ino) node {
	at := m.Attr(ino)
	n := node{
		Path: m.Path(ino), Type: typeName(at), Ino: ino, Mode: fmt.Sprintf("%06o", at.Mode),
		UID: at.UID, GID: at.GID, Size: at.Size, Mtime: at.Mtime, Nlink: at.Nlink, Target: m.Target(ino),
	}
	if t := at.Type(); t == unix.S_IFCHR || t == unix.S_IFBLK {
		n.Rdev = fmt.Sprintf("%d:%d", unix.Major(at.Rdev), unix.Minor(at.Rdev))
	}
	if first := m.FirstName(ino); first != ino {
		n.LinkTo = m.Path(first)
	}
	for _, x := range m.Xattrs(ino) {
		if n.Xattrs == nil {
			n.Xattrs = map[string][]byte{}
		}
		n.Xattrs[x.Name] = x.Value
	}
	return n
}

func typeName(a manifest.Attr) string {
	switch a.Type() {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFREG:
		return "file"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "pipe"
	}
	return "socket"
}

func (a *app) inspectCommand(t *trust) *cobra.Command {
	var summaryOnly bool
	cmd := a.pathVerb(t, "inspect FILE [PATH]", "Print all nodes with their attributes, and a summary",
		`  overmount flist inspect modules.fl
  overmount flist inspect --summary https://web.example.com/modules.fl`, false,
		func(cmd *cobra.Command, m *manifest.Manifest, top manifest.Ino) error {
			return a.inspect(m, top, cmd.Flags().Arg(0), summaryOnly)
		})
	cmd.Flags().BoolVar(&summaryOnly, "summary", false, "print the summary alone")
	a.jsonFlag(cmd)
	return cmd
}

// summary is what inspect says of a whole manifest.
type summary struct {
	Manifest    string            `json:"manifest"`
	Files       int               `json:"files"`
	Directories int               `json:"directories"`
	Symlinks    int               `json:"symlinks"`
	Others      int               `json:"others"`
	Bytes       int64             `json:"bytes"`
	Blocks      int               `json:"blocks"`
	Objects     int               `json:"objects"`
	Codec       string            `json:"codec"`
	Tags        map[string]string `json:"tags"`
	Stores      []string          `json:"stores"`
}

func (a *app) inspect(m *manifest.Manifest, top manifest.Ino, file string, summaryOnly bool) error {
	s := summary{Manifest: shown(file), Codec: m.Codec().String(), Tags: m.Tags()}
	objects := map[block.ID]bool{}
	enc := json.NewEncoder(a.Stdout)
	for _, ino := range m.Walk(top) {
		s.count(m, ino, objects)
		var err error
		switch {
		case summaryOnly:
		case a.json:
			err = enc.Encode(describe(m, ino))
		default:
			err = printNode(a.Stdout, m, ino)
		}
		if err != nil {
			return err
		}
	}
	s.Objects = len(objects)
	for _, r := range m.Routes() {
		s.Stores = append(s.Stores, fmt.Sprintf("%02x-%02x=%s", r.First, r.Last, store.Redact(r.URL)))
	}
	if a.json {
		return enc.Encode(s)
	}
	return s.print(a.Stdout)
}

func (s *summary) count(m *manifest.Manifest, ino manifest.Ino, objects map[block.ID]bool) {
	switch at := m.Attr(ino); at.Type() {
	case unix.S_IFREG:
		s.Files++
		s.Bytes += at.Size
	case unix.S_IFDIR:
		s.Directories++
	case unix.S_IFLNK:
		s.Symlinks++
	default:
		s.Others++
	}
	for _, b := range m.Blocks(ino) {
		s.Blocks++
		objects[b.ID] = true
	}
}

// print uses the words of rfs for what rfs prints too.
func (s *summary) print(w io.Writer) error {
	fmt.Fprintf(w, "Flist Inspection: %s\n", s.Manifest)
	fmt.Fprintf(w, "  Files: %d\n  Directories: %d\n  Symlinks: %d\n  Others: %d\n", s.Files, s.Directories, s.Symlinks, s.Others)
	fmt.Fprintf(w, "  Total size: %d bytes\n  Blocks: %d\n  Objects: %d\n  Codec: %s\n", s.Bytes, s.Blocks, s.Objects, s.Codec)
	for _, key := range slices.Sorted(maps.Keys(s.Tags)) {
		fmt.Fprintf(w, "  Tag: %s=%s\n", key, s.Tags[key])
	}
	for _, st := range s.Stores {
		fmt.Fprintf(w, "  Store: %s\n", st)
	}
	return nil
}

func printNode(w io.Writer, m *manifest.Manifest, ino manifest.Ino) error {
	at := m.Attr(ino)
	n := describe(m, ino)
	shown := "/"
	if ino != manifest.Root {
		shown += n.Path
	}
	fmt.Fprintf(w, "Path: %s\n", quoted(shown))
	fmt.Fprintf(w, "  Type: %s\n  Inode: %d\n  Name: %s\n  Size: %d bytes\n", n.Type, ino, quoted(path.Base(shown)), at.Size)
	fmt.Fprintf(w, "  UID: %d\n  GID: %d\n  Mode: 0%o\n  Permissions: 0%o\n", at.UID, at.GID, at.Mode, at.Mode&0o7777)
	if n.Rdev != "" {
		fmt.Fprintf(w, "  Device: %s\n", n.Rdev)
	}
	fmt.Fprintf(w, "  Created: %d\n  Modified: %d\n", at.Ctime, at.Mtime)
	if n.Target != "" {
		fmt.Fprintf(w, "  Link Target: %s\n", quoted(n.Target))
	}
	if n.LinkTo != "" {
		fmt.Fprintf(w, "  Hard Link To: /%s\n", quoted(n.LinkTo))
	}
	_, err := fmt.Fprintln(w, "---")
	return err
}

// quoted keeps a name from breaking lines or steering a terminal.
func quoted(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }) >= 0 {
		return fmt.Sprintf("%q", name)
	}
	return name
}

func (a *app) treeCommand(t *trust) *cobra.Command {
	return a.pathVerb(t, "tree FILE [PATH]", "Print the tree", "  overmount flist tree modules.fl kernel/fs", false,
		func(cmd *cobra.Command, m *manifest.Manifest, top manifest.Ino) error {
			return printTree(a.Stdout, m, top, 0)
		})
}

// printTree uses the signs of rfs.
func printTree(w io.Writer, m *manifest.Manifest, ino manifest.Ino, depth int) error {
	sign := map[uint32]string{unix.S_IFDIR: "📁", unix.S_IFREG: "📄", unix.S_IFLNK: "🔗"}[m.Attr(ino).Type()]
	if sign == "" {
		sign = "❓"
	}
	name := m.Name(ino)
	if ino == manifest.Root {
		name = "/"
	}
	if _, err := fmt.Fprintf(w, "%s%s %s\n", strings.Repeat("  ", depth), sign, quoted(name)); err != nil {
		return err
	}
	for _, c := range m.Children(ino) {
		if err := printTree(w, m, c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) lsCommand(t *trust) *cobra.Command {
	var recursive bool
	cmd := a.pathVerb(t, "ls FILE [PATH]", "List a directory, as ls -l does", "  overmount flist ls modules.fl kernel/fs/xfs", false,
		func(cmd *cobra.Command, m *manifest.Manifest, ino manifest.Ino) error { return a.ls(m, ino, recursive) })
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "list all below, by path")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) ls(m *manifest.Manifest, ino manifest.Ino, recursive bool) error {
	list := m.Children(ino)
	name := m.Name
	switch {
	case !m.Attr(ino).IsDir():
		list = []manifest.Ino{ino}
	case recursive:
		list, name = nil, m.Path
		for _, c := range m.Walk(ino) {
			if c != ino {
				list = append(list, c)
			}
		}
	}
	enc := json.NewEncoder(a.Stdout)
	for _, c := range list {
		var err error
		if a.json {
			err = enc.Encode(describe(m, c))
		} else {
			err = printLine(a.Stdout, m, c, name(c))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func printLine(w io.Writer, m *manifest.Manifest, ino manifest.Ino, name string) error {
	at := m.Attr(ino)
	size := fmt.Sprint(at.Size)
	if n := describe(m, ino); n.Rdev != "" {
		size = n.Rdev
	}
	line := fmt.Sprintf("%s %3d %5d %5d %10s %s %s", lsMode(at), at.Nlink, at.UID, at.GID, size,
		at.ModTime().UTC().Format(time.DateTime), quoted(name))
	if target := m.Target(ino); target != "" {
		line += " -> " + quoted(target)
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// lsMode spells a mode as ls does, where fs.FileMode spells it otherwise.
func lsMode(a manifest.Attr) string {
	b := []byte("?rwxrwxrwx")
	b[0] = map[uint32]byte{
		unix.S_IFDIR: 'd', unix.S_IFREG: '-', unix.S_IFLNK: 'l', unix.S_IFCHR: 'c',
		unix.S_IFBLK: 'b', unix.S_IFIFO: 'p', unix.S_IFSOCK: 's',
	}[a.Type()]
	for i := range 9 {
		if a.Mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit uint32
		at  int
		on  byte
	}{{unix.S_ISUID, 3, 's'}, {unix.S_ISGID, 6, 's'}, {unix.S_ISVTX, 9, 't'}} {
		switch {
		case a.Mode&s.bit == 0:
		case b[s.at] == 'x':
			b[s.at] = s.on
		default:
			b[s.at] = s.on - 'a' + 'A'
		}
	}
	return string(b)
}

func (a *app) statCommand(t *trust) *cobra.Command {
	cmd := a.pathVerb(t, "stat FILE PATH", "Print one node with its blocks", "  overmount flist stat modules.fl modules.dep", true,
		func(cmd *cobra.Command, m *manifest.Manifest, ino manifest.Ino) error {
			if a.json {
				n := describe(m, ino)
				for _, b := range m.Blocks(ino) {
					n.Blocks = append(n.Blocks, b.ID.String())
				}
				return json.NewEncoder(a.Stdout).Encode(n)
			}
			if err := printNode(a.Stdout, m, ino); err != nil {
				return err
			}
			for i, b := range m.Blocks(ino) {
				fmt.Fprintf(a.Stdout, "block %d: object %v\n", i, b.ID)
			}
			for _, x := range m.Xattrs(ino) {
				fmt.Fprintf(a.Stdout, "xattr %s=%q\n", x.Name, x.Value)
			}
			return nil
		})
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) catCommand(t *trust) *cobra.Command {
	var timeout time.Duration
	cmd := a.pathVerb(t, "cat FILE PATH", "Print the content of a file", "  overmount flist cat modules.fl modules.dep", true,
		func(cmd *cobra.Command, m *manifest.Manifest, ino manifest.Ino) error {
			log, err := a.logger(cmd, a.Stderr)
			if err != nil {
				return err
			}
			return a.cat(cmd, m, ino, timeout, log)
		})
	cmd.Flags().DurationVar(&timeout, "timeout", 90*time.Second, "how long to wait for a store that does not answer")
	return cmd
}

func (a *app) cat(cmd *cobra.Command, m *manifest.Manifest, ino manifest.Ino, timeout time.Duration, log *slog.Logger) error {
	at := m.Attr(ino)
	if !at.IsRegular() {
		return fmt.Errorf("%s is a %s, not a file", m.Path(ino), typeName(at))
	}
	src, err := a.readStores(m.Routes(), timeout, log)
	if err != nil {
		return err
	}
	t := tree.New(m, src, nil)
	r := io.NewSectionReader(readerAt(func(p []byte, off int64) (int, error) {
		return t.ReadAt(cmd.Context(), ino, p, off)
	}), 0, at.Size)
	// WriteTo of neither side may choose a smaller piece than a block.
	_, err = io.CopyBuffer(struct{ io.Writer }{a.Stdout}, struct{ io.Reader }{r}, make([]byte, block.Size))
	return err
}

type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }
