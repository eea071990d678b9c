package scenario

import (
	"slices"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
)

func init() {
	Register(Scenario{
		Name:     "learn",
		Brief:    "What a guest does under mode learn is proposed and accepted, passes under enforce, and nothing else does",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      learn,
	})
}

// learning is what a user writes who will have the guest's code guarded later.
var learning = GuestConfig{
	Name: "web", Altp2m: "external",
	Lines: []string{`introspection = "learn"`, `introspection_guards = ["kernel-text=block"]`},
}

// learn takes one attack for what a healthy guest does.
func learn(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	g, st, err := t.protectedGuest(learning, control.StateProtecting)
	if err != nil {
		return err
	}
	t.Check(st.Mode == "learn" && guardStatus(st, "kernel-text").Action == "alert", "the guard that is to block later reports: mode %s, %s", st.Mode, guardStatus(st, "kernel-text").Action)
	healthy := Attack{Mode: "text", Symbol: victim}
	passes := func(when string) error {
		v, err := g.Attack(healthy)
		if err == nil {
			t.Check(v.Written && v.After == v.Tried, "%s the store takes place: before %#x, tried %#x, after %#x", when, v.Before, v.Tried, v.After)
		}
		return err
	}
	const runs = 3
	for range runs {
		if err := passes("under learn"); err != nil {
			return err
		}
	}

	// The module's store, and the one that puts back what was there.
	var l control.Learned
	if err := t.HVICtl(&l, "learn", g.Name); err != nil {
		return err
	}
	t.Fact("learned", l)
	t.Check(l.Violations == 2*runs && l.Unrecorded == 0 && l.Unproposed == 0, "all that was seen was learnt: %d violations, %d unrecorded, %d without a proposal", l.Violations, l.Unrecorded, l.Unproposed)
	if !t.Check(len(l.Proposals) == 2, "two kinds of it: %d", len(l.Proposals)) {
		return nil
	}
	for _, p := range l.Proposals {
		t.Check(p.Violations == runs && !p.Broad() && p.Guard == "kernel-text" && p.Domain == g.UUID && p.Process == "insmod" && p.Module == "pwn" && p.Target == victim && p.Bytes != "",
			"%s: %d times, as narrow as can be: %s", p.ID, p.Violations, p.Exception.String())
	}
	var made []control.Exception
	if err := t.HVICtl(&made, "learn", g.Name, "--accept", "all", "--expires", "30d", "--comment", "the lab's"); err != nil {
		return err
	}
	t.Check(len(made) == 2, "both are accepted: %+v", made)
	before, err := g.Events()
	if err != nil {
		return err
	}
	if err := passes("once it is accepted"); err != nil {
		return err
	}

	if err := t.HVICtl(nil, "set", g.Name, "--mode", "enforce"); err != nil {
		return err
	}
	err = t.Eventually(hvidLimit, "the guard blocks", func() (bool, error) {
		st, err = g.Status()
		return st.Mode == "enforce" && guardStatus(st, "kernel-text").Action == "block", err
	})
	if err != nil {
		return err
	}
	if err := passes("under enforce"); err != nil {
		return err
	}
	if st, err = g.Status(); err != nil {
		return err
	}
	text := guardStatus(st, "kernel-text")
	t.Check(text.Allowed == 4 && text.Blocked == 0, "and was permitted four times: %+v", text)
	after, err := g.Events()
	if err != nil {
		return err
	}
	t.Check(len(after) == len(before), "and makes no record: %d before, %d after", len(before), len(after))

	// Nothing else was learnt: not the same to another function.
	v, err := g.Attack(Attack{Mode: "text", Symbol: unwanted})
	if err != nil {
		return err
	}
	t.Check(!v.Written, "another function is not written to: before %#x, tried %#x, after %#x", v.Before, v.Tried, v.After)
	events, err := g.eventsAfter(after, hvidLimit, "that is reported")
	if err != nil {
		return err
	}
	t.Check(slices.ContainsFunc(events, func(r journal.Record) bool { return r.Action == journal.Blocked && r.Guard == "kernel-text" }), "and that is reported: %d events", len(events))
	if err := g.attackIsBlocked("lstar"); err != nil {
		return err
	}
	for _, x := range made {
		if err := t.HVICtl(nil, "exceptions", "remove", x.ID); err != nil {
			return err
		}
	}
	return g.Shutdown()
}
