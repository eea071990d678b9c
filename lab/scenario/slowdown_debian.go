package scenario

import (
	"fmt"
	"strings"
	"time"
)

func init() {
	Register(Scenario{
		Name:        "slowdown-debian",
		Brief:       "What presets cost the boot of a whole Debian with systemd, from xl create to multi-user.target",
		Emulator:    Bochs,
		Memory:      2048,
		GuestSystem: true,
		Timeout:     150 * time.Minute,
		Run:         slowdownDebian,
	})
}

// bootTimings is how often each boot is timed. The shortest counts, as in slowdown.
const bootTimings = 2

// afterEnd is how long nothing follows a guest's end: what hvid does for that is not the next
// one's.
const afterEnd = 10 * time.Second

// slowdownDebian times the boot of a guest that is what users have, without protection
// and with the presets that have a bound. Slowdown's own guest boots so little that what
// hvid does once for each guest is all that is seen; it is timed too, to tell that apart.
func slowdownDebian(t *T) error {
	b, err := firstBoots(t)
	if err != nil {
		return err
	}
	if err := b.each("small", GuestConfig{}, nil); err != nil {
		return err
	}
	return b.each("debian", GuestConfig{System: true, Memory: 512}, func(p protection, more float64) {
		t.Check(p.most == 0 || more <= p.most, "%s: the boot takes %.1f %% longer", p.name, more)
	})
}

// boots times boots.
type boots struct {
	t    *T
	hvid []int // its processes
}

// firstBoots starts hvid, and boots what is not to be compared with others: the first
// guest of all takes the toolstack more, and the first protected one of a kernel takes
// hvid more, which does not know it yet.
func firstBoots(t *T) (b boots, err error) {
	hvid, err := t.StartHVID()
	if err != nil {
		return b, err
	}
	v, err := client.Version(t.ctx)
	if err != nil {
		return b, err
	}
	b = boots{t, []int{hvid.Pid(), v.Keeper.PID}}
	for _, p := range protections[:2] {
		took, err := b.one(p, GuestConfig{})
		if err != nil {
			return b, fmt.Errorf("%s: %w", p.name, err)
		}
		t.Fact("first."+p.name, int64(took.Seconds()*instructionsPerSecond))
	}
	return b, nil
}

// each times a guest's boot under nobody's protection and under the presets that have a
// bound, and has judge see by how many percent each takes longer.
func (b boots) each(name string, c GuestConfig, judge func(protection, float64)) error {
	var off time.Duration
	for _, p := range protections {
		if p.name != "off" && p.most == 0 {
			continue
		}
		var shortest time.Duration
		var all []int64
		for range bootTimings {
			took, err := b.one(p, c)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", name, p.name, err)
			}
			all = append(all, int64(took.Seconds()*instructionsPerSecond))
			if shortest == 0 || took < shortest {
				shortest = took
			}
		}
		if p.name == "off" {
			off = shortest
		}
		more := percent(shortest, off)
		b.t.Fact("boot."+name+"."+p.name, map[string]any{"instructions": all, "percent": more})
		if judge != nil {
			judge(p, more)
		}
	}
	return nil
}

// one boots a guest, checks that all went well in it, and returns how long it took until
// it was up.
func (b boots) one(p protection, c GuestConfig) (time.Duration, error) {
	t := b.t
	before, err := b.used()
	if err != nil {
		return 0, err
	}
	g, took, err := booted(t, p, c)
	if err != nil {
		return 0, err
	}
	after, err := b.used()
	if err != nil {
		return 0, err
	}
	st, err := g.waitProtected(p)
	if err != nil {
		return 0, err
	}
	g.eventless(st)
	t.Logf("%s: %.0f million instructions, of the processor hvid had %.0f; %d events", p.name,
		took.Seconds()*instructionsPerSecond/1e6, (after-before).Seconds()*instructionsPerSecond/1e6, st.Counters.RingEvents)
	if c.System {
		if err := g.systemIsWell(); err != nil {
			return 0, err
		}
	}
	if err := g.Destroy(); err != nil {
		return 0, err
	}
	if err := g.WaitGone(shutLimit); err != nil {
		return 0, err
	}
	return took, t.wait(afterEnd)
}

// used is what hvid's processes have had of the processor.
func (b boots) used() (all time.Duration, err error) {
	each, err := processorTime(b.hvid...)
	for _, d := range each {
		all += d
	}
	return all, err
}

// systemIsWell checks what a guest with a whole Debian says of its boot, see
// lab/image/files/debian-guest.
func (g *Guest) systemIsWell() error {
	var said []string
	err := g.console.wait(g.t.ctx, bootLimit, g.Name+" says how its boot went", func(text string) bool {
		_, rest, _ := strings.Cut(text, "@@SYSTEM ")
		line, _, whole := strings.Cut(rest, "\n")
		said = strings.SplitN(strings.TrimSpace(line), ";", 2)
		return whole
	})
	if err == nil {
		g.t.Check(said[0] == "running", "all of the guest's units are well: %s", strings.Join(said, ", "))
	}
	return err
}
