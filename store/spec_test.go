package store_test

import (
	"net/url"
	"reflect"
	"strings"
	"testing"

	"overmount/store"
)

const secret = "pAsSw0rd-7f3a"

func TestParseSpec(t *testing.T) {
	for _, c := range []struct {
		in          string
		first, last byte
		canonical   string
	}{
		{"dir:///srv/objects", 0x00, 0xff, "dir:///srv/objects"},
		{"00-ff=dir:///srv/objects", 0x00, 0xff, "dir:///srv/objects"},
		{"00-7f=dir:///srv/a", 0x00, 0x7f, "00-7f=dir:///srv/a"},
		{"80-FF=https://h/p?x=1", 0x80, 0xff, "80-ff=https://h/p?x=1"},
		{"aB-Ab=http://h", 0xab, 0xab, "ab-ab=http://h"},
		{"s3://key:" + secret + "@h:9000/b?region=r", 0x00, 0xff, "s3://key:" + secret + "@h:9000/b?region=r"},
		{"10-20=s3s://k:a%2Fb@h:9000/b", 0x10, 0x20, "10-20=s3s://k:a%2Fb@h:9000/b"},
		{"zdb://:" + secret + "@h:9900/ns", 0x00, 0xff, "zdb://:" + secret + "@h:9900/ns"},
		{"s3://k:a=b@h:9000/b", 0x00, 0xff, "s3://k:a=b@h:9000/b"}, // no range, for all its =
		{"http://h/p?r=00-ff=x", 0x00, 0xff, "http://h/p?r=00-ff=x"},
		{"http://[::1]:80/x", 0x00, 0xff, "http://[::1]:80/x"},
	} {
		got, err := store.ParseSpec(c.in)
		if err != nil {
			t.Errorf("ParseSpec(%q) = %v", c.in, err)
			continue
		}
		if got.First != c.first || got.Last != c.last || got.String() != c.canonical {
			t.Errorf("ParseSpec(%q) = %02x, %02x, %q, want %02x, %02x, %q", c.in, got.First, got.Last, got, c.first, c.last, c.canonical)
		}
	}
}

func TestParseSpecErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "no scheme",
		"/srv/objects":                     "no scheme",
		"dir:/srv/objects":                 "no scheme",
		"://h":                             "no scheme",
		"1a://h":                           "no scheme",
		"00-7f=":                           "no scheme",
		"00-7f=/srv":                       "no scheme",
		"7f-00=dir:///srv":                 "ends before it begins",
		"0-ff=dir:///srv":                  `range "0-ff"`,
		"00-fg=dir:///srv":                 `range "00-fg"`,
		"00..ff=dir:///srv":                "range",
		"=dir:///srv":                      "range",
		"dir://":                           "names no place",
		"http://h/p#x":                     "has a #",
		"http://h/#":                       "has a #",
		"http://h:port/":                   "http://… cannot be parsed",
		"s3://k:" + secret + "/x@h:9000/b": "write / as %2F",
		"s3://k:12#" + secret + "@h/b":     "has a #",
		"s3://k:%zz" + secret + "@h/b":     "cannot be parsed",
		"s3://k:" + secret + " @h/b":       "cannot be parsed",
	} {
		got, err := store.ParseSpec(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSpec(%q) = %v, %v, want an error that says %q", in, got, err, want)
			continue
		}
		if got != (store.Spec{}) {
			t.Errorf("ParseSpec(%q) = %v beside an error, want nothing", in, got)
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("ParseSpec(%q): the error %q shows the password", in, err)
		}
	}
}

// As rfs strips: see its pack.rs, strip_password.
func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"s3://user:" + secret + "@h:9000/b":       "s3://user@h:9000/b",
		"s3://:" + secret + "@h:9000/b":           "s3://h:9000/b",
		"00-7f=s3://user:" + secret + "@h:9000/b": "00-7f=s3://user@h:9000/b",
		"s3://user:@h:9000/b":                     "s3://user@h:9000/b",
		"s3://user@h:9000/b":                      "s3://user@h:9000/b",
		"dir:///a b/":                             "dir:///a b/", // nothing to strip: as it was
		"http://h/?token=t":                       "http://h/?token=t",
		"s3://k:" + secret + "/x@h:9000/b":        "(a store URL that cannot be parsed)",
	} {
		if got := store.Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestStripPasswordLeavesItsArgument(t *testing.T) {
	u, err := url.Parse("s3://user:" + secret + "@h:9000/b")
	if err != nil {
		t.Fatal(err)
	}
	before := u.String()
	if got, want := store.StripPassword(u).String(), "s3://user@h:9000/b"; got != want {
		t.Errorf("StripPassword = %q, want %q", got, want)
	}
	if u.String() != before {
		t.Errorf("StripPassword changed its argument to %q", u)
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add("", "user", "h:9000/bucket?region=r")
	f.Add("00-7f=", "", "h")
	f.Add("FF-00=", "u", "[::1]:80/x%2Fy//z")
	f.Add("0-1=x", "a%zz", "h:port/#f")
	f.Fuzz(func(t *testing.T, before, user, after string) {
		if strings.Contains(before+user+after, secret) {
			return
		}
		for _, in := range []string{before, before + after, before + "s3://" + user + ":" + secret + "@" + after, before + "s3://" + user + ":" + secret + after, before + user + "://" + secret + "@" + after} {
			spec, err := store.ParseSpec(in)
			if err != nil {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("ParseSpec(%q): the error %q shows the password", in, err)
				}
				if strings.Contains(store.Redact(in), secret) {
					t.Errorf("Redact(%q) shows the password", in)
				}
				continue
			}
			if password, _ := spec.URL.User.Password(); password == secret && (strings.Contains(spec.Redacted(), secret) || strings.Contains(store.Redact(in), secret)) {
				t.Errorf("Redacted form of %q shows the password: %q, %q", in, spec.Redacted(), store.Redact(in))
			}
			again, err := store.ParseSpec(spec.String())
			if err != nil {
				t.Fatalf("ParseSpec(%q), the canonical form of %q = %v", spec, in, err)
			}
			if !reflect.DeepEqual(decoded(again), decoded(spec)) || again.String() != spec.String() {
				t.Errorf("ParseSpec(%q) = %#v, ParseSpec(%q) = %#v", spec, again.URL, in, spec.URL)
			}
		}
	})
}

// decoded is a Spec without the hint of how its path was spelled before.
func decoded(s store.Spec) store.Spec {
	u := *s.URL
	u.RawPath = ""
	s.URL = &u
	return s
}
