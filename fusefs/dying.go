package fusefs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// dying reports whether a thread will end before it returns to its program: it
// has a pending signal that kills. A thread that is not there is dead. Number 0
// is a thread that /proc does not show, of the kernel or of another PID
// namespace; it is taken as alive.
func dying(tid uint32) bool {
	if tid == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return os.IsNotExist(err) && procMounted()
	}
	return fatalPending(status)
}

// procMounted keeps a machine without /proc from looking like one where every
// caller is dead.
func procMounted() bool {
	_, err := os.Stat("/proc/self/status")
	return err == nil
}

// harmless are the signals that do not kill when a program has said nothing
// about them: signal(7).
var harmless = mask(unix.SIGCHLD, unix.SIGCONT, unix.SIGURG, unix.SIGWINCH,
	unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)

func mask(signals ...unix.Signal) (m uint64) {
	for _, s := range signals {
		m |= 1 << (s - 1)
	}
	return m
}

// fatalPending reads the signal masks in /proc/PID/status, proc_pid_status(5). A
// signal kills if it is pending for the thread or its process, is not blocked,
// ignored or caught, and is not harmless; SIGKILL always does. When one thread of
// a process gets a deadly signal, the kernel gives SIGKILL to all of them.
func fatalPending(status []byte) bool {
	pending := signals(status, "SigPnd") | signals(status, "ShdPnd")
	spared := signals(status, "SigBlk") | signals(status, "SigIgn") | signals(status, "SigCgt") | harmless
	return pending&^(spared&^mask(unix.SIGKILL)) != 0
}

// signals returns one of the masks, empty if it is not there.
func signals(status []byte, name string) uint64 {
	_, rest, _ := bytes.Cut(status, []byte("\n"+name+":\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	m, err := strconv.ParseUint(string(line), 16, 64)
	if err != nil {
		return 0
	}
	return m
}
