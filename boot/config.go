package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"overmount/kmod"
	"overmount/origin"
)

// A Config is what a boot is told. The same settings are in a file (TOML, by the
// names below), in the environment (OVERMOUNT_, upper case, _ for -), and on the
// kernel command line (overmount.NAME=VALUE); the later ones of these count.
// There {kver} stands for the version of the running kernel, and a list has
// commas.
type Config struct {
	// Base is a URL or directory that holds modules-{kver}.fl and firmware.fl.
	Base string
	// Modules and Firmware are manifests, or compressed copies of them (.fl.zst), by
	// URL or path. They default to the manifests below Base; "none" means that there
	// is none.
	Modules, Firmware string
	// Pubkey must have signed the manifests: minisign's public key, or its file.
	// Without one anybody may have made them.
	Pubkey string
	// ModulesSerial and FirmwareSerial are the least that the signatures may have.
	ModulesSerial, FirmwareSerial uint64

	// Kver is the version of the kernel; the default is that of the running one.
	Kver string
	// ModulesDir and FirmwareDir are mounted over. The defaults are
	// /lib/modules/{kver} and /lib/firmware.
	ModulesDir, FirmwareDir string
	// Stage1Firmware is the directory with the firmware of stage 1, a copy of which
	// stays reachable under the mounts, by the kernel's parameter
	// firmware_class.path; or "none". The default is where "overmount initramfs"
	// puts it, /lib/overmount/firmware. Nothing is done if it is not there, or if
	// the parameter names another directory.
	Stage1Firmware string

	// Cache is the directory for objects, or "none"; CacheSize is the most that it
	// may hold, in bytes. The defaults are /run/overmount/cache and 64 MiB.
	Cache     string
	CacheSize uint64
	// Kept is the directory for the manifests that were fetched; Embedded is one
	// with manifests that the image brings. They are used, in this order, when the
	// server does not answer. The defaults are /var/lib/overmount and
	// /usr/share/overmount.
	Kept, Embedded string

	// NetworkWait is how long the first manifest is asked for before what is at
	// hand must do; SettleTimeout is how long devices may take to settle; and
	// ReadTimeout is how long a read waits for a store. The defaults are 60, 120
	// and 90 seconds.
	NetworkWait, SettleTimeout, ReadTimeout time.Duration

	// Prefetch is pack (the boot pack that lies beside the manifest; where there is
	// none, and udev loads the drivers, plan), plan (what this machine's devices
	// will ask for), or none. All but none fetch what a module needs when it begins to
	// be read. The default is pack.
	Prefetch string
	// Coldplug is who loads drivers: udev, own, none, or auto: udev if its daemon
	// runs, else own. The default is auto.
	Coldplug string
	// Writable has the modules take changes, which are kept in memory; KeepLower
	// leaves what was in both directories before visible below.
	Writable, KeepLower bool
	// Depmod makes the modules' indexes anew, for modules that KeepLower leaves in
	// sight. That reads all modules, over the network. It makes the modules Writable.
	Depmod bool
	// Load names modules to load in the end, whether a device asked or not.
	Load []string

	// Record is a directory for records of what was read, for boot packs. Empty
	// means that nothing is recorded, which is faster.
	Record string

	// RunDir is where the report, the ready file and the lock are. The default is
	// /run/overmount.
	RunDir string
}

// Default returns the defaults.
func Default() *Config {
	return &Config{
		ModulesDir: "/lib/modules/{kver}", FirmwareDir: "/lib/firmware",
		Stage1Firmware: "/lib/overmount/firmware",
		Cache:          "/run/overmount/cache", CacheSize: 64 << 20,
		Kept: "/var/lib/overmount", Embedded: "/usr/share/overmount",
		NetworkWait: 60 * time.Second, SettleTimeout: 120 * time.Second, ReadTimeout: 90 * time.Second,
		Prefetch: "pack", Coldplug: "auto", RunDir: "/run/overmount",
	}
}

// A setting is a field by its name.
type setting struct {
	name  string
	value any                     // *string, *bool, *uint64, *time.Duration or *[]string
	check func(text string) error // of a *string; nil if any will do
}

