package vm_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"

	"overmount/block"
	"overmount/manifest"
	"overmount/test/vm"
)

// plan: what "overmount plan" says of the devices that were there before the mount,
// against what the boot then asked for, without any prefetch.
//
// Opened are the objects of modules that were requested until "overmount boot" had
// ended. Left out of them are those which only devices ask for that were not there at
// the start: what hangs on a bus whose driver came with the boot. Which these are, a
// second plan says, for the devices that are there in the end. What remains is due to
// the buses known at start; of that at least 90 % must be in the plan. Modules that the
// kernel asks for by name count as opened, and no plan can know them.
//
// Over-fetch is the share of the plan's objects that were not requested: at most 5 %.
func (c *check) plan() {
	planned, later := c.planned("capture"), c.planned("later")
	opened := map[block.ID]bool{}
	for id := range objectsOf(c.h.requestsUntil("booted")) {
		opened[id] = true
	}
	var due, covered, unused, all int
	for name, ino := range c.h.modules.Walk(manifest.Root) {
		if !strings.HasSuffix(name, ".ko") {
			continue
		}
		for _, b := range c.h.modules.Blocks(ino) {
			switch {
			case opened[b.ID] && planned[name]:
				due++
				covered++
			case opened[b.ID] && later[name]: // not due: its bus was not known at start
			case opened[b.ID]:
				due++
				c.t.Logf("not in the plan: %s", name)
			case planned[name]:
				unused++
				c.t.Logf("not opened: %s", name)
			}
			if opened[b.ID] {
				all++
			}
		}
	}
	c.t.Logf("the plan has %d of %d objects that the boot opened for buses known at start, %d of %d of all; %d of its %d were not opened",
		covered, due, covered, all, unused, covered+unused)
	if covered < 50 || covered*100 < due*90 {
		c.t.Errorf("the plan has %d of %d objects of modules that the boot opened, want at least 90 %%", covered, due)
	}
	if unused*100 > (covered+unused)*5 {
		c.t.Errorf("%d of the plan's %d objects were not opened, want at most 5 %%", unused, covered+unused)
	}
}

// planned returns the paths of the modules in the plan for a machine that the guest
// has taken down: for its next boot, if that is over.
func (c *check) planned(capture string) map[string]bool {
	file := filepath.Join(c.t.TempDir(), capture)
	vm.WriteFile(c.t, file, c.h.post(capture))
	args := []string{"plan", "--json", "-m", filepath.Join(c.h.dir, c.h.manifest()), "--sysfs", file, "--modprobe-d", "/lib/modprobe.d"}
	if capture == "later" {
		args = append(args, "--ignore-loaded")
	}
	out, err := exec.Command(c.h.program, args...).Output()
	if err != nil {
		c.t.Errorf("overmount %q: %v\n%s", args, err, out)
	}
	paths := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct{ Type, Path string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			c.t.Error(err)
		}
		if line.Type == "module" {
			paths[line.Path] = true
		}
	}
	return paths
}
