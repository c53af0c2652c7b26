package deb

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Lists returns what the lists of apt, in the directory /var/lib/apt/lists, say of
// the packages whose name a pattern matches: all versions, of all repositories, for
// an architecture. apt has checked the signatures of these lists when it fetched
// them; here only damage is looked for. It fails if there are no lists, as on a
// host where apt-get update has not run.
//
// They do not say where a repository is. [Newest] chooses among them, and [Known]
// finds a file's package.
func Lists(dir fs.FS, arch string, patterns []string) ([]Entry, error) {
	var all []Entry
	read, err := eachList(dir, func(rel *release) []string { return rel.indexes(nil, arch) }, entriesTo(&all, patterns))
	if err == nil && read == 0 {
		err = fmt.Errorf("there are none for the architecture %s: run apt-get update", arch)
	}
	if err != nil {
		return nil, fmt.Errorf("lists of apt: %w", err)
	}
	return all, nil
}

// eachList reads the indexes that are wanted of each release, as far as they are
// there, and returns how many there are.
func eachList(dir fs.FS, wanted func(*release) []string, how reading) (read int, err error) {
	if _, err := fs.Stat(dir, "."); err != nil { // which Glob passes over
		return 0, pathless(err)
	}
	names, err := fs.Glob(dir, "*Release")
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		prefix, ok := releasePrefix(name)
		if !ok {
			continue
		}
		n, err := listsOf(dir, name, prefix, wanted, how)
		if err != nil {
			return 0, err
		}
		read += n
	}
	return read, nil
}

func releasePrefix(name string) (string, bool) {
	for _, end := range []string{"_InRelease", "_Release"} {
		if before, ok := strings.CutSuffix(name, end); ok {
			return before + "_", true
		}
	}
	return "", false
}

// listsOf reads the indexes of one release, and returns how many there are.
func listsOf(dir fs.FS, name, prefix string, wanted func(*release) []string, how reading) (read int, err error) {
	text, err := fs.ReadFile(dir, name)
	if err != nil {
		return 0, err
	}
	rel, err := readRelease(clearText(text))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	for _, plain := range wanted(rel) {
		// apt keeps the index as it came, or compressed in its own way.
		for _, suffix := range indexSuffixes {
			file := prefix + strings.ReplaceAll(plain, "/", "_") + suffix
			f, err := dir.Open(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a component that this host does not use
			} else if err != nil {
				return 0, err
			}
			err = rel.readRecompressed(plain, suffix, f, how)
			f.Close()
			if err != nil {
				return 0, fmt.Errorf("%s: %w", file, err)
			}
			read++
			break
		}
	}
	return read, nil
}

// readRecompressed reads an index that is compressed in another way than that
// which the release lists, perhaps.
func (r *release) readRecompressed(plain, suffix string, f fs.File, how reading) error {
	other := &release{fields: r.fields, files: map[string]listed{}}
	if l, ok := r.files[plain]; ok {
		other.files[plain] = l
	}
	return other.readListed(plain+suffix, plain, f, how, false)
}

// clearText returns the text of a clear-signed file without looking at the
// signature.
func clearText(signed []byte) []byte {
	const begin, end = "-----BEGIN PGP SIGNED MESSAGE-----\n", "\n-----BEGIN PGP SIGNATURE-----"
	text, ok := bytes.CutPrefix(signed, []byte(begin))
	if !ok {
		return signed
	}
	if _, after, ok := bytes.Cut(text, []byte("\n\n")); ok { // the headers
		text = after
	}
	if i := bytes.LastIndex(text, []byte(end)); i >= 0 {
		text = text[:i+1]
	}
	return bytes.ReplaceAll(bytes.TrimPrefix(text, []byte("- ")), []byte("\n- "), []byte("\n"))
}

// Known returns the input with the SHA-256 and size that one of the entries has for
// it. The file's name tells which: that of the entry, or NAME_VERSION_ARCH.deb as
// apt-get download writes it. It fails if none has such a name.
func Known(in Input, entries []Entry) (Input, error) {
	base := path.Base(in.Name)
	for _, e := range entries {
		// apt writes an epoch's colon as %3a.
		if base == path.Base(e.Filename) || base == strings.ReplaceAll(e.String(), ":", "%3a")+".deb" {
			in.SHA256, in.Size = e.SHA256, e.Size
			return in, nil
		}
	}
	return in, fmt.Errorf("%s: no index has a package of that name", in.Name)
}