func (c *Config) settings() []setting {
	return []setting{
		{"base", &c.Base, isPlace},
		{"modules", &c.Modules, isPlace},
		{"firmware", &c.Firmware, isPlace},
		{"pubkey", &c.Pubkey, isGiven},
		{"modules-serial", &c.ModulesSerial, nil},
		{"firmware-serial", &c.FirmwareSerial, nil},
		{"kver", &c.Kver, isVersion},
		{"modules-dir", &c.ModulesDir, isDir},
		{"firmware-dir", &c.FirmwareDir, isDir},
		{"stage1-firmware", &c.Stage1Firmware, isDirOrNone},
		{"cache", &c.Cache, isDirOrNone},
		{"cache-size", &c.CacheSize, nil},
		{"kept", &c.Kept, isDir},
		{"embedded", &c.Embedded, isDirOrNone},
		{"network-wait", &c.NetworkWait, nil},
		{"settle-timeout", &c.SettleTimeout, nil},
		{"read-timeout", &c.ReadTimeout, nil},
		{"prefetch", &c.Prefetch, oneOf("pack", "plan", none)},
		{"coldplug", &c.Coldplug, oneOf("auto", "udev", "own", none)},
		{"writable", &c.Writable, nil},
		{"keep-lower", &c.KeepLower, nil},
		{"depmod", &c.Depmod, nil},
		{"load", &c.Load, nil},
		{"record", &c.Record, isDirOrNone},
		{"run-dir", &c.RunDir, isDir},
	}
}

// Settings returns the names of all settings.
func Settings() []string {
	var names []string
	for _, s := range new(Config).settings() {
		names = append(names, s.name)
	}
	return names
}

// Set gives a setting its value, as text. Its errors do not name the setting, but
// where there is none of that name.
func (c *Config) Set(name, text string) error {
	for _, s := range c.settings() {
		if s.name == name {
			return s.set(text)
		}
	}
	return fmt.Errorf("there is no setting %.40q%s", name, hint(name, Settings()))
}

// hint says what may have been meant by a name that is none of those that there are.
func hint(name string, names []string) string {
	if n := near(name, names); n != "" {
		return ", did you mean " + n + "?"
	}
	return ": \"overmount boot --help\" has all"
}

func (s setting) set(text string) (err error) {
	switch v := s.value.(type) {
	case *string:
		if s.check != nil {
			if err := s.check(text); err != nil {
				return err
			}
		}
		*v = text
	case *bool:
		if *v, err = strconv.ParseBool(text); err != nil {
			return fmt.Errorf("want true or false, not %.40q", text)
		}
	case *uint64:
		if *v, err = strconv.ParseUint(text, 10, 64); err != nil {
			return fmt.Errorf("want a number, not %.40q", text)
		}
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return fmt.Errorf("want a time as in 60s or 2m, not %.40q", text)
		}
		*v = d
	case *[]string:
		*v = strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
	}
	return nil
}

func oneOf(words ...string) func(text string) error {
	return func(text string) error {
		if !slices.Contains(words, text) {
			return fmt.Errorf("want one of %s, not %.40q", strings.Join(words, ", "), text)
		}
		return nil
	}
}

// isPlace fails for the URL of what is no web server. It does not repeat it: there may
// be a password in it.
func isPlace(text string) error {
	if scheme, _, ok := strings.Cut(text, "://"); ok && !origin.IsURL(text) {
		return fmt.Errorf("want a path or an http(s) URL, not one of %.10s", scheme)
	}
	return nil
}

// isGiven fails for nothing, which would take away a key that the file asks for.
func isGiven(text string) error {
	if text == "" {
		return errors.New("it is empty")
	}
	return nil
}

func isVersion(text string) error {
	if !kmod.IsVersion(text) {
		return fmt.Errorf("%.80q is no version of a kernel", text)
	}
	return nil
}

func isDir(text string) error {
	if !filepath.IsAbs(text) {
		return fmt.Errorf("want an absolute path, not %.80q", text)
	}
	return nil
}

func isDirOrNone(text string) error {
	if !given(text) {
		return nil
	}
	return isDir(text)
}

// maxConfig is the length of the longest configuration file, in bytes.
const maxConfig = 1 << 20

// ReadFile takes settings from a file. One with a setting that does not exist is
// an error: it may be a misspelled pubkey.
func (c *Config) ReadFile(file string) error {
	if err := c.readFile(file); err != nil {
		return fmt.Errorf("configuration %s: %w", file, err)
	}
	return nil
}

