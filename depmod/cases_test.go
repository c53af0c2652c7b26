package depmod

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

// A testCase is a txtar file. Its files
//
//	modules/…    are those of lib/modules/KVER of a new root directory
//	want/FILE    is what an index file must be
//	warnings     are those of Build, one a line; without, there are none
//	error        is that of Build
//	differs      says why depmod's files are not compared with ours
//
// and others lie in the root, which texts call $ROOT. A file with the name of a
// module is one that kmodtest.Parse makes of the text, and ^@ is a NUL.
type testCase struct {
	root  string
	files map[string]string
}

func readCase(t *testing.T, name string) testCase {
	t.Helper()
	archive, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	c := testCase{t.TempDir(), map[string]string{}}
	for _, f := range archive.Files {
		text := strings.NewReplacer("$ROOT", c.root, "^@\n", "\x00", "^@", "\x00").Replace(string(f.Data))
		below, ok := strings.CutPrefix(f.Name, "modules/")
		switch {
		case ok:
			c.put(t, filepath.Join("lib/modules", kver, below), text)
		case strings.Contains(f.Name, "/") && !strings.HasPrefix(f.Name, "want/"):
			c.put(t, f.Name, text)
		default:
			c.files[f.Name] = text
		}
	}
	return c
}

func (c testCase) put(t *testing.T, name, text string) {
	t.Helper()
	if kmod.Suffix(name) == "" {
		write(t, filepath.Join(c.root, name), []byte(text))
		return
	}
	m, err := kmodtest.Parse(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	kmodtest.Write(t, c.root, name, m)
}

func (c testCase) dir() string { return filepath.Join(c.root, "lib/modules", kver) }

func (c testCase) options(t *testing.T) *Options {
	t.Helper()
	config, err := ReadConfig(c.root)
	if err != nil {
		t.Fatal(err)
	}
	opts := &Options{Config: config, Kver: kver}
	for _, dir := range config.ExternalDirs(kver) {
		opts.Externals = append(opts.Externals, External{dir, os.DirFS(dir)})
	}
	return opts
}

func TestCases(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("cases: %v, %v", names, err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			c := readCase(t, name)
			c.check(t)
			if c.files["differs"] == "" {
				each(t, func(t *testing.T, j judge) { c.judged(t, j) })
			}
		})
	}
}

// check compares with what the case says.
func (c testCase) check(t *testing.T) {
	r, err := Build(t.Context(), os.DirFS(c.dir()), c.options(t))
	if want := c.files["error"]; want != "" || err != nil {
		if err == nil || err.Error()+"\n" != want {
			t.Fatalf("Build: %v, want %s", err, want)
		}
		return
	}
	for name, want := range c.files {
		if name, ok := strings.CutPrefix(name, "want/"); ok {
			if diff := cmp.Diff(want, string(r.file(name))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
	}
	var warnings strings.Builder
	for _, w := range r.Warnings {
		warnings.WriteString(w.String() + "\n")
	}
	if diff := cmp.Diff(c.files["warnings"], warnings.String()); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	checkIndexes(t, r)
}

// file returns the content of an index file.
func (r *Result) file(name string) []byte {
	for _, f := range r.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

// checkIndexes checks that the binary indexes are valid.
func checkIndexes(t *testing.T, r *Result) {
	t.Helper()
	for _, f := range r.Files {
		if !strings.HasSuffix(f.Name, ".bin") {
			continue
		}
		x, err := kmod.OpenIndex(f.Data)
		if err == nil {
			err = x.Check()
		}
		if err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}

// judged compares with depmod.
func (c testCase) judged(t *testing.T, j judge) {
	conf := filepath.Join(c.root, "etc/depmod.d")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if c.files["error"] == "" {
		judged(t, j, c.root, c.options(t), "-C", conf)
		return
	}
	out, err := j.command(t, c.root, "-C", conf, kver).CombinedOutput()
	if err == nil {
		t.Errorf("depmod succeeds, want what our error says: %s", c.files["error"])
	}
	for line := range strings.Lines(c.files["error"]) {
		if !bytes.Contains(bytes.ToLower(out), []byte(strings.TrimSpace(line))) {
			t.Errorf("depmod says:\n%swithout: %s", out, line)
		}
	}
}
