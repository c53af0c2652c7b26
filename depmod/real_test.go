package depmod

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"overmount/internal/testenv"
)

// TestKernel compares with depmod on the modules of a real kernel.
func TestKernel(t *testing.T) {
	kernel := testenv.Kernel(t)
	each(t, func(t *testing.T, j judge) {
		root, _ := image(t, kernel)
		r := judged(t, j, root, &Options{})
		if len(r.Modules) < 1000 {
			t.Errorf("found %d modules, want those of a kernel", len(r.Modules))
		}
	})
}

// TestKernels does so for other architectures.
func TestKernels(t *testing.T) {
	for _, kernel := range testenv.Kernels(t) {
		t.Run(strings.ReplaceAll(filepath.Base(kernel), "/", "-"), func(t *testing.T) {
			each(t, func(t *testing.T, j judge) {
				root, _ := image(t, kernel)
				judged(t, j, root, &Options{})
			})
		})
	}
}

// TestOrder is about modules that modules.order does not have.
func TestOrder(t *testing.T) {
	kernel := testenv.Kernel(t)
	order, err := os.ReadFile(filepath.Join(kernel, "modules.order"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(order), "\n")
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(lines), func(i, k int) { lines[i], lines[k] = lines[k], lines[i] })
	quarter := strings.Join(lines[:len(lines)/4], "")
	cases := map[string]*string{
		"missing": nil,
		"some":    new(quarter),
		"none":    new(""),
		"cut":     new(strings.TrimSuffix(quarter, "\n")),
		"twice":   new(quarter + string(order[:len(order)/2]) + "\n" + quarter),
	}
	// Two cases on all modules; a part does for the others.
	_, part := copyOf(t, kernel, some, unchanged)
	from := map[string]string{"missing": kernel, "some": kernel, "none": part, "cut": part, "twice": part}
	for name, content := range cases {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, j judge) {
				root, dir := image(t, from[name])
				if err := os.Remove(filepath.Join(dir, "modules.order")); err != nil {
					t.Fatal(err)
				}
				if content != nil {
					write(t, filepath.Join(dir, "modules.order"), []byte(*content))
				}
				r := judged(t, j, root, &Options{})
				missing := len(r.Warnings) > 0 && r.Warnings[0].Kind == Missing
				if want := name == "missing" || name == "cut"; missing != want {
					t.Errorf("warned of modules.order: %v, want %v", missing, want)
				}
			})
		})
	}
}

func write(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// copyOf copies those modules of a directory that keep has, through change, and
// returns a directory as image does.
func copyOf(t testing.TB, from string, keep func(name string) bool, change func([]byte) []byte) (root, dir string) {
	t.Helper()
	root, dir = image(t, from)
	files, err := findModules(t.Context(), os.DirFS(from), &Options{Config: &Config{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "kernel")); err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		if !keep(f.path) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, f.path))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, f.path), change(data))
		if i%1000 == 0 && t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
	}
	return root, dir
}

func all(string) bool              { return true }
func unchanged(data []byte) []byte { return data }

// some are about 300 modules that depend on each other.
func some(name string) bool {
	return strings.HasPrefix(name, "kernel/lib/") || strings.HasPrefix(name, "kernel/crypto/") || strings.HasPrefix(name, "kernel/fs/") ||
		strings.HasPrefix(name, "kernel/net/802") || strings.HasPrefix(name, "kernel/net/core")
}

// compress runs a compressor on all modules of a directory.
func compress(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	tool := testenv.Tool(t, name)
	cmd := exec.CommandContext(t.Context(), "find", "kernel", "-name", "*.ko", "-exec", tool)
	cmd.Args = append(append(cmd.Args, args...), "{}", "+")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, out)
	}
}

func TestZstd(t *testing.T) {
	root, dir := copyOf(t, testenv.Kernel(t), all, unchanged)
	compress(t, dir, "zstd", "-1", "-q", "--rm")
	each(t, func(t *testing.T, j judge) { judged(t, j, root, &Options{}) })
}

func TestXZ(t *testing.T) {
	root, dir := copyOf(t, testenv.Kernel(t), some, unchanged)
	compress(t, dir, "xz", "--check=crc32", "--lzma2=preset=0,dict=1MiB")
	each(t, func(t *testing.T, j judge) { judged(t, j, root, &Options{}) })
}

