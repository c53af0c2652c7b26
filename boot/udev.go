package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// udevControl is the socket of udev's daemon, of systemd's and of eudev alike.
const udevControl = "/run/udev/control"

// HasUdev reports whether udev's daemon runs, or did.
func HasUdev() bool {
	_, err := os.Stat(udevControl)
	if err != nil {
		return false
	}
	_, err = exec.LookPath("udevadm")
	return err == nil
}

// ReloadUdev has udev's daemon close its indexes and rules, and open them anew when
// it needs them. It fails if the daemon does not listen within the limit.
func ReloadUdev(ctx context.Context, limit time.Duration) error {
	return udevadm(ctx, limit, "control", "--reload")
}

// Udev has udev announce all devices again, and waits until it has handled them
// or the time is over.
func Udev(ctx context.Context, settle time.Duration) (string, error) {
	if err := ReloadUdev(ctx, settle); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"trigger", "--type=subsystems", "--action=add"},
		{"trigger", "--type=devices", "--action=add"},
	} {
		if err := udevadm(ctx, settle, args...); err != nil {
			return "", err
		}
	}
	seconds := int(max(settle/time.Second, 1))
	err := udevadm(ctx, settle+10*time.Second, "settle", fmt.Sprintf("--timeout=%d", seconds))
	return "by udev", err
}

func udevadm(ctx context.Context, limit time.Duration, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "udevadm", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = errors.Join(fmt.Errorf("it did not end within %v", limit), ctx.Err())
	}
	said := strings.TrimSpace(out.String())
	if len(said) > 500 {
		said = said[:500]
	}
	if said != "" {
		return fmt.Errorf("udevadm %s: %w: %s", strings.Join(args, " "), err, said)
	}
	return fmt.Errorf("udevadm %s: %w", strings.Join(args, " "), err)
}
