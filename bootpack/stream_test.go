package bootpack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"overmount/block"
	"overmount/tree/treetest"
)

// Who has the manifest can seal what he likes. What comes out is the manifest's
// blocks all the same, and within the limits.
func FuzzStream(f *testing.F) {
	m, _ := treetest.Build(f, block.Zstd, treetest.File{Path: "b", Data: []byte("b")}, treetest.File{Path: "c", Data: treetest.Random(1, 300)})
	z, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	member := func(plain string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(plain))), plain...)
	}
	f.Add(z.EncodeAll(member("b"), nil))
	f.Add(z.EncodeAll(append(member("not the manifest's"), member("b")...), nil))
	f.Add(z.EncodeAll([]byte{0xff, 0xff, 0xff, 0xff, 1}, nil))
	f.Add(z.EncodeAll([]byte{0, 0, 0, 0}, nil))
	f.Add(z.EncodeAll(member("b")[:3], nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, stream []byte) {
		sealed, err := seal(m, stream)
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewReader(m, bytes.NewReader(sealed))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("NewReader = %v, want ErrCorrupt", err)
			}
			return
		}
		defer r.Close()
		for err == nil {
			var plain []byte
			var key block.Key
			if key, plain, err = r.Next(); err == nil && (block.KeyOf(plain) != key || !r.known[key]) {
				t.Errorf("Next returns %d bytes that the manifest does not have", len(plain))
			}
		}
		if err != io.EOF && !errors.Is(err, ErrCorrupt) {
			t.Errorf("Next = %v, want io.EOF or ErrCorrupt", err)
		}
	})
}
