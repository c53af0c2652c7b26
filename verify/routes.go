package verify

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"overmount/manifest"
	"overmount/store"
)

// RoutesOptions change what of routes is a finding. Nil and zero mean the
// defaults.
type RoutesOptions struct {
	// ForOthers says that other machines than those of this network will read
	// the manifest: then a place that only this machine or network has is an
	// error instead of a warning.
	ForOthers bool

	// Schemes are those that the readers of the manifest know. The default is
	// dir, http, https, s3, s3s and zdb.
	Schemes []string
}

// Routes checks what the routes of a manifest say, without asking anybody.
//
// Errors are a password or what looks like a token in a URL, a URL that cannot be
// parsed, and objects for which no store is named that readers know. A user
// without a password, an unknown scheme, a range of no bytes, and places that
// others cannot reach (directories, unix sockets, loopback and private addresses)
// are warnings. No finding shows the user, password or query of a URL.
func Routes(m *manifest.Manifest, o *RoutesOptions) []Finding {
	c := routeCheck{}
	if o != nil {
		c.RoutesOptions = *o
	}
	if c.Schemes == nil {
		c.Schemes = []string{"dir", "http", "https", "s3", "s3s", "zdb"}
	}
	for i, r := range m.Routes() {
		c.route(i, r)
	}
	c.coverage(m)
	return c.sorted()
}

// StoreName returns the URL of a store for people: without user, password, query
// and fragment. A text that cannot be parsed is not shown.
func StoreName(text string) string {
	spec, err := store.ParseSpec(text)
	if err != nil {
		return "(a store URL that cannot be parsed)"
	}
	u := *spec.URL
	u.User, u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = nil, "", false, "", ""
	if u.Scheme == nested {
		if i := strings.LastIndexByte(u.Path, '@'); i >= 0 {
			u.Path, u.RawPath = "//"+u.Path[i+1:], ""
		}
	}
	return u.String()
}

// nested is a scheme of rfs with another URL behind it, as in
// server://https://host:8080.
const nested = "server"

type routeCheck struct {
	findings
	RoutesOptions
	covered [256]bool // by stores that readers know
}

func (c *routeCheck) report(severity Severity, at, format string, args ...any) {
	c.findings = append(c.findings, Finding{Severity: severity, Check: "route", Store: at, Text: fmt.Sprintf(format, args...)})
}

func (c *routeCheck) route(i int, r manifest.Route) {
	spec, err := store.ParseSpec(r.URL)
	if err == nil && strings.Contains(r.URL[:strings.IndexByte(r.URL, ':')], "=") {
		err = fmt.Errorf("it begins with a range, which belongs into columns of its own")
	}
	if err != nil {
		c.report(Error, "", "route %d (%02x-%02x) names no store: %v", i+1, r.First, r.Last, err)
		return
	}
	name := StoreName(r.URL)
	if r.First > r.Last {
		c.report(Warning, name, "its range %02x-%02x ends before it begins, so that nobody looks there", r.First, r.Last)
	}
	c.secrets(name, spec.URL)
	if !slices.Contains(c.Schemes, spec.URL.Scheme) {
		c.report(Warning, name, "the scheme %q is not one of those that readers know: %s", spec.URL.Scheme, strings.Join(c.Schemes, ", "))
		return
	}
	c.place(name, spec.URL)
	for b := int(r.First); b <= int(r.Last); b++ {
		c.covered[b] = true
	}
}

// secrets looks for what lets others write, or read what they should not.
func (c *routeCheck) secrets(name string, u *url.URL) {
	if inner, err := url.Parse(strings.TrimPrefix(u.String(), nested+"://")); err == nil && u.Scheme == nested && inner.User != nil {
		c.secrets(name, &url.URL{User: inner.User})
	}
	password, has := u.User.Password()
	switch {
	case has && password != "":
		c.report(Error, name, "the URL has a password, which everyone sees who gets the manifest")
	case u.User.Username() != "":
		c.report(Warning, name, "the URL has a user name or key id; readers need none")
	}
	for _, key := range queryKeys(u.RawQuery) {
		if secretParameter(key) {
			c.report(Error, name, "the URL has a parameter %.40q, which looks like a secret and which everyone sees who gets the manifest", key)
		}
	}
}

// queryKeys returns the names of the parameters that have a value.
func queryKeys(query string) []string {
	var keys []string
	for _, part := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
		key, value, _ := strings.Cut(part, "=")
		if plain, err := url.QueryUnescape(key); err == nil {
			key = plain
		}
		if value != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// secretParameter goes by the names that signed URLs and web services use.
func secretParameter(key string) bool {
	key = strings.ToLower(key)
	switch key {
	case "key", "sig", "pass", "pwd", "auth", "session", "jwt":
		return true
	}
	for _, part := range []string{"token", "secret", "passw", "signature", "credential", "apikey", "api_key", "api-key", "accesskey", "access_key", "authorization"} {
		if strings.Contains(key, part) {
			return true
		}
	}
	return false
}

// place tells of what not everyone can reach, and who can listen.
func (c *routeCheck) place(name string, u *url.URL) {
	severity := Warning
	if c.ForOthers {
		severity = Error
	}
	host := u.Hostname()
	switch {
	case u.Scheme == "dir":
		c.report(severity, name, "it is a directory, which other machines do not have under this name")
	case host == "":
		c.report(severity, name, "it is a socket of this machine")
	case localHost(host):
		c.report(severity, name, "the host is one that only this machine or network knows")
	}
	if u.Scheme == "http" || u.Scheme == "s3" {
		c.report(Info, name, "the way to it is not encrypted: content cannot be read or changed on it, but who listens sees what is fetched")
	}
}

// localHost reports whether a host is not for everyone: a private or local
// address, or a name that the public DNS does not have.
func localHost(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap()
		shared := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10) // RFC 6598
		return addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsUnspecified() ||
			addr.IsMulticast() || shared.Contains(addr)
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if !strings.Contains(name, ".") {
		return true // localhost, and what a search domain completes
	}
	for _, suffix := range []string{".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// coverage looks for bytes without a store.
func (c *routeCheck) coverage(m *manifest.Manifest) {
	var objects [256]int
	for _, ref := range m.AllBlocks() {
		if _, carried := m.Object(ref.ID); !carried {
			objects[ref.ID[0]]++
		}
	}
	for first := 0; first < 256; first++ {
		if c.covered[first] {
			continue
		}
		last, blocks := first, 0
		for ; last < 256 && !c.covered[last]; last++ {
			blocks += objects[last]
		}
		last--
		if blocks > 0 {
			c.report(Error, "", "there is no store for objects that begin with %02x to %02x, which %d blocks of files need", first, last, blocks)
		} else {
			c.report(Info, "", "there is no store for objects that begin with %02x to %02x, and no file needs one", first, last)
		}
		first = last
	}
}
