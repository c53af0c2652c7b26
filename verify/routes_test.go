package verify

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/manifest"
	"overmount/store"
	"overmount/tree/treetest"
)

// routed returns a manifest with routes, and a file with one object for each of
// the given first bytes.
func routed(t *testing.T, first []byte, routes ...manifest.Route) *manifest.Manifest {
	t.Helper()
	var files []manifest.Entry
	for i, want := range first {
		for seed := uint64(0); ; seed++ {
			ref := treetest.Put(t, &store.Mem{}, block.Zstd, treetest.Random(seed, 100))
			if ref.ID[0] == want {
				files = append(files, manifest.Entry{
					Path: fmt.Sprint("f", i), Attr: manifest.Attr{Mode: unix.S_IFREG | 0o644, Size: 100}, Blocks: []block.Ref{ref},
				})
				break
			}
		}
	}
	return create(t, routes, files...)
}

func routeLines(m *manifest.Manifest, o *RoutesOptions) []string {
	list := []string{}
	for _, f := range Routes(m, o) {
		list = append(list, f.String())
	}
	return list
}

func TestRoutes(t *testing.T) {
	const secret = "hunter2"
	for _, c := range []struct {
		url       string
		want      []string // beginnings, of all findings; the name stands for {}
		name      string
		forOthers []string // what is an error then
	}{
		{url: "https://web.example.com/bucket"},
		{url: "https://web.example.com/bucket?region=garage&layout=flat&X-Id=GetObject&token="},
		{url: "s3s://s3.example.com:3900/bucket?region=garage"},
		{url: "zdb://203.0.113.5:9900/ns"},
		{url: "https://[2001:db8::1]/x"},
		{
			url: "http://web.example.com", want: []string{"info: route: {}: the way to it is not encrypted"},
		}, {
			url: "https://user:" + secret + "@web.example.com/b", name: "https://web.example.com/b",
			want: []string{"error: route: {}: the URL has a password"},
		}, {
			url: "s3s://KEY:" + secret + "@s3.example.com:3900/b", name: "s3s://s3.example.com:3900/b",
			want: []string{"error: route: {}: the URL has a password"},
		}, {
			url: "zdb://:" + secret + "@zdb.example.com/ns", name: "zdb://zdb.example.com/ns",
			want: []string{"error: route: {}: the URL has a password"},
		}, {
			url: "https://" + secret + "@web.example.com", name: "https://web.example.com",
			want: []string{"warning: route: {}: the URL has a user name"},
		}, {
			url: "https://user:@web.example.com", name: "https://web.example.com",
			want: []string{"warning: route: {}: the URL has a user name"},
		}, {
			url: "https://web.example.com/b?a=b&token=" + secret, name: "https://web.example.com/b",
			want: []string{`error: route: {}: the URL has a parameter "token", which looks like a secret`},
		}, {
			url: "https://web.example.com/b?X-Amz-Credential=K&X-Amz-Signature=" + secret + ";%6bey=" + secret, name: "https://web.example.com/b",
			want: []string{`error: route: {}: the URL has a parameter "X-Amz-Credential"`, `error: route: {}: the URL has a parameter "X-Amz-Signature"`, `error: route: {}: the URL has a parameter "key"`},
		}, {
			url: "server://https://u:" + secret + "@hub.example.com?token=" + secret, name: "server://https://hub.example.com",
			want: []string{
				"error: route: {}: the URL has a password", `error: route: {}: the URL has a parameter "token"`,
				"error: route: there is no store for objects that begin with 00 to ff", `warning: route: {}: the scheme "server" is not one`,
			},
		}, {
			url: "ftp://web.example.com/x", want: []string{"error: route: there is no store for objects", `warning: route: {}: the scheme "ftp"`},
		}, {
			url: "https:/" + secret, name: "-", want: []string{"error: route: route 1 (00-ff) names no store: ", "error: route: there is no store"},
		}, {
			url: "https://u:" + secret + "/x@host/", name: "-", want: []string{"error: route: route 1 (00-ff) names no store: ", "error: route: there is no store"},
		}, {
			url: "00-7f=https://web.example.com", name: "-", want: []string{"error: route: route 1 (00-ff) names no store: it begins with a range", "error: route: there is no store"},
		},
		{url: "dir:///srv/objects", want: []string{"warning: route: {}: it is a directory"}, forOthers: []string{"it is a directory"}},
		{url: "zdb:///run/zdb.sock", want: []string{"warning: route: {}: it is a socket"}, forOthers: []string{"it is a socket"}},
		{url: "https://10.1.2.3/x", want: []string{"warning: route: {}: the host is one"}, forOthers: []string{"the host is one"}},
		{url: "https://garage.internal:3902", want: []string{"warning: route: {}: the host is one"}, forOthers: []string{"the host is one"}},
	} {
		if c.name == "" {
			c.name = c.url
			if strings.Contains(c.url, "?") {
				c.name = c.url[:strings.Index(c.url, "?")]
			}
		}
		m := routed(t, []byte{0x07}, manifest.Route{First: 0x00, Last: 0xff, URL: c.url})
		got := routeLines(m, nil)
		if len(got) != len(c.want) {
			t.Errorf("Routes of %q = %q, want %d findings", c.url, got, len(c.want))
			continue
		}
		for i, line := range got {
			if want := strings.ReplaceAll(c.want[i], "{}", c.name); !strings.HasPrefix(line, want) {
				t.Errorf("Routes of %q: finding %q, want it to begin with %q", c.url, line, want)
			}
			if strings.Contains(line, secret) {
				t.Errorf("Routes of %q shows a secret: %s", c.url, line)
			}
		}
		for _, want := range c.forOthers {
			got := routeLines(m, &RoutesOptions{ForOthers: true})
			if !strings.HasPrefix(got[0], "error: route: "+c.name+": "+want) {
				t.Errorf("Routes of %q for others = %q, want it an error", c.url, got)
			}
		}
	}
}

