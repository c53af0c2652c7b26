package zdbstore

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"strings"
)

const (
	defaultPort      = "9900"
	defaultNamespace = "default"
	maxNamespace     = 128 // bytes
	maxPassword      = 255 // bytes
)

// An address is what a URL says.
type address struct {
	network, addr string // for net.Dial
	namespace     string
	password      string
	name          string // for people: no user or password
	example       string // name, with a place for a password
}

func parse(u *url.URL) (address, error) {
	a, err := parts(u)
	if err != nil {
		return address{}, fmt.Errorf("zdb store %s: %w", display(u, nil), err)
	}
	a.password, _ = u.User.Password()
	a.name, a.example = display(u, nil), display(u, url.UserPassword("", "PASSWORD"))
	switch {
	case len(a.namespace) > maxNamespace:
		err = fmt.Errorf("the namespace has %d bytes, over the limit of %d", len(a.namespace), maxNamespace)
	case strings.Contains(a.namespace, "/"):
		err = errors.New("the namespace has a / in it")
	case len(a.password) > maxPassword:
		err = fmt.Errorf("the password has %d bytes, over the limit of %d", len(a.password), maxPassword)
	}
	if err != nil {
		return address{}, fmt.Errorf("zdb store %s: %w", a.name, err)
	}
	return a, nil
}

// parts takes a URL apart into where to connect and the namespace.
func parts(u *url.URL) (a address, err error) {
	if u.Scheme != "zdb" {
		return a, fmt.Errorf("scheme is %q, want zdb", u.Scheme)
	}
	a.namespace = defaultNamespace
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return a, errors.New("its query cannot be parsed")
	}
	for key, values := range query {
		if key != "namespace" || u.Host != "" || len(values) != 1 || values[0] == "" {
			return a, errors.New("its query may only be ?namespace=NAME, for a socket; a password stands before an @")
		}
		a.namespace = values[0]
	}
	if u.Host == "" {
		if a.network, a.addr = "unix", path.Clean(u.Path); !path.IsAbs(a.addr) || a.addr == "/" {
			return a, errors.New("it has neither a host nor the path of a socket")
		}
		return a, nil
	}
	if u.Hostname() == "" {
		return a, errors.New("it has no host")
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	a.network, a.addr = "tcp", net.JoinHostPort(u.Hostname(), port)
	if u.Path != "" {
		if a.namespace = strings.TrimPrefix(u.Path, "/"); a.namespace == "" {
			return a, errors.New("a / at the end asks for a namespace without a name: leave it out")
		}
	}
	return a, nil
}

// display returns a URL with another user and without its query, but for the
// namespace.
func display(u *url.URL, user *url.Userinfo) string {
	d := *u
	d.User, d.RawQuery, d.ForceQuery, d.Fragment, d.RawFragment = user, "", false, "", ""
	if namespace := u.Query().Get("namespace"); namespace != "" {
		d.RawQuery = url.Values{"namespace": {namespace}}.Encode()
	}
	return d.String()
}
