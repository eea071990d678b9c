package scenario

import (
	"bufio"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
)

const (
	hvidLimit = 20 * time.Second // emulated; from start or SIGTERM
	// From creation to init. Bochs needs 4 s of its own time; QEMU's time is the
	// host's, and the 17,000 events of an AMD guest's boot take it minutes.
	protectLimit = 8 * time.Minute
)

// StartHVID starts the daemon and waits until it answers. It is stopped by
// SIGTERM when the scenario ends.
func (t *T) StartHVID(args ...string) (*Process, error) {
	p, err := t.Start("hvid", args...)
	if err != nil {
		return nil, err
	}
	err = t.Eventually(hvidLimit, "hvid answers", func() (bool, error) {
		select {
		case <-p.Exited():
			return false, fmt.Errorf("hvid ended: %s", lastLines(p.Log(), 5))
		default:
		}
		_, err := client.Version(t.ctx)
		return err == nil, nil
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = p.Stop(hvidLimit) }) // fails only when it has ended
	return p, nil
}

// Status returns what hvid says of the guest. It asks the socket itself: under
// an emulator a start of hvictl costs more than what it is to measure.
func (g *Guest) Status() (control.DomainStatus, error) {
	return client.Domain(g.t.ctx, strconv.Itoa(g.ID))
}

var client = control.NewClient(control.DefaultSocket)

// WaitState waits until hvid reports the guest in one of the states, and
// returns its status then.
func (g *Guest) WaitState(d time.Duration, states ...control.State) (control.DomainStatus, error) {
	var st control.DomainStatus
	n := 0
	err := g.t.Eventually(d, fmt.Sprintf("%s is %v", g.Name, states), func() (bool, error) {
		var err error
		if st, err = g.Status(); err != nil {
			return false, nil // hvid may not know the domain yet
		}
		n++
		if n%40 == 0 {
			g.t.Logf("%s is %s, %d ring events so far", g.Name, st.State, st.Counters.RingEvents)
		}
		for _, s := range states {
			if st.State == s {
				return true, nil
			}
		}
		if st.State == control.StateFailed {
			return false, fmt.Errorf("%s failed: %+v", g.Name, st.Failure)
		}
		return false, nil
	})
	return st, err
}

// Guard returns the status of one guard.
func guardStatus(st control.DomainStatus, name string) control.GuardStatus {
	for _, g := range st.Guards {
		if g.Name == name {
			return g
		}
	}
	return control.GuardStatus{}
}

// Events returns the guest's security events, oldest first, without those that are
// no violations.
func (g *Guest) Events() ([]journal.Record, error) {
	all, err := g.Records()
	return slices.DeleteFunc(all, func(r journal.Record) bool { return r.Action == journal.Noted }), err
}

// Records returns all that is recorded of the guest, oldest first.
func (g *Guest) Records() ([]journal.Record, error) {
	out, err := g.t.Exec("hvictl", "-o", "json", "events", "-n", "0", "--domain", g.UUID)
	if err != nil {
		return nil, err
	}
	var all []journal.Record
	for sc := bufio.NewScanner(strings.NewReader(out.Stdout)); sc.Scan(); {
		var r journal.Record
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("hvictl events: %w in %.200q", err, sc.Text())
		}
		all = append(all, r)
	}
	return all, nil
}