func (c *Config) readFile(file string) error {
	info, err := os.Stat(file)
	if err == nil && info.Size() > maxConfig {
		err = fmt.Errorf("it is longer than %d bytes", maxConfig)
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	if err != nil {
		return err
	}
	var table map[string]any
	if _, err := toml.DecodeFile(file, &table); err != nil {
		return err
	}
	for name, value := range table {
		text, err := asText(value)
		if err == nil {
			err = c.Set(name, text)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func asText(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case []any:
		var words []string
		for _, w := range v {
			text, ok := w.(string)
			if !ok || strings.ContainsAny(text, ", ") {
				return "", errors.New("want a list of words")
			}
			words = append(words, text)
		}
		return strings.Join(words, ","), nil
	}
	return "", errors.New("want a text, a number, a list, true or false")
}

// envPrefix begins the names of settings in the environment.
const envPrefix = "OVERMOUNT_"

// variable is the name of a setting in the environment.
func variable(name string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// ReadEnv takes settings from the environment.
func (c *Config) ReadEnv(getenv func(string) string) error {
	for _, s := range c.settings() {
		name := variable(s.name)
		if text := getenv(name); text != "" {
			if err := s.set(text); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// UnknownEnv returns an error that names the variables of an environment, as NAME=VALUE,
// that look like settings and are none. Others are the names of those that are for
// something else; one that ends with _ stands for all that begin with it.
func UnknownEnv(environ []string, others ...string) error {
	known := slices.Clone(others)
	for _, name := range Settings() {
		known = append(known, variable(name))
	}
	var errs []error
	for _, v := range environ {
		name, text, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, envPrefix) && text != "" && !slices.ContainsFunc(known, func(k string) bool { return stands(k, name) }) {
			errs = append(errs, fmt.Errorf("environment, %.40s: there is no such variable%s", name, hint(name, known)))
		}
	}
	return errors.Join(errs...)
}

// stands reports whether what is known stands for a name.
func stands(known, name string) bool {
	return known == name || strings.HasSuffix(known, "_") && strings.HasPrefix(name, known)
}

// ReadCommandLine takes settings from a kernel command line. A wrong one is in the
// error, and the others are taken: nobody can mend it while the machine boots.
func (c *Config) ReadCommandLine(line string) error {
	var errs []error
	for word := range kmod.CommandLine(line) {
		// Boot loaders put quotes around a whole word, too.
		setting, ok := strings.CutPrefix(strings.TrimPrefix(word, `"`), "overmount.")
		if !ok {
			continue
		}
		name, text, _ := strings.Cut(setting, "=")
		text = strings.Trim(text, `"`)
		if err := c.Set(strings.ReplaceAll(name, "_", "-"), text); err != nil {
			errs = append(errs, fmt.Errorf("kernel command line, overmount.%.40s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// none is how a place is said not to be there.
const none = "none"

// fill puts the kernel's version and the defaults that depend on others in place.
func (c *Config) fill() error {
	if c.Base != "" {
		if c.Modules == "" {
			c.Modules = below(c.Base, "modules-{kver}.fl")
		}
		if c.Firmware == "" {
			c.Firmware = below(c.Base, "firmware.fl")
		}
	}
	c.Writable = c.Writable || c.Depmod
	if err := isVersion(c.Kver); err != nil {
		return err
	}
	for _, s := range []*string{&c.Modules, &c.Firmware, &c.ModulesDir, &c.FirmwareDir} {
		*s = strings.ReplaceAll(*s, "{kver}", c.Kver)
	}
	for _, dir := range []string{c.ModulesDir, c.FirmwareDir, c.RunDir, c.Kept} {
		if err := isDir(dir); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
	}
	if !given(c.Modules) && !given(c.Firmware) {
		return errors.New("no manifest is named: set base, or modules and firmware, in the configuration file, " +
			"the environment (OVERMOUNT_BASE) or on the kernel command line (overmount.base=URL)")
	}
	return nil
}

// below is a file in a directory, which may be a URL with a query, as a token.
func below(dir, name string) string {
	query := ""
	if i := strings.IndexByte(dir, '?'); i >= 0 && origin.IsURL(dir) {
		dir, query = dir[:i], dir[i:]
	}
	return strings.TrimRight(dir, "/") + "/" + name + query
}

func given(place string) bool { return place != "" && place != none }
