package kmod

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A textFile is a text index, and a function that reads it and writes it again.
type textFile struct {
	name, header string
	rewrite      func(data []byte) ([]byte, error)
}

func rewrite[T any](parse func([]byte) ([]T, error), app func([]byte, T) []byte) func([]byte) ([]byte, error) {
	return func(data []byte) (out []byte, err error) {
		all, err := parse(data)
		for _, v := range all {
			out = app(out, v)
		}
		return out, err
	}
}

var textFiles = []textFile{
	{"modules.dep", "", rewrite(ParseDep, AppendDep)},
	{"modules.alias", AliasHeader, rewrite(ParseAliases, AppendAlias)},
	{"modules.symbols", SymbolsHeader, rewrite(ParseAliases, AppendAlias)},
	{"modules.softdep", SoftdepHeader, rewrite(ParseSoftdeps, AppendSoftdep)},
	{"modules.weakdep", WeakdepHeader, rewrite(ParseWeakdeps, AppendWeakdep)},
	{"modules.devname", DevnameHeader, rewrite(ParseDevnames, AppendDevname)},
}

func TestRewriteKernelTexts(t *testing.T) {
	for _, f := range textFiles {
		if f.name == "modules.weakdep" {
			continue // kmod 30 writes none
		}
		data := kernelFile(t, f.name)
		lines, err := f.rewrite(data)
		if got := append([]byte(f.header), lines...); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: wrote %d bytes, %v, want the %d read", f.name, len(got), err, len(data))
		}
	}
}

