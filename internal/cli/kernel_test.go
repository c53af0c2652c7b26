package cli

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
)

// kernelTree returns the modules of a real kernel that depmod has indexed.
func kernelTree(t *testing.T) string {
	t.Helper()
	dir := testenv.Kernel(t)
	for _, name := range []string{"modules.dep.bin", "modules.alias.bin", "modules.symbols.bin"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatalf("run depmod first: %v", err)
		}
	}
	return dir
}

// An objectServer serves a directory and notes when each object was asked for.
type objectServer struct {
	url string

	mu    sync.Mutex
	asked map[string][]time.Time
}

func serveObjects(t *testing.T, dir string) *objectServer {
	t.Helper()
	s := &objectServer{asked: map[string][]time.Time{}}
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked[r.URL.Path] = append(s.asked[r.URL.Path], time.Now())
		s.mu.Unlock()
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// requests returns when each object was asked for.
func (s *objectServer) requests() map[string][]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.asked)
}

// onceEach checks that no object was asked for twice, and that least were. A request from
// which nothing comes for a second gets company, which happens on a busy machine: of a
// hundred objects one may have been asked for once more, but no sooner.
func (s *objectServer) onceEach(t *testing.T, who string, least int) {
	t.Helper()
	all, company := s.requests(), 0
	if len(all) < least {
		t.Errorf("%s asked for %d objects, want at least %d", who, len(all), least)
	}
	for name, times := range all {
		switch n := len(times); {
		case n == 1:
		case n == 2 && times[1].Sub(times[0]) >= time.Second:
			company++
		default:
			t.Errorf("%s asked %d times for %s, within %v, want once", who, n, name, times[n-1].Sub(times[0]))
		}
	}
	if company > len(all)/100 {
		t.Errorf("%s asked twice for %d of %d objects, want hardly any", who, company, len(all))
	}
}

// TestKernel packs a real kernel's modules, unpacks them, mounts them over HTTP,
// and compares.
func TestKernel(t *testing.T) {
	testenv.FUSE(t)
	src := kernelTree(t)
	want := manifestOf(t, src)
	if len(want) < 1000 {
		t.Fatalf("%s holds %d files, want a whole kernel", src, len(want))
	}
	for _, codec := range []string{"zstd", "snappy"} {
		t.Run(codec, func(t *testing.T) {
			work := t.TempDir()
			meta, objects := filepath.Join(work, "x.fl"), filepath.Join(work, "objects")
			mustRun(t, "overmount", "pack", "-m", meta, "-s", "dir://"+objects, "--kind", "modules", "--codec", codec, src)

			out := filepath.Join(work, "out")
			mustRun(t, "overmount", "unpack", "-p", "-m", meta, out)
			same(t, "unpacked", want, manifestOf(t, out))
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}

			server := serveObjects(t, objects)
			mustRun(t, "overmount", "config", "-m", meta, "store", "delete", "-a")
			mustRun(t, "overmount", "config", "-m", meta, "store", "add", "-s", server.url)
			target := filepath.Join(work, "lib/modules", filepath.Base(src))
			mountAt(t, target, "-m", meta, "-c", filepath.Join(work, "cache"))
			depmodFetchesNothing(t, work, filepath.Base(src), server)
			readInParallel(t, target, want, server)
			same(t, "mounted", want, manifestOf(t, target))
			server.onceEach(t, "64 readers and a walk", len(want)/2)
		})
	}
}

