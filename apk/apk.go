// Package apk reads the repositories and packages of Alpine Linux, in the second
// version of their formats.
//
//	keys, err := apk.LoadKeys("/etc/apk/keys")
//	repo, err := apk.Open(ctx, apk.Dir("/srv/alpine/v3.22/main"), keys, "x86_64")
//	sel, err := repo.Index.Select("linux-firmware*")
//	tree, err := repo.Unpack(ctx, sel.Packages, nil)
//	defer tree.Close()
//
// A [Tree] is an fs.FS, ready to be packed. Nothing of a package is installed: its
// scripts are not run, and of its dependencies only those of the same source
// package are taken.
//
// # Format
//
// A repository has a directory for each architecture, and in it APKINDEX.tar.gz and
// the packages, NAME-VERSION.apk, those for any architecture too. Both kinds of
// file are gzip members, one after the other:
//
//	package:    [signature] control data
//	index:      signature index
//	signature:  a tar segment with entries .SIGN.ALG.KEY: RSA PKCS #1 v1.5, with
//	            SHA-1 for the ALG RSA, SHA-256 for RSA256, SHA-512 for RSA512, over
//	            the next member as it is compressed
//	control:    a tar segment with .PKGINFO, lines "key = value", and scripts
//	data:       a tar archive; PAX records APK-TOOLS.checksum.SHA1 have the SHA-1 of
//	            a file's content or a symlink's target
//	index:      a tar archive with DESCRIPTION and APKINDEX, records of lines "X:value"
//
// A key is known by the name of its file. What a package holds is trusted because
// of a chain: key, signature of the index, "C:" of the index, which is the SHA-1
// (Q1) or SHA-256 (Q2) of the control member, "datahash" in .PKGINFO, which is the
// SHA-256 of the data member. A package that does not come from an index must be
// signed itself. The chain leads over SHA-1 where Alpine signs with it; the SHA-256
// of every package that [Unpacked] gives can be written down and compared.
//
// All that a repository says is bounded: an index by 32 MiB compressed and 128 MiB
// plain, a control member by 1 MiB, and the data by the size that .PKGINFO claims
// and by the limits of package archive.
//
// The third version of the formats (ADB) is recognised, and refused with ErrV3.
package apk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrV3 says that a file has the format of apk-tools 3.
var ErrV3 = errors.New("it has the format of apk 3 (ADB), which is not supported: unpack it with \"apk extract\" of apk-tools 3, and pack the directory")

// ErrUntrusted says that something is not signed by a key that was given.
var ErrUntrusted = errors.New("it is not trusted")

// An Opener opens the files of a repository. Concurrent use must be safe.
type Opener interface {
	// Open opens a file for reading from its start. The name is a path as in
	// fs.ValidPath, relative to the place of the repository. If there is no such
	// file, the error is fs.ErrNotExist.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
}

// Dir is a repository in a directory.
type Dir string

var _ Opener = Dir("")

// Open implements Opener.
func (d Dir) Open(_ context.Context, name string) (io.ReadCloser, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
}

// archs are Alpine's names of architectures, by Go's.
var archs = map[string]string{
	"386": "x86", "amd64": "x86_64", "arm": "armv7", "arm64": "aarch64",
	"loong64": "loongarch64", "ppc64le": "ppc64le", "riscv64": "riscv64", "s390x": "s390x",
}

// Arch returns Alpine's name of an architecture, given Go's; empty if there is
// none.
func Arch(goarch string) string { return archs[goarch] }

// checkMagic tells from the first bytes of a file what is wrong with it.
func checkMagic(head []byte) error {
	switch {
	case len(head) == 0:
		return errors.New("it is empty")
	case bytes.HasPrefix(head, []byte("ADB")):
		return ErrV3
	case !bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return fmt.Errorf("it does not begin as gzip does, but with %.8q", head)
	}
	return nil
}
