package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"overmount/internal/atomicfile"
)

// ReportFile is the name of the report in RunDir, and ReadyFile that of a file
// that is there when Run is over.
const (
	ReportFile = "report.json"
	ReadyFile  = "ready"
)

// A Report says how a boot went.
type Report struct {
	Kver     string         `json:"kver"`
	Degraded bool           `json:"degraded"` // a step failed, or a manifest is not from its place
	Steps    []Step         `json:"steps"`
	Mounts   []*MountReport `json:"mounts"`
	Drivers  []Driver       `json:"drivers,omitempty"` // in the order of their names
	Rebound  []Rebound      `json:"rebound,omitempty"` // that were probed again, because of a late mount
	Pending  []string       `json:"pending,omitempty"` // kinds that are not mounted, and tried again
}

// Coldplugged is what coldplug did.
type Coldplugged struct {
	Note    string
	Drivers []Driver // in the order of their names; nil if udev did it
}

// A Step is one of a boot's.
type Step struct {
	Name  string        `json:"name"`
	Start time.Duration `json:"start_ns"` // since the boot's beginning
	Took  time.Duration `json:"took_ns"`
	Note  string        `json:"note,omitempty"`
	Error string        `json:"error,omitempty"`
}

// A MountReport is about one mount. Counts are those of [Mounted].
type MountReport struct {
	Kind     string           `json:"kind"`
	Manifest string           `json:"manifest"`
	State    string           `json:"state"` // as of origin.State, or Embedded
	Serial   uint64           `json:"serial,omitempty"`
	Dir      string           `json:"dir"`
	Counts   map[string]int64 `json:"counts"`

	counts func() map[string]int64
}

// Report returns the report as it stands. Of drivers it has what coldplug said; what
// they cost, WriteReport adds.
func (b *Boot) Report() Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.report
	r.Steps, r.Drivers, r.Rebound = slices.Clone(r.Steps), slices.Clone(r.Drivers), slices.Clone(r.Rebound)
	r.Mounts = nil
	for _, m := range b.report.Mounts {
		now := *m
		now.Counts = m.counts()
		r.Mounts = append(r.Mounts, &now)
	}
	for _, p := range b.pending {
		r.Pending = append(r.Pending, p.kind)
	}
	return r
}

// WriteReport writes the report to its file, with what each driver has cost, and
// returns it.
func (b *Boot) WriteReport() (*Report, error) {
	r := b.Report()
	b.mu.Lock()
	before := b.before
	b.mu.Unlock()
	if err := r.costs(b.sysfs, before, b.do.Files()); err != nil {
		b.log.Warn("the report lacks what drivers have cost", "error", err)
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = atomicfile.Write(filepath.Join(b.c.RunDir, ReportFile), append(text, '\n'), 0o644)
	}
	return &r, err
}

// SetReady makes the ready file.
func (b *Boot) SetReady() error {
	return atomicfile.Write(filepath.Join(b.c.RunDir, ReadyFile), nil, 0o644)
}

// ReadReport reads the report in a RunDir.
func ReadReport(runDir string) (*Report, error) {
	text, err := os.ReadFile(filepath.Join(runDir, ReportFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no report in %s: no boot has ended here", runDir)
	}
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("report in %s: %w", runDir, err)
	}
	return r, nil
}

// Took returns how long it was from the beginning to the end of the last step.
func (r *Report) Took() time.Duration {
	var end time.Duration
	for _, s := range r.Steps {
		end = max(end, s.Start+s.Took)
	}
	return end
}

// Counts are the sums of those of all mounts.
func (r *Report) Counts() map[string]int64 {
	sums := map[string]int64{}
	for _, m := range r.Mounts {
		for name, n := range m.Counts {
			sums[name] += n
		}
	}
	return sums
}

// Line is the report in one line.
func (r *Report) Line() string {
	var b strings.Builder
	for _, m := range r.Mounts {
		fmt.Fprintf(&b, "%s %s at %s; ", m.Kind, m.State, m.Dir)
	}
	for _, kind := range r.Pending {
		fmt.Fprintf(&b, "%s not there yet; ", kind)
	}
	for _, s := range r.Steps {
		if s.Error != "" {
			fmt.Fprintf(&b, "%s failed; ", s.Name)
		}
	}
	fmt.Fprintf(&b, "%.1f s", r.Took().Seconds())
	return b.String()
}
