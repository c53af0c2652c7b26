package archive

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options are the options of [NewSpool]. Nil and zero mean the defaults.
type Options struct {
	// Dir is where the content is while it is needed. The default is TMPDIR, or
	// /var/tmp, which unlike /tmp is hardly ever in memory.
	Dir string

	// MaxFiles and MaxBytes bound what all packages together may hold: files of
	// any type and bytes of plain content. The defaults are 262,144 and 16 GiB;
	// all of linux-firmware has 4,000 and 1 GiB.
	MaxFiles int64
	MaxBytes int64

	// Map, if set, says where a file of a package is in the tree, or with false
	// that it is left out; its content is then not written. It gets a valid path
	// (fs.ValidPath), and what it returns is checked. Directories that several
	// names are mapped to become one.
	Map func(name string) (string, bool)

	// NamesOnly is for those who want to know which files there are: content is
	// not kept, takes no disk and does not count for MaxBytes. See Package.Files;
	// there is no Tree.
	NamesOnly bool
}

// A Spool takes the content of packages. Concurrent use is safe.
type Spool struct {
	opts Options
	file *os.File

	mu    sync.Mutex
	next  int64 // where the next file goes
	bytes int64 // in use, in all packages
	files int64
	text  int64
}

// NewSpool returns an empty Spool, to be closed.
func NewSpool(o *Options) (*Spool, error) {
	s := &Spool{}
	if o != nil {
		s.opts = *o
	}
	s.opts.MaxFiles = cmp.Or(s.opts.MaxFiles, 1<<18)
	s.opts.MaxBytes = cmp.Or(s.opts.MaxBytes, 16<<30)
	if s.opts.Map == nil {
		s.opts.Map = func(name string) (string, bool) { return name, true }
	}
	if s.opts.NamesOnly {
		return s, nil
	}
	if s.opts.Dir == "" {
		s.opts.Dir = tempDir()
	}
	f, err := unnamed(s.opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("make a temporary file in %s for the content of packages: %w; TMPDIR names another directory", s.opts.Dir, err)
	}
	s.file = f
	return s, nil
}

// Close frees the disk. The trees of the Spool cannot be read any more.
func (s *Spool) Close() error {
	if s.opts.NamesOnly {
		return nil
	}
	return s.file.Close()
}

func tempDir() string {
	const roomy = "/var/tmp"
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	if info, err := os.Stat(roomy); err == nil && info.IsDir() {
		return roomy
	}
	return os.TempDir()
}

// unnamed opens a file that has no name, or none any more.
func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	f, err := os.CreateTemp(dir, "overmount-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// maxText bounds the names, targets and extended attributes of all packages, in
// bytes: they are kept in memory.
const maxText = 64 << 20

// count counts files, and what is kept of them in memory.
func (s *Spool) count(files, text int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files += files
	s.text += text
	if s.files > s.opts.MaxFiles {
		return fmt.Errorf("with it the packages have over the limit of %d files", s.opts.MaxFiles)
	}
	if s.text > maxText {
		return fmt.Errorf("with it the names, links and attributes of the packages have over the limit of %d bytes", maxText)
	}
	return nil
}

// take returns the place for content.
func (s *Spool) take(size int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size > s.opts.MaxBytes-s.bytes {
		return 0, fmt.Errorf("it claims %d bytes, and with it the packages have over the limit of %d", size, s.opts.MaxBytes)
	}
	at := s.next
	s.bytes += size
	s.next += size
	return at, nil
}

// giveBack frees what a package took.
func (s *Spool) giveBack(files, text int64, all []*content) {
	s.mu.Lock()
	s.files -= files
	s.text -= text
	for _, c := range all {
		s.bytes -= c.size
	}
	s.mu.Unlock()
	for _, c := range all {
		if c.size == 0 {
			continue
		}
		// Not every file system can do it. The space is then free at the end.
		_ = unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, c.at, c.size)
	}
}

// A content is where the content of a regular file is. Its names share it.
type content struct {
	at, size int64
}

// A node is what is at one path of a package, or of a tree.
type node struct {
	File           // Name is the path
	data  *content // of a regular file that is kept
	owner string

	implied bool // a directory that is there only for what is in it
	ino     uint64
	nlink   uint64
}

// A paths is what is at each path, with the directories above.
type paths map[string]*node

// put puts a node at its path, where nothing may be but a directory that was
// implied, or, for a directory, one of any kind if again is set. It returns how
// many directories it had to imply.
func (m paths) put(n *node, again bool) (implied int64, err error) {
	was := m[n.Name]
	switch {
	case was == nil:
	case !was.Mode.IsDir():
		return 0, fmt.Errorf("the package has %s at the path already", kind(was))
	case !n.Mode.IsDir():
		return 0, errors.New("the package has a directory at the path already")
	case was.implied:
		m[n.Name] = n
		return 0, nil
	case again:
		return 0, nil
	default:
		return 0, errors.New("the package has the directory twice")
	}
	for up := path.Dir(n.Name); up != "."; up = path.Dir(up) {
		if was := m[up]; was == nil {
			m[up] = impliedDir(up, n.owner)
			implied++
		} else if !was.Mode.IsDir() {
			return implied, fmt.Errorf("it is below %.200q, which is no directory but %s", up, kind(was))
		} else {
			break // the directories above it are there, too
		}
	}
	m[n.Name] = n
	return implied, nil
}

