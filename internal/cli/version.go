package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version returns the version that was built, or what Go knows of it.
func (a *app) version() string {
	if a.Version != "" {
		return a.Version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  args(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			program := "overmount"
			if a.forBoot {
				program = "overmount-boot"
			}
			if a.json {
				return json.NewEncoder(a.Stdout).Encode(map[string]string{
					"program": program, "version": a.version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			fmt.Fprintf(a.Stdout, "%s %s (%s, %s/%s)\n", program, a.version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
	a.jsonFlag(cmd)
	return cmd
}
