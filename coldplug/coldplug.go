// Package coldplug says what the hardware of a machine needs: which kernel modules,
// in which order, with which options, and which firmware.
//
//	machine, err := coldplug.Scan(os.DirFS("/sys"))
//	tree, err := kmod.OpenTree(modules)
//	planner := coldplug.New(tree, config, coldplug.FromManifest(m), &coldplug.Options{
//		Loaded:   machine.Loaded,
//		Firmware: firmware.New(files, kver),
//	})
//	plan := planner.Plan(machine.Devices)
//
// [Scan] reads what the kernel knows of its devices, and [ReadCapture] what another
// machine's kernel knew. A [Planner] resolves each modalias as udev and modprobe -b
// do, and remembers what it has planned, so that the devices of a later uevent give
// only what is new. A [Plan] is a plain value; nothing here loads a module, fetches
// a byte of content, or writes.
package coldplug

// A Device is a modalias that a device has. A device may have several, each is then
// a Device.
type Device struct {
	// Path is the directory of the device below /sys, without a slash at the
	// beginning: devices/pci0000:00/0000:00:02.0.
	Path     string
	Modalias string
}

// A Machine is what a kernel says of its devices and modules.
type Machine struct {
	Devices []Device      // in the order of the paths
	Modules []KnownModule // in the order of the names
	// Warnings are about what could not be read, and is therefore left out.
	Warnings []string
}

// A KnownModule is one that the kernel has.
type KnownModule struct {
	Name string // with underscores
	// State is live, coming or going, or Builtin for what is no module. A kernel
	// shows only those builtin ones that have parameters or a version.
	State string
}

// Builtin is the state of a module that is part of the kernel.
const Builtin = "builtin"
