package cli

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// When the initramfs is gone, and resolv.conf with it, its last servers are asked.
func TestNameServersOutliveTheirFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	var asked []string
	k := &nameServers{file: file, dial: func(_ context.Context, _, address string) (net.Conn, error) {
		asked = append(asked, address)
		return nil, errors.New("nobody is asked")
	}}
	r := &net.Resolver{PreferGo: true, Dial: k.Dial}
	ask := func(n int) []string {
		asked = nil
		for range n {
			if _, err := r.Dial(t.Context(), "udp", "192.0.2.99:53"); err == nil {
				t.Fatal("a question was answered")
			}
		}
		return asked
	}
	if got, want := ask(1), []string{"192.0.2.99:53"}; !slices.Equal(got, want) {
		t.Errorf("before there are servers %q is asked, want %q", got, want)
	}
	text := "# by DHCP\nsearch example.com\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\nnameserver\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := ask(1), []string{"192.0.2.99:53"}; !slices.Equal(got, want) {
		t.Errorf("with the file %q is asked, want what Go chose, %q", got, want)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got, want := ask(3), []string{"192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.1:53"}; !slices.Equal(got, want) {
		t.Errorf("without the file %q are asked, want %q", got, want)
	}
}
