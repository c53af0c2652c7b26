package cli

import (
	"context"

	"github.com/spf13/cobra"
)

// There are two programs. One has all verbs, and reads all stores. The other is for
// machines that boot, whose images carry it: it has what they need, and the linker
// leaves out what only the rest uses. So only what is in this file may name all
// verbs, or all stores to read from.

// Run runs the command that env.Args say, and returns the exit code.
func Run(ctx context.Context, env Env) int {
	a := &app{Env: env}
	a.readers = a.bootReaders()
	a.readers["s3"], a.readers["s3s"] = a.readS3, a.readS3
	root := a.rootCommand()
	a.stores.addS3(root)
	root.AddCommand(a.bootVerbs()...)
	root.AddCommand(a.packCommand(), a.profileCommand(), a.unpackCommand(), a.flistCommand(), a.configCommand(), a.depmodCommand(),
		a.publishCommand(), a.verifyCommand(), a.cloneCommand(), a.gcCommand(), a.initramfsCommand(), a.keyCommand(), a.signCommand())
	return a.run(ctx, root)
}

// RunBoot is Run for machines that boot.
func RunBoot(ctx context.Context, env Env) int {
	a := &app{Env: env, forBoot: true}
	a.readers = a.bootReaders()
	root := a.rootCommand()
	root.Short = "Mount kernel modules and firmware from the network on machines that boot"
	root.Long = `This is the program for machines that boot. It mounts the flists that the program
overmount has packed elsewhere, and has drivers loaded from them. It reads stores
that are directories, HTTP servers or 0-dbs.

` + exitCodes
	root.Annotations = map[string]string{otherVerbs: ": this is the program for machines that boot, overmount-boot; the other verbs are in the program overmount, for the machine that packs"}
	root.AddCommand(a.bootVerbs()...)
	return a.run(ctx, root)
}

// bootVerbs are those that a machine needs on its way up, and for looking at what
// went wrong there.
func (a *app) bootVerbs() []*cobra.Command {
	return []*cobra.Command{
		a.bootCommand(), a.reportCommand(), a.mountCommand(), a.umountCommand(), a.coldplugCommand(), a.planCommand(), a.modulesCommand(), a.versionCommand(),
	}
}

// bootReaders are the stores that a machine reads from while it boots, by scheme. S3
// is not among them: it needs a secret, which every machine would have to hold.
func (a *app) bootReaders() map[string]opener {
	return map[string]opener{"dir": readDir, "http": a.readHTTP, "https": a.readHTTP, "zdb": readZDB}
}
