package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"overmount/internal/atomicfile"
)

// A lockedPackage is a package as a lock file has it.
type lockedPackage struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  string `json:"sha256,omitempty"` // of the file, in hex
	Size    int64  `json:"size"`             // of the file, in bytes
}

func (p lockedPackage) String() string { return fmt.Sprintf("%s %s", p.Name, p.Version) }

// is reports whether a package is the one that a lock file has, as far as an index says.
func (p lockedPackage) is(locked lockedPackage) bool {
	return p.Name == locked.Name && p.Version == locked.Version && (p.SHA256 == "" || p.SHA256 == locked.SHA256) && (p.Size == 0 || p.Size == locked.Size)
}

const lockHead = "# overmount lock 1: name, version, SHA-256 and size of each package"

// maxLock is the length of the longest lock file, in bytes.
const maxLock = 16 << 20

// readLock reads a lock file: lines of four words, and comments with # before them.
// What is missing is not an error of reading: fs.ErrNotExist.
func readLock(file string) ([]lockedPackage, error) {
	text, err := readLimited(file, maxLock)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	var list []lockedPackage
	for number, line := range strings.Split(string(text), "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		bad := fmt.Errorf("lock file %s: line %d: want name, version, SHA-256 and size", file, number+1)
		if len(words) != 4 || len(words[2]) != 64 || strings.Trim(words[2], "0123456789abcdef") != "" {
			return nil, bad
		}
		size, err := strconv.ParseInt(words[3], 10, 64)
		if err != nil || size <= 0 {
			return nil, bad
		}
		list = append(list, lockedPackage{words[0], words[1], words[2], size})
	}
	return list, nil
}

// checkLock refuses packages that are not exactly those of a lock file, if it is
// there. What an index does not say of a package, its SHA-256 or size, is not
// compared.
func checkLock(file string, list []lockedPackage) error {
	locked, err := readLock(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var wrong []string
	for _, p := range list {
		if slices.ContainsFunc(locked, p.is) { // of several architectures, any
			continue
		}
		i := slices.IndexFunc(locked, func(l lockedPackage) bool { return l.Name == p.Name })
		switch {
		case i < 0:
			wrong = append(wrong, fmt.Sprintf("%v is not in it", p))
		case locked[i].Version != p.Version:
			wrong = append(wrong, fmt.Sprintf("%v is there, and it has version %s", p, locked[i].Version))
		default:
			wrong = append(wrong, fmt.Sprintf("%v has other bytes than those that it notes", p))
		}
	}
	for _, l := range locked {
		if !slices.ContainsFunc(list, func(p lockedPackage) bool { return p.Name == l.Name }) {
			wrong = append(wrong, fmt.Sprintf("%v is missing", l))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	more := ""
	if len(wrong) > 5 {
		more = fmt.Sprintf("; and %d more", len(wrong)-5)
		wrong = wrong[:5]
	}
	return fmt.Errorf("the packages are not those of the lock file %s: %s%s\nIf they are what you want now, remove it", file, strings.Join(wrong, "; "), more)
}

// writeLock writes a lock file, unless there is one.
func writeLock(file string, list []lockedPackage) error {
	if _, err := readLock(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var b strings.Builder
	fmt.Fprintln(&b, lockHead)
	for _, p := range slices.SortedFunc(slices.Values(list), func(a, b lockedPackage) int { return strings.Compare(a.Name, b.Name) }) {
		fmt.Fprintf(&b, "%s %s %s %d\n", p.Name, p.Version, p.SHA256, p.Size)
	}
	return atomicfile.Write(file, []byte(b.String()), 0o644)
}
