package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/printable"
)

const (
	topEvery    = 2 * time.Second
	minTopEvery = 100 * time.Millisecond
	// topGuards is how many of a domain's guards a line names.
	topGuards = 3
)

// topSample is what happened between two looks at hvid.
type topSample struct {
	Time    time.Time     `json:"time"`
	Seconds float64       `json:"seconds"`
	Domains []topOfDomain `json:"domains"`
}

// topOfDomain is one domain's part of it; all but the peak is per second.
type topOfDomain struct {
	ID    uint16         `json:"id"`
	Name  printable.Text `json:"name"`
	UUID  string         `json:"uuid"`
	State control.State  `json:"state"`
	// Events are requests of Xen's, for each of which a vCPU waits; Busy is the part
	// of a processor of dom0 that they took.
	Events     float64      `json:"events"`
	Busy       float64      `json:"busy"`
	Peak       int          `json:"ring_peak"`
	Violations float64      `json:"violations"`
	Guards     []topOfGuard `json:"guards"`
}

// topOfGuard is one guard that saw something.
type topOfGuard struct {
	Name       string  `json:"name"`
	Passed     float64 `json:"passed"`
	Violations float64 `json:"violations"`
	// Decisions are the requests that the guard decided on; Busy is the part of a
	// processor of dom0 that these took, Nanoseconds what one did.
	Decisions   float64 `json:"decisions"`
	Busy        float64 `json:"busy"`
	Nanoseconds float64 `json:"ns_per_decision"`
}

func (a *app) topCommand() *cobra.Command {
	every, times := topEvery, 0
	cmd := &cobra.Command{
		Use:   "top",
		Short: "See what protection costs, guest by guest, as it happens",
		Long: `Show which guests make events now, and what that takes: how many requests of Xen's
hvid answers each second, for each of which a virtual processor waits; about what part
of one of dom0's processors its thread for that guest takes; how many requests were
waiting at once at most since it was attached to (the ring holds some thirty); and
which guards saw something: how many events each decided on, and about how long it takes
for one.

The guests that make most events come first. It goes on until it is interrupted, or
--times are over. With -o json each look is one line.`,
		Example: `  hvictl top
  hvictl top --every 10s
  hvictl top -n 1 -o json | jq '.domains[] | select(.busy > 0.1) | .name'`,
		Args:              argCount(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < minTopEvery {
				return usage(cmd, fmt.Sprintf("--every %v is too short: at least %v", every, minTopEvery))
			}
			if times < 0 {
				return usage(cmd, fmt.Sprintf("--times %d is out of range: 0 is without end", times))
			}
			err := a.top(cmd.Context(), every, times)
			if times == 0 && errors.Is(err, context.Canceled) {
				return nil // how one ends it
			}
			return err
		},
	}
	f := cmd.Flags()
	f.DurationVarP(&every, "every", "d", every, "the `TIME` between two looks")
	f.IntVarP(&times, "times", "n", 0, "end after so many `LOOKS`; 0: when interrupted")
	return cmd
}

func (a *app) top(ctx context.Context, every time.Duration, times int) error {
	c := a.client()
	defer c.Close()
	before, err := c.Domains(ctx)
	if err != nil {
		return err
	}
	at := a.now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; times == 0 || n < times; n++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now, err := c.Domains(ctx)
		if err != nil {
			return err
		}
		s := sampleOf(before, now, at, a.now())
		before, at = now, s.Time
		if err := a.showTop(s, n); err != nil {
			return err
		}
	}
	return nil
}