func impliedDir(name, owner string) *node {
	return &node{File: File{Name: name, Mode: fs.ModeDir | 0o755, ModTime: time.Unix(0, 0)}, owner: owner, implied: true}
}

// A Package takes the files of one package. It is used by one goroutine at a time.
type Package struct {
	spool *Spool
	owner string
	said  paths // by name in the package, also of what is left out
	nodes paths // by path in the tree
	files int64 // that count for the limit
	text  int64
	data  []*content
	buf   []byte
}

// Package returns an empty one, for what people call owner.
func (s *Spool) Package(owner string) *Package {
	return &Package{spool: s, owner: owner, said: paths{}, nodes: paths{}}
}

// Owner returns what people call the package.
func (p *Package) Owner() string { return p.owner }

// Len returns the number of files of any type that the package has in the tree,
// without directories that it does not name.
func (p *Package) Len() int {
	count := 0
	for _, n := range p.nodes {
		if !n.implied {
			count++
		}
	}
	return count
}

// Files returns the files of any type that the package has in the tree, sorted by
// path, without directories that it does not name. A hard link is the file that it is
// another name of.
func (p *Package) Files() []File {
	var list []File
	for _, name := range slices.Sorted(maps.Keys(p.nodes)) {
		if n := p.nodes[name]; !n.implied {
			list = append(list, n.File)
		}
	}
	return list
}

// Discard gives back the space of a package that is not wanted after all. It can
// be used afterwards, as an empty one.
func (p *Package) Discard() {
	p.spool.giveBack(p.files, p.text, p.data)
	*p = *p.spool.Package(p.owner)
}

// Add adds a file. Of a regular file it reads f.Size bytes of content, if the file
// is kept, and nothing of others. Errors name the file. After one, the package is
// good for nothing but Discard.
func (p *Package) Add(f File, content io.Reader) error {
	if err := p.add(f, content); err != nil {
		return fmt.Errorf("%.200q: %w", f.Name, err)
	}
	return nil
}

func (p *Package) add(f File, r io.Reader) error {
	name, err := cleanName(f.Name)
	if err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	to, kept := p.spool.opts.Map(name)
	n := &node{File: f, owner: p.owner}
	n.Name = name
	if err := p.say(n); err != nil || !kept {
		return err
	}
	if to != name {
		if err := checkPath(to); err != nil {
			return fmt.Errorf("as %.200q: %w", to, err)
		}
		n.Name = to
	}
	if n.Name == "." && !n.Mode.IsDir() {
		return errors.New("the root of the tree must be a directory")
	}
	if _, err := p.nodes.put(n, true); err != nil {
		return err
	}
	return p.fill(n, r)
}

// say notes what the package has at a name. What is left out counts as well, or
// memory would have no limit.
func (p *Package) say(n *node) error {
	implied, err := p.said.put(n, false)
	if err != nil {
		return err
	}
	text := int64(len(n.Name) + len(n.Link))
	for _, x := range n.Xattrs {
		text += int64(len(x.Name) + len(x.Value))
	}
	p.files += 1 + implied
	p.text += text
	return p.spool.count(1+implied, text)
}

// fill gives a node its content.
func (p *Package) fill(n *node, r io.Reader) error {
	if !n.Mode.IsRegular() {
		return nil
	}
	if n.hard() {
		return p.link(n)
	}
	if p.spool.opts.NamesOnly {
		n.data = &content{size: n.Size}
		return nil
	}
	at, err := p.spool.take(n.Size)
	if err != nil {
		return err
	}
	n.data = &content{at, n.Size}
	p.data = append(p.data, n.data)
	if n.Size == 0 {
		return nil
	}
	if p.buf == nil {
		p.buf = make([]byte, 128<<10)
	}
	got, err := io.CopyBuffer(onlyWriter{io.NewOffsetWriter(p.spool.file, at)}, io.LimitReader(r, n.Size), p.buf)
	if err == nil && got < n.Size {
		err = fmt.Errorf("its content ends after %d of %d bytes: %w", got, n.Size, io.ErrUnexpectedEOF)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: the plain content of packages is in %s meanwhile; TMPDIR names another directory", err, p.spool.opts.Dir)
	}
	return err
}

// onlyWriter hides that a writer could read by itself, without the buffer.
type onlyWriter struct{ io.Writer }

// link makes a node a further name of an earlier file.
func (p *Package) link(n *node) error {
	name, err := cleanName(n.Link)
	if err != nil {
		return fmt.Errorf("it is a hard link to %.200q: %w", n.Link, err)
	}
	first := p.said[name]
	if first == nil {
		return fmt.Errorf("it is a hard link to %.200q, which is no earlier file of the package", n.Link)
	}
	if first.data == nil {
		return fmt.Errorf("it is a hard link to %.200q, which is %s", n.Link, kind(first))
	}
	link := n.Name
	n.File = first.File
	n.Name, n.data = link, first.data
	return nil
}

// kind is what people call a node's type.
func kind(n *node) string {
	switch {
	case n.Mode.IsDir():
		return "a directory"
	case n.Mode&fs.ModeSymlink != 0:
		return fmt.Sprintf("a symlink to %.200q", n.Link)
	case n.data == nil:
		return "a file that is left out"
	default:
		return "a file"
	}
}
