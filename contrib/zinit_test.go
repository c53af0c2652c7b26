package contrib

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const zinitPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A real zinit 0.3 runs our units with stand-ins for the programs, which write
// down what happens.
func TestZinit03(t *testing.T) {
	server := os.Getenv("OVERMOUNT_TEST_ZINIT")
	if server == "" { // not testenv.Need: CI does not build it
		t.Skip("OVERMOUNT_TEST_ZINIT does not name the directory of zinit-server; scripts/zinit builds it")
	}
	dir := t.TempDir()
	bin, services := filepath.Join(dir, "bin"), filepath.Join(dir, "services")
	log, pids, ready := filepath.Join(dir, "log"), filepath.Join(dir, "pids"), filepath.Join(dir, "ready")
	const begin = "#!/bin/sh\nset -eu\ncd \"$(dirname \"$0\")/..\"\necho $$ >>pids\n"
	put(t, bin+"/says", begin+"echo \"$@\" >>log\n")
	put(t, bin+"/stays", begin+"echo \"$@\" >>log\nexec sleep 600\n")
	put(t, bin+"/udevadm", begin+"echo udevadm \"$@\" >>log\n")
	// Ready, but not before zinit has dealt with those that come after its start.
	put(t, bin+"/overmount", begin+`rm -f ready
echo overmount "$@" >>log
until grep -q eager log; do :; done
echo overmount is ready >>log
echo $$ >ready
exec sleep 600
`)
	path := []string{zinitPath, bin + ":" + zinitPath}
	replaced(t, services, "zinit-0.3/overmount.toml", append(path, "/usr/bin/overmount", bin+"/overmount", "/run/overmount/ready", ready)...)
	replaced(t, services, "zinit-0.3/udev-trigger.toml", append(path, `"udevadm`, `"`+bin+"/udevadm")...)
	service := func(name, exec, more string) {
		put(t, services+"/"+name+".toml", "[service]\nname = \""+name+"\"\nexec = \""+bin+"/"+exec+"\"\n"+more)
	}
	service("network", "says network", "oneshot = true\n")
	service("udevd", "stays udevd", "")
	service("eager", "says eager", "oneshot = true\n[dependencies]\nafter = [\"overmount\"]\n")
	service("user", "says user of modules", "oneshot = true\n[dependencies]\nrequires = [\"overmount\"]\n")
	startZinit(t, server, services, dir, pids)

	awaitLine(t, log, "udevadm settle --timeout=120", 1)
	awaitLine(t, log, "user of modules", 1)
	all := lines(t, log)
	for _, pair := range [][2]string{
		{"overmount boot --foreground", "overmount is ready"},
		{"eager", "overmount is ready"},
		{"overmount is ready", "user of modules"},
		{"overmount is ready", "udevadm settle --timeout=120"},
	} {
		first, second := slices.Index(all, pair[0]), slices.Index(all, pair[1])
		if first < 0 || first > second {
			t.Errorf("%q is not before %q in %q", pair[0], pair[1], all)
		}
	}

	// One that dies is started again.
	serving, err := strconv.Atoi(lines(t, ready)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(serving, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, log, "overmount is ready", 2)
}

// startZinit starts a zinit of its own, and ends it and all it started when the
// test is over.
func startZinit(t *testing.T, server, services, dir, pids string) {
	t.Helper()
	out, err := os.Create(filepath.Join(dir, "zinit.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(filepath.Join(server, "zinit-server"), "-c", services, "-s", filepath.Join(dir, "socket"))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		cmd.Wait()
		for _, line := range lines(t, pids) {
			if pid, err := strconv.Atoi(line); err == nil && ours(pid, dir) {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		if t.Failed() {
			said, _ := os.ReadFile(out.Name())
			t.Logf("zinit says:\n%s", said)
		}
	})
}

// ours reports whether a process works in the directory of the test.
func ours(pid int, dir string) bool {
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	return err == nil && cwd == dir
}

// awaitLine waits until a line is in a file n times.
func awaitLine(t *testing.T, name, line string, n int) {
	t.Helper()
	for end := time.Now().Add(limit); ; runtime.Gosched() {
		found := 0
		for _, l := range lines(t, name) {
			if l == line {
				found++
			}
		}
		if found >= n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%q is not %d times in %q after %v", line, n, lines(t, name), limit)
		}
	}
}

// yaml02 reads what our units for zinit 0.2 use of YAML: "key: value", lists of
// "- item", and maps one level down.
func yaml02(t *testing.T, name string) (values map[string]string, lists map[string][]string) {
	t.Helper()
	values, lists = map[string]string{}, map[string][]string{}
	under := ""
	for _, line := range lines(t, name) {
		key, value, isPair := strings.Cut(line, ":")
		item, isItem := strings.CutPrefix(line, "- ")
		switch {
		case line == "" || line[0] == '#':
		case isItem && under != "":
			lists[under] = append(lists[under], item)
		case isPair && value == "":
			under = key
		case isPair && under == "env":
			values["env."+key] = strings.TrimSpace(value)
		case isPair:
			values[key] = strings.TrimSpace(value)
		default:
			t.Fatalf("%s: %q is more than this test reads", name, line)
		}
	}
	return values, lists
}

// What zinit 0.2 does with the units, as it was found in its source: "after" is
// satisfied by a service that runs and by a oneshot that ended with 0; a oneshot
// that ended otherwise is never tried again.
func TestZinit02(t *testing.T) {
	type unit struct {
		oneshot bool
		after   []string
	}
	units := map[string]unit{"network": {oneshot: true}, "udevd": {}}
	for _, name := range []string{"overmount", "udev-trigger"} {
		values, lists := yaml02(t, "zinit-0.2/"+name+".yaml")
		for key := range values {
			if !slices.Contains([]string{"exec", "oneshot", "env.PATH"}, key) {
				t.Errorf("%s has the key %s, which this test does not know", name, key)
			}
		}
		if values["env.PATH"] == "" {
			t.Errorf("%s has no PATH, and an init has none to give", name)
		}
		units[name] = unit{values["oneshot"] == "true", lists["after"]}
	}
	started := func(fails string) (order []string) {
		satisfied := map[string]bool{}
		for range units {
			for _, name := range []string{"udev-trigger", "overmount", "udevd", "network"} { // the worst order
				waits := slices.ContainsFunc(units[name].after, func(dep string) bool { return !satisfied[dep] })
				if waits || slices.Contains(order, name) {
					continue
				}
				order = append(order, name)
				satisfied[name] = !(units[name].oneshot && name == fails)
			}
		}
		return order
	}
	if got, want := started(""), []string{"udevd", "network", "overmount", "udev-trigger"}; !slices.Equal(got, want) {
		t.Errorf("the order is %v, want %v", got, want)
	}
	if got := started("overmount"); slices.Contains(got, "udev-trigger") {
		t.Errorf("when overmount fails, the order is %v: this test does not model a oneshot", got)
	}
}

// A oneshot of zinit 0.2 that fails holds up all that is after it, for ever: ours do
// not fail, whatever becomes of what they run.
func TestZinit02Succeeds(t *testing.T) {
	bin := t.TempDir()
	put(t, bin+"/fails", "#!/bin/sh\necho \"$@\"\nexit 1\n")
	for name, says := range map[string]string{"overmount": "boot\n", "udev-trigger": "settle --timeout=120\n"} {
		values, _ := yaml02(t, "zinit-0.2/"+name+".yaml")
		line := strings.NewReplacer("/usr/bin/overmount", bin+"/fails", "udevadm", bin+"/fails").Replace(values["exec"])
		if out, err := run(t, "sh", "-c", line); err != nil || out != says {
			t.Errorf("%s: %s prints %q, %v, want %q", name, values["exec"], out, err, says)
		}
	}
}
