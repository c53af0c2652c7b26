package kmod

import (
	"bufio"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"overmount/internal/testenv"
)

// A libc answers what fnmatch(3) of the C library says.
type libc struct {
	in  io.Writer
	out *bufio.Reader
}

// startLibc builds and starts testdata/fnmatch.c.
func startLibc(tb testing.TB) *libc {
	tb.Helper()
	program := filepath.Join(tb.TempDir(), "fnmatch")
	if out, err := exec.Command(testenv.Tool(tb, "cc"), "-O2", "-o", program, "testdata/fnmatch.c").CombinedOutput(); err != nil {
		tb.Fatalf("cc fnmatch.c: %v\n%s", err, out)
	}
	cmd := exec.Command(program)
	cmd.Env = []string{"LC_ALL=C"}
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("fnmatch.c: %v", err)
		}
	})
	return &libc{in: in, out: bufio.NewReader(out)}
}

func (l *libc) match(tb testing.TB, pattern, name string) bool {
	tb.Helper()
	var ask []byte
	for _, s := range []string{pattern, name} {
		ask = binary.NativeEndian.AppendUint32(ask, uint32(len(s)))
		ask = append(ask, s...)
	}
	if _, err := l.in.Write(ask); err != nil {
		tb.Fatal(err)
	}
	answer, err := l.out.ReadByte()
	if err != nil {
		tb.Fatalf("fnmatch(%q, %q): no answer: %v", pattern, name, err)
	}
	return answer == 1
}

// matches are patterns and names, and whether they match.
var matches = []struct {
	pattern, name string
	want          bool
}{
	{"", "", true},
	{"", "a", false},
	{"a", "", false},
	{"abc", "abc", true},
	{"*", "", true},
	{"*", "a/b", true},
	{"*", ".hidden", true},
	{"?", "/", true},
	{"?", "", false},
	{"a*", "a", true},
	{"a*c", "abbbc", true},
	{"a*c", "abbbcd", false},
	{"a*b*c", "a1b2b3c", true},
	{"**a**", "xax", true},
	{"*?", "", false},
	{"*?*", "a", true},
	{"*ab", "aab", true},
	{"*ab", "abab", true},
	{"[abc]", "b", true},
	{"[abc]", "d", false},
	{"[a-c]x", "bx", true},
	{"[c-a]", "b", false},
	{"[c-a]", "c", false},
	{"[!a-c]", "d", true},
	{"[!a-c]", "b", false},
	{"[^a-c]", "d", true},
	{"[a!]", "!", true},
	{"[]]", "]", true},
	{"[]a]", "a", true},
	{"[!]]", "a", true},
	{"[!]]", "]", false},
	{"[]-a]", "^", true},
	{"[a-]", "-", true},
	{"[-a]", "-", true},
	{"[--/]", ".", true},
	{"[a-c-e]", "d", false},
	{"[a-c-e]", "-", true},
	{"[a\\-c]", "b", false},
	{"[a\\-c]", "-", true},
	{"[\\]]", "]", true},
	{"[a-\\]]", "^", false},
	{"[A-\\]]", "\\", true},
	{"[*]", "*", true},
	{"[*]", "a", false},
	{"[[]", "[", true},
	{"[", "[", true},
	{"[a", "[a", true},
	{"[a", "a", false},
	{"[!", "[!", true},
	{"a[", "a[", true},
	{"*[", "x[", true},
	{"*[b", "a[b", true},
	{"[]", "[]", true},
	{"[[:alpha:]]", "q", true},
	{"[[:alpha:]]", "1", false},
	{"[![:alpha:]]", "1", true},
	{"[[:digit:]a-f]", "c", true},
	{"[[:digit:]a-f]", "g", false},
	{"[x[:digit:]]", "x", true},
	{"[[:digit:]-z]", "-", true},
	{"[[:digit:]-z]", "y", false},
	{"[[:nonsense:]]", "n", false},
	{"[[:nonsense:]n]", "n", false},
	{"[[:alpha]", "l", true},
	{"[[:alpha]]", "l]", true},
	{"[:alpha:]", "l", true},
	{"\\*", "*", true},
	{"\\*", "a", false},
	{"\\a", "a", true},
	{"a\\", "a", false},
	{"a\\", "a\\", false},
	{"*\\", "\\", false},
	{"\\[a]", "[a]", true},
	{"pci:v00008086d*sv*sd*bc02sc80i*", "pci:v00008086d00002723sv00008086sd00000084bc02sc80i00", true},
	{"usb:v13FDp3940d0[0-2]*dc*dsc*dp*ic*isc*ip*in*", "usb:v13FDp3940d0109dc00dsc00dp00ic08isc06ip50in00", true},
	{"usb:v13FDp3940d0[0-2]*dc*dsc*dp*ic*isc*ip*in*", "usb:v13FDp3940d0309dc00dsc00dp00ic08isc06ip50in00", false},
	{"of:N*T*Cbrcm,bcm2835-hdmiC*", "of:NhdmiT(null)Cbrcm,bcm2835-hdmi", false},
	{"cpu:type:x86,ven*fam*mod*:feature:*0081*", "cpu:type:x86,ven0000fam0006mod009E:feature:,0000,0081,0082", true},
}

