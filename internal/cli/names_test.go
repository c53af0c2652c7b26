package cli

import (
	"bytes"
	"encoding/binary"
	"net"
	"sync"
	"testing"
)

// names is a name server on the loopback.
type names struct {
	conn net.PacketConn

	mu    sync.Mutex
	addrs map[string]net.IP // nil: the question gets no answer
}

// newNames starts a name server. It knows no name, and says so.
func newNames(t *testing.T) *names {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &names{conn: conn, addrs: map[string]net.IP{}}
	var running sync.WaitGroup
	running.Go(n.serve)
	t.Cleanup(func() {
		conn.Close()
		running.Wait()
	})
	return n
}

// set gives a name an address, or nil: then who asks waits in vain.
func (n *names) set(name string, ip net.IP) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs[name] = ip
}

func (n *names) serve() {
	buf := make([]byte, 1500)
	for {
		m, from, err := n.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer := n.answer(buf[:m]); answer != nil {
			n.conn.WriteTo(answer, from)
		}
	}
}

// answer answers a question as RFC 1035 has it, section 4.1; nil is no answer.
func (n *names) answer(query []byte) []byte {
	if len(query) < 12 {
		return nil
	}
	var name []byte
	rest := query[12:]
	for len(rest) > 0 && rest[0] != 0 && len(rest) > int(rest[0]) {
		name = append(append(name, rest[1:1+rest[0]]...), '.')
		rest = rest[1+rest[0]:]
	}
	if len(rest) < 5 {
		return nil
	}
	const typeA = 1
	isA := binary.BigEndian.Uint16(rest[1:]) == typeA
	n.mu.Lock()
	ip, known := n.addrs[string(bytes.TrimSuffix(name, []byte(".")))]
	n.mu.Unlock()
	answer := bytes.Clone(query[:len(query)-len(rest)+5])
	copy(answer[2:], []byte{0x80 | query[2], 0x80, 0, 1, 0, 0, 0, 0, 0, 0}) // one question, no answers
	switch {
	case !known:
		answer[3] |= 3 // no such name
	case ip == nil:
		return nil
	case isA:
		answer[7] = 1
		answer = append(answer, 0xc0, 12, 0, typeA, 0, 1, 0, 0, 0, 0, 0, 4) // the name asked for, class IN, 0 s
		answer = append(answer, ip.To4()...)
	}
	return answer
}
