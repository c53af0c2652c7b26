package tree_test

import (
	"os"
	"testing"

	"overmount/block"
)

// TestMain lets the codecs make what they share, outside of any bubble of synctest:
// what the first bubble made, no other test could use.
func TestMain(m *testing.M) {
	for _, codec := range []block.Codec{block.Zstd, block.Snappy} {
		plain := []byte("anything")
		key := block.KeyOf(plain)
		_, object, err := block.Seal(nil, codec, key, plain)
		if err == nil {
			_, err = block.Open(nil, codec, key, object)
		}
		if err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
