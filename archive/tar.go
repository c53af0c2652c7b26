package archive

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
)

// maxPadding bounds the zeros behind the end of a tar archive, in bytes. tar fills
// up records, of 10 KiB mostly.
const maxPadding = 1 << 20

// Tar calls each for every entry of a tar archive, with what the File can hold of
// it and its header. It reads r to the end, so that a checksum of what r reads is
// that of the whole.
//
// Entries that are sparse, or of a type that no package has, are errors, and so
// is anything but some zeros behind the end of the archive. An archive may end
// without the two empty blocks, as the segments of apk do.
func Tar(r io.Reader, each func(f File, h *tar.Header, content io.Reader) error) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return padding(r)
		}
		if err != nil {
			return tarError(err)
		}
		f, err := fileOf(h)
		if err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
		if err := each(f, h, t); err != nil {
			return err
		}
	}
}

func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) {
		return fmt.Errorf("the tar archive is damaged: %w", err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the tar archive is truncated: %w", err)
	}
	return err
}

func padding(r io.Reader) error {
	buf := make([]byte, 4<<10)
	for total := 0; ; {
		n, err := r.Read(buf)
		if slices.ContainsFunc(buf[:n], func(b byte) bool { return b != 0 }) {
			return errors.New("something follows the end of the tar archive")
		}
		if total += n; total > maxPadding {
			return fmt.Errorf("over %d zeros follow the end of the tar archive", maxPadding)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// AddTar adds all entries of a tar archive, and reads r to its end; see [Tar] and
// Add for the errors.
func (p *Package) AddTar(r io.Reader) error {
	return Tar(r, func(f File, _ *tar.Header, content io.Reader) error { return p.Add(f, content) })
}

const xattrPrefix = "SCHILY.xattr."

func fileOf(h *tar.Header) (File, error) {
	f := File{Name: h.Name, Mode: h.FileInfo().Mode(), Size: h.Size, ModTime: h.ModTime}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return f, fmt.Errorf("it is of the type %q, which does not belong in a package", h.Typeflag)
	}
	if h.Typeflag == tar.TypeLink && h.Linkname == "" {
		return f, errors.New("it is a hard link to nothing")
	}
	if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeSymlink {
		f.Link = h.Linkname
	}
	if h.Typeflag != tar.TypeReg {
		f.Size = 0 // whatever it says
	}
	// A mode can state a type, too, and then it must be that of the entry.
	if typ := typeOf(h.Typeflag); f.Mode.Type() != typ {
		return f, fmt.Errorf("its mode %#o has another type than its entry", h.Mode)
	}
	if uint64(h.Uid) > math.MaxUint32 || uint64(h.Gid) > math.MaxUint32 {
		return f, fmt.Errorf("its owner %d:%d is out of range", h.Uid, h.Gid)
	}
	f.UID, f.GID = uint32(h.Uid), uint32(h.Gid)
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return f, errors.New("it is sparse, which does not belong in a package")
		}
		if name, ok := strings.CutPrefix(key, xattrPrefix); ok {
			f.Xattrs = append(f.Xattrs, Xattr{name, []byte(value)})
		}
	}
	slices.SortFunc(f.Xattrs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return f, nil
}

func typeOf(flag byte) fs.FileMode {
	switch flag {
	case tar.TypeDir:
		return fs.ModeDir
	case tar.TypeSymlink:
		return fs.ModeSymlink
	case tar.TypeChar:
		return fs.ModeDevice | fs.ModeCharDevice
	case tar.TypeBlock:
		return fs.ModeDevice
	case tar.TypeFifo:
		return fs.ModeNamedPipe
	default:
		return 0
	}
}
