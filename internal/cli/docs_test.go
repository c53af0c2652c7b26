package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
)

// TestDocs runs the commands that docs/stores.md tells to type: blocks "```sh
// WORD". Those with one word are one script, in the order of the page, and run as
// root of a machine of their own (see sandbox) that has all hosts of the page and,
// in the working directory, the modules of a small kernel.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/stores.md")
	if err != nil {
		t.Fatal(err)
	}
	words, scripts := blocks(string(page))
	if want := []string{"garage", "local", "nginx", "versitygw", "zdb"}; !slices.Equal(slices.Sorted(slices.Values(words)), want) {
		t.Errorf("the page has blocks for %q, want %q", words, want)
	}
	for _, word := range words {
		t.Run(word, func(t *testing.T) {
			testenv.FUSE(t)
			script := "set -e\n"
			var programs []string
			switch word {
			case "garage":
				programs = []string{testenv.Garage(t), testenv.Tool(t, "openssl"), testenv.Tool(t, "sqlite3")}
			case "nginx":
				programs = []string{testenv.Nginx(t), testenv.Tool(t, "openssl"), testenv.Tool(t, "sqlite3")}
			case "versitygw":
				versitygw := testenv.Program(t, "OVERMOUNT_TEST_VERSITYGW", "scripts/versitygw builds one")
				programs = []string{versitygw, testenv.Nginx(t), testenv.Tool(t, "curl"), testenv.Tool(t, "openssl")}
			case "zdb":
				// A 0-db is not to be had; redis has what the page uses of it.
				programs = []string{testenv.Tool(t, "redis-server")}
				script += "redis-server --port 9900 --save '' >redis.log &\nuntil grep -q 'Ready to accept' redis.log; do :; done\n"
			}
			runSandbox(t, script+scripts[word], programs, hosts(string(page)))
		})
	}
}

// blocks returns the words of a page's blocks, as they come, and what is in them.
func blocks(page string) (words []string, scripts map[string]string) {
	scripts = map[string]string{}
	for _, m := range regexp.MustCompile("(?ms)^```sh (\\w+)\n(.*?)^```$").FindAllStringSubmatch(page, -1) {
		if _, ok := scripts[m[1]]; !ok {
			words = append(words, m[1])
		}
		scripts[m[1]] += m[2]
	}
	return words, scripts
}

// hosts returns the names of the hosts of a page.
func hosts(page string) []string {
	found := regexp.MustCompile(`[a-z0-9.-]+\.example\.com`).FindAllString(page, -1)
	slices.Sort(found)
	return slices.Compact(found)
}

// runSandbox runs a script in a sandbox.
func runSandbox(t *testing.T, script string, programs, hosts []string) {
	t.Helper()
	work := t.TempDir()
	path := os.Getenv("PATH")
	for _, p := range programs {
		path += string(os.PathListSeparator) + filepath.Dir(p)
	}
	modules := filepath.Join(work, "linux/lib/modules/6.1.0-56-amd64/kernel")
	for name, text := range map[string]string{"lib/crc.ko": "name=crc", "fs/fat.ko": "name=fat\ndepends=crc"} {
		name = filepath.Join(modules, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := makeModule(name); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docs-sandbox", append([]string{script}, hosts...)...)
	cmd.Dir = work
	cmd.Env = []string{"PATH=" + path + ":/usr/sbin:/sbin", "HOME=" + work, "TMPDIR=" + work}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("%v; the commands and what they said:\n%s", err, &out)
	}
}

// sandbox makes itself, the first process of new namespaces of mounts, network and
// processes, a machine whose /etc has little, whose /run, /srv and /var are empty
// but for what nginx wants, and which is all hosts of the arguments. Then it
// becomes the shell that runs the first argument. What runs beside it ends with
// it.
func sandbox() {
	err := furnish(os.Args[2:])
	if err == nil {
		err = unix.Exec("/bin/sh", []string{"sh", "-exc", os.Args[1]}, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "sandbox:", err)
	os.Exit(1)
}

func furnish(hosts []string) error {
	if err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		loopbackUp(),
	); err != nil {
		return err
	}
	for _, dir := range []string{"/mnt", "/run", "/srv", "/var"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	if err := copyEtc("/mnt"); err != nil {
		return err
	}
	if err := errors.Join(unix.Mount("/mnt", "/etc", "", unix.MS_BIND, ""), unix.Unmount("/mnt", unix.MNT_DETACH)); err != nil {
		return err
	}
	for _, dir := range []string{"/var/lib/nginx", "/var/log/nginx"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile("/etc/hosts", fmt.Appendf(nil, "127.0.0.1 localhost %s\n", strings.Join(hosts, " ")), 0o644)
}

// copyEtc copies what programs need of /etc. Of nginx's sites, that of the page is
// the only one.
func copyEtc(to string) error {
	for _, name := range []string{"group", "ld.so.cache", "nsswitch.conf", "passwd", "ssl/openssl.cnf"} {
		data, err := os.ReadFile(filepath.Join("/etc", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), data, 0o644)
		}
		if err != nil {
			return err
		}
	}
	err := os.CopyFS(filepath.Join(to, "nginx"), os.DirFS("/etc/nginx"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a script that wants it will say so
		return err
	}
	return os.RemoveAll(filepath.Join(to, "nginx/sites-enabled"))
}

// loopbackUp gives a new network its loopback.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
