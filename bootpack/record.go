package bootpack

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// An Access is the first reading of one block of a file, as a mount saw it.
type Access struct {
	Path   string        // from the root of the tree, slash-separated
	Block  int           // which block of the file
	Bytes  int64         // how much of it was asked for, also by later reads
	Waited time.Duration // how long the first reader waited
	Hit    bool          // prefetch had fetched it before
}

// A record file is lines of JSON: a head, then one access a line, in order.
type (
	head struct {
		Overmount string `json:"overmount"` // always recordFormat
		Class     string `json:"class"`     // of the hardware
	}
	line struct {
		Path   string `json:"path"`
		Block  int    `json:"block"`
		Bytes  int64  `json:"bytes"`
		Waited int64  `json:"waited_us"`
		Hit    bool   `json:"hit"`
	}
)

const (
	recordFormat = "record 1"
	maxPath      = 4096 // bytes, as in Linux
	// maxLine is the length of the longest line of a record, in bytes: a path of
	// the bytes that JSON spells longest, and the rest.
	maxLine   = 6*maxPath + 512
	maxWaited = 1e12 // microseconds: some days
)

// WriteRecord writes a record of a machine of that [Class]: a line of JSON for each
// access, after one that says what it is.
func WriteRecord(w io.Writer, class string, accesses []Access) error {
	out := json.NewEncoder(w)
	if err := out.Encode(head{recordFormat, class}); err != nil {
		return err
	}
	for _, a := range accesses {
		if err := out.Encode(line{a.Path, a.Block, a.Bytes, a.Waited.Microseconds(), a.Hit}); err != nil {
			return err
		}
	}
	return nil
}

// ReadRecord reads a record, and the class of the machine that it is of. It fails
// for what is not one, and for one of more than MaxMembers accesses.
func ReadRecord(r io.Reader) (accesses []Access, class string, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var h head
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &h) != nil || h.Overmount != recordFormat {
		return nil, "", errors.Join(errors.New("it is not a record, as mount --record writes it"), lines.Err())
	}
	if !IsClass(h.Class) {
		return nil, "", fmt.Errorf("line 1: %.80q is no class of hardware", h.Class)
	}
	for n := 2; lines.Scan(); n++ {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, "", fmt.Errorf("line %d: %w", n, err)
		}
		if !fs.ValidPath(l.Path) || len(l.Path) > maxPath || l.Block < 0 || l.Bytes < 0 || l.Waited < 0 || l.Waited > maxWaited {
			return nil, "", fmt.Errorf("line %d: block %d of %.80q, or its figures, cannot be", n, l.Block, l.Path)
		}
		if len(accesses) == MaxMembers {
			return nil, "", fmt.Errorf("line %d: there are more than %d accesses", n, MaxMembers)
		}
		accesses = append(accesses, Access{l.Path, l.Block, l.Bytes, time.Duration(l.Waited) * time.Microsecond, l.Hit})
	}
	if err := lines.Err(); err != nil {
		return nil, "", err
	}
	return accesses, h.Class, nil
}
