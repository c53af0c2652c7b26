package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"overmount/boot"
)

func (a *app) reportCommand() *cobra.Command {
	dir, drivers := boot.Default().RunDir, false
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Show how the boot of this machine went",
		Long: `Report shows what "overmount boot" did: its steps with their times and what failed, and
for each mount what was read and fetched until the last step ended; also which devices
it had probed again, because what their drivers want was mounted late.

It shows what drivers have cost, whoever loaded them: the time that loading took (only
where boot did it itself) and that readers waited, the files that were opened or fetched
ahead (the module's own, and firmware that it declares), their objects, the bytes of
these, requests and retries, and hits: blocks that were there before they were wanted.
Whether a module is loaded, and its devices, is what the kernel said in the end. Without
--drivers it shows those that failed, and the slowest.

With --json, the report as it is in /run/overmount/report.json, in one line: kver,
degraded, steps (name, start_ns, took_ns, note or error), mounts (kind, manifest,
state, serial, dir, counts), drivers (all of them: module, state, bound, took_ns, error,
files, objects, object_bytes, read_bytes, requests, retries, waited_ns,
prefetched_blocks, prefetch_hits, opened, fetched_ahead), rebound (device, modules,
driver, took_ns, error), and pending: kinds that are tried again.

A manifest's state is fetched, unchanged (since it was kept), local (a file), kept
(fetched by an earlier boot) or embedded (the image's); the last two mean that
its place could not be used. Counted are

  files, reads, read_bytes             that were read through the mount
  failed_reads, waited_ms              of these, and for how long all waited together
  objects, object_bytes                that came from stores, less what the cache had;
                                       boot packs and manifests are no objects
  requests, failed_requests            to stores; of those that failed, most were tried
                                       again
  retries                              requests after the first for an object
  prefetched_blocks, prefetched_bytes  that were fetched before anybody asked
  stored_blocks                        of these, in the page cache, where no read is seen
  prefetch_hits                        blocks that were there before they were wanted
  given_up_blocks                      that prefetching did not get at the first try

It ends with 3 if the boot was degraded.

` + exitCodes,
		Example: "  overmount report\n  overmount report --drivers",
		Args:    args(0, 0, ""),
		RunE:    func(*cobra.Command, []string) error { return a.report(dir, drivers) },
	}
	cmd.Flags().StringVar(&dir, "run-dir", dir, "`directory` with the report")
	cmd.Flags().BoolVar(&drivers, "drivers", false, "show every driver, with its files and devices")
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) report(dir string, drivers bool) error {
	r, err := boot.ReadReport(dir)
	if err != nil {
		return err
	}
	if a.json {
		err = json.NewEncoder(a.Stdout).Encode(r)
	} else {
		err = a.printReport(r, drivers)
	}
	if err == nil && r.Degraded {
		err = exitError{code: exitPartly}
	}
	return err
}

func (a *app) printReport(r *boot.Report, drivers bool) error {
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
			result = "failed: " + oneLine(s.Error)
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
	if err := a.printRebound(r.Rebound); err != nil {
		return err
	}
	return a.printDrivers(r.Drivers, drivers)
}

// oneLine shows several errors in one line of a table.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// printRebound prints what was probed again.
func (a *app) printRebound(devices []boot.Rebound) error {
	if len(devices) == 0 {
		return nil
	}
	fmt.Fprintf(a.Stdout, "\nprobed again after a late mount:\n")
	w := newTable(a.Stdout)
	for _, d := range devices {
		driver := cmp.Or(d.Driver, "no driver")
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", d.Device, driver, seconds(d.Took), strings.Join(d.Modules, " "), oneLine(d.Error))
	}
	return w.Flush()
}

// slowest is how many drivers are shown beside those that failed, unless all are.
const slowest = 10

// printDrivers prints those that failed, and those that took longest or were waited
// for longest; or all of them, with their files.
func (a *app) printDrivers(drivers []boot.Driver, all bool) error {
	if len(drivers) == 0 {
		return nil
	}
	modules, loaded := 0, 0
	for _, d := range drivers {
		if d.Module != "" {
			modules++
		}
		if d.State == "live" {
			loaded++
		}
	}
	which := "those that failed and the slowest; --drivers shows all, with their files"
	if all {
		which = "the slowest first"
	}
	fmt.Fprintf(a.Stdout, "\n%d of %s loaded; %s:\n", loaded, counted(modules, "module"), which)
	w := newTable(a.Stdout)
	fmt.Fprintf(w, "  MODULE\tSTATE\tTOOK\tWAITED\tFILES\tOBJECTS\tBYTES\tREQUESTS\tRETRIES\tHITS\t\n")
	slices.SortStableFunc(drivers, func(a, b boot.Driver) int { return cmp.Compare(max(b.Took, b.Waited), max(a.Took, a.Waited)) })
	for i, d := range drivers {
		if i < slowest || d.Error != "" || all {
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", cmp.Or(d.Module, "(no module)"), state(&d),
				took(d.Took), seconds(d.Waited), d.Files, d.Objects, d.ObjectBytes, d.Requests, d.Retries, d.Hits, driverNotes(&d, all))
		}
	}
	return w.Flush()
}

// driverNotes are what there is to say of a driver beside the numbers.
func driverNotes(d *boot.Driver, all bool) string {
	notes := []string{}
	add := func(what string, of ...string) {
		if len(of) > 0 && of[0] != "" {
			notes = append(notes, what+strings.Join(of, " "))
		}
	}
	add("failed: ", oneLine(d.Error))
	if all {
		add("bound: ", d.Bound...)
		add("opened: ", d.Opened...)
		add("fetched ahead: ", d.Ahead...)
	}
	return strings.Join(notes, "; ")
}

// state is how the kernel has a module.
func state(d *boot.Driver) string {
	if d.Module == "" {
		return "-"
	}
	return cmp.Or(d.State, "not loaded")
}

// took is how long loading took, if that is known.
func took(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return seconds(d)
}

// A table is text in columns, of which the last may be empty.
type table struct {
	*tabwriter.Writer
	text *bytes.Buffer
	to   io.Writer
}

func newTable(to io.Writer) *table {
	text := new(bytes.Buffer)
	return &table{tabwriter.NewWriter(text, 0, 0, 2, ' ', 0), text, to}
}

// Flush writes the table, without spaces at the ends of lines.
func (t *table) Flush() error {
	if err := t.Writer.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(t.text.String()) {
		if _, err := fmt.Fprintln(t.to, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
