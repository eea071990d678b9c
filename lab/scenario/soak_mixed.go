package scenario

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	const brief = "Everything at once while hvictl changes all the time: each violation is counted, nothing grows; "
	for _, s := range []struct {
		name, on string
		emulator Emulator
		lasts    time.Duration
	}{
		{"soak-mixed", "AMD", QEMU, 30 * time.Minute},
		{"soak-mixed-intel", "Intel", Bochs, 30 * time.Minute},
		{"soak-mixed-quick", "4 min", Bochs, 4 * time.Minute},
	} {
		Register(Scenario{
			Name:     s.name,
			Brief:    brief + s.on,
			Emulator: s.emulator,
			Timeout:  2*s.lasts + 30*time.Minute,
			Run:      func(t *T) error { return soakMixed(t, s.lasts, s.emulator == Bochs) },
		})
	}
}

const (
	soakSeed = 11
	// soakBegins is the part of the time that passes before the first count, in which
	// what is made once and kept comes to be.
	soakBegins = 15
	// maxStorm is how often one attack tries to write a register: more than a guard
	// may have records of in a second.
	maxStorm = 400
	// maxFreeLoss bounds what Xen may have less to give out after it all, in MiB, which
	// is what xl tells of it.
	maxFreeLoss = 1
)

// soakAttack is an attack whose violations are known beforehand.
type soakAttack struct {
	mode, guard string
	// alerted is how many violations it makes when it is not blocked: the store and
	// the one that puts back what was there; a register is put back to what is right.
	alerted int
	times   bool // tries as often as it is told, until it succeeds
	intel   bool // needs page access
}

var soakAttacks = []soakAttack{
	{mode: "lstar", guard: "syscall-entry", alerted: 1, times: true},
	{mode: "star", guard: "syscall-entry", alerted: 1, times: true},
	{mode: "cr0-wp", guard: "cr", alerted: 1},
	{mode: "text", guard: "kernel-text", alerted: 2, intel: true},
	{mode: "alias", guard: "kernel-text", alerted: 2, intel: true},
}

// soakLoads are what the guest does meanwhile, by the file that has it go on.
var soakLoads = map[string]string{
	"forks":   "/bin/true; /bin/ls /",
	"keys":    "echo 1 >/proc/sys/kernel/sched_schedstats; echo 0 >/proc/sys/kernel/sched_schedstats; usleep 20000",
	"modules": "insmod /lib/fat.ko; rmmod fat; usleep 200000",
	"files":   "rm -rf /tmp/p; mkdir -p /tmp/p/a/b; cp /init /tmp/p/a; tar -C /tmp -cf /tmp/p.tar p; tar -C /tmp/p/a/b -xf /tmp/p.tar; sha256sum /tmp/p.tar; chmod -R 700 /tmp/p",
}

// mixer is one run of it.
type mixer struct {
	*soaker
	g      *Guest
	whole  control.State
	random *rand.Rand
	intel  bool
	victim string // the address of code that is attacked
	// attached and actions are what holds of the guest now.
	attached bool
	actions  map[string]string
	on       map[string]bool // the loads
	made     map[string]int  // violations, by guard
	done     map[string]int  // what was done, by name
}

