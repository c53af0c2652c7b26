package cli

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"overmount/boot"
	"overmount/depmod"
	"overmount/kmod/kmodtest"
)

// modulesDir is a directory with one module, which is for pci:wifi.
func modulesDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	kmodtest.WriteText(t, dir, "kernel/wifi.ko", "alias=pci:wifi*")
	kmodtest.WriteOrder(t, dir)
	r, err := depmod.Build(t.Context(), os.DirFS(dir), nil)
	if err == nil {
		err = r.Write(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// From the modalias by the indexes of the modules to the file that the kernel reads.
func TestRebind(t *testing.T) {
	sys := t.TempDir()
	for name, text := range map[string]string{
		"devices/pci0/0a.0/modalias": "pci:wifi1\n", "devices/pci0/0b.0/modalias": "pci:other\n",
		"module/wifi/initstate": "live\n", "bus/pci/drivers/wifi/bind": "", "bus/pci/devices/.keep": "", "bus/pci/drivers_probe": "",
	} {
		name = filepath.Join(sys, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"bus/pci/drivers/wifi/module": "../../../../module/wifi", "bus/pci/devices/0a.0": "../../../devices/pci0/0a.0", "bus/pci/devices/0b.0": "../../../devices/pci0/0b.0",
	} {
		if err := os.Symlink(target, filepath.Join(sys, name)); err != nil {
			t.Fatal(err)
		}
	}
	dir := modulesDir(t)
	d := driverLoading{dir: dir, fsys: os.DirFS(dir), log: slog.New(slog.DiscardHandler)}
	devices, err := d.rebind(t.Context(), sys, nil)
	if err != nil || len(devices) != 1 || devices[0].Device != "pci 0a.0" || devices[0].Modules[0] != "wifi" || devices[0].Driver != "" || devices[0].Error != "" {
		t.Errorf("rebind = %+v, %v, want the one device of wifi", devices, err)
	}
	if got, err := os.ReadFile(filepath.Join(sys, "bus/pci/drivers_probe")); err != nil || string(got) != "0a.0" {
		t.Errorf("drivers_probe has %q, %v, want 0a.0", got, err)
	}
	if devices, err := d.rebind(t.Context(), sys, map[string]bool{"devices/pci0/0b.0": true}); err != nil || len(devices) != 0 {
		t.Errorf("rebind among others = %+v, %v, want none", devices, err)
	}
	d.fsys = os.DirFS(sys)
	if _, err := d.rebind(t.Context(), sys, nil); err == nil {
		t.Error("rebind without indexes: no error")
	}
}

func TestReboundDevices(t *testing.T) {
	devices := []boot.Rebound{{Device: "pci 0a.0", Modules: []string{"wifi"}, Driver: "wifi_pci", Took: 5}, {Device: "pci 0b.0", Error: "it has gone"}}
	for _, tt := range []struct {
		json bool
		want string
	}{
		{false, "1 of 2 devices without a driver have one now: pci 0a.0 has wifi_pci\n"},
		{true, `{"device":"pci 0a.0","modules":["wifi"],"driver":"wifi_pci","took_ns":5}` + "\n" + `{"device":"pci 0b.0","took_ns":0,"error":"it has gone"}` + "\n"},
	} {
		var out bytes.Buffer
		a := &app{Env: Env{Stdout: &out}, json: tt.json}
		if err := a.reboundDevices(devices); err != nil || out.String() != tt.want {
			t.Errorf("with json %v: %q, %v, want %q", tt.json, out.String(), err, tt.want)
		}
	}
	if got := boot.ReboundLine(nil); !strings.HasPrefix(got, "no device") {
		t.Errorf("ReboundLine of nothing = %q", got)
	}
}