// TestModulesWithoutStore mounts a real kernel's modules without any store that
// answers. modprobe and depmod -A must not notice.
func TestModulesWithoutStore(t *testing.T) {
	testenv.FUSE(t)
	testenv.Tool(t, "modprobe")
	src := kernelTree(t)
	kver := filepath.Base(src)
	for _, how := range []string{"as they are", "with depmod"} {
		t.Run(how, func(t *testing.T) {
			work := t.TempDir()
			meta, objects := filepath.Join(work, "x.fl"), filepath.Join(work, "objects")
			args := []string{"pack", "-m", meta, "-s", "dir://" + objects, "--kind", "modules", src}
			if how == "with depmod" {
				args = append(args, "--depmod", "--layout", "kmod30")
			}
			mustRun(t, "overmount", args...)
			if err := os.Rename(objects, objects+".away"); err != nil {
				t.Fatal(err)
			}
			mountAt(t, filepath.Join(work, "lib/modules", kver), "-m", meta)
			if r := run(t, "depmod", "-A", "-b", work, kver); r.code != 0 || r.stdout+r.stderr != "" {
				t.Errorf("depmod -A: exit code %d, %q; want it to find nothing to do", r.code, r.stdout+r.stderr)
			}
			root := filepath.Dir(filepath.Dir(filepath.Dir(src)))
			for _, name := range []string{
				"iwlwifi", "snd-sof-pci-intel-skl", "xfs", "symbol:crc32c", "ext4", "char-major-10-200",
				"pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00", "usb:v0BDAp8153d3000dc00dsc00dp00icFFisc00ip00in00", "no-such-module",
			} {
				want, got := resolveWith(t, root, kver, name), resolveWith(t, work, kver, name)
				if want != got || want == "" {
					t.Errorf("modprobe -D %s on the mount = %q, want %q", name, got, want)
				}
			}
		})
	}
}

// resolveWith returns what modprobe says of a name in the modules of a root.
func resolveWith(t *testing.T, root, kver, name string) string {
	t.Helper()
	r := run(t, "modprobe", "-D", "-C", t.TempDir(), "-d", root, "-S", kver, name)
	return strings.ReplaceAll(fmt.Sprint(r.code, " ", r.stdout, r.stderr), root, "ROOT")
}

// depmodFetchesNothing runs a depmod that finds the indexes of the mount up to
// date from times alone.
func depmodFetchesNothing(t *testing.T, base, kver string, server *objectServer) {
	t.Helper()
	testenv.Tool(t, "depmod")
	if r := run(t, "depmod", "-A", "-b", base, kver); r.code != 0 || r.stdout+r.stderr != "" {
		t.Errorf("depmod -A: exit code %d, %q; want it to find nothing to do", r.code, r.stdout+r.stderr)
	}
	if got := server.requests(); len(got) != 0 {
		t.Errorf("mounting and depmod -A asked for %d objects, want none", len(got))
	}
}

// readInParallel has 64 processes read overlapping parts of the tree, and checks
// that no object was asked for twice.
func readInParallel(t *testing.T, target string, want map[string]string, server *objectServer) {
	t.Helper()
	var names []string
	for name, line := range want {
		if strings.HasPrefix(line, "10") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	names = names[:min(len(names), 320)]
	var wg sync.WaitGroup
	for i := range 64 { // each reads the files of four more, in an order of its own
		var part []string
		for k := range 20 {
			part = append(part, names[(i*5+k)%len(names)])
		}
		if i%2 == 1 {
			slices.Reverse(part)
		}
		cmd := exec.CommandContext(t.Context(), "sha256sum", append([]string{"-b", "--"}, part...)...)
		cmd.Dir = target
		wg.Go(func() {
			out, err := cmd.Output()
			if err != nil {
				t.Errorf("reader %d: %v", i, err)
			}
			for k, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
				if sum, _, _ := strings.Cut(line, " "); !strings.Contains(want[part[k]], sum) {
					t.Errorf("reader %d reads of %s what has SHA-256 %s, want %s", i, part[k], sum, want[part[k]])
				}
			}
		})
	}
	wg.Wait()
	server.onceEach(t, "64 readers", len(names)/2)
}

// manifestOf describes all below dir, a line for each path. It may walk a mount, as
// that is served by another process than this one.
func manifestOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		all[at], err = line(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func line(name string) (string, error) {
	info, err := os.Lstat(name)
	if err != nil {
		return "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	size, content := st.Size, ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		size = 0
	case unix.S_IFLNK:
		content, err = os.Readlink(name)
	case unix.S_IFREG:
		content, err = hash(name)
	}
	return fmt.Sprintf("%o %d:%d %d %d %s", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, size, content), err
}

func hash(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func same(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the %s tree differs (-want +got):\n%.4000s", what, diff)
	}
}
