package cli

import (
	"context"
	"crypto/x509"
	"net"
	"os"
	"strings"
	"sync"
)

// outliveRoot has the program go on when the root directory that it started in is
// emptied, as that of an initramfs is: it keeps the name servers, and reads the
// certificates of authorities now. There is only one resolver and one set of these
// authorities in a process.
func (f *initrdFlag) outliveRoot() {
	if f.argv0() != spared {
		return
	}
	k := &nameServers{file: "/etc/resolv.conf", dial: new(net.Dialer).DialContext}
	if net.DefaultResolver.Dial != nil {
		k.dial = net.DefaultResolver.Dial
	}
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: k.Dial}
	_, _ = x509.SystemCertPool() // without any, connections will say so
}

// nameServers remembers those of resolv.conf(5) for the time when that is gone. Go's
// resolver reads it again and again, and without it asks this machine.
type nameServers struct {
	file string
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex
	last []string // addresses with ports
	next int
}

// Dial is for net.Resolver.
func (k *nameServers) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return k.dial(ctx, network, k.choose(address))
}

// choose returns the address to ask in place of one that Go's resolver has chosen:
// that, as long as there is a file, and then each of the last ones in turn.
func (k *nameServers) choose(address string) string {
	text, err := readLimited(k.file, 64<<10)
	k.mu.Lock()
	defer k.mu.Unlock()
	if servers := serversIn(string(text)); err == nil && len(servers) > 0 {
		k.last, k.next = servers, 0
		return address
	}
	if len(k.last) == 0 || !os.IsNotExist(err) {
		return address
	}
	k.next++
	return k.last[(k.next-1)%len(k.last)]
}

// serversIn returns the name servers in a resolv.conf.
func serversIn(text string) (servers []string) {
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "nameserver" {
			servers = append(servers, net.JoinHostPort(words[1], "53"))
		}
	}
	return servers
}
