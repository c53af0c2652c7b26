package kmod

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/internal/testenv"
)

// A kernel is the tree of a real one, and the packaged modprobe looking at it
// with a configuration of the test's own.
type kernel struct {
	dir, root, kver string
	modprobe        string
	conf            string
	tree            *Tree
	config          *Config
}

func realKernel(t *testing.T, conf string) *kernel {
	t.Helper()
	k := &kernel{dir: testenv.Kernel(t), modprobe: modprobePath(t), conf: t.TempDir()}
	root, kver, ok := strings.Cut(k.dir, "/lib/modules/")
	if !ok {
		t.Fatalf("%s is not a directory lib/modules/KVER", k.dir)
	}
	k.root, k.kver = root, kver
	writeFile(t, filepath.Join(k.conf, "test.conf"), conf)
	var err error
	if k.tree, err = OpenTree(os.DirFS(k.dir)); err != nil {
		t.Fatal(err)
	}
	if k.config, err = ReadConfig(os.DirFS(k.conf), "."); err != nil {
		t.Fatal(err)
	}
	// modprobe reads that of the host, whatever its arguments.
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	k.config.AddCommandLine(string(cmdline))
	return k
}

// modprobePath returns the path of the program, which users may not have in PATH.
func modprobePath(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin"} {
		if path, err := exec.LookPath(dir + "/modprobe"); err == nil {
			return path
		}
	}
	return testenv.Tool(t, "modprobe")
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// says returns what modprobe prints for names, which may be unknown to it.
func (k *kernel) says(t *testing.T, flags, names []string) string {
	t.Helper()
	args := slices.Concat(flags, []string{"-a", "-q", "-C", k.conf, "-d", k.root, "-S", k.kver, "--"}, names)
	cmd := exec.CommandContext(t.Context(), k.modprobe, args...)
	cmd.Env = []string{"LC_ALL=C"}
	var exit *exec.ExitError
	out, err := cmd.Output()
	if err != nil && !errors.As(err, &exit) {
		t.Error(err)
	}
	return string(out)
}

// resolve returns what the resolver has to say in place of modprobe.
func (k *kernel) resolve(t *testing.T, r *Resolver, names []string) string {
	t.Helper()
	var b strings.Builder
	for _, name := range names {
		actions, err := r.Resolve(name)
		if err != nil && !errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
		b.WriteString(modprobeLines(actions, k.dir))
	}
	return b.String()
}

// modprobeLines returns the actions as "modprobe -D" prints them.
func modprobeLines(actions []Action, dir string) string {
	var b strings.Builder
	for _, a := range actions {
		if line := a.Line(dir); line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// compare asks modprobe for all names, many at a time, and two of them at once.
func (k *kernel) compare(t *testing.T, names []string, flags []string, o *ResolverOptions) {
	t.Helper()
	r := NewResolver(k.tree, k.config, o)
	var wg sync.WaitGroup
	free := make(chan struct{}, 2)
	for batch := range slices.Chunk(names, 100) {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			if k.resolve(t, r, batch) == k.says(t, flags, batch) {
				return
			}
			for _, name := range batch {
				if diff := cmp.Diff(k.says(t, flags, []string{name}), k.resolve(t, r, []string{name})); diff != "" {
					t.Errorf("Resolve(%q) is not what modprobe does (-modprobe +ours):\n%s", name, diff)
				}
			}
		})
	}
	wg.Wait()
}

// filledIn returns n names that the patterns of an index match, the same ones
// each time.
func filledIn(x *Index, n int) []string {
	patterns := []string{}
	for key := range x.All() {
		patterns = append(patterns, key)
	}
	var names []string
	for i := range n {
		pattern := patterns[i*len(patterns)/n]
		star := []string{"", "0", "00001AF4", "x-y", "bc02sc00"}[i%5]
		name := strings.NewReplacer("*", star, "?", "a").Replace(pattern)
		if before, rest, ok := strings.Cut(name, "["); ok {
			_, after, _ := strings.Cut(rest, "]")
			name = before + rest[:1] + after
		}
		names = append(names, name)
	}
	return names
}

