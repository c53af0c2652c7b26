package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"overmount/boot"
)

func (a *app) reportCommand() *cobra.Command {
	dir := boot.Default().RunDir
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Show how the boot of this machine went",
		Long: `Report shows what "overmount boot" did: its steps with their times and what failed, and
for each mount what was read and fetched until the last step ended. Of the modules
that boot loaded itself it shows those that failed, and the slowest.

With --json, the report as it is in /run/overmount/report.json, in one line: kver,
degraded, steps (name, start_ns, took_ns, note or error), mounts (kind, manifest,
state, serial, dir, counts), drivers, and pending: kinds that are tried again.

A manifest's state is fetched, unchanged (since it was kept), local (a file), kept
(fetched by an earlier boot) or embedded (the image's); the last two mean that
its place could not be used. Counted are

  files, reads, read_bytes             that were read through the mount
  failed_reads, waited_ms              of these, and for how long all waited together
  objects, object_bytes                that came from stores, less what the cache had
  requests, failed_requests            to stores; of those that failed, most were tried
                                       again
  prefetched_blocks, prefetched_bytes  that were fetched before anybody asked
  stored_blocks                        of these, in the page cache, where no read is seen
  prefetch_hits                        reads that found what was prefetched
  given_up_blocks                      that prefetching did not get at the first try

It ends with 3 if the boot was degraded.

` + exitCodes,
		Example: "  overmount report",
		Args:    args(0, 0, ""),
		RunE:    func(*cobra.Command, []string) error { return a.report(dir) },
	}
	cmd.Flags().StringVar(&dir, "run-dir", dir, "`directory` with the report")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) report(dir string) error {
	r, err := boot.ReadReport(dir)
	if err != nil {
		return err
	}
	if a.json {
		err = json.NewEncoder(a.Stdout).Encode(r)
	} else {
		err = a.printReport(r)
	}
	if err == nil && r.Degraded {
		err = exitError{code: exitPartly}
	}
	return err
}

func (a *app) printReport(r *boot.Report) error {
	state := "complete"
	if r.Degraded {
		state = "degraded"
	}
	fmt.Fprintf(a.Stdout, "kernel %s, %s after %.2f s\n\n", r.Kver, state, r.Took().Seconds())
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "STEP\tBEGAN\tTOOK\tRESULT\n")
	slices.SortStableFunc(r.Steps, func(a, b boot.Step) int { return cmp.Compare(a.Start, b.Start) })
	for _, s := range r.Steps {
		result := s.Note
		if s.Error != "" {
			result = "failed: " + s.Error
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, seconds(s.Start), seconds(s.Took), result)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, m := range r.Mounts {
		fmt.Fprintf(a.Stdout, "\n%s: %s (%s) at %s\n", m.Kind, m.Manifest, m.State, m.Dir)
		for _, name := range slices.Sorted(maps.Keys(m.Counts)) {
			fmt.Fprintf(a.Stdout, "  %-18s %d\n", name, m.Counts[name])
		}
	}
	for _, kind := range r.Pending {
		fmt.Fprintf(a.Stdout, "\n%s: not mounted; it is tried again\n", kind)
	}
	return a.printDrivers(r.Drivers)
}

// slowest is how many drivers are shown beside those that failed.
const slowest = 10

// printDrivers prints those that failed, and those that took longest.
func (a *app) printDrivers(drivers []boot.Driver) error {
	if len(drivers) == 0 {
		return nil
	}
	fmt.Fprintf(a.Stdout, "\n%d modules, those that failed and the slowest:\n", len(drivers))
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	slices.SortStableFunc(drivers, func(a, b boot.Driver) int { return cmp.Compare(b.Took, a.Took) })
	for i, d := range drivers {
		if i < slowest || d.Error != "" {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", d.Module, seconds(d.Took), d.Error)
		}
	}
	return w.Flush()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
