package cli

import (
	"fmt"

	"github.com/dustin/go-humanize"

	"overmount/pack"
)

// size is a flag of a number of bytes, as 4GiB. Below 0 it is not set.
type size int64

func (s *size) Set(text string) error {
	n, err := humanize.ParseBytes(text)
	if err != nil || n > 1<<62 {
		return fmt.Errorf("%q is not a size, want a number with KiB, MiB or GiB", text)
	}
	*s = size(n)
	return nil
}

func (s *size) String() string {
	if s == nil || *s < 0 {
		return ""
	}
	return humanBytes(int64(*s))
}

func (s *size) Type() string { return "size" }

// count is a number of things as people say it.
func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// countTree is what a manifest has, as people say it. Its root is one of the directories.
func countTree(s pack.Summary) string {
	return count(s.Files, "file", "files") + ", " + humanBytes(s.Bytes) + ", and " + count(s.Others, "directory", "directories, links and others")
}

// humanBytes shows a number of bytes to a person.
func humanBytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
