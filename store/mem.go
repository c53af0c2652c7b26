package store

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"overmount/block"
)

// A Mem is a store in memory, for tests and small uses. Its zero value is empty
// and ready. Concurrent use is safe.
type Mem struct {
	mu      sync.RWMutex
	objects map[block.ID][]byte
}

var (
	_ Reader = (*Mem)(nil)
	_ Writer = (*Mem)(nil)
)

// Get returns the object, or ErrNotFound.
func (m *Mem) Get(ctx context.Context, id block.ID) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	object, ok := m.objects[id]
	if !ok {
		return nil, fmt.Errorf("%w in memory", ErrNotFound)
	}
	return object, nil
}

// Put keeps a copy of object. It returns block.ErrCorrupt for a length that no
// object has.
func (m *Mem) Put(ctx context.Context, id block.ID, object []byte) (stored bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := CheckSize(int64(len(object))); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.objects[id]; ok && slices.Equal(old, object) {
		return false, nil
	}
	if m.objects == nil {
		m.objects = make(map[block.ID][]byte)
	}
	m.objects[id] = slices.Clone(object)
	return true, nil
}

// Len returns the number of objects.
func (m *Mem) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.objects)
}
