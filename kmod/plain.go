package kmod

import "fmt"

// Plain returns the content of a file that a kernel's build or a distribution has
// compressed, as a module or a firmware file: with gzip, xz or zstd, which the
// first bytes tell. What is not compressed comes back as it is, and is not copied.
//
// It fails for content that is damaged, that ends early, or whose plain form has
// over 512 MiB. Concurrent use is safe.
func Plain(file []byte) ([]byte, error) {
	c := compressionOf(file)
	if c == None {
		return file, nil
	}
	plain, _, err := c.decompress(nil, file)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return plain, nil
}
