// Package notify tells a service manager how a service fares, by the protocol of
// sd_notify(3): datagrams of lines NAME=VALUE to the socket that the environment
// variable NOTIFY_SOCKET names. systemd makes that for units of Type=notify;
// others, such as podman and s6, understand it too.
package notify

import (
	"fmt"
	"net"
	"strings"
	"time"
)

// Variable is the environment variable that names the socket.
const Variable = "NOTIFY_SOCKET"

// patience is how long a manager that does not read its socket is waited for.
const patience = 5 * time.Second

// A Manager is told how the service fares. The zero Manager is nobody, and all
// that is said to it is lost without an error.
type Manager struct{ socket string }

// FromEnv returns the manager that the environment names.
func FromEnv(getenv func(string) string) Manager { return Manager{getenv(Variable)} }

// Ready says that the service does what it is there for. The status is for
// people, one line; see Status.
func (m Manager) Ready(status string) error { return m.send("READY=1\nSTATUS=" + line(status)) }

// Status says in a line what the service does now. Line breaks become spaces, so
// that no part of it can pass for another message.
func (m Manager) Status(status string) error { return m.send("STATUS=" + line(status)) }

// Stopping says that the service is about to end.
func (m Manager) Stopping() error { return m.send("STOPPING=1") }

func line(s string) string { return strings.NewReplacer("\n", " ", "\r", " ").Replace(s) }

// send sends one datagram. A socket is a path, or after "@" a name in the
// kernel's abstract namespace: net takes both as they are.
func (m Manager) send(message string) error {
	if m.socket == "" {
		return nil
	}
	if m.socket[0] != '/' && m.socket[0] != '@' {
		return fmt.Errorf("%s=%q is neither a path nor a name that begins with @", Variable, m.socket)
	}
	if err := m.sendTo(message); err != nil {
		return fmt.Errorf("tell the service manager at %s: %w", m.socket, err)
	}
	return nil
}

func (m Manager) sendTo(message string) error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err = c.Write([]byte(message))
	return err
}
