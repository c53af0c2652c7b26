package vm

import (
	"bytes"
	"fmt"
	"testing"
)

// Devices returns what exercises drivers of every kind, and those that ask for
// firmware in each way that there is: when a network interface is opened (e100), in
// the probe of a device (bochs, as a parameter says), and from a kernel thread
// (snd_hda_intel). The first is the network card through which the machine boots;
// its network is n0.
//
// Each has its place on the bus. romfile= is empty because the boot ROMs of network
// cards take seconds.
func Devices(tb testing.TB) []Device {
	tb.Helper()
	const mib = 1 << 20
	drive := func(id string) string {
		return fmt.Sprintf("if=none,id=%s,file=%s,format=raw", id, Disk(tb, 16*mib))
	}
	nic := func(slot int, id, model, driver string) Device {
		d := pci(slot, driver, model+",netdev="+id+",romfile=")
		d.Args = append([]string{"-netdev", "user,id=" + id}, d.Args...)
		return d
	}
	e100 := nic(0x2, "n1", "i82551", "e100")
	e100.Firmware, e100.Content = "e100/d102e_ucode.bin", e100Microcode()
	nvme := pci(0x3, "nvme", "nvme,serial=nv1,drive=d1")
	nvme.Args = append([]string{"-drive", drive("d1")}, nvme.Args...)
	megasas := pci(0x4, "megaraid_sas", "megasas,id=ms")
	megasas.Args = append(append([]string{"-drive", drive("d2")}, megasas.Args...), "-device", "scsi-hd,bus=ms.0,drive=d2")
	mpt := pci(0x5, "mptsas", "mptsas1068,id=mp")
	mpt.Args = append(append([]string{"-drive", drive("d3")}, mpt.Args...), "-device", "scsi-hd,bus=mp.0,drive=d3")
	hda := pci(0x8, "snd_hda_intel", "intel-hda,id=hda")
	hda.Args = append([]string{"-audiodev", "none,id=a0"}, append(hda.Args, "-device", "hda-micro,bus=hda.0,audiodev=a0")...)
	hda.Cmdline, hda.Firmware, hda.Content = "snd-hda-intel.patch=labtest/hda.fw", "labtest/hda.fw", hdaPatch()
	xhci := pci(0x9, "xhci_hcd", "qemu-xhci,id=usb")
	xhci.Args = append(append([]string{"-drive", drive("d4")}, xhci.Args...),
		"-device", "usb-kbd,bus=usb.0", "-device", "usb-tablet,bus=usb.0", "-device", "usb-storage,bus=usb.0,drive=d4")
	bochs := pci(0xa, "bochs-drm", "bochs-display")
	bochs.Cmdline, bochs.Firmware, bochs.Content = "drm.edid_firmware=edid/lab.bin", "edid/lab.bin", edid()
	return []Device{
		nic(0x1, "n0", "virtio-net-pci", "virtio-pci"), e100, nvme, megasas, mpt,
		nic(0x6, "n5", "vmxnet3", "vmxnet3"), nic(0x7, "n6", "e1000e", "e1000e"), hda, xhci, bochs,
		pci(0xb, "virtio-pci", "virtio-rng-pci"), pci(0xc, "virtio-pci", "virtio-balloon-pci"), pci(0xd, "virtio-pci", "virtio-serial-pci"),
		pci(0xe, "i6300ESB timer", "i6300esb"), pci(0x10, "sdhci-pci", "sdhci-pci"),
	}
}

// pci is a device at a place on the first bus.
func pci(slot int, driver, device string) Device {
	return Device{
		Args: []string{"-device", fmt.Sprintf("%s,addr=%#x", device, slot)},
		Slot: fmt.Sprintf("0000:00:%02x.0", slot), Driver: driver,
	}
}

// e100Microcode has the length that the driver wants, and three offsets at its end
// that point into it (drivers/net/ethernet/intel/e100.c, e100_request_firmware).
func e100Microcode() []byte { return append(make([]byte, 134*4), 1, 2, 3) }

// hdaPatch is a patch for a codec that the machine does not have.
func hdaPatch() []byte { return []byte("[codec]\n0x12345678 0xabcd1234 0\n") }

// edid describes a monitor of 1024 by 768 points: the block that the kernel's own
// tools/edid makes, in which all that matters is the header and the sum.
func edid() []byte {
	b := make([]byte, 128)
	copy(b, []byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x31, 0xd8, 0, 0, 0, 0, 0, 0, 5, 0x16, 1, 3, 0x6d, 0x23, 0x1a, 0x78, 0xea,
		0x5e, 0xc0, 0xa4, 0x59, 0x4a, 0x98, 0x25, 0x20, 0x50, 0x54, 0, 8, 0, 0x61, 0x40})
	copy(b[40:], bytes.Repeat([]byte{1}, 14))
	copy(b[54:], []byte{0x64, 0x19, 0, 0x40, 0x41, 0, 0x26, 0x30, 8, 0x90, 0x36, 0, 0x63, 0xa, 0x11, 0, 0, 0x18,
		0, 0, 0, 0xff, 0, 'L', 'i', 'n', 'u', 'x', ' ', '#', '0', '\n', ' ', ' ', ' ', ' ',
		0, 0, 0, 0xfd, 0, 0x3b, 0x3d, 0x2f, 0x31, 7, 0, '\n', ' ', ' ', ' ', ' ', ' ', ' ',
		0, 0, 0, 0xfc, 0, 'L', 'a', 'b', '\n', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '})
	var sum byte
	for _, x := range b {
		sum += x
	}
	b[127] = -sum
	return b
}
