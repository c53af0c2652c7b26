package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// client does one measurement with plain system calls, and prints the figures as
// a JSON array.
func client(op string, args []string) error {
	debug.SetGCPercent(-1)
	ops := map[string]func(args []string) ([]float64, error){
		"lstat": clientLstat, "absent": clientAbsent, "readall": clientReadAll,
		"reopen": clientReopen, "sequential": clientSequential, "random": clientRandom,
		"wake": clientWake, "echo": clientEcho,
	}
	figures, err := ops[op](args)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(figures)
}

// ask runs a client.
func ask(b *testing.B, op string, args ...string) []float64 {
	b.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), clientEnv+"="+op)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("%s %q: %v", op, args, err)
	}
	var figures []float64
	if err := json.Unmarshal(out, &figures); err != nil {
		b.Fatalf("%s %q: %v in %q", op, args, err, out)
	}
	return figures
}

// paths reads a list of files below dir.
func paths(dir, list string) ([]string, error) {
	text, err := os.ReadFile(list)
	if err != nil {
		return nil, err
	}
	var all []string
	for name := range strings.Lines(string(text)) {
		all = append(all, filepath.Join(dir, strings.TrimSuffix(name, "\n")))
	}
	return all, nil
}

// micros is a time for each of n, in microseconds.
func micros(d time.Duration, n int) []float64 {
	return []float64{float64(d) / float64(time.Microsecond) / float64(n)}
}

// clientLstat stats the files of a list once: microseconds for each.
func clientLstat(args []string) ([]float64, error) {
	all, err := paths(args[0], args[1])
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	start := time.Now()
	for _, path := range all {
		if err := unix.Lstat(path, &st); err != nil {
			return nil, fmt.Errorf("lstat %s: %w", path, err)
		}
	}
	return micros(time.Since(start), len(all)), nil
}

// clientAbsent asks twice for names that are not there, and measures the second
// time: microseconds for each.
func clientAbsent(args []string) ([]float64, error) {
	all, err := paths(args[0], args[1])
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	var took time.Duration
	for range 2 {
		start := time.Now()
		for _, path := range all {
			if err := unix.Lstat(path+".absent", &st); !errors.Is(err, unix.ENOENT) {
				return nil, fmt.Errorf("lstat %s.absent: %w, want %w", path, err, unix.ENOENT)
			}
		}
		took = time.Since(start)
	}
	return micros(took, len(all)), nil
}

// readFile opens, reads and closes a file, and returns its length.
func readFile(path string, buf []byte) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	for total := 0; ; {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return total, fmt.Errorf("read %s: %w", path, err)
		}
		if n == 0 {
			return total, nil
		}
		total += n
	}
}

// clientReadAll reads the files of a list once: milliseconds.
func clientReadAll(args []string) ([]float64, error) {
	all, err := paths(args[0], args[1])
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<20)
	start := time.Now()
	for _, path := range all {
		if _, err := readFile(path, buf); err != nil {
			return nil, err
		}
	}
	return []float64{ms(time.Since(start))}, nil
}

// clientReopen opens, reads and closes one file often: microseconds, median and
// 99th percentile.
func clientReopen(args []string) ([]float64, error) {
	const times = 20_000
	buf := make([]byte, 1<<20)
	all := make([]time.Duration, times)
	for i := range all {
		start := time.Now()
		if _, err := readFile(args[0], buf); err != nil {
			return nil, err
		}
		all[i] = time.Since(start)
	}
	slices.Sort(all)
	return append(micros(all[times/2], 1), micros(all[times*99/100], 1)...), nil
}

// clientSequential reads one file in pieces of 1 MiB: GB/s. With "cold" it first
// asks the kernel to forget the file's pages.
func clientSequential(args []string) ([]float64, error) {
	if len(args) > 1 && args[1] == "cold" {
		if err := forgetPages(args[0]); err != nil {
			return nil, err
		}
	}
	buf := make([]byte, 1<<20)
	start := time.Now()
	n, err := readFile(args[0], buf)
	if err != nil {
		return nil, err
	}
	return []float64{float64(n) / 1e9 / time.Since(start).Seconds()}, nil
}

func forgetPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("forget the pages of %s: %w", path, err)
	}
	return nil
}

// clientRandom reads one file in random pieces of 4 KiB: thousands a second.
func clientRandom(args []string) ([]float64, error) {
	const times, piece = 300_000, 4 << 10
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	buf := make([]byte, piece)
	random := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	for range times {
		at := random.Int64N(st.Size/piece) * piece
		if n, err := unix.Pread(fd, buf, at); err != nil || n != piece {
			return nil, fmt.Errorf("read %s at %d: %d bytes, %w", args[0], at, n, err)
		}
	}
	return []float64{times / 1e3 / time.Since(start).Seconds()}, nil
}

// clientWake passes a byte to another process and back, often: microseconds for
// each.
func clientWake([]string) ([]float64, error) {
	const times = 5_000
	echo := exec.Command(os.Args[0])
	echo.Env = append(os.Environ(), clientEnv+"=echo")
	in, out, err := twoPipes(echo)
	if err != nil {
		return nil, err
	}
	if err := echo.Start(); err != nil {
		return nil, err
	}
	buf := make([]byte, 1)
	start := time.Now()
	for range times {
		if _, err := unix.Write(in, buf); err != nil {
			return nil, err
		}
		if n, err := unix.Read(out, buf); err != nil || n != 1 {
			return nil, fmt.Errorf("read the echo: %d bytes, %w", n, err)
		}
	}
	took := time.Since(start)
	if err := unix.Close(in); err != nil {
		return nil, err
	}
	return micros(took, times), echo.Wait()
}

// twoPipes connects a command's input and output to pipes that block, as a
// request to a file system does.
func twoPipes(cmd *exec.Cmd) (in, out int, err error) {
	var to, from [2]int
	if err := unix.Pipe2(to[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, err
	}
	if err := unix.Pipe2(from[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, err
	}
	cmd.Stdin, cmd.Stdout = os.NewFile(uintptr(to[0]), "stdin"), os.NewFile(uintptr(from[1]), "stdout")
	return to[1], from[0], nil
}

// clientEcho is the other process. It ends the process itself: it has no figures.
func clientEcho([]string) ([]float64, error) {
	buf := make([]byte, 1)
	for {
		if n, err := unix.Read(unix.Stdin, buf); err != nil || n == 0 {
			os.Exit(0)
		}
		if _, err := unix.Write(unix.Stdout, buf); err != nil {
			return nil, err
		}
	}
}
