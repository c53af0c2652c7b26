package cache

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// The environment of a child: this test binary, run again as another process.
const (
	childDir  = "OVERMOUNT_TEST_CACHE"
	childStep = "OVERMOUNT_TEST_STEP"
)

// child runs TestChild in another process, and returns what it prints.
func child(t *testing.T, dir, step string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childDir+"="+dir, childStep+"="+step)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	return cmd, bufio.NewReader(out)
}

// kill ends a child as a power cut would, and waits for its end.
func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child had ended by itself")
	}
}

func childSource() *source { return newSource(64, 50000) }

// TestChild is the other process. It says when it has reached the step, and
// stops there; without a step it fills and reads until it is killed, and says
// so for each object.
func TestChild(t *testing.T) {
	dir, step := os.Getenv(childDir), os.Getenv(childStep)
	if dir == "" {
		t.Skip("only run by other tests, in another process")
	}
	src := childSource()
	c, err := New(dir, src, &Options{MinFree: -1, MaxBytes: 1 << 20, at: func(s string) error {
		if s == step {
			fmt.Println(s)
			select {}
		}
		return nil
	}})
	must(t, err)
	for i := 0; ; i++ {
		id := src.ids[i%len(src.ids)]
		get(t, c, src, id)
		if step != "" {
			continue
		}
		if i%16 == 15 {
			flush(t, c) // now and then the disk has to keep up
		}
		fmt.Println(id)
	}
}

func TestKilledAtEachStep(t *testing.T) {
	for _, step := range []string{"create", "write", "sync", "rename", "renamed", "scan"} {
		t.Run(step, func(t *testing.T) {
			dir := t.TempDir()
			cmd, out := child(t, dir, step)
			if line, err := out.ReadString('\n'); line != step+"\n" {
				t.Fatalf("child said %q, %v, want %q", line, err, step)
			}
			kill(t, cmd)
			_, temps := checkDir(t, dir)
			if (step == "write" || step == "sync" || step == "rename") && temps == 0 {
				t.Error("no temporary file is left: the test shows nothing")
			}
			src := childSource()
			c := open(t, dir, src, Options{})
			get(t, c, src, src.ids...)
			must(t, c.Close())

			// A day later the rest is gone.
			ageTemps(t, dir)
			later := open(t, dir, nil, Options{})
			<-later.swept
			if entries, temps := checkDir(t, dir); entries != len(src.ids) || temps != 0 {
				t.Errorf("%d entries and %d temporary files, want %d and none", entries, temps, len(src.ids))
			}
			get(t, later, src, src.ids...)
		})
	}
}

func ageTemps(t *testing.T, dir string) {
	t.Helper()
	temps, err := filepath.Glob(filepath.Join(dir, "v1", "*", tempPrefix+"*"))
	must(t, err)
	for _, temp := range temps {
		must(t, os.Chtimes(temp, time.Time{}, time.Now().Add(-24*time.Hour)))
	}
}

// Processes that fill and evict in one directory are killed, again and again,
// while this one reads there.
func TestKilledAnywhere(t *testing.T) {
	dir := t.TempDir()
	src := childSource()
	c := open(t, dir, src, Options{MaxBytes: 1 << 20})
	for round := range 5 {
		first, out := child(t, dir, "")
		second, out2 := child(t, dir, "")
		for i := range 100 + 37*round {
			for _, r := range []*bufio.Reader{out, out2} {
				if _, err := r.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			get(t, c, src, src.ids[i%len(src.ids)])
		}
		kill(t, first)
		kill(t, second)
		if entries, _ := checkDir(t, dir); entries == 0 {
			t.Error("nothing was kept: the test shows nothing")
		}
	}
	if s := c.Stats(); s.Bad != 0 || s.State != Working {
		t.Errorf("Stats = %+v, want no bad entry and a working cache", s)
	}
	get(t, c, src, src.ids...)
}
