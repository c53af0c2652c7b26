package origin

import (
	"errors"
	"net/url"
	"path"
	"path/filepath"
	"strings"

	"overmount/signature"
	"overmount/store"
)

// IsURL reports whether a place is fetched.
func IsURL(place string) bool {
	return strings.HasPrefix(place, "http://") || strings.HasPrefix(place, "https://")
}

// Compressed reports whether what is at a place is a compressed copy of a manifest.
func Compressed(place string) bool { return Plain(place) != place }

// Plain returns the place of the manifest itself, given that of a compressed copy,
// and any other place as it is.
func Plain(place string) string {
	if !IsURL(place) {
		return strings.TrimSuffix(place, Suffix)
	}
	u, err := parse(place)
	if err != nil || !strings.HasSuffix(u.Path, Suffix) {
		return place
	}
	u.Path = strings.TrimSuffix(u.Path, Suffix)
	u.RawPath = strings.TrimSuffix(u.RawPath, Suffix)
	return u.String()
}

// Name returns the name of a manifest among those that are kept: without the suffix
// of a compressed copy.
func Name(place string) (string, error) {
	if !IsURL(place) {
		return filepath.Base(Plain(place)), nil
	}
	u, err := parse(Plain(place))
	if err != nil {
		return "", err
	}
	name := path.Base(u.Path)
	if name == "/" || name == "." || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00") {
		return "", errors.New("the URL does not end in a file's name")
	}
	return name, nil
}

// signatureOf returns the place of the signature of what is at a place.
func signatureOf(place string) (string, error) {
	place = Plain(place)
	if !IsURL(place) {
		return place + signature.Suffix, nil
	}
	u, err := parse(place)
	if err != nil {
		return "", err
	}
	u.Path += signature.Suffix
	if u.RawPath != "" {
		u.RawPath += signature.Suffix
	}
	return u.String(), nil
}

// parse is url.Parse, whose errors would repeat a password.
func parse(place string) (*url.URL, error) {
	if _, err := store.ParseSpec(place); err != nil {
		return nil, err
	}
	u, err := url.Parse(place)
	if err != nil {
		return nil, errors.New("the URL cannot be parsed")
	}
	return u, nil
}

// Shown is a place for people: a URL without user, password and query.
func Shown(place string) string {
	if !IsURL(place) {
		return place
	}
	u, err := parse(place)
	if err != nil {
		return "(a URL that cannot be parsed)"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}