// soakMixed has a guest do everything at once that guards look at, be attacked, and be
// attached to, let go of and given other policies at random. In the end each violation
// must have been counted and recorded, and hvid and Xen hold what they held.
func soakMixed(t *T, lasts time.Duration, intel bool) error {
	if err := os.RemoveAll(capturedDir); err != nil {
		return err
	}
	if err := t.listen("unix:" + metricsSocket); err != nil {
		return err
	}
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	t.Fact("seed", soakSeed)
	m := &mixer{
		soaker: &soaker{t: t, hvid: hvid, metrics: metricsSocket}, intel: intel, attached: true, whole: control.StateDegraded,
		random: rand.New(rand.NewPCG(soakSeed, 0)), actions: map[string]string{}, on: map[string]bool{}, made: map[string]int{}, done: map[string]int{},
	}
	if intel {
		m.whole = control.StateProtecting
	}
	c := enforce
	c.Memory = 192
	if m.g, _, err = t.protectedGuest(c, m.whole); err != nil {
		return err
	}
	for _, a := range soakAttacks {
		m.actions[a.guard] = "block"
	}
	at, err := m.g.addresses(victim)
	if err != nil {
		return err
	}
	m.victim = at[victim] // the kernel is where it is linked, after a reboot, too
	if err := m.goOn(lasts / soakBegins); err != nil {
		return err
	}
	before, free, err := m.rest()
	if err != nil {
		return err
	}
	clear(m.done)
	start := time.Now()
	if err := m.goOn(lasts); err != nil {
		m.facts(time.Since(start))
		return err
	}
	m.facts(time.Since(start))
	after, freeAfter, err := m.rest()
	if err != nil {
		return err
	}
	t.Fact("before", before)
	t.Fact("after", after)
	t.Check(after.within(before), "hvid holds no more than before: %+v, then %+v", before, after)
	const growth = 8 << 10
	t.Check(after.Memory < before.Memory+growth, "and its memory has not grown by %d KiB: %d, then %d", growth, before.Memory, after.Memory)
	t.Check(free-freeAfter <= maxFreeLoss, "Xen has as much free memory as before: %d MiB, then %d MiB", free, freeAfter)
	t.Fact("xen_free_mbytes", map[string]int{"before": free, "after": freeAfter})
	for _, word := range []string{"level=ERROR", "EBUSY", "resource busy"} {
		t.Check(!strings.Contains(hvid.Log(), word), "hvid's log has no %q: %s", word, firstLine(hvid.Log(), word))
	}
	if err := m.g.attackIsBlocked("lstar"); err != nil {
		return err
	}
	if err := t.HVICtl(nil, "detach", m.g.Name); err != nil {
		return err
	}
	left, err := t.leftovers(m.g.ID)
	if err != nil {
		return err
	}
	t.Check(left.restricted == 0 && !left.paused && !left.views && left.steps == 0, "nothing is left in Xen once it is let go of: %+v", left)
	out, err := m.g.Run("echo alive")
	if err != nil {
		return err
	}
	t.Check(out == "alive", "the guest lives: %q", out)
	if err := m.g.Shutdown(); err != nil {
		return err
	}
	return m.g.nothingLeft()
}

func (m *mixer) facts(took time.Duration) {
	m.t.Fact("seconds", round(took))
	m.t.Fact("done", m.done)
	m.t.Fact("violations_made", m.made)
}

// goOn does one thing after another for so long.
func (m *mixer) goOn(d time.Duration) error {
	for end := time.Now().Add(d); time.Now().Before(end); {
		what := m.next()
		m.done[what]++
		var err error
		switch what {
		case "attack":
			err = m.attack()
		case "detach-attach":
			err = m.attach(!m.attached)
		case "policy":
			err = m.policy()
		case "load":
			err = m.load()
		case "rest":
			err = m.t.wait(time.Duration(m.random.IntN(3000)) * time.Millisecond)
		}
		if err != nil {
			return fmt.Errorf("%s, after %v: %w", what, m.done, err)
		}
	}
	return nil
}

// next is what is done next.
func (m *mixer) next() string {
	switch n := m.random.IntN(10); {
	case n < 4:
		return "attack"
	case n < 6:
		return "detach-attach"
	case n < 7:
		return "policy"
	case n < 9:
		return "load"
	}
	return "rest"
}

// attack makes one, and notes the violations that it must have been.
func (m *mixer) attack() error {
	a := soakAttacks[m.random.IntN(len(soakAttacks))]
	if a.intel && !m.intel {
		a = soakAttacks[0]
	}
	times := 1
	if a.times {
		times += m.random.IntN(maxStorm)
	}
	attack := Attack{Mode: a.mode}
	switch {
	case a.times:
		attack.Times = times
	case a.intel:
		attack.Symbol = m.victim
	}
	v, err := m.g.Attack(attack)
	if err != nil {
		return err
	}
	action := m.actions[a.guard]
	if !m.attached {
		action = "off"
	}
	switch action {
	case "block":
		m.made[a.guard] += times
	case "alert":
		m.made[a.guard] += a.alerted
	}
	if want := action != "block"; v.Written != want {
		m.t.Check(false, "attack %s with %s on %s succeeds, %v: %v", a.mode, a.guard, action, want, v.Written)
	}
	return nil
}

// attach has hvi attach to the guest, or let go of it.
func (m *mixer) attach(on bool) error {
	if m.attached = on; !on {
		return m.t.HVICtl(nil, "detach", m.g.Name)
	}
	if err := m.t.HVICtl(nil, "attach", m.g.Name); err != nil {
		return err
	}
	return m.inForce()
}

