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

// counted shows a number of things to a person, given the name of one.
func counted[N int | int64](n N, one string) string {
	if n != 1 {
		one += "s"
	}
	return fmt.Sprintf("%d %s", n, one)
}

// countTree is what a manifest has, as people say it. Its root is one of the directories.
func countTree(s pack.Summary) string {
	others := "1 directory"
	if s.Others != 1 {
		others = fmt.Sprintf("%d directories, links and others", s.Others)
	}
	return counted(s.Files, "file") + ", " + humanBytes(s.Bytes) + ", and " + others
}

// humanBytes shows a number of bytes to a person.
func humanBytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
