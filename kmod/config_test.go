package kmod

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// optionsOf returns the options of module m, which tell which files were read,
// and in which order.
func optionsOf(c *Config) []string {
	var values []string
	for _, o := range c.merge(nil).options {
		values = append(values, o.value)
	}
	return values
}

func confFile(option string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte("options m " + option + "\n")}
}

func TestReadConfigFindsFiles(t *testing.T) {
	fsys := fstest.MapFS{
		"etc/modprobe.d/b.conf":           confFile("etc-b"),
		"etc/modprobe.d/masked.conf":      {Data: []byte("/dev/null"), Mode: fs.ModeSymlink | 0o777},
		"etc/modprobe.d/dangling.conf":    {Data: []byte("../nowhere"), Mode: fs.ModeSymlink | 0o777},
		"etc/modprobe.d/README":           confFile("readme"),
		"etc/modprobe.d/.hidden.conf":     confFile("hidden"),
		"etc/modprobe.d/c.conf.dpkg-new":  confFile("new"),
		"etc/modprobe.d/d.conf/e.conf":    confFile("deep"),
		"run/modprobe.d/a.conf":           confFile("run-a"),
		"run/modprobe.d/b.conf":           confFile("run-b"),
		"usr/local/lib/modprobe.d/Z.conf": confFile("local-Z"),
		"usr/local/lib/modprobe.d/c.conf": confFile("local-c"),
		"usr/lib/modprobe.d/c.conf":       confFile("usr-c"),
		"usr/lib/modprobe.d/masked.conf":  confFile("usr-masked"),
		"lib/modprobe.d/dangling.conf":    confFile("lib-dangling"),
		"lib/modprobe.d/0.conf":           confFile("lib-0"),
		"opt/single":                      confFile("single"),
		"opt/d/x.conf":                    confFile("opt-x"),
	}
	for _, v := range []struct {
		dirs []string
		want []string
	}{
		{nil, []string{"lib-0", "local-Z", "run-a", "etc-b", "local-c"}},
		{[]string{"/opt/d", "/opt/single"}, []string{"single", "opt-x"}},
		{[]string{"run/modprobe.d", "/etc/modprobe.d/"}, []string{"run-a", "run-b"}},
		{[]string{"opt"}, nil},
	} {
		c, err := ReadConfig(fsys, v.dirs...)
		if err != nil {
			t.Errorf("ReadConfig(%q) = %v", v.dirs, err)
			continue
		}
		if diff := cmp.Diff(v.want, optionsOf(c)); diff != "" {
			t.Errorf("ReadConfig(%q) reads (-want +got):\n%s", v.dirs, diff)
		}
	}
}

// The same files in the same directories as modprobe.
func TestReadConfigAsModprobe(t *testing.T) {
	program := modprobePath(t)
	root := t.TempDir()
	for name, option := range map[string]string{
		"1/b.conf": "1b", "1/x": "1x", "1/.h.conf": "1h", "1/conf": "1conf", "2/d.conf/e.conf": "deep",
		"2/a.conf": "2a", "2/b.conf": "2b", "2/B.conf": "2B", "2/m.conf": "2m", "3/d.conf": "3d", "2/n.conf": "2n",
		"single": "s", "3/single": "3s", "3/é.conf": "3é", "3/a-b.conf": "3a-b", "3/a.b.conf": "3a.b",
	} {
		writeFile(t, filepath.Join(root, name), "options m "+option+"\n")
	}
	for name, target := range map[string]string{"1/m.conf": "/dev/null", "1/n.conf": "nowhere", "1/l.conf": "../single"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(root, "lib/modules/1/x"), "")
	dirs := []string{"1", "single", "2", "3/single", "3"}
	args := []string{"-c", "-d", root, "-S", "1"}
	for _, dir := range dirs {
		args = append(args, "-C", filepath.Join(root, dir))
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, line := range textLines(string(out)) {
		if value, ok := strings.CutPrefix(line, "options m "); ok {
			want = append(want, value)
		}
	}
	c, err := ReadConfig(os.DirFS(root), dirs...)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, optionsOf(c)); diff != "" || len(want) < 5 {
		t.Errorf("ReadConfig(%q) reads other files than modprobe (-modprobe +ours):\n%s", dirs, diff)
	}
}

