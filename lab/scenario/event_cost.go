package scenario

import (
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "event-cost",
		Brief:    "What a write that is let through costs a guest: with hvi, and with the least that C can do",
		Emulator: Bochs,
		Timeout:  40 * time.Minute,
		Run:      eventCost,
	})
}

// maxOverC bounds hvi's cost of an event, which it looks into and judges, by that of
// a listener in C that only answers, where both watch the same. A listener on LibVMI's
// current sources took 1.003 times as many as that one (docs/performance.md).
const maxOverC = 1

// maxDelay bounds how long another process of dom0, of no priority, waits for its turn
// while hvid answers one event after the other, on the only processor.
const maxDelay = 250 * time.Millisecond

// registerGuards watch what the listener doesn't. A processor that patches code writes
// CR4, too, which costs the guest exits to Xen, but no event.
var registerGuards = []string{"cr", "syscall-entry"}

// eventCost has a guest's kernel patch itself: with hvi, without anybody, and with
// the listener of lab/image/files/listener.c, which restricts the same frames. The
// emulated clock counts instructions, those of Xen and of dom0 among them. The
// listener has the priority that hvid has.
func eventCost(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	g, st, err := t.protectedGuest(enforce, control.StateProtecting)
	if err != nil {
		return err
	}
	var frames strings.Builder
	for _, v := range st.Views {
		for _, r := range v.Restricted {
			fmt.Fprintf(&frames, "%d %d\n", uint64(r.First), r.Count)
		}
	}
	writes, _, err := g.measure()
	if err != nil {
		return err
	}
	all, err := g.patchesAgain()
	if err != nil {
		return err
	}
	delay, err := g.patchesDelay()
	if err != nil {
		return err
	}
	args := []string{"set", g.Name}
	for _, name := range registerGuards {
		args = append(args, "--guard", name+"=off")
	}
	if err := t.HVICtl(nil, args...); err != nil {
		return err
	}
	hvi, err := g.patchesAgain()
	if err != nil {
		return err
	}
	if err := t.HVICtl(nil, "detach", g.Name); err != nil {
		return err
	}
	nobody, err := g.patchesAgain()
	if err != nil {
		return err
	}
	const list, out = "/tmp/frames", "/tmp/listener"
	if err := os.WriteFile(list, []byte(frames.String()), 0o600); err != nil {
		return err
	}
	if _, err := t.Sh(fmt.Sprintf("listener %d <%s >%s 2>&1 & echo $! >%[3]s.pid", g.ID, list, out)); err != nil {
		return err
	}
	err = t.Eventually(protectLimit, "the listener is ready", func() (bool, error) {
		b, err := os.ReadFile(out)
		if err == nil && string(b) != "" && string(b) != "ready\n" {
			return false, fmt.Errorf("the listener says %q", b)
		}
		return string(b) == "ready\n", err
	})
	if err != nil {
		return err
	}
	c, err := g.patchesAgain()
	if err != nil {
		return err
	}
	delayC, err := g.patchesDelay()
	if err != nil {
		return err
	}
	said, err := t.Sh(fmt.Sprintf("kill $(cat %s.pid); while kill -0 $(cat %[1]s.pid) 2>/dev/null; do sleep 0.1; done; tail -n 1 %[1]s", out))
	if err != nil {
		return err
	}
	var seen, others uint64
	if _, err := fmt.Sscanf(said.Stdout, "events %d others %d", &seen, &others); err != nil {
		return fmt.Errorf("the listener ends with %q: %w", said.Stdout, err)
	}
	// It saw them each time that was timed, once more for the delay, and a round.
	t.Check(seen == writes/patchRounds*((patchTimes+1)*patchRounds+1) && others == 0, "the listener sees all writes of %d each time: %d, %d others", writes, seen, others)
	each := func(d time.Duration) float64 { return (d - nobody).Seconds() * instructionsPerSecond / float64(writes) }
	ratio := each(hvi) / each(c)
	t.Fact("writes", writes)
	t.Fact("instructions_per_event.hvi_all_guards", int64(each(all)))
	t.Fact("instructions_per_event.hvi", int64(each(hvi)))
	t.Fact("instructions_per_event.c", int64(each(c)))
	t.Fact("instructions_per_event.ratio", math.Round(ratio*1000)/1000)
	t.Fact("longest_delay_ms.hvi", delay.Milliseconds())
	t.Fact("longest_delay_ms.c", delayC.Milliseconds())
	t.Check(delay <= maxDelay, "meanwhile another process of dom0 waits %v at most for its turn, with C %v", delay, delayC)
	t.Check(ratio <= maxOverC, "an event costs %.0f instructions with hvi and %.0f with C: %.2f times as many", each(hvi), each(c), ratio)
	return g.Shutdown()
}

// patchTimes is how often the patching is timed. The shortest counts: what hvid looks
// at now and then makes the others longer.
const patchTimes = 5

// patchesAgain is patches, after they were made once.
func (g *Guest) patchesAgain() (time.Duration, error) {
	if _, err := g.patches(1); err != nil {
		return 0, err
	}
	best := time.Duration(math.MaxInt64)
	for range patchTimes {
		took, err := g.patches(patchRounds)
		if err != nil {
			return 0, err
		}
		best = min(best, took)
	}
	return best, nil
}

// patchesDelay is how long this process, which is dom0's, has to wait for its turn at most
// while the kernel patches itself.
func (g *Guest) patchesDelay() (time.Duration, error) {
	stop, longest := make(chan struct{}), make(chan time.Duration)
	go func() {
		const nap = 2 * time.Millisecond
		worst := time.Duration(0)
		for {
			began := time.Now()
			select {
			case <-stop:
				longest <- worst
				return
			case <-time.After(nap):
				worst = max(worst, time.Since(began)-nap)
			}
		}
	}()
	_, err := g.patches(patchRounds)
	close(stop)
	return <-longest, err
}
