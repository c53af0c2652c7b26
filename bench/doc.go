// Package bench measures what other packages promise, on real input and beside a
// baseline that does the same without us:
//
//	OVERMOUNT_TEST_KERNEL=/lib/modules/6.1.0-56-amd64 go test -run '^$' -bench . ./bench
//
// OVERMOUNT_TEST_KERNEL is the directory of a kernel's modules, or a root
// directory with one in lib/modules. Mounts and dropped caches need root.
//
// Each benchmark runs ours and the baseline alternately, at least seven times,
// and reports medians: "ms" and "baseline-ms", or the same in another unit, and
// "ratio", which is ours divided by the baseline. Of times, a low ratio is good;
// of speeds, a high one. The goals are in docs/performance.md, with what was
// measured.
//
// All there is are benchmarks: nothing here fails because a machine is slow.
package bench
