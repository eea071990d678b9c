package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/ledger"
)

func init() {
	const brief = "hvid and its keeper die at any moment in a storm of events: the guest goes on"
	Register(Scenario{
		Name:     "engine-killed-quick",
		Brief:    brief + "; each way",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run: func(t *T) error {
			return engineKilled(t, killings[:quickKillings], 1, patches, control.StateProtecting)
		},
	})
	Register(Scenario{
		Name:     "engine-killed",
		Brief:    brief + "; each way 5 times",
		Emulator: Bochs,
		Timeout:  90 * time.Minute,
		Run:      func(t *T) error { return engineKilled(t, killings, 5, patches, control.StateProtecting) },
	})
	Register(Scenario{
		Name:     "engine-killed-amd",
		Brief:    brief + "; AMD",
		Emulator: QEMU,
		Timeout:  90 * time.Minute,
		Run:      func(t *T) error { return engineKilled(t, killings, 5, registers, control.StateDegraded) },
	})
}

// Storms, as the guest makes them: its kernel patches its own code, or a module
// writes a guarded register. The module does nothing else while it does, and keeps the
// guest's only processor: it must not do so for long, or nobody in the guest could tell
// how long it stood still.
const (
	patches   = `while :; do echo 1 > /proc/sys/kernel/sched_schedstats; echo 0 > /proc/sys/kernel/sched_schedstats; done`
	registers = `while :; do attack lstar times=40 >/dev/null 2>&1; done`
)

// maxStall bounds how long the guest may stand still while there is a keeper.
const maxStall = time.Second

// unasked is how long a keeper is given to follow another before hvid is asked.
const unasked = 700 * time.Millisecond

// maxKeeperMemory bounds the keeper's memory, in KiB: its program, and little else.
const maxKeeperMemory = 40 << 10

// endLimit bounds how long a process takes to end for want of memory.
const endLimit = 20 * time.Second

// killing is a way for hvid and its keeper to end.
type killing struct {
	name string
	// do it to hvid and the keeper.
	do func(t *T, hvid, keeper int) error
	// hvid says that hvid is dead then, recovered that somebody has undone what it
	// left, without being asked to.
	hvid, recovered bool
	// goesOn says that it is none, for the keeper: that goes on.
	goesOn bool
}

// quickKillings is how many of the killings, from the first, a short run makes.
const quickKillings = 6

var killings = []killing{
	{name: "hvid-sigkill", do: signals(hvidOnly, syscall.SIGKILL), hvid: true, recovered: true},
	{name: "hvid-sigstop", do: signals(hvidOnly, syscall.SIGSTOP), hvid: true, recovered: true},
	{name: "hvid-sigsegv", do: signals(hvidOnly, syscall.SIGSEGV), hvid: true, recovered: true},
	{name: "keeper-sigkill", do: signals(keeperOnly, syscall.SIGKILL)},
	// In this order the keeper may be at work already.
	{name: "both-sigkill", do: signals(hvidFirst, syscall.SIGKILL), hvid: true},
	{name: "both-at-once", do: signals(keeperFirst, syscall.SIGKILL), hvid: true},
	{name: "keeper-sigstop", do: signals(keeperOnly, syscall.SIGSTOP), goesOn: true},
	{name: "keeper-sigsegv", do: signals(keeperOnly, syscall.SIGSEGV)},
	{name: "both-sigsegv", do: signals(keeperFirst, syscall.SIGSEGV), hvid: true},
	{name: "both-sigstop", do: signals(keeperFirst, syscall.SIGSTOP), hvid: true, recovered: true},
	{name: "hvid-oom", do: outOfMemoryKills(hvidOnly), hvid: true, recovered: true},
	{name: "keeper-oom", do: outOfMemoryKills(keeperOnly)},
	{name: "both-oom", do: outOfMemoryKills(hvidFirst), hvid: true},
}

// The processes that something is done to, in its order.
func hvidOnly(hvid, _ int) []int         { return []int{hvid} }
func keeperOnly(_, keeper int) []int     { return []int{keeper} }
func hvidFirst(hvid, keeper int) []int   { return []int{hvid, keeper} }
func keeperFirst(hvid, keeper int) []int { return []int{keeper, hvid} }

// signals sends one. A keeper may have done its work and ended before it is its turn.
func signals(whom func(hvid, keeper int) []int, s syscall.Signal) func(t *T, hvid, keeper int) error {
	return func(_ *T, hvid, keeper int) (err error) {
		for i, pid := range whom(hvid, keeper) {
			if e := syscall.Kill(pid, s); i == 0 || !errors.Is(e, syscall.ESRCH) {
				err = errors.Join(err, e)
			}
		}
		return err
	}
}

// outOfMemoryKills has dom0's kernel choose a process as it does when there is no memory.
func outOfMemoryKills(whom func(hvid, keeper int) []int) func(t *T, hvid, keeper int) error {
	return func(t *T, hvid, keeper int) error {
		for i, pid := range whom(hvid, keeper) {
			if err := chooseFirst(pid, 1000); err != nil {
				if i > 0 && ended(pid) {
					continue // it has done its work already
				}
				return err
			}
			if err := outOfMemory(t, pid); err != nil {
				return err
			}
		}
		return nil
	}
}

