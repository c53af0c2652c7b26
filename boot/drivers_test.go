package boot

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"overmount/coldplug"
)

func link(target string) *fstest.MapFile {
	return &fstest.MapFile{Mode: fs.ModeSymlink | 0o777, Data: []byte(target)}
}

func state(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text + "\n")} }

// sysfs is what the kernel says when e100, its library, and a module of stage 1 are
// loaded.
func sysfs() fstest.MapFS {
	return fstest.MapFS{
		"module/e100/initstate":                  state("live"),
		"module/e100/drivers/pci:e100":           link("../../../bus/pci/drivers/e100"),
		"module/mii/initstate":                   state("live"),
		"module/virtio_net/initstate":            state("live"),
		"module/leaving/initstate":               state("going"),
		"bus/pci/drivers/e100/module":            link("../../../../module/e100"),
		"bus/pci/drivers/e100/0000:00:02.0":      link("../../../../devices/pci0000:00/0000:00:02.0"),
		"bus/pci/drivers/e100/bind":              {},
		"bus/pci/drivers/other/0000:00:03.0":     link("../../../../devices/pci0000:00/0000:00:03.0"),
		"devices/pci0000:00/0000:00:02.0/vendor": {},
	}
}

// udev loaded the drivers: all that is known is what was read from the mounts, and
// what the kernel says afterwards.
func TestCostsOfUdev(t *testing.T) {
	before, err := coldplug.ScanModules(fstest.MapFS{"module/virtio_net/initstate": state("live")})
	if err != nil {
		t.Fatal(err)
	}
	files := []File{
		{Kind: Modules, Path: "kernel/mii.ko", Modules: []string{"mii"}, Cost: Cost{Files: 1, Objects: 1, ObjectBytes: 10, Requests: 1, Prefetched: 1}},
		{Kind: Modules, Path: "kernel/e100.ko", Opened: true, Modules: []string{"e100"}, Cost: Cost{
			Files: 1, Objects: 2, ObjectBytes: 30, ReadBytes: 50, Requests: 4, Retries: 2, Waited: time.Second, Prefetched: 1, Hits: 1,
		}},
		{Kind: Modules, Path: "kernel/virtio_net.ko", Modules: []string{"virtio_net"}, Cost: Cost{Files: 1, Prefetched: 3}},
		{Kind: Modules, Path: "kernel/leaving.ko", Modules: []string{"leaving"}, Cost: Cost{Files: 1, Prefetched: 2}},
		{Kind: Modules, Path: "modules.dep", Opened: true, Cost: Cost{Files: 1, ReadBytes: 7}},
		{Kind: Firmware, Path: "e100/ucode.bin", Opened: true, Modules: []string{"absent", "e100"}, Cost: Cost{Files: 1, Objects: 1, ObjectBytes: 5, Requests: 1, Waited: time.Second}},
		{Kind: Firmware, Path: "x.fw", Modules: []string{"absent", "other"}, Cost: Cost{Files: 1, Prefetched: 1}},
		{Kind: Firmware, Path: "edid/lab.bin", Opened: true, Cost: Cost{Files: 1, Objects: 1}},
	}
	r := &Report{Mounts: []*MountReport{
		{Kind: Modules, Counts: map[string]int64{"prefetch_hits": 99}}, {Kind: Firmware, Counts: map[string]int64{}},
	}}
	if err := r.costs(sysfs(), before, files); err != nil {
		t.Fatal(err)
	}
	want := []Driver{
		{Module: "absent", Cost: Cost{Files: 1, Prefetched: 1}, Ahead: []string{"firmware/x.fw"}},
		{
			Module: "e100", State: "live", Bound: []string{"pci 0000:00:02.0"}, Opened: []string{"kernel/e100.ko", "firmware/e100/ucode.bin"},
			Cost: Cost{Files: 2, Objects: 3, ObjectBytes: 35, ReadBytes: 50, Requests: 5, Retries: 2, Waited: 2 * time.Second, Prefetched: 1, Hits: 1},
		},
		{Module: "leaving", State: "going", Cost: Cost{Files: 1, Prefetched: 2}, Ahead: []string{"kernel/leaving.ko"}},
		{Module: "mii", State: "live", Cost: Cost{Files: 1, Objects: 1, ObjectBytes: 10, Requests: 1, Prefetched: 1, Hits: 1}, Ahead: []string{"kernel/mii.ko"}},
		{Module: "virtio_net", State: "live", Cost: Cost{Files: 1, Prefetched: 3}, Ahead: []string{"kernel/virtio_net.ko"}},
		{Cost: Cost{Files: 2, Objects: 1, ReadBytes: 7}, Opened: []string{"modules.dep", "firmware/edid/lab.bin"}},
	}
	if diff := cmp.Diff(want, r.Drivers); diff != "" {
		t.Errorf("drivers (-want +got):\n%s", diff)
	}
	if got := r.Mounts[0].Counts["prefetch_hits"]; got != 2 {
		t.Errorf("hits of the modules: %d, want 2: the block of mii, and one of e100", got)
	}
}

// With our own coldplug, what it says of each module stays, also of one that failed
// and of one whose file is not on a mount.
func TestCostsOfOurOwn(t *testing.T) {
	r := &Report{Drivers: []Driver{
		{Module: "broken", Took: time.Second, Error: "it cannot be read"}, {Module: "e100", Took: 2 * time.Second}, {Module: "mii", Took: 3},
	}}
	files := []File{{Kind: Modules, Path: "kernel/e100.ko", Opened: true, Modules: []string{"e100"}, Cost: Cost{Files: 1, Requests: 1}}}
	if err := r.costs(sysfs(), new(coldplug.Machine), files); err != nil {
		t.Fatal(err)
	}
	want := []Driver{
		{Module: "broken", Took: time.Second, Error: "it cannot be read"},
		{Module: "e100", State: "live", Took: 2 * time.Second, Bound: []string{"pci 0000:00:02.0"}, Cost: Cost{Files: 1, Requests: 1}, Opened: []string{"kernel/e100.ko"}},
		{Module: "mii", State: "live", Took: 3},
	}
	if diff := cmp.Diff(want, r.Drivers); diff != "" {
		t.Errorf("drivers (-want +got):\n%s", diff)
	}
}

// The names in the file are a promise.
func TestReportFile(t *testing.T) {
	c, m := config(t), &machine{files: []File{{Kind: Modules, Path: "kernel/e100.ko", Opened: true, Modules: []string{"e100"}, Cost: Cost{
		Files: 1, Objects: 2, ObjectBytes: 3, ReadBytes: 4, Requests: 5, Retries: 6, Waited: 7, Prefetched: 8, Hits: 9,
	}}}}
	b := newBoot(t, c, m)
	b.sysfs = sysfs()
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.WriteReport(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(c.RunDir, ReportFile))
	if err != nil {
		t.Fatal(err)
	}
	var r struct{ Drivers []map[string]any }
	if err := json.Unmarshal(text, &r); err != nil || len(r.Drivers) != 1 {
		t.Fatalf("report: %v\n%s", err, text)
	}
	want := map[string]any{
		"module": "e100", "state": "live", "bound": []any{"pci 0000:00:02.0"}, "took_ns": 1e9, "opened": []any{"kernel/e100.ko"},
		"files": 1., "objects": 2., "object_bytes": 3., "read_bytes": 4., "requests": 5., "retries": 6., "waited_ns": 7., "prefetched_blocks": 8., "prefetch_hits": 9.,
	}
	if diff := cmp.Diff(want, r.Drivers[0]); diff != "" {
		t.Errorf("driver in the file (-want +got):\n%s", diff)
	}
}
