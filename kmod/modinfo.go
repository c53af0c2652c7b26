package kmod

import (
	"bytes"
	"fmt"
	"strings"
)

// A Field is one line of what modinfo prints.
type Field struct{ Key, Value string }

// Info is the section .modinfo in its order. Keys may come several times.
type Info []Field

// Get returns the first value of a key, or "" if there is none.
func (in Info) Get(key string) string {
	for _, f := range in {
		if f.Key == key {
			return f.Value
		}
	}
	return ""
}

// All returns all values of a key in their order.
func (in Info) All(key string) []string {
	var all []string
	for _, f := range in {
		if f.Key == key {
			all = append(all, f.Value)
		}
	}
	return all
}

// readInfo reads the fields, each key=value. Like libkmod, it takes what has no
// = as a key with an empty value, and does not mind how many NULs stand between
// fields or whether one stands at the end.
func (e *elf) readInfo(m *Module) error {
	b, err := e.stringsOf(e.modinfo, ".modinfo")
	if err != nil {
		return err
	}
	text := string(b)
	for len(text) > 0 {
		var f string
		f, text, _ = strings.Cut(text, "\x00")
		if f == "" {
			continue
		}
		if m.Info == nil {
			m.Info = make(Info, 0, strings.Count(text, "\x00")+1)
		}
		key, value, _ := strings.Cut(f, "=")
		m.Info = append(m.Info, Field{key, value})
	}
	return nil
}

// stringsOf returns the content of a section that holds strings, without the
// padding around them.
func (e *elf) stringsOf(s *section, name string) ([]byte, error) {
	if s != nil && s.size > maxStrings {
		return nil, fmt.Errorf("section %s has %d bytes, over the limit of %d", name, s.size, maxStrings)
	}
	b, err := e.data(s)
	return bytes.Trim(b, "\x00"), err
}
