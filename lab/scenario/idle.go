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
		Brief:    "What hvid and its keeper cost while ten protected guests have nothing to do: instructions, memory",
		Emulator: Bochs,
		Memory:   2048,
		Timeout:  60 * time.Minute,
		Run:      idle,
	})
}

const (
	idleGuests = 10
	// idleAlone is how long hvid is watched without a guest.
	idleAlone = 2 * time.Minute
	// idleTime is how long it is watched with them: what is done least often, the look at
	// all of a quiet kernel's data, is due each ten minutes.
	idleTime = 10 * time.Minute
	// idleSettles is how long guests are left alone first.
	idleSettles = time.Minute
	// maxIdle bounds what hvid may cost then, in instructions a second: a thousandth of a
	// processor that carries out three billion.
	maxIdle = 3_000_000
	// maxIdleMemory bounds hvid's memory with them, in KiB.
	maxIdleMemory = 40 << 10
)

// idle protects ten guests, lets all be idle, and takes what hvid and its keeper use of
// the processor meanwhile.
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
	// used is what they take of the processor in d, in instructions a second.
	used := func(guests int, d time.Duration) (float64, error) {
		if err := t.wait(idleSettles); err != nil {
			return 0, err
		}
		before, err := processorTime(hvid.Pid(), v.Keeper.PID)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		if err := t.wait(d); err != nil {
			return 0, err
		}
		after, err := processorTime(hvid.Pid(), v.Keeper.PID)
		if err != nil {
			return 0, err
		}
		took := time.Since(start).Seconds()
		each := func(i int) float64 { return (after[i] - before[i]).Seconds() / took * instructionsPerSecond }
		t.Fact(fmt.Sprintf("instructions_per_second.%d_guests", guests), map[string]int64{"hvid": int64(each(0)), "keeper": int64(each(1))})
		return each(0), nil
	}
	if _, err := used(0, idleAlone); err != nil {
		return err
	}
	for n := range idleGuests {
		c := enforce
		c.Name, c.Memory = fmt.Sprintf("idle%d", n+1), 96
		if _, _, err := t.protectedGuest(c, control.StateProtecting); err != nil {
			return err
		}
	}
	all, err := used(idleGuests, idleTime)
	if err != nil {
		return err
	}
	t.Check(all <= maxIdle, "with %d idle guests hvid takes %.0f instructions a second", idleGuests, all)
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
