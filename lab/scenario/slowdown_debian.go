package scenario

import (
	"fmt"
	"slices"
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

// debianBoots is how often each is timed. The shortest counts, as in slowdown.
const debianBoots = 2

// slowdownDebian times the boot of a guest that is what users have, without protection
// and with the presets that have a bound. Slowdown's own guest boots so little that what
// hvid does once for each guest is all that is seen.
func slowdownDebian(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	// The first protected guest of a kernel takes more: the kernel is not known yet.
	first := slices.IndexFunc(protections, func(p protection) bool { return p.name == "linux-observe" })
	took, err := debianBoot(t, protections[first])
	if err != nil {
		return err
	}
	t.Fact("first."+protections[first].name, int64(took.Seconds()*instructionsPerSecond))
	var off time.Duration
	for _, p := range protections {
		if p.name != "off" && p.most == 0 {
			continue
		}
		var shortest time.Duration
		var all []int64
		for range debianBoots {
			took, err := debianBoot(t, p)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
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
		t.Fact("boot."+p.name, map[string]any{"instructions": all, "percent": more})
		t.Check(p.most == 0 || more <= p.most, "%s: the boot takes %.1f %% longer", p.name, more)
	}
	return nil
}

// debianBoot boots a guest, checks that all went well in it, and returns how long it took
// until systemd had reached its target.
func debianBoot(t *T, p protection) (time.Duration, error) {
	g, took, err := booted(t, p, GuestConfig{System: true, Memory: 512})
	if err != nil {
		return 0, err
	}
	st, err := g.waitProtected(p)
	if err != nil {
		return 0, err
	}
	g.eventless(st)
	t.Fact("events."+p.name, st.Counters.RingEvents)
	var said []string
	err = g.console.wait(t.ctx, bootLimit, g.Name+" says how its boot went", func(text string) bool {
		_, rest, _ := strings.Cut(text, "@@SYSTEM ")
		line, _, whole := strings.Cut(rest, "\n")
		said = strings.SplitN(strings.TrimSpace(line), ";", 4)
		return whole
	})
	if err != nil {
		return 0, err
	}
	t.Check(said[0] == "running", "all of the guest's units are well: %s", strings.Join(said, ", "))
	if err := g.Destroy(); err != nil {
		return 0, err
	}
	if err := g.WaitGone(shutLimit); err != nil {
		return 0, err
	}
	t.Logf("%s: %.0f million instructions, %s", p.name, took.Seconds()*instructionsPerSecond/1e6, strings.Join(said, ", "))
	return took, t.wait(settled) // what hvid does for its end is not the next one's
}