func TestRoutesCoverage(t *testing.T) {
	web := func(first, last byte) manifest.Route {
		return manifest.Route{First: first, Last: last, URL: "https://web.example.com"}
	}
	for _, c := range []struct {
		name   string
		first  []byte
		routes []manifest.Route
		want   []string
	}{
		{"all", []byte{0, 255}, []manifest.Route{web(0, 127), web(100, 255)}, nil},
		{"a gap", []byte{0, 128, 129}, []manifest.Route{web(0, 127), web(130, 255)}, []string{
			"error: route: there is no store for objects that begin with 80 to 81, which 2 blocks of files need"}},
		{"a gap without objects", []byte{0}, []manifest.Route{web(0, 254)}, []string{
			"info: route: there is no store for objects that begin with ff to ff, and no file needs one"}},
		{"turned round", []byte{5}, []manifest.Route{web(9, 3)}, []string{
			"error: route: there is no store for objects that begin with 00 to ff, which 1 blocks of files need",
			"warning: route: https://web.example.com: its range 09-03 ends before it begins, so that nobody looks there"}},
		{"no route", []byte{5}, nil, []string{
			"error: route: there is no store for objects that begin with 00 to ff, which 1 blocks of files need"}},
		{"no file", nil, nil, []string{
			"info: route: there is no store for objects that begin with 00 to ff, and no file needs one"}},
		{"behind an unknown scheme", []byte{200}, []manifest.Route{web(0, 127), {First: 128, Last: 255, URL: "ftp://example.com"}}, []string{
			"error: route: there is no store for objects that begin with 80 to ff, which 1 blocks of files need",
			`warning: route: ftp://example.com: the scheme "ftp" is not one of those that readers know: dir, http, https, s3, s3s, zdb`}},
		{"beside an unknown scheme", []byte{200}, []manifest.Route{web(0, 255), {First: 128, Last: 255, URL: "ftp://example.com"}}, []string{
			`warning: route: ftp://example.com: the scheme "ftp" is not one of those that readers know: dir, http, https, s3, s3s, zdb`}},
	} {
		got := routeLines(routed(t, c.first, c.routes...), nil)
		if diff := cmp.Diff(append([]string{}, c.want...), got); diff != "" {
			t.Errorf("%s: findings differ (-want +got):\n%s", c.name, diff)
		}
	}
	if got := routeLines(routed(t, []byte{1}, manifest.Route{Last: 255, URL: "ftp://example.com"}), &RoutesOptions{Schemes: []string{"ftp"}}); len(got) > 0 {
		t.Errorf("findings %q where readers know the scheme, want none", got)
	}
}

// A block that the manifest carries needs no store.
func TestRoutesOfACarriedTree(t *testing.T) {
	m, _ := treetest.Build(t, block.Zstd, treetest.File{Path: "index", Data: []byte("text"), Inline: true})
	got := Routes(m, nil)
	if len(got) != 1 || got[0].Severity != Info {
		t.Errorf("Routes = %v, want information alone", got)
	}
}

func TestLocalHost(t *testing.T) {
	for _, host := range []string{
		"127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.0.1",
		"100.64.0.1", "fe80::1", "fe80::1%eth0", "fd00::1", "::ffff:192.168.0.1", "::ffff:100.64.0.1", "224.0.0.1",
		"localhost", "LOCALHOST", "garage", "localhost.", "a.localhost", "nas.local", "nas.local.", "x.internal", "X.Internal", "nas.lan", "a.home.arpa", "a.test",
	} {
		if !localHost(host) {
			t.Errorf("localHost(%q) = false, want true", host)
		}
	}
	for _, host := range []string{
		"8.8.8.8", "172.32.0.1", "172.15.0.1", "192.169.0.1", "100.63.0.1", "100.128.0.1", "2001:4860:4860::8888", "::ffff:8.8.8.8",
		"example.com", "example.com.", "local.example.com", "internal.example", "notlocal.net", "10.0.0.1.example.com",
	} {
		if localHost(host) {
			t.Errorf("localHost(%q) = true, want false", host)
		}
	}
}

func TestSecretParameters(t *testing.T) {
	for _, key := range []string{"token", "access_token", "X-Amz-Signature", "X-Amz-Security-Token", "AWSAccessKeyId", "X-Goog-Credential", "sig", "apiKey", "Password", "client_secret"} {
		if got := queryKeys("a=b&" + url.QueryEscape(key) + "=v"); !slices.Equal(got, []string{"a", key}) || !secretParameter(key) {
			t.Errorf("parameter %q: keys %q, secretParameter = %v, want true", key, got, secretParameter(key))
		}
	}
	for _, key := range []string{"region", "layout", "prefix", "versionId", "x-id", "keyboard", "design", "author"} {
		if secretParameter(key) {
			t.Errorf("secretParameter(%q) = true, want false", key)
		}
	}
}

func TestStoreName(t *testing.T) {
	for text, want := range map[string]string{
		"https://u:p@h.example/a b?token=x": "https://h.example/a%20b",
		"s3://K:S@h:9000/b?region=r":        "s3://h:9000/b",
		"dir:///srv/objects":                "dir:///srv/objects",
		"00-7f=https://u:p@h/":              "https://h/",
		"server://http://u:p@h:80/x":        "server://http://h:80/x",
		"server://http://h:80/x":            "server://http://h:80/x",
		"not a URL with p4ss":               "(a store URL that cannot be parsed)",
	} {
		if got := StoreName(text); got != want {
			t.Errorf("StoreName(%q) = %q, want %q", text, got, want)
		}
	}
}
