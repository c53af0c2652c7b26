package kmod

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"overmount/internal/testenv"
)

// A resolveCase is a file testdata/resolve/*.txtar:
//
//	modules.dep, modules.alias, modules.symbols, modules.builtin
//	        become the binary indexes
//	modules.builtin.alias
//	        lines like those of modules.alias, for modules.builtin.alias.bin
//	modules.softdep, modules.weakdep
//	        as they are
//	modprobe.d/*, cmdline, loaded
//	        the configuration, the kernel's command line, modules in the kernel
//	want    questions and their answers
//
// A question is a line "> [FLAG] NAME" with the flags of modprobe: -D if there is
// none, -b for -D -b, -R, or -n for what would really be loaded. What follows is
// what modprobe prints, with paths in the tree, without spaces at the end of
// lines; and "missing NAME", of which modprobe is silent, or "unknown".
type resolveCase struct {
	dir      string // holds lib/modules/6.1, modprobe.d, cmdline, sys
	tree     *Tree
	config   *Config
	loaded   []string
	question []question
}

type question struct{ flag, name, want string }

func (c *resolveCase) modules() string { return filepath.Join(c.dir, "lib/modules/6.1") }

func loadCase(t *testing.T, file string) *resolveCase {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := &resolveCase{dir: t.TempDir()}
	text := map[string]string{}
	for _, f := range archive.Files {
		text[f.Name] = string(f.Data)
		name := f.Name
		if strings.HasPrefix(name, "modules.") {
			name = filepath.Join("lib/modules/6.1", name)
		}
		writeFile(t, filepath.Join(c.dir, name), string(f.Data))
	}
	for name := range text {
		if !strings.HasPrefix(name, "modprobe.d/") && !strings.HasPrefix(name, "modules.") &&
			name != "cmdline" && name != "loaded" && name != "want" {
			t.Fatalf("%s has a file %s, which means nothing", file, name)
		}
	}
	writeFile(t, filepath.Join(c.dir, "cmdline"), text["cmdline"])
	writeFile(t, filepath.Join(c.dir, "modprobe.d/.keep"), "")
	c.loaded = strings.Fields(text["loaded"])
	writeFile(t, filepath.Join(c.dir, "sys/.keep"), "")
	for _, name := range c.loaded {
		writeFile(t, filepath.Join(c.dir, "sys", name, "initstate"), "live\n")
	}
	writeIndexes(t, c.modules(), text)
	if c.tree, err = OpenTree(os.DirFS(c.modules())); err != nil {
		t.Fatal(err)
	}
	if c.config, err = ReadConfig(os.DirFS(c.dir), "modprobe.d"); err != nil {
		t.Fatal(err)
	}
	c.config.AddCommandLine(text["cmdline"])
	for _, part := range strings.Split("\n"+text["want"], "\n> ")[1:] {
		ask, want, _ := strings.Cut(strings.TrimSuffix(part, "\n"), "\n")
		q := question{flag: "-D", name: ask, want: want}
		if flag, name, ok := strings.Cut(ask, " "); ok && strings.HasPrefix(flag, "-") {
			q.flag, q.name = flag, name
		}
		c.question = append(c.question, q)
	}
	if len(c.question) == 0 {
		t.Fatalf("%s asks nothing", file)
	}
	return c
}

// writeIndexes makes the binary indexes that depmod would make of the text files,
// and the files of the modules, which modprobe looks for.
func writeIndexes(t *testing.T, dir string, text map[string]string) {
	t.Helper()
	var dep, alias, symbols, builtin, builtinAlias IndexBuilder
	insert := func(b *IndexBuilder, key, value string, priority uint32) {
		if _, err := b.Insert(key, value, priority); err != nil {
			t.Fatal(err)
		}
	}
	rank := map[string]uint32{}
	for i, line := range textLines(text["modules.dep"]) {
		path, _, _ := strings.Cut(line, ":")
		rank[Name(path)] = uint32(i)
		insert(&dep, Name(path), line, uint32(i))
		if !filepath.IsAbs(path) {
			writeFile(t, filepath.Join(dir, path), "")
		}
	}
	for _, line := range textLines(text["modules.builtin"]) {
		insert(&builtin, Name(line), "", 0)
	}
	for name, b := range map[string]*IndexBuilder{
		"modules.alias": &alias, "modules.symbols": &symbols, "modules.builtin.alias": &builtinAlias,
	} {
		for _, line := range textLines(text[name]) {
			var pattern, module string
			if _, err := fmt.Sscanf(line, "alias %s %s", &pattern, &module); err != nil {
				t.Fatalf("%s: line %q: %v", name, line, err)
			}
			key, ok := Normalize(pattern)
			if !ok {
				t.Fatalf("%s: line %q: bad bracket", name, line)
			}
			insert(b, key, module, rank[module])
		}
	}
	for name, b := range map[string]*IndexBuilder{
		"modules.dep": &dep, "modules.alias": &alias, "modules.symbols": &symbols,
		"modules.builtin": &builtin, "modules.builtin.alias": &builtinAlias,
	} {
		data, err := b.Bytes(Kmod34)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, name+".bin"), string(data))
	}
}

