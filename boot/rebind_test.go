package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"overmount/origin"
)

// Firmware that comes after its modules would be of no use to drivers that have given
// up: their devices are probed again, before all are announced.
func TestFirmwareComesLate(t *testing.T) {
	c := config(t)
	synctest.Test(t, func(t *testing.T) {
		// One driver had not given up yet when rebind looked.
		m, asked := &machine{lost: []Rebound{{Device: "pci 0c.0", Driver: "slow"}}}, 0
		m.fetch = func(place string) (origin.Copy, error) {
			if strings.HasSuffix(place, "firmware.fl") {
				if asked++; asked < 5 {
					return origin.Copy{}, fmt.Errorf("404 (%w)", fs.ErrNotExist)
				}
			}
			return origin.Copy{Path: place, State: origin.Fetched}, nil
		}
		b := newBoot(t, c, m)
		if err := b.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m.count("coldplug") != 1 || m.count("rebind") != 0 || len(b.Report().Rebound) != 0 {
			t.Errorf("done %q before the firmware, want coldplug and no rebind", m.done)
		}
		before := len(m.done)
		b.Background(t.Context(), nil)
		after := m.done[before:]
		mount := slices.IndexFunc(after, func(s string) bool { return strings.HasPrefix(s, "mount firmware") })
		rebind, coldplug, lost := slices.Index(after, "rebind"), slices.Index(after, "coldplug"), slices.Index(after, "rebind lost")
		if mount < 0 || rebind < mount || coldplug < rebind || lost < coldplug || m.count("rebind") != 1 || m.count("rebind lost") != 1 {
			t.Errorf("done %q in the background, want the mount, then rebind, then coldplug, then rebind for what was lost", after)
		}
		r := b.Report()
		i := slices.IndexFunc(r.Steps, func(s Step) bool { return s.Name == "rebind" })
		const want = "1 of 2 devices without a driver have one now: pci 0a.0 has wifi"
		if i < 0 || r.Steps[i].Note != want || len(r.Rebound) != 3 {
			t.Errorf("report: %+v, want a step with %q, and all devices", r, want)
		}
		const late = "1 of 1 devices without a driver have one now: pci 0c.0 has slow"
		if last := r.Steps[len(r.Steps)-1]; last.Name != "rebind lost" || last.Note != late {
			t.Errorf("the last step is %+v, want rebind lost with %q", last, late)
		}
		if len(r.Drivers) != 2 || r.Drivers[0].Module != "again2" || r.Drivers[1].Module != "e100" {
			t.Errorf("drivers: %+v, want those of both coldplugs", r.Drivers)
		}
	})
}

// Nothing is probed again in a usual boot; but after an earlier one has ended here, whose
// mounts are gone: modules may have been loaded without them.
func TestRebindAfterAnEarlierBoot(t *testing.T) {
	c := config(t)
	for _, want := range []int{0, 1} {
		m := &machine{fail: map[string]error{"rebind": errors.New("broken on purpose")}}
		b := newBoot(t, c, m)
		if err := b.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m.count("rebind") != want || m.count("rebind lost") != want || m.count("coldplug") != 1 {
			t.Errorf("done %q, want rebind %d times, and coldplug in any case", m.done, want)
		}
		if r := b.Report(); r.Degraded != (want > 0) {
			t.Errorf("degraded: %v, after %d failures", r.Degraded, want)
		}
		if _, err := b.WriteReport(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Who does not want devices touched has them left alone.
func TestNoRebindWithoutColdplug(t *testing.T) {
	c, m := config(t), &machine{}
	c.Coldplug = none
	b := newBoot(t, c, m)
	b.missed = true
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.count("rebind")+m.count("rebind lost")+m.count("coldplug") != 0 {
		t.Errorf("done %q, want neither rebind nor coldplug", m.done)
	}
}
