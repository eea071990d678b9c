package hostcheck

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// systemctlTimeout bounds the wait for systemd.
const systemctlTimeout = 2 * time.Second

// Systemctl returns a function for Options.UnitChanged that runs this program.
func Systemctl(program string) func(context.Context, string) (time.Duration, error) {
	return func(ctx context.Context, unit string) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, systemctlTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, "show", "--property=StateChangeTimestampMonotonic", "--value", unit)
		cmd.WaitDelay = systemctlTimeout
		out, err := cmd.Output()
		if err != nil {
			return 0, err
		}
		us, err := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 53)
		if err != nil || us == 0 {
			return 0, fmt.Errorf("systemd does not know %s", unit)
		}
		return time.Duration(us) * time.Microsecond, nil
	}
}
