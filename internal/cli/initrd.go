package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"overmount/internal/mounts"
)

// spared is what a program is called that systemd does not kill when it changes
// to the real root, nor before it powers off: its argv[0] begins with "@", and it
// is root's. See "systemd and Storage Daemons for the Root File System". What
// counts is the command line that the kernel shows, so the name has to be there
// when the program is started.
const spared = "@overmount"

// initrdFlag says whether the program has to outlive an initramfs.
type initrdFlag struct {
	value bool
	given func() bool
}

func (f *initrdFlag) add(cmd *cobra.Command) {
	const name = "initrd"
	cmd.Flags().BoolVar(&f.value, name, false, "run under a name that begins with @, which systemd does not kill when it changes the root or powers off (default: if the root is an initramfs)")
	f.given = func() bool { return cmd.Flags().Changed(name) }
}

// argv0 is what the program has to be called while it serves.
func (f *initrdFlag) argv0() string {
	if f.value || !f.given() && inInitrd() {
		return spared
	}
	return os.Args[0]
}

// inInitrd reports whether the root directory is that of an initramfs: systemd's
// convention, and what the kernel calls it.
func inInitrd() bool {
	if _, err := os.Stat("/etc/initrd-release"); err == nil {
		return true
	}
	fsType, err := mounts.RootType()
	return err == nil && fsType == "rootfs"
}

// survive starts the program again in its own place if it has to be called
// otherwise.
func (a *app) survive(argv0 string) error {
	if argv0 == os.Args[0] || strings.HasPrefix(os.Args[0], "@") {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	err = unix.Exec(exe, append([]string{argv0}, a.Args...), os.Environ())
	return fmt.Errorf("start %s again as %s: %w", exe, argv0, err)
}
