package cli

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"overmount/coldplug"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

// A plan is made of what the manifests carry themselves: no object is asked for.
func TestPlanFetchesNothing(t *testing.T) {
	work := t.TempDir()
	modules, fw, objects := filepath.Join(work, "6.1.0-test"), filepath.Join(work, "fw"), filepath.Join(work, "objects")
	var machine strings.Builder
	for i := range 20 {
		m := kmodtest.Module{Info: []string{fmt.Sprintf("alias=pci:v00008086d%08X*", i), fmt.Sprintf("firmware=net/%d.fw", i)}, Exports: []string{fmt.Sprintf("do_%d", i)}}
		if i > 0 {
			m.Needs = []string{fmt.Sprintf("do_%d", i-1)}
		}
		kmodtest.Write(t, modules, fmt.Sprintf("kernel/m%d.ko", i), m)
		fmt.Fprintf(&machine, "-- devices/%d/modalias --\npci:v00008086d%08Xsv\n", i, i)
		writeFile(t, filepath.Join(fw, fmt.Sprintf("net/%d.fw", i)), fmt.Sprint("firmware ", i))
	}
	kmodtest.WriteOrder(t, modules)
	sysfs := filepath.Join(work, "machine.txt")
	writeFile(t, sysfs, machine.String())

	server := serveObjects(t, objects)
	metas := map[string]string{"modules": filepath.Join(work, "m.fl"), "firmware": filepath.Join(work, "fw.fl")}
	mustRun(t, "overmount", "pack", "-m", metas["modules"], "-s", "dir://"+objects, "--kind", "modules", "--depmod", modules)
	mustRun(t, "overmount", "pack", "-m", metas["firmware"], "-s", "dir://"+objects, "--kind", "firmware", fw)
	for _, meta := range metas {
		mustRun(t, "overmount", "config", "-m", meta, "store", "delete", "-a")
		mustRun(t, "overmount", "config", "-m", meta, "store", "add", "-s", server.url)
	}

	for _, more := range [][]string{nil, {"--json"}} {
		args := append([]string{"plan", "-m", metas["modules"], "--firmware", metas["firmware"], "--sysfs", sysfs}, more...)
		out := mustRun(t, "overmount", args...)
		if !strings.Contains(out, "m19") || !strings.Contains(out, "net/19.fw") {
			t.Errorf("overmount %q prints %s", args, out)
		}
	}
	if got := server.requests(); len(got) > 0 {
		t.Errorf("plan asked for %v, want nothing", got)
	}
	// The server would have been asked.
	mustRun(t, "overmount", "modules", "info", "-m", metas["modules"], "m19")
	if got := server.requests(); len(got) == 0 {
		t.Error("modules info asked for nothing, so that this test proves nothing")
	}
}

// A driver that one device asks for by its number, and another by its vendor, is there
// for the first.
func TestWhyPrefersTheDevice(t *testing.T) {
	vendor := coldplug.Request{Modalias: "vendor", Matches: []coldplug.Match{{Module: "gpu", CatchAll: true}}}
	device := coldplug.Request{Modalias: "device", Matches: []coldplug.Match{{Module: "other"}, {Module: "gpu"}}}
	gpu := kmod.Action{Module: "gpu"}
	p := &coldplug.Plan{
		Modules:  []coldplug.Module{{Action: gpu, Requests: []int{0, 1}}, {Action: gpu, Requests: []int{0}}},
		Requests: []coldplug.Request{vendor, device},
	}
	for i, want := range []string{"device", "vendor"} {
		if got := why(p, i); got != want {
			t.Errorf("why = %q, want %q", got, want)
		}
	}
}