// sampleOf compares two looks.
func sampleOf(before, now []control.DomainStatus, from, to time.Time) topSample {
	s := topSample{Time: to, Seconds: to.Sub(from).Seconds(), Domains: []topOfDomain{}}
	// Counters begin anew with each session.
	rate := func(was, is uint64) float64 {
		if is < was || s.Seconds <= 0 {
			return 0
		}
		return float64(is-was) / s.Seconds
	}
	for _, d := range now {
		if len(d.Guards) == 0 && d.State == control.StateUnprotected {
			continue
		}
		var was control.DomainStatus
		if i := slices.IndexFunc(before, func(b control.DomainStatus) bool { return b.ID == d.ID && b.UUID == d.UUID }); i >= 0 && before[i].AttachedAt.Equal(d.AttachedAt) {
			was = before[i]
		} else {
			was = d // it has just come
		}
		t := topOfDomain{
			ID: d.ID, Name: d.Name, UUID: d.UUID, State: d.State, Peak: d.Counters.RingPeak, Guards: []topOfGuard{},
			Events: rate(was.Counters.RingEvents, d.Counters.RingEvents),
			Busy:   rate(uint64(was.Counters.RingBusy), uint64(d.Counters.RingBusy)) / float64(time.Second),
		}
		for _, g := range d.Guards {
			i := slices.IndexFunc(was.Guards, func(b control.GuardStatus) bool { return b.Name == g.Name })
			if i < 0 {
				continue
			}
			before := was.Guards[i]
			tg := topOfGuard{
				Name: g.Name, Passed: rate(before.Passed, g.Passed), Violations: rate(before.Events, g.Events),
				Decisions: rate(before.Decisions, g.Decisions),
				Busy:      rate(uint64(before.Busy), uint64(g.Busy)) / float64(time.Second),
			}
			if tg.Decisions > 0 {
				tg.Nanoseconds = tg.Busy * float64(time.Second) / tg.Decisions
			}
			t.Violations += tg.Violations
			if tg.Decisions+tg.Passed+tg.Violations > 0 {
				t.Guards = append(t.Guards, tg)
			}
		}
		slices.SortStableFunc(t.Guards, func(a, b topOfGuard) int {
			return cmp.Or(cmp.Compare(b.Violations, a.Violations), cmp.Compare(b.Passed, a.Passed))
		})
		s.Domains = append(s.Domains, t)
	}
	slices.SortStableFunc(s.Domains, func(a, b topOfDomain) int { return cmp.Compare(b.Events, a.Events) })
	return s
}

// clearScreen moves to the first place and erases what follows (ECMA-48).
const clearScreen = "\x1b[H\x1b[2J"

func (a *app) showTop(s topSample, n int) error {
	if a.format == formatJSON {
		return writeJSON(a.out, s, "")
	}
	switch {
	case a.screen:
		fmt.Fprint(a.out, clearScreen)
	case n > 0:
		fmt.Fprintln(a.out)
	}
	if len(s.Domains) == 0 {
		_, err := fmt.Fprintln(a.out, "No domain is protected.")
		return err
	}
	var rows [][]cell
	for _, d := range s.Domains {
		var guards []string
		for _, g := range d.Guards[:min(len(d.Guards), topGuards)] {
			guards = append(guards, g.String())
		}
		violations := cell{text: perSecond(d.Violations)}
		if d.Violations > 0 {
			violations.colour = red
		}
		rows = append(rows, []cell{
			number(d.ID), text(d.Name.String()), text(string(d.State)), text(perSecond(d.Events)), text(fmt.Sprintf("%.1f%%", 100*d.Busy)),
			number(d.Peak), violations, dash(strings.Join(guards, ", ")),
		})
	}
	a.table(a.out, "", []string{"ID", "NAME", "STATE", "EVENTS/S", "BUSY", "PEAK", "VIOLATIONS/S", "GUARDS"}, rows)
	return nil
}

// String is the guard for people: what it sees in a second, and what one decision takes
// if one was timed. What was found afterwards is no decision.
func (g topOfGuard) String() string {
	s := g.Name + " " + perSecond(max(g.Decisions, g.Passed+g.Violations))
	if g.Nanoseconds > 0 {
		s += fmt.Sprintf(" at %.1fµs", g.Nanoseconds/1000)
	}
	return s
}

// perSecond is a rate for people.
func perSecond(n float64) string {
	if n == 0 || n >= 10 {
		return fmt.Sprintf("%.0f", n)
	}
	return fmt.Sprintf("%.1f", n)
}
