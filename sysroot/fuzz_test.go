package sysroot_test

import (
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"overmount/archive"
	"overmount/archive/archivetest"
	"overmount/sysroot"
)

// FuzzFirmware holds that no tree of packages makes it panic or hang, and that no
// path of the result leaves its root: no name does, and a symlink only if there
// is a finding about it.
func FuzzFirmware(f *testing.F) {
	f.Add("lib/firmware/a.bin.zst = a\nlib/firmware/b.bin.zst -> a.bin.zst\nusr/lib/firmware/d/c.bin.xz = c\nlib/firmware/e -> d")
	f.Add("lib/firmware/a -> /etc/alternatives/a\netc/alternatives/a -> /lib/firmware/b\nlib/firmware/b = b")
	f.Add("lib/firmware/a -> ../../../etc/passwd\nlib/firmware/d/b -> ../../../../x\nlib -> usr/lib\nlib/firmware/c -> /")
	f.Add("a.zst -> ../b.zst\nd/l -> ../../x\nl -> l\nm -> .\nm.xz -> m/../a.zst")
	f.Fuzz(func(t *testing.T, lines string) {
		tree := packed(t, lines)
		fw, err := sysroot.Firmware(t.Context(), tree, nil)
		if err != nil {
			return
		}
		for name, target := range archivetest.InRoot(t, fw) {
			if archivetest.LeadsOut(name, target) && !slices.ContainsFunc(fw.Findings, func(f sysroot.Finding) bool { return strings.HasPrefix(path.Base(f.Path), path.Base(name)) }) {
				t.Errorf("%q leads to %q, out of the directory, without a finding among %v", name, target, fw.Findings)
			}
		}
	})
}

// packed is a tree of packages with the files that system has for the lines, but for
// those that a package cannot have.
func packed(t *testing.T, lines string) *archive.Tree {
	t.Helper()
	s, err := archive.NewSpool(&archive.Options{Dir: t.TempDir(), MaxBytes: 1 << 20, MaxFiles: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	var packages []*archive.Package
	for name, file := range system(t, lines) {
		f := archive.File{Name: name, Mode: file.Mode, Size: int64(len(file.Data)), ModTime: file.ModTime}
		if f.Mode&fs.ModeSymlink != 0 {
			f.Link = string(file.Data)
		}
		p := s.Package(name)
		if p.Add(f, strings.NewReader(string(file.Data))) == nil {
			packages = append(packages, p)
		}
	}
	tree, err := s.Tree(packages, nil)
	if err != nil {
		t.Skip(err)
	}
	return tree
}
