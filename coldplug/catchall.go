package coldplug

import "strings"

// deviceFields are the fields of the patterns of a bus that say which device it is,
// as scripts/mod/file2alias.c of Linux writes them.
var deviceFields = map[string]string{
	"pci": "d", "usb": "p", "hid": "p", "input": "p", "sdio": "d",
	"ieee1394": "mo", "ssb": "id", "bcma": "id", "rapidio": "did",
}

// isCatchAll reports whether a pattern leaves open which device of a bus it is, and
// so is for all devices of a vendor or a class. Buses without numbers for devices
// have no such patterns.
func isCatchAll(pattern string) bool {
	bus, fields, ok := strings.Cut(pattern, ":")
	if !ok {
		return false
	}
	want := deviceFields[bus]
	for want != "" && fields != "" {
		key := fields[:len(fields)-len(strings.TrimLeft(fields, "abcdefghijklmnopqrstuvwxyz"))]
		value := fields[len(key):]
		if key == want {
			return strings.HasPrefix(value, "*")
		}
		end := strings.IndexAny(value, "abcdefghijklmnopqrstuvwxyz")
		if end < 0 {
			break
		}
		fields = value[end:]
	}
	return false
}