// Every module, and names of every other kind: aliases with their wildcards
// filled in, symbols, builtin modules and their aliases, unknown ones.
func TestResolverIsModprobe(t *testing.T) {
	k := realKernel(t, "")
	names := slices.Collect(k.tree.Modules())
	if len(names) < 1000 {
		t.Errorf("tree has %d modules, want those of a real kernel", len(names))
	}
	names = append(names, filledIn(k.tree.alias, 400)...)
	names = append(names, filledIn(k.tree.symbols, 40)...)
	names = append(names, filledIn(k.tree.builtin, 40)...)
	names = append(names, filledIn(k.tree.builtinAlias, 40)...)
	names = append(names, "nosuch", "pci:v0000", "a[b", "a]b", "symbol:nosuch", "", "-", "snd-hda-intel", "e1000e.ko", "é")
	k.compare(t, names, []string{"-D"}, nil)
}

// The same under a configuration that touches many modules.
func TestResolverIsModprobeWithConfig(t *testing.T) {
	k := realKernel(t, `
alias pci:v00008086* e1000e
alias net-pf-* dummy
alias snd-* snd-aloop
softdep snd* pre: snd-dummy post: snd-aloop crc32c
softdep *fs pre: nls_utf8 pci:v00008086d0 nosuch
softdep nls_utf8 post: ext4
options libata force=a
options *mod x=1
options mii  m=1	n=2
install *gre /bin/gre $CMDLINE_OPTS
install mac80211 /bin/mac
install ab* /bin/false
install abc /bin/abc
blacklist btrfs
blacklist iwlwifi
blacklist ahci
`)
	names := slices.Collect(k.tree.Modules())
	names = append(names, filledIn(k.tree.alias, 400)...)
	names = append(names, "abc", "abcd", "net-pf-1", "symbol:crc32c")
	names = slices.DeleteFunc(names, func(name string) bool { return len(name)%3 == 0 })
	k.compare(t, names, []string{"-D"}, nil)
	k.compare(t, names, []string{"-D", "-b"}, &ResolverOptions{Blacklist: true})
}

// A closure holds what Resolve loads, each module once, after what it needs.
func TestClosureOfRealModules(t *testing.T) {
	k := realKernel(t, "")
	r := NewResolver(k.tree, nil, nil)
	all := slices.Collect(k.tree.Modules())
	for _, name := range all {
		closure, err := k.tree.Closure(name)
		if err != nil {
			t.Fatal(err)
		}
		checkClosure(t, k.tree, closure)
		actions, err := r.Resolve(name)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		for _, a := range actions {
			if a.Path != "" {
				want[a.Module] = a.Path
			}
		}
		got := map[string]string{}
		for _, n := range closure {
			got[n.Module] = n.Path
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Closure(%q) is not what Resolve loads (-want +got):\n%s", name, diff)
		}
	}
	closure, err := k.tree.Closure(all...)
	if err != nil || len(closure) != len(all) {
		t.Errorf("Closure of all %d modules has %d, %v", len(all), len(closure), err)
	}
	checkClosure(t, k.tree, closure)
}

func checkClosure(t *testing.T, tree *Tree, closure []Needed) {
	t.Helper()
	seen := map[string]bool{}
	for _, n := range closure {
		if seen[n.Module] {
			t.Errorf("%s is in the closure twice", n.Module)
		}
		seen[n.Module] = true
		path, deps, err := tree.Dep(n.Module)
		if err != nil || path != n.Path {
			t.Errorf("path of %s in the closure is %s, want %s, %v", n.Module, n.Path, path, err)
		}
		for _, file := range deps {
			if !seen[Name(file)] {
				t.Errorf("%s comes before %s, which it needs", n.Module, file)
			}
		}
	}
}
