// Package contrib holds what init systems need to run "overmount boot": zinit in
// the formats of 0.2 (YAML) and 0.3 (TOML), systemd, OpenRC, and a plain script.
// There is no Go code in it but the tests of these files. docs/boot.md says what
// to do with them.
package contrib
