package cli

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noNetlink is the environment variable that has the program die when it opens a
// netlink socket. A driver may hold the kernel's lock over all network settings while
// it waits for what the program fetches for it: a question of the program about
// these settings would never be answered.
const noNetlink = "OVERMOUNT_TEST_NO_NETLINK"

// forbidNetlink has the kernel end this process, and those that it starts, with
// SIGSYS at socket(AF_NETLINK, …). See seccomp(2).
func forbidNetlink() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const number, arg0 = 0, 16 // in struct seccomp_data, of a machine that is little-endian
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SOCKET, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arg0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AF_NETLINK, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); errno != 0 {
			err = errno
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "forbid netlink:", err)
		os.Exit(1)
	}
}
