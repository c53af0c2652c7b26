package storetest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A zdbNamespace is a set of keys with its rules.
type zdbNamespace struct {
	name     string
	password string
	values   map[string]string
	next     uint32 // next key in sequential mode
	max      int    // bytes of values, 0 for no limit

	public, worm, sequential, locked, frozen, removed bool
}

func newZDBNamespace(name string) *zdbNamespace {
	return &zdbNamespace{name: name, values: map[string]string{}, public: true}
}

func (ns *zdbNamespace) size() (n int) {
	for _, v := range ns.values {
		n += len(v)
	}
	return n
}

// zdbCommands are in the server's order, because a request may shorten a command,
// and the first that fits is run. Without args any number will do.
var zdbCommands = []struct {
	name  string
	args  int // including the command, 0 for any number
	admin bool
	run   func(c *zdbSession, args []string) string
}{
	{"PING", 0, false, func(*zdbSession, []string) string { return "+PONG\r\n" }},
	{"AUTH", 2, false, (*zdbSession).auth},
	{"SET", 0, false, (*zdbSession).set},
	{"GET", 2, false, (*zdbSession).get},
	{"MGET", 0, false, (*zdbSession).mget},
	{"DEL", 2, false, (*zdbSession).del},
	{"EXISTS", 2, false, (*zdbSession).exists},
	{"CHECK", 2, false, (*zdbSession).check},
	{"LENGTH", 2, false, (*zdbSession).length},
	{"DBSIZE", 0, false, func(c *zdbSession, _ []string) string { return integer(len(c.ns.values)) }},
	{"NSNEW", 2, true, (*zdbSession).nsnew},
	{"NSDEL", 2, true, (*zdbSession).nsdel},
	{"NSLIST", 0, false, (*zdbSession).nslist},
	{"NSSET", 4, true, (*zdbSession).nsset},
	{"NSINFO", 2, false, (*zdbSession).nsinfo},
	{"SELECT", 0, false, (*zdbSession).enter},
}

// run runs a command, and reports whether the server hangs up after the answer.
func (c *zdbSession) run(args []string) (answer string, end bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.ns.removed {
		return failure("Your active namespace is not available anymore (probably removed)."), true
	}
	for _, cmd := range zdbCommands {
		if n := len(args[0]); n > len(cmd.name) || !strings.EqualFold(cmd.name[:n], args[0]) {
			continue
		}
		switch {
		case cmd.admin && !c.admin:
			return failure("Permission denied"), false
		case cmd.args > 0 && len(args) != cmd.args:
			return failure("Unexpected arguments"), false
		case cmd.args > 0 && slices.Contains(args, ""):
			return failure("Invalid argument"), false
		}
		return cmd.run(c, args), false
	}
	return failure("Command not supported"), false
}

const (
	zdbOK  = "+OK\r\n"
	zdbNil = "$-1\r\n"
)

func failure(text string) string { return "-" + text + "\r\n" }

func integer(n int) string { return fmt.Sprintf(":%d\r\n", n) }

func bulk(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }

func array(answers []string) string {
	return fmt.Sprintf("*%d\r\n%s", len(answers), strings.Join(answers, ""))
}

func (c *zdbSession) auth(args []string) string {
	if c.s.opts.Admin == "" || args[1] != c.s.opts.Admin {
		return failure("Access denied")
	}
	c.admin = true
	return zdbOK
}

// barred returns the answer for a namespace that lets nobody in for now.
func (c *zdbSession) barred(writes bool) string {
	switch {
	case c.ns.frozen:
		return failure("Namespace is temporarily frozen (read-write disabled)")
	case writes && c.ns.locked:
		return failure("Namespace is temporarily locked (read-only)")
	}
	return ""
}

