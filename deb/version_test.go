package deb_test

import (
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"overmount/deb"
	"overmount/internal/testenv"
)

func TestCompare(t *testing.T) {
	// In ascending order.
	ordered := []string{
		"0~~", "0~~a", "0~", "0", "0a", "0+", "0.0~rc1", "0.0", "0.1-0~bpo12+1", "0.1", "0.1-1", "0.1-1+deb12u1", "0.1-1.1", "0.1-2", "0.1-10",
		"0.9", "0.10", "1", "1A", "1a", "1+b", "20230210-5", "20230210-5~", "1:0.1", "2:0", "10:0",
	}
	swap := len(ordered) - 5 // 20230210-5 and 20230210-5~
	ordered[swap], ordered[swap+1] = ordered[swap+1], ordered[swap]
	for i, a := range ordered {
		for j, b := range ordered {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := deb.Compare(a, b); got != want {
				t.Errorf("Compare(%q, %q) = %d, want %d", a, b, got, want)
			}
		}
	}
	for _, same := range [][2]string{{"1", "0:1"}, {"1", "1-0"}, {"1.0", "1.00"}, {"1-01", "1-1"}, {"00:1", "1"}, {"1.", "1.0"}} {
		if got := deb.Compare(same[0], same[1]); got != 0 {
			t.Errorf("Compare(%q, %q) = %d, want 0", same[0], same[1], got)
		}
	}
}

// TestCompareAsDpkg compares random versions with dpkg, which is asked about many
// in one run of a shell.
func TestCompareAsDpkg(t *testing.T) {
	dpkg := testenv.Tool(t, "dpkg")
	rnd := rand.New(rand.NewPCG(1, 2))
	const alphabet = "0019aAz.+~~-"
	version := func() string {
		b := []byte{'0' + byte(rnd.IntN(3))} // dpkg wants a digit first
		for range rnd.IntN(6) {
			b = append(b, alphabet[rnd.IntN(len(alphabet))])
		}
		v := strings.TrimRight(string(b), "-")
		if rnd.IntN(8) == 0 {
			v = "1:" + v
		}
		return v
	}
	var pairs [][2]string
	var script strings.Builder
	for range 400 {
		a, b := version(), version()
		pairs = append(pairs, [2]string{a, b})
		script.WriteString("if " + dpkg + " --compare-versions '" + a + "' lt '" + b + "'; then echo lt; elif " +
			dpkg + " --compare-versions '" + a + "' gt '" + b + "'; then echo gt; else echo eq; fi\n")
	}
	out, err := exec.Command("sh", "-ec", script.String()).Output()
	if err != nil {
		t.Fatal(err)
	}
	answers := strings.Fields(string(out))
	if len(answers) != len(pairs) {
		t.Fatalf("dpkg answered %d times, want %d", len(answers), len(pairs))
	}
	words := map[int]string{-1: "lt", 0: "eq", 1: "gt"}
	for i, p := range pairs {
		if got := words[deb.Compare(p[0], p[1])]; got != answers[i] {
			t.Errorf("Compare(%q, %q) is %s, and dpkg says %s", p[0], p[1], got, answers[i])
		}
	}
}
