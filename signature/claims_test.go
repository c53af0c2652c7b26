package signature

import (
	"errors"
	"testing"
)

func TestClaimsString(t *testing.T) {
	for _, c := range []struct {
		claims Claims
		want   string
	}{
		{modules, "overmount kind=modules kver=6.1.0-56-amd64 serial=17"},
		{Claims{Serial: 1}, "overmount serial=1"},
		{Claims{"a b", "6.1+deb=1 serial=99", 1}, "overmount kind=a%20b kver=6.1+deb=1%20serial=99 serial=1"},
		{Claims{"\r\n\t", "%", 1}, "overmount kind=%0D%0A%09 kver=%25 serial=1"},
	} {
		if got := c.claims.String(); got != c.want {
			t.Errorf("%+v.String() = %q, want %q", c.claims, got, c.want)
		}
		if got, err := parseClaims(c.want); got != c.claims || err != nil {
			t.Errorf("parseClaims(%q) = %+v, %v, want %+v", c.want, got, err, c.claims)
		}
	}
}

func TestCheckSerial(t *testing.T) {
	for least, ok := range map[uint64]bool{0: true, 16: true, 17: true, 18: false, 1<<64 - 1: false} {
		err := modules.CheckSerial(least)
		if (err == nil) != ok || err != nil && !errors.Is(err, ErrOlder) {
			t.Errorf("CheckSerial(%d) of serial 17 = %v, want ok %v or ErrOlder", least, err, ok)
		}
	}
}

func FuzzParseClaims(f *testing.F) {
	for _, s := range []string{modules.String(), "overmount serial=1 x kind=a%20b", "overmount", "timestamp:1\tfile:x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, comment string) {
		c, err := parseClaims(comment)
		if err != nil {
			if c.Serial != 0 && c.check() == nil {
				t.Errorf("parseClaims(%q) = %+v, %v, want nothing that can be signed", comment, c, err)
			}
			return
		}
		if again, err := parseClaims(c.String()); again != c || err != nil {
			t.Errorf("parseClaims(%q) = %+v, %v, want %+v", c.String(), again, err, c)
		}
	})
}
