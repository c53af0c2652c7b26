package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLaterSettingsCount(t *testing.T) {
	file := filepath.Join(t.TempDir(), "overmount.toml")
	text := `
base = "https://web.example/a"
network-wait = "10s"
modules-serial = 17
load = ["8021q", "bonding"]
coldplug = "udev"
writable = true
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := Default()
	if err := c.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"OVERMOUNT_BASE": "https://web.example/b", "OVERMOUNT_NETWORK_WAIT": "20s"}
	if err := c.ReadEnv(func(name string) string { return env[name] }); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadCommandLine(`quiet overmount.base=https://web.example/c overmount.load="a,b" e1000e.x=1 "overmount.cache_size=5" xovermount.kver=y` + "\n"); err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Base, want.NetworkWait, want.ModulesSerial, want.CacheSize = "https://web.example/c", 20*time.Second, 17, 5
	want.Load, want.Coldplug, want.Writable = []string{"a", "b"}, "udev", true
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

func TestFill(t *testing.T) {
	c := Default()
	c.Base, c.Kver, c.Firmware = "https://web.example/flists/", "6.1.0", none
	if err := c.fill(); err != nil {
		t.Fatal(err)
	}
	if c.Modules != "https://web.example/flists/modules-6.1.0.fl" || c.Firmware != none || c.ModulesDir != "/lib/modules/6.1.0" {
		t.Errorf("fill: modules %s in %s, firmware %s", c.Modules, c.ModulesDir, c.Firmware)
	}
}

// A directory may be a URL with a token, which goes with each file.
func TestBelow(t *testing.T) {
	for _, tt := range []struct{ dir, want string }{
		{"https://web.example/a", "https://web.example/a/x.fl"},
		{"https://web.example/a//", "https://web.example/a/x.fl"},
		{"https://web.example/?token=a/b", "https://web.example/x.fl?token=a/b"},
		{"/srv/what?/", "/srv/what?/x.fl"},
	} {
		if got := below(tt.dir, "x.fl"); got != tt.want {
			t.Errorf("below(%q) = %q, want %q", tt.dir, got, tt.want)
		}
	}
}

func TestBadSettings(t *testing.T) {
	for text, want := range map[string]string{
		`pubkye = "x"`:             "pubkye",
		`network-wait = "10"`:      "as in 60s",
		`network-wait = "-10s"`:    "as in 60s",
		`coldplug = "mdev"`:        "want one of",
		`modules-serial = -1`:      "want a number",
		`writable = "maybe"`:       "want true or false",
		`load = [1]`:               "list of words",
		`base = 1.5`:               "want a text",
		`base = `:                  "line 1",
		`base = "s3://k:pw@h/b"`:   "base: want a path or an http(s) URL, not one of s3",
		`kver = "../etc"`:          "kver: \"../etc\" is no version of a kernel",
		`modules-dir = "lib"`:      "modules-dir: want an absolute path, not \"lib\"",
		`cache = "none "`:          "cache: want an absolute path",
		`pubkey = ""`:              "pubkey: it is empty",
		strings.Repeat("#", 2<<20): "longer",
	} {
		file := filepath.Join(t.TempDir(), "overmount.toml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Default().ReadFile(file); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("ReadFile of %.30q: %v, want an error with %q", text, err, want)
		}
	}
	for _, change := range []func(*Config){
		func(c *Config) { c.Base = "" },
		func(c *Config) { c.Kver = "../etc" },
		func(c *Config) { c.ModulesDir = "lib/modules" },
	} {
		c := Default()
		c.Base, c.Kver = "https://web.example", "6.1.0"
		change(c)
		if err := c.fill(); err == nil {
			t.Errorf("fill of %+v: no error", c)
		}
	}
}

// A wrong word on the command line keeps no other from being taken.
func TestBadCommandLine(t *testing.T) {
	c := Default()
	c.Pubkey, c.Kver = "/key", "6.1.0"
	wrong := []string{"nonsense=1", "bsae=1", "network-wait=soon", "kver=../etc", "run-dir=run", "modules=ftp://x/y", "pubkey="}
	err := c.ReadCommandLine("overmount." + strings.Join(wrong, " overmount.") + " overmount.base=https://web.example")
	for _, w := range wrong {
		if name, _, _ := strings.Cut(w, "="); err == nil || !strings.Contains(err.Error(), "overmount."+name+": ") {
			t.Errorf("ReadCommandLine: %v, want %s named", err, name)
		}
	}
	want := Default()
	want.Base, want.Pubkey, want.Kver = "https://web.example", "/key", "6.1.0"
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

// A misspelled variable would be as good as none, and nobody would know.
func TestUnknownEnv(t *testing.T) {
	environ := []string{
		"OVERMOUNT_BASE=x", "OVERMOUNT_MODULES_DIR=x", "OVERMOUNT_AUTH=secret", "OVERMOUNT_TEST_KERNEL=x", "PATH=/bin", "MY_OVERMOUNT_X=x", "OVERMOUNT_EMPTY=",
		"OVERMOUNT_BSAE=secret", "OVERMOUNT_MODULE_DIR=x", "OVERMOUNT_AUTHFILE=x", "OVERMOUNT_base=x", "OVERMOUNT_COLOUR=x",
	}
	others := []string{"OVERMOUNT_AUTH", "OVERMOUNT_AUTH_FILE", "OVERMOUNT_TEST_"}
	want := `environment, OVERMOUNT_BSAE: there is no such variable, did you mean OVERMOUNT_BASE?
environment, OVERMOUNT_MODULE_DIR: there is no such variable, did you mean OVERMOUNT_MODULES_DIR?
environment, OVERMOUNT_AUTHFILE: there is no such variable, did you mean OVERMOUNT_AUTH_FILE?
environment, OVERMOUNT_base: there is no such variable: "overmount boot --help" has all
environment, OVERMOUNT_COLOUR: there is no such variable: "overmount boot --help" has all`
	if diff := cmp.Diff(want, fmt.Sprint(UnknownEnv(environ, others...))); diff != "" {
		t.Errorf("UnknownEnv (-want +got):\n%s", diff)
	}
	if err := UnknownEnv(environ[:7], others...); err != nil {
		t.Errorf("UnknownEnv of what is known: %v", err)
	}
}

func TestNear(t *testing.T) {
	names := []string{"base", "kver", "modules", "modules-dir"}
	for name, want := range map[string]string{
		"bsae": "base", "bas": "base", "basse": "base", "module": "modules", "modulesdir": "modules-dir", "modules-dri": "modules-dir",
		"firmware": "", "": "", "coldplug": "", "kv": "kver", "base": "base",
	} {
		if got := near(name, names); got != want {
			t.Errorf("near(%q) = %q, want %q", name, got, want)
		}
	}
}
