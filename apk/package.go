package apk

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"

	"overmount/archive"
)

// An Info is what .PKGINFO says.
type Info struct {
	Package
	Replaces         []string // packages whose files it may replace
	ReplacesPriority int
	DataHash         [sha256.Size]byte // of the data member as it is compressed
}

// An Unpacked is a package whose every byte was verified.
type Unpacked struct {
	Info
	File   string            // its name in the repository
	Size   int64             // of the file, in bytes
	SHA256 [sha256.Size]byte // of the file
	Files  int               // files of any type that it has in the tree
}

// A want is what a package must be.
type want struct {
	index *Package // nil if it does not come from an index
	keys  Keys
}

// read unpacks a package, and verifies it on the way. What it gave to out must
// not be used after an error.
func (w want) read(r io.Reader, out *archive.Package) (*Unpacked, error) {
	whole := sha256.New()
	in := &counted{r: io.TeeReader(r, whole), limit: maxPackage}
	if w.index != nil && w.index.Size > 0 {
		in.limit = w.index.Size
	}
	br := bufio.NewReaderSize(in, 64<<10)
	u := &Unpacked{}
	err := w.members(br, u, out)
	switch {
	case err != nil && errors.Is(err, ErrUntrusted):
		return nil, err
	case in.over && w.index != nil:
		return nil, fmt.Errorf("it is longer than the %d bytes that the index states", in.limit)
	case in.over:
		return nil, fmt.Errorf("it is longer than the limit of %d bytes", in.limit)
	case err != nil:
		return nil, err
	}
	if w.index != nil && w.index.Size > 0 && in.n != w.index.Size {
		return nil, fmt.Errorf("it has %d bytes, and the index states %d", in.n, w.index.Size)
	}
	u.Size, u.Files = in.n, out.Len()
	whole.Sum(u.SHA256[:0])
	return u, nil
}

func (w want) members(br *bufio.Reader, u *Unpacked, out *archive.Package) error {
	h, err := readHead(br, maxControl)
	if err != nil {
		return err
	}
	if err := w.trust(h); err != nil {
		return err
	}
	info, err := readInfo(h.tar)
	if err != nil {
		return err
	}
	u.Info = *info
	if w.index != nil && (info.Name != w.index.Name || info.Version != w.index.Version) {
		return fmt.Errorf("it is the package %s, not %s", &info.Package, w.index)
	}
	return readData(br, info, out)
}

// trust checks that the control member is one to be trusted.
func (w want) trust(h *head) error {
	if w.index == nil {
		return w.keys.verify(h.sigs, h.next)
	}
	ok, err := w.index.checksum(h.next)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: it is not the package %s that the index means: its control member has another checksum than %s; "+
			"it was swapped or damaged, or belongs to another state of the repository%s", ErrUntrusted, w.index, w.index.Checksum, says(h.tar))
	}
	// A package of a mirror with its own index may be signed by somebody who is
	// not known. A signature by a known key has to be right.
	if err := w.keys.check(h.sigs, h.next); err != nil && !errors.Is(err, errNoKey) {
		return err
	}
	return nil
}

// says is what a control member says of itself, for people.
func says(control []byte) string {
	if info, err := readInfo(control); err == nil {
		return fmt.Sprintf("; it says that it is %s", &info.Package)
	}
	return ""
}

// readInfo reads .PKGINFO of a control member.
func readInfo(control []byte) (*Info, error) {
	text, err := entry(control, ".PKGINFO")
	if err != nil {
		return nil, fmt.Errorf("the control member: %w", err)
	}
	if text == nil {
		return nil, errors.New("it is no package: there is no .PKGINFO in it")
	}
	info, err := parseInfo(string(text))
	if err != nil {
		return nil, fmt.Errorf(".PKGINFO: %w", err)
	}
	return info, nil
}

func parseInfo(text string) (*Info, error) {
	info, hashed := &Info{}, false
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if key == "datahash" {
			hashed = true
		}
		if err := info.set(key, value); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	if err := info.checkName(); err != nil {
		return nil, err
	}
	if !hashed {
		return nil, errors.New("there is no datahash, so that nothing vouches for the content: the package is too old")
	}
	return info, nil
}

