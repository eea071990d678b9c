package scenario

import (
	"fmt"
	"regexp"
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

// showsXensOwn says whether Xen's log shows its own state as that of a domain.
func showsXensOwn(log string, id int) bool {
	for _, m := range xensOwn.FindAllStringSubmatch(log, -1) {
		if m[1] == fmt.Sprint(id) {
			return true
		}
	}
	return false
}
