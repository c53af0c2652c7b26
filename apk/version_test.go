package apk

import "testing"

// TestCompareVersions has cases of apk-tools (test/unit/version.data), and of its
// documentation.
func TestCompareVersions(t *testing.T) {
	for _, test := range []struct {
		a, op, b string
	}{
		{"2.34", ">", "0.1.0_alpha"},
		{"0.1.0_alpha", "=", "0.1.0_alpha"},
		{"0.1.0_alpha", "<", "0.1.3_alpha"},
		{"0.1.0_alpha2", ">", "0.1.0_alpha"},
		{"1.0_beta", "<", "1.0_pre"},
		{"1.0_rc", "<", "1.0"},
		{"1.0", "<", "1.0_p1"},
		{"1.0_p9", "<", "1.0_p10"},
		{"1.0_git20200101", "<", "1.0_p1"},
		{"1.1", "<", "1.1.1"},
		{"1.2", "<", "1.10"},
		{"1.02", "<", "1.1"},
		{"3.0.0", "=", "3.0.0"},
		{"1.0a", ">", "1.0"},
		{"1.0a", "<", "1.0b"},
		{"1.0-r1", "<", "1.0-r10"},
		{"20221214-r1", "<", "20260221-r0"},
		{"20260221-r0", "<", "20260221-r1"},
		{"6.6.117-r0", ">", "6.6.99-r5"},
		{"1.0_p1", "<", "1.0_p1_p1"},
		{"1.0_rc1", ">", "1.0_rc1_pre2"},
	} {
		want := map[string]int{"<": -1, "=": 0, ">": 1}[test.op]
		if got := compareVersions(test.a, test.b); got != want {
			t.Errorf("compareVersions(%q, %q) = %d, want %d", test.a, test.b, got, want)
		}
		if got := compareVersions(test.b, test.a); got != -want {
			t.Errorf("compareVersions(%q, %q) = %d, want %d", test.b, test.a, got, -want)
		}
	}
}

func TestDependency(t *testing.T) {
	for _, test := range []struct {
		word, name, version string
		conflict, allows    bool
	}{
		{"a", "a", "1.0-r0", false, true},
		{"!a", "a", "1.0-r0", true, true},
		{"a=1.0-r0", "a", "1.0-r0", false, true},
		{"a=1.0-r0", "a", "1.0-r1", false, false},
		{"a>=1.0", "a", "1.0-r0", false, true},
		{"a>1.0-r0", "a", "1.0-r0", false, false},
		{"a<2", "a", "1.9", false, true},
		{"a<=1.9", "a", "1.10", false, false},
		{"a~1.2", "a", "1.2.3-r4", false, true},
		{"a~=1.2", "a", "1.20", false, false},
		{"so:libc.so.6", "so:libc.so.6", "0", false, true},
		{"a@edge=1", "a", "1", false, true},
		{"a@edge", "a", "1", false, true},
		{"a?=1", "a?", "1", false, true},
		{"a><Q1xyz", "a", "1", false, false},
	} {
		d := parseDependency(test.word)
		if d.name != test.name || d.conflict != test.conflict || d.allows(test.version) != test.allows {
			t.Errorf("parseDependency(%q) = %+v, allows(%s) = %v, want %s, %v, %v", test.word, d, test.version, d.allows(test.version), test.name, test.conflict, test.allows)
		}
	}
}