// textLines returns the lines of a text that are not empty.
func textLines(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
}

// answer returns what the resolver says: for the file, and as modprobe prints it.
func (c *resolveCase) answer(q question) (want, printed string, err error) {
	o := &ResolverOptions{Blacklist: q.flag == "-b"}
	if q.flag == "-n" {
		o.Loaded = func(name string) bool {
			_, err := os.Stat(filepath.Join(c.dir, "sys", name))
			return err == nil
		}
	}
	r := NewResolver(c.tree, c.config, o)
	if q.flag == "-R" {
		names, err := r.Lookup(q.name)
		if len(names) > 0 {
			printed = strings.Join(names, "\n") + "\n"
		}
		return printed, printed, err
	}
	actions, err := r.Resolve(q.name)
	var b strings.Builder
	for _, a := range actions {
		if a.Kind == Missing {
			fmt.Fprintf(&b, "missing %s\n", a.Module)
		} else {
			fmt.Fprintln(&b, strings.TrimRight(strings.ReplaceAll(a.Line("@"), "@/", ""), " "))
		}
	}
	return b.String(), modprobeLines(actions, c.modules()), err
}

// modprobe returns what the packaged program prints for each question, and at last
// for -c. It runs in a mount namespace with the case's own /proc/cmdline and
// /sys/module.
func (c *resolveCase) modprobe(t *testing.T, program string) (answers []answer, config string) {
	t.Helper()
	const script = `
mount --bind "$1/cmdline" /proc/cmdline && mount --bind "$1/sys" /sys/module || exit 9
dir=$1 modprobe=$2
shift 2
while [ $# -gt 0 ]; do
	"$modprobe" $1 -C "$dir/modprobe.d" -d "$dir" -S 6.1 -- "$2"
	printf '=== %s\n' $?
	shift 2
done
exec "$modprobe" -c -C "$dir/modprobe.d" -d "$dir" -S 6.1`
	args := []string{"-c", script, "sh", c.dir, program}
	for _, q := range c.question {
		args = append(args, map[string]string{"-D": "-D", "-b": "-D -b", "-R": "-R", "-n": "-n -v"}[q.flag], q.name)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &complaint)
	}
	rest := string(out)
	for range c.question {
		var a answer
		var status string
		a.printed, rest, _ = strings.Cut(rest, "=== ")
		status, rest, _ = strings.Cut(rest, "\n")
		a.ok = status == "0"
		answers = append(answers, a)
	}
	return answers, rest
}

type answer struct {
	printed string
	ok      bool
}

func cases(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/resolve/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("Glob = %v, %v, want the cases", files, err)
	}
	return files
}

func TestResolve(t *testing.T) {
	for _, file := range cases(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c := loadCase(t, file)
			for _, q := range c.question {
				got, _, err := c.answer(q)
				if errors.Is(err, ErrUnknown) {
					got = "unknown"
				} else if err != nil {
					t.Errorf("Resolve(%q) = %v", q.name, err)
				}
				if diff := cmp.Diff(strings.TrimSuffix(q.want, "\n"), strings.TrimSuffix(got, "\n")); diff != "" {
					t.Errorf("%s %s (-want +got):\n%s", q.flag, q.name, diff)
				}
			}
		})
	}
}

// show returns the configuration as "modprobe -c" does.
func (c *Config) show(tree *Tree) string {
	all := c.merge(tree.rules)
	var b strings.Builder
	for _, name := range all.blacklist {
		fmt.Fprintf(&b, "blacklist %s\n", name)
	}
	for _, kind := range []struct {
		name  string
		rules []rule
	}{{"install", all.install}, {"remove", all.remove}, {"alias", all.aliases}, {"options", all.options}} {
		for _, r := range kind.rules {
			fmt.Fprintf(&b, "%s %s %s\n", kind.name, r.name, r.value)
		}
	}
	return b.String()
}

// shownConfig cuts the indexes from what "modprobe -c" prints, and softdeps,
// which kmod 30 prints without the space between their parts.
func shownConfig(shown string) []string {
	shown, _, _ = strings.Cut(shown, "\n# End of configuration files.")
	return slices.DeleteFunc(textLines(shown), func(line string) bool {
		return strings.HasPrefix(line, "softdep ") || strings.HasPrefix(line, "weakdep ")
	})
}

// The cases are what modprobe does, to the byte.
func TestResolveAsModprobe(t *testing.T) {
	testenv.Root(t, "giving modprobe another kernel command line")
	program := modprobePath(t)
	for _, file := range cases(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c := loadCase(t, file)
			answers, config := c.modprobe(t, program)
			for i, q := range c.question {
				_, printed, err := c.answer(q)
				if diff := cmp.Diff(answers[i], answer{printed, err == nil}, cmp.AllowUnexported(answer{})); diff != "" {
					t.Errorf("%s %s (-modprobe +ours):\n%s", q.flag, q.name, diff)
				}
			}
			if diff := cmp.Diff(shownConfig(config), shownConfig(c.config.show(c.tree))); diff != "" {
				t.Errorf("configuration is not that of modprobe -c (-modprobe +ours):\n%s", diff)
			}
		})
	}
}