// outOfMemory has the kernel end a process that it would choose first. That may end by
// itself meanwhile: then there is another that it chooses next.
func outOfMemory(t *T, pid int) error {
	next := exec.Command("sleep", "600")
	if err := next.Start(); err != nil {
		return err
	}
	defer func() {
		_ = next.Process.Kill() // fails if it has ended
		_ = next.Wait()         // says that it was killed
	}()
	if err := errors.Join(chooseFirst(next.Process.Pid, 999), os.WriteFile("/proc/sysrq-trigger", []byte("f"), 0)); err != nil {
		return err
	}
	// The kernel does it in a while, and takes no second order before.
	return t.Eventually(endLimit, fmt.Sprintf("process %d is ended for want of memory", pid), func() (bool, error) {
		return ended(pid), nil
	})
}

// chooseFirst has the kernel end a process before others of a lower number.
func chooseFirst(pid, number int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(number)), 0)
}

// ended says whether a process has, also one that nobody has asked after yet.
func ended(pid int) bool {
	state, err := processState(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || state == 'Z' || state == 'X'
}

// processState returns a process's, a letter (proc(5)), of its stat file.
func processState(stat string) (byte, error) {
	b, err := os.ReadFile(stat)
	if err != nil {
		return 0, err
	}
	// The program's name may hold anything, and ends at the last parenthesis.
	_, rest, _ := strings.Cut(string(b[max(0, bytes.LastIndexByte(b, ')')):]), " ")
	if rest == "" {
		return 0, fmt.Errorf("%s: %.100q", stat, b)
	}
	return rest[0], nil
}

// killer is one run of it.
type killer struct {
	t      *T
	hvid   *Process
	g      *Guest
	ways   []killing
	random *rand.Rand
	whole  control.State // with all guards that can be had
	storm  string
	pool   uint64 // the domain's, before anything was done

	kills, hangs, left int
	stall              time.Duration
	stalls             map[string]int64 // the longest by killing, in ms
}

// engineKilled kills so many times in each way, in turn. Of the rounds after the first
// half do it while hvid attaches.
func engineKilled(t *T, ways []killing, times int, storm string, whole control.State) error {
	const seed = 7
	k := &killer{t: t, ways: ways, whole: whole, storm: storm, random: rand.New(rand.NewPCG(seed, 0)), stalls: map[string]int64{}}
	var err error
	if k.hvid, err = t.StartHVID(); err != nil {
		return err
	}
	if k.g, _, err = t.protectedGuest(enforce, whole); err != nil {
		return err
	}
	if err := k.begin(); err != nil {
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
	for i := range len(ways) * times {
		how := ways[i%len(ways)]
		if err := k.round(i, how, i >= len(ways) && i%2 == 0); err != nil {
			k.hangs++
			k.facts()
			return fmt.Errorf("round %d, %s: %w", i+1, how.name, err)
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

// begin has the guest make events.
func (k *killer) begin() error {
	_, err := k.g.Run("(" + k.storm + ") & echo $! > /tmp/storm")
	return err
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
	if err := how.do(t, k.hvid.Pid(), v.Keeper.PID); err != nil {
		return err
	}
	switch {
	case how.goesOn:
		return k.keeperGoesOn(what, how, v)
	case !how.hvid:
		return k.keeperDied(what, how, v)
	}
	select {
	case <-k.hvid.Exited():
	case <-time.After(hvidLimit):
		return fmt.Errorf("hvid is not dead after %v", hvidLimit)
	}
	if !how.recovered && i/len(k.ways)%2 == 0 {
		if _, err := t.Exec("hvid", "recover"); err != nil {
			return err
		}
	}
	recovered := how.recovered || i/len(k.ways)%2 == 0
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
		// What the keeper itself says can be lost behind all that a dying hvid does.
		t.Check(v.Recovered != nil && v.Recovered.By == "the keeper", "%s: the keeper undid what hvid left: %+v", what, v.Recovered)
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

// keeperGoesOn checks that it does, although it was stopped, and that hvid has not
// noticed.
func (k *killer) keeperGoesOn(what string, how killing, before control.Version) error {
	t := k.t
	stat := fmt.Sprintf("/proc/%d/stat", before.Keeper.PID)
	err := t.Eventually(hvidLimit, "the keeper goes on", func() (bool, error) {
		state, err := processState(stat)
		return err == nil && state != 'T', nil
	})
	if err != nil {
		return err
	}
	v, err := client.Version(t.ctx)
	if err != nil {
		return err
	}
	t.Check(v.PID == before.PID && v.Keeper.Alive && v.Keeper.PID == before.Keeper.PID, "%s: it is the same, and so is hvid: %+v, then %+v", what, before.Keeper, v.Keeper)
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
	k.t.Check(gap > 0, "%s: the guest's clock was watched: %v", how.name, gap)
	k.stalls[how.name] = max(k.stalls[how.name], gap.Milliseconds())
	if how.recovered || !how.hvid {
		// Else it is as long as nobody does something about it.
		k.stall = max(k.stall, gap)
		k.t.Check(gap < maxStall, "%s: the guest stood still for %v at most", how.name, gap)
	}
	return nil
}
