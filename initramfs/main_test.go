package initramfs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"overmount/depmod"
	"overmount/internal/testenv"
	"overmount/kmod/kmodtest"
)

const kver = "6.1.0-test"

// kernel writes the modules of a small kernel, compressed in all ways, with their
// indexes, and returns the directory.
func kernel(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), kver)
	nic := []string{"alloc_etherdev_mqs", "__pci_register_driver"}
	for name, m := range map[string]kmodtest.Module{
		"kernel/drivers/virtio/virtio.ko.xz":                    {Exports: []string{"register_virtio_driver"}},
		"kernel/drivers/virtio/virtio_pci.ko":                   {Needs: []string{"register_virtio_driver"}, Info: []string{"alias=pci:v00001AF4d*"}},
		"kernel/drivers/net/virtio_net.ko.zst":                  {Needs: []string{"register_virtio_driver", "alloc_etherdev_mqs"}, Info: []string{"alias=virtio:d00000001v*"}},
		"kernel/drivers/net/vmxnet3/vmxnet3.ko":                 {Needs: nic},
		"kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko.gz": {Needs: append([]string{"ptp"}, nic...), Info: []string{"softdep=pre: crc", "alias=pci:v00008086d*"}},
		"kernel/drivers/net/ethernet/broadcom/tg3.ko":           {Needs: nic, Info: []string{"firmware=tigon/tg3.bin", "firmware=tigon/none.bin", "firmware=tigon/many*.bin", "firmware=../etc/shadow"}},
		"kernel/drivers/net/ethernet/odd/glue.ko":               {},
		"kernel/drivers/net/phy/realtek.ko":                     {},
		"kernel/drivers/net/wireless/intel/ipw/ipw2100.ko":      {Needs: nic},
		"kernel/drivers/net/usb/rtl8150.ko":                     {Needs: nic},
		"kernel/drivers/net/bonding/bonding.ko":                 {Needs: []string{"alloc_etherdev_mqs"}},
		"kernel/drivers/scsi/raid.ko":                           {Needs: []string{"__pci_register_driver"}},
		"updates/out-of-tree-nic.ko":                            {Needs: nic, Info: []string{"weakdep=late"}},
		"updates/other.ko":                                      {},
		"kernel/lib/late.ko":                                    {},
		"kernel/lib/crc.ko.xz":                                  {},
		"kernel/drivers/ptp/ptp.ko":                             {Exports: []string{"ptp"}},
		"kernel/fs/fuse/fuse.ko":                                {Info: []string{"alias=fs-fuse"}},
		"kernel/fs/overlayfs/overlay.ko":                        {Info: []string{"alias=fs-overlay"}},
	} {
		m.Info = append(m.Info, "vermagic="+kver+" SMP", "license=GPL")
		kmodtest.Write(t, dir, name, m)
	}
	write(t, filepath.Join(dir, "modules.builtin"), "kernel/net/packet/af_packet.ko\nkernel/drivers/virtio/virtio_mmio.ko\n")
	write(t, filepath.Join(dir, "modules.order"), "kernel/fs/overlayfs/overlay.ko\nkernel/fs/fuse/fuse.ko\nkernel/drivers/virtio/virtio.ko\n")
	write(t, filepath.Join(dir, "modules.builtin.modinfo"), "af_packet.file=net/packet/af_packet\x00af_packet.license=GPL\x00")
	result, err := depmod.Build(t.Context(), os.DirFS(dir), &depmod.Options{Kver: kver})
	if err != nil {
		t.Fatal(err)
	}
	if err := result.Write(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// options are those of a small image.
func options(t *testing.T, modules string, stage1 ...string) *Options {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	write(t, program, "#!/bin/sh\n")
	return &Options{Modules: os.DirFS(modules), Kver: filepath.Base(modules), Stage1: stage1, Program: program, Init: program}
}

func image(t *testing.T, o *Options) *Image {
	t.Helper()
	im, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func written(t *testing.T, im *Image, c Compression) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := im.Write(&b, c); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpacked has cpio(1) unpack an image, and returns the directory.
func unpacked(t *testing.T, im *Image) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(testenv.Tool(t, "cpio"), "-id", "--quiet", "-D", dir)
	cmd.Stdin = bytes.NewReader(written(t, im, None))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio -id: %v\n%s", err, out)
	}
	return dir
}

// run runs a program, which must succeed, and returns what it prints.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}
