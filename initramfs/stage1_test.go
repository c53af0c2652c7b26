package initramfs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/internal/testenv"
	"overmount/kmod/kmodtest"
)

func names(s *Stage1) []string {
	var all []string
	for _, m := range s.Modules {
		all = append(all, m.Name)
	}
	slices.Sort(all)
	return all
}

func TestSelect(t *testing.T) {
	modules := os.DirFS(kernel(t))
	virtio := []string{"fuse", "virtio", "virtio_net", "virtio_pci"}
	vm := append([]string{"crc", "e1000e", "ptp", "vmxnet3"}, virtio...)
	for _, c := range []struct {
		stage1 string
		want   []string
		always []string
	}{
		{"virtio", virtio, []string{"fuse"}},
		{"virtio,overlay", append([]string{"overlay"}, virtio...), []string{"overlay", "fuse"}},
		{"fs-overlay,af-packet", []string{"fuse", "overlay"}, []string{"overlay", "fuse"}},
		{"vm", vm, []string{"fuse"}},
		{"vm,-e1000e", append([]string{"vmxnet3"}, virtio...), []string{"fuse"}},
		{"server", append([]string{"bonding", "tg3"}, vm...), []string{"fuse"}},
		// By directory, and by symbol where no directory says it.
		{"all-ethernet", append([]string{"glue", "late", "out_of_tree_nic", "realtek", "tg3"}, vm...), []string{"fuse"}},
		{"kernel/drivers/net/phy/", []string{"fuse", "realtek"}, []string{"fuse"}},
	} {
		s, err := Select(t.Context(), modules, strings.Split(c.stage1, ","))
		if err != nil {
			t.Errorf("Select(%s): %v", c.stage1, err)
			continue
		}
		slices.Sort(c.want)
		if diff := cmp.Diff(c.want, names(s)); diff != "" {
			t.Errorf("Select(%s): (-want +got)\n%s", c.stage1, diff)
		}
		if !slices.Equal(s.Always, c.always) {
			t.Errorf("Select(%s) always loads %q, want %q", c.stage1, s.Always, c.always)
		}
	}
}

func TestSelectSaysWhatThisKernelLacks(t *testing.T) {
	s, err := Select(t.Context(), os.DirFS(kernel(t)), []string{"vm"})
	want := []string{"e1000", "ena", "gve", "hv_netvsc", "xen_netfront"}
	if err != nil || !slices.Equal(s.Absent, want) {
		t.Errorf("Select(vm) lacks %q, %v, want %q", s.Absent, err, want)
	}
}

// What was left out, and perhaps not meant so, is said.
func TestLeftOut(t *testing.T) {
	dir := kernel(t)
	for list, want := range map[string]string{
		"virtio,-virtio_net":  "",
		"virtio,-virtio-netz": "stage 1: there is no virtio_netz to leave out",
		"virtio,-virtio":      "stage 1: virtio is not left out: other modules need it",
		"virtio,-fuse":        "stage 1: fuse is left out, and without it nothing can be mounted",
	} {
		im := image(t, options(t, dir, strings.Split(list, ",")...))
		if got := strings.Join(im.Warnings, "; "); got != want {
			t.Errorf("%s: warnings %q, want %q", list, got, want)
		}
	}
}

func TestSelectRefuses(t *testing.T) {
	dir := kernel(t)
	for item, want := range map[string]string{
		"nosuch":           `"nosuch" is neither a module of this kernel nor one of the sets virtio, vm, server, all-ethernet`,
		"kernel/nowhere/":  "no module below kernel/nowhere/",
		"pci:v0000FFFFd00": "neither a module",
	} {
		if _, err := Select(t.Context(), os.DirFS(dir), []string{item}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Select(%s): %v, want %q", item, err, want)
		}
	}
	bare := t.TempDir()
	kmodtest.Write(t, bare, "kernel/a.ko", kmodtest.Module{})
	if _, err := Select(t.Context(), os.DirFS(bare), []string{"a"}); err == nil || !strings.Contains(err.Error(), "depmod writes it") {
		t.Errorf("Select without indexes: %v, want a word about depmod", err)
	}
}

// Modules come before those that need them, so that insmod can load the list from
// the top.
func TestStage1IsInLoadOrder(t *testing.T) {
	s, err := Select(t.Context(), os.DirFS(kernel(t)), []string{"all-ethernet"})
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) int {
		return slices.IndexFunc(s.Modules, func(m Module) bool { return m.Name == name })
	}
	for _, pair := range [][2]string{{"virtio", "virtio_net"}, {"virtio", "virtio_pci"}, {"ptp", "e1000e"}, {"crc", "e1000e"}} {
		if at(pair[0]) > at(pair[1]) {
			t.Errorf("%s comes after %s, which needs it", pair[0], pair[1])
		}
	}
}

// kmod finds in the image what it finds in the directory that the modules are from,
// and its depmod would not make other indexes.
func TestIndexesOfARealKernel(t *testing.T) {
	modules := testenv.Kernel(t)
	modprobe, depmod := testenv.Tool(t, "modprobe"), testenv.Tool(t, "depmod")
	kver := filepath.Base(modules)
	im := image(t, options(t, modules, "vm"))
	dir := unpacked(t, im)
	for _, name := range []string{"virtio_net", "e1000e", "hv_netvsc", "fuse", "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00"} {
		root := strings.TrimSuffix(modules, "/lib/modules/"+kver)
		want := strings.ReplaceAll(run(t, modprobe, "-d", root, "-S", kver, "-D", name), root+"/", dir+"/")
		if got := run(t, modprobe, "-d", dir, "-S", kver, "-D", name); got != want {
			t.Errorf("modprobe -D %s in the image gives\n%swant\n%s", name, got, want)
		}
	}
	if out := run(t, depmod, "-A", "-n", "-b", dir, kver); out != "" {
		t.Errorf("depmod -A would make the indexes anew")
	}
	in := filepath.Join(dir, "lib/modules", kver)
	made, err := filepath.Glob(in + "/modules.*")
	if err != nil || len(made) < 10 {
		t.Fatalf("the image has the indexes %q, %v", made, err)
	}
	ours := map[string]string{}
	for _, name := range made {
		ours[name] = read(t, name)
	}
	run(t, depmod, "-b", dir, kver)
	for name, got := range ours {
		if want := read(t, name); got != want {
			t.Errorf("depmod makes of the modules of the image another %s", filepath.Base(name))
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The sets have about the modules of real kernels that they were chosen for.
func TestSetsOfARealKernel(t *testing.T) {
	modules := os.DirFS(testenv.Kernel(t))
	for set, least := range map[string]int{"virtio": 9, "vm": 15, "server": 50, "all-ethernet": 180} {
		s, err := Select(t.Context(), modules, []string{set})
		if err != nil {
			t.Errorf("Select(%s): %v", set, err)
			continue
		}
		if n := len(s.Modules); n < least || n > least+30 {
			t.Errorf("Select(%s) has %d modules, want %d or somewhat more", set, n, least)
		}
		for _, want := range []string{"fuse", "virtio_net", "virtio_pci"} {
			if !slices.Contains(names(s), want) {
				t.Errorf("Select(%s) lacks %s", set, want)
			}
		}
	}
}
