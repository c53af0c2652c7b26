package boot

import (
	"encoding/json"
	"path/filepath"
	"slices"
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
	Pending  []string       `json:"pending,omitempty"` // kinds that are not mounted, and tried again
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
	State    string           `json:"state"` // as of origin.State
	Serial   uint64           `json:"serial,omitempty"`
	Dir      string           `json:"dir"`
	Counts   map[string]int64 `json:"counts"`

	counts func() map[string]int64
}

// Report returns the report as it stands.
func (b *Boot) Report() Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.report
	r.Steps = slices.Clone(r.Steps)
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

// WriteReport writes the report to its file.
func (b *Boot) WriteReport() error {
	text, err := json.MarshalIndent(b.Report(), "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(b.c.RunDir, ReportFile), append(text, '\n'), 0o644)
}

// SetReady makes the ready file.
func (b *Boot) SetReady() error {
	return atomicfile.Write(filepath.Join(b.c.RunDir, ReadyFile), nil, 0o644)
}