// TestGzip compares with what uncompressed modules give, since Debian's kmod
// knows no gzip.
func TestGzip(t *testing.T) {
	_, dir := copyOf(t, testenv.Kernel(t), some, unchanged)
	plain, err := Build(t.Context(), os.DirFS(dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	compress(t, dir, "gzip", "-1")
	packed, err := Build(t.Context(), os.DirFS(dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range packed.Files {
		want := plain.Files[i].Data
		switch f.Name {
		case "modules.dep.bin": // has offsets
			continue
		case "modules.dep":
			f.Data = bytes.ReplaceAll(f.Data, []byte(".ko.gz"), []byte(".ko"))
		}
		if !bytes.Equal(f.Data, want) {
			t.Errorf("%s of modules in gzip differs from that of plain ones", f.Name)
		}
	}
}

// TestNoModversions is about kernels whose modules have no CRCs.
func TestNoModversions(t *testing.T) {
	root, _ := copyOf(t, testenv.Kernel(t), some, func(data []byte) []byte {
		return bytes.ReplaceAll(data, []byte("\x00__crc_"), []byte("\x00__xrc_"))
	})
	each(t, func(t *testing.T, j judge) {
		r := judged(t, j, root, &Options{})
		for _, f := range r.Files {
			if f.Name == "modules.symbols" && bytes.Count(f.Data, []byte("\n")) < 100 {
				t.Errorf("modules.symbols has %d bytes, want symbols of __ksymtab_strings", len(f.Data))
			}
		}
	})
}

// TestSymbols compares the reports of -e. The symbols of the kernel are made of
// what the modules need, less some, and with a wrong CRC here and there.
func TestSymbols(t *testing.T) {
	root, dir := copyOf(t, testenv.Kernel(t), some, unchanged)
	symvers, systemMap := kernelSymbols(t, dir)
	for _, c := range []struct {
		flag, file string
		read       func(string) (*Symbols, error)
	}{
		{"-E", symvers, symvers30}, {"-F", systemMap, systemMap30},
	} {
		t.Run(c.flag, func(t *testing.T) {
			each(t, func(t *testing.T, j judge) {
				symbols, err := c.read(c.file)
				if err != nil {
					t.Fatal(err)
				}
				r := judged(t, j, root, &Options{Symbols: symbols})
				out, err := j.command(t, root, "-e", c.flag, c.file, "-n", kver).CombinedOutput()
				if err != nil {
					t.Fatal(err)
				}
				compareReports(t, dir, r, string(out))
			})
		})
	}
}

func symvers30(name string) (*Symbols, error)   { return readSymbols(name, false) }
func systemMap30(name string) (*Symbols, error) { return readSymbols(name, true) }

func readSymbols(name string, systemMap bool) (*Symbols, error) {
	in, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if systemMap {
		return ReadSystemMap(in, 0)
	}
	return ReadSymvers(in, 0)
}

// kernelSymbols writes a Module.symvers and a System.map.
func kernelSymbols(t *testing.T, dir string) (symvers, systemMap string) {
	t.Helper()
	var versions, addresses strings.Builder
	b := &builder{fsys: os.DirFS(dir), o: &Options{Config: &Config{}, Parallel: 2}}
	if err := b.find(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range b.Modules {
		for _, s := range m.Needs {
			if seen[s.Name] || len(seen)%10 == 9 {
				seen[s.Name] = true
				continue
			}
			seen[s.Name] = true
			crc := s.CRC
			if len(seen)%10 == 3 {
				crc++
			}
			fmt.Fprintf(&versions, "0x%08x\t%s\tvmlinux\tEXPORT_SYMBOL\t\n", crc, s.Name)
			fmt.Fprintf(&addresses, "ffffffff81000000 r __ksymtab_%s\nffffffff81000000 T %s\n", s.Name, s.Name)
		}
	}
	symvers, systemMap = filepath.Join(t.TempDir(), "Module.symvers"), filepath.Join(t.TempDir(), "System.map")
	write(t, symvers, []byte(versions.String()))
	write(t, systemMap, []byte(addresses.String()))
	return symvers, systemMap
}

// compareReports compares our warnings of symbols with the lines of depmod.
func compareReports(t *testing.T, dir string, r *Result, out string) {
	t.Helper()
	theirs := map[string]bool{}
	for line := range strings.Lines(out) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "depmod: WARNING: "); ok {
			theirs[text] = true
		}
	}
	ours := map[string]bool{}
	for _, w := range r.Warnings {
		if w.Kind == Unresolved || w.Kind == Disagrees {
			ours[filepath.Join(dir, w.Path)+" "+w.Text] = true
		}
	}
	if len(ours) < 100 {
		t.Errorf("there are %d warnings, want those of some hundred symbols", len(ours))
	}
	for text := range theirs {
		if !ours[text] {
			t.Errorf("depmod warns, we do not: %s", text)
		}
	}
	for text := range ours {
		if !theirs[text] {
			t.Errorf("we warn, depmod does not: %s", text)
		}
	}
}
