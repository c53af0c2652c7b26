package s3store

import "overmount/store"

// Layout returns the layout of the object that answered last. It reports false
// until one has.
func (s *Store) Layout() (store.Layout, bool) {
	works := s.works.Load()
	if works == 0 {
		return 0, false
	}
	return s.layouts[works-1], true
}
