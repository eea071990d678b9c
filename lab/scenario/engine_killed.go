package scenario

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/ledger"
)

func init() {
	const brief = "hvid and its keeper die at any moment in a storm of events: the guest goes on, nothing is left"
	Register(Scenario{
		Name:     "engine-killed-quick",
		Brief:    brief + "; each way",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      func(t *T) error { return engineKilled(t, len(killings), patches, control.StateProtecting) },
	})
	Register(Scenario{
		Name:     "engine-killed",
		Brief:    brief + "; 60 times",
		Emulator: Bochs,
		Timeout:  60 * time.Minute,
		Run:      func(t *T) error { return engineKilled(t, 60, patches, control.StateProtecting) },
	})
	Register(Scenario{
		Name:     "engine-killed-amd",
		Brief:    brief + "; AMD",
		Emulator: QEMU,
		Timeout:  90 * time.Minute,
		Run:      func(t *T) error { return engineKilled(t, 60, registers, control.StateDegraded) },
	})
}

// Storms, as the guest makes them: its kernel patches its own code, or a module
// writes a guarded register.
const (
	patches   = `while :; do echo 1 > /proc/sys/kernel/sched_schedstats; echo 0 > /proc/sys/kernel/sched_schedstats; done`
	registers = `while :; do attack lstar times=2000 >/dev/null 2>&1; done`
)

// maxStall bounds how long the guest may stand still while there is a keeper.
const maxStall = time.Second

// unasked is how long a keeper is given to follow another before hvid is asked.
const unasked = 700 * time.Millisecond

// maxKeeperMemory bounds the keeper's memory, in KiB: its program, and little else.
const maxKeeperMemory = 40 << 10

// killing is a way for hvid and its keeper to end.
type killing struct {
	name string
	// do it to hvid and the keeper.
	do func(hvid *Process, keeper int) error
	// hvid says that hvid is dead then, recovered that somebody has undone what it
	// left, without being asked to.
	hvid, recovered bool
}

var killings = []killing{
	{"hvid-sigkill", func(h *Process, _ int) error { return h.Signal(syscall.SIGKILL) }, true, true},
	{"hvid-sigstop", func(h *Process, _ int) error { return h.Signal(syscall.SIGSTOP) }, true, true},
	{"hvid-sigsegv", func(h *Process, _ int) error { return h.Signal(syscall.SIGSEGV) }, true, true},
	{"keeper-sigkill", func(_ *Process, k int) error { return syscall.Kill(k, syscall.SIGKILL) }, false, false},
	// In this order the keeper may be at work already.
	{"both-sigkill", func(h *Process, k int) error {
		return errors.Join(h.Signal(syscall.SIGKILL), syscall.Kill(k, syscall.SIGKILL))
	}, true, false},
	{"both-at-once", func(h *Process, k int) error {
		return errors.Join(syscall.Kill(k, syscall.SIGKILL), h.Signal(syscall.SIGKILL))
	}, true, false},
}

// killer is one run of it.
type killer struct {
	t      *T
	hvid   *Process
	g      *Guest
	random *rand.Rand
	whole  control.State // with all guards that can be had
	pool   uint64        // the domain's, before anything was done

	kills, hangs, left int
	stall              time.Duration
	stalls             map[string]int64 // the longest by killing, in ms
}

// engineKilled kills so many times, in each way in turn. Of the rounds of a long
// run half do it while hvid attaches.
func engineKilled(t *T, rounds int, storm string, whole control.State) error {
	const seed = 7
	k := &killer{t: t, whole: whole, random: rand.New(rand.NewPCG(seed, 0)), stalls: map[string]int64{}}
	var err error
	if k.hvid, err = t.StartHVID(); err != nil {
		return err
	}
	if k.g, _, err = t.protectedGuest(enforce, whole); err != nil {
		return err
	}
	if _, err := k.g.Run("(" + storm + ") & echo $! > /tmp/storm"); err != nil {
		return err
	}
	v, err := client.Version(t.ctx)
	if err != nil {
		return err
	}
	if t.Check(v.Keeper.Alive, "a keeper watches: %+v", v.Keeper) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.Keeper.PID))
		if err != nil {
			return err
		}
		for _, what := range []string{"VmRSS", "VmLck"} {
			if n, err := field(string(status), what+":"); err == nil {
				t.Fact("keeper_"+what+"_kbytes", n)
				t.Check(what != "VmRSS" || n <= maxKeeperMemory, "the keeper's %s is %d KiB", what, n)
			}
		}
	}
	for i := range rounds {
		if err := k.round(i, killings[i%len(killings)], i >= len(killings) && i%2 == 0); err != nil {
			k.hangs++
			k.facts()
			return fmt.Errorf("round %d, %s: %w", i+1, killings[i%len(killings)].name, err)
		}
	}
	k.facts()
	t.Check(k.left == 0, "nothing was left of hvi in Xen after any of %d kills: %d", k.kills, k.left)
	if _, err := k.g.Run("kill $(cat /tmp/storm)"); err != nil {
		return err
	}
	if _, err := k.g.WaitState(protectLimit, whole); err != nil {
		return err
	}
	if whole == control.StateProtecting {
		if err := k.g.attackIsBlocked("text"); err != nil {
			return err
		}
	}
	if err := k.g.Shutdown(); err != nil {
		return err
	}
	return k.g.nothingLeft()
}