func TestReadConfigWarns(t *testing.T) {
	c, err := ReadConfig(fstest.MapFS{
		"d/a.conf":     {Data: []byte("# fine\nalias a b\n\ninclude /etc/x\noptions m \\\n\nalias a\\\n")},
		"d/b.conf/x":   {},
		"d/link.conf":  {Data: []byte("nowhere"), Mode: fs.ModeSymlink | 0o777},
		"d/null.conf":  {Data: []byte("/dev/null"), Mode: fs.ModeSymlink | 0o777},
		"d/fine.conf":  {Data: []byte("blacklist a\nsoftdep a pre: b\nweakdep a b\ninstall a b\nremove a b\noptions a b")},
		"d/.hide.conf": {Data: []byte("bad line")},
	}, "d")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`d/a.conf line 4: ignoring bad line starting with "include"`,
		`d/a.conf line 6: ignoring bad line starting with "options"`,
		`d/a.conf line 8: ignoring bad line starting with "alias"`,
		`d/b.conf is a directory`,
		`d/link.conf is a link that leads nowhere`,
	}
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(c.Warnings()))); diff != "" {
		t.Errorf("Warnings (-want +got):\n%s", diff)
	}
}

// badFS fails to read one file or directory.
type badFS struct {
	fstest.MapFS
	bad string
}

var errBad = errors.New("no luck")

func (b badFS) Open(name string) (fs.File, error) {
	if name == b.bad {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errBad}
	}
	return b.MapFS.Open(name)
}

func (b badFS) ReadFile(name string) ([]byte, error) {
	if name == b.bad {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errBad}
	}
	return b.MapFS.ReadFile(name)
}

func (b badFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if name == b.bad {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errBad}
	}
	return b.MapFS.ReadDir(name)
}

// modprobe goes on as if an unreadable file were not there.
func TestReadConfigFails(t *testing.T) {
	files := fstest.MapFS{"etc/modprobe.d/a.conf": confFile("a")}
	for _, bad := range []string{"etc/modprobe.d", "etc/modprobe.d/a.conf"} {
		if c, err := ReadConfig(badFS{files, bad}); !errors.Is(err, errBad) || !strings.Contains(err.Error(), bad) {
			t.Errorf("ReadConfig with a bad %s = %v, %v, want %v and its name", bad, c, err, errBad)
		}
	}
	if c, err := ReadConfig(files, "etc/modprobe.d", "etc/nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadConfig of a directory that is not there = %v, %v, want %v", c, err, fs.ErrNotExist)
	}
	if c, err := ReadConfig(fstest.MapFS{}); err != nil || len(optionsOf(c)) != 0 {
		t.Errorf("ReadConfig of an empty root = %v, %v, want an empty Config", c, err)
	}
}

// FuzzConfig reads any text as a file and as a command line.
func FuzzConfig(f *testing.F) {
	for _, file := range []string{"lines", "softdep", "install", "blacklist", "options"} {
		data, err := os.ReadFile("testdata/resolve/" + file + ".txtar")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Add(`quiet a.b=c "d.e=f g" h.i="j k" modprobe.blacklist=l,m "n`)
	f.Fuzz(func(t *testing.T, text string) {
		var r rules
		r.parse(text)
		for _, list := range [][]rule{r.aliases, r.options, r.softdeps, r.weakdeps, r.install, r.remove} {
			for _, rule := range list {
				if rule.name == "" || rule.value == "" || strings.ContainsAny(rule.name, " \t\n\x00") || strings.ContainsAny(rule.value, "\n\x00") && !strings.Contains(text, "\\") {
					t.Errorf("parse(%q) has the rule %q", text, rule)
				}
				if again, ok := Normalize(rule.name); !ok || again != rule.name {
					t.Errorf("parse(%q) has the name %q, want %q, %v", text, rule.name, again, ok)
				}
			}
		}
		for _, s := range r.softdeps {
			pre, post := splitSoftdep(s.value)
			for _, name := range slices.Concat(pre, post) {
				if name == "" || name == "pre:" || name == "post:" {
					t.Errorf("splitSoftdep(%q) = %q, %q", s.value, pre, post)
				}
			}
		}
		var c Config
		c.AddCommandLine(text)
		for _, o := range c.cmdline.options {
			if strings.ContainsAny(o.name, "\" .=\n") || strings.HasPrefix(o.value, "=") && !strings.Contains(text, ".=") {
				t.Errorf("AddCommandLine(%q) has the option %q", text, o)
			}
		}
	})
}
