package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "idle",
		Brief:    "What hvid and its keeper cost while protected guests have nothing to do, in instructions and memory",
		Emulator: Bochs,
		Timeout:  40 * time.Minute,
		Run:      idle,
	})
}

const (
	// idleGuests is how many there are in the end. The emulated machine has no room
	// for more; what one more costs is what the last ones did.
	idleGuests = 3
	// idleTime is how long each number of guests is watched: each periodic task
	// is due several times.
	idleTime = 4 * time.Minute
	// idleSettles is how long guests are left alone first.
	idleSettles = 30 * time.Second
	// maxIdlePerGuest bounds what one more idle guest may cost hvid, in instructions
	// a second: a ten-thousandth of a processor that carries out three billion, so
	// that ten guests come to a thousandth of it.
	maxIdlePerGuest = 300_000
	// maxIdleMemory bounds hvid's memory with them, in KiB.
	maxIdleMemory = 40 << 10
)

// idle protects one guest after the other, lets all be idle, and takes what hvid
// and its keeper use of the processor meanwhile.
func idle(t *T) error {
	// The emulated processor is so slow that a kernel which does nothing is not quiet
	// for hvid, which reckons with a real one.
	dir, err := t.TempDir()
	if err != nil {
		return err
	}
	settings := filepath.Join(dir, "hvid.toml")
	if err := os.WriteFile(settings, []byte("[looks]\nquiet = \"50ms\"\n"), 0o600); err != nil {
		return err
	}
	hvid, err := t.StartHVID("--config", settings)
	if err != nil {
		return err
	}
	v, err := client.Version(t.ctx)
	if err != nil {
		return err
	}
	used := make([]float64, idleGuests+1)
	for n := range used {
		if n > 0 {
			c := enforce
			c.Name, c.Memory = fmt.Sprintf("idle%d", n), 96
			if _, _, err := t.protectedGuest(c, control.StateProtecting); err != nil {
				return err
			}
		}
		if err := t.wait(idleSettles); err != nil {
			return err
		}
		before, err := processorTime(hvid.Pid(), v.Keeper.PID)
		if err != nil {
			return err
		}
		start := time.Now()
		if err := t.wait(idleTime); err != nil {
			return err
		}
		after, err := processorTime(hvid.Pid(), v.Keeper.PID)
		if err != nil {
			return err
		}
		took := time.Since(start).Seconds()
		used[n] = (after[0] - before[0]).Seconds() / took * instructionsPerSecond
		t.Fact(fmt.Sprintf("instructions_per_second.%d_guests", n), map[string]int64{
			"hvid":   int64(used[n]),
			"keeper": int64((after[1] - before[1]).Seconds() / took * instructionsPerSecond),
		})
	}
	each := (used[idleGuests] - used[0]) / idleGuests
	t.Fact("instructions_per_second.each_guest", int64(each))
	t.Check(each <= maxIdlePerGuest, "an idle guest costs hvid %.0f instructions a second", each)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", hvid.Pid()))
	if err != nil {
		return err
	}
	rss, err := field(string(status), "VmRSS:")
	if err != nil {
		return err
	}
	t.Fact("hvid_rss_kbytes", rss)
	t.Check(rss <= maxIdleMemory, "hvid takes %d KiB with %d guests", rss, idleGuests)
	return nil
}

// wait lets time pass, which the guests have nothing to do in.
func (t *T) wait(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}

// processorTime is what processes have had of dom0's processors.
func processorTime(pids ...int) ([]time.Duration, error) {
	out := make([]time.Duration, len(pids))
	for i, pid := range pids {
		dirs, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return nil, err
		}
		for _, d := range dirs {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, d.Name()))
			if err != nil {
				continue // a thread that has ended
			}
			ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
			if err != nil {
				return nil, err
			}
			out[i] += time.Duration(ns)
		}
	}
	return out, nil
}