func (k *killer) facts() {
	k.t.Fact("kills", k.kills)
	k.t.Fact("hangs", k.hangs)
	k.t.Fact("leftovers", k.left)
	k.t.Fact("longest_stall_ms", k.stall.Milliseconds())
	k.t.Fact("longest_stalls_ms", k.stalls)
}

// round kills once, with hvid there and the guest protected, or, with early, while
// hvid attaches, and leaves things so that it can be done again.
func (k *killer) round(i int, how killing, early bool) error {
	t, g := k.t, k.g
	what := fmt.Sprintf("round %d, %s", i+1, how.name)
	if !early {
		if _, err := g.WaitState(protectLimit, k.whole); err != nil {
			return err
		}
	}
	v, err := client.Version(t.ctx)
	if err != nil {
		return err
	}
	if _, err := g.Run("echo 0 >/tmp/gap"); err != nil {
		return err
	}
	if err := g.watchClock(); err != nil {
		return err
	}
	select {
	case <-time.After(time.Duration(k.random.IntN(500)) * time.Millisecond):
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
	k.kills++
	if err := how.do(k.hvid, v.Keeper.PID); err != nil {
		return err
	}
	if !how.hvid {
		return k.keeperDied(what, how, v)
	}
	select {
	case <-k.hvid.Exited():
	case <-time.After(hvidLimit):
		return fmt.Errorf("hvid is not dead after %v", hvidLimit)
	}
	if how.recovered {
		t.Check(strings.Contains(k.hvid.Log(), "recovered by the keeper"), "%s: the keeper undid what hvid left", what)
	} else if i/len(killings)%2 == 0 {
		if _, err := t.Exec("hvid", "recover"); err != nil {
			return err
		}
	}
	recovered := how.recovered || i/len(killings)%2 == 0
	if recovered {
		if err := k.alone(what, how); err != nil {
			return err
		}
	}
	// Its log is that of a new process.
	if k.hvid, err = t.StartHVID(); err != nil {
		return err
	}
	if how.recovered {
		v, err := client.Version(t.ctx)
		if err != nil {
			return err
		}
		t.Check(v.Recovered != nil && v.Recovered.By == "the keeper", "%s: the next hvid says so: %+v", what, v.Recovered)
	}
	if recovered {
		return nil
	}
	return k.clock(how)
}

// keeperDied checks that hvid goes on without its keeper, and gets another.
func (k *killer) keeperDied(what string, how killing, before control.Version) error {
	t := k.t
	// Who asks meanwhile takes as much of dom0's only processor as the new keeper does.
	select {
	case <-time.After(unasked):
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
	err := t.Eventually(hvidLimit, "another keeper watches", func() (bool, error) {
		v, err := client.Version(t.ctx)
		return err == nil && v.PID == before.PID && v.Keeper.Alive && v.Keeper.PID != before.Keeper.PID, nil
	})
	if err != nil {
		return err
	}
	t.Check(true, "%s: hvid goes on and has another keeper", what)
	return k.clock(how)
}

// alone checks that the guest runs without any hvid, and that nothing of it is
// left in Xen.
func (k *killer) alone(what string, how killing) error {
	t, g := k.t, k.g
	out, err := g.Run("echo still here")
	if err != nil {
		return err
	}
	t.Check(out == "still here", "%s: the guest runs: %q", what, out)
	if err := k.clock(how); err != nil {
		return err
	}
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	if k.pool == 0 {
		k.pool = left.pool
	}
	files, err := os.ReadDir(ledger.DefaultDir)
	if err != nil {
		return err
	}
	ok := left.restricted == 0 && !left.paused && !left.views && left.steps == 0 && left.pool == k.pool && len(files) == 0
	if !t.Check(ok, "%s: nothing is left in Xen: %+v, %d ledgers", what, left, len(files)) {
		k.left++
	}
	return nil
}

// clock takes in how long the guest stood still.
func (k *killer) clock(how killing) error {
	gap, err := k.g.longestGap()
	if err != nil {
		return err
	}
	k.stalls[how.name] = max(k.stalls[how.name], gap.Milliseconds())
	if how.recovered || !how.hvid {
		// Else it is as long as nobody does something about it.
		k.stall = max(k.stall, gap)
		k.t.Check(gap > 0 && gap < maxStall, "%s: the guest stood still for %v at most", how.name, gap)
	}
	return nil
}