func (c *zdbSession) set(args []string) string {
	if len(args) != 3 {
		return failure("Unexpected arguments")
	}
	key, value := args[1], args[2]
	switch {
	case len(key) > zdbMaxKey:
		return failure("Key too large")
	case !c.writable:
		return failure("Namespace is in read-only mode")
	case c.barred(true) != "":
		return c.barred(true)
	}
	old, exists := c.ns.values[key]
	switch {
	case exists && c.ns.worm:
		return failure("Namespace is protected by worm mode")
	case c.ns.max > 0 && c.ns.size()-len(old)+len(value) > c.ns.max:
		return failure("No space left on this namespace")
	case c.ns.sequential && key != "" && !exists:
		return failure("Invalid key, only update authorized")
	case !c.ns.sequential && key == "":
		return failure("Invalid argument, key needed")
	case exists && old == value:
		return zdbNil
	}
	if key == "" {
		n := c.ns.next
		c.ns.next++
		key = string([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	}
	c.ns.values[key] = value
	return bulk(key)
}

// find looks a key up for a command that reads.
func (c *zdbSession) find(key string, answer func(value string) string, missing string) string {
	if len(key) > zdbMaxKey {
		return failure("Invalid key")
	}
	if barred := c.barred(false); barred != "" {
		return barred
	}
	if value, ok := c.ns.values[key]; ok {
		return answer(value)
	}
	return missing
}

func (c *zdbSession) get(args []string) string { return c.find(args[1], bulk, zdbNil) }

func (c *zdbSession) mget(args []string) string {
	var values []string
	for _, key := range args[1:] {
		values = append(values, c.find(key, bulk, zdbNil))
	}
	return array(values)
}

func (c *zdbSession) exists(args []string) string {
	return c.find(args[1], func(string) string { return integer(1) }, integer(0))
}

func (c *zdbSession) check(args []string) string {
	return c.find(args[1], func(string) string { return integer(1) }, zdbNil)
}

func (c *zdbSession) length(args []string) string {
	return c.find(args[1], func(value string) string { return integer(len(value)) }, zdbNil)
}

func (c *zdbSession) del(args []string) string {
	_, exists := c.ns.values[args[1]]
	switch {
	case len(args[1]) > zdbMaxKey:
		return failure("Invalid key")
	case !c.writable:
		return failure("Namespace is in read-only mode")
	case c.barred(true) != "":
		return c.barred(true)
	case !exists:
		return failure("Key not found")
	case c.ns.worm:
		return failure("Cannot delete a key when namespace is in worm mode")
	}
	delete(c.ns.values, args[1])
	return zdbOK
}

func (c *zdbSession) enter(args []string) string {
	if len(args) < 2 {
		return failure("Invalid argument")
	}
	if len(args[1]) > zdbMaxNamespace {
		return failure("Namespace too long")
	}
	ns := c.s.namespaces[args[1]]
	if ns == nil {
		return failure("Namespace not found")
	}
	password := ns.password
	if ns.name == "default" && c.s.opts.Protect {
		password = c.s.opts.Admin
	}
	writable := true
	switch {
	case password == "":
	case len(args) < 3 && !ns.public:
		return failure("Namespace protected and private")
	case len(args) < 3:
		writable = false
	case len(args[2]) > zdbMaxKey:
		return failure("Password too long")
	case args[2] != password:
		return failure("Access denied")
	}
	c.ns, c.writable = ns, writable
	return zdbOK
}

func (c *zdbSession) nsnew(args []string) string {
	switch {
	case len(args[1]) > zdbMaxNamespace:
		return failure("Namespace too long")
	case c.s.namespaces[args[1]] != nil:
		return failure("This namespace is not available")
	}
	c.s.namespaces[args[1]] = newZDBNamespace(args[1])
	return zdbOK
}

func (c *zdbSession) nsdel(args []string) string {
	ns := c.s.namespaces[args[1]]
	switch {
	case args[1] == "default":
		return failure("Cannot remove default namespace")
	case ns == nil:
		return failure("This namespace doesn't exists")
	case ns == c.ns:
		return failure("Cannot remove namespace you're currently using.")
	}
	ns.removed = true
	delete(c.s.namespaces, args[1])
	return zdbOK
}

func (c *zdbSession) nslist([]string) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.s.namespaces)) {
		names = append(names, bulk(name))
	}
	return array(names)
}

func (c *zdbSession) nsset(args []string) string {
	ns, property, value := c.s.namespaces[args[1]], args[2], args[3]
	switch {
	case args[1] == "default" && property != "mode":
		return failure("Cannot update default namespace")
	case ns == nil:
		return failure("Namespace not found")
	}
	on := strings.HasPrefix(value, "1")
	switch property {
	case "maxsize":
		ns.max, _ = strconv.Atoi(value)
	case "password":
		ns.password = strings.TrimPrefix(value, "*") // a lone * is none
	case "public":
		ns.public = on
	case "worm":
		ns.worm = on
	case "lock":
		ns.locked = on
	case "freeze":
		ns.frozen = on
	case "mode":
		if len(ns.values) > 0 {
			return failure("Cannot change mode of used namespace")
		}
		if value != "user" && value != "seq" {
			return failure("Invalid property value (expected: user, seq)")
		}
		ns.sequential = value == "seq"
	default:
		return failure("Invalid property")
	}
	return zdbOK
}

func (c *zdbSession) nsinfo(args []string) string {
	ns := c.s.namespaces[args[1]]
	if ns == nil {
		return failure("Namespace not found")
	}
	yes := map[bool]string{false: "no", true: "yes"}
	mode := map[bool]string{false: "userkey", true: "sequential"}
	return bulk(fmt.Sprintf("# namespace\nname: %s\nentries: %d\npublic: %s\nworm: %s\nlocked: %s\npassword: %s\ndata_size_bytes: %d\ndata_limits_bytes: %d\nmode: %s\n",
		ns.name, len(ns.values), yes[ns.public], yes[ns.worm], yes[ns.locked], yes[ns.password != ""], ns.size(), ns.max, mode[ns.sequential]))
}