// The text files and the binary ones of one tree say the same.
func TestKernelTextsAgree(t *testing.T) {
	var symbols, deps IndexBuilder
	dep, err := ParseDep(kernelFile(t, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	rank := make(map[string]uint32)
	for i, d := range dep {
		rank[Name(d.Path)] = uint32(i)
		line := AppendDep(nil, d)
		mustInsert(t, &deps, Name(d.Path), string(line[:len(line)-1]), uint32(i))
	}
	syms, err := ParseAliases(kernelFile(t, "modules.symbols"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range syms {
		mustInsert(t, &symbols, s.Pattern, s.Module, rank[s.Module])
	}
	var aliases IndexBuilder
	all, err := ParseAliases(kernelFile(t, "modules.alias"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if key, ok := Normalize(a.Pattern); ok {
			mustInsert(t, &aliases, key, a.Module, rank[a.Module])
		}
	}
	var builtin IndexBuilder
	for _, file := range ParseBuiltin(kernelFile(t, "modules.builtin")) {
		mustInsert(t, &builtin, Name(file), "", 0)
	}
	var builtinAliases IndexBuilder
	fields, err := ParseBuiltinModinfo(kernelFile(t, "modules.builtin.modinfo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		if key, ok := Normalize(f.Value); ok && f.Key == "alias" {
			mustInsert(t, &builtinAliases, key, f.Module, 0)
		}
	}
	for name, b := range map[string]*IndexBuilder{
		"modules.dep.bin": &deps, "modules.symbols.bin": &symbols, "modules.alias.bin": &aliases,
		"modules.builtin.bin": &builtin, "modules.builtin.alias.bin": &builtinAliases,
	} {
		got, err := b.Bytes(Kmod30)
		if want := kernelFile(t, name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s from the text files = %d bytes, %v, want the %d of kmod", name, len(got), err, len(want))
		}
	}
	if order := ParseOrder(kernelFile(t, "modules.order")); len(order) < len(dep) || order[0] != dep[0].Path {
		t.Errorf("ParseOrder = %d paths, want at least the %d of modules.dep", len(order), len(dep))
	}
}

func check[T any](t *testing.T, what string, parse func([]byte) ([]T, error), text string, want ...T) {
	t.Helper()
	got, err := parse([]byte(text))
	if err != nil {
		t.Errorf("%s(%q) = %v", what, text, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s(%q): -want +got\n%s", what, text, d)
	}
}

func TestParseTexts(t *testing.T) {
	check(t, "ParseDep", ParseDep, "# a comment\n\nkernel/a.ko.xz: kernel/b.ko.xz /c.ko\nb.ko:\nlast.ko: a.ko",
		Dep{"kernel/a.ko.xz", []string{"kernel/b.ko.xz", "/c.ko"}}, Dep{"b.ko", []string{}}, Dep{"last.ko", []string{"a.ko"}})
	check(t, "ParseAliases", ParseAliases, AliasHeader+"alias pci:v* a\nalias dmi*:pn An Example:* b_c\nalias  empty\n",
		Alias{"pci:v*", "a"}, Alias{"dmi*:pn An Example:*", "b_c"}, Alias{"", "empty"})
	check(t, "ParseSoftdeps", ParseSoftdeps, SoftdepHeader+"softdep ext4 pre: crypto-crc32c\nsoftdep odd  two\nsoftdep none \n",
		Softdep{"ext4", "pre: crypto-crc32c"}, Softdep{"odd", " two"}, Softdep{"none", ""})
	check(t, "ParseWeakdeps", ParseWeakdeps, "\t\n  # indented\nweakdep mana mana_ib other\n", Softdep{"mana", "mana_ib other"})
	check(t, "ParseDevnames", ParseDevnames, DevnameHeader+"tun net/tun c10:200\nloop loop-control b7:4294967295\n",
		Devname{"tun", "net/tun", 'c', 10, 200}, Devname{"loop", "loop-control", 'b', 7, 1<<32 - 1})
	check(t, "ParseBuiltinModinfo", ParseBuiltinModinfo, "a.alias=x.y=z\x00a.description=two\nlines\x00b.license=\x00",
		BuiltinField{"a", Field{"alias", "x.y=z"}}, BuiltinField{"a", Field{"description", "two\nlines"}}, BuiltinField{"b", Field{"license", ""}})
	for what, parse := range map[string]func([]byte) []string{"ParseBuiltin": ParseBuiltin, "ParseOrder": ParseOrder} {
		if got, want := parse([]byte("a.ko\n\n# no\nb-c.ko")), []string{"a.ko", "b-c.ko"}; !slices.Equal(got, want) {
			t.Errorf("%s = %q, want %q", what, got, want)
		}
	}
}

func TestSoftdepSplit(t *testing.T) {
	for _, c := range []struct {
		value     string
		pre, post []string
	}{
		{"pre: a b-c post: d", []string{"a", "b-c"}, []string{"d"}},
		{"post: d\tpre: a post: e", []string{"a"}, []string{"d", "e"}},
		{"lost pre: a", []string{"a"}, nil},
		{"pre:a b", nil, nil},
		{"platform:", nil, nil},
		{"", nil, nil},
	} {
		pre, post := Softdep{Value: c.value}.Split()
		if !slices.Equal(pre, c.pre) || !slices.Equal(post, c.post) {
			t.Errorf("Split of %q = %q, %q, want %q, %q", c.value, pre, post, c.pre, c.post)
		}
	}
}

func TestMalformedTexts(t *testing.T) {
	for _, c := range []struct{ file, line string }{
		{"modules.dep", "a.ko b.ko"},
		{"modules.dep", ": b.ko"},
		{"modules.alias", "alias one"},
		{"modules.alias", "alias pattern "},
		{"modules.alias", "alais a b"},
		{"modules.symbols", "symbol:x y"},
		{"modules.softdep", "softdep"},
		{"modules.softdep", "softdep  pre: a"},
		{"modules.softdep", "weakdep a b"},
		{"modules.weakdep", "softdep a b"},
		{"modules.devname", "fuse fuse"},
		{"modules.devname", "fuse fuse d10:229"},
		{"modules.devname", "fuse fuse c10,229"},
		{"modules.devname", "fuse fuse c10:-1"},
		{"modules.devname", "fuse fuse c4294967296:1"},
		{"modules.devname", "fuse a b c10:229"},
	} {
		i := slices.IndexFunc(textFiles, func(f textFile) bool { return f.name == c.file })
		got, err := textFiles[i].rewrite([]byte("# one\n\n" + c.line + "\n"))
		if err == nil || !strings.HasPrefix(err.Error(), "line 3: ") || got != nil {
			t.Errorf("%s with %q = %q, %v, want an error at line 3", c.file, c.line, got, err)
		}
	}
	for _, s := range []string{"a.alias=x\x00noequals", "a.alias=x\x00nodot=x", "a.alias=x\x00.alias=x"} {
		if got, err := ParseBuiltinModinfo([]byte(s)); err == nil || !strings.HasPrefix(err.Error(), "record 2: ") {
			t.Errorf("ParseBuiltinModinfo(%q) = %v, %v, want an error at record 2", s, got, err)
		}
	}
}

// What is read and written once is a fixed point.
func FuzzTexts(f *testing.F) {
	for i, s := range []string{"a.ko: b.ko c.ko\n", "alias a b c\n", "alias symbol:a b", "softdep a pre: b\n", "weakdep a b\n", "a b c1:2\n# x\n\n"} {
		f.Add(i, []byte(s))
	}
	f.Fuzz(func(t *testing.T, i int, data []byte) {
		ParseBuiltinModinfo(data)
		ParseBuiltin(data)
		file := textFiles[uint(i)%uint(len(textFiles))]
		once, err := file.rewrite(data)
		if err != nil {
			if once != nil {
				t.Fatalf("%s %q: %q beside %v", file.name, data, once, err)
			}
			return
		}
		twice, err := file.rewrite(once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%s %q: rewritten %q, and again %q, %v", file.name, data, once, twice, err)
		}
	})
}