func (i *Info) set(key, value string) (err error) {
	switch key {
	case "pkgname":
		i.Name = value
	case "pkgver":
		i.Version = value
	case "pkgdesc":
		i.Description = value
	case "arch":
		i.Arch = value
	case "origin":
		i.Origin = value
	case "size":
		i.Installed, err = parseSize(value)
	case "builddate":
		i.Built, err = parseTime(value)
	case "depend":
		i.Depends = append(i.Depends, value)
	case "provides":
		i.Provides = append(i.Provides, value)
	case "provider_priority":
		i.ProviderPriority, err = strconv.Atoi(value)
	case "replaces":
		i.Replaces = append(i.Replaces, value)
	case "replaces_priority":
		i.ReplacesPriority, err = strconv.Atoi(value)
	case "datahash":
		if len(value) != hex.EncodedLen(sha256.Size) {
			return fmt.Errorf("%.80q is no SHA-256", value)
		}
		_, err = hex.Decode(i.DataHash[:], []byte(value))
	}
	return err
}

// replaces reports whether a package may put its files in the place of those of
// another. If each may, the higher priority decides.
func (i *Info) replaces(loser *Info) bool {
	return i.names(loser) && (!loser.names(i) || i.ReplacesPriority > loser.ReplacesPriority)
}

func (i *Info) names(other *Info) bool {
	for _, words := range i.Replaces {
		for word := range strings.FieldsSeq(words) {
			if d := parseDependency(word); d.name == other.Name && !d.conflict && d.allows(other.Version) {
				return true
			}
		}
	}
	return false
}

// room is what the data of a package may be longer, unpacked, than twice what
// .PKGINFO says, in bytes: some tools write how many the files take on a disk,
// others only how long they are.
const room = 16 << 20

// readData unpacks the data member, which is all that is left, and compares its
// hash.
func readData(br *bufio.Reader, info *Info, out *archive.Package) error {
	if _, err := br.Peek(1); errors.Is(err, io.EOF) {
		return fmt.Errorf("truncated: it ends before the data member: %w", io.ErrUnexpectedEOF)
	}
	sum := sha256.New()
	in := bufio.NewReaderSize(io.TeeReader(br, sum), 64<<10)
	z, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("the data member: %w", gzipError(err))
	}
	z.Multistream(false)
	plain := &counted{r: z, limit: 2*min(info.Installed, maxPackage) + room}
	err = archive.Tar(plain, func(f archive.File, h *tar.Header, content io.Reader) error {
		return addFile(out, f, h, content)
	})
	if plain.over {
		return fmt.Errorf("the data member unpacks to over %d bytes, and .PKGINFO claims %d", plain.limit, info.Installed)
	}
	if err != nil {
		return fmt.Errorf("the data member: %w", gzipError(err))
	}
	if _, err := in.Peek(1); err == nil {
		return errors.New("something follows the data member, which is the last of a package")
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	if got := sum.Sum(nil); subtle.ConstantTimeCompare(got, info.DataHash[:]) != 1 {
		return fmt.Errorf("%w: the data member was swapped or damaged: its SHA-256 is %x, and the datahash of the package is %x", ErrUntrusted, got, info.DataHash)
	}
	return nil
}

const checksumRecord = "APK-TOOLS.checksum.SHA1"

// addFile adds a file, and compares its own checksum if it has one. As in apk,
// names that begin with a dot are none of the file system's.
func addFile(out *archive.Package, f archive.File, h *tar.Header, content io.Reader) error {
	if first, _, _ := strings.Cut(strings.TrimPrefix(f.Name, "./"), "/"); strings.HasPrefix(first, ".") && first != ".." {
		return nil
	}
	stated := h.PAXRecords[checksumRecord]
	if stated == "" || f.Mode.IsDir() || f.Mode.IsRegular() && f.Link != "" {
		return out.Add(f, content)
	}
	want, err := hex.DecodeString(stated)
	if err != nil || len(want) != sha1.Size {
		return fmt.Errorf("%.200q: its checksum %.60q is no SHA-1", f.Name, stated)
	}
	sum := sha1.New()
	if f.Mode&fs.ModeSymlink != 0 {
		sum.Write([]byte(f.Link))
	}
	if err := out.Add(f, io.TeeReader(content, sum)); err != nil {
		return err
	}
	return checkSum(f, sum, content, want)
}

// checkSum compares the checksum of a file, of which the rest, if it was left out,
// is still to be read.
func checkSum(f archive.File, sum hash.Hash, rest io.Reader, want []byte) error {
	if f.Mode.IsRegular() {
		if _, err := io.Copy(sum, rest); err != nil {
			return err
		}
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return fmt.Errorf("%.200q: its SHA-1 is not the one that the package states for it", f.Name)
	}
	return nil
}

// A counted reads up to a limit, and notes if there was more.
type counted struct {
	r        io.Reader
	n, limit int64
	over     bool
}

func (c *counted) Read(p []byte) (int, error) {
	if c.over {
		return 0, errTooLong
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.limit-c.n+1)])
	if c.n += int64(n); c.n > c.limit {
		c.over = true
		return n - 1, errTooLong
	}
	return n, err
}
