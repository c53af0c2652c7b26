package initramfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"overmount/internal/testenv"
)

// said is a stand-in for a program that notes what it was told, and fails if it is
// "boot".
const said = "#!/bin/sh\necho ${0##*/} \"$@\" >>/run/said\n[ \"$1\" != boot ]\n"

// TestInit runs /init as process 1, in namespaces of its own, with programs that only
// say that they were called. No card gets an address there.
func TestInit(t *testing.T) {
	testenv.Root(t, "chroot")
	testenv.Tool(t, "unshare")
	for _, tt := range []struct {
		name, want string
		change     func(*testing.T, *Options)
	}{
		{"alone", "overmount boot\ninit\n", func(*testing.T, *Options) {}},
		{"udev", "udevd --daemon --children-max=64 --event-timeout=120\novermount boot\nudevadm control --exit\ninit\n", func(t *testing.T, o *Options) {
			o.Udev = t.TempDir()
			for _, name := range []string{"bin/udevadm", "sbin/udevd", "bin/kmod"} {
				write(t, filepath.Join(o.Udev, name), said)
			}
		}},
		{"start", "start\n", func(_ *testing.T, o *Options) {
			o.Include = append(o.Include, Include{o.Include[0].From, "/" + StartPath})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := options(t, kernel(t), "virtio")
			o.Init, o.Busybox, o.Applets = "", testenv.Tool(t, "busybox"), applets()
			write(t, o.Program, said)
			last := filepath.Join(t.TempDir(), "last")
			write(t, last, said+"grep -v ^kmod /run/said\n")
			if err := os.Chmod(last, 0o755); err != nil {
				t.Fatal(err)
			}
			o.Include = []Include{{last, "/sbin/init"}}
			tt.change(t, o)
			dir := unpacked(t, image(t, o))
			once(t, filepath.Join(dir, "init"))
			out := run(t, "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--net", "chroot", dir, "/init")
			if !strings.HasSuffix(out, tt.want) {
				t.Errorf("/init says\n%s\nwant at its end\n%s", out, tt.want)
			}
			if failed := strings.Contains(out, "overmount boot ended with 1"); failed != strings.Contains(tt.want, "boot") {
				t.Errorf("/init says\n%s\nof the end of overmount boot", out)
			}
		})
	}
}

func applets() []string {
	var all []string
	for name := range strings.FieldsSeq("mount mkdir uname ls find sort xargs cat wc ip sleep tr grep setsid cttyhack modprobe") {
		all = append(all, "bin/"+name)
	}
	return all
}

// once has /init look for an address once, and not for a minute. Another process writes
// the file: one that this process has open for that may be open a moment longer in what a
// parallel test is about to start, and cannot be run until then.
func once(t *testing.T, file string) {
	t.Helper()
	const tries = "for try in 1 2 3 4 5 6;"
	if text := read(t, file); !strings.Contains(text, tries) {
		t.Fatalf("%s does not say %q", file, tries)
	}
	run(t, "sed", "-i", "s/"+tries+"/for try in 1;/", file)
}
