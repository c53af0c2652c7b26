package verify

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"
)

// A KernelConfig is the configuration that a kernel was built with: y or m for
// what is in, and texts.
type KernelConfig map[string]string

// maxKernelConfig is far above the 300 KB that distributions' have, in bytes.
const maxKernelConfig = 16 << 20

// ReadKernelConfig reads a kernel's .config, plain as in /boot or compressed as in
// /proc/config.gz.
func ReadKernelConfig(r io.Reader) (KernelConfig, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxKernelConfig))
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		if data, err = io.ReadAll(io.LimitReader(z, maxKernelConfig)); err != nil {
			return nil, err
		}
	}
	config := KernelConfig{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxKernelConfig)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		key, value, ok := strings.Cut(line, "=")
		if ok && strings.HasPrefix(key, "CONFIG_") {
			config[key] = strings.Trim(value, `"`)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(config) == 0 {
		return nil, fmt.Errorf("it has no line CONFIG_…=…: a kernel's .config is wanted, as in /boot/config-KVER")
	}
	return config, nil
}

// has reports whether an option is built in.
func (c KernelConfig) has(option string) bool { return c["CONFIG_"+option] == "y" }
