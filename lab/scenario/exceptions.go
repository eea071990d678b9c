package scenario

import (
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "exceptions",
		Brief:    "An attack is blocked, is permitted with hvictl allow, passes and is counted, and is blocked again",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      exceptions,
	})
}

// exceptions permits one attack out of two, from the event that reported it.
func exceptions(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	g, _, err := t.protectedGuest(enforce, control.StateProtecting)
	if err != nil {
		return err
	}
	if err := g.attackIsBlocked("text"); err != nil {
		return err
	}
	before, err := g.Events()
	if err != nil {
		return err
	}

	// The module puts back what it changed, which are other bytes.
	var made []control.Exception
	event := string(before[len(before)-1].ID)
	if err := t.HVICtl(&made, "allow", event, "--any", "bytes", "--expires", "1d", "--comment", "the lab's"); err != nil {
		return err
	}
	if !t.Check(len(made) == 1, "hvictl allow makes one exception: %+v", made) {
		return nil
	}
	x := made[0]
	t.Fact("exception", x)
	t.Check(x.Domain == g.UUID && x.Process == "insmod" && x.Module == "pwn" && x.Target == victim, "it permits what the event reported: %s", x.String())

	v, err := g.Attack(Attack{Mode: "text", Symbol: victim})
	if err != nil {
		return err
	}
	t.Check(v.Written && v.After == v.Tried, "the same attack passes: before %#x, tried %#x, after %#x", v.Before, v.Tried, v.After)
	st, err := g.Status()
	if err != nil {
		return err
	}
	text := guardStatus(st, "kernel-text")
	// The store, and the one that puts back what was there.
	t.Check(text.Allowed == 2 && text.Blocked == 1, "two stores were permitted and one blocked: %+v", text)
	var list []control.Exception
	if err := t.HVICtl(&list, "exceptions", "list"); err != nil {
		return err
	}
	t.Check(len(list) == 1 && list[0].ID == x.ID && len(list[0].Domains) == 1 && list[0].Domains[0].Uses == 2, "and counted: %+v", list)
	after, err := g.Events()
	if err != nil {
		return err
	}
	t.Check(len(after) == len(before), "what is permitted makes no record: %d before, %d after", len(before), len(after))

	// Nothing else is: what another guard is for, and this one again
	// without the exception.
	if err := g.attackIsBlocked("lstar"); err != nil {
		return err
	}
	if err := t.HVICtl(&list, "exceptions", "remove", x.ID); err != nil {
		return err
	}
	t.Check(len(list) == 0, "the exception is removed: %+v", list)
	if err := g.attackIsBlocked("text"); err != nil {
		return err
	}
	return g.Shutdown()
}