// policy has a guard do something else about violations.
func (m *mixer) policy() error {
	guards := slices.Sorted(maps.Keys(m.actions))
	g := guards[m.random.IntN(len(guards))]
	if g == "kernel-text" && !m.intel {
		g = "cr"
	}
	return m.set(g, []string{"block", "alert", "off"}[m.random.IntN(3)])
}

func (m *mixer) set(guard, action string) error {
	m.actions[guard] = action
	if err := m.t.HVICtl(nil, "set", m.g.Name, "--guard", guard+"="+action); err != nil {
		return err
	}
	m.attached = true // that protects it, too, if nothing did
	return m.inForce()
}

// inForce waits until what is asked for is.
func (m *mixer) inForce() error {
	return m.t.Eventually(protectLimit, "the guest has the policy that was set", func() (bool, error) {
		st, err := m.g.Status()
		if err != nil || st.State != m.whole {
			return false, nil
		}
		for name, action := range m.actions {
			g := guardStatus(st, name)
			if off := action == "off"; off != (g.State == control.GuardOff) || !off && g.Action != action {
				return false, nil
			}
		}
		return true, nil
	})
}

// load switches one of the loads on or off.
func (m *mixer) load() error {
	names := slices.Sorted(maps.Keys(soakLoads))
	return m.switchLoad(names[m.random.IntN(len(names))])
}

func (m *mixer) switchLoad(name string) error {
	m.on[name] = !m.on[name]
	command := "rm -f /tmp/load-" + name
	if m.on[name] {
		command = fmt.Sprintf("touch /tmp/load-%s; (while [ -e /tmp/load-%[1]s ]; do %s; done) >/dev/null 2>&1 &", name, soakLoads[name])
	}
	_, err := m.g.Run(command)
	return err
}

// rest puts all back to what it was first, checks what was counted, and takes what is
// held.
func (m *mixer) rest() (c tally, free int, err error) {
	for name, on := range m.on {
		if on {
			if err := m.switchLoad(name); err != nil {
				return c, 0, err
			}
		}
	}
	if !m.attached {
		if err := m.attach(true); err != nil {
			return c, 0, err
		}
	}
	for g := range m.actions {
		if m.actions[g] != "block" {
			if err := m.set(g, "block"); err != nil {
				return c, 0, err
			}
		}
	}
	if err := m.exact(); err != nil {
		return c, 0, err
	}
	if c, err = m.settled(); err != nil {
		return c, 0, err
	}
	free, err = m.t.xenFree()
	return c, free, err
}

// exact checks that each violation was counted and is told by a record.
func (m *mixer) exact() error {
	var counted, recorded map[string]int
	// A record of repetitions comes when a second is over.
	err := m.t.Eventually(hvidLimit, "all violations are recorded", func() (bool, error) {
		var err error
		if counted, recorded, err = m.tell(); err != nil {
			return false, err
		}
		return maps.Equal(recorded, m.madeOnly()), nil
	})
	m.t.Check(maps.Equal(counted, m.madeOnly()), "each violation is counted: made %v, counted %v", m.made, counted)
	m.t.Check(err == nil, "and recorded, by itself or with others: %v, %v", recorded, err)
	return nil
}

// madeOnly is made, without those of which there were none.
func (m *mixer) madeOnly() map[string]int {
	made := maps.Clone(m.made)
	maps.DeleteFunc(made, func(_ string, n int) bool { return n == 0 })
	return made
}

// tell is how many violations of the guest's were counted, by hvid's metrics, and how
// many are told of in the journal.
func (m *mixer) tell() (counted, recorded map[string]int, err error) {
	s, err := m.t.scrape("unix", metricsSocket)
	if err != nil {
		return nil, nil, err
	}
	counted, recorded = map[string]int{}, map[string]int{}
	for _, a := range soakAttacks {
		n, _ := s.of("hvi_guard_violations_total", label("uuid", m.g.UUID), label("guard", a.guard))
		if n > 0 {
			counted[a.guard] = int(n)
		}
	}
	events, err := m.g.Events()
	if err != nil {
		return nil, nil, err
	}
	for _, r := range events {
		if n := int(r.Detail.Suppressed); n > 0 {
			recorded[r.Guard] += n
		} else {
			recorded[r.Guard] += 1 + int(r.Detail.Repeats)
		}
	}
	return counted, recorded, nil
}

// xenFree is what Xen has to give out, in MiB.
func (t *T) xenFree() (int, error) {
	out, err := t.XL("info")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(out.Stdout) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "free_memory" {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("xl info tells of no free memory: %s", lastLines(out.Stdout, 3))
}
