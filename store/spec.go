package store

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// A Spec is a store as users and manifests write it: a URL, and the first bytes of
// the IDs that it is meant for.
type Spec struct {
	First, Last byte // both included
	URL         *url.URL
}

// ParseSpec reads [xx-yy=]URL, where xx and yy are two hex digits of either case.
// Without them the range is 00-ff. The URL needs a scheme and //; which schemes
// there are is not ParseSpec's business.
//
// No error repeats any part of the URL but its scheme: a password with a / in it
// may end up in any other part.
func ParseSpec(s string) (Spec, error) {
	spec := Spec{First: 0x00, Last: 0xff}
	rest := s
	if bytes, after, ok := strings.Cut(s, "="); ok && !strings.ContainsAny(bytes, ":/?#@") {
		rest = after
		var err error
		if spec.First, spec.Last, err = parseRange(bytes); err != nil {
			return Spec{}, err
		}
	}
	u, err := parseURL(rest)
	if err != nil {
		return Spec{}, err
	}
	spec.URL = u
	return spec, nil
}

func parseRange(s string) (first, last byte, err error) {
	var b [2]byte
	ok := len(s) == len("xx-yy") && s[2] == '-'
	if ok {
		_, err := hex.Decode(b[:], []byte(s[:2]+s[3:]))
		ok = err == nil
	}
	switch {
	case !ok:
		return 0, 0, fmt.Errorf("store range %.20q: want two hex bytes, as in 00-7f", s)
	case b[0] > b[1]:
		return 0, 0, fmt.Errorf("store range %q: it ends before it begins", s)
	}
	return b[0], b[1], nil
}

func parseURL(s string) (*url.URL, error) {
	scheme, _, ok := strings.Cut(s, "://")
	if !ok || !isScheme(scheme) {
		return nil, errors.New("store URL has no scheme: want one as in dir:///srv/objects or https://host/path")
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("store URL %s://… cannot be parsed: in user and password write / as %%2F, # as %%23, %% as %%25; a port is a number", scheme)
	}
	if u.Fragment != "" || strings.Contains(s, "#") {
		return nil, fmt.Errorf("store URL %s://… has a #, which would cut it off: write %%23", scheme)
	}
	if u.Host == "" && u.Path == "" {
		return nil, fmt.Errorf("store URL %s:// names no place", scheme)
	}
	return u, nil
}

// isScheme is the rule of RFC 3986, section 3.1.
func isScheme(s string) bool {
	for i, c := range []byte(s) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || !strings.ContainsRune("0123456789+-.", rune(c))) {
			return false
		}
	}
	return s != ""
}

// String returns the form that ParseSpec reads: the range in lower case, as rfs
// wants it, and only where it is not 00-ff. It has the password, if there is one;
// see Redacted.
func (s Spec) String() string { return s.prefix() + s.URL.String() }

// Redacted is String without the password.
func (s Spec) Redacted() string { return s.prefix() + StripPassword(s.URL).String() }

func (s Spec) prefix() string {
	if s.First == 0x00 && s.Last == 0xff {
		return ""
	}
	return fmt.Sprintf("%02x-%02x=", s.First, s.Last)
}

// StripPassword returns u without its password, as rfs does before it writes a
// route: the user stays; without a user name the @ goes too. It does not modify
// u, and returns u itself if there is no password.
func StripPassword(u *url.URL) *url.URL {
	if _, has := u.User.Password(); !has {
		return u
	}
	stripped := *u
	stripped.User = nil
	if name := u.User.Username(); name != "" {
		stripped.User = url.User(name)
	}
	return &stripped
}

// Redact returns the URL or Spec s without its password, for people to read. What
// cannot be parsed is not shown. A token in the query stays: rfs knows only
// passwords.
func Redact(s string) string {
	spec, err := ParseSpec(s)
	if err != nil {
		return "(a store URL that cannot be parsed)"
	}
	if _, has := spec.URL.User.Password(); !has {
		return s
	}
	return spec.Redacted()
}
