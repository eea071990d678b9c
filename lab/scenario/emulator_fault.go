package scenario

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/xen-hvi/hvi/control"
)

// maxEmulatorFaults is how often one scenario puts up with [Guest.endedByEmulator].
const maxEmulatorFaults = 8

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

// afterEmulator returns the guest that xl starts after one which the emulator has ended,
// up and in a state, and counts how often that has happened. That guest may be ended
// likewise.
func (g *Guest) afterEmulator(want control.State, faults *int) (*Guest, error) {
	gone := errors.New("the guest is gone")
	for {
		if *faults++; *faults > maxEmulatorFaults {
			return nil, fmt.Errorf("the emulator has ended the guest %d times", *faults)
		}
		g.t.Logf("the emulator has ended the guest, %d times now; the next is waited for", *faults)
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
		if again, e := g.endedByEmulator(); e != nil || !again {
			return nil, errors.Join(err, e)
		}
	}
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
