package initramfs

import (
	"context"
	"fmt"
	"strings"

	"overmount/kmod"
)

const (
	netDir      = "kernel/drivers/net/"
	ethernetDir = netDir + "ethernet/"
)

// nics adds the drivers of network cards that no directory tells apart: some lie
// right in drivers/net (virtio_net, vmxnet3), others come from outside of the
// kernel's own source, and are put into updates or extra.
func (s *selection) nics(ctx context.Context) error {
	for name, file := range s.files() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.names[name] || !mayBeNIC(file) {
			continue
		}
		m, _, err := kmod.ReadModuleFile(s.fsys, file)
		if err != nil {
			return fmt.Errorf("read module %s: %w", file, pathless(err))
		}
		if isNIC(m) {
			s.names[name] = true
		}
	}
	return nil
}

// mayBeNIC tells from a path whether a module is worth a look. What needs more
// than a network to work, as wireless and USB cards do, is not.
func mayBeNIC(file string) bool {
	rest, ok := strings.CutPrefix(file, netDir)
	if !ok {
		return !strings.HasPrefix(file, "kernel/")
	}
	for _, dir := range []string{"wireless/", "usb/", "can/", "wan/", "wwan/", "hamradio/", "ieee802154/", "phy/", "dsa/"} {
		if strings.HasPrefix(rest, dir) {
			return false
		}
	}
	return true
}

// isNIC tells from the symbols that a module imports whether it drives an Ethernet
// card: it makes Ethernet devices, and is a driver on a bus. One alone has, for
// example, a bridge, or a disk controller. dracut goes by imported symbols, too
// (modules.d/90kernel-network-modules).
func isNIC(m *kmod.Module) bool {
	var ethernet, driver bool
	for _, need := range m.Needs {
		switch need.Name {
		case "alloc_etherdev_mqs", "devm_alloc_etherdev_mqs":
			ethernet = true
		case "__pci_register_driver", "__platform_driver_register", "register_virtio_driver", "__register_virtio_driver",
			"__vmbus_driver_register", "__xenbus_register_frontend":
			driver = true
		}
	}
	return ethernet && driver
}
