package manifest

import (
	"fmt"

	"github.com/ncruces/go-sqlite3"

	"overmount/block"
)

// Object returns an object that the manifest carries itself, for blocks that a
// reader should not need a store for; false for others. It is right: Open has
// checked it against its ID. It must not be modified.
func (m *Manifest) Object(id block.ID) ([]byte, bool) {
	object, ok := m.inline[id]
	return object, ok
}

// Objects returns how many objects the manifest carries itself, and their length
// in bytes.
func (m *Manifest) Objects() (n int, bytes int64) {
	for _, object := range m.inline {
		bytes += int64(len(object))
	}
	return len(m.inline), bytes
}

// AddObject makes the manifest carry an object itself. One that it carries
// already is not added again.
func (w *Writer) AddObject(object []byte) error {
	id := block.Sum(object)
	if w.inline[id] {
		return nil
	}
	if len(object) > block.MaxObject {
		return fmt.Errorf("add object %v to the manifest: %d bytes, over the limit of %d", id, len(object), block.MaxObject)
	}
	w.inline[id] = true
	if err := w.insert(`INSERT INTO inline (id, object) VALUES (?, ?)`, id[:], notNil(object)); err != nil {
		return fmt.Errorf("add object %v to the manifest: %w", id, err)
	}
	return nil
}

func (l *loader) loadInline() error {
	l.m.inline = map[block.ID][]byte{}
	return l.rows("inline", "id, object", func(s *sqlite3.Stmt, row int64) error {
		id, object := s.ColumnRawBlob(1), s.ColumnBlob(2, nil)
		if err := l.take("inline", row, len(id)+len(object)); err != nil {
			return err
		}
		sum := block.Sum(object)
		switch {
		case len(object) > block.MaxObject:
			return invalid("inline", row, "the object has %d bytes, over the limit of %d", len(object), block.MaxObject)
		case string(id) != string(sum[:]):
			return invalid("inline", row, "the object is not what its id says: the file is damaged")
		}
		l.m.inline[sum] = object
		return nil
	})
}
