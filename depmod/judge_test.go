package depmod

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/internal/testenv"
	"overmount/kmod"
)

// A judge is a depmod of kmod.
type judge struct {
	version int
	layout  kmod.Layout
}

// judges are the versions whose files are ours, byte for byte.
var judges = []judge{{30, kmod.Kmod30}, {34, kmod.Kmod34}}

func (j judge) String() string { return "kmod" + map[int]string{30: "30", 34: "34"}[j.version] }

// command returns a run of the judge, which reads no configuration but that of
// its arguments.
func (j judge) command(t testing.TB, root string, args ...string) *exec.Cmd {
	t.Helper()
	line := append(testenv.Kmod(t, j.version, "depmod"), "-b", root)
	return exec.CommandContext(t.Context(), line[0], append(line[1:], args...)...)
}

// each runs a test with each judge.
func each(t *testing.T, test func(*testing.T, judge)) {
	for _, j := range judges {
		t.Run(j.String(), func(t *testing.T) { test(t, j) })
	}
}

// inputs are the files of a directory of modules that depmod reads.
var inputs = []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"}

const kver = "6.1.0-0"

// image makes a root with the modules of a directory, and returns its
// lib/modules/KVER. It holds symlinks to them and to the inputs, which the test
// may replace, and no index.
func image(t testing.TB, from string) (root, dir string) {
	t.Helper()
	root = t.TempDir()
	dir = filepath.Join(root, "lib/modules", kver)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			link(t, filepath.Join(from, e.Name()), filepath.Join(dir, e.Name()))
		}
	}
	for _, name := range inputs {
		link(t, filepath.Join(from, name), filepath.Join(dir, name))
	}
	return root, dir
}

func link(t testing.TB, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// judged lets the judge index a root, and compares its files with ours. Other
// paths than those of its own directory it takes from opts and args.
func judged(t *testing.T, j judge, root string, opts *Options, args ...string) *Result {
	t.Helper()
	dir := filepath.Join(root, "lib/modules", kver)
	for _, out := range outputs(kmod.Kmod34) {
		if err := os.Remove(filepath.Join(dir, out.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if out, err := j.command(t, root, append(args, kver)...).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v: %s", err, out)
	}
	opts.Layout, opts.Kver = j.layout, kver
	r, err := Build(t.Context(), os.DirFS(dir), opts)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, dir, r.Files)
	return r
}

// compare checks that a directory holds exactly these index files.
func compare(t testing.TB, dir string, files []File) {
	t.Helper()
	var names, want []string
	for _, f := range files {
		names = append(names, f.Name)
		data, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(data, f.Data) {
			t.Errorf("%s differs: ours has %d bytes, depmod's %d: %s", f.Name, len(f.Data), len(data), firstDifference(f.Data, data))
		}
	}
	for _, out := range outputs(kmod.Kmod34) {
		if _, err := os.Stat(filepath.Join(dir, out.name)); err == nil {
			want = append(want, out.name)
		}
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("files (-depmod +ours):\n%s", diff)
	}
}

func firstDifference(a, b []byte) string {
	as, bs := bytes.SplitAfter(a, []byte("\n")), bytes.SplitAfter(b, []byte("\n"))
	for i := range min(len(as), len(bs)) {
		if !bytes.Equal(as[i], bs[i]) {
			return "ours " + short(as[i]) + ", depmod's " + short(bs[i])
		}
	}
	return "one is the beginning of the other"
}

func short(b []byte) string {
	return strings.ToValidUTF8(string(b[:min(len(b), 200)]), "?")
}
