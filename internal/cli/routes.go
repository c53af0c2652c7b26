package cli

import (
	"fmt"
	"net/url"

	"overmount/manifest"
	"overmount/store"
)

// What manifests are made to say of stores.

// givenRoutes returns what a manifest shall say of stores that were given.
func givenRoutes(specs []string, keepPassword bool) ([]manifest.Route, error) {
	var routes []manifest.Route
	for _, text := range specs {
		spec, err := parseSpec(text)
		if err != nil {
			return nil, err
		}
		routes = append(routes, routeTo(spec, keepPassword))
	}
	return routes, nil
}

// routeTo returns what a manifest is made to say of one store.
func routeTo(spec store.Spec, keepPassword bool) manifest.Route {
	return manifest.Route{First: spec.First, Last: spec.Last, URL: writtenURL(spec.URL, keepPassword)}
}

// writtenURL is what a manifest is made to say of a store.
func writtenURL(u *url.URL, keepPassword bool) string {
	if keepPassword {
		return u.String()
	}
	return withoutSecrets(u).String()
}

// routesOf returns stores as a manifest names them, with all that is in their URLs.
func routesOf(specs []store.Spec) []manifest.Route {
	var routes []manifest.Route
	for _, spec := range specs {
		routes = append(routes, routeTo(spec, true))
	}
	return routes
}

// withoutSecrets returns what a manifest may say of a store. Of S3 that is neither
// secret nor key: without the one the other is of no use.
func withoutSecrets(u *url.URL) *url.URL {
	if u.Scheme != "s3" && u.Scheme != "s3s" {
		return store.StripPassword(u)
	}
	stripped := *u
	stripped.User = nil
	return &stripped
}

// covered checks that every object has a store.
func covered(routes []manifest.Route) error {
	var has [256]bool
	for _, r := range routes {
		for b := int(r.First); b <= int(r.Last); b++ {
			has[b] = true
		}
	}
	for b, ok := range has {
		if !ok {
			return fmt.Errorf("no store is given for objects that begin with %02x: add one, or widen a range", b)
		}
	}
	return nil
}

// noStripPassword is the help of the flag of that name.
const noStripPassword = "write passwords and keys of store URLs into the manifest, for everyone who gets it to read"

// warnPasswords says what --no-strip-password does.
func (a *app) warnPasswords() {
	a.warnf("--no-strip-password: the manifest will hold the passwords and keys of the stores that were given, and everyone who gets it can read them")
}