func TestMatch(t *testing.T) {
	for _, c := range matches {
		if got := Match(c.pattern, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
}

// The table above is what the C library says.
func TestMatchTableOfLibc(t *testing.T) {
	c := startLibc(t)
	for _, m := range matches {
		if got := c.match(t, m.pattern, m.name); got != m.want {
			t.Errorf("fnmatch(%q, %q) = %v, want %v", m.pattern, m.name, got, m.want)
		}
	}
}

// Every class has the bytes that the C library gives it.
func TestMatchClasses(t *testing.T) {
	c := startLibc(t)
	for _, class := range []string{"alpha", "alnum", "lower", "upper", "digit", "xdigit", "blank", "space", "cntrl", "graph", "print", "punct"} {
		for b := range 256 {
			if b == 0 {
				continue
			}
			pattern, name := "[[:"+class+":]]", string([]byte{byte(b)})
			if got, want := Match(pattern, name), c.match(t, pattern, name); got != want {
				t.Errorf("Match(%q, %q) = %v, want %v", pattern, name, got, want)
			}
		}
	}
}

// Stars do not multiply: this would take longer than the universe has.
func TestMatchManyStars(t *testing.T) {
	name := strings.Repeat("a", 20_000)
	for _, pattern := range []string{strings.Repeat("*a", 100) + "*b", strings.Repeat("*[a-c]", 100) + "*b"} {
		if Match(pattern, name) {
			t.Errorf("Match(%.20q…, 20,000 times a) = true", pattern)
		}
		if !Match(pattern, name+"b") {
			t.Errorf("Match(%.20q…, 20,000 times a, and b) = false", pattern)
		}
	}
}

// judged reports whether the C library is asked: not about NUL and bytes that
// are not ASCII, not about what Match leaves out, [.x.] and [=x=], and not about
// long texts, as its time is exponential.
func judged(pattern, name string) bool {
	return isASCII(pattern+name) && !strings.Contains(pattern+name, "\x00") &&
		!strings.Contains(pattern, "[.") && !strings.Contains(pattern, "[=") &&
		len(pattern) < 100 && len(name) < 100
}

// Any bytes may come, and must not panic.
func FuzzMatch(f *testing.F) {
	for _, m := range matches {
		f.Add(m.pattern, m.name)
	}
	c := startLibc(f)
	f.Fuzz(func(t *testing.T, pattern, name string) {
		got := Match(pattern, name)
		if !judged(pattern, name) {
			return
		}
		if want := c.match(t, pattern, name); got != want {
			t.Errorf("Match(%q, %q) = %v, want %v", pattern, name, got, want)
		}
	})
}

// Patterns of pieces that mean something to fnmatch, and names that are like
// them.
func TestMatchRandom(t *testing.T) {
	c := startLibc(t)
	r := rand.New(rand.NewPCG(3, 4))
	pieces := strings.Fields(`a b c ] [ [ - - ! ^ \ * ? : [: :] [:alpha:] [:lower:] [:x:] [:z:] [^ [! [a-c] .`)
	letters := strings.Fields(`a b c a ] [ - : ! \ .`)
	hits := 0
	for range 40_000 {
		var pattern, name string
		for range r.IntN(9) {
			piece := pieces[r.IntN(len(pieces))]
			pattern += piece
			switch r.IntN(3) {
			case 0:
				name += piece
			case 1:
				name += letters[r.IntN(len(letters))]
			}
		}
		if !judged(pattern, name) {
			continue
		}
		got := Match(pattern, name)
		if want := c.match(t, pattern, name); got != want {
			t.Errorf("Match(%q, %q) = %v, want %v", pattern, name, got, want)
		}
		if got {
			hits++
		}
	}
	if hits < 1000 {
		t.Errorf("only %d patterns matched", hits)
	}
}
