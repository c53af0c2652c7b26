package depmod

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadConfig(t *testing.T) {
	base := t.TempDir()
	for name, text := range map[string]string{
		"etc/depmod.d/b.conf":             "search from-etc",
		"usr/lib/depmod.d/b.conf":         "search hidden",
		"lib/depmod.d/a.conf":             "search from-lib\n",
		"run/depmod.d/c.conf":             "search from-run\\\n more # word\n",
		"usr/local/lib/depmod.d/d.conf":   "#search no\n\n \t\nsearch\nexclude .svn\n",
		"usr/lib/depmod.d/e.conf.rpmsave": "search no\n",
		"etc/depmod.d/f.conf": `override a 6.* kernel/a more
override b [ kernel
override short *
external * /x
external * rel
include y
make_map_files no
nonsense
search back\slash`,
	} {
		write(t, filepath.Join(base, name), []byte(text))
	}
	got, err := ReadConfig(base)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range got.Problems {
		file, rest, _ := strings.Cut(p, ":")
		got.Problems[i] = filepath.Base(file) + ":" + rest
	}
	want := &Config{
		Search:    []string{"from-lib", "from-etc", "from-run", "more", "#", "word", "backslash"},
		Overrides: []Override{{"a", "6.*", "kernel/a"}, {"b", "[", "kernel"}},
		Externals: []ExternalDir{{"*", "/x"}},
		Exclude:   []string{".svn"},
		Problems: []string{
			"f.conf:2: \"[\" matches no kernel version: error parsing regexp: missing closing ]: `[`",
			`f.conf:3: ignoring bad line starting with "override"`,
			`f.conf:5: external directory "rel" is not absolute`,
			`f.conf:6: include has no effect`,
			`f.conf:7: make_map_files has no effect`,
			`f.conf:8: ignoring bad line starting with "nonsense"`,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ReadConfig (-want +got):\n%s", diff)
	}
}

func TestReadConfigOfPaths(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "d/z.conf"), []byte("search z\n"))
	write(t, filepath.Join(dir, "a-file"), []byte("search a\n"))
	got, err := ReadConfig(dir, filepath.Join(dir, "d"), filepath.Join(dir, "a-file"), "/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Config{Search: []string{"a", "z"}}, got); diff != "" {
		t.Errorf("ReadConfig (-want +got):\n%s", diff)
	}
	missing := filepath.Join(dir, "missing")
	if _, err := ReadConfig(dir, missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("ReadConfig(%q): %v, want an error that names it", missing, err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("search a \\\nb\n# c\noverride a * b\nexternal ^6 /x\nexclude .svn\n")
	f.Add("search \\")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		c.parse("f", []byte(text))
		if words := len(c.Search) + len(c.Overrides) + len(c.Externals) + len(c.Exclude) + len(c.Problems); words > len(text) {
			t.Errorf("%d bytes make %d words", len(text), words)
		}
		c.ranks("6.1").of("kernel/a.ko")
		c.ExternalDirs("6.1")
	})
}

func FuzzSymbols(f *testing.F) {
	f.Add("0x1234\tprintk\tvmlinux\tEXPORT_SYMBOL\n", byte(0))
	f.Add("ffffffff81000000 r __ksymtab_printk\n", byte('_'))
	f.Fuzz(func(t *testing.T, text string, prefix byte) {
		for _, read := range []func(io.Reader, byte) (*Symbols, error){ReadSymvers, ReadSystemMap} {
			s, err := read(strings.NewReader(text), prefix)
			if (s == nil) != (err != nil) {
				t.Fatalf("read: %v, %v, want one of both", s, err)
			}
			if s != nil && len(s.crcs) > len(fakeSymbols)+strings.Count(text, "\n")+1 {
				t.Errorf("%q has %d symbols, more than lines", text, len(s.crcs))
			}
		}
	})
}
