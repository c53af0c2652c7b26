package fusefs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"overmount/manifest"
	"overmount/tree"
)

const (
	// forever is how long the kernel may keep what it learns, in seconds.
	forever = 365 * 24 * 3600
	// blockSize is what programs are told to read at a time. A larger one makes
	// them read more of a file than they need.
	blockSize = 4096
	// nameMax is the length of the longest name in a manifest, in bytes.
	nameMax = 255
)

// rawFS answers the kernel's requests. What is not here is ENOSYS, which the
// kernel takes as "do not ask again": ACCESS, FLUSH, LSEEK, STATX, locks.
type rawFS struct {
	fuse.RawFileSystem
	m         *manifest.Manifest
	t         *tree.Tree
	opts      Options
	conn      conn
	statfs    fuse.StatfsOut
	hasXattrs bool
	noOpen    bool // the kernel understands ENOSYS to OPEN
	noOpendir bool
	failures  failures
	reads     reads
	dying     func(tid uint32) bool
}

func newRawFS(t *tree.Tree, o Options) *rawFS {
	f := &rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), m: t.Manifest(), t: t, opts: o, dying: dying}
	out := fuse.StatfsOut{Bsize: blockSize, Frsize: blockSize, NameLen: nameMax}
	for i := range f.m.Len() {
		ino := manifest.Ino(i + 1)
		f.hasXattrs = f.hasXattrs || len(f.m.Xattrs(ino)) > 0
		if f.m.FirstName(ino) != ino {
			continue
		}
		out.Files++
		if a := f.m.Attr(ino); a.IsRegular() {
			out.Blocks += uint64((a.Size + blockSize - 1) / blockSize)
		}
	}
	f.statfs = out
	return f
}

func (f *rawFS) String() string { return "overmount" }

// Init learns what the kernel understands.
func (f *rawFS) Init(s *fuse.Server) {
	flags := s.KernelSettings().Flags64()
	f.noOpen = flags&fuse.CAP_NO_OPEN_SUPPORT != 0
	f.noOpendir = flags&fuse.CAP_NO_OPENDIR_SUPPORT != 0
}

// node finds the node that a request is about.
func (f *rawFS) node(id uint64) (manifest.Ino, error) {
	ino := manifest.Ino(id)
	if uint64(ino) != id || !f.m.Has(ino) {
		return 0, errNoNode
	}
	return ino, nil
}

// dir is node for a directory.
func (f *rawFS) dir(id uint64) (manifest.Ino, error) {
	ino, err := f.node(id)
	if err == nil && !f.m.Attr(ino).IsDir() {
		err = errNotDir
	}
	return ino, err
}

func (f *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := f.dir(h.NodeId)
	if err != nil {
		return status(err)
	}
	child, ok := f.m.Lookup(dir, name)
	if !ok {
		out.EntryValid = forever // and no node: there is no such name
		return fuse.OK
	}
	f.entry(child, out)
	return fuse.OK
}

func (f *rawFS) entry(ino manifest.Ino, out *fuse.EntryOut) {
	ino = f.m.FirstName(ino)
	out.NodeId = uint64(ino)
	out.EntryValid, out.AttrValid = forever, forever
	f.attr(ino, &out.Attr)
}

func (f *rawFS) attr(ino manifest.Ino, out *fuse.Attr) {
	a := f.m.Attr(ino)
	*out = fuse.Attr{
		Ino: uint64(ino), Size: uint64(a.Size), Blocks: uint64(a.Size+511) / 512, Blksize: blockSize,
		Atime: uint64(a.Mtime), Mtime: uint64(a.Mtime), Ctime: uint64(a.Ctime), // the kernel takes them as signed
		Mode: a.Mode, Nlink: a.Nlink, Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev: uint32(a.Rdev), // up to Linux's 12 and 20 bits the C library's form and the kernel's are the same
	}
}

// Forget has nothing to do: nodes are the manifest's.
func (f *rawFS) Forget(uint64, uint64) {}

func (f *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ino, err := f.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	out.SetTimeout(forever * time.Second)
	f.attr(ino, &out.Attr)
	return fuse.OK
}

func (f *rawFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	ino, err := f.node(h.NodeId)
	if err != nil {
		return nil, status(err)
	}
	target := f.m.Target(ino)
	if target == "" {
		return nil, status(errNotLink)
	}
	return []byte(target), fuse.OK
}

// Open and OpenDir say that there is no need to ask.
func (f *rawFS) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if f.noOpen {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (f *rawFS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if f.noOpendir {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// Flush says that there is no need to ask at each close.
func (f *rawFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

func (f *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(_ manifest.Ino, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

func (f *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(ino manifest.Ino, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && ino != 0 {
			f.entry(ino, entry)
		}
		return entry != nil
	})
}

// list adds a directory's entries from the request's offset on, until there is no
// room. An entry's offset is its rank: 1 and 2 are the directory itself and its
// parent, whose nodes the kernel does not want to be told; then come the children.
func (f *rawFS) list(in *fuse.ReadIn, add func(manifest.Ino, fuse.DirEntry) bool) fuse.Status {
	dir, err := f.dir(in.NodeId)
	if err != nil {
		return status(err)
	}
	children := f.m.Children(dir)
	for off := in.Offset; off < uint64(len(children))+2; off++ {
		var ino manifest.Ino
		e := fuse.DirEntry{Off: off + 1}
		switch off {
		case 0:
			e.Name, e.Ino, e.Mode = ".", uint64(dir), fuse.S_IFDIR
		case 1:
			e.Name, e.Ino, e.Mode = "..", uint64(f.m.Parent(dir)), fuse.S_IFDIR
		default:
			ino = children[off-2]
			e.Name, e.Ino, e.Mode = f.m.Name(ino), uint64(f.m.FirstName(ino)), f.m.Attr(ino).Mode
		}
		if !add(ino, e) {
			break
		}
	}
	return fuse.OK
}

func (f *rawFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = f.statfs
	return fuse.OK
}

func (f *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	ino, err := f.node(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	for _, x := range f.m.Xattrs(ino) {
		if x.Name == name {
			return fill(dest, x.Value)
		}
	}
	return 0, status(errNoXattr)
}

func (f *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	ino, err := f.node(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	var list []byte
	for _, x := range f.m.Xattrs(ino) {
		list = append(append(list, x.Name...), 0)
	}
	return fill(dest, list)
}

// fill answers with the length of value, and with value if there is room.
func fill(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), status(errTooSmall)
	}
	return uint32(copy(dest, value)), fuse.OK
}
