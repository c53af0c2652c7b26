package pack

import (
	"bytes"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/archive"
	"overmount/deb"
	"overmount/internal/testenv"
	"overmount/sysroot"
)

// unpackDebs returns the tree of real packages, read here and by dpkg-deb.
func unpackDebs(t *testing.T, pattern string) (ours, theirs fs.FS) {
	t.Helper()
	testenv.Root(t, "unpacking a package with its owners")
	spool, err := archive.NewSpool(&archive.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { spool.Close() })
	dir := filepath.Join(t.TempDir(), "root")
	var in []deb.Input
	for _, file := range testenv.Debs(t) {
		if !strings.HasPrefix(filepath.Base(file), pattern) {
			continue
		}
		in = append(in, deb.File(file))
		if out, err := exec.Command(testenv.Tool(t, "dpkg-deb"), "-x", file, dir).CombinedOutput(); err != nil {
			t.Fatalf("dpkg-deb: %v: %s", err, out)
		}
	}
	tree, _, err := deb.Unpack(t.Context(), spool, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tree, Dir(dir)
}

// alike are options that hide in which order dpkg-deb writes into directories.
func alike() *Options { return &Options{Newest: time.Unix(0, 0)} }

func TestFirmwareOfDebs(t *testing.T) {
	var manifests [][]byte
	var findings [][]sysroot.Finding
	ours, theirs := unpackDebs(t, "firmware-")
	for _, src := range []fs.FS{ours, theirs, ours} {
		fw, err := sysroot.Firmware(t.Context(), src, nil)
		if err != nil {
			t.Fatal(err)
		}
		findings = append(findings, fw.Findings)
		manifests = append(manifests, bytesOf(t, fw, alike()))
	}
	if diff := cmp.Diff(findings[1], findings[0]); diff != "" {
		t.Errorf("the findings are not those about what dpkg-deb unpacks (-dpkg-deb +got):\n%s", diff)
	}
	if !bytes.Equal(manifests[0], manifests[1]) {
		t.Error("the manifest of the packages is not that of what dpkg-deb unpacks")
	}
	if !bytes.Equal(manifests[0], manifests[2]) {
		t.Error("the manifest of the packages is another one the second time")
	}
}

func TestModulesOfDebs(t *testing.T) {
	var manifests [][]byte
	ours, theirs := unpackDebs(t, "linux-image-")
	for _, src := range []fs.FS{ours, theirs} {
		sub, kver, err := sysroot.Modules(src, "")
		if err != nil {
			t.Fatal(err)
		}
		m, err := PrepareModules(t.Context(), sub, ModulesOptions{Name: kver, Depmod: true, Newest: time.Unix(0, 0)})
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Modules) < 500 || m.Kver != kver {
			t.Errorf("the package has %d modules of %s, want some hundreds of %s", len(m.Modules), m.Kver, kver)
		}
		o := alike()
		o.Inline, o.Modules = IsModuleIndex, m.Modules
		manifests = append(manifests, bytesOf(t, m.FS, o))
	}
	if !bytes.Equal(manifests[0], manifests[1]) {
		t.Error("the manifest of the package is not that of what dpkg-deb unpacks")
	}
}
