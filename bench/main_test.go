package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"overmount/internal/testenv"
)

// clientEnv makes the test binary a client of a mount; see client_test.go. A
// client of its own starts with no heap and meets no garbage collection.
const clientEnv = "OVERMOUNT_BENCH_CLIENT"

func TestMain(m *testing.M) {
	op := os.Getenv(clientEnv)
	if op == "" {
		os.Exit(m.Run())
	}
	if err := client(op, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// kernel returns the directory of a kernel's modules.
func kernel(b *testing.B) string {
	b.Helper()
	dir := os.Getenv("OVERMOUNT_TEST_KERNEL")
	if dir == "" {
		skip(b, "OVERMOUNT_TEST_KERNEL does not name a directory of kernel modules")
	}
	if below, _ := filepath.Glob(filepath.Join(dir, "lib/modules/*/modules.dep")); len(below) == 1 {
		dir = filepath.Dir(below[0])
	}
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err != nil {
		b.Fatalf("OVERMOUNT_TEST_KERNEL: %v", err)
	}
	return dir
}

// needs skips if a program is missing.
func needs(b *testing.B, programs ...string) {
	b.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			skip(b, err.Error())
		}
	}
}

func needsRoot(b *testing.B, what string) {
	b.Helper()
	if os.Geteuid() != 0 {
		skip(b, what+" needs root")
	}
}

// skip says so also without -v.
func skip(b *testing.B, why string) {
	b.Helper()
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		b.Fatalf("REQUIRE_TOOLS=1, and %s", why)
	}
	fmt.Fprintf(os.Stderr, "%s is skipped: %s\n", b.Name(), why)
	b.SkipNow()
}

// rounds is how often each side is measured at least; -benchtime can ask for
// more.
const rounds = 7

// alternate measures ours and the baseline in turn, and returns the medians of
// each. A measurement may be of several figures.
func alternate(b *testing.B, ours, baseline func() []float64) (our, base []float64) {
	b.Helper()
	var ourAll, baseAll [][]float64
	round := func() {
		baseAll = append(baseAll, baseline())
		ourAll = append(ourAll, ours())
	}
	for b.Loop() {
		round()
	}
	for len(ourAll) < rounds {
		round()
	}
	b.ReportMetric(0, "ns/op") // of both together: it says nothing
	return medians(ourAll), medians(baseAll)
}

// medians returns the median of each column.
func medians(rows [][]float64) []float64 {
	m := make([]float64, len(rows[0]))
	for i := range m {
		column := make([]float64, len(rows))
		for j, row := range rows {
			column[j] = row[i]
		}
		slices.Sort(column)
		m[i] = column[len(column)/2]
	}
	return m
}

// report reports a figure, its baseline and their ratio.
func report(b *testing.B, our, base float64, unit string) {
	b.ReportMetric(our, unit)
	b.ReportMetric(base, "baseline-"+unit)
	b.ReportMetric(our/base, "ratio")
}

// timed measures how long f takes, in milliseconds.
func timed(b *testing.B, f func() error) []float64 {
	b.Helper()
	start := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return []float64{ms(time.Since(start))}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// program builds cmd/overmount and returns its path.
func program(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "overmount")
	testenv.Build(b, path, "", "overmount/cmd/overmount")
	return path
}

// run runs a command whose output nobody needs, and fails if it fails.
func run(b *testing.B, cmd *exec.Cmd) {
	b.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}
