package scenario

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/xen-hvi/hvi/control"
)

const (
	// maxEmulatorFaults is how often one scenario puts up with [Guest.endedByEmulator].
	maxEmulatorFaults = 8
	// maxFaultsBehind is how often, of those, with a guest that is started behind one
	// and triple-faults before it is up, see [emulatorFaults].
	maxFaultsBehind = 2
)

// emulatorFaults are what a scenario put up with.
type emulatorFaults struct {
	// ended counts guests of which Xen's log says that they had Xen's own state.
	ended int
	// behind counts guests that xl started directly behind one of those, and which
	// triple-faulted with a state of their own before they were up. That it was the
	// emulator is likely, since no other guest does that, and not certain.
	behind int
}

func (f emulatorFaults) facts(t *T) {
	t.Fact("guests_ended_by_emulator", f.ended)
	t.Fact("guests_that_faulted_behind_it", f.behind)
}

// xensOwn is a guest's processor as Xen shows it when it ends the guest, with what can
// only be Xen's: its code segment, and an instruction in the part of the address space
// that Xen keeps for its own code (XEN_VIRT_START, asm-x86/config.h).
var xensOwn = regexp.MustCompile(`RIP: +e008:\[<ffff82d0[0-9a-f]{8}>\][^\n]*\n[^\n]*CONTEXT: hvm guest \(d(\d+)v`)

// endedByEmulator says whether it was QEMU that has ended the guest: under load it takes
// Xen's state for the guest's now and then, when it leaves the guest, and the guest goes
// on with that and triple-faults. lab/results/linux-live.md tells of it.
func (g *Guest) endedByEmulator() (bool, error) {
	log, err := g.t.XL("dmesg")
	if err != nil {
		return false, err
	}
	return showsXensOwn(log.Stdout, g.ID), nil
}

// tripleFaulted says whether Xen has ended the guest for a triple fault, of whatever
// state.
func (g *Guest) tripleFaulted() (bool, error) {
	log, err := g.t.XL("dmesg")
	if err != nil {
		return false, err
	}
	return showsTripleFault(log.Stdout, g.ID), nil
}

// afterEmulator returns the guest that xl starts after one which the emulator has ended,
// up and in a state, and counts how often that has happened. That guest may be ended
// likewise.
func (g *Guest) afterEmulator(want control.State, faults *emulatorFaults) (*Guest, error) {
	gone := errors.New("the guest is gone")
	faults.ended++
	for {
		if faults.ended > maxEmulatorFaults {
			return nil, fmt.Errorf("the emulator has ended the guest %d times", faults.ended)
		}
		g.t.Logf("the emulator has ended the guest: %+v now; the next is waited for", *faults)
		next, err := g.t.OpenNext(g)
		if err != nil {
			return nil, err
		}
		g = next
		err = g.t.Eventually(protectLimit, g.Name+" is "+string(want)+" again", func() (bool, error) {
			if st, err := g.Status(); err == nil && st.State == want {
				return true, nil
			}
			if ids, err := g.t.domains(); err != nil || !slices.Contains(ids, g.ID) {
				return false, errors.Join(gone, err)
			}
			return false, nil
		})
		if err == nil {
			_, err = g.WaitUp()
		}
		if err == nil {
			return g, nil
		}
		xens, e := g.endedByEmulator()
		own, e2 := g.tripleFaulted()
		switch {
		case e != nil || e2 != nil:
			return nil, errors.Join(err, e, e2)
		case xens:
			faults.ended++
		case own && faults.behind < maxFaultsBehind:
			faults.behind++
		default:
			return nil, err
		}
	}
}

// showsTripleFault says whether Xen's log tells of a domain's triple fault.
func showsTripleFault(log string, id int) bool {
	return regexp.MustCompile(fmt.Sprintf(`\bd%dv\d+ Triple fault`, id)).MatchString(log)
}

// showsXensOwn says whether Xen's log shows its own state as that of a domain.
func showsXensOwn(log string, id int) bool {
	for _, m := range xensOwn.FindAllStringSubmatch(log, -1) {
		if m[1] == fmt.Sprint(id) {
			return true
		}
	}
	return false
}
