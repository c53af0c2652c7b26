package manifest

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/ncruces/go-sqlite3"
	"golang.org/x/sys/unix"
)

// A Module is what a manifest notes of a kernel module, so that its dependencies
// and its firmware are known without a look into its file. All of it was read
// from the file when the tree was packed.
type Module struct {
	Name     string // with _ for every -
	Vermagic string // empty if the file has none
	// Signer is who signed the module; "-" for a signature that does not say,
	// empty for none.
	Signer   string
	Aliases  []string // as the file has them, in its order
	Depends  []string // names of the modules whose symbols it uses, as depmod found them
	Softdeps []string // values, such as "pre: crc32c"
	Weakdeps []string // values: names of modules
	Firmware []string // names of files that it declares; hints, some are globs
}

// moduleColumns are the columns of table module after ino, in the order of
// texts.
const moduleColumns = "name, vermagic, signer, aliases, depends, softdeps, weakdeps, firmware"

// texts are the module's values as columns: lists have one value a line.
func (x *Module) texts() ([]string, error) {
	texts := []string{x.Name, x.Vermagic, x.Signer}
	for _, v := range texts {
		if strings.Contains(v, "\n") {
			return nil, fmt.Errorf("module %.40q: the value %.40q holds a line break", x.Name, v)
		}
	}
	if x.Name == "" {
		return nil, errors.New("a module needs a name")
	}
	for _, list := range [][]string{x.Aliases, x.Depends, x.Softdeps, x.Weakdeps, x.Firmware} {
		for _, v := range list {
			if v == "" || strings.Contains(v, "\n") {
				return nil, fmt.Errorf("module %s: the value %.40q is empty or holds a line break", x.Name, v)
			}
		}
		texts = append(texts, strings.Join(list, "\n"))
	}
	return texts, nil
}

// newModule is the reverse of texts.
func newModule(t []string) Module {
	return Module{
		Name: t[0], Vermagic: t[1], Signer: t[2], Aliases: lines(t[3]),
		Depends: lines(t[4]), Softdeps: lines(t[5]), Weakdeps: lines(t[6]), Firmware: lines(t[7]),
	}
}

func lines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// moduleTexts is how many columns of text a row of table module has.
const moduleTexts = 8

// moduleRow is a row of table module: the ends of its texts in moduleText, each of
// which begins where the one before ends.
type moduleRow struct {
	ino  Ino
	from uint32
	ends [moduleTexts]uint32
}

// HasModules reports whether the manifest notes anything of modules: one packed
// with --kind modules does.
func (m *Manifest) HasModules() bool { return len(m.modules) > 0 }

// Modules yields all kernel modules with their files, in the order of the tree.
func (m *Manifest) Modules() iter.Seq2[Ino, Module] {
	return func(yield func(Ino, Module) bool) {
		for i := range m.modules {
			if !yield(m.modules[i].ino, m.module(&m.modules[i])) {
				return
			}
		}
	}
}

// Module returns what the manifest notes of the module in a file.
func (m *Manifest) Module(ino Ino) (Module, bool) {
	i, ok := slices.BinarySearchFunc(m.modules, ino, func(r moduleRow, ino Ino) int { return int(r.ino) - int(ino) })
	if !ok {
		return Module{}, false
	}
	return m.module(&m.modules[i]), true
}

func (m *Manifest) module(r *moduleRow) Module {
	texts, from := make([]string, moduleTexts), r.from
	for i, end := range r.ends {
		texts[i] = string(m.moduleText[from:end])
		from = end
	}
	return newModule(texts)
}

func (l *loader) loadModules() error {
	m := l.m
	return l.rows("module", moduleColumns+", ino", func(s *sqlite3.Stmt, row int64) error {
		if err := isRowid(s, "module", row, moduleTexts+1); err != nil {
			return err
		}
		ino, ok := l.rank(row)
		if !ok || m.node(ino).mode&unix.S_IFMT != unix.S_IFREG {
			return invalid("module", row, "there is no regular file of this number")
		}
		r := moduleRow{ino: ino, from: uint32(len(m.moduleText))}
		for i := range r.ends {
			text := s.ColumnRawText(i + 1)
			if i == 0 && len(text) == 0 {
				return invalid("module", row, "the module has no name")
			}
			if err := l.take("module", row, len(text)); err != nil {
				return err
			}
			if len(m.moduleText)+len(text) > MaxNames {
				return invalid("module", row, "the texts are longer than %d bytes together", MaxNames)
			}
			m.moduleText = append(m.moduleText, text...)
			r.ends[i] = uint32(len(m.moduleText))
		}
		m.modules = append(m.modules, r)
		return nil
	})
}
